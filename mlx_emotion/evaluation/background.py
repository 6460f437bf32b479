"""The report's beginning and end: what was measured, how, and what its numbers cannot say."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import queries as query_sets
from ..errors import EvaluationError
from .generate import METHODS, Run
from .pages import Block, Table, Text
from .plan import EQ_PLUS, PARTS

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Background:
    """What the report says of the run besides its scores: library versions, and how many queries each
    emotion's vector (by method) and the plots of single queries were made from."""

    versions: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> Background:
        """Of a run's folder. Raises ``EvaluationError``."""
        from ..vectors import read_info

        paths = {m: run.vectors(m) for m in ("mean", *METHODS) if run.vectors(m).is_file()}
        counts = {m: {e: int(v["count"]) for e, v in read_info(p).emotions.items()} for m, p in paths.items()}
        samples = next((found for m in ("mean", "pca") if m in paths and (found := _samples(paths[m]))), {})
        return cls(run.read()["versions"], counts, samples)

    def queries(self, method: str, emotion: str) -> str:
        """How many queries a vector was made from, in brackets; empty where that is not known."""
        count = self.counts.get(method, {}).get(emotion)
        return "" if count is None else f" ({count} queries)"


def _samples(path: Any) -> dict[str, int]:
    """How many single queries' shifts a pack holds, by emotion; none of them is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            found = [k for k in file.keys() if k.startswith("samples.")]  # noqa: SIM118 (not a mapping)
            return {k.removeprefix("samples."): int(file.get_slice(k).get_shape()[0]) for k in found}
    except (SafetensorError, OSError) as error:
        raise EvaluationError(f"{path}: not readable: {error}") from None


def unit_of(scores: Scores) -> str:
    """What doses are counted in; without calibration an intensity is a raw scale."""
    return scores["settings"]["unit"] if scores["pack"]["calibrated"] else "scale"


def full_name(scores: Scores) -> str:
    """The full dose, in words."""
    if scores["pack"]["calibrated"]:
        return "intensity 1.0"
    return "the full dose" if len(_not_calibrated(scores)) < len(scores["settings"]["emotions"]) else "raw scale 1"


def _not_calibrated(scores: Scores) -> list[str]:
    """Those of the run's emotions whose full dose is once the vector."""
    names = scores["settings"]["emotions"]
    return [e for e in names if e in scores["pack"].get("uncalibrated", names)]


def about(scores: Scores, answers: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
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
    if not pack["calibrated"]:
        raw, which, whose = _not_calibrated(scores), "The vectors are", "the full dose"
        if len(raw) < len(s["emotions"]):
            which, whose = f"Of the vectors, {', '.join(raw)} {'are' if raw[1:] else 'is'}", "the full dose of these"
        yield Text(f"{which} not calibrated: doses are raw scales, and {whose} is raw scale 1.", True)
    if warning := overlap(scores, answers):
        yield Text(warning, True)
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
    if model["id"] == "embedded" and any("lexicon" in j for j in judges.values()):
        yield Text(
            "The embedded model and the built-in lexicon are not independent: where the lexicon found no emotion in "
            "an answer of the corpus that the model was trained on, that answer was made clearer. Scores of this "
            "model by this judge are higher than another judge's would be.",
            True,
        )
    yield Text(
        "Means with 95 % intervals: bootstrap over answers, Wilson's for shares, and over whole questions or "
        "conversations where an answer is not on its own. Verdicts that a judge did not give, and the repetition of "
        "empty answers, are counted as missing and left out. A looping text can score high on any emotion: read every "
        "score beside its repetition."
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def overlap(scores: Scores, answers: Sequence[Mapping[str, Any]]) -> str:
    """What to say of questions that the vectors were made from too; empty where there is none."""
    made_from, source = scores["pack"]["queries"], scores["settings"]["source"]
    if made_from.get("sha256") == source["sha256"]:
        return "The vectors were made from this very file: the scores do not show how they do on others."
    shipped, known = query_sets.shipped()
    if made_from.get("sha256") != known["sha256"]:
        eq_plus = scores["settings"]["queries"] == dict(EQ_PLUS)
        return "Which questions the vectors were made from cannot be seen here, so some may be asked again." + (
            " Nearly all emotional questions of the released EQ+ are in its authors' extraction set." if eq_plus else ""
        )
    there = {_plain(q) for questions in shipped.values() for q in questions}
    asked = {_plain(a["question"]) for a in answers if a["part"] in ("tables", "baselines", "statements")}
    if not (both := len(there & asked)):
        return ""
    return f"{both} of the {len(asked)} questions are among those the vectors were made from: scores on them flatter."


def command(scores: Scores) -> str:
    """The command that makes the same answers again."""
    model, s = scores["model"], scores["settings"]
    unit = "intensities" if s["unit"] == "intensity" else "scales"
    given = {
        "--model": model["name"],
        "--adapter": model.get("adapter"),
        "--vectors": scores["pack"].get("path"),
        "--site": scores["pack"]["site"],
        "--emotions": ",".join(s["emotions"]),
        f"--{unit}": ",".join(f"{d:g}" for d in s["doses"]),
        "--queries": None if s["source"]["name"] == "evaluation" else s["source"]["name"],
        "--limit": s["limit"],
        "--parts": None if tuple(s["parts"]) == PARTS else ",".join(s["parts"]),
        "--temp": f"{s['temperature']:g}",
        "--top-p": f"{s['top_p']:g}",
        "--max-tokens": s["max_tokens"],
        "--think": None if s["think"] == "off" else s["think"],
        "--batch-size": s["batch_size"],
        "--seed": s["seed"],
    }
    options = " ".join(f"{k}={shlex.quote(str(v))}" for k, v in given.items() if v is not None)
    return f"mlx-emotion evaluate {options} --output=DIR"


def foot(scores: Scores, background: Background) -> Iterator[Block]:
    yield Text(f"Answers made by: {command(scores)}. Judges are in the table at the top.")
    if background.versions:
        yield Text("Versions: " + ", ".join(f"{k} {v}" for k, v in background.versions.items()) + ".")
