"""One message under several feelings, side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, SelectionList, Static
from textual.widgets.selection_list import Selection

from mlx_emotion import Done, Emotion, Exchange, Feeling, GuardTripped, MLXEmotionError, Reply, Store, Token

from .dialogs import Dialog
from .looks import blend, felt
from .speaking import finished
from .talk import tell

if TYPE_CHECKING:
    from mlx_emotion import Answer, Chat

    from .app import EmotionApp

MOST = 6
PAINTING = 1 / 15


def ask(app: EmotionApp) -> None:
    """Ask under which feelings the message in the box is to be answered, and do it."""

    async def start(feelings: list[Feeling] | None) -> None:
        if feelings:
            await _open(app, feelings)

    text = app.box.text.strip()
    if not app.talk.can_speak() or app.model is None:
        return
    if not text:
        app.notify("Write a message first; then compare how it is answered.", timeout=4)
    elif not app.model.emotions:
        app.notify("This model has no emotion vectors to compare.", timeout=4)
    else:
        app.push_screen(ChooseFeelings(app.model.emotions, app.catalogue, app.feelings.current), start)


async def _open(app: EmotionApp, feelings: list[Feeling]) -> None:
    """Store the message with its replies to be, and show the screen on which they are written."""
    talk, chat = app.talk, app.chat
    assert chat is not None
    replies = [replace(talk.blank(), feeling=str(f), timeline=((0, str(f)),)) for f in feelings]
    exchange = Exchange(app.box.text.strip(), tuple(replies))
    try:
        talk.save_pending()
        await talk.add(exchange)
    except MLXEmotionError as error:
        app.warn(f"{error}. Your message is still in the box.")
        return
    app.box.put("")

    async def closed(result: tuple[Exchange, str | None] | None) -> None:
        assert result is not None
        ended, problem = result
        if problem:
            app.warn(problem)
        if ended.reply is None:
            try:
                assert talk.conversation is not None
                talk.store.drop(talk.conversation, ended)
            except MLXEmotionError as error:
                app.warn(str(error))
            app.box.restore(ended.user)
            return
        talk.stale = True
        await talk.show(ended, live=False)
        app.feelings.set_named(ended.reply.feeling)

    screen = CompareScreen(chat, talk.store, exchange, feelings, app.catalogue, talk.untold(), app.seed)
    app.push_screen(screen, closed)


class ChooseFeelings(Dialog):
    """Which feelings to compare: neutral and up to five others. Closes with them."""

    BINDINGS = [Binding("enter", "start", "Compare", priority=True)]

    def __init__(self, names: Sequence[str], catalogue: Mapping[str, Emotion], feeling: Feeling) -> None:
        super().__init__()
        self.catalogue = catalogue
        self.offered = [Feeling()]
        if feeling.weights and str(feeling) not in names:
            self.offered.append(feeling)
        self.offered += [Feeling.of(n, catalogue) for n in names]

    def compose(self) -> ComposeResult:
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
        tail = f"at most {MOST}" if chosen > MOST else "Enter compares · Space chooses · Esc closes"
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
        self.query_one(".body", Static).update(Text(self.text.lstrip()))
        self.scroll_end(animate=False)

    def end(self, reply: Reply) -> None:
        self.query_one(".body", Static).update(Text(reply.text))
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
    """All replies streaming at once. Closes with (the exchange with its choice, a problem or ``None``)."""

    BINDINGS = [
        Binding("escape", "stop", "Stop / back", priority=True),
        Binding("enter", "take", "Go on with this one"),
        Binding("left", "app.focus_previous", "←", show=False),
        Binding("right", "app.focus_next", "→", show=False),
        *(Binding(str(n), f"take({n - 1})", f"Take {n}", show=False) for n in range(1, MOST + 1)),
    ]

    def __init__(
        self,
        chat: Chat,
        store: Store,
        exchange: Exchange,
        feelings: Sequence[Feeling],
        catalogue: Mapping[str, Emotion],
        told: list[Exchange] | None,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.chat, self.store, self.exchange = chat, store, exchange
        self.feelings, self.catalogue, self.told, self.seed = feelings, catalogue, told, seed
        self.inbox: deque[Answer | str] = deque()
        self.running = True
        self._stop = False
        self._problem: str | None = None

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
        try:
            if self.told is not None:
                tell(self.chat, self.told)
            for answer in self.chat.compare(self.exchange.user, self.feelings, self.seed):
                self.inbox.append(answer)
                if self._stop and isinstance(answer.event, Token):
                    break
        except Exception as error:  # whatever the model's own code raises
            self.inbox.append(str(error) or type(error).__name__)
        self.inbox.append("")

    def _drain(self) -> None:
        texts: dict[int, list[str]] = {}
        while self.inbox:
            item = self.inbox.popleft()
            if isinstance(item, str):
                self._over(item)
            elif isinstance(item.event, Token):
                texts.setdefault(item.column, []).append(item.event.text)
            elif isinstance(item.event, GuardTripped):
                self.columns[item.column].tell(f"looping: weakened to {item.event.factor:.0%}")
            elif isinstance(item.event, Done):
                self.columns[item.column].more("".join(texts.pop(item.column, [])))
                self._end(item.column, finished(self.exchange.replies[item.column], item.event))
        for column, pieces in texts.items():
            self.columns[column].more("".join(pieces))

    def _end(self, column: int, reply: Reply) -> None:
        replies = list(self.exchange.replies)
        replies[column] = reply
        self.exchange = replace(self.exchange, replies=tuple(replies))
        self.columns[column].end(reply)

    def _over(self, problem: str) -> None:
        """Every reply has ended, or the comparison has."""
        if problem:
            self._problem = problem
            self.notify(problem, severity="error", markup=False)
            return
        self.running = False
        for n, reply in enumerate(self.exchange.replies):
            if reply.state == "writing":
                text = self.columns[n].text.strip()
                state = "failed" if self._problem else "cancelled"
                self._end(n, replace(reply, text=text, state=state, error=self._problem))
        try:
            for reply in self.exchange.replies:
                self.store.save_reply(self.exchange, reply)
        except MLXEmotionError as error:
            self._problem = str(error)
            self.notify(str(error), severity="error", markup=False)

    def action_stop(self) -> None:
        """Stop the replies; when all have ended, leave without choosing."""
        if self.running:
            self._stop = True
        else:
            self.dismiss((replace(self.exchange, chosen=None), self._problem))

    def action_take(self, column: int | None = None) -> None:
        """Go on with one of the replies."""
        if self.running:
            self.notify("Still writing; Esc stops it.", timeout=3)
            return
        if column is None:
            column = next((c.number for c in self.columns if c.has_focus), 0)
        if column >= len(self.columns) or not self.exchange.replies[column].text:
            return
        reply = self.exchange.replies[column]
        try:
            self.store.save_reply(self.exchange, reply)
        except MLXEmotionError as error:
            self._problem = str(error)
        self.dismiss((self.exchange.with_reply(reply), self._problem))
