"""What the numbers of each part say, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .background import full_name
from .metrics import PAPER_TABLES
from .pages import interval, number, points
from .statistics import NO, NOT_SHOWN, YES, together

Scores = Mapping[str, Any]

LENGTH_RANK = 0.2
"""Rank correlation of length and perplexity from which on it is worth a warning."""

HELD = 0.2
"""Share of its first effect that a way may lose over a conversation and still hold."""


def side(found: Mapping[str, Any]) -> str:
    """A difference, by its interval, in words."""
    if found["low"] is None or found["low"] <= 0 <= found["high"]:
        return "no difference shown"
    return "more" if found["low"] > 0 else "less"


def against_prompt(scores: Scores) -> str:
    """Steering against the instruction on the same questions; empty where there is not both."""
    data = scores.get("against_prompt")
    if not data:
        return ""
    titles = {"adherence": "topic adherence", "asked": "the asked emotion"}

    def said(found: Mapping[str, Any]) -> str:
        given = [f"{t} {points(found[c])} ({side(found[c])})" for c, t in titles.items() if c in found]
        return ", ".join(given)

    if not said(data["all"]):
        return ""
    words = data["all"]["words"]
    text = (
        f"Steering at {full_name(scores)} against the instruction, question by question: {said(data['all'])}; "
        f"answers are {number(abs(words['mean']), 1)} words {'longer' if words['mean'] > 0 else 'shorter'}. "
    )
    if not data["like"]:
        return text + "No two answers are of like length."
    return text + (
        f"At like length (within a quarter; {data['like']} of {data['pairs']} pairs): {said(data['alike'])}. "
        + _beats(data["alike"])
    )


def _beats(found: Mapping[str, Any]) -> str:
    sides = [side(found[c]) for c in ("adherence", "asked") if c in found]
    if len(sides) < 2:
        return ""
    if "less" not in sides and "more" in sides:
        return "At like length steering beats the instruction on one or both, and is shown worse on neither."
    if "more" not in sides and "less" in sides:
        return "At like length the instruction beats steering on one or both, and is shown worse on neither."
    return "At like length neither " + ("wins on both." if "more" in sides else "is shown to be better.")


def length(scores: Scores) -> str:
    """A warning that length confounds perplexity; empty where it hardly does."""
    data = scores.get("length")
    if not data or abs(data["rank"]) < LENGTH_RANK:
        return ""
    lower = "lower" if data["rank"] < 0 else "higher"
    return (
        f"Longer answers have {lower} perplexity (rank correlation {data['rank']:.2f} over {data['n']} answers): "
        "compare perplexities only between conditions of like length."
    )


def verdicts(scores: Scores) -> list[tuple[str, str, str]]:
    """(statement, verdict, by what) of the four statements, as far as they were tested."""
    found, probes = scores.get("statements") or {}, scores.get("probes") or {}
    curves, lines, sums = found.get("curves", {}), probes.get("curves", {}), probes.get("sums", {})
    mixes, full = found.get("mixes", {}), full_name(scores)

    def row(statement: str, by: Mapping[str, str]) -> list[tuple[str, str, str]]:
        if not by:
            return []
        counts = ", ".join(f"{v} {n}" for v in (YES, NO, NOT_SHOWN) if (n := list(by.values()).count(v)))
        return [(statement, together(list(by.values())), counts)]

    judged = {e: c for e, c in curves.items() if c["scores"]}
    rows = row("the emotion rises at every step", {e: c["rises"] for e, c in judged.items()})
    rows += row("the topic is preserved", {e: c["preserved"] for e, c in curves.items() if c["topic"]})
    rows += row("linear while small: logits, to a quarter", {e: c["small"]["verdict"] for e, c in lines.items()})
    rows += row(f"linear up to {full}: logits", {e: c["whole"]["verdict"] for e, c in lines.items()})
    rows += row(f"linear up to {full}: scores", {e: c["is_straight"] for e, c in judged.items()})
    rows += row("two add up: logits, a tenth of each", {p: s["small"]["verdict"] for p, s in sums.items()})
    rows += row("two add up: logits, half of each", {p: s["half"]["verdict"] for p, s in sums.items()})
    if mixes.get("r2"):
        by = f"R² about the mean {interval(mixes['r2'])}"
        rows.append(("two add up: scores, half of each", mixes["additive"], by))
    return rows


def fading(scores: Scores) -> list[str]:
    """Does the emotion fade, by way of asking for it?"""
    said = []
    for way, name in (("prompt", "The instruction's effect"), ("steering", "Steering's effect")):
        first, change = (scores["fading"]["effect"][way][which] for which in ("first", "change"))
        if first["low"] is None or change["low"] is None:
            said.append(f"{name}: too few conversations to say.")
            continue
        if first["low"] <= 0:
            said.append(f"{name} is not shown in the first answer, {points(first)} over plain: none could fade.")
            continue
        kept = change["low"] >= -HELD * first["mean"]
        verdict = "holds" if kept else "fades" if change["high"] < 0 else "is not shown to hold"
        said.append(
            f"{name} {verdict}: {points(first)} over plain in the first answer, {points(change)} from it to the later "
            "half of the turns."
        )
    return said


def instruction_left(scores: Scores) -> str:
    """A warning where the instruction did not stay in the prompt, or where nobody knows."""
    data = scores["fading"]
    shares = dict(zip(data["turns"], data["instructed"]))
    if not any(s is not None for s in shares.values()):
        return "These answers do not say whether the instruction was still in the prompt: old turns may have left it."
    gone = [t for t, s in shares.items() if s is not None and s < 1]
    if not gone:
        return ""
    return (
        f"From turn {gone[0]} on the instruction had left the prompt of some answers, with the oldest turns that the "
        "context had no room for: what is lost there is the instruction itself, not its effect."
    )


def circumplex(scores: Scores) -> str:
    """Which way of setting the state comes nearest to it."""
    data = {w: d["all"] for w, d in scores["circumplex"].items() if d["all"]["mean"] is not None}
    if not data:
        return "No answer has a direction."
    best = max(data, key=lambda w: data[w]["mean"])
    theirs, mine = PAPER_TABLES["circumplex"], data[best]

    def apart(other: Mapping[str, Any]) -> bool:
        return None not in (mine["low"], other["high"]) and mine["low"] > other["high"]

    others = [f"{'clearly above' if apart(d) else 'not shown above'} {w}" for w, d in data.items() if w != best]
    text = f"Nearest to the asked states is {best}, {interval(mine)}" + "".join(f", {o}" for o in others) + ". "
    return text + (
        f"A mean above {theirs['classifier']:g} is more than the paper's classifier agrees with its own labels."
        if mine["mean"] > theirs["classifier"]
        else ""
    )


def circular(scores: Scores) -> str:
    """A warning where the judge and the steering share their words."""
    if "built-in" not in scores["judges"].get("circumplex", ""):
        return ""
    return (
        "With the built-in judge this is close to circular for steering: the vectors make the model use an emotion's "
        "words, the lexicon looks for just such words, and nearly the same angles place both. Give --go-emotions a "
        "classifier before calling steering better than the prompt."
    )


def readout(scores: Scores, names: Mapping[str, str]) -> list[str]:
    """Can the emotion be read from the question, in words?"""
    said, below = [], False
    for field, data in scores["readout"].items():
        if data["low"] is None:
            said.append(f"{names[field].capitalize()}: too few questions to say.")
            continue
        low, high, chance = data["low"], data["high"], data["chance"]
        word = "above" if low > chance else "clearly below" if high < chance else "not shown to be above"
        if word.startswith("not") and data["accuracy"] < chance:
            word = "below chance, though not clearly, and not shown to be above"
        below = below or data["accuracy"] < chance or data["separation"] < 0.5
        said.append(f"{names[field].capitalize()}: accuracy is {word} chance.")
        if data["separation"] < 0.5:
            said.append("Emotional questions read lower than neutral ones more often than higher.")
    if below:
        said.append(
            "At or below chance the question's emotion cannot be read this way: the vectors are made from tokens of "
            "emotional replies, and here tokens of a user's question are read, where the model says nothing of its own."
        )
    return said
