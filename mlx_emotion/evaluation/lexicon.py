"""The built-in judge of emotion: words that show it, counted. Small, deterministic, and labelled as such.

``lexicon.json`` maps emotion -> entry -> weight (1 weak, 2 clear, 3 strong). An entry is a word or a
phrase; a trailing ``*`` stands for any ending of its last word.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

CLEAR = 2.0
"""From this sum of weights on, a text shows an emotion: one clear word, or two weak ones."""

HALF = 3.0
"""The sum of weights that counts as half of the strongest: one strong word."""

# "can't" and "couldn't" are missing on purpose: "I can't tell you how happy I am".
_NEGATIONS = """
    not no never nor neither without hardly isn't wasn't aren't weren't ain't don't doesn't didn't won't wouldn't
    haven't hasn't hadn't shouldn't needn't
"""
NEGATIONS = frozenset(_NEGATIONS.split())
REACH = 3
"""A negation acts on this many words after it, within its clause."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_CLAUSE = re.compile(r"[.,;:!?…—()\n\"]+")


def clauses(text: str) -> list[list[str]]:
    """The lower-case words of ``text``, clause by clause; a hyphen parts words."""
    plain = text.lower().replace("\u2019", "'").replace("-", " ")
    return [words for part in _CLAUSE.split(plain) if (words := _WORD.findall(part))]


class Lexicon:
    """Entries of several emotions, ready to be looked up."""

    def __init__(self, entries: Mapping[str, Mapping[str, float]]) -> None:
        self.emotions = tuple(entries)
        self._exact: dict[str, dict[str, float]] = {}
        self._starts: dict[str, dict[str, float]] = {}
        self._longest = 1
        for emotion, weights in entries.items():
            self._exact[emotion], self._starts[emotion] = {}, {}
            for entry, weight in weights.items():
                key = " ".join(entry.lower().replace("-", " ").rstrip("*").split())
                (self._starts if entry.endswith("*") else self._exact)[emotion][key] = float(weight)
                self._longest = max(self._longest, key.count(" ") + 1)

    def _weight(self, emotion: str, words: list[str]) -> float | None:
        phrase = " ".join(words)
        if (weight := self._exact[emotion].get(phrase)) is not None:
            return weight
        starts = self._starts[emotion]
        least = len(phrase) - len(words[-1]) + 1
        for end in range(len(phrase), least - 1, -1):
            if (weight := starts.get(phrase[:end])) is not None:
                return weight
        return None

    def score(self, text: str) -> dict[str, float]:
        """Sum of weights per emotion. The longest entry at a place counts, alone; a negated one does not."""
        totals = dict.fromkeys(self.emotions, 0.0)
        for words in clauses(text):
            for emotion in self.emotions:
                at = 0
                while at < len(words):
                    step = 1
                    for size in range(min(self._longest, len(words) - at), 0, -1):
                        weight = self._weight(emotion, words[at : at + size])
                        if weight is not None:
                            if not NEGATIONS.intersection(words[max(0, at - REACH) : at]):
                                totals[emotion] += weight
                            step = size
                            break
                    at += step
        return totals

    def top(self, text: str) -> str | None:
        """The emotion that ``text`` shows most, or ``None`` where none is clear."""
        totals = self.score(text)
        best = max(totals, key=lambda e: totals[e])
        return best if totals[best] >= CLEAR else None


def strength(total: float) -> float:
    """A sum of weights as a share in [0, 1): 0 -> 0, one strong word -> 0.5, two -> 0.75, …"""
    return 1.0 - 0.5 ** (total / HALF)


@functools.cache
def shipped() -> Lexicon:
    """The lexicon of this package."""
    return Lexicon(json.loads(Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8")))


def score(text: str) -> dict[str, float]:
    """Sum of weights per emotion found in ``text``, 0 and up."""
    return shipped().score(text)


def top(text: str) -> str | None:
    """The emotion that ``text`` shows most; ``None`` is neutral."""
    return shipped().top(text)
