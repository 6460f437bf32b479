"""The figures of the report, as PNG and SVG. Imported late: it needs matplotlib and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no window, no display

from matplotlib.figure import Figure

from ..emotions import CATALOGUE, GREY
from ..errors import EvaluationError
from ..files import atomic_write
from .background import unit_of
from .generate import FIGURES, Run

Geometry = Mapping[str, Mapping[str, np.ndarray]]

# The same input gives the same files, byte for byte.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mlx-emotion",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.dpi": 110,
}
FEWEST = 6
"""Vectors that a t-SNE needs at least."""


def colour(emotion: str) -> str:
    return CATALOGUE[emotion].colour if emotion in CATALOGUE else GREY


def _panels(columns: int, width: float = 3.6, height: float = 3.2, **options: Any) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)
    return figure, list(axes[0])


def _line(axis: Any, points: Sequence[Sequence[Any]], **style: Any) -> None:
    """A curve of (x, summary) with its interval as a band."""
    kept = [(x, s) for x, s in points if s["mean"] is not None]
    if not kept:
        return
    x = [p[0] for p in kept]
    axis.plot(x, [s["mean"] for _, s in kept], marker="o", markersize=3, linewidth=1.4, **style)
    if all(s["low"] is not None for _, s in kept):
        axis.fill_between(
            x, [s["low"] for _, s in kept], [s["high"] for _, s in kept], color=style.get("color"), alpha=0.12, lw=0
        )


def _project(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    flat = vectors.astype(np.float32)
    reduced = PCA(min(50, len(flat) - 1, flat.shape[1]), random_state=0).fit_transform(flat)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    return TSNE(dimensions, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)


def _together(samples: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All shifts ``[N, L, d]`` and each one's emotion number."""
    numbers = np.concatenate([np.full(len(v), i) for i, v in enumerate(samples.values())])
    return np.concatenate(list(samples.values())), numbers


def _scatter(axis: Any, points: np.ndarray, numbers: np.ndarray, names: Sequence[str], title: str) -> None:
    for i, name in enumerate(names):
        chosen = points[numbers == i]
        axis.scatter(*chosen.T[:2], s=10, color=colour(name), label=f"{name} ({len(chosen)})", linewidths=0)
    axis.set(title=title, xticks=[], yticks=[])


def tsne(_: Mapping[str, Any], geometry: Geometry) -> Figure | None:
    """Per-query vectors, all layers together, and four single layers (the paper's figures 3 and 4)."""
    samples = geometry["samples"]
    if sum(map(len, samples.values())) < FEWEST:
        return None
    everything, numbers = _together(samples)
    count = everything.shape[1]
    # The paper's layers 4, 8, 16 and 31 of 32, at the same depth.
    layers = sorted({min(count - 1, round(share * count)) for share in (4 / 32, 8 / 32, 16 / 32, 31 / 32)})
    figure, axes = _panels(1 + len(layers), 2.6, 2.9)
    _scatter(axes[0], _project(everything.reshape(len(everything), -1), 2), numbers, list(samples), "all layers")
    for axis, layer in zip(axes[1:], layers):
        _scatter(axis, _project(everything[:, layer], 2), numbers, list(samples), f"layer {layer}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(samples))
    return figure


def distances(_: Mapping[str, Any], geometry: Geometry) -> Figure | None:
    """Cosine distances within and between emotions: as they are, and after t-SNE to three dimensions (figure 5)."""
    samples = geometry["samples"]
    if sum(map(len, samples.values())) < FEWEST or len(samples) < 2:
        return None
    everything, numbers = _together(samples)
    flat = everything.reshape(len(everything), -1)
    figure, axes = _panels(2)
    same = numbers[:, None] == numbers[None]
    upper = np.triu(np.ones_like(same), 1).astype(bool)
    for axis, points, title in ((axes[0], flat, "as they are"), (axes[1], _project(flat, 3), "after t-SNE to 3-D")):
        unit = points / (np.linalg.norm(points, axis=1, keepdims=True) + 1e-12)
        distance = 1 - unit @ unit.T
        bins = np.linspace(0, max(1e-6, float(distance[upper].max())), 40).tolist()
        for mask, label, shade in ((same & upper, "within", "#3fae8f"), (~same & upper, "between", "#8a8f98")):
            axis.hist(distance[mask], bins=bins, density=True, alpha=0.6, label=label, color=shade)
        axis.set(title=f"{title}, {len(points)} vectors", xlabel="cosine distance", yticks=[])
    axes[0].legend()
    return figure


def norms(_: Mapping[str, Any], geometry: Geometry) -> Figure | None:
    """The norm of each emotion's vector, layer by layer."""
    if not geometry["vectors"]:
        return None
    figure, (axis,) = _panels(1, 5.2)
    for name, vector in geometry["vectors"].items():
        axis.plot(np.linalg.norm(vector, axis=1), color=colour(name), label=name, marker="o", markersize=2)
    axis.set(xlabel="layer", ylabel="norm", ylim=(0, None))
    axis.legend(ncols=2)
    return figure


def cosines(_: Mapping[str, Any], geometry: Geometry) -> Figure | None:
    """The cosine between emotions' vectors over all layers, and with their mean taken off."""
    vectors = geometry["vectors"]
    if len(vectors) < 2:
        return None
    names = list(vectors)
    flat = np.stack([v.reshape(-1) for v in vectors.values()])
    figure, axes = _panels(2, 4.0, 3.6)
    for axis, points, title in ((axes[0], flat, "as they are"), (axes[1], flat - flat.mean(0), "mean taken off")):
        unit = points / (np.linalg.norm(points, axis=1, keepdims=True) + 1e-12)
        table = unit @ unit.T
        axis.imshow(table, vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set(title=title, xticks=range(len(names)), yticks=range(len(names)), yticklabels=names)
        axis.set_xticklabels(names, rotation=60, ha="right")
        for i, j in np.ndindex(table.shape):
            ink = "white" if abs(table[i, j]) > 0.6 else "black"
            axis.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", fontsize=6, color=ink)
    return figure


def _curves(scores: Mapping[str, Any]) -> dict[str, Any]:
    return scores.get("statements", {}).get("curves", {})


def _mark_full(axis: Any, scores: Mapping[str, Any]) -> None:
    """Where calibration puts 1.0; in raw scales that is a place of each emotion's own. Without calibration nowhere."""
    if not scores["pack"]["calibrated"]:
        return
    for full in sorted(set(scores.get("full", {}).values())):
        axis.axvline(full, color="#888888", linewidth=0.8, linestyle=":")


def dose_response(scores: Mapping[str, Any], _: Geometry) -> Figure | None:
    """The asked emotion's probability, and the shares of emotional and of repetitive answers, against the dose.

    ``base``, which asks for no emotion in particular, is in the last two; what was not judged has no panel.
    """
    asked = {e: c["scores"] for e, c in _curves(scores).items() if c["scores"]}
    panels = [("probability of the asked emotion", asked)] if asked else []
    for label, metric in (("share called emotional", "eps"), ("share with distinct-2 under 0.3", "low_distinct")):
        if found := _by_dose(scores, metric):
            panels.append((label, found))
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for axis, (label, curves) in zip(axes, panels):
        for emotion, points in curves.items():
            _line(axis, points, color=colour(emotion), label=emotion)
        axis.set(xlabel=unit_of(scores), ylabel=label, ylim=(-0.02, 1.02))
        _mark_full(axis, scores)
    axes[-1].legend()
    return figure


def _by_dose(scores: Mapping[str, Any], metric: str) -> dict[str, list[tuple[float, Any]]]:
    """A metric's curve of every steered emotion, from the plain model's at dose 0."""
    here = [c for c in scores["conditions"] if metric in c["metrics"]]
    plain = [(0.0, c["metrics"][metric]) for c in here if c["kind"] == "plain"]
    curves: dict[str, list[tuple[float, Any]]] = {}
    for c in here:
        if c["kind"] == "steering":
            curves.setdefault(c["emotion"], [*plain]).append((c["dose"], c["metrics"][metric]))
    return {e: sorted(points, key=lambda p: p[0]) for e, points in curves.items()}


def topic(scores: Mapping[str, Any], _: Geometry) -> Figure | None:
    """How topic adherence changes against the plain model, question by question."""
    curves = {e: c["topic"] for e, c in _curves(scores).items() if c["topic"]}
    if not curves:
        return None
    figure, (axis,) = _panels(1, 4.6)
    for emotion, points in curves.items():
        _line(axis, points, color=colour(emotion), label=emotion)
    axis.axhline(0, color="#888888", linewidth=0.8)
    _mark_full(axis, scores)
    axis.set(xlabel=unit_of(scores), ylabel="adherence, change against plain", ylim=(-1.02, 1.02))
    axis.legend()
    return figure


def linearity(scores: Mapping[str, Any], _: Geometry) -> Figure | None:
    """The small range: scores with their line, and how far the logit shift goes along one direction."""
    curves = {e: c for e, c in _curves(scores).items() if c["scores"]}
    probes = scores.get("probes", {}).get("curves", {})
    if not curves and not probes:
        return None
    figure, axes = _panels(2)
    for emotion, curve in curves.items():
        full = scores["full"][emotion]
        kept = [[d / full, s] for d, s in curve["scores"] if 0 <= d <= full + 1e-9]
        _line(axes[0], kept, color=colour(emotion), label=f"{emotion}, tangent R² {_r2(curve.get('straight'))}")
        if curve["linear"]:
            slope, start, _r = curve["linear"]
            axes[0].plot([0, 1], [start, start + slope * full], color=colour(emotion), linewidth=0.8, linestyle="--")
    for emotion, curve in probes.items():
        label = f"{emotion}, tangent R² {_r2(curve['small'])} small, {_r2(curve['whole'])} whole"
        axes[1].plot(curve["doses"], curve["along"], marker="o", markersize=3, color=colour(emotion), label=label)
    axes[1].plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle=":")
    dose = "intensity" if scores["pack"]["calibrated"] else "raw scale"
    axes[0].set(xlabel=dose, ylabel="probability of the asked emotion")
    axes[1].set(xlabel=dose, ylabel="logit shift along its tangent")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    return figure


def _r2(found: Mapping[str, Any] | None) -> str:
    return "–" if not found or found["mean"] is None else f"{found['mean']:.2f}"


def addition(scores: Mapping[str, Any], _: Geometry) -> Figure | None:
    """Two emotions at half dose each: what the single effects predict against what is seen."""
    mixes = scores.get("statements", {}).get("mixes", {})
    pairs = {p: s or 0.0 for p, s in scores.get("probes", {}).get("pairs", {}).items()}
    if not mixes.get("points") and not pairs:
        return None
    figure, axes = _panels(2)
    for point in mixes.get("points", ()):
        axes[0].scatter(point["predicted"], point["observed"], color=colour(point["emotion"]), s=22)
    limits = axes[0].get_xlim()
    axes[0].plot(limits, limits, color="#888888", linewidth=0.8, linestyle=":")
    axes[0].set(xlabel="predicted change of probability", ylabel="observed change")
    axes[1].barh(list(pairs), list(pairs.values()), height=0.6, color="#4a7fc1")
    axes[1].set(xlabel="half of each: logit shift explained by the sum, R²", xlim=(min([0, *pairs.values()]), 1))
    axes[1].set_ylim(-1, len(pairs))
    return figure


def fading(scores: Mapping[str, Any], _: Geometry) -> Figure | None:
    """The asked emotion by turn: instructed once, steered, and plain."""
    data = scores.get("fading")
    if not data or "classifier" not in scores["judges"]:
        return None
    figure, (axis,) = _panels(1, 5.2)
    looks = {"plain": "#8a8f98", "prompt": "#f0803c", "steering": "#4a7fc1"}
    labels = {"plain": "plain", "prompt": "instructed at turn 0", "steering": "steered"}
    for way, series in data["ways"].items():
        _line(axis, list(zip(data["turns"], series)), color=looks[way], label=labels[way])
    axis.set(xlabel="turn", ylabel="probability of the asked emotion", ylim=(-0.02, 1.02))
    axis.legend()
    return figure


def circumplex(scores: Mapping[str, Any], _: Geometry) -> Figure | None:
    """Asked states on the circle, and where the answers of each are on average; a line joins the two."""
    data = scores.get("circumplex")
    if not data:
        return None
    figure, axes = _panels(len(data), 3.4, 3.7)
    around = np.linspace(0, 2 * math.pi, 181)
    for axis, (way, found) in zip(axes, data.items()):
        axis.plot(np.cos(around), np.sin(around), color="#cccccc", linewidth=0.8)
        axis.axhline(0, color="#dddddd", linewidth=0.6)
        axis.axvline(0, color="#dddddd", linewidth=0.6)
        for angle, state in found["states"].items():
            asked = math.radians(float(angle))
            shade = matplotlib.colormaps["hsv"](float(angle) / 360)
            axis.plot(math.cos(asked), math.sin(asked), "o", markerfacecolor="none", color=shade, markersize=7)
            if state["point"]:
                x, y = state["point"]
                axis.plot([math.cos(asked), x], [math.sin(asked), y], color=shade, linewidth=0.8, alpha=0.6)
                axis.plot(x, y, "o", color=shade, markersize=4)
        mean = found["all"]["mean"]
        title = f"{way}: cosine {mean:.2f}" if mean is not None else f"{way}: no direction"
        if found["neutral"] is not None:
            title += f", neutral {found['neutral']:.0%}"
        axis.set(title=title, aspect="equal", xlabel="valence", ylabel="arousal")
    return figure


def draw(run: Run, scores: Mapping[str, Any], geometry: Geometry) -> dict[str, list[Path]]:
    """Draw what there are numbers for; name -> its PNG and SVG. Raises ``EvaluationError`` if the disk is full."""
    drawn: dict[str, list[Path]] = {}
    with matplotlib.rc_context(STYLE):
        for name in FIGURES:
            figure: Figure | None = globals()[name](scores, geometry)
            if figure is None:
                continue
            paths = [run.figures / f"{name}.png", run.figures / f"{name}.svg"]
            for path, metadata in zip(paths, ({"Software": None}, {"Date": None})):
                with atomic_write(path, EvaluationError) as temporary:
                    figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
            drawn[name] = paths
    return drawn
