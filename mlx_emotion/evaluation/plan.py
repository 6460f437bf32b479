"""What is asked, under which conditions: everything that decides which answers an evaluation has."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import queries as query_sets
from ..emotions import BASE, BASIC, NEUTRAL, Feeling, check_name, instructions
from ..errors import EvaluationError, QueryError, UsageError
from ..options import THINK
from ..vectors import EmotionVectors

PARTS = ("tables", "baselines", "statements", "circumplex", "fading", "probes", "geometry", "readout")
"""The experiments. ``tables`` is what the paper's tables 2 to 6 need; the others may be left out one by one."""

METHODS = ("last", "pca")
"""Other ways to make vectors, for comparison: last prompt token, first principal component."""

INTENSITIES, SCALES = (0.0, 0.5, 1.0, 1.5), (0.0, 1.0, 2.0, 4.0)
FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""The small range, as shares of intensity 1.0, in which the effect is tested for being linear."""

STATES = tuple(range(0, 360, 30))
"""The twelve states of arXiv 2504.14706, in degrees."""

WAYS = ("prompt", "steering", "both")
READ_QUERIES = 16
"""Questions of a group that are read at least, where the set has them: fewer would say nothing."""

MOST_AT_ONCE = 256
"""Largest batch: beyond it nothing gets faster, and memory runs out."""

ROTATIONS = 3
"""Conversations per emotion in the fading experiment; each asks the same questions in another order."""

# The released EQ+ file is a bare list of 400: fifty of each emotion, then the neutral ones.
EQ_PLUS = (*((e, 50) for e in BASIC), (NEUTRAL, 150))


def _data(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


@functools.cache
def circumplex_data() -> dict[str, Any]:
    """Questions, prompt and label table of the circumplex experiment."""
    return _data("circumplex.json")


@functools.cache
def conversation_data() -> dict[str, Any]:
    """The opening and the ten further messages of the fading experiment."""
    return _data("conversation.json")


@dataclass(frozen=True)
class Query:
    """One question; ``group`` is the emotion it was written for, or ``neutral``."""

    group: str
    index: int
    text: str

    @property
    def id(self) -> str:
        return f"{self.group}/{self.index}"


def read_queries(path: str | Path | None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Queries by group and their source: the shipped evaluation set, an object, or a list like EQ+.

    Raises ``QueryError``.
    """
    if path is None:
        return query_sets.shipped("evaluation")
    data, source = query_sets.load(path)
    if not isinstance(data, list):
        return query_sets.check(data, path), source
    if not data or not all(isinstance(q, str) and q.strip() for q in data):
        raise QueryError(f"{path}: wanted a list of questions, each text that is not empty")
    for n, question in enumerate(data):
        try:
            question.encode()
        except UnicodeEncodeError:
            raise QueryError(f"{path}: question {n} has half a character in it") from None
    if len(data) != sum(n for _, n in EQ_PLUS):
        return {"all": data}, source
    rest = iter(data)
    return {group: list(itertools.islice(rest, n)) for group, n in EQ_PLUS}, source


def uncalibrated(pack: EmotionVectors, emotions: Iterable[str]) -> list[str]:
    """Those of ``emotions`` whose intensity 1.0 nobody measured: it is once the vector."""
    entries = {**pack.info.emotions, BASE: {"scale": pack.info.base_scale}}
    return [e for e in dict.fromkeys(emotions) if entries[e].get("scale") is None]


@dataclass(frozen=True)
class Settings:
    """What the answers depend on; a folder holds answers of one ``Settings`` only.

    ``doses`` are in ``unit``: calibrated ``intensity`` or raw ``scale``, the only one of a pack without
    calibration. ``limit`` is queries a group. ``queries`` are answered; ``read`` are read for their emotion
    without an answer, which costs little.
    """

    emotions: tuple[str, ...]
    unit: str
    doses: tuple[float, ...]
    queries: Mapping[str, list[str]] = field(repr=False)
    read: Mapping[str, list[str]] = field(repr=False)
    source: Mapping[str, str]
    limit: int | None = None
    parts: tuple[str, ...] = PARTS
    max_tokens: int = 128
    temperature: float = 0.6
    top_p: float = 0.9
    batch_size: int = 16
    seed: int = 0
    think: str = "off"

    @classmethod
    def make(
        cls,
        pack: EmotionVectors,
        *,
        emotions: Iterable[str] | None = None,
        scales: Iterable[float] | None = None,
        intensities: Iterable[float] | None = None,
        queries: str | Path | None = None,
        limit: int | None = None,
        parts: Iterable[str] | None = None,
        **others: Any,
    ) -> Settings:
        """Settings for a pack, checked. Raises ``UsageError`` or ``QueryError``."""
        known = [*pack, BASE]
        names = list(emotions) if emotions is not None else [BASE, *(e for e in BASIC if e in pack)]
        names = [check_name(n, known) for n in names]
        if not names:
            raise UsageError(f"no emotion to evaluate: known are {', '.join(known)}")
        if scales is not None and intensities is not None:
            raise UsageError("give --scales or --intensities, not both")
        raw = uncalibrated(pack, names)
        if scales is None and 0 < len(raw) < len(set(names)):
            raise UsageError(
                f"{', '.join(raw)} not calibrated, others are; give --scales or other --emotions, or calibrate the pack"
            )
        # Without calibration intensity 1.0 is once the vector: the conditions are called what they are.
        unit = "scale" if scales is not None or raw else "intensity"
        given = scales if scales is not None else intensities
        doses = tuple(given) if given is not None else {"scale": SCALES, "intensity": INTENSITIES}[unit]
        if not doses or not all(math.isfinite(d) and -1000 <= d <= 1000 for d in doses):
            raise UsageError(f"{unit} must be numbers from -1000 to 1000, for example 0,1,2,4")
        chosen = tuple(parts) if parts is not None else PARTS
        if unknown := [p for p in chosen if p not in PARTS]:
            raise UsageError(f"unknown part {', '.join(unknown)}: known are {', '.join(PARTS)}")
        if limit is not None and limit < 1:
            raise UsageError(f"limit is {limit}, wanted at least 1")
        groups, source = read_queries(queries)
        if queries is None:  # of a user's own set everything is asked
            groups = {g: q for g, q in groups.items() if g in {*BASIC, *names, NEUTRAL}}
        enough = None if limit is None else max(limit, READ_QUERIES)
        return cls(
            tuple(dict.fromkeys(names)),
            unit,
            tuple(sorted({float(d) for d in doses})),
            {g: q[:limit] for g, q in groups.items()},
            {g: q[:enough] for g, q in groups.items()},
            source,
            limit,
            tuple(p for p in PARTS if p in chosen),
            **others,
        )

    def __post_init__(self) -> None:
        for what, value, fine in (
            ("max-tokens", self.max_tokens, self.max_tokens >= 1),
            ("batch-size", self.batch_size, 1 <= self.batch_size <= MOST_AT_ONCE),
            ("temperature", self.temperature, 0 <= self.temperature <= 10),
            ("top-p", self.top_p, 0 < self.top_p <= 1),
            ("seed", self.seed, 0 <= self.seed < 2**31),
        ):
            if not fine:
                raise UsageError(f"{what} is {value}, which is out of range")
        if self.think not in THINK:
            raise UsageError(f"unknown think {self.think!r}: known are {', '.join(THINK)}")

    @property
    def asked(self) -> list[str]:
        """The emotions without ``base``."""
        return [e for e in self.emotions if e != BASE]

    def record(self) -> dict[str, Any]:
        """As JSON, with the queries by their count; ``source`` holds their hash."""
        data = json.loads(json.dumps(dataclasses.asdict(self)))
        counts = {what: {g: len(q) for g, q in data[what].items()} for what in ("queries", "read")}
        return {**data, **counts}


def other_settings(record: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """In what ``given``, options as in ``Settings.make``, differs from the settings in ``record``; ``None`` is any.

    Raises ``QueryError`` for a file of queries that is none.
    """
    asked = {k: v for k, v in given.items() if v is not None}
    for unit in ("scales", "intensities"):
        if unit in asked:
            asked["doses"] = sorted({float(d) for d in asked.pop(unit)})
            if unit == "scales":
                asked["unit"] = "scale"
    if "queries" in asked:
        asked["source"] = read_queries(asked.pop("queries"))[1]
    if "parts" in asked:
        asked["parts"] = [p for p in PARTS if p in asked["parts"]]
    if "emotions" in asked:
        asked["emotions"] = list(dict.fromkeys(asked["emotions"]))
    return [f"{k}: there {record.get(k)}, asked {v}" for k, v in asked.items() if record.get(k) != v]


@dataclass(frozen=True)
class Condition:
    """One way to ask. ``scales`` are raw scales per emotion of the vectors made by ``method``.

    ``kind``: plain, steering, prompt, mix, circumplex, fading. ``emotion`` is the one asked for, if one
    is; ``dose`` its dose in the settings' unit; ``angle`` the asked direction on the circumplex.
    """

    id: str
    part: str
    kind: str
    emotion: str = ""
    dose: float | None = None
    scales: tuple[tuple[str, float], ...] = ()
    method: str = "mean"
    instruction: str = ""
    angle: int | None = None
    way: str = ""


@dataclass(frozen=True)
class Task:
    """One answer to make."""

    condition: Condition
    query: Query
    turn: int | None = None

    @property
    def id(self) -> str:
        return f"{self.condition.id}|{self.query.id}"

    @property
    def text(self) -> str:
        """The user's message: the question, with the instruction in front of it where there is one."""
        if self.condition.instruction and not self.turn:
            return f"{self.condition.instruction}\n\n{self.query.text}"
        return self.query.text


@dataclass(frozen=True)
class Chunk:
    """What is generated, and written, at a time: single questions in a batch, or one conversation's turns."""

    tasks: Sequence[Task]
    conversation: bool = False


@dataclass(frozen=True)
class Plan:
    """The settings, worked out for a pack."""

    settings: Settings
    pack: EmotionVectors

    def scale(self, emotion: str, dose: float) -> float:
        """``dose`` of ``emotion`` as a raw scale."""
        return dose * self.pack.scale(emotion) if self.settings.unit == "intensity" else dose

    def full(self, emotion: str) -> float:
        """The dose that is the calibrated 1.0, in the settings' unit."""
        return 1.0 if self.settings.unit == "intensity" else self.pack.scale(emotion)

    def instruction(self, emotion: str) -> str:
        """The first of the wordings that the emotion's vector was made with."""
        made_with = self.pack.info.emotions[emotion].get("instructions")
        return (made_with or instructions(self.pack.info.catalogue[emotion]))[0]

    def _steer(self, part: str, emotion: str, dose: float, method: str = "mean") -> Condition:
        kind = "steering" if method == "mean" else method
        scales = ((emotion, self.scale(emotion, dose)),)
        return Condition(f"{kind}:{emotion}@{dose:g}", part, kind, emotion, dose, scales, method)

    @functools.cached_property
    def conditions(self) -> list[Condition]:
        """Every single-turn condition over the query set; none twice."""
        s = self.settings
        found: list[Condition] = []
        if "tables" in s.parts:
            found.append(Condition("plain", "tables", "plain"))
            found += [self._steer("tables", e, d) for e in s.emotions for d in s.doses if d]
        if "baselines" in s.parts:
            found += [
                Condition(f"prompt:{e}", "baselines", "prompt", e, instruction=self.instruction(e)) for e in s.asked
            ]
            found += [
                self._steer("baselines", e, self.full(e), m) for m in METHODS for e in s.asked if e in self.comparable
            ]
        if "statements" in s.parts:
            found.append(Condition("plain", "tables", "plain"))
            found += [self._steer("statements", e, f * self.full(e)) for f in FRACTIONS for e in s.asked]
            found += [
                Condition(
                    f"mix:{a}+{b}",
                    "statements",
                    "mix",
                    f"{a}+{b}",
                    scales=tuple((e, self.scale(e, 0.5 * self.full(e))) for e in (a, b)),
                )
                for a, b in self.pairs
            ]
        unique: dict[str, Condition] = {}
        for condition in found:
            unique.setdefault(condition.id, condition)
        return list(unique.values())

    @functools.cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Neighbouring pairs of the asked emotions, each emotion in at most two."""
        asked = self.settings.asked
        return [(a, b) for a, b in zip(asked, [*asked[1:], *asked[:1]]) if a != b][: 1 if len(asked) == 2 else None]

    @functools.cached_property
    def comparable(self) -> list[str]:
        """The pack's emotions that vectors of other methods can be made of: the shipped set has questions for them."""
        there, _ = query_sets.shipped()
        return [e for e in self.pack if e in there]

    @property
    def methods(self) -> tuple[str, ...]:
        """Other vectors that the conditions need."""
        return tuple(dict.fromkeys(c.method for c in self.conditions if c.method != "mean"))

    def _circumplex(self) -> Iterator[Task]:
        data = circumplex_data()
        questions = [Query("circumplex", i, q) for i, q in enumerate(data["questions"][: self.settings.limit])]
        for query in questions:
            for angle in STATES:
                valence, arousal = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                feeling = Feeling.at(round(valence, 9), round(arousal, 9), self.pack.info.catalogue)
                scales = tuple(self.pack.scales(feeling).items())
                prompt = data["prompt"].format(valence=valence, arousal=arousal)
                for way in WAYS:
                    yield Task(
                        Condition(
                            f"circumplex:{way}@{angle}",
                            "circumplex",
                            "circumplex",
                            str(feeling),
                            scales=() if way == "prompt" else scales,
                            instruction="" if way == "steering" else prompt,
                            angle=angle,
                            way=way,
                        ),
                        query,
                    )

    def _fading(self) -> Iterator[list[Task]]:
        """One list a conversation: instructed once, steered all along, or plain."""
        data, s = conversation_data(), self.settings
        ways = [Condition("fading:plain", "fading", "fading", way="plain")]
        for e in s.asked:
            instructed = Condition(
                f"fading:prompt:{e}", "fading", "fading", e, instruction=self.instruction(e), way="prompt"
            )
            steered = Condition(
                f"fading:steering:{e}", "fading", "fading", e, scales=((e, self.pack.scale(e)),), way="steering"
            )
            ways += [instructed, steered]
        count = min(ROTATIONS, s.limit or ROTATIONS)
        for r, way in itertools.product(range(count), ways):
            step = r * len(data["turns"]) // count
            order = [data["opening"], *data["turns"][step:], *data["turns"][:step]]
            yield [Task(way, Query(f"conversation-{r}", turn, text), turn) for turn, text in enumerate(order)]

    @functools.cached_property
    def chunks(self) -> list[Chunk]:
        """All tasks, as they are made: enough at a time to keep a batch full, little enough to lose."""
        s = self.settings
        # Conditions side by side: the rows of a batch ask the same question under different feelings.
        tasks = [
            Task(c, Query(g, i, q)) for g, qs in s.queries.items() for i, q in enumerate(qs) for c in self.conditions
        ]
        if "circumplex" in s.parts:
            tasks += self._circumplex()
        size = 8 * s.batch_size
        found = [Chunk(tasks[i : i + size]) for i in range(0, len(tasks), size)]
        if "fading" in s.parts:
            found += [Chunk(turns, conversation=True) for turns in self._fading()]
        return found

    @functools.cached_property
    def tasks(self) -> list[Task]:
        return [t for c in self.chunks for t in c.tasks]

    @property
    def hash(self) -> str:
        """Of everything that is asked, whatever file it came from, and of the doses it is asked under."""
        asked = [(t.id, t.text, t.condition.scales, t.condition.method, t.turn) for t in self.tasks]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def check_plan(plan: Plan) -> None:
    """Raises ``EvaluationError`` for a plan without an answer to make or a part to do."""
    if not plan.tasks and not {"probes", "geometry", "readout"} & set(plan.settings.parts):
        raise EvaluationError("nothing to evaluate: no query is left; give other --queries, --emotions or --parts")
