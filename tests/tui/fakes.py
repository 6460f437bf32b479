"""A scripted model for the app: says what it is told to, at the pace it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from mlx_emotion import (
    CATALOGUE,
    Done,
    Feeling,
    FeelingChanged,
    GuardTripped,
    MLXEmotionError,
    Reading,
    Store,
    Thought,
    Token,
)
from mlx_emotion.compare import Answer
from mlx_emotion.options import Options

NAMES = ["anger", "calm", "fear", "joy", "sadness"]


@dataclass
class Fake:
    """The script: ``thinks`` and then ``says`` word by word; ``go`` lets the next words out.

    ``breaks_after`` words it fails.
    """

    says: str = "one two three four five six"
    thinks: str = ""
    emotions: list[str] = field(default_factory=lambda: list(NAMES))
    breaks_after: int | None = None
    trips_after: int | None = None
    waits_on_change: bool = False
    go: threading.Event = field(default_factory=threading.Event)
    on_reset: Callable[[], None] = lambda: None
    id: str = "fake"
    quantization: str = "4-bit"
    memory: int = 5_000_000
    path: Path = Path("/no/such/model")

    def __post_init__(self) -> None:
        self.go.set()
        self.chats: list[FakeChat] = []
        self.closed = False
        self.identity = SimpleNamespace(fingerprint="f00d", id=self.id)
        pack = SimpleNamespace(path=Path("fake-pack.safetensors"), doubts="")
        self.vectors = pack if self.emotions else None
        self.catalogue = {n: CATALOGUE[n] for n in self.emotions}

    def feeling(self, value):
        return Feeling.of(value, self.catalogue)

    def chat(self, feeling=None, **options):
        self.chats.append(FakeChat(self, self.feeling(feeling), Options(**options)))
        return self.chats[-1]

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class FakeChat:
    def __init__(self, model: Fake, feeling: Feeling, options: Options) -> None:
        self.model, self.feeling, self.options = model, feeling, options
        self.turns: list[list[str]] = []
        self.felt: list[tuple] = []
        self.seeds: list[int | None] = []
        self._stop = threading.Event()

    def feel(self, feeling):
        self.feeling = self.model.feeling(feeling)

    def stop(self):
        self._stop.set()

    def change(self, **options):
        self.options = replace(self.options, **options)

    def reset(self):
        self.model.on_reset()
        self.turns = []

    def add(self, user, reply, felt=()):
        self.turns.append([user, reply])
        self.felt.append(felt)

    def drop(self):
        self.turns.pop()

    def stream(self, message, seed=None):
        self._stop.clear()
        self.turns.append([message, ""])
        return self._answer(seed)

    def again(self, feeling=None, seed=None):
        self._stop.clear()
        self.turns[-1][1] = ""
        return self._answer(seed)

    def compare(self, message, feelings, seed=None):
        self._stop.clear()
        return self._compare([f"{message} with {feeling}" for feeling in feelings], feelings, seed)

    def _compare(self, texts, feelings, seed):
        for column, text in enumerate(texts):
            yield Answer(column, Token(text, 0))
        while not self.model.go.wait(0.01) and not self._stop.is_set():
            yield Answer(0, Token("", 0))
        for column, (text, feeling) in enumerate(zip(texts, feelings)):
            reason = "cancelled" if self._stop.is_set() else "stop"
            yield Answer(
                column, replace(self._done(text, reason, feeling, 1, [(0, str(feeling))], False), seed=seed or 1)
            )

    def _answer(self, seed):
        self.seeds.append(seed)
        felt, timeline, said, reason, tripped = self.feeling, [(0, str(self.feeling))], "", "stop", False
        thoughts = self.model.thinks.split()
        for index, word in enumerate(thoughts):
            yield Thought(word if index == 0 else f" {word}", index)
        for index, word in enumerate(self.model.says.split(" "), len(thoughts)):
            if index == self.model.breaks_after:
                self.turns[-1][1] = said.strip()
                raise MLXEmotionError("the engine broke")
            late = time.monotonic() + 600  # a test that failed meanwhile must end
            while not self.model.go.wait(0.01) and not self._stop.is_set() and time.monotonic() < late:
                pass
            if self.model.closed:
                raise MLXEmotionError(f"{self.model.id} was closed")
            if self._stop.is_set():
                reason = "cancelled"
                break
            if self.feeling != felt:
                felt = self.feeling
                timeline.append((index, str(felt)))
                yield FeelingChanged(str(felt), felt.weights, index)
                if self.model.waits_on_change:
                    self.model.go.clear()
            if index == self.model.trips_after:
                tripped = True
                yield GuardTripped(index, 0.5)
            piece = f" {word}" if said else word
            said += piece
            yield Token(piece, index)
            if self.options.readout:
                own = tuple((n, 0.1 * k) for k, n in enumerate(self.model.emotions))
                yield Reading(index, own, own)
        self.turns[-1][1] = said.strip()
        count = len(thoughts) + len(said.split())
        yield self._done(said.strip(), reason, felt, count, timeline, tripped, self.model.thinks)

    def _done(self, text, reason, feeling, tokens, timeline, tripped, thinking=""):
        return Done(
            text=text, finish_reason=reason, feeling=str(feeling), scale=(), seed=1, guard=tripped, prompt_tokens=3,
            prefilled=3, tokens=tokens, tokens_per_second=100.0, time_to_first_token=0.01, timeline=tuple(timeline),
            thinking=thinking, thinking_tokens=len(thinking.split()),
        )  # fmt: skip


class FullDisk(Store):
    """A store that has no room, until it has."""

    full = False

    def _transaction(self):
        if self.full:
            raise MLXEmotionError("the disk is full")
        return super()._transaction()


async def until(pilot, condition, seconds: float = 300.0) -> None:
    """Wait for ``condition``; fails when it does not come."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await pilot.pause(0.01)


async def ready(pilot) -> None:
    await until(pilot, lambda: pilot.app.chat is not None)


async def say(pilot, text: str) -> None:
    """Write a message and send it."""
    pilot.app.box.put(text)
    await pilot.press("enter")


async def answered(pilot, count: int) -> None:
    """Wait until ``count`` messages have their replies."""
    app = pilot.app

    def over() -> bool:
        replies = [e.reply for e in app.transcript.exchanges]
        return app.talk.speaking is None and len(replies) == count and replies[-1].state != "writing"

    await until(pilot, over)


async def replied(pilot, number: int, count: int) -> None:
    """Wait until ``count`` replies have been made to message ``number``."""
    app = pilot.app

    def over() -> bool:
        exchange = app.transcript.exchanges[number]
        return app.talk.speaking is None and len(exchange.replies) == count and exchange.reply.state != "writing"

    await until(pilot, over)


def text_of(app) -> str:
    """What the screen shows, as text."""
    width, height = app.size
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(s.text for s in line)[:width].rstrip() for line in lines[:height])


def styles_of(app) -> set:
    """The styles that the screen is painted with."""
    update = app.screen._compositor.render_update(full=True)
    return {s.style for s in app.console.render(update) if s.style and not s.control}
