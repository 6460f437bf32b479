"""Keys, pastes and clicks act one after another, also those that come faster than they are dealt with."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from textual import events
from textual.app import App, ScreenStackError
from textual.dom import DOMNode
from textual.errors import NoWidget
from textual.message_pump import MessagePump

PATIENCE = 0.5
"""Seconds that one is waited for at most: a part of the app may have gone, or have much else to do."""
ORDERED = (events.Key, events.Paste, events.MouseDown, events.MouseUp)


class InOrder(App[None]):
    """An app in which what the user does waits for what they did before.

    Textual hands a key to what has the focus when it arrives, while the key before may still be on its way through
    the widgets and about to move the focus: what was typed after Tab then went to where Tab came from.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[events.Event] = deque()
        self._turn: events.Event | None = None  # the one under way, or the next, on its way back to here
        self._stays = False
        self._free: list[events.Event] = []  # characters on their way that wait for nothing
        self._settling: asyncio.Task[None] | None = None

    def focus_stays(self) -> None:
        """What is under way leaves the focus where it is: characters need not wait for its end."""
        self._stays = True
        while self._waiting and _writes(self._waiting[0]):
            self._free.append(self._waiting.popleft())
            self.post_message(self._free[-1])

    async def on_event(self, event: events.Event) -> None:
        if not isinstance(event, ORDERED) or event.is_forwarded:
            await super().on_event(event)
            return
        if self._turn is not None and self._turn is not event:
            if event in self._free or (self._stays and not self._waiting and _writes(event)):
                await super().on_event(event)
            else:
                self._waiting.append(event)
            return
        self._free.clear()
        self._turn, self._stays, target = event, False, self._target(event)
        try:
            await super().on_event(event)
        finally:
            self._settling = asyncio.create_task(self._settle(target))

    def _target(self, event: events.Event) -> DOMNode:
        """Where ``event`` goes first."""
        if isinstance(event, events.MouseEvent):
            with contextlib.suppress(NoWidget):
                return self.mouse_captured or self.get_widget_at(*event.screen_offset)[0]
            return self.screen
        return self.focused or self.screen

    async def _settle(self, target: DOMNode) -> None:
        """Wait until an event has gone through ``target`` and what is around it, then let the next one go."""
        try:
            with contextlib.suppress(asyncio.TimeoutError, ScreenStackError):  # the app is being left
                await asyncio.wait_for(self._passed_through(target), PATIENCE)
        finally:
            self._turn = self._waiting.popleft() if self._waiting else None
            if self._turn is not None:
                self.post_message(self._turn)

    async def _passed_through(self, target: DOMNode) -> None:
        around = list(target.ancestors_with_self)
        for node in (*around, *around):  # the second time for what was told on the way
            await _passed(node)
        if self.screen not in around:  # a new one, that is to find its focus
            await _passed(self.screen)


def _writes(event: events.Event) -> bool:
    return isinstance(event, events.Key) and event.is_printable


async def _passed(node: MessagePump) -> None:
    """Wait until ``node`` has dealt with all that waits there now."""
    done = asyncio.Event()
    if node.is_running and node.call_later(done.set):
        await done.wait()
