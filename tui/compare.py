"""One message under several feelings, side by side."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.markdown import Markdown as RichMarkdown
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, SelectionList, Static
from textual.widgets.selection_list import Selection

from mlx_emotion import Done, Emotion, Exchange, Feeling, GuardTripped, MLXEmotionError, Reply, Token

from .dialogs import Dialog
from .looks import blend, clean, felt
from .panel import binding
from .speaking import SAVE_EVERY
from .talk import Talk, tell

if TYPE_CHECKING:
    from mlx_emotion import Answer, Chat

    from .app import EmotionApp

MOST = 6
PAINTING = 1 / 15


def ask(app: EmotionApp) -> None:
    """Ask under which feelings the message in the box is to be answered, and do it."""

    async def start(feelings: list[Feeling] | None) -> None:
        if not feelings or not await _open(app, feelings):
            app.talk.comparing = False
            app.take_next()

    text = app.box.text.strip()
    if not app.talk.can_speak() or app.model is None:
        return
    if not text:
        app.notify("Write a message first; then compare how it is answered.", timeout=4)
    elif not app.model.emotions:
        app.notify("This model has no emotion vectors to compare.", timeout=4)
    else:
        app.talk.comparing = True
        app.push_screen(ChooseFeelings(app.model.emotions, app.catalogue, app.feelings.current), start)


async def _open(app: EmotionApp, feelings: list[Feeling]) -> bool:
    """Store the message with its replies to be, and show the screen on which they are written; ``False`` if it fails.

    A message that was being edited is compared as a new one.
    """
    talk, chat = app.talk, app.chat
    assert chat is not None
    seed = secrets.randbelow(2**31) if app.seed is None else app.seed
    replies = [replace(talk.blank(), feeling=str(f), timeline=((0, str(f)),), seed=seed) for f in feelings]
    text = clean(app.box.text).strip()
    exchange = Exchange(text, tuple(replies))
    try:
        talk.save_pending(going_on=True)
        await talk.add(exchange)
    except MLXEmotionError as error:
        app.warn(f"{error}. Your message is still in the box.")
        return False
    if app.box.sent_before[-1:] != [text]:
        app.box.sent_before.append(text)
    app.box.put(talk.end_editing())

    async def closed(ended: Exchange | None) -> None:
        assert ended is not None
        conversation = talk.conversation
        assert conversation is not None
        problem = next((r.error for r in ended.replies if r.error), "")
        reply = None if ended.undecided else ended.reply
        stored = ended
        try:
            if reply is None:
                talk.unsaved.clear()  # all of this comparison: the others were stored before it began
                talk.store.drop(conversation, ended)
                if not talk.transcript.exchanges:  # it was begun for this comparison, and is gone with it
                    talk.conversation = None
            else:
                talk.save_pending(going_on=True)
                stored = await talk.choose(ended, reply)
        except MLXEmotionError as error:
            problem = str(error)
            if reply is not None:
                talk.unchosen = (conversation, ended, reply)
        talk.stale = talk.stale or bool(problem) or reply is not None
        if reply is None:
            app.box.restore(ended.user)
        else:
            if stored is ended:  # a copy is shown as a whole
                await talk.show(ended, live=False)
            app.feelings.set_named(reply.feeling)
        talk.comparing = False
        app.take_next()
        if problem:
            app.warn(problem)

    screen = CompareScreen(chat, talk, exchange, feelings, app.catalogue, seed)
    app.push_screen(screen, closed)
    return True


class ChooseFeelings(Dialog):
    """Which feelings to compare: neutral and up to five others. Closes with them."""

    BINDINGS = [binding("compare.start", "start", show=True, label="Compare", priority=True)]

    def __init__(self, names: Sequence[str], catalogue: Mapping[str, Emotion], feeling: Feeling) -> None:
        super().__init__()
        self.catalogue = catalogue
        self.offered = [Feeling()]
        if feeling.weights and str(feeling) not in names:
            self.offered.append(feeling)
        self.offered += [Feeling.of(n, catalogue) for n in names]

    def content(self) -> ComposeResult:
        with Vertical():
            yield Static("Compare", classes="heading")
            yield SelectionList[int](
                *(Selection(felt(f.weights, self.catalogue), n, n < MOST) for n, f in enumerate(self.offered))
            )
            yield Static("", id="hint", classes="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one(SelectionList).focus()
        self._count()

    def on_selection_list_selected_changed(self) -> None:
        self._count()

    def _count(self) -> None:
        chosen = len(self.query_one(SelectionList).selected)
        tail = f"at most {MOST}" if chosen > MOST else "Space or a click chooses"
        self.query_one("#hint", Static).update(f"{chosen} chosen · {tail}")

    def action_start(self) -> None:
        chosen = sorted(self.query_one(SelectionList).selected)
        if 1 <= len(chosen) <= MOST:
            self.dismiss([self.offered[n] for n in chosen])


class Column(VerticalScroll, can_focus=True):
    """The reply under one feeling."""

    def __init__(self, number: int, feeling: Feeling, catalogue: Mapping[str, Emotion]) -> None:
        super().__init__()
        self.number, self.feeling, self.catalogue = number, feeling, catalogue
        self.text = ""

    def compose(self) -> ComposeResult:
        yield Static(classes="body", markup=False)
        yield Static(classes="note", markup=False)

    def on_mount(self) -> None:
        self.border_title = f"{self.number + 1} {self.feeling}"
        self.styles.border_title_color = blend(self.feeling.weights, self.catalogue)

    def more(self, text: str) -> None:
        self.text += text
        self.query_one(".body", Static).update(Text(clean(self.text).lstrip()))
        self.scroll_end(animate=False)

    def end(self, reply: Reply) -> None:
        self.query_one(".body", Static).update(RichMarkdown(clean(reply.text)))
        note = "1 token" if reply.tokens == 1 else f"{reply.tokens} tokens"
        if reply.state not in ("stop", "length"):
            note += " · ended: it was looping" if reply.state == "loop" else f" · {reply.state}"
        elif reply.guard:
            note += " · weakened: it began to loop"
        self.tell(note)

    def tell(self, note: str) -> None:
        """A line below the text."""
        self.query_one(".note", Static).update(note)


class CompareScreen(Screen):
    """All replies streaming at once. Closes with the exchange and its choice."""

    BINDINGS = [
        binding("compare.stop", "stop", show=True, label="Stop / back", priority=True),
        binding("compare.take", "take", show=True, label="Go on with this one"),
        binding("compare.left", "app.focus_previous"),
        binding("compare.right", "app.focus_next"),
        *(Binding(str(n), f"take({n - 1})", f"Take {n}", show=False) for n in range(1, MOST + 1)),
    ]

    def __init__(
        self,
        chat: Chat,
        talk: Talk,
        exchange: Exchange,
        feelings: Sequence[Feeling],
        catalogue: Mapping[str, Emotion],
        seed: int,
    ) -> None:
        super().__init__()
        self.chat, self.talk, self.exchange = chat, talk, exchange
        self.feelings, self.catalogue, self.seed = feelings, catalogue, seed
        self.told = talk.untold()
        self.inbox: deque[Answer | tuple[int, Reply] | None] = deque()
        self.running = True
        self._stop = False

    def compose(self) -> ComposeResult:
        yield Static(Text(self.exchange.user, overflow="ellipsis"), id="asked")
        with Horizontal(id="columns"):
            for n, feeling in enumerate(self.feelings):
                yield Column(n, feeling, self.catalogue)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.columns = list(self.query(Column))
        self.columns[0].focus()
        self.set_interval(PAINTING, self._drain)
        self.run_worker(self._read, thread=True, group="compare", exit_on_error=False)

    def _read(self) -> None:
        """Store the replies as they grow and hand them to the screen. On a worker thread; never raises."""
        replies, error, saved = list(self.exchange.replies), None, time.monotonic()

        def end(column: int, reply: Reply) -> None:
            replies[column] = reply
            if not self._save(reply):
                self.talk.unsaved.append((self.exchange, reply))
            self.inbox.append((column, reply))

        try:
            if self.told is not None:
                tell(self.chat, self.told)
            answers = self.chat.compare(self.exchange.user, self.feelings, self.seed)
            if self._stop:
                self.chat.stop()
            for answer in answers:
                column, event = answer.column, answer.event
                if isinstance(event, Done):
                    end(column, replies[column].ended(event))
                else:
                    self.inbox.append(answer)
                    if isinstance(event, Token):
                        reply = replies[column]
                        replies[column] = replace(reply, text=reply.text + event.text, tokens=event.index + 1)
                if self._stop:
                    break
                if time.monotonic() - saved >= SAVE_EVERY:
                    for reply in replies:
                        if reply.state == "writing" and reply.text:
                            self._save(reply)
                    saved = time.monotonic()
        except Exception as problem:  # whatever the model's own code raises
            error = str(problem) or type(problem).__name__
        for column, reply in enumerate(replies):
            if reply.state == "writing":
                state = "failed" if error else "cancelled"
                end(column, replace(reply, text=reply.text.strip(), state=state, error=error))
        self.inbox.append(None)

    def _save(self, reply: Reply) -> bool:
        try:
            self.talk.store.save_reply(self.exchange, reply)
        except MLXEmotionError:
            return False
        return True

    def _drain(self) -> None:
        texts: dict[int, list[str]] = {}
        while self.inbox:
            item = self.inbox.popleft()
            if item is None:
                self._over()
            elif isinstance(item, tuple):
                column, reply = item
                texts.pop(column, None)
                replies = list(self.exchange.replies)
                replies[column] = reply
                self.exchange = replace(self.exchange, replies=tuple(replies))
                self.columns[column].end(reply)
            elif isinstance(item.event, Token):
                texts.setdefault(item.column, []).append(item.event.text)
            elif isinstance(item.event, GuardTripped):
                self.columns[item.column].tell(f"looping: weakened to {item.event.factor:.0%}")
        for column, pieces in texts.items():
            self.columns[column].more("".join(pieces))

    def _over(self) -> None:
        """Every reply has ended."""
        self.running = False
        if error := next((r.error for r in self.exchange.replies if r.error), None):
            self.notify(error, severity="error", markup=False)
        if self.talk.unsaved:
            told = "Not everything could be saved; it will be when you go on with a reply."
            self.notify(told, severity="error", markup=False)

    def on_unmount(self) -> None:
        self._stop = True  # the app may be left while the model speaks

    def action_stop(self) -> None:
        """Stop the replies; when all have ended, leave without choosing."""
        if self.running:
            self._stop = True
            self.chat.stop()
        else:
            self.dismiss(replace(self.exchange, chosen=None))

    def action_take(self, column: int | None = None) -> None:
        """Go on with one of the replies."""
        if self.running:
            self.notify("Still writing; Esc stops it.", timeout=3)
            return
        if column is None:
            column = next((c.number for c in self.columns if c.has_focus), 0)
        if column >= len(self.columns) or not self.exchange.replies[column].text:
            return
        self.dismiss(self.exchange.with_reply(self.exchange.replies[column]))
