"""What is measured on the model itself, not on answers: other vectors, logit shifts, readings of questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..emotions import NEUTRAL
from ..errors import EvaluationError, Interrupted
from ..extraction import Extraction
from ..extraction import Plan as ExtractionPlan
from ..readout import PromptReader
from ..session import Voice
from ..steering import Dose, Row
from ..vectors import EmotionVectors
from .generate import Report, Run, Stopped, never, quiet, write_json
from .plan import FRACTIONS, Plan
from .statistics import LINEAR, NOT_SHOWN, ratio, reaches, resampled_grid, share, squares, straight

METHOD_QUERIES = 32
"""Queries an emotion for the vectors of other methods, and for plots of single queries."""

PROBE_QUERIES = 8
"""Neutral questions whose next-token logits are watched."""

SMALL = (0.02, 0.05, 0.1, 0.25)
"""Doses, as shares of the full one, at which the effect is small; the first gives the tangent."""

SMALL_PART = 0.1
"""Of each emotion, where two small shifts are added."""

STEADY = 0.9
"""Cosine of the shifts by the smallest dose and by its negative, turned round, under which they are rounding."""


def other_vectors(
    voice: Voice, plan: Plan, run: Run, progress: Report = quiet, stopped: Stopped = never
) -> dict[str, EmotionVectors]:
    """The packs that the conditions use, by method; makes those that are missing. On the thread that owns MLX.

    They hold only those asked emotions that the shipped extraction set has questions for.
    """
    packs = {"mean": plan.pack}
    wanted = list(plan.methods)
    if "geometry" in plan.settings.parts:
        copy = run.vectors("mean")  # so that the report needs nothing from outside this folder
        path = copy if copy.is_file() else plan.pack.path
        samples = EmotionVectors.load(path, samples=True).samples if path is not None and path.is_file() else {}
        if path != copy:
            EmotionVectors(dict(plan.pack), plan.pack.info, plan.pack.activation_norm, samples).save(copy)
        if not samples and plan.comparable and "pca" not in wanted:
            wanted.append("pca")  # its per-query shifts are what the plots need
    for method in wanted:
        path = run.vectors(method)
        if not path.is_file():
            names = [e for e in plan.comparable if e in plan.settings.asked] or plan.comparable
            extraction_plan = ExtractionPlan.make(
                names,
                limit=min(METHOD_QUERIES, 2 * (plan.settings.limit or METHOD_QUERIES)),
                max_tokens=plan.settings.max_tokens,
                keep_samples=method == "pca",
                method=method,
            )
            # From the start, not from where a killed run was: other batches would move the last digits.
            extraction = Extraction(voice, extraction_plan, plan.settings.batch_size, restart=True)
            made = extraction.run(lambda p: progress(p.done, p.total, f"vectors by {method}"), stopped)  # noqa: B023
            made.save(path)
            extraction.forget()
        packs[method] = EmotionVectors.load(path, samples=True)
    return packs


def next_logits(voice: Voice, prompt: Sequence[int], doses: Sequence[Dose | None]) -> np.ndarray:
    """Logits ``[D, V]`` float32 of the first answer token, its last prompt token steered by each dose; centred."""
    import mlx.core as mx

    rows = []
    for dose in doses:
        cache = voice.model.cache(Row.steered(dose, len(prompt) - 1))
        logits = voice.model(mx.array([list(prompt)]), cache=cache)[0, -1].astype(mx.float32)
        rows.append(np.array(logits - logits.mean()))  # a constant added to every logit changes nothing
    return np.stack(rows)


def neutral_questions(plan: Plan, count: int) -> list[str]:
    """``count`` questions that ask for no emotion, or the first ones of a set without any."""
    queries = plan.settings.queries
    found = queries.get(NEUTRAL) or [q for group in queries.values() for q in group]
    return found[:count]


def _go_on(stopped: Stopped) -> None:
    if stopped():
        raise Interrupted("stopped; the same command goes on from here")


def line_of(doses: Sequence[float], shifts: np.ndarray, back: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """How linear the shifts ``[Q, doses, V]`` are; ``back`` ``[Q, V]`` is the shift by minus the first dose.

    ``small`` and ``whole`` are R² of the tangent, up to the last of ``SMALL`` and over all doses; ``along``
    is how far the shift goes along the tangent, 1.0 being what the tangent says of the full dose.
    """
    first = shifts[:, 0].reshape(-1)
    lengths = float(np.linalg.norm(first) * np.linalg.norm(back))
    steady = -float(first @ back.reshape(-1)) / lengths if lengths else 0.0
    few = [i for i, d in enumerate(doses) if d <= SMALL[-1]]
    small, whole = straight([doses[i] for i in few], shifts[:, few], seed), straight(doses, shifts, seed)
    slope = shifts[:, 0] / doses[0]
    along = np.einsum("qv,qfv->f", slope, shifts) / float((slope**2).sum() or 1)
    clear = steady >= STEADY
    return {
        "doses": [0.0, *doses],
        "along": [0.0, *along.tolist()],
        "r2": small["mean"],
        "steady": steady,
        "small": {**small, "verdict": reaches(small, LINEAR) if clear else NOT_SHOWN},
        "whole": {**whole, "verdict": reaches(whole, LINEAR) if clear else NOT_SHOWN},
    }


def probe_logits(voice: Voice, plan: Plan, run: Run, progress: Report = quiet, stopped: Stopped = never) -> None:
    """Write ``probes.json``: how linear the logit shift is in the dose, and how two emotions' shifts add up.

    Shifts are ``z(s) = logits(s) − logits(0)`` at doses s up to the full one (arXiv 2502.04075 v2, first-order
    analysis). For a line, R² is what z(s₀) s / s₀ explains of their squared length, s₀ the smallest dose; for a
    pair it is what the sum of the two single shifts explains of the shift of both. Neither is fitted.
    """
    template = voice.loaded.template
    prompts = [
        template.encode(template.render([{"role": "user", "content": q}]))
        for q in neutral_questions(plan, PROBE_QUERIES)
    ]
    if not prompts:
        raise EvaluationError("no question to probe the model with; give other --queries")
    pack, seed = plan.pack, plan.settings.seed

    def dose(*parts: tuple[str, float]) -> Dose:
        vector = pack.mix({e: share * pack.scale(e) for e, share in parts})
        assert vector is not None
        return voice.taps.dose(vector)

    def shifts(*doses: Dose) -> np.ndarray:
        logits = np.stack([next_logits(voice, p, [None, *doses]) for p in prompts])  # (Q, 1 + D, V)
        return logits[:, 1:] - logits[:, :1]

    steps = sorted({*SMALL, *FRACTIONS})
    parts = {"small": SMALL_PART, "half": 0.5}
    curves: dict[str, Any] = {}
    single: dict[str, dict[str, np.ndarray]] = {}
    sums: dict[str, Any] = {}
    total = len(plan.settings.emotions) + len(plan.pairs)
    for number, emotion in enumerate(plan.settings.emotions):
        _go_on(stopped)
        found = shifts(dose((emotion, -steps[0])), *(dose((emotion, s)) for s in steps))
        curves[emotion] = line_of(steps, found[:, 1:], found[:, 0], seed)
        single[emotion] = {size: found[:, 1 + steps.index(part)] for size, part in parts.items()}
        progress(number + 1, total, "logit shifts")
    for number, (a, b) in enumerate(plan.pairs):
        _go_on(stopped)
        both = shifts(*(dose((a, part), (b, part)) for part in parts.values()))
        added = sums[f"{a}+{b}"] = {}
        for i, size in enumerate(parts):
            r2 = ratio(*squares(both[:, i], single[a][size] + single[b][size]), seed)
            added[size] = {**r2, "verdict": reaches(r2, LINEAR)}
        progress(len(plan.settings.emotions) + number + 1, total, "logit shifts")
    pairs = {pair: found["half"]["mean"] for pair, found in sums.items()}
    write_json(run.probes, {"questions": len(prompts), "curves": curves, "pairs": pairs, "sums": sums})


def read_questions(voice: Voice, plan: Plan, run: Run, progress: Report = quiet, stopped: Stopped = never) -> None:
    """Write ``readouts.json``: the reading of every question of the set, before it is answered."""
    reader = PromptReader(voice)
    questions = [(g, q) for g, qs in plan.settings.read.items() for q in qs]
    rows = []
    for number, (group, question) in enumerate(questions):
        _go_on(stopped)
        found = reader.read(question)
        rows.append({"group": group, "mean": found.mean.tolist(), "last": found.last.tolist()})
        progress(number + 1, len(questions), "readings")
    write_json(run.readouts, {"emotions": list(reader.names), "questions": rows})


def accuracy(data: dict[str, Any], field: str) -> dict[str, Any]:
    """How well readings tell the questions apart: the readout's check in the report.

    Readings are standardised by every second neutral question (mean and deviation per emotion). On the
    rest, among the emotions that questions were asked for: ``accuracy`` is the share of an emotion's questions
    whose highest reading is that emotion's (``chance`` is one over those emotions), ``separation`` how often
    an emotional question's highest reading is above a neutral one's (0.5 is chance). ``low`` and ``high``
    are the accuracy's interval (Wilson), ``separation_low`` and ``separation_high`` the other's (questions
    of both kinds resampled). Raises nothing; fields are ``None`` where there is nothing to tell apart.
    """
    rows = data["questions"]
    asked = {r["group"] for r in rows}
    columns = [i for i, e in enumerate(data["emotions"]) if e in asked]
    names = [data["emotions"][i] for i in columns]
    neutral = np.array([np.array(r[field])[columns] for r in rows if r["group"] == NEUTRAL], np.float64)
    emotional = [(r["group"], np.array(r[field], np.float64)[columns]) for r in rows if r["group"] in names]
    result: dict[str, Any] = {
        "accuracy": None, "low": None, "high": None, "separation": None, "separation_low": None,
        "separation_high": None, "chance": 1 / len(names) if names else None, "n": len(emotional), "by_emotion": {},
    }  # fmt: skip
    if len(neutral) < 4 or not emotional:
        return result
    known, held_out = neutral[::2], neutral[1::2]
    mean, spread = known.mean(0), known.std(0) + 1e-9
    hits: dict[str, list[bool]] = {}
    tops = []
    for group, reading in emotional:
        z = (reading - mean) / spread
        hits.setdefault(group, []).append(names[int(z.argmax())] == group)
        tops.append(float(z.max()))
    plain = ((held_out - mean) / spread).max(1)
    top = np.array(tops)[:, None]
    above = (top > plain) + 0.5 * (top == plain)  # (emotional, held out)
    right = share(float(h) for group in hits.values() for h in group)
    result |= {"accuracy": right["mean"], "low": right["low"], "high": right["high"]}
    result["separation"] = float(above.mean())
    if interval := resampled_grid(above):
        result["separation_low"], result["separation_high"] = interval
    result["by_emotion"] = {e: float(np.mean(h)) for e, h in hits.items()}
    return result
