"""One reply under way: read on a thread of its own, stored as it grows, handed over in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from mlx_emotion import (
    Done,
    Exchange,
    FeelingChanged,
    GuardTripped,
    MLXEmotionError,
    Reading,
    Reply,
    Store,
    Thought,
    Token,
)

SAVE_EVERY = 0.5
"""Seconds between two writes of a growing reply."""

Spoken = Token | Thought | FeelingChanged | GuardTripped | Reading | Done


BEFORE = -1
"""Index of a change of feeling that came before the reply began."""


def stepped(timeline: Iterable[tuple[int, str]], event: FeelingChanged) -> tuple[tuple[int, str], ...]:
    """``timeline`` with a change of feeling; one that came before the first token takes its place."""
    if event.index == BEFORE:
        return ((0, event.feeling),)
    return (*timeline, (event.index, event.feeling))


@dataclass(frozen=True)
class Ended:
    """The reply is over, well or not; ``unsaved`` says why it could not be stored."""

    reply: Reply
    unsaved: str | None = None


class Speaking:
    """Carries one reply from the model to the store and, through ``inbox``, to the screen."""

    def __init__(self, events: Callable[[], Iterator[Spoken]], store: Store, exchange: Exchange, reply: Reply) -> None:
        self.exchange, self.reply = exchange, reply
        self.inbox: deque[Spoken | Ended] = deque()
        self._events, self._store = events, store
        self._unsaved: str | None = None

    def run(self) -> None:
        """Read it to its end. On a worker thread; never raises."""
        reply, saved = self.reply, time.monotonic()
        timeline = list(reply.timeline)
        text: list[str] = []
        thinking: list[str] = []
        count = 0

        def so_far() -> Reply:
            said, thought = "".join(text), "".join(thinking).strip()
            return replace(reply, text=said, thinking=thought, timeline=tuple(timeline), tokens=count)

        try:
            for event in self._events():
                self.inbox.append(event)
                if isinstance(event, Token | Thought):
                    count = event.index + 1
                    if isinstance(event, Thought):
                        thinking.append(event.text)
                    else:
                        if event.text and thinking and not any(text):
                            reply = replace(reply, thinking_tokens=event.index)
                        text.append(event.text)
                    if time.monotonic() - saved >= SAVE_EVERY:
                        self._save(so_far())
                        saved = time.monotonic()
                elif isinstance(event, FeelingChanged):
                    timeline = list(stepped(timeline, event))
                    if event.index == BEFORE:
                        reply = replace(reply, feeling=event.feeling)
                elif isinstance(event, GuardTripped):
                    reply = replace(reply, guard=True)
                elif isinstance(event, Done):
                    reply = reply.ended(event)
        except Exception as error:  # whatever the model's own code raises; the app must go on
            told = str(error) if isinstance(error, MLXEmotionError) else f"{type(error).__name__}: {error}"
            line = next(iter(told.splitlines()), "") or type(error).__name__
            reply = so_far()
            reply = replace(reply, text=reply.text.strip(), state="failed", error=line)
        self._save(reply)
        self.inbox.append(Ended(reply, self._unsaved))

    def _save(self, reply: Reply) -> None:
        try:
            self._store.save_reply(self.exchange, reply)
            self._unsaved = None
        except MLXEmotionError as error:
            self._unsaved = str(error)
