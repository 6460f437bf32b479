"""What the papers compute from judged answers: tables, the four statements, fading, the circumplex."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..emotions import BASE
from .plan import FRACTIONS, WAYS
from .statistics import (
    ADDITIVE,
    LINEAR,
    NOT_SHOWN,
    centred,
    clustered,
    line_fit,
    paired_share,
    preserved,
    reaches,
    resampled,
    rises,
    share,
    spearman,
    summary,
    tangent,
)

Row = dict[str, Any]

# What is averaged for each condition, and the column it comes from.
AVERAGED = {
    "perplexity": "perplexity",
    "adherence": "adherence",
    "eps": "emotional",
    "eas": "eas",
    "classifier": "asked",
    "distinct_2": "distinct_2",
    "low_distinct": "low_distinct",
    "looping": "looping",
    "words": "words",
}
SHARES = ("adherence", "eps", "low_distinct", "looping")
"""Those whose values are 0 or 1."""

ALIKE = 0.25
"""Answers whose numbers of words differ by at most this share of the larger are of like length."""


def by_condition(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["condition"], []).append(row)
    return found


def conditions(table: Sequence[Row], seed: int) -> list[dict[str, Any]]:
    """Every condition with the mean of each metric."""
    result = []
    for condition, rows in by_condition(table).items():
        first = rows[0]
        values = {
            m: share(r.get(c) for r in rows) if m in SHARES else summary((r.get(c) for r in rows), seed)
            for m, c in AVERAGED.items()
            if c in first
        }
        kept = {k: first.get(k) for k in ("part", "kind", "emotion", "dose")}
        result.append({"id": condition, **kept, "n": len(rows), "metrics": values})
    return result


def probabilities(rows: Sequence[Row], emotion: str) -> list[float | None]:
    """The judge's probability of ``emotion`` for each answer; ``None`` where it gave no verdict."""
    return [r["emotions"].get(emotion) if r.get("emotions") else None for r in rows]


def _steered(by: Mapping[str, list[Row]], emotion: str) -> dict[float, list[Row]]:
    """The answers under steering with ``emotion``, by dose."""
    return {r[0]["dose"]: r for r in by.values() if r[0]["kind"] == "steering" and r[0]["emotion"] == emotion}


def table6(table: Sequence[Row], emotions: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Mean probability of the steered emotion over all answers, by dose (the paper's Table 6)."""
    by = by_condition(table)
    result: dict[str, dict[str, Any]] = {}
    for emotion in emotions:
        if emotion == BASE:
            continue
        doses = {0.0: by["plain"]} if "plain" in by else {}
        doses |= _steered(by, emotion)
        result[emotion] = {f"{d:g}": summary(probabilities(doses[d], emotion), seed) for d in sorted(doses)}
    return result


def _key(row: Row) -> str:
    """Which question it answers: its place in the set, where the same words may stand twice."""
    return row["id"].rpartition("|")[2]


def _differences(before: Sequence[Row], after: Sequence[Row], column: str) -> list[float | None]:
    """After minus before, question by question."""
    known = {_key(r): r.get(column) for r in before}
    pairs = [(known.get(_key(r)), r.get(column)) for r in after]
    return [None if a is None or b is None else b - a for a, b in pairs]


def _values(rows: Sequence[Row], emotion: str, keys: Sequence[str]) -> np.ndarray:
    """Probabilities of ``emotion`` by question ``[Q]``, in the order of ``keys``; NaN where there is none."""
    known = dict(zip(map(_key, rows), probabilities(rows, emotion)))
    return np.array([math.nan if known.get(k) is None else known[k] for k in keys], np.float64)


def _changes(values: np.ndarray, seed: int) -> dict[str, Any]:
    return summary((None if math.isnan(v) else float(v) for v in values), seed)


def straight_means(doses: Sequence[float], changes: np.ndarray, seed: int) -> dict[str, Any] | None:
    """How straight the mean of ``changes`` ``[Q, doses]`` is: R² of the tangent at the first dose, by question."""
    changes = changes[~np.isnan(changes).any(1)]
    if not len(changes) or len(doses) < 2:
        return None

    def of(at: np.ndarray) -> float:
        means = changes[at].mean(0)[None]
        rest, total = means[:, 1:] - tangent(doses, means)[:, 1:], float((means[:, 1:] ** 2).sum())
        return 1 - float((rest**2).sum()) / total if total > 1e-12 else math.nan

    mean = of(np.arange(len(changes)))
    low, high = resampled(of, len(changes), seed) or (None, None)
    return {"mean": mean if math.isfinite(mean) else None, "low": low, "high": high, "n": len(changes), "missing": 0}


def statements(table: Sequence[Row], full: Mapping[str, float], seed: int) -> dict[str, Any]:
    """The four statements of arXiv 2502.04075 v2, but for the logit shifts, which ``probes`` measures.

    ``full`` is each emotion's full dose, in the settings' unit.
    """
    by = by_condition(table)
    plain = by.get("plain", [])
    curves: dict[str, Any] = {}
    for emotion in full:
        steered = _steered(by, emotion)
        doses = dict(sorted({0.0: plain, **steered}.items())) if plain else steered
        if len(doses) < 2 or not plain or not {"emotions", "adherence"} & set(plain[0]):
            continue
        topic = {
            d: paired_share(_differences(plain, r, "adherence")) for d, r in doses.items() if d and "adherence" in r[0]
        }
        at_full = next((s for d, s in topic.items() if f"{d:g}" == f"{full[emotion]:g}"), None)
        curves[emotion] = {
            "scores": [],
            "rank": None,
            "linear": None,
            **(_strength(doses, emotion, full[emotion], seed) if "emotions" in plain[0] else {}),
            "topic": [[d, s] for d, s in topic.items()],
            "preserved": preserved(at_full),
        }
    return {"curves": curves, "mixes": mixes(by, full, seed)}


def _strength(doses: Mapping[float, list[Row]], emotion: str, full: float, seed: int) -> dict[str, Any]:
    """The emotion's score by dose: does it rise at every step up to the full dose, and is it straight?

    The steps are those of the statements alone: a dose of the tables may be next to one of them, and hardly differ.
    """
    scores = {d: summary(probabilities(r, emotion), seed) for d, r in doses.items()}
    own = {f"{f * full:g}" for f in (0.0, *FRACTIONS)}
    small = [d for d in doses if f"{d:g}" in own]
    useful = [d for d in doses if 0 <= d <= full + 1e-9]
    pairs = [(d, p) for d in useful for p in probabilities(doses[d], emotion) if p is not None]
    keys = [_key(r) for r in doses[0.0]]
    values = np.stack([_values(doses[d], emotion, keys) for d in small], 1)  # (Q, doses)
    steps = [_changes(values[:, i + 1] - values[:, i], seed) for i in range(len(small) - 1)]
    whole = _changes(values[:, -1] - values[:, 0], seed) if steps else None
    complete = len(small) == 1 + len(FRACTIONS)  # not where the part that makes these doses was left out
    straight = straight_means(small[1:], values[:, 1:] - values[:, :1], seed) if complete else None
    means = [(d, scores[d]["mean"]) for d in useful if scores[d]["mean"] is not None]
    return {
        "scores": [[d, s] for d, s in scores.items()],
        "rank": spearman([d for d, _ in pairs], [p for _, p in pairs]),
        "steps": steps,
        "rise": whole,
        "rises": rises(steps, whole) if complete else NOT_SHOWN,
        "linear": line_fit([d for d, _ in means], [m for _, m in means]),  # for the figure alone
        "straight": straight,
        "is_straight": reaches(straight, LINEAR),
    }


def mixes(by: Mapping[str, list[Row]], full: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Do two emotions' effects on the scores add up? Half doses alone against both half doses together.

    ``r2`` is about the mean of what is seen, and ``constant`` the mean absolute error of that mean: a sum
    that tells no more than one number for all mixes explains nothing.
    """
    points: list[dict[str, Any]] = []
    predicted, seen = [], []
    plain = by.get("plain", [])
    keys = [_key(r) for r in plain]
    for rows in by.values():
        if rows[0]["kind"] != "mix" or not plain or "emotions" not in plain[0]:
            continue
        a, b = rows[0]["emotion"].split("+")
        halves = [by.get(f"steering:{e}@{full[e] / 2:g}", []) for e in (a, b)]
        if not all(halves):
            continue
        for emotion in (a, b):
            zero, both, *alone = (_values(r, emotion, keys) for r in (plain, rows, *halves))
            expected, found = sum(x - zero for x in alone), both - zero
            kept = ~np.isnan(expected + found)
            if kept.any():
                predicted.append(np.where(kept, expected, math.nan))
                seen.append(np.where(kept, found, math.nan))
                points.append(
                    {
                        "mix": f"{a}+{b}",
                        "emotion": emotion,
                        "predicted": float(np.nanmean(predicted[-1])),
                        "observed": float(np.nanmean(seen[-1])),
                        "off": _changes(seen[-1] - predicted[-1], seed),
                    }
                )
    if len(points) < 2:
        return {"points": points, "r2": None}
    p, s = np.stack(predicted, 1), np.stack(seen, 1)  # (Q, points)

    def means(at: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        chosen = s[at], p[at]
        if np.isnan(chosen[0]).all(0).any():  # a draw that misses every answer of a point
            return None
        return np.nanmean(chosen[0], 0), np.nanmean(chosen[1], 0)

    def r2(at: np.ndarray) -> float:
        return math.nan if (found := means(at)) is None else centred(*found)

    every = means(np.arange(len(keys)))
    assert every is not None
    value = centred(*every)
    low, high = resampled(r2, len(keys), seed) or (None, None)
    record = {"mean": value if math.isfinite(value) else None, "low": low, "high": high, "n": len(keys), "missing": 0}
    return {
        "points": points,
        "r2": record,
        "error": float(np.abs(every[0] - every[1]).mean()),
        "constant": float(np.abs(every[0] - every[0].mean()).mean()),
        "additive": reaches(record, ADDITIVE),
    }


def against_prompt(table: Sequence[Row], full: Mapping[str, float], seed: int) -> dict[str, Any] | None:
    """Steering at the full dose minus the instruction, question by question, all emotions together.

    ``all`` is over every pair of answers, ``alike`` over those of like length; intervals resample questions.
    """
    by = by_condition(table)
    pairs = []
    for emotion, dose in full.items():
        known = {_key(r): r for r in by.get(f"prompt:{emotion}", [])}
        pairs += [(known[_key(r)], r) for r in by.get(f"steering:{emotion}@{dose:g}", []) if _key(r) in known]
    if not pairs:
        return None
    alike = [p for p in pairs if abs(p[0]["words"] - p[1]["words"]) <= ALIKE * max(p[0]["words"], p[1]["words"])]

    def differences(chosen: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
        def pair(a: Row, b: Row, column: str) -> tuple[Any, float | None]:
            x, y = a.get(column), b.get(column)
            return a["question"], None if x is None or y is None else y - x

        columns = [c for c in ("adherence", "asked", "words") if c in pairs[0][0]]
        return {c: clustered((pair(a, b, c) for a, b in chosen), seed) for c in columns}

    return {"pairs": len(pairs), "like": len(alike), "all": differences(pairs), "alike": differences(alike)}


def length(table: Sequence[Row]) -> dict[str, Any] | None:
    """Rank correlation of an answer's words and its perplexity."""
    given = [(r["words"], r["perplexity"]) for r in table if r.get("perplexity") is not None]
    rank = spearman([w for w, _ in given], [p for _, p in given])
    return None if rank is None else {"rank": rank, "n": len(given)}


def circumplex(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Mean cosine per way and state, and the share of labels that have no direction.

    A label without a direction is left out of the mean; only an answer without a label is missing.
    Intervals resample questions: a state has one answer a question, a way twelve.
    """
    ways: dict[str, Any] = {}
    for way in WAYS:
        kept = [r for r in rows if r["way"] == way]
        states = {}
        for angle in sorted({r["angle"] for r in kept}):
            here = [r for r in kept if r["angle"] == angle]
            states[str(angle)] = {**_cosines(here, seed), "point": _mean_point(here)}
        labelled = [r for r in kept if r["top"] is not None]
        neutral = sum(r["direction"] is None for r in labelled) / len(labelled) if labelled else None
        ways[way] = {"states": states, "all": _cosines(kept, seed), "neutral": neutral}
    return ways


def _cosines(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    kept = (r for r in rows if r["top"] is None or r["direction"] is not None)
    return clustered(((r.get("question"), r["cosine"]) for r in kept), seed)


def _mean_point(rows: Sequence[Row]) -> list[float] | None:
    """Where the answers of a state are on the circumplex, on average: (valence, arousal)."""
    angles = np.radians([r["direction"] for r in rows if r["direction"] is not None])
    return [float(np.cos(angles).mean()), float(np.sin(angles).mean())] if len(angles) else None


def fading(rows: Sequence[Row], asked: Sequence[str], seed: int) -> dict[str, Any]:
    """The asked emotion's probability by turn: instructed once, steered, and plain. Intervals resample conversations.

    ``repetition`` is the share of answers with a low distinct-2; ``instructed`` the share of the instructed
    answers whose prompt still held the instruction, where the answers say so. Of a way's ``effect``, what is over the
    plain conversation's, ``first`` is that in the first answer and ``change`` the mean of the later half of the turns
    minus it, by conversation.
    """
    turns = sorted({r["turn"] for r in rows})
    result: dict[str, Any] = {"turns": turns, "ways": {}, "repetition": {}, "conversations": {}, "effect": {}}
    plain = [r for r in rows if r["way"] == "plain"]
    for way in ("plain", "prompt", "steering"):
        here = [r for r in rows if r["way"] == way]
        result["conversations"][way] = len({_conversation(r) for r in here})
        result["ways"][way] = [
            clustered(_by_conversation([r for r in here if r["turn"] == t], asked, way), seed) for t in turns
        ]
        result["repetition"][way] = [share(r.get("low_distinct") for r in here if r["turn"] == t) for t in turns]
        if way != "plain":
            result["effect"][way] = _effect(here, plain, turns, seed)
    kept = [r for r in rows if r["way"] == "prompt" and r.get("instruction_in_prompt") is not None]
    there = {t: [bool(r["instruction_in_prompt"]) for r in kept if r["turn"] == t] for t in turns}
    result["instructed"] = [float(np.mean(there[t])) if there[t] else None for t in turns]
    return result


def _conversation(row: Row) -> tuple[Any, Any]:
    return row["condition"], row["group"]


def _by_conversation(rows: Sequence[Row], asked: Sequence[str], way: str) -> list[tuple[Any, float | None]]:
    """(conversation, probability) of the asked emotion; a plain conversation answers for every emotion."""
    return [
        (_conversation(r), p)
        for r in rows
        for e in (asked if way == "plain" else [r["emotion"]])
        for p in probabilities([r], e)
    ]


def _effect(rows: Sequence[Row], plain: Sequence[Row], turns: Sequence[int], seed: int) -> dict[str, Any]:
    """``first`` and ``change`` of a way's effect over the plain conversation on the same subject."""
    without = {(r["group"], r["turn"]): r for r in plain}
    effects: dict[Any, dict[int, float]] = {}
    for row in rows:
        other = without.get((row["group"], row["turn"]))
        (value,) = probabilities([row], row["emotion"])
        (before,) = probabilities([other], row["emotion"]) if other else (None,)
        if value is not None and before is not None:
            effects.setdefault(_conversation(row), {})[row["turn"]] = value - before
    later = set(turns[len(turns) // 2 :] if len(turns) > 1 else [])
    first, change = [], []
    for by_turn in effects.values():
        if turns[0] in by_turn:
            first.append(by_turn[turns[0]])
            if rest := [v for t, v in by_turn.items() if t in later]:
                change.append(float(np.mean(rest)) - first[-1])
    return {"first": summary(first, seed), "change": summary(change, seed)}
