"""The third stage: one report, written twice, as ``report.md`` and as a self-contained ``report.html``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..emotions import BASE, NEUTRAL
from ..errors import EvaluationError
from ..files import atomic_write
from . import conclusions
from .background import Background, about, foot, full_name, unit_of
from .generate import Run
from .judges import ITSELF
from .metrics import PAPER_TABLES, paper_rows
from .pages import NONE, Block, Heading, Picture, Table, Text, interval, number, to_html, to_markdown
from .plan import circumplex_data
from .probes import STEADY

# Column title, metric, digits, whether in per cent.
COLUMNS = (
    ("perplexity", "perplexity", 2, False),
    ("topic adherence %", "adherence", 1, True),
    ("EPS %", "eps", 1, True),
    ("EAS", "eas", 3, False),
    ("asked emotion %", "classifier", 1, True),
    ("distinct-2", "distinct_2", 2, False),
    ("distinct-2 < 0.3 %", "low_distinct", 1, True),
    ("ends in a loop %", "looping", 1, True),
    ("words", "words", 1, False),
)
_PAPER_COLUMNS = {
    "perplexity": ("perplexity_base", 1),
    "adherence": ("topic_adherence_base", 100),
    "eps": ("emotion_probability_base", 100),
    "eas": ("emotion_absolute_base", 1),
}


def judged_by(scores: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Who judged each of ``metrics``, as one line; empty where nobody was asked."""
    titles = {"circumplex": "label"} | {m: title.removesuffix(" %") for title, m, _, _ in COLUMNS}
    judges = scores["judges"]
    return "; ".join(f"{titles[m]} by {judges[m]}" for m in metrics if m in judges)


def _judged(scores: Mapping[str, Any], *metrics: str) -> Iterator[Block]:
    if line := judged_by(scores, metrics):
        yield Text(f"Judged: {line}.")


def not_comparable(scores: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Why numbers of ``metrics`` cannot be held against the paper's; empty where no judge forbids it."""
    judges = {m: scores["judges"][m] for m in metrics if m in scores["judges"]}
    reasons = []
    if any("built-in" in j for j in judges.values()):
        reasons.append("built-in judges count words")
    if judges.get("perplexity", "").endswith(ITSELF):
        reasons.append("perplexity is the evaluated model's own, the paper's is Llama 3.1's")
    return "; ".join(reasons)


def build(
    scores: Mapping[str, Any],
    pictures: Sequence[str],
    answers: Sequence[Mapping[str, Any]],
    background: Background | None = None,
) -> list[Block]:
    """The whole report, as blocks."""
    background = background or Background()
    blocks: list[Block] = [Heading(f"Evaluation of {scores['model']['id']}"), *about(scores, answers)]

    def add(title: str, parts: Iterator[Block]) -> None:
        found = [p for p in parts if not isinstance(p, Picture) or p.name in pictures]
        if found:
            blocks.extend([Heading(title), *found])

    add("Emotion, quality and repetition", _main(scores, background))
    add("Emotion by emotion", _by_emotion(scores))
    add("Four statements on the effect", _statements(scores))
    add("Fading over a conversation", _fading(scores))
    add("Circumplex", _circumplex(scores))
    if {"tsne", "distances", "norms", "cosines"} & set(pictures):
        add("Geometry of the vectors", _geometry(background))
    add("Reading the model's state", _readout(scores))
    add("Some answers", _examples(answers))
    add("How it was made", foot(scores, background))
    return blocks


def _main(scores: Mapping[str, Any], background: Background) -> Iterator[Block]:
    conditions = scores["conditions"]
    if not conditions:
        return
    if said := conclusions.against_prompt(scores):
        yield Text(said)
    if warning := conclusions.length(scores):
        yield Text(warning, True)
    unit = unit_of(scores)
    used = [c for c in COLUMNS if any(c[1] in k["metrics"] for k in conditions)]
    rows = []
    paper = _paper(scores["model"]["id"], used)
    for condition in conditions:
        if condition["part"] == "statements" and condition["kind"] == "steering":
            continue  # the small steps are in the figures
        cells = [interval(condition["metrics"].get(m), d, p) for _, m, d, p in used]
        rows.append((_name(condition, unit, background), str(condition["n"]), *cells))
        if unit == "scale" and (condition["kind"] == "plain" or condition["emotion"] == BASE):
            rows += [r for r in paper if r[0].endswith(f" {condition['dose'] or 0:g} × base")]
    if paper and unit != "scale":
        rows += paper
    yield Table(("condition", "answers", *(c[0] for c in used)), rows)
    metrics = [c[1] for c in used]
    yield from _judged(scores, *metrics)
    if paper:
        yield from _beside_paper(scores, "tables 2 to 5", metrics)
    line = "; a dotted line is calibration's 1.0" if scores["pack"]["calibrated"] else ""
    yield Picture("dose_response", f"Emotion and repetition against the dose{line}.")


def base_rows(scores: Mapping[str, Any], metrics: Sequence[str]) -> list[tuple[str, float, list[str]]]:
    """The base vector's rows: (empty, or the paper's name of the model; raw scale or intensity; a cell a metric).

    Each row of the paper's comes after that of the same scale. For tables that set models side by side.
    """
    used = [c for m in metrics for c in COLUMNS if c[1] == m]
    theirs, _ = paper_rows(scores["model"]["id"])
    beside = {float(s): cells for s, cells in _paper_cells(theirs, used)} if unit_of(scores) == "scale" else {}
    rows = []
    for condition in scores["conditions"]:
        plain = condition["kind"] == "plain"
        if not plain and (condition["kind"] != "steering" or condition["emotion"] != BASE):
            continue
        scale = 0.0 if plain else condition["dose"]
        rows.append(("", scale, [interval(condition["metrics"].get(m), d, p) for _, m, d, p in used]))
        if theirs and scale in beside:
            rows.append((theirs, scale, beside[scale]))
    return rows


def _beside_paper(scores: Mapping[str, Any], tables: str, metrics: Sequence[str]) -> Iterator[Block]:
    yield Text(f"Rows of the paper: arXiv 2502.04075, {tables}; its judges and its queries, raw scales.")
    if reason := not_comparable(scores, metrics):
        yield Text(f"The other rows cannot be held against the paper's: {reason}.", True)


def _name(condition: Mapping[str, Any], unit: str, background: Background) -> str:
    kind, emotion, dose = condition["kind"], condition["emotion"], condition["dose"]
    at = "" if dose is None else f", {unit} {dose:g}"
    return {
        "plain": "plain",
        "steering": f"{emotion}{at}{background.queries('mean', emotion)}",
        "prompt": f"{emotion}, instructed",
        "mix": f"{emotion}, half each",
    }.get(kind, f"{emotion}{at}, {kind} vectors{background.queries(kind, emotion)}")


def _paper(model: str, used: Sequence[tuple[str, str, int, bool]]) -> list[tuple[str, ...]]:
    """The paper's own rows for a model of theirs, in these columns."""
    base, _ = paper_rows(model)
    return [(f"paper: {base}, {float(s):g} × base", NONE, *cells) for s, cells in _paper_cells(base, used)]


def _paper_cells(base: str | None, used: Sequence[tuple[str, str, int, bool]]) -> Iterator[tuple[str, list[str]]]:
    """(scale, cells) of a model of the paper's."""
    for scale in PAPER_TABLES["perplexity_base"].get(base, ()):
        cells = []
        for _, metric, digits, _percent in used:
            table, factor = _PAPER_COLUMNS.get(metric, (None, 1))
            cells.append(NONE if table is None else number(factor * PAPER_TABLES[table][base][scale], digits))
        yield scale, cells


def _by_emotion(scores: Mapping[str, Any]) -> Iterator[Block]:
    found = scores["table6"]
    if not found:
        return
    unit = unit_of(scores)
    doses = sorted({float(d) for row in found.values() for d in row})
    _, name = paper_rows(scores["model"]["id"])
    theirs = PAPER_TABLES["emotion_by_emotion_percent"].get(name or "", {})
    rows = []
    for emotion, by_dose in found.items():
        rows.append((emotion, *(interval(by_dose.get(f"{d:g}"), percent=True) for d in doses)))
        if emotion in theirs:
            cells = [number(theirs[emotion].get(f"{d:g}"), 1) if unit == "scale" or not d else NONE for d in doses]
            rows.append((f"paper: {name}, {emotion}", *cells))
    yield Text("Mean probability, in per cent, of the steered emotion over all answers (the paper's Table 6).")
    yield Table(("emotion", *(f"{unit} {d:g}" for d in doses)), rows)
    yield from _judged(scores, "classifier")
    if theirs:
        yield from _beside_paper(scores, "table 6", ["classifier"])


def _statements(scores: Mapping[str, Any]) -> Iterator[Block]:
    found, probes = scores.get("statements"), scores.get("probes", {})
    if not found and not probes:
        return
    curves, full_dose = (found or {}).get("curves", {}), full_name(scores)
    rows = []
    for emotion in dict.fromkeys([*curves, *probes.get("curves", {})]):
        curve, probe = curves.get(emotion, {}), probes.get("curves", {}).get(emotion, {})
        full = scores.get("full", {}).get(emotion, 1.0)
        at_full = next((s for d, s in curve.get("topic", ()) if f"{d:g}" == f"{full:g}"), None)
        rows.append(
            (
                emotion, curve.get("rises", NONE), number(curve.get("rank"), 2), interval(at_full, percent=True),
                interval(curve.get("straight"), 2), interval(probe.get("small"), 3), interval(probe.get("whole"), 3),
            )
        )  # fmt: skip
    yield Text(
        "From the first-order analysis in the second version of arXiv 2502.04075: emotion rises with the dose, the "
        f"topic stays, the effect is linear while it is small, and two emotions add up. All up to {full_dose}. "
        "Each verdict is by intervals over questions; docs/evaluation.md has the rules."
    )
    yield Table(("statement", "verdict", "by"), conclusions.verdicts(scores))
    yield Table(
        (
            "emotion", "rises at every step", "rank correlation", f"topic adherence, change at {full_dose} (points)",
            "linear: score R²", "linear: logits R², small", f"linear: logits R², to {full_dose}",
        ),
        rows,
    )  # fmt: skip
    yield Text(
        "Linear R² is what the tangent at the smallest dose explains at the larger ones: 1 is a straight line, 0 is no "
        "better than no change, and less than 0 is worse."
    )
    rounded = [e for e, p in probes.get("curves", {}).items() if p["steady"] < STEADY]
    if rounded:
        yield Text(
            f"At the smallest dose the logit shift of {', '.join(rounded)} is not turned round by the dose's sign, "
            "so it may be rounding: no verdict on its line.",
            True,
        )
    yield from _judged(scores, "classifier", "adherence")
    yield Picture("topic", "Topic adherence against the plain model's, question by question.")
    yield Picture("linearity", "Left: score and its line. Right: how far the logit shift goes along its tangent.")
    yield from _sums(scores, (found or {}).get("mixes", {}), probes.get("sums", {}))


def _sums(scores: Mapping[str, Any], mixes: Mapping[str, Any], sums: Mapping[str, Any]) -> Iterator[Block]:
    if mixes.get("points") or sums:
        seen = {(p["mix"], p["emotion"]): p for p in mixes.get("points", ())}
        rows = []
        for pair in sorted({mix for mix, _ in seen} | set(sums)):
            cells = []
            for emotion in pair.split("+"):
                point = seen.get((pair, emotion))
                cells.append(
                    f"{emotion} {100 * point['observed']:+.1f} ({100 * point['predicted']:+.1f}; "
                    f"off by {interval(point['off'], percent=True)})"
                    if point
                    else NONE
                )
            logits = sums.get(pair, {})
            rows.append((pair, *cells, interval(logits.get("small"), 3), interval(logits.get("half"), 3)))
        yield Table(
            (
                "mix", "first, half of each: seen (predicted), points", "second: seen (predicted), points",
                "logits R², a tenth of each", "logits R², half of each",
            ),
            rows,
        )  # fmt: skip
        yield from _judged(scores, "classifier")
        if mixes.get("r2"):
            yield Text(
                f"Over all mixes the sums of the single effects miss the change of the scores by "
                f"{100 * mixes['error']:.1f} points on average; one number for all mixes misses it by "
                f"{100 * mixes['constant']:.1f}. R² about the mean: {interval(mixes['r2'])}."
            )
    yield Picture("addition", "Two emotions at half dose each: what the single effects predict, and what is seen.")


def _fading(scores: Mapping[str, Any]) -> Iterator[Block]:
    data = scores.get("fading")
    if not data:
        return
    judged = "classifier" in scores["judges"]
    what = "The asked emotion's probability, in per cent," if judged else "How often answers repeat themselves,"
    yield Text(
        f"{what} turn by turn. One instruction stands in the first message; "
        f"steering acts at {full_name(scores)} on every answer. The later messages are everyday questions. "
        "Intervals resample conversations."
    )
    if judged:
        yield Text(" ".join(conclusions.fading(scores)))
    if warning := conclusions.instruction_left(scores):
        yield Text(warning, True)
    names = {"plain": "plain", "prompt": "instructed once", "steering": "steered"}
    rows = [
        (names[way], str(data["conversations"][way]), *(interval(s, percent=True) for s in series))
        for way, series in data["ways"].items()
        if judged
    ]
    rows += [
        (f"{names[way]}: distinct-2 < 0.3 %", str(data["conversations"][way]), *_percents(s["mean"] for s in series))
        for way, series in data["repetition"].items()
    ]
    if any(s is not None for s in data["instructed"]):
        left = _percents(data["instructed"])
        rows.append(("instruction still in the prompt %", str(data["conversations"]["prompt"]), *left))
    yield Table(("way", "conversations", *(str(t) for t in data["turns"])), rows)
    yield from _judged(scores, "classifier")
    yield Picture("fading", "Score by turn.")


def _percents(shares: Iterable[float | None]) -> list[str]:
    return [number(None if s is None else 100 * s, 1) for s in shares]


def _circumplex(scores: Mapping[str, Any]) -> Iterator[Block]:
    data = scores.get("circumplex")
    if not data:
        return
    ways = list(data)
    states = list(data[ways[0]]["states"])
    yield Text(
        "Twelve states asked of the model in three ways (arXiv 2504.14706): a prompt with valence and arousal, "
        "steering with the mix of the neighbouring emotions, and both. Cosine between the asked direction and that of "
        "the answer's label; labels without a direction are left out of the mean and counted as neutral, so n is the "
        "number of answers that are not. Intervals resample questions."
    )
    yield Text(conclusions.circumplex(scores))
    if warning := conclusions.circular(scores):
        yield Text(warning, True)
    rows: list[tuple[str, ...]] = [
        (f"{s}°", *(interval(data[w]["states"].get(s), count=True) for w in ways)) for s in sorted(states, key=float)
    ]
    rows.append(("all", *(interval(data[w]["all"], count=True) for w in ways)))
    rows.append(("neutral %", *_percents(data[w]["neutral"] for w in ways)))
    yield Table(("state", *ways), rows)
    yield from _judged(scores, "circumplex")
    theirs = PAPER_TABLES["circumplex"]
    low, high = theirs["several"]
    yield Table(
        ("paper (arXiv 2504.14706), by prompt", "mean cosine"),
        [
            ("its best models: GPT-4, GPT-4 turbo, Llama3-70B", f"up to about {theirs['best']:.2f}"),
            ("several others", f"{low:.2f} to {high:.2f}"),
            ("its classifier against the true labels: close to a ceiling", f"{theirs['classifier']:.3f}"),
        ],
    )
    yield Picture("circumplex", "Rings: the asked states. Dots: where the answers are on average.")
    shipped = circumplex_data()
    words = {k: f" ({shipped['words'][k]})" for k, v in scores["labels"].items() if shipped["labels"].get(k, "") == v}
    listed = (f"{k} {NONE if v is None else f'{v:g}°'}{words.get(k, '')}" for k, v in scores["labels"].items())
    yield Text(f"Label table: {', '.join(listed)}.")


def _geometry(background: Background) -> Iterator[Block]:
    listed = ", ".join(f"{n} {e}" for e, n in background.samples.items())
    of = f" ({sum(background.samples.values())}: {listed})" if listed else ""
    yield Picture("tsne", f"t-SNE of single queries' vectors{of}: all layers together, and single layers.")
    yield Picture("distances", f"Cosine distances of single queries' vectors{of}, within and between emotions.")
    yield Picture("norms", "Norm of each emotion's vector by layer.")
    yield Picture("cosines", "Cosine between the emotions' vectors.")


def _readout(scores: Mapping[str, Any]) -> Iterator[Block]:
    data = scores.get("readout")
    if not data:
        return
    yield Text(
        "Each question's projection on every emotion's vector, read before it is answered and standardised by half of "
        "the neutral questions. Accuracy: the highest reading, of the emotions asked, is that of the question's own. "
        "Separation: an emotional question reads higher than a held-out neutral one (0.5 is chance)."
    )
    names = {"mean": "mean over the question", "last": "where the answer begins"}
    yield Text(" ".join(conclusions.readout(scores, names)))
    rows = [
        (
            names[k], _with(v["accuracy"], v["low"], v["high"]), number(v["chance"]),
            _with(v["separation"], v["separation_low"], v["separation_high"]), str(v["n"]),
        )
        for k, v in data.items()
    ]  # fmt: skip
    yield Table(("read at", "accuracy", "chance", "separation", "questions"), rows)
    emotions = list(dict.fromkeys(e for v in data.values() for e in v["by_emotion"]))
    if emotions:
        cells = [(names[k], *(number(v["by_emotion"].get(e)) for e in emotions)) for k, v in data.items()]
        yield Table(("accuracy by emotion", *emotions), cells)


def _with(value: float | None, low: float | None, high: float | None) -> str:
    return interval({"mean": value, "low": low, "high": high, "missing": 0})


def _examples(answers: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """One neutral question and one emotional one under the main conditions."""
    main = [a for a in answers if a["part"] in ("tables", "baselines")]
    for group in (NEUTRAL, next((a["group"] for a in main if a["group"] != NEUTRAL), "")):
        question = next((a["question"] for a in main if a["group"] == group), None)
        if question is not None:
            found = [(a["condition"], a["answer"]) for a in main if a["question"] == question and a["group"] == group]
            yield Text(question)
            yield Table(("condition", "answer"), found)


def write(run: Run, scores: Mapping[str, Any], pictures: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Write both reports; returns their paths. Raises ``EvaluationError``."""
    blocks = build(scores, list(pictures), run.read_answers(), Background.of(run))
    for path, text in ((run.report, to_html(blocks, pictures)), (run.markdown, to_markdown(blocks))):
        with atomic_write(path, EvaluationError) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [run.report, run.markdown]
