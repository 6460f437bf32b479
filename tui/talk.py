"""The conversation that is open, and the one reply that may be under way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
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

from .loading import tidy
from .speaking import BEFORE, Ended, Speaking, stepped

if TYPE_CHECKING:
    from mlx_emotion import Chat

    from .app import EmotionApp
    from .transcript import ReplyMessage, Transcript

SLOWLY = 3
"""The words are painted so many times for once that the header and the meter are, which are far from them: textual
looks at every widget between two that have changed."""
SHARE, PATIENCE = 0.05, 0.5
"""Most of this thread's time that goes into painting a reply, for a fast model loses twice as much; and the most
seconds between two paintings all the same."""
REMEMBERED = 100
"""Exchanges of a stored conversation that are given to the model again; its context may hold fewer."""


class Talk:
    """Sends, answers again, edits, opens; stores each thing before it is done.

    ``conversation`` is its id in the store, ``None`` until something is said. ``stale`` is whether the
    chat has to be told the conversation before the next reply; ``waiting`` whether the message in the box
    is to be sent when the model is there; ``comparing`` whether a comparison is under way or being chosen.
    ``unsaved`` are the replies that could not be stored yet, ``unchosen`` the choice that could not.
    """

    store: Store

    def __init__(self, app: EmotionApp) -> None:
        self.app = app
        self.conversation: str | None = None
        self.speaking: Speaking | None = None
        self.stale = False
        self.editing = False
        self.waiting = False
        self._waits = ""  # what is to be sent then
        self.comparing = False
        self.unsaved: list[tuple[Exchange, Reply]] = []
        self.unchosen: tuple[str, Exchange, Reply] | None = None
        self._draft = ""  # what was in the box before the editing began
        self._stopping = threading.Event()
        self._message: ReplyMessage | None = None
        self._paintings = 0
        self._painted = self._used = 0.0
        self._began: tuple[int, float] | None = None  # the first token that was painted, and when

    @property
    def transcript(self) -> Transcript:
        return self.app.transcript

    @property
    def last_said(self) -> str:
        """The last reply's text, or what there is of it so far."""
        if self.speaking is not None and self._message is not None:
            return self._message.source
        return next((e.reply.text for e in reversed(self.transcript.exchanges) if e.reply is not None), "")

    # What may be done now.

    @property
    def busy(self) -> bool:
        """Whether the model in use is needed until something has ended."""
        return self.speaking is not None or self.comparing

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
        return Reply.begun(model, str(self.app.feelings.current), self.app.options.get("scale"))

    async def send(self, text: str) -> None:
        """Store the message, then answer it. What goes wrong puts the message back into the box."""
        app = self.app
        if app.chat is None and app.loader.since is not None:
            begun = bool(app.box.text)
            app.box.restore(text)
            if begun:  # what is half-written does not go with it
                app.warn("The model is still loading. Your message is back in the box, before what you wrote since.")
                return
            self.waiting, self._waits = True, app.box.text
            app.warn("The model is still loading; your message is sent when it is there. Esc takes that back.")
            app.refresh_bindings()
            return
        if not self.can_speak():
            app.box.restore(text)
            return
        reply = self.blank()
        exchange = Exchange(text).with_reply(reply)
        try:
            self.save_pending(going_on=True)
            await self.add(exchange, self.transcript.exchanges[-1] if self.editing else None)
        except MLXEmotionError as error:
            app.box.restore(text)
            app.warn(f"{error}. Your message is back in the box.")
            return
        if draft := self.end_editing():
            app.box.restore(draft)
        await self.show(exchange, live=True)
        self._speak(exchange, reply, text)

    def typed(self) -> None:
        """The box has changed: a message that waited for the model is not to go half-written."""
        if self.waiting and self.app.box.text != self._waits:
            self.take_back()
            self.app.warn("You have changed your message, so it is not sent by itself any more; Enter sends it.")

    def send_waiting(self) -> None:
        """The model is there: send the message that has waited for it."""
        self.typed()
        if self.waiting:
            self.waiting = False
            self.app.box.action_send()

    async def add(self, exchange: Exchange, edited: Exchange | None = None) -> None:
        """Write a new exchange, in the place of the last one if that is being ``edited``.

        Where another window has gone on with the conversation, into a copy of what is here.
        """
        assert self.app.model is not None
        try:
            if self.conversation is None:
                self.conversation = self.store.fork(self.app.model.id, "", (), exchange)
            else:
                self.store.add(self.conversation, exchange, edited)
        except Conflict:
            earlier = [e for e in self.transcript.exchanges if e is not edited]
            await self._copy(self.app.model.id, earlier, exchange)
            self.editing = False  # the copy is without it
        else:
            if edited is not None:
                await self.transcript.pop()
        self.stale = self.stale or edited is not None

    async def choose(self, exchange: Exchange, reply: Reply) -> Exchange:
        """Write that ``reply`` is the one that counts of an exchange; returns that as it is stored now.

        Where another window has gone on with the conversation, in a copy of what is here.
        """
        assert self.conversation is not None
        try:
            self.store.choose(self.conversation, exchange, reply)
        except Conflict:
            exchanges = self.transcript.exchanges
            number = next((n for n, e in enumerate(exchanges) if e.id == exchange.id), len(exchanges))
            await self._copy(reply.model, [*exchanges[:number], exchange, *exchanges[number + 1 :]])
            return self.transcript.exchanges[number]
        return exchange

    async def _copy(self, model: str, exchanges: list[Exchange], added: Exchange | None = None) -> None:
        """Go on in a copy, which has ``exchanges`` and then ``added``, that is not shown yet."""
        first = (*exchanges, added)[0]
        assert first is not None
        self.conversation = self.store.fork(model, f"{first.user} (copy)", exchanges, added)
        copied = self.store.exchanges(self.conversation)[: len(exchanges)]
        await self._show_all(copied)
        told = "This conversation was changed in another window too; here you are in a copy."
        self.app.notify(told, timeout=8)

    async def _show_all(self, exchanges: list[Exchange]) -> None:
        """Put another conversation in the place of what is shown, and go to the message box."""
        await self.app.query("#welcome").remove()
        await self.transcript.show(exchanges, self.app.catalogue)
        self.app.action_message()

    async def show(self, exchange: Exchange, live: bool) -> None:
        """Put a new exchange at the end of the transcript."""
        await self.app.query("#welcome").remove()
        self._message = await self.transcript.append(exchange, live)

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
        if seed is not None and text is None:  # with the same one it would say the same again
            seed = (seed + len(exchange.replies) - 1) % 2**63
        if told and text is not None:
            told = told[:-1]  # the message itself
        stopping.clear()

        def spoken() -> Iterator[Any]:
            if told is not None:
                tell(chat, told, again=text is None)
            now = chat.feeling
            if str(now) != reply.feeling:  # changed while the chat was told, or a load was waited for
                yield FeelingChanged(str(now), now.weights, BEFORE)
            events = chat.stream(text, seed=seed) if text is not None else chat.again(seed=seed)
            if stopping.is_set():
                chat.stop()
            for event in events:
                yield event
                if stopping.is_set():
                    chat.stop()

        app.feelings.tripped = None
        app.paint("waiting for the load to end…" if app.loader.behind else "…")
        app.panel.meter.clear()
        self._paintings, self._began = 0, None
        self.speaking = Speaking(spoken, self.store, exchange, reply)
        app.painting.resume()
        app.refresh_bindings()
        app.run_worker(self.speaking.run, thread=True, group="reply", exit_on_error=False)

    def stop(self) -> None:
        """End the reply under way; what came is kept."""
        self._stopping.set()
        if self.speaking is not None and self.app.chat is not None:
            self.app.chat.stop()

    def abandon(self) -> None:
        """Store what came of a reply that does not end in time, as when a load keeps the engine busy."""
        if self.speaking is None or self._message is None:
            return
        exchange, reply = self.speaking.exchange, replace(self._message.reply, text=self.last_said, state="cancelled")
        try:
            self.store.save_reply(exchange, reply)
        except MLXEmotionError:
            self.unsaved.append((exchange, reply))

    # Painting the reply under way.

    async def drain(self) -> None:
        """Paint what has come since the last time."""
        speaking, message = self.speaking, self._message
        if speaking is None or not speaking.inbox:
            return
        if message is not None and not message.is_attached:  # the app is being left
            message = self._message = None
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
        if index >= 0 and self._began is None:
            self._began = index, now
        if self._began is not None and index >= 0 and self._paintings % SLOWLY == 1:
            first, since = self._began
            speed = f" · {(index - first) / (now - since):.0f} tok/s" if index > first else ""
            self.app.paint_header(f"{index + 1} tokens{speed}")
            self.app.panel.meter.refresh()
        if message is not None:
            message.write("".join(text), "".join(thoughts))
        if ended is not None:
            await self._ended(ended)

    def _felt(self, event: FeelingChanged) -> None:
        if self._message is None:
            return
        reply = self._message.reply
        steps = stepped(reply.timeline, event)
        self._message.reply = replace(reply, timeline=steps, tokens=max(event.index + 1, 0))
        self._message.describe()

    async def _ended(self, ended: Ended) -> None:
        self.app.painting.pause()
        self.app.panel.meter.refresh()
        reply, transcript = ended.reply, self.transcript
        number = len(transcript.exchanges) - 1
        transcript.update(number, reply)
        if self._message is not None and self._message.is_attached:
            self._message.finish(reply)
        await transcript.unmount_hidden()
        self.speaking = None
        if ended.unsaved:
            self.unsaved.append((transcript.exchanges[number], reply))
        if not transcript.is_attached:  # the app was left meanwhile
            return
        # A message without an answer, or with half of one, is not as the chat remembers it.
        self.stale = self.stale or reply.state == "failed" or not reply.text
        self.app.warn("")
        problem = "" if reply.text or reply.thinking else await self._back(number)
        self.app.refresh_bindings()
        self.app.take_next()
        if ended.unsaved or problem:
            self.app.warn(f"{ended.unsaved or problem}. The reply is kept here, and saved with your next message.")
        elif reply.state == "failed":
            kept = " What came is kept; you can go on." if reply.text else ""
            self.app.warn(f"The reply failed: {reply.error}.{kept}")
        elif reply.thinking and not reply.text and reply.state == "length":
            self.app.warn("Only thoughts so far: a larger --max-tokens leaves room for the answer.")
        self.app.paint(f"{reply.tokens_per_second:.0f} tok/s" if reply.tokens_per_second else "")

    async def _back(self, number: int) -> str:
        """A reply ended with nothing said: the one before counts again. Returns what kept that from being stored."""
        exchange = self.transcript.exchanges[number]
        before = next((r for r in reversed(exchange.replies) if r.text), None)
        if before is None or self.conversation is None:
            return ""
        changed, problem = replace(exchange, chosen=before.id), ""
        try:
            changed = await self.choose(changed, before)
        except MLXEmotionError as error:
            self.unchosen, problem = (self.conversation, changed, before), str(error)
        await self.transcript.replace(number, changed)
        return problem

    def save_pending(self, going_on: bool = False) -> None:
        """Store what could not be stored when it happened.

        What has no place in the file any more is given up when ``going_on``: the copy that is made then has it.
        """
        while self.unsaved:
            try:
                self.store.save_reply(*self.unsaved[0])
            except Conflict:
                if not going_on:
                    raise
            self.unsaved.pop(0)
        if self.unchosen is not None:
            with contextlib.suppress(Conflict):  # the other window's choice counts there, this one's in the copy
                self.store.choose(*self.unchosen)
            self.unchosen = None

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
            self.save_pending(going_on=True)
            exchange = await self.choose(exchange, reply)
        except MLXEmotionError as error:
            self.app.warn(str(error))
            return
        if self.editing:
            self.take_back()
        reply = exchange.reply or reply  # a copy has an id of its own
        number = len(exchanges) - 1
        if not self.transcript.first <= number < self.transcript.last:
            await self.transcript.reveal(number)
        self._message = await self.transcript.replace(number, exchange, live=True)
        self.transcript.anchor()
        self._speak(exchange, reply, None)

    async def variant(self) -> None:
        """Another of the replies that were made to the chosen message, or to the last."""
        chosen = self.transcript.chosen
        if not self.transcript.exchanges or self.speaking is not None:
            return
        number = chosen.number if chosen is not None else len(self.transcript.exchanges) - 1
        exchange = self.transcript.exchanges[number]
        ids = [r.id for r in exchange.replies]
        if len(ids) < 2:
            self.app.notify("There is no other reply; Ctrl+R makes one.", timeout=3)
            return
        at = ids.index(exchange.reply.id) if exchange.reply is not None else -1
        reply = exchange.replies[(at + 1) % len(ids)]
        changed = replace(exchange, chosen=reply.id)
        try:
            self.save_pending(going_on=True)
            changed = await self.choose(changed, reply)
        except MLXEmotionError as error:
            self.app.warn(str(error))
            return
        self.stale = True
        widget = await self.transcript.replace(number, changed)
        if widget is not None:
            widget.focus()
        else:  # it was scrolled away
            await self.transcript.reveal(number)

    def edit(self) -> None:
        """Put the last message back into the box; sending it replaces it and its replies."""
        if self.transcript.exchanges and self.can_speak():
            if not self.editing:
                self._draft = self.app.box.text
            self.editing = True
            self.app.box.put(self.transcript.exchanges[-1].user)
            self.app.warn("")  # says that it is edited
            self.app.action_message()
            self.app.refresh_bindings()

    def end_editing(self) -> str:
        """Editing is over; returns what was in the box before it began."""
        draft, self._draft, self.editing = self._draft, "", False
        return draft

    def take_back(self) -> bool:
        """Give up what was begun with a message: waiting for the model, or editing; ``False`` if nothing was."""
        if not (self.waiting or self.editing):
            return False
        if not self.waiting:
            self.app.box.put(self.end_editing())
        self.waiting = False
        self.app.warn("")
        self.app.refresh_bindings()
        return True

    # Other conversations.

    async def new(self) -> None:
        """A new conversation; the old one is stored already."""
        if not self.idle():
            return
        self.conversation = None
        self._leave()
        await self.transcript.show([], self.app.catalogue)
        self.app.action_message()

    def _leave(self) -> None:
        """The chat knows another conversation; what was edited and what was read are not in this one."""
        self.stale = True
        self.app.panel.meter.clear()
        self.app.finder.begin()
        if self.waiting:
            self.take_back()
        if self.editing:
            self.app.box.put(self.end_editing())
            self.app.warn("")

    async def open(self, conversation: str) -> None:
        """Go on with a stored conversation. Raises ``MLXEmotionError``."""
        self.save_pending(going_on=True)  # what is read must be all that was said
        exchanges = self.store.exchanges(conversation)
        self.conversation = conversation
        self._leave()
        await self._show_all(exchanges)
        tidy()  # of the messages that were shown before; and nothing pauses for these while one scrolls
        self.app.box.remember([e.user for e in exchanges])
        if any(e.undecided for e in exchanges):
            told = "Where a comparison was left without a choice, its first reply is shown; v goes through them."
            self.app.notify(told, timeout=8)


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
