"""The conversation that is open, and the one reply that may be under way."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_emotion import (
    Conflict,
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

from .speaking import Ended, Speaking

if TYPE_CHECKING:
    from mlx_emotion import Chat

    from .app import EmotionApp
    from .transcript import ReplyMessage, Transcript

SLOWLY = 3
"""The words are painted so many times for once that the header and the meter are, which are far from them: textual
looks at every widget between two that have changed."""
SHARE, PATIENCE = 0.1, 0.5
"""Most of this thread's time that goes into painting a reply, for a fast model loses as much; and the most seconds
between two paintings all the same."""
REMEMBERED = 100
"""Exchanges of a stored conversation that are given to the model again; its context may hold fewer."""


class Talk:
    """Sends, answers again, edits, opens; stores each thing before it is done.

    ``conversation`` is its id in the store, ``None`` until something is said. ``stale`` is whether the
    chat has to be told the conversation before the next reply; ``waiting`` whether the message in the box
    is to be sent when the model is there.
    """

    store: Store

    def __init__(self, app: EmotionApp) -> None:
        self.app = app
        self.conversation: str | None = None
        self.speaking: Speaking | None = None
        self.stale = False
        self.editing = False
        self.waiting = False
        self._stopping = threading.Event()
        self._unsaved: list[tuple[Exchange, Reply]] = []
        self._message: ReplyMessage | None = None
        self._paintings = 0
        self._painted = self._used = 0.0

    @property
    def transcript(self) -> Transcript:
        return self.app.transcript

    # What may be done now.

    def idle(self) -> bool:
        """Whether no reply is under way; the user is told if one is."""
        if self.speaking is not None:
            self.app.notify("A reply is under way; Esc stops it.", timeout=3)
        return self.speaking is None

    def can_speak(self) -> bool:
        """Whether a reply can be begun; the user is told why not."""
        if not self.idle():
            return False
        if self.app.chat is None:
            loading = self.app.loader.since is not None
            told = "The model is still loading." if loading else "No model; Ctrl+L chooses one."
            self.app.notify(told, timeout=3)
        return self.app.chat is not None

    # A message and its reply.

    def blank(self) -> Reply:
        """A reply about to be made by the model that is loaded, under the feeling that is set."""
        model = self.app.model
        assert model is not None
        pack = model.vectors.path if model.vectors is not None else None
        feeling = str(self.app.feelings.current)
        return Reply(
            feeling=feeling,
            timeline=((0, feeling),),
            model=model.id,
            fingerprint=model.identity.fingerprint,
            pack=Path(pack).stem if pack else None,
        )

    async def send(self, text: str) -> None:
        """Store the message, then answer it. What goes wrong puts the message back into the box."""
        app = self.app
        if app.chat is None and app.loader.since is not None:
            app.box.restore(text)
            self.waiting = True
            app.warn("The model is still loading; your message is sent when it is there. Esc takes that back.")
            return
        if not self.can_speak():
            app.box.restore(text)
            return
        reply = self.blank()
        exchange = Exchange(text).with_reply(reply)
        try:
            self.save_pending()
            if self.editing:
                await self._drop_last()
            await self.add(exchange)
        except MLXEmotionError as error:
            app.box.restore(text)
            app.warn(f"{error}. Your message is back in the box.")
            return
        self.editing = False
        await self.show(exchange, live=True)
        self._speak(exchange, reply, text)

    async def add(self, exchange: Exchange) -> None:
        """Write a new exchange, into a copy where another window has gone on with the conversation."""
        assert self.app.model is not None
        if self.conversation is None:
            self.conversation = self.store.create(self.app.model.id)
        try:
            self.store.add(self.conversation, exchange)
        except Conflict:
            earlier = self.transcript.exchanges
            title = f"{earlier[0].user if earlier else exchange.user} (copy)"
            self.conversation = self.store.fork(self.app.model.id, title, earlier)
            await self.transcript.show(self.store.exchanges(self.conversation), self.app.catalogue)
            self.store.add(self.conversation, exchange)
            self.app.notify("This conversation goes on in another window too; here you are in a copy.", timeout=8)

    async def show(self, exchange: Exchange, live: bool) -> None:
        """Put a new exchange at the end of the transcript."""
        await self.app.query("#welcome").remove()
        self._message = await self.transcript.append(exchange, live)

    async def _drop_last(self) -> None:
        """Take the last exchange out, for its message has been edited."""
        if self.conversation is None or not self.transcript.exchanges:
            return
        self.store.drop(self.conversation, self.transcript.exchanges[-1])
        await self.transcript.pop()
        self.stale = True

    def untold(self) -> list[Exchange] | None:
        """What the chat has to be told before it speaks, if anything; it is taken to be told then."""
        if not self.stale:
            return None
        self.stale = False
        return self.transcript.exchanges[-REMEMBERED - 1 :]

    def _speak(self, exchange: Exchange, reply: Reply, text: str | None) -> None:
        """Answer ``text``, or the last message again without one; on a thread, painted by the app's timer."""
        app, chat, stopping = self.app, self.app.chat, self._stopping
        assert chat is not None
        seed, told = app.seed, self.untold()
        if told and text is not None:
            told = told[:-1]  # the message itself
        stopping.clear()

        def spoken() -> Iterator[Any]:
            if told is not None:
                tell(chat, told, again=text is None)
            events = chat.stream(text, seed=seed) if text is not None else chat.again(seed=seed)
            for event in events:
                yield event
                if stopping.is_set():
                    chat.stop()

        app.feelings.tripped = None
        app.paint("waiting for the load to end…" if app.loader.behind else "…")
        self._paintings = 0
        self.speaking = Speaking(spoken, self.store, exchange, reply)
        app.painting.resume()
        app.run_worker(self.speaking.run, thread=True, group="reply", exit_on_error=False)

    def stop(self) -> None:
        """End the reply under way; what came is kept."""
        self._stopping.set()
        if self.speaking is not None and self.app.chat is not None:
            self.app.chat.stop()

    # Painting the reply under way.

    async def drain(self) -> None:
        """Paint what has come since the last time."""
        speaking, message = self.speaking, self._message
        if speaking is None or not speaking.inbox:
            return
        now, used = time.monotonic(), time.thread_time()
        pause = min(PATIENCE, (used - self._used) / SHARE)
        if now < self._painted + pause and not isinstance(speaking.inbox[-1], Ended):
            return
        self._painted, self._used = now, used
        text: list[str] = []
        thoughts: list[str] = []
        index, ended = -1, None
        while speaking.inbox:
            event = speaking.inbox.popleft()
            if isinstance(event, Token):
                text.append(event.text)
                index = event.index
                if message is not None:
                    message.pieces.append((event.index, event.text))
            elif isinstance(event, Thought):
                thoughts.append(event.text)
                index = event.index
            elif isinstance(event, Reading):
                self.app.panel.meter.take(dict(event.own), dict(event.steered))
                if message is not None:
                    message.readings[event.index] = event
            elif isinstance(event, FeelingChanged):
                self._felt(event)
            elif isinstance(event, GuardTripped):
                self.app.feelings.tripped = event.factor
                self.app.paint()
            elif isinstance(event, Ended):
                ended = event
        self._paintings += 1
        if index >= 0 and self._paintings % SLOWLY == 1:
            self.app.paint_header(f"{index + 1} tokens")
            self.app.panel.meter.refresh()
        if message is not None and message.is_mounted:
            await message.write("".join(text), "".join(thoughts))
        if ended is not None:
            await self._ended(ended)

    def _felt(self, event: FeelingChanged) -> None:
        if self._message is None:
            return
        reply = self._message.reply
        steps = (*reply.timeline, (event.index, event.feeling))
        self._message.reply = replace(reply, timeline=steps, tokens=event.index + 1)
        self._message.describe()

    async def _ended(self, ended: Ended) -> None:
        self.app.painting.pause()
        self.app.panel.meter.refresh()
        reply, transcript = ended.reply, self.transcript
        number = len(transcript.exchanges) - 1
        transcript.update(number, reply)
        if self._message is not None and self._message.is_mounted:
            await self._message.finish(reply)
        self.speaking = None
        if not transcript.is_attached:  # the app was left meanwhile
            return
        # A message without an answer, or with half of one, is not as the chat remembers it.
        self.stale = self.stale or reply.state == "failed" or not reply.text
        if ended.unsaved:
            self._unsaved.append((transcript.exchanges[number], reply))
            self.app.warn(f"{ended.unsaved}. The reply is kept here, and saved with your next message.")
        elif reply.state == "failed":
            self.app.warn(f"The reply failed: {reply.error}. What came is kept; you can go on.")
        elif reply.thinking and not reply.text and reply.state == "length":
            self.app.warn("Only thoughts so far: a larger --max-tokens leaves room for the answer.")
        else:
            self.app.warn("")
        self.app.paint(f"{reply.tokens_per_second:.0f} tok/s" if reply.tokens_per_second else "")

    def save_pending(self) -> None:
        """Store what could not be stored when it happened."""
        while self._unsaved:
            self.store.save_reply(*self._unsaved[0])
            self._unsaved.pop(0)

    # Other replies to what was said.

    async def again(self, same: bool = False) -> None:
        """Answer the last message again, with the feeling set now or with the one that reply had."""
        exchanges = self.transcript.exchanges
        if not exchanges or not self.can_speak():
            return
        last = exchanges[-1]
        if same and last.reply is not None:
            first = last.reply.timeline[0][1] if last.reply.timeline else last.reply.feeling
            if not self.app.feelings.set_named(first):
                return
        reply = self.blank()
        exchange = last.with_reply(reply)
        try:
            self.save_pending()
            self.store.save_reply(exchange, reply)
        except MLXEmotionError as error:
            self.app.warn(str(error))
            return
        number = len(exchanges) - 1
        if not self.transcript.first <= number < self.transcript.last:
            await self.transcript.reveal(number)
        self._message = await self.transcript.replace(number, exchange, live=True)
        self.transcript.anchor()
        self._speak(exchange, reply, None)

    async def variant(self) -> None:
        """Another of the replies that were made to the chosen message."""
        chosen = self.transcript.chosen or self.transcript.latest
        if chosen is None or self.speaking is not None:
            return
        number = chosen.number
        exchange = self.transcript.exchanges[number]
        ids = [r.id for r in exchange.replies]
        if not ids or ids == [exchange.chosen]:
            self.app.notify("There is no other reply; Ctrl+R makes one.", timeout=3)
            return
        at = ids.index(exchange.chosen) if exchange.chosen in ids else -1
        reply = exchange.replies[(at + 1) % len(ids)]
        changed = replace(exchange, chosen=reply.id)
        try:
            self.store.save_reply(changed, reply)
        except MLXEmotionError as error:
            self.app.warn(str(error))
            return
        self.stale = True
        widget = await self.transcript.replace(number, changed)
        if widget is not None:
            widget.focus()

    def edit(self) -> None:
        """Put the last message back into the box; sending it replaces it and its replies."""
        if self.transcript.exchanges and self.can_speak():
            self.editing = True
            self.app.box.put(self.transcript.exchanges[-1].user)
            self.app.warn("Editing your last message: Enter sends it anew, Esc leaves it as it was.")
            self.app.action_message()

    def take_back(self) -> bool:
        """Give up what was begun with a message: waiting for the model, or editing; ``False`` if nothing was."""
        if not (self.waiting or self.editing):
            return False
        if not self.waiting:
            self.editing = False
            self.app.box.put("")
        self.waiting = False
        self.app.warn("")
        return True

    # Other conversations.

    async def new(self) -> None:
        """A new conversation; the old one is stored already."""
        if not self.idle():
            return
        self.conversation = None
        self.stale = True
        self.editing = False
        await self.transcript.show([], self.app.catalogue)
        self.app.action_message()

    async def open(self, conversation: str) -> None:
        """Go on with a stored conversation. Raises ``MLXEmotionError``."""
        exchanges = self.store.exchanges(conversation)
        gc.freeze()
        self.conversation = conversation
        self.stale = True
        self.editing = False
        await self.app.query("#welcome").remove()
        await self.transcript.show(exchanges, self.app.catalogue)
        self.app.box.sent_before = [e.user for e in exchanges]


def tell(chat: Chat, exchanges: list[Exchange], again: bool = False) -> None:
    """Make ``chat`` remember ``exchanges``, as they were felt, and nothing else.

    A message without a reply is left out, but for the last one when it is to be answered ``again``.
    """
    chat.reset()
    for n, exchange in enumerate(exchanges):
        reply = exchange.reply
        if reply is not None and reply.text:
            # The chat is told the answer alone, whose tokens are counted from the end of the thoughts.
            felt = {max(i - reply.thinking_tokens, 0): feeling for i, feeling in reply.timeline}
            chat.add(exchange.user, reply.text, tuple(felt.items()))
        elif again and n == len(exchanges) - 1:
            chat.add(exchange.user, "")
