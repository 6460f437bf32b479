"""The third stage: one report, written twice, as ``report.md`` and as a self-contained ``report.html``."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..emotions import BASE, NEUTRAL
from ..errors import EvaluationError
from ..files import atomic_write
from .generate import Run
from .judges import ITSELF
from .metrics import PAPER_TABLES, paper_rows
from .plan import circumplex_data

NONE = "–"


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str


Block = Heading | Text | Table | Picture


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def interval(found: Mapping[str, Any] | None, digits: int = 2, percent: bool = False) -> str:
    """A mean with its 95 % interval, and how many verdicts are missing."""
    if not found:
        return NONE
    factor = 100 if percent else 1
    digits = 1 if percent else digits
    text = NONE if found["mean"] is None else number(factor * found["mean"], digits)
    if found["low"] is not None:
        text += f" [{number(factor * found['low'], digits)}, {number(factor * found['high'], digits)}]"
    return text + (f" ({found['missing']} missing)" if found["missing"] else "")


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


def build(scores: Mapping[str, Any], pictures: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The whole report, as blocks."""
    blocks: list[Block] = [Heading(f"Evaluation of {scores['model']['id']}"), *_about(scores)]

    def add(title: str, parts: Iterator[Block]) -> None:
        found = [p for p in parts if not isinstance(p, Picture) or p.name in pictures]
        if found:
            blocks.extend([Heading(title), *found])

    add("Emotion, quality and repetition", _main(scores))
    add("Emotion by emotion", _by_emotion(scores))
    add("Four statements on the effect", _statements(scores))
    add("Fading over a conversation", _fading(scores))
    add("Circumplex", _circumplex(scores))
    add("Geometry of the vectors", _geometry())
    add("Reading the model's state", _readout(scores))
    add("Some answers", _examples(answers))
    return blocks


def _about(scores: Mapping[str, Any]) -> Iterator[Block]:
    model, s, pack, judges = scores["model"], scores["settings"], scores["pack"], scores["judges"]
    groups = ", ".join(f"{n} {g}" for g, n in s["queries"].items())
    limit = f", at most {s['limit']} of a group" if s["limit"] else ""
    made_from = pack["queries"]
    own = made_from.get("sha256") == s["source"]["sha256"]
    origin = f"{made_from['name']}, another file" if "name" in made_from else "not known"
    yield Table(
        ("what", "value"),
        [
            ("model", f"{model['id']} {model['revision']}".strip()),
            ("weights", f"{model['quantization']}, {model['architecture']}, {model['layers']} × {model['width']}"),
            ("fingerprint", model["fingerprint"]),
            ("vectors", f"site {pack['site']}, {'calibrated' if pack['calibrated'] else 'not calibrated'}"),
            ("queries", f"{s['source']['name']}{limit}: {groups}"),
            ("vectors made from", "the same file of queries" if own else origin),
            ("decoding", f"temperature {s['temperature']:g}, top-p {s['top_p']:g}, at most {s['max_tokens']} tokens"),
            ("seed, batch", f"{s['seed']}, {s['batch_size']}"),
            ("answers", f"{scores['answers']}, {scores['empty']} of them empty"),
        ],
    )
    if own:
        yield Text("The vectors were made from this very file: the scores do not show how they do on others.", True)
    if pack.get("mean_only") and {"baselines", "geometry"} & set(s["parts"]):
        yield Text(
            f"The shipped extraction set has no questions for {', '.join(pack['mean_only'])}: left out of the vectors "
            "by last and pca, and of the plots of single queries unless the pack came with them.",
            True,
        )
    yield Table(("metric", "judged by"), list(judges.items()))
    if any("built-in" in j for j in judges.values()):
        yield Text(
            "Built-in judges count words: they compare conditions of one run, and their numbers cannot be held "
            "against the papers'. For those, give --judge, --classifier, --go-emotions and --perplexity-model.",
            True,
        )
    yield Text(
        "Means with 95 % bootstrap intervals over answers. Verdicts that a judge did not give, and the repetition of "
        "empty answers, are counted as missing and left out. A looping text can score high on any emotion: read every "
        "score beside its repetition."
    )


def _main(scores: Mapping[str, Any]) -> Iterator[Block]:
    conditions = scores["conditions"]
    if not conditions:
        return
    unit = scores["settings"]["unit"]
    used = [c for c in COLUMNS if any(c[1] in k["metrics"] for k in conditions)]
    rows = []
    paper = _paper(scores["model"]["id"], used)
    for condition in conditions:
        if condition["part"] == "statements" and condition["kind"] == "steering":
            continue  # the small steps are in the figures
        cells = [interval(condition["metrics"].get(m), d, p) for _, m, d, p in used]
        rows.append((_name(condition, unit), str(condition["n"]), *cells))
        if unit == "scale" and (condition["kind"] == "plain" or condition["emotion"] == BASE):
            rows += [r for r in paper if r[0].endswith(f" {condition['dose'] or 0:g} × base")]
    if paper and unit != "scale":
        rows += paper
    yield Table(("condition", "answers", *(c[0] for c in used)), rows)
    metrics = [c[1] for c in used]
    yield from _judged(scores, *metrics)
    if paper:
        yield from _beside_paper(scores, "tables 2 to 5", metrics)
    yield Picture("dose_response", "Emotion and repetition against the dose; a dotted line is calibration's 1.0.")


def _beside_paper(scores: Mapping[str, Any], tables: str, metrics: Sequence[str]) -> Iterator[Block]:
    yield Text(f"Rows of the paper: arXiv 2502.04075, {tables}; its judges and its queries, raw scales.")
    if reason := not_comparable(scores, metrics):
        yield Text(f"The other rows cannot be held against the paper's: {reason}.", True)


def _name(condition: Mapping[str, Any], unit: str) -> str:
    kind, emotion, dose = condition["kind"], condition["emotion"], condition["dose"]
    at = "" if dose is None else f", {unit} {dose:g}"
    return {
        "plain": "plain",
        "steering": f"{emotion}{at}",
        "prompt": f"{emotion}, instructed",
        "mix": f"{emotion}, half each",
    }.get(kind, f"{emotion}{at}, {kind} vectors")


def _paper(model: str, used: Sequence[tuple[str, str, int, bool]]) -> list[tuple[str, ...]]:
    """The paper's own rows for a model of theirs, in these columns."""
    base, _ = paper_rows(model)
    if base is None:
        return []
    rows = []
    for scale in PAPER_TABLES["perplexity_base"][base]:
        cells = []
        for _, metric, digits, _percent in used:
            table, factor = _PAPER_COLUMNS.get(metric, (None, 1))
            cells.append(NONE if table is None else number(factor * PAPER_TABLES[table][base][scale], digits))
        rows.append((f"paper: {base}, {float(scale):g} × base", NONE, *cells))
    return rows


def _by_emotion(scores: Mapping[str, Any]) -> Iterator[Block]:
    found = scores["table6"]
    if not found:
        return
    unit = scores["settings"]["unit"]
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
    curves = (found or {}).get("curves", {})
    rows = []
    for emotion in dict.fromkeys([*curves, *probes.get("curves", {})]):
        curve, probe = curves.get(emotion, {}), probes.get("curves", {}).get(emotion, {})
        full = scores.get("full", {}).get(emotion, 1.0)
        means = [s["mean"] for d, s in curve.get("scores", ()) if 0 <= d <= full + 1e-9 and s["mean"] is not None]
        steps = [b - a for a, b in itertools.pairwise(means)]
        rises = NONE if not steps else "yes" if min(steps) > -1e-9 and means[-1] > means[0] else "no"
        at_full = next((s for d, s in curve.get("topic", ()) if f"{d:g}" == f"{full:g}"), None)
        line = curve.get("linear")
        rows.append(
            (
                emotion, rises, number(curve.get("rank"), 2), interval(at_full, percent=True),
                number(line[2], 3) if line else NONE, number(probe.get("r2"), 3),
            )
        )  # fmt: skip
    yield Text(
        "From the first-order analysis in the second version of arXiv 2502.04075: emotion rises with the dose, the "
        "topic stays, the effect is linear while it is small, and two emotions add up. All up to intensity 1.0."
    )
    yield Table(
        (
            "emotion", "rises at every step", "rank correlation", "topic adherence, change at 1.0 (points)",
            "linear: score R²", "linear: logits R²",
        ),
        rows,
    )  # fmt: skip
    yield from _judged(scores, "classifier", "adherence")
    yield Picture("topic", "Topic adherence against the plain model's, question by question.")
    yield Picture("linearity", "Left: score and its line. Right: length of the logit shift along one direction.")
    mixes, pairs = (found or {}).get("mixes", {}), probes.get("pairs", {})
    if mixes.get("points") or pairs:
        by_pair = {p["mix"] for p in mixes.get("points", ())} | set(pairs)
        seen = {(p["mix"], p["emotion"]): p for p in mixes.get("points", ())}
        rows = []
        for pair in sorted(by_pair):
            cells = []
            for emotion in pair.split("+"):
                point = seen.get((pair, emotion))
                cells.append(
                    f"{emotion} {100 * point['observed']:+.1f} ({100 * point['predicted']:+.1f})" if point else NONE
                )
            rows.append((pair, *cells, number(pairs.get(pair), 3)))
        yield Table(
            ("half of each", "first: seen (predicted), points", "second: seen (predicted), points", "logits R²"), rows
        )
        yield from _judged(scores, "classifier")
        if mixes.get("r2") is not None:
            yield Text(f"Over all mixes the single effects explain R² {mixes['r2']:.3f} of the change of the scores.")
    yield Picture("addition", "Two emotions at half dose each: what the single effects predict, and what is seen.")


def _fading(scores: Mapping[str, Any]) -> Iterator[Block]:
    data = scores.get("fading")
    if not data:
        return
    yield Text(
        "The asked emotion's probability, in per cent, turn by turn. One instruction stands in the first message; "
        "steering acts at intensity 1.0 on every answer. The later messages are everyday questions."
    )
    names = {"plain": "plain", "prompt": "instructed once", "steering": "steered"}
    rows = [
        (names[way], *(number(None if s["mean"] is None else 100 * s["mean"], 1) for s in series))
        for way, series in data["ways"].items()
    ]
    yield Table(("way", *(str(t) for t in data["turns"])), rows)
    yield from _judged(scores, "classifier")
    yield Picture("fading", "Score by turn.")


def _circumplex(scores: Mapping[str, Any]) -> Iterator[Block]:
    data = scores.get("circumplex")
    if not data:
        return
    ways = list(data)
    states = list(data[ways[0]]["states"])
    yield Text(
        "Twelve states asked of the model in three ways (arXiv 2504.14706): a prompt with valence and arousal, "
        "steering with the mix of the neighbouring emotions, and both. Cosine between the asked direction and that of "
        "the answer's label; labels without a direction are left out of the mean and counted as neutral."
    )
    rows: list[tuple[str, ...]] = [
        (f"{s}°", *(interval(data[w]["states"].get(s)) for w in ways)) for s in sorted(states, key=float)
    ]
    rows.append(("all", *(interval(data[w]["all"]) for w in ways)))
    shares = [data[w]["neutral"] for w in ways]
    rows.append(("neutral %", *(number(None if s is None else 100 * s, 1) for s in shares)))
    yield Table(("state", *ways), rows)
    yield from _judged(scores, "circumplex")
    yield Picture("circumplex", "Rings: the asked states. Dots: where the answers are on average.")
    shipped = circumplex_data()
    words = {k: f" ({shipped['words'][k]})" for k, v in scores["labels"].items() if shipped["labels"].get(k, "") == v}
    listed = (f"{k} {NONE if v is None else f'{v:g}°'}{words.get(k, '')}" for k, v in scores["labels"].items())
    yield Text(f"Label table: {', '.join(listed)}.")


def _geometry() -> Iterator[Block]:
    yield Picture("tsne", "t-SNE of single queries' vectors: all layers together, and single layers.")
    yield Picture("distances", "Cosine distances of single queries' vectors, within and between emotions.")
    yield Picture("norms", "Norm of each emotion's vector by layer.")
    yield Picture("cosines", "Cosine between the emotions' vectors.")


def _readout(scores: Mapping[str, Any]) -> Iterator[Block]:
    data = scores.get("readout")
    if not data:
        return
    yield Text(
        "Each question's projection on every emotion's vector, read before it is answered and standardised by half of "
        "the neutral questions. Accuracy: the highest reading is the emotion the question was written for. "
        "Separation: an emotional question reads higher than a held-out neutral one (0.5 is chance)."
    )
    names = {"mean": "mean over the question", "last": "where the answer begins"}
    rows = [
        (names[k], number(v["accuracy"]), number(v["chance"]), number(v["separation"]), str(v["n"]))
        for k, v in data.items()
    ]
    yield Table(("read at", "accuracy", "chance", "separation", "questions"), rows)
    emotions = list(dict.fromkeys(e for v in data.values() for e in v["by_emotion"]))
    if emotions:
        cells = [(names[k], *(number(v["by_emotion"].get(e)) for e in emotions)) for k, v in data.items()]
        yield Table(("accuracy by emotion", *emotions), cells)


def _examples(answers: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    """One neutral question and one emotional one under the main conditions."""
    main = [a for a in answers if a["part"] in ("tables", "baselines")]
    for group in (NEUTRAL, next((a["group"] for a in main if a["group"] != NEUTRAL), "")):
        question = next((a["question"] for a in main if a["group"] == group), None)
        if question is not None:
            found = [(a["condition"], a["answer"]) for a in main if a["question"] == question and a["group"] == group]
            yield Text(question)
            yield Table(("condition", "answer"), found)


# Writing the blocks down.


def _clean(text: str) -> str:
    """One line, without control characters: answers are a model's, and may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def to_markdown(blocks: Sequence[Block]) -> str:
    def cell(text: str) -> str:
        return _clean(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

    lines: list[str] = []
    for n, block in enumerate(blocks):
        if isinstance(block, Heading):
            lines += [f"{'#' if not n else '##'} {block.text}", ""]
        elif isinstance(block, Text):
            lines += [f"> **Note.** {block.text}" if block.warning else cell(block.text), ""]
        elif isinstance(block, Table):
            lines += ["| " + " | ".join(map(cell, block.header)) + " |", "|" + "---|" * len(block.header)]
            lines += ["| " + " | ".join(map(cell, row)) + " |" for row in block.rows] + [""]
        else:
            lines += [f"![{block.caption}](figures/{block.name}.png)", "", f"*{block.caption}*", ""]
    return "\n".join(lines).rstrip() + "\n"


CSS = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #69707d; --line: #dfe2e8; --paper: #ffffff; --note: #fff6dd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #9aa1ad; --line: #363b45; --paper: #16181d; --note: #3a3214; }
  img { background: #ffffff; border-radius: 6px; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 0.8rem 0; font-size: 13px; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } .paper td { color: var(--soft); font-style: italic; }
.note { background: var(--note); padding: 0.5rem 0.8rem; border-radius: 6px; }
figure { margin: 1rem 0; } figure img { max-width: 100%; } figcaption { color: var(--soft); font-size: 13px; }
"""


def to_html(blocks: Sequence[Block], pictures: Mapping[str, Sequence[Path]]) -> str:
    """One file that needs no other: figures are in it."""
    out: list[str] = []
    for n, block in enumerate(blocks):
        if isinstance(block, Heading):
            level = 1 if not n else 2
            out.append(f"<h{level}>{html.escape(block.text)}</h{level}>")
        elif isinstance(block, Text):
            out.append(f"<p{' class=note' if block.warning else ''}>{html.escape(_clean(block.text))}</p>")
        elif isinstance(block, Table):
            head = "".join(f"<th>{html.escape(c)}</th>" for c in block.header)
            rows = []
            for row in block.rows:
                kind = " class=paper" if row[0].startswith("paper:") else ""
                rows.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(_clean(c))}</td>" for c in row) + "</tr>")
            out.append(f"<div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>")
        else:
            svg = next(p for p in pictures[block.name] if p.suffix == ".svg")
            data = base64.b64encode(svg.read_bytes()).decode()
            caption = html.escape(block.caption)
            out.append(
                f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    first = next(b.text for b in blocks if isinstance(b, Heading))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(first)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{CSS}</style><body>\n'
        + "\n".join(out)
        + "\n</body></html>\n"
    )


def write(run: Run, scores: Mapping[str, Any], pictures: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Write both reports; returns their paths. Raises ``EvaluationError``."""
    blocks = build(scores, list(pictures), run.read_answers())
    for path, text in ((run.report, to_html(blocks, pictures)), (run.markdown, to_markdown(blocks))):
        with atomic_write(path, EvaluationError) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [run.report, run.markdown]
