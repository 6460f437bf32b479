"""Comparing packs and putting them together."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_emotion.errors import PackError

from .pack import EmotionVectors, PackInfo


@dataclass(frozen=True)
class Likeness:
    """How alike two vectors of one emotion are, layers taken together: cosine, both norms.

    ``worst_cosine`` is the smallest of a single layer, at ``worst_layer``.
    """

    cosine: float
    norms: tuple[float, float]
    worst_layer: int
    worst_cosine: float


@dataclass(frozen=True)
class Difference:
    """``metadata`` are (field, a's, b's) where they differ; ``common`` is empty for packs of different shape."""

    metadata: tuple[tuple[str, Any, Any], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    common: dict[str, Likeness]


def diff(a: EmotionVectors, b: EmotionVectors) -> Difference:
    """Everything in which two packs differ."""
    shared = [n for n in a if n in b]
    first, second = _flat(a.info, shared), _flat(b.info, shared)
    metadata = [
        (key, first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]
    alike = (a.info.model.layers, a.info.model.width) == (b.info.model.layers, b.info.model.width)
    common = {n: likeness(a[n], b[n]) for n in shared} if alike else {}
    return Difference(tuple(metadata), tuple(n for n in a if n not in b), tuple(n for n in b if n not in a), common)


def likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Compare two vectors ``[L, d]``; a layer that is zero in both counts as the same, in one as unlike."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    dots, lengths = (x * y).sum(1), np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    both_zero = ~x.any(1) & ~y.any(1)
    cosines = np.where(lengths > 0, dots / np.where(lengths > 0, lengths, 1), both_zero)
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    worst = int(cosines.argmin())
    whole = float(dots.sum() / (norms[0] * norms[1])) if all(norms) else float(norms[0] == norms[1])
    return Likeness(whole, norms, worst, float(cosines[worst]))


def merge(packs: Iterable[EmotionVectors], prefer: str | None = None) -> EmotionVectors:
    """One pack with the emotions of all ``packs``, which must be of one model and site.

    An emotion that two packs have differently is taken from the ``first`` or the ``last`` of them, as
    ``prefer`` says; without it that is a ``PackError``, as are packs that do not belong together. Each
    emotion keeps its calibrated scale, and two scales of one vector count as different; the base vector's
    is kept where all packs have the same.
    """
    packs = list(packs)
    merged = packs[0]
    for other in packs[1:]:
        a, b = packs[0].info, other.info
        wrong = [
            f"{what} {left} and {right}"
            for what, left, right in (
                ("model", a.model.id, b.model.id),
                ("fingerprint", a.model.fingerprint, b.model.fingerprint),
                ("layers", a.model.layers, b.model.layers),
                ("width", a.model.width, b.model.width),
                ("site", a.site, b.site),
                ("positions", a.positions, b.positions),
            )
            if left != right
        ]
        # One model may go by several names: the fingerprint decides.
        if [w for w in wrong if not w.startswith("model ")]:
            raise PackError(f"{_name(packs[0])} and {_name(other)} do not belong together: {'; '.join(wrong)}")
        twice = [n for n in other if n in merged and not _alike(n, merged, other)]
        if twice and prefer is None:
            raise PackError(
                f"{_name(other)} and a pack before it both have {', '.join(twice)}, and not the same; choose with "
                "--prefer first or --prefer last"
            )
        merged = _join(other, merged) if prefer == "last" else _join(merged, other)
    # In the order of the packs, whichever was preferred.
    order = {n: None for pack in packs for n in pack}
    info = dataclasses.replace(
        merged.info,
        emotions={n: merged.info.emotions[n] for n in order},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return EmotionVectors({n: merged[n] for n in order}, info, merged.activation_norm, merged.samples)


def _alike(name: str, a: EmotionVectors, b: EmotionVectors) -> bool:
    """Whether both have the same vector, and not two scales of it."""
    scales = {p.info.emotions[name].get("scale") for p in (a, b)} - {None}
    return len(scales) < 2 and np.array_equal(a[name], b[name])


def _join(a: EmotionVectors, b: EmotionVectors) -> EmotionVectors:
    """The emotions of both; those in both are ``a``'s, or the calibrated ones of the same vector."""
    first, second = a.info, b.info
    emotions = {**second.emotions, **first.emotions}
    for name in first.emotions.keys() & second.emotions.keys():
        if emotions[name].get("scale") is None and _alike(name, a, b):
            emotions[name] = second.emotions[name]
    info = dataclasses.replace(
        first,
        emotions=emotions,
        method=_both(first.method, second.method),
        queries={k: _both(first.queries.get(k), second.queries.get(k)) for k in {**first.queries, **second.queries}},
        decoding=_same(first.decoding, second.decoding),
        calibration=_same(first.calibration, second.calibration),
        versions=_same(first.versions, second.versions),
    )
    norms = [p.activation_norm for p in (a, b) if p.activation_norm.any()]
    norm = np.asarray(np.mean(norms, axis=0), np.float32) if norms else None
    samples = {n: s for n, s in b.samples.items() if n not in a} | a.samples
    joined = EmotionVectors({**dict(b), **dict(a)}, info, norm, samples)
    # A base vector that has not changed is as strong as it was.
    scales = [p.info.base_scale for p in (a, b) if np.array_equal(p.base, joined.base)]
    same = first.base_scale if first.base_scale == second.base_scale else None
    info.base_scale = next((s for s in scales if s is not None), same)
    return joined


def _both(a: str | None, b: str | None) -> str:
    return ", ".join(sorted({part for text in (a, b) if text for part in text.split(", ")}))


def _same(a: dict, b: dict) -> dict:
    return {k: v for k, v in a.items() if k in b and b[k] == v}


def _name(pack: EmotionVectors) -> str:
    return str(pack.path or f"the pack of {', '.join(pack)}")


def _flat(info: PackInfo, emotions: list[str]) -> dict[str, Any]:
    """The metadata as one level of ``a.b`` keys, of ``emotions`` alone and without the date."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = value

    entries = {n: info.emotions[n] for n in emotions}
    walk("", {**dataclasses.asdict(info), "emotions": entries})
    del found["created"]
    return found
