"""The second stage: verdicts on every answer, and what the papers compute from them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..emotions import BASE, BASIC, NEUTRAL
from ..errors import EvaluationError, Interrupted, UsageError
from ..files import atomic_write
from ..models import resolve
from .effects import (
    against_prompt,
    conditions,
    fading,
    length,
    probabilities,
    table6,
)
from .effects import circumplex as _circumplex
from .effects import statements as _statements
from .generate import (
    Report,
    Run,
    Stopped,
    append_lines,
    cut_lines,
    finite,
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
    guarded,
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
    repetition,
    words,
)
from .perplexity import perplexities
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
    ``ask_again`` is to ask for the verdicts that an earlier scoring did not get.
    """

    judge: str = BUILTIN
    classifier: str = BUILTIN
    go_emotions: str = BUILTIN
    perplexity: str = SELF
    labels: str | None = None
    metrics: tuple[str, ...] = METRICS
    trust_remote_code: bool = False
    ask_again: bool = False

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

    def __init__(self, run: Run, progress: Report, stopped: Stopped, ask_again: bool = False) -> None:
        self._run, self._progress, self._stopped = run, progress, stopped
        kept = read_lines(run.judgements, {"judge": str, "id": str})
        cut_lines(run.judgements, len(kept))
        self._found: dict[tuple[str, str], Any] = {(k["judge"], k["id"]): finite(k.get("verdict")) for k in kept}
        if ask_again:
            self._found = {k: v for k, v in self._found.items() if v is not None}

    def of(self, judge: Judge, rows: Sequence[Row]) -> list[Any]:
        """One verdict a row. Raises ``EvaluationError`` with all earlier verdicts kept."""

        def ask(part: Sequence[Row]) -> list[Any]:
            return verdicts(judge, [Item(r["question"], r["answer"]) for r in part])

        if isinstance(judge, Builtin):  # costs less to ask than to remember
            return ask(rows)
        return self._all(judge.name, judge.label, rows, judge.batch, ask, getattr(judge, "alone", False))

    def perplexity(
        self, model: str, rows: Sequence[Row], adapter: str | None = None, trust_remote_code: bool = False
    ) -> list[float | None]:
        """Perplexity of *query + " " + answer* under ``model``, with the LoRA ``adapter`` on it if there is one."""
        from ..engine import shared

        def ask(part: Sequence[Row]) -> list[Any]:
            # An empty answer's would be the question's alone.
            texts = [f"{r['question']} {r['answer']}" if r["answer"].strip() else "" for r in part]

            def work() -> dict[int, float | None]:
                return dict(perplexities(local_model(model, adapter, trust_remote_code), texts))

            found = guarded(f"{Path(model).name} (perplexity)", lambda: shared().run(work))
            return [found[i] for i in range(len(texts))]

        judge = f"{model}:perplexity" if adapter is None else f"{model} with {adapter}:perplexity"
        return self._all(judge, "perplexity", rows, 64, ask)

    def _all(
        self,
        name: str,
        label: str,
        rows: Sequence[Row],
        size: int,
        ask: Callable[[Sequence[Row]], list[Any]],
        alone: bool = False,
    ) -> list[Any]:
        """One verdict a row; ``alone`` says that what else is asked for does not matter to it."""
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            missing = [r for r in part if (name, r["id"]) not in self._found and r["answer"].strip()]
            if not missing:
                continue
            # Else a batch is judged whole: what shares it moves a score's last digits. A verdict that is there stays.
            asked = missing if alone else part
            given = dict(zip((r["id"] for r in asked), ask(asked)))
            lines = [{"judge": name, "id": r["id"], "verdict": finite(given[r["id"]])} for r in missing]
            append_lines(self._run.judgements, lines)
            self._found |= {(name, line["id"]): line["verdict"] for line in lines}
            self._progress(start + len(part), len(rows), label)
            if self._stopped():
                raise Interrupted("stopped; the same command goes on from here")
        return [self._found.get((name, r["id"])) for r in rows]


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
    known = Verdicts(run, progress, stopped, judging.ask_again)
    labels = list(dict.fromkeys([*BASIC, *asked, NEUTRAL]))
    table = [r for r in rows if r["part"] in TABLES]
    judges = _judge_rows(rows, table, judging, about["model"], labels, known)
    for row in rows:
        row["distinct_2"], row["looping"] = repetition(row["answer"])
        row["low_distinct"] = None if row["distinct_2"] is None else int(row["distinct_2"] < LOW_DISTINCT)
        row["words"] = len(words(row["answer"]))
        if row.get("emotion") in labels and "emotions" in row:
            row["asked"] = probabilities([row], row["emotion"])[0]
    result: dict[str, Any] = {k: about[k] for k in ("model", "pack", "settings")} | {"judges": judges}
    result["conditions"] = conditions(table, seed)
    result["table6"] = table6(table, settings["emotions"], seed) if "classifier" in judging.metrics else {}
    scales = about["pack"]["scales"]
    full = {e: 1.0 if settings["unit"] == "intensity" else scales[e] for e in settings["emotions"]}
    result["full"] = full
    if table and asked:
        result["statements"] = _statements(table, {e: full[e] for e in asked}, seed)
        result["against_prompt"] = against_prompt(table, {e: full[e] for e in asked}, seed)
    result["length"] = length(table)
    if circumplex := [r for r in rows if r["part"] == "circumplex"]:
        result["circumplex"] = _circumplex(circumplex, seed)
        result["labels"] = read_labels(judging.labels)
    if turns := [r for r in rows if r["part"] == "fading"]:
        result["fading"] = fading(turns, asked, seed)
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
