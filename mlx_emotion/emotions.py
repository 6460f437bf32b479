"""The catalogue of emotions, the circumplex, and ``Feeling``: what the user sets. Imports no mlx."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from .errors import UsageError

MAX_INTENSITY = 1.5
"""Largest intensity of one emotion; 1.0 is the calibrated full dose."""

BASE, NEUTRAL = "base", "neutral"

GREY = "#9a9a9a"
"""The colour of an emotion that was given none."""


@dataclass(frozen=True)
class Emotion:
    """One emotion, of the catalogue or a user's own.

    ``angle`` is its direction on Russell's circumplex in degrees, counter-clockwise from pleasant, and
    ``radius`` its distance from the middle, 0 to 1: valence is ``radius`` times its cosine, arousal its
    sine; radius 0 is without a place. ``colour`` is ``#rrggbb``. ``adjective`` completes "someone who
    feels …" in the instruction wordings; ``instructions`` are wordings of its own, in place of those.
    """

    name: str
    adjective: str
    angle: float
    colour: str
    radius: float = 1.0
    instructions: tuple[str, ...] = ()

    @classmethod
    def custom(
        cls, name: str, valence: float = 0.0, arousal: float = 0.0, colour: str = GREY, instructions: Iterable[str] = ()
    ) -> Emotion:
        """An emotion that is not of the catalogue, by its point on the circumplex; without one it has no place."""
        angle = math.degrees(math.atan2(arousal, valence)) % 360
        return cls(name, name, angle, colour, min(1.0, math.hypot(valence, arousal)), tuple(instructions))

    @property
    def valence(self) -> float:
        return self.radius * math.cos(math.radians(self.angle))

    @property
    def arousal(self) -> float:
        return self.radius * math.sin(math.radians(self.angle))


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


def instructions(emotion: Emotion, wordings: Iterable[str] = INSTRUCTIONS) -> tuple[str, ...]:
    """The instruction wordings of ``emotion``: its own, else ``wordings`` filled in."""
    filled = (w.format(noun=emotion.name, adjective=emotion.adjective) for w in wordings)
    return emotion.instructions or tuple(filled)


def catalogue(known: Iterable[str] | Mapping[str, Emotion]) -> dict[str, Emotion]:
    """The emotions behind names: as given, else of ``CATALOGUE``; one that is in neither has no place."""
    if isinstance(known, Mapping):
        return dict(known)
    return {n: CATALOGUE.get(n) or Emotion.custom(n) for n in known}


def check_name(name: str, known: Iterable[str]) -> str:
    """``name`` if it is in ``known``; else ``UsageError`` naming the nearest and all known ones."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    if not near and len(name) > 2:
        near = [k for k in known if name.lower() in k]
    if not near:
        near = [e.name for e in CATALOGUE.values() if e.adjective == name.lower() and e.name in known]
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown emotion {name!r}: {hint}known are {', '.join(known)}")


@dataclass(frozen=True)
class Feeling:
    """A weighted mix of emotions: ``weights`` are (name, intensity) pairs, intensity in [0, 1.5].

    No pairs is neutral. Names are an emotion's, or ``base``. Make one with ``Feeling.of``, which also
    notes in ``defined`` those emotions of the mix that are not the catalogue's.
    """

    weights: tuple[tuple[str, float], ...] = ()
    defined: tuple[Emotion, ...] = field(default=(), compare=False, repr=False)

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
        cls,
        value: Feeling | str | Mapping[str, float] | None,
        known: Iterable[str] | Mapping[str, Emotion] = CATALOGUE,
    ) -> Feeling:
        """A feeling from what a user writes.

        ``value`` is a spec (``fear``, ``fear:0.5``, ``fear:0.8,joy:0.2``,
        ``valence=-0.5,arousal=0.8``, ``base``, ``neutral``), a mapping of name to intensity, or a
        feeling. ``known`` are the emotions a pack has, by name or with their definitions. Raises
        ``UsageError``.
        """
        if value is None:
            return cls()
        known = catalogue(known)
        if isinstance(value, Feeling):
            feeling = value
        elif isinstance(value, Mapping):
            given = [(str(k) if k in known else str(k).lower(), v) for k, v in value.items()]
            if len(given) > 1 and any(k == NEUTRAL for k, _ in given):
                raise UsageError(f"neutral cannot be mixed, in feeling {dict(value)!r}")
            try:
                feeling = cls(tuple((k, float(v)) for k, v in given if k != NEUTRAL))
            except (TypeError, ValueError):
                raise UsageError(f"cannot read feeling {value!r}: wanted names with numbers") from None
        elif not isinstance(value, str):
            raise UsageError(f"cannot read feeling {value!r}; write for example fear:0.8,joy:0.2")
        else:
            feeling = cls._parse(value.strip(), known)
        for name, _ in feeling.weights:
            check_name(name, [*known, BASE])
        own = (known[n] for n, _ in feeling.weights if n in known)
        return replace(feeling, defined=tuple(e for e in own if e != CATALOGUE.get(e.name)))

    @classmethod
    def _parse(cls, spec: str, known: Mapping[str, Emotion]) -> Feeling:
        if not spec:
            raise UsageError("empty feeling; write for example fear:0.8,joy:0.2")
        parts = [p.strip() for p in spec.split(",")]
        if any("=" in p for p in parts):
            return cls._parse_point(spec, parts, known)
        if spec.lower() == NEUTRAL:
            return cls()
        weights = []
        for part in parts:
            match = re.fullmatch(r"([^:=]+?)(?:\s*:\s*([-+.\deE]+))?", part)
            if not match:
                raise UsageError(f"cannot read {part!r} in feeling {spec!r}; write for example fear:0.8,joy:0.2")
            given = match[1] if match[1] in known else match[1].lower()
            name = check_name(given, [*known, BASE, NEUTRAL])
            if name == NEUTRAL:
                raise UsageError(f"neutral cannot be mixed, in feeling {spec!r}")
            try:
                weights.append((name, float(match[2] or 1.0)))
            except ValueError:
                raise UsageError(f"{match[2]!r} is not a number, in feeling {spec!r}") from None
        return cls(tuple(weights))

    @classmethod
    def _parse_point(cls, spec: str, parts: list[str], known: Mapping[str, Emotion]) -> Feeling:
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
    def at(cls, valence: float, arousal: float, known: Iterable[str] | Mapping[str, Emotion] = CATALOGUE) -> Feeling:
        """The mix of two emotions whose weighted sum is this point of the circumplex, with the least intensity.

        Among emotions on the unit circle those are the point's neighbours; one nearer to the middle is
        not taken where two others reach the point with less. ``valence`` and ``arousal`` are in
        [-1, 1]; a point outside the unit circle is moved onto it. Raises ``UsageError``.
        """
        for what, v in (("valence", valence), ("arousal", arousal)):
            if not -1 <= v <= 1:
                raise UsageError(f"{what} is {v:g}, wanted -1 to 1")
        placed = [e for e in catalogue(known).values() if e.radius > 0]
        radius = math.hypot(valence, arousal)
        if radius < 1e-9:
            return cls()
        if not placed:
            raise UsageError("none of this pack's emotions has a place on the circumplex; name emotions instead")
        if radius > 1:
            valence, arousal, radius = valence / radius, arousal / radius, 1.0
        spans: list[tuple[tuple[Emotion, float], ...]] = []
        for a, b in combinations(sorted(placed, key=lambda e: e.angle), 2):
            right, left = (a, b) if b.angle - a.angle < 180 else (b, a)
            if not 1e-6 < (left.angle - right.angle) % 360 <= 150:  # wider, and both would be strong for little
                continue
            cross = right.valence * left.arousal - right.arousal * left.valence
            first = (valence * left.arousal - arousal * left.valence) / cross
            second = (right.valence * arousal - right.arousal * valence) / cross
            if min(first, second) > -1e-9:
                spans.append(((right, first), (left, second)))
        if spans:
            mix = min(spans, key=lambda pairs: sum(w for _, w in pairs))
        else:  # no two reach around the point: its share along the neighbour on each side
            angle = math.degrees(math.atan2(arousal, valence)) % 360
            right = min(placed, key=lambda e: (angle - e.angle) % 360)
            left = min(placed, key=lambda e: (e.angle - angle) % 360)
            near = dict.fromkeys((right, left))
            mix = tuple((e, (e.valence * valence + e.arousal * arousal) / e.radius**2) for e in near)
        return cls.of({e.name: min(MAX_INTENSITY, w) for e, w in mix if w > 1e-9}, {e.name: e for e in placed})

    @property
    def point(self) -> tuple[float, float]:
        """(valence, arousal) of the mix, each in [-1, 1]; ``base`` and emotions without a place count as 0."""
        known = {**CATALOGUE, **{e.name: e for e in self.defined}}
        placed = [(known[n], w) for n, w in self.weights if n in known]
        v, a = sum(w * e.valence for e, w in placed), sum(w * e.arousal for e, w in placed)
        radius = max(1.0, math.hypot(v, a))
        return v / radius, a / radius

    def scaled(self, factor: float) -> Feeling:
        """The same mix with every intensity times ``factor``. Raises ``UsageError`` beyond the range."""
        return replace(self, weights=tuple((n, w * factor) for n, w in self.weights))

    @property
    def neutral(self) -> bool:
        return not self.weights

    def __str__(self) -> str:
        if self.neutral:
            return NEUTRAL
        return ",".join(n if w == 1 else f"{n}:{w:.3g}" for n, w in self.weights)
