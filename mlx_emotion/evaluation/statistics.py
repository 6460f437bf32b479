"""Means with intervals, fits, and verdicts on them, as plain functions of plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
Z = 1.959963984540054
"""Half width of a 95 % interval, in standard deviations."""

YES, NO, NOT_SHOWN = "yes", "no", "not shown"
LINEAR = 0.9
"""R² that a straight line, or a sum, has to reach where nothing is sampled, and a line of scores."""
ADDITIVE = 0.5
"""The same for sums of scores, about their mean."""
TOPIC_MARGIN = 0.1
"""Loss of topic adherence that still counts as topic preserved."""
SMALL_RISE = 0.05
"""A rise of the score over the whole range that is certainly less than this is none."""


QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764)
"""97.5 % quantiles of Student's t for one to four degrees of freedom."""


def wider(count: int) -> float:
    """By how much a resampled interval of ``count`` values is too narrow: few of them seldom show their spread.

    Student's t in place of the normal distribution, and the variance about the mean over n - 1, not n.
    """
    df = count - 1
    if df <= len(QUANTILES):
        t = QUANTILES[df - 1]
    else:  # the first terms of Fisher's series
        t = Z + (Z**3 + Z) / (4 * df) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * df**2)
        t += (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * df**3)
    return t / Z * math.sqrt(count / df)


def _interval(found: np.ndarray, value: float, count: int) -> tuple[float, float]:
    """The 95 % percentile interval of resampled ``found``, ``wider`` about ``value``."""
    low, high = np.percentile(found, [2.5, 97.5])
    factor = wider(count)
    return value - factor * (value - float(low)), value + factor * (float(high) - value)


def resampled(of: Callable[[np.ndarray], float], count: int, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of ``of(indices)`` for ``count`` things drawn with replacement; ``None`` below two.

    ``wider`` where they are few. Draws for which ``of`` gives no number are left out.
    """
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    found = np.array([of(rng.integers(0, count, count)) for _ in range(RESAMPLES)], np.float64)
    found, value = found[np.isfinite(found)], of(np.arange(count))
    return _interval(found, value, count) if len(found) and math.isfinite(value) else None


def resampled_grid(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of ``values`` ``[a, b]``, rows and columns drawn; ``wider`` for the fewer of them."""
    a, b = values.shape
    if min(a, b) < 2:
        return None
    rng = np.random.default_rng(0)
    draws = ((rng.integers(0, a, a), rng.integers(0, b, b)) for _ in range(RESAMPLES))
    return _interval(np.array([values[np.ix_(*at)].mean() for at in draws]), float(values.mean()), min(a, b))


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of the mean, ``wider`` for few; ``None`` for fewer than two, which give none."""
    array = np.asarray(values, np.float64)
    return _bootstrap(lambda at: array[at].mean(1), len(array), seed)


def _bootstrap(of: Callable[[np.ndarray], np.ndarray], count: int, seed: int) -> tuple[float, float] | None:
    """As ``resampled``, for an ``of`` that takes many draws ``[100, count]`` at once."""
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    found = np.concatenate([of(rng.integers(0, count, (100, count))) for _ in range(RESAMPLES // 100)])
    return _interval(found, float(of(np.arange(count)[None])[0]), count)


def wilson(hits: float, count: int) -> tuple[float, float] | None:
    """95 % interval of a share; unlike the bootstrap's it has a width at 0 and at 1 too."""
    if not count:
        return None
    share, z2 = hits / count, Z * Z / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    # Exactly 0 and 1 at the ends, whatever rounding says.
    return middle - half if hits else 0.0, middle + half if hits < count else 1.0


def _record(mean: float | None, interval: tuple[float, float] | None, n: int, missing: int = 0) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"mean": mean, "low": low, "high": high, "n": n, "missing": missing}


def summary(values: Iterable[float | None], seed: int = 0) -> dict[str, Any]:
    """``{"mean", "low", "high", "n", "missing"}``; a missing value is counted and left out, never a 0."""
    given = list(values)
    kept = [float(v) for v in given if v is not None]
    mean = float(np.mean(kept)) if kept else None
    return _record(mean, bootstrap(kept, seed), len(kept), len(given) - len(kept))


def share(values: Iterable[float | None]) -> dict[str, Any]:
    """``summary`` of values that are 0 or 1, with Wilson's interval."""
    given = list(values)
    kept = [float(v) for v in given if v is not None]
    mean = float(np.mean(kept)) if kept else None
    return _record(mean, wilson(sum(kept), len(kept)), len(kept), len(given) - len(kept))


def paired_share(differences: Iterable[float | None]) -> dict[str, Any]:
    """``summary`` of differences of two values that are 0 or 1 each, with a width where all of them are the same.

    Half an answer is added to each of the four cells (Agresti and Min 2005).
    """
    given = list(differences)
    kept = [float(v) for v in given if v is not None]
    if not kept:
        return _record(None, None, 0, len(given))
    up, down, n = kept.count(1) + 0.5, kept.count(-1) + 0.5, len(kept) + 2
    middle = (up - down) / n
    half = Z * math.sqrt(max(up + down - n * middle**2, 0)) / n
    return _record(float(np.mean(kept)), (middle - half, middle + half), len(kept), len(given) - len(kept))


def clustered(pairs: Iterable[tuple[Hashable, float | None]], seed: int = 0) -> dict[str, Any]:
    """``summary`` of (cluster, value) pairs that resamples whole clusters, such as all answers to one question."""
    clusters: dict[Hashable, list[float]] = {}
    missing = 0
    for key, value in pairs:
        if value is None:
            missing += 1
        else:
            clusters.setdefault(key, []).append(float(value))
    if not clusters:
        return _record(None, None, 0, missing)
    sums = np.array([sum(v) for v in clusters.values()])
    counts = np.array([len(v) for v in clusters.values()])
    interval = _bootstrap(lambda at: sums[at].sum(1) / counts[at].sum(1), len(sums), seed)
    return _record(float(sums.sum() / counts.sum()), interval, int(counts.sum()), missing)


def line_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """(slope, intercept, R²) of the least-squares line; ``None`` where x or y does not vary."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    slope, intercept = np.polyfit(a, b, 1)
    rest = b - (slope * a + intercept)
    return float(slope), float(intercept), float(1 - (rest**2).sum() / ((b - b.mean()) ** 2).sum())


def explained(shifts: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the squared length of ``shifts`` that ``predicted`` explains: 1 − Σ‖s − p‖² / Σ‖s‖².

    Uncentred: only for predictions that were not fitted to ``shifts``.
    """
    total = float((shifts**2).sum())
    return 1.0 - float(((shifts - predicted) ** 2).sum()) / total if total else 0.0


def centred(seen: np.ndarray, predicted: np.ndarray) -> float:
    """R² about the mean of ``seen``: what ``predicted`` does better than one constant; NaN where nothing varies."""
    total = float(((seen - seen.mean()) ** 2).sum())
    return 1.0 - float(((seen - predicted) ** 2).sum()) / total if total > 1e-12 else math.nan


def squares(shifts: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of ``[Q, ...]``, by question: the squared length of what ``predicted`` leaves, and of ``shifts``."""
    rest, whole = (shifts - predicted) ** 2, shifts**2
    axes = tuple(range(1, shifts.ndim))
    return rest.sum(axes), whole.sum(axes)


def ratio(rest: np.ndarray, whole: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """1 − Σ rest / Σ whole over questions, with an interval that resamples them."""

    def of(at: np.ndarray) -> float:
        total = whole[at].sum()
        return float(1 - rest[at].sum() / total) if total else math.nan

    every = of(np.arange(len(whole)))
    if not math.isfinite(every):
        return _record(None, None, len(whole))
    return _record(every, resampled(of, len(whole), seed), len(whole))


def tangent(doses: Sequence[float], shifts: np.ndarray) -> np.ndarray:
    """What a straight line through 0 and the shift at the first dose says of ``shifts`` ``[Q, doses, ...]``."""
    factors = np.asarray(doses, np.float64) / doses[0]
    return shifts[:, :1] * factors.reshape(1, -1, *[1] * (shifts.ndim - 2))


def straight(doses: Sequence[float], shifts: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """How straight ``shifts`` ``[Q, doses, ...]`` are: R² of the tangent at the doses after the first, by question."""
    return ratio(*squares(shifts[:, 1:], tangent(doses, shifts)[:, 1:]), seed)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation, ties sharing their mean rank; ``None`` where either does not vary or is empty."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values, np.float64)
        return np.array([(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array])

    a, b = ranks(x), ranks(y)
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


# Verdicts: docs/evaluation.md has the rules in words.


def reaches(found: dict[str, Any] | None, wanted: float) -> str:
    """Is it at least ``wanted``, by its interval?"""
    if not found or found.get("low") is None:
        return NOT_SHOWN
    return YES if found["low"] >= wanted else NO if found["high"] < wanted else NOT_SHOWN


def rises(steps: Sequence[dict[str, Any]], whole: dict[str, Any] | None) -> str:
    """Does it rise at every step? ``steps`` and ``whole`` are paired differences; a flat step is no rise."""
    given = [s for s in steps if s["low"] is not None]
    if not given or len(given) < len(steps):
        return NOT_SHOWN
    if any(s["high"] < 0 for s in given) or (whole and whole["high"] is not None and whole["high"] < SMALL_RISE):
        return NO
    return YES if all(s["low"] > 0 for s in given) else NOT_SHOWN


def preserved(change: dict[str, Any] | None) -> str:
    """Does topic adherence stay, but for ``TOPIC_MARGIN``?"""
    if not change or change["low"] is None:
        return NOT_SHOWN
    return YES if change["low"] >= -TOPIC_MARGIN else NO if change["high"] < 0 else NOT_SHOWN


def together(verdicts: Sequence[str]) -> str:
    """One verdict of several: yes where all are, no where one is no."""
    if not verdicts:
        return NOT_SHOWN
    return NO if NO in verdicts else YES if all(v == YES for v in verdicts) else NOT_SHOWN
