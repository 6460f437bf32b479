"""The catalogue of emotions, the circumplex, and ``Feeling``: what the user sets. Imports no mlx."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import UsageError

MAX_INTENSITY = 1.5
"""Largest intensity of one emotion; 1.0 is the calibrated full dose."""

BASE, NEUTRAL = "base", "neutral"


@dataclass(frozen=True)
class Emotion:
    """One emotion of the catalogue.

    ``angle`` is its direction on Russell's circumplex in degrees, counter-clockwise from pleasant:
    valence is its cosine, arousal its sine. ``colour`` is ``#rrggbb``. ``adjective`` completes
    "someone who feels …" in the instruction wordings.
    """

    name: str
    adjective: str
    angle: float
    colour: str

    @property
    def valence(self) -> float:
        return math.cos(math.radians(self.angle))

    @property
    def arousal(self) -> float:
        return math.sin(math.radians(self.angle))


# Angles: Russell (1980), circular scaling, of the nearest word: angry 99, afraid 116, happy 7.8 and
# delighted 24.9 (their middle), sad 207.5, astonished 69.8, calm 316.2, tired 267.7. Disgust has no
# word there; 160 puts it between frustrated (141) and miserable (188.7).
CATALOGUE: dict[str, Emotion] = {
    e.name: e
    for e in (
        Emotion("anger", "angry", 99.0, "#e5484d"),
        Emotion("disgust", "disgusted", 160.0, "#7a9a3a"),
        Emotion("fear", "afraid", 116.0, "#8e6fd8"),
        Emotion("joy", "joyful", 16.0, "#f2b705"),
        Emotion("sadness", "sad", 207.5, "#4a7fc1"),
        Emotion("surprise", "surprised", 69.8, "#f0803c"),
        Emotion("calm", "calm", 316.2, "#3fae8f"),
        Emotion("tiredness", "tired", 267.7, "#8a8f98"),
    )
}
BASIC = ("anger", "disgust", "fear", "joy", "sadness")
"""The basic five of arXiv 2502.04075; their mean is the base vector."""

INSTRUCTIONS = (
    "Answer with {noun}, in at most two sentences.",
    "Answer as someone who feels very {adjective} right now.",
    "Let {noun} speak through your whole answer.",
    "You are overcome by {noun}. Reply in one or two sentences.",
)
"""The emotional setting's wordings; extraction takes them in turn so that a vector is not one wording's."""


def instructions(emotion: str, wordings: Iterable[str] = INSTRUCTIONS) -> tuple[str, ...]:
    """The instruction wordings of ``emotion``, filled in."""
    known = CATALOGUE.get(emotion)
    adjective = known.adjective if known else emotion
    return tuple(w.format(noun=emotion, adjective=adjective) for w in wordings)


def check_name(name: str, known: Iterable[str]) -> str:
    """``name`` if it is in ``known``; else ``UsageError`` naming the nearest and all known ones."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    if not near:
        near = [e.name for e in CATALOGUE.values() if e.adjective == name.lower() and e.name in known]
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown emotion {name!r}: {hint}known are {', '.join(known)}")


@dataclass(frozen=True)
class Feeling:
    """A weighted mix of emotions: ``weights`` are (name, intensity) pairs, intensity in [0, 1.5].

    No pairs is neutral. Names are an emotion's, or ``base``. Make one with ``Feeling.of``.
    """

    weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        seen = set()
        for name, value in self.weights:
            if not math.isfinite(value) or not 0 <= value <= MAX_INTENSITY:
                raise UsageError(f"intensity of {name} is {value:g}, wanted 0 to {MAX_INTENSITY:g}")
            if name in seen:
                raise UsageError(f"{name} is given twice")
            seen.add(name)
        object.__setattr__(self, "weights", tuple((n, float(v)) for n, v in self.weights if v))

    @classmethod
    def of(
        cls, value: Feeling | str | Mapping[str, float] | None, known: Iterable[str] = CATALOGUE
    ) -> Feeling:
        """A feeling from what a user writes.

        ``value`` is a spec (``fear``, ``fear:0.5``, ``fear:0.8,joy:0.2``,
        ``valence=-0.5,arousal=0.8``, ``base``, ``neutral``), a mapping of name to intensity, or a
        feeling. ``known`` are the emotions a pack has. Raises ``UsageError``.
        """
        if value is None:
            return cls()
        known = list(known)
        if isinstance(value, Feeling):
            feeling = value
        elif isinstance(value, Mapping):
            feeling = cls(tuple((str(k), float(v)) for k, v in value.items() if k != NEUTRAL))
        else:
            feeling = cls._parse(value.strip(), known)
        for name, _ in feeling.weights:
            check_name(name, [*known, BASE])
        return feeling

    @classmethod
    def _parse(cls, spec: str, known: list[str]) -> Feeling:
        if not spec:
            raise UsageError("empty feeling; write for example fear:0.8,joy:0.2")
        parts = [p.strip() for p in spec.split(",")]
        if any("=" in p for p in parts):
            return cls._parse_point(spec, parts, known)
        if parts == [NEUTRAL]:
            return cls()
        weights = []
        for part in parts:
            match = re.fullmatch(r"([^\s:=]+)(?:\s*:\s*([-+.\deE]+))?", part)
            if not match:
                raise UsageError(f"cannot read {part!r} in feeling {spec!r}; write for example fear:0.8,joy:0.2")
            name = check_name(match[1].lower(), [*known, BASE, NEUTRAL])
            if name == NEUTRAL:
                raise UsageError(f"neutral cannot be mixed, in feeling {spec!r}")
            try:
                weights.append((name, float(match[2] or 1.0)))
            except ValueError:
                raise UsageError(f"{match[2]!r} is not a number, in feeling {spec!r}") from None
        return cls(tuple(weights))

    @classmethod
    def _parse_point(cls, spec: str, parts: list[str], known: list[str]) -> Feeling:
        point: dict[str, float] = {}
        for part in parts:
            key, _, number = (s.strip() for s in part.partition("="))
            if key not in ("valence", "arousal") or key in point:
                raise UsageError(f"cannot read {part!r} in feeling {spec!r}; write valence=-0.5,arousal=0.8")
            try:
                point[key] = float(number)
            except ValueError:
                raise UsageError(f"{number!r} is not a number, in feeling {spec!r}") from None
        return cls.at(point.get("valence", 0.0), point.get("arousal", 0.0), known)

    @classmethod
    def at(cls, valence: float, arousal: float, known: Iterable[str] = CATALOGUE) -> Feeling:
        """The mix of the two neighbouring emotions whose weighted sum is this point of the circumplex.

        ``valence`` and ``arousal`` are in [-1, 1]; a point outside the unit circle is moved onto it.
        Raises ``UsageError``.
        """
        for what, v in (("valence", valence), ("arousal", arousal)):
            if not -1 <= v <= 1:
                raise UsageError(f"{what} is {v:g}, wanted -1 to 1")
        placed = sorted((e for e in CATALOGUE.values() if e.name in set(known)), key=lambda e: e.angle)
        radius = math.hypot(valence, arousal)
        if radius < 1e-9:
            return cls()
        if not placed:
            raise UsageError("none of this pack's emotions has a place on the circumplex; name emotions instead")
        if radius > 1:
            valence, arousal, radius = valence / radius, arousal / radius, 1.0
        angle = math.degrees(math.atan2(arousal, valence)) % 360
        right = min(placed, key=lambda e: (angle - e.angle) % 360)
        left = min(placed, key=lambda e: (e.angle - angle) % 360)
        gap = math.radians((left.angle - right.angle) % 360)
        turn = math.radians((angle - right.angle) % 360)
        if right is left or turn < 1e-9:
            return cls(((right.name, radius * max(0.0, math.cos(turn))),))
        if gap > math.radians(150):  # too wide to span: the point's share along each neighbour
            pairs = ((right, math.cos(turn)), (left, math.cos(gap - turn)))
            return cls(tuple((e.name, radius * c) for e, c in pairs if c > 1e-9))
        pairs = ((right, math.sin(gap - turn)), (left, math.sin(turn)))
        return cls(tuple((e.name, min(MAX_INTENSITY, radius * s / math.sin(gap))) for e, s in pairs if s > 1e-9))

    @property
    def point(self) -> tuple[float, float]:
        """(valence, arousal) of the mix, each in [-1, 1]; ``base`` and emotions without a place count as 0."""
        placed = [(CATALOGUE[n], w) for n, w in self.weights if n in CATALOGUE]
        v, a = sum(w * e.valence for e, w in placed), sum(w * e.arousal for e, w in placed)
        radius = max(1.0, math.hypot(v, a))
        return v / radius, a / radius

    def scaled(self, factor: float) -> Feeling:
        """The same mix with every intensity times ``factor``. Raises ``UsageError`` beyond the range."""
        return Feeling(tuple((n, w * factor) for n, w in self.weights))

    @property
    def neutral(self) -> bool:
        return not self.weights

    def __str__(self) -> str:
        if self.neutral:
            return NEUTRAL
        return ",".join(n if w == 1 else f"{n}:{w:.3g}" for n, w in self.weights)
