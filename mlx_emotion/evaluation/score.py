"""The second stage: verdicts on every answer, and what the papers compute from them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..emotions import BASE, BASIC, NEUTRAL
from ..errors import EvaluationError, Interrupted, UsageError
from ..files import atomic_write
from ..models import resolve
from .generate import (
    Report,
    Run,
    Stopped,
    append_lines,
    cut_lines,
    never,
    quiet,
    read_json,
    read_lines,
    write_json,
)
from .judges import (
    BUILTIN,
    ITSELF,
    Builtin,
    Item,
    Judge,
    chat_judge,
    classifier,
    go_emotions,
    local_model,
    read_labels,
    verdicts,
)
from .metrics import (
    EAS_EMOTIONS,
    EPS_LABELS,
    LOW_DISTINCT,
    cosine_of_angles,
    emotion_absolute,
    explained,
    line_fit,
    repetition,
    spearman,
    summary,
    words,
)
from .perplexity import perplexities
from .plan import WAYS
from .probes import accuracy

METRICS = ("perplexity", "adherence", "eps", "eas", "classifier")
SELF = "self"
"""As perplexity's judge: the evaluated model itself, unsteered."""

TABLES = ("tables", "baselines", "statements")
Row = dict[str, Any]


@dataclass(frozen=True)
class Judging:
    """Who judges. ``builtin`` needs nothing; see ``judges`` for what else each may be.

    ``trust_remote_code`` is for models that judge: whether Python code that comes with them may run.
    """

    judge: str = BUILTIN
    classifier: str = BUILTIN
    go_emotions: str = BUILTIN
    perplexity: str = SELF
    labels: str | None = None
    metrics: tuple[str, ...] = METRICS
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if unknown := [m for m in self.metrics if m not in METRICS]:
            raise UsageError(f"unknown metric {', '.join(unknown)}: known are {', '.join(METRICS)}")

    def check(self) -> None:
        """Find out, before any work, what can be known to be wrong with the judges. Raises ``MLXEmotionError``."""
        metrics = set(self.metrics)
        go_emotions(self.go_emotions, list(read_labels(self.labels))).check()
        if {"adherence", "eas"} & metrics:
            chat_judge(self.judge, "topic").check()
        if {"eps", "classifier"} & metrics:
            classifier(self.classifier, "emotional", EPS_LABELS).check()
        if self.perplexity != SELF and "perplexity" in metrics:
            resolve(self.perplexity)


class Verdicts:
    """Judges' verdicts on answers, kept in ``judgements.jsonl`` so that none is asked for twice."""

    def __init__(self, run: Run, progress: Report, stopped: Stopped) -> None:
        self._run, self._progress, self._stopped = run, progress, stopped
        kept = read_lines(run.judgements)
        cut_lines(run.judgements, len(kept))
        self._found: dict[tuple[str, str], Any] = {(k["judge"], k["id"]): k["verdict"] for k in kept}

    def of(self, judge: Judge, rows: Sequence[Row]) -> list[Any]:
        """One verdict a row. Raises ``EvaluationError`` with all earlier verdicts kept."""

        def ask(part: Sequence[Row]) -> list[Any]:
            return verdicts(judge, [Item(r["question"], r["answer"]) for r in part])

        if isinstance(judge, Builtin):  # costs less to ask than to remember
            return ask(rows)
        return self._all(judge.name, judge.label, rows, judge.batch, ask)

    def perplexity(
        self, model: str, rows: Sequence[Row], adapter: str | None = None, trust_remote_code: bool = False
    ) -> list[float | None]:
        """Perplexity of *query + " " + answer* under ``model``, with the LoRA ``adapter`` on it if there is one."""
        from ..engine import shared

        def ask(part: Sequence[Row]) -> list[Any]:
            texts = [f"{r['question']} {r['answer']}" for r in part]
            found = shared().run(lambda: dict(perplexities(local_model(model, adapter, trust_remote_code), texts)))
            return [found[i] for i in range(len(texts))]

        judge = f"{model}:perplexity" if adapter is None else f"{model} with {adapter}:perplexity"
        return self._all(judge, "perplexity", rows, 64, ask)

    def _all(
        self, name: str, label: str, rows: Sequence[Row], size: int, ask: Callable[[Sequence[Row]], list[Any]]
    ) -> list[Any]:
        # A batch that is not known to its end is judged whole: what shares a batch moves a score's last digits.
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            if all((name, r["id"]) in self._found for r in part):
                continue
            lines = [{"judge": name, "id": r["id"], "verdict": v} for r, v in zip(part, ask(part))]
            append_lines(self._run.judgements, lines)
            self._found |= {(name, line["id"]): line["verdict"] for line in lines}
            self._progress(start + len(part), len(rows), label)
            if self._stopped():
                raise Interrupted("stopped; the same command goes on from here")
        return [self._found[name, r["id"]] for r in rows]


def score(run: Run, judging: Judging, progress: Report = quiet, stopped: Stopped = never) -> dict[str, Any]:
    """Judge the answers and write ``scores.json`` and ``scores.csv``.

    Raises ``EvaluationError`` for a judge out of reach or a run without answers.
    """
    about = run.read()
    rows = run.read_answers()
    if len(rows) < about["answers"]:
        raise EvaluationError(
            f"{run.folder} has {len(rows)} of {about['answers']} answers; finish them with --stage generate"
        )
    settings = about["settings"]
    seed = settings["seed"]
    asked = [e for e in settings["emotions"] if e != BASE]
    if rows and not any(r["answer"].strip() for r in rows):
        raise EvaluationError(f"every answer in {run.answers} is empty; there is nothing to score")
    known = Verdicts(run, progress, stopped)
    labels = list(dict.fromkeys([*BASIC, *asked, NEUTRAL]))
    table = [r for r in rows if r["part"] in TABLES]
    judges = _judge_rows(rows, table, judging, about["model"], labels, known)
    for row in rows:
        row["distinct_2"], row["looping"] = repetition(row["answer"])
        row["low_distinct"] = None if row["distinct_2"] is None else int(row["distinct_2"] < LOW_DISTINCT)
        row["words"] = len(words(row["answer"]))
        if row.get("emotion") in labels and "emotions" in row:
            row["asked"] = _probabilities([row], row["emotion"])[0]
    result: dict[str, Any] = {k: about[k] for k in ("model", "pack", "settings")} | {"judges": judges}
    result["conditions"] = _conditions(table, seed)
    result["table6"] = _table6(table, settings["emotions"], seed) if "classifier" in judging.metrics else {}
    scales = about["pack"]["scales"]
    full = {e: 1.0 if settings["unit"] == "intensity" else scales[e] for e in settings["emotions"]}
    result["full"] = full
    if table and asked:
        result["statements"] = _statements(table, {e: full[e] for e in asked}, seed)
    if circumplex := [r for r in rows if r["part"] == "circumplex"]:
        result["circumplex"] = _circumplex(circumplex, seed)
        result["labels"] = read_labels(judging.labels)
    if fading := [r for r in rows if r["part"] == "fading"]:
        result["fading"] = _fading(fading, asked, seed)
    if "probes" in settings["parts"]:
        result["probes"] = read_json(run.probes, "generate")
    if "readout" in settings["parts"]:
        data = read_json(run.readouts, "generate")
        result["readout"] = {field: accuracy(data, field) for field in ("mean", "last")}
    result["empty"] = sum(not r["answer"].strip() for r in rows)
    result["answers"] = len(rows)
    write_json(run.scores, result)
    _write_csv(run.table, rows, labels)
    return result


def _judge_rows(
    rows: list[Row], table: list[Row], judging: Judging, model: Mapping[str, Any], labels: list[str], known: Verdicts
) -> dict[str, str]:
    """Put every verdict into its row; returns who judged what."""
    judges: dict[str, str] = {}
    directions = read_labels(judging.labels)

    def ask(metric: str, judge: Judge, wanted: list[Row], column: str, convert: Callable[[Any], Any] = lambda v: v):
        judges[metric] = judge.label
        for row, verdict in zip(wanted, known.of(judge, wanted)):
            row[column] = None if verdict is None else convert(verdict)

    def absolute(verdict: Mapping[str, float]) -> float:
        return emotion_absolute({e: verdict.get(e, 0.0) for e in EAS_EMOTIONS})

    if "adherence" in judging.metrics:
        ask("adherence", chat_judge(judging.judge, "topic", judging.trust_remote_code), table, "adherence")
    if "eas" in judging.metrics:
        ask("eas", chat_judge(judging.judge, "scores", judging.trust_remote_code), table, "eas", absolute)
    if "eps" in judging.metrics:
        judge = classifier(judging.classifier, "emotional", EPS_LABELS)
        ask("eps", judge, table, "emotional", lambda v: int(v == EPS_LABELS[2]))
    if "classifier" in judging.metrics:
        wanted = [*table, *(r for r in rows if r["part"] == "fading")]
        ask("classifier", classifier(judging.classifier, "emotions", labels), wanted, "emotions")
    if "perplexity" in judging.metrics:
        itself = judging.perplexity == SELF
        name = model["name"] if itself else judging.perplexity
        judges["perplexity"] = Path(name).name + (f", {ITSELF}" if itself else "")
        adapter = model.get("adapter") if itself else None
        for row, value in zip(table, known.perplexity(name, table, adapter, judging.trust_remote_code)):
            row["perplexity"] = value
    if circumplex := [r for r in rows if r["part"] == "circumplex"]:
        ask("circumplex", go_emotions(judging.go_emotions, list(directions)), circumplex, "top")
        for row in circumplex:
            row["direction"] = angle = directions.get(row["top"])
            row["cosine"] = None if angle is None else cosine_of_angles(angle, row["angle"])
    return judges


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


def _by_condition(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["condition"], []).append(row)
    return found


def _conditions(table: list[Row], seed: int) -> list[dict[str, Any]]:
    result = []
    for condition, rows in _by_condition(table).items():
        first = rows[0]
        values = {m: summary((r.get(c) for r in rows), seed) for m, c in AVERAGED.items() if c in first}
        kept = {k: first.get(k) for k in ("part", "kind", "emotion", "dose")}
        result.append({"id": condition, **kept, "n": len(rows), "metrics": values})
    return result


def _probabilities(rows: Sequence[Row], emotion: str) -> list[float | None]:
    return [r["emotions"].get(emotion) if r.get("emotions") else None for r in rows]


def _table6(table: list[Row], emotions: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Mean probability of the steered emotion over all answers, by dose (the paper's Table 6)."""
    by = _by_condition(table)
    result: dict[str, dict[str, Any]] = {}
    for emotion in emotions:
        if emotion == BASE:
            continue
        doses = {0.0: by["plain"]} if "plain" in by else {}
        doses |= {r[0]["dose"]: r for r in by.values() if r[0]["kind"] == "steering" and r[0]["emotion"] == emotion}
        result[emotion] = {f"{d:g}": summary(_probabilities(doses[d], emotion), seed) for d in sorted(doses)}
    return result


def linear(points: Sequence[Sequence[Any]], upto: float) -> tuple[float, float, float] | None:
    """Line through (dose, summary) up to a dose, with its R²."""
    kept = [(d, s["mean"]) for d, s in points if 0 <= d <= upto + 1e-9 and s["mean"] is not None]
    return line_fit([d for d, _ in kept], [m for _, m in kept])


def _statements(table: list[Row], full: Mapping[str, float], seed: int) -> dict[str, Any]:
    """The four statements of arXiv 2502.04075 v2, but for the logit shifts, which ``probes`` measures.

    ``full`` is each emotion's full dose, in the settings' unit.
    """
    by = _by_condition(table)
    plain = by.get("plain", [])
    curves: dict[str, Any] = {}
    for emotion in full:
        steered = {r[0]["dose"]: r for r in by.values() if r[0]["kind"] == "steering" and r[0]["emotion"] == emotion}
        doses = {0.0: plain, **{d: steered[d] for d in sorted(steered)}} if plain else steered
        if len(doses) < 2 or not plain or not {"emotions", "adherence"} & set(plain[0]):
            continue
        judged = doses if "emotions" in plain[0] else {}
        scores = {d: summary(_probabilities(r, emotion), seed) for d, r in judged.items()}
        small = {d: r for d, r in judged.items() if 0 <= d <= full[emotion] + 1e-9}
        pairs = [(d, p) for d, r in small.items() for p in _probabilities(r, emotion) if p is not None]
        topic = {
            d: summary(_differences(plain, r, "adherence"), seed) for d, r in doses.items() if d and "adherence" in r[0]
        }
        curves[emotion] = {
            "scores": [[d, s] for d, s in scores.items()],
            "rank": spearman([d for d, _ in pairs], [p for _, p in pairs]),
            "topic": [[d, s] for d, s in topic.items()],
            "linear": linear([[d, s] for d, s in scores.items()], full[emotion]),
        }
    return {"curves": curves, "mixes": _mixes(by, full, seed)}


def _differences(before: Sequence[Row], after: Sequence[Row], column: str) -> list[float | None]:
    """After minus before, question by question."""
    known = {(r["group"], r["question"]): r.get(column) for r in before}
    pairs = [(known.get((r["group"], r["question"])), r.get(column)) for r in after]
    return [None if a is None or b is None else b - a for a, b in pairs]


def _mixes(by: Mapping[str, list[Row]], full: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Do two emotions' effects on the scores add up? Half doses alone against both half doses together."""
    points = []
    plain = by.get("plain", [])
    for rows in by.values():
        if rows[0]["kind"] != "mix" or not plain or "emotions" not in plain[0]:
            continue
        a, b = rows[0]["emotion"].split("+")
        halves = [by.get(f"steering:{e}@{full[e] / 2:g}", []) for e in (a, b)]
        if not all(halves):
            continue
        for emotion in (a, b):
            zero, seen, *alone = (summary(_probabilities(r, emotion), seed)["mean"] for r in (plain, rows, *halves))
            if None not in (zero, seen, *alone):
                points.append(
                    {
                        "mix": f"{a}+{b}",
                        "emotion": emotion,
                        "predicted": sum(x - zero for x in alone),
                        "observed": seen - zero,
                    }
                )
    if not points:
        return {"points": [], "r2": None}
    seen_all = np.array([p["observed"] for p in points])
    return {"points": points, "r2": explained(seen_all, np.array([p["predicted"] for p in points]))}


def _circumplex(rows: list[Row], seed: int) -> dict[str, Any]:
    """Mean cosine per way and state, and the share of labels that have no direction.

    A label without a direction is left out of the mean; only an answer without a label is missing.
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
    return summary((r["cosine"] for r in rows if r["top"] is None or r["direction"] is not None), seed)


def _mean_point(rows: Sequence[Row]) -> list[float] | None:
    """Where the answers of a state are on the circumplex, on average: (valence, arousal)."""
    angles = np.radians([r["direction"] for r in rows if r["direction"] is not None])
    return [float(np.cos(angles).mean()), float(np.sin(angles).mean())] if len(angles) else None


def _fading(rows: list[Row], asked: Sequence[str], seed: int) -> dict[str, Any]:
    """The asked emotion's probability by turn: instructed once, steered, and plain."""
    turns = sorted({r["turn"] for r in rows})
    result: dict[str, Any] = {"turns": turns, "ways": {}}
    for way in ("plain", "prompt", "steering"):
        here = [r for r in rows if r["way"] == way]
        series = []
        for turn in turns:
            at = [r for r in here if r["turn"] == turn]
            if way == "plain":
                values = [p for e in asked for p in _probabilities(at, e)]
            else:
                values = [p for r in at for p in _probabilities([r], r["emotion"])]
            series.append(summary(values, seed))
        result["ways"][way] = series
    return result


COLUMNS = (
    "id", "condition", "part", "kind", "emotion", "dose", "way", "angle", "group", "turn", "tokens", "words", "reason",
    "perplexity", "adherence", "emotional", "eas", "asked", "top", "cosine", "distinct_2", "low_distinct", "looping",
)  # fmt: skip


def _write_csv(path: Path, rows: Sequence[Row], labels: Sequence[str]) -> None:
    with atomic_write(path, EvaluationError) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(f"p_{e}" for e in labels)])
        for row in rows:
            given = row.get("emotions") or {}
            writer.writerow([*(row.get(c) for c in COLUMNS), *(given.get(e) for e in labels)])


def read_scores(run: Run) -> dict[str, Any]:
    """``scores.json``. Raises ``EvaluationError``."""
    return read_json(run.scores, "score")
