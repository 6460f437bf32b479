"""What is measured on the model itself, not on answers: other vectors, logit shifts, readings of questions."""

from __future__ import annotations

import itertools
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
from .metrics import explained, line_fit
from .plan import FRACTIONS, Plan

METHOD_QUERIES = 32
"""Queries an emotion for the vectors of other methods, and for plots of single queries."""

PROBE_QUERIES = 8
"""Neutral questions whose next-token logits are watched."""


def other_vectors(
    voice: Voice, plan: Plan, run: Run, progress: Report = quiet, stopped: Stopped = never
) -> dict[str, EmotionVectors]:
    """The packs that the conditions use, by method; makes those that are missing. On the thread that owns MLX.

    They hold only those asked emotions that the shipped extraction set has questions for.
    """
    packs = {"mean": plan.pack}
    wanted = list(plan.methods)
    if "geometry" in plan.settings.parts:
        path = plan.pack.path
        samples = EmotionVectors.load(path, samples=True).samples if path is not None and path.is_file() else {}
        # A copy, so that the report needs nothing from outside this folder.
        EmotionVectors(dict(plan.pack), plan.pack.info, plan.pack.activation_norm, samples).save(run.vectors("mean"))
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


def probe_logits(voice: Voice, plan: Plan, run: Run, progress: Report = quiet, stopped: Stopped = never) -> None:
    """Write ``probes.json``: how linear the logit shift is in the dose, and how two emotions' shifts add up.

    For shifts ``z(s) = logits(s) − logits(0)`` at doses s up to intensity 1.0, R² is the share of their
    squared length that one direction times s explains; for a pair it is what the sum of the two single
    shifts explains of the shift of both, each at half dose (arXiv 2502.04075 v2, first-order analysis).
    """
    template = voice.loaded.template
    prompts = [
        template.encode(template.render([{"role": "user", "content": q}]))
        for q in neutral_questions(plan, PROBE_QUERIES)
    ]
    if not prompts:
        raise EvaluationError("no question to probe the model with; give other --queries")
    pack = plan.pack

    def dose(*parts: tuple[str, float]) -> Dose:
        vector = pack.mix({e: share * pack.scale(e) for e, share in parts})
        assert vector is not None
        return voice.taps.dose(vector)

    steps = np.array(FRACTIONS)
    curves: dict[str, Any] = {}
    pairs: dict[str, float] = {}
    total = len(plan.settings.emotions) + len(plan.pairs)
    halves: dict[str, np.ndarray] = {}
    for number, emotion in enumerate(plan.settings.emotions):
        _go_on(stopped)
        doses = [None, *(dose((emotion, float(f))) for f in steps)]
        logits = np.stack([next_logits(voice, p, doses) for p in prompts])  # (Q, 1 + F, V)
        shifts = logits[:, 1:] - logits[:, :1]
        slope = np.einsum("f,qfv->qv", steps, shifts) / (steps @ steps)
        along = np.einsum("qv,qfv->f", slope, shifts) / float((slope**2).sum() or 1)
        curves[emotion] = {
            "doses": [0.0, *steps.tolist()],
            "along": [0.0, *along.tolist()],
            "r2": explained(shifts, steps[None, :, None] * slope[:, None]),
            "line": line_fit([0.0, *steps], [0.0, *along]),
        }
        halves[emotion] = shifts[:, list(FRACTIONS).index(0.5)]
        progress(number + 1, total, "logit shifts")
    for number, (a, b) in enumerate(plan.pairs):
        both = np.stack([next_logits(voice, p, [None, dose((a, 0.5), (b, 0.5))]) for p in prompts])
        pairs[f"{a}+{b}"] = explained(both[:, 1] - both[:, 0], halves[a] + halves[b])
        progress(len(plan.settings.emotions) + number + 1, total, "logit shifts")
    write_json(run.probes, {"questions": len(prompts), "curves": curves, "pairs": pairs})


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
    rest: ``accuracy`` is the share of an emotion's questions whose highest reading is that emotion's
    (``chance`` is one over the emotions), ``separation`` how often an emotional question's highest reading
    is above a neutral one's (0.5 is chance). Raises nothing; fields are ``None`` where there is nothing to
    tell apart.
    """
    names, rows = data["emotions"], data["questions"]
    neutral = np.array([r[field] for r in rows if r["group"] == NEUTRAL], np.float64)
    emotional = [(r["group"], np.array(r[field], np.float64)) for r in rows if r["group"] in names]
    result: dict[str, Any] = {
        "accuracy": None, "separation": None, "chance": 1 / len(names), "n": len(emotional), "by_emotion": {},
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
    above = [(t > p) + 0.5 * (t == p) for t, p in itertools.product(tops, plain)]
    result["accuracy"] = float(np.mean([h for group in hits.values() for h in group]))
    result["separation"] = float(np.mean(above))
    result["by_emotion"] = {e: float(np.mean(h)) for e, h in hits.items()}
    return result
