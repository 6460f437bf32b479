"""The conversation: messages, replies that stream, and a window that keeps long conversations quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.color import Color
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from mlx_emotion import Emotion, Exchange, Reading, Reply

from .looks import blend, colour_of, felt, parse, timeline

PAGE = 6
"""Exchanges mounted at once when the window moves."""
WINDOW = 24
"""Exchanges kept mounted; the others are mounted when one scrolls to them."""
TIMELINE = 24
NOTES = {
    "writing": "cut off: the program ended while this was being written",
    "cancelled": "stopped",
    "length": "ended at the length limit",
    "loop": "ended by the guard: it was looping",
}


class UserMessage(Static, can_focus=True):
    """A message of the user's."""

    def __init__(self, text: str) -> None:
        super().__init__(Text(text, no_wrap=False), classes="message user", markup=False)
        self.source = text


class ReplyMessage(Vertical, can_focus=True):
    """A reply: what was felt on top, the text, and how it ended."""

    def __init__(self, reply: Reply, catalogue: Mapping[str, Emotion], others: int = 0) -> None:
        super().__init__(classes="message reply")
        self.reply, self.catalogue, self.others = reply, catalogue, others
        self.pieces: list[str] = []
        self.readings: dict[int, Reading] = {}
        self.live = False
        self._stream: MarkdownStream | None = None

    @property
    def source(self) -> str:
        return self.reply.text

    def compose(self) -> ComposeResult:
        yield Static(classes="head")
        yield Markdown(self.reply.text if not self.live else "", open_links=False)
        yield Static(classes="words")
        yield Static(classes="note")

    def on_mount(self) -> None:
        self.query_one(".words").display = False
        self.describe()

    def describe(self) -> None:
        """Paint the head and the note."""
        reply, catalogue = self.reply, self.catalogue
        steps = reply.timeline or ((0, reply.feeling),)
        last = parse(steps[-1][1], catalogue)
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append("● ", blend(last.weights, catalogue))
        if len(steps) > 1:
            for n, (_, spec) in enumerate(steps[-3:]):
                head.append(" → " if n or len(steps) > 3 else "", "dim")
                head.append_text(felt(parse(spec, catalogue).weights, catalogue))
            head.append("  ")
            head.append_text(timeline(steps, reply.tokens, TIMELINE, catalogue))
        else:
            head.append_text(felt(last.weights, catalogue))
        if self.others:
            head.append(f"   {self.others + 1} replies made", "dim")
        self.query_one(".head", Static).update(head)
        self.styles.border_left = ("outer", blend(last.weights, catalogue))
        note = "" if self.live else NOTES.get(reply.state, "")
        if reply.state == "failed":
            note = f"failed: {reply.error}"
        elif reply.guard:
            note = f"{note}{'; ' if note else ''}the guard weakened the feeling: it began to loop"
        widget = self.query_one(".note", Static)
        widget.update(Text(note, "italic"))
        widget.display = bool(note)

    @property
    def markdown(self) -> Markdown:
        return self.query_one(Markdown)

    async def write(self, text: str) -> None:
        """More of a reply under way."""
        if self._stream is None:
            self._stream = Markdown.get_stream(self.markdown)
        await self._stream.write(text)

    async def finish(self, reply: Reply) -> None:
        """The reply is complete; painted once as a whole, which streaming does not always equal (textual 8.2)."""
        self.live = False
        self.reply = reply
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        await self.markdown.update(reply.text)
        self.describe()

    def toggle_words(self) -> bool:
        """Show the text coloured by what was read from each token, or plain again; ``False`` if nothing was read."""
        words = self.query_one(".words", Static)
        if words.display:
            words.display, self.markdown.display = False, True
            return True
        if not self.readings:
            return False
        words.update(self._coloured())
        words.display, self.markdown.display = True, False
        return True

    def _coloured(self) -> Text:
        """Each token on the colour of the emotion that its activations say most, the more the stronger."""
        back = self.app.theme_variables.get("background", "#14161b")
        text = Text()
        shown: set[str] = set()
        for index, piece in enumerate(self.pieces):
            reading = self.readings.get(index)
            name, value = max(reading.own, key=lambda pair: pair[1]) if reading else ("", 0.0)
            if value < 0.25:
                text.append(piece)
                continue
            shown.add(name)
            colour = Color.parse(back).blend(Color.parse(colour_of(name, self.catalogue)), min(0.75, value * 0.45))
            text.append(piece, f"on {colour.rgb and colour.hex}")
        text.append("\n")
        text.append(
            "\nthe model's own activations, before anything is added; strongest emotion a token: ", "dim italic"
        )
        for name in sorted(shown):
            text.append(f" {name} ", f"{colour_of(name, self.catalogue)} reverse")
        return text


class Transcript(VerticalScroll, can_focus=False):
    """All exchanges of a conversation; only a window of them is mounted."""

    BINDINGS = [
        Binding("up", "pick(-1)", "Earlier", show=False),
        Binding("down", "pick(1)", "Later", show=False),
        Binding("home", "ends(0)", "First", show=False),
        Binding("end", "ends(1)", "Last", show=False),
        Binding("c", "app.copy", "Copy", show=True),
        Binding("r", "app.again(True)", "Same feeling again", show=True),
        Binding("e", "app.edit", "Edit", show=True),
        Binding("w", "app.words", "Words", show=True),
        Binding("v", "app.variant", "Other reply", show=True),
    ]

    class Moved(Message):
        """The window of mounted exchanges is another."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.exchanges: list[Exchange] = []
        self.catalogue: Mapping[str, Emotion] = {}
        self.first = self.last = 0
        self._moving = False

    # What is shown.

    def _widgets(self, number: int) -> list[UserMessage | ReplyMessage]:
        exchange = self.exchanges[number]
        found: list[UserMessage | ReplyMessage] = [UserMessage(exchange.user)]
        if exchange.reply is not None:
            found.append(ReplyMessage(exchange.reply, self.catalogue, len(exchange.replies) - 1))
        for widget in found:
            widget.add_class(f"exchange-{number}")
        return found

    async def show(self, exchanges: Sequence[Exchange], catalogue: Mapping[str, Emotion]) -> None:
        """Another conversation; its end is in view."""
        self.exchanges, self.catalogue = list(exchanges), catalogue
        await self._window(max(0, len(self.exchanges) - PAGE), len(self.exchanges))
        self.anchor()
        self.scroll_end(animate=False)

    async def _window(self, first: int, last: int) -> None:
        async with self.batch():
            await self.query(".message").remove()
            self.first, self.last = first, last
            await self.mount_all([w for n in range(first, last) for w in self._widgets(n)])

    async def append(self, exchange: Exchange) -> ReplyMessage | None:
        """A new exchange at the end, in view; returns its reply's widget."""
        if self.last != len(self.exchanges):
            await self._window(max(0, len(self.exchanges) - PAGE), len(self.exchanges))
        number = len(self.exchanges)
        self.exchanges.append(exchange)
        self.last = number + 1
        widgets = self._widgets(number)
        for widget in widgets:
            if isinstance(widget, ReplyMessage):
                widget.live = True
        await self.mount_all(widgets)
        surplus = self.last - self.first - WINDOW
        if surplus >= PAGE:
            await self._unmount(range(self.first, self.first + surplus))
            self.first += surplus
        self.anchor()
        return widgets[-1] if isinstance(widgets[-1], ReplyMessage) else None

    async def replace(self, number: int, exchange: Exchange, live: bool = False) -> ReplyMessage | None:
        """Another reply in the place of an exchange's; returns its widget where it is mounted."""
        self.exchanges[number] = exchange
        old = self.query(f".exchange-{number}")
        if not old:
            return None
        user, *replies = old
        for widget in replies:
            await widget.remove()
        _, *new = self._widgets(number)
        for widget in new:
            if isinstance(widget, ReplyMessage):
                widget.live = live
        await self.mount_all(new, after=user)
        return new[0] if new and isinstance(new[0], ReplyMessage) else None

    async def pop(self) -> None:
        """Take the last exchange away."""
        number = len(self.exchanges) - 1
        self.exchanges.pop()
        await self._unmount(range(number, number + 1))
        self.last = min(self.last, number)
        self.first = min(self.first, self.last)

    def update(self, number: int, reply: Reply) -> None:
        """Remember what a reply has become, without painting."""
        self.exchanges[number] = self.exchanges[number].with_reply(reply)

    async def _unmount(self, numbers: range) -> None:
        for number in numbers:
            await self.query(f".exchange-{number}").remove()

    # The window moves.

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self._moving or not self.exchanges:
            return
        if new < old and new <= 3 and self.first > 0:
            self._moving = True
            self.run_worker(self._earlier(), exclusive=False)
        elif new > old and new >= self.max_scroll_y - 3 and self.last < len(self.exchanges):
            self._moving = True
            self.run_worker(self._later(), exclusive=False)

    async def _earlier(self) -> None:
        try:
            # One exchange a time, so that no pause is longer than two messages take.
            for _ in range(PAGE):
                if self.first == 0:
                    break
                top = self.query(".message").first()
                before = self.virtual_size.height
                self.first -= 1
                await self.mount_all(self._widgets(self.first), before=top)
                self.call_after_refresh(self._keep_place, before)
            if (surplus := self.last - self.first - WINDOW) > 0:
                await self._unmount(range(self.last - surplus, self.last))
                self.last -= surplus
        finally:
            self._moving = False
            self.post_message(self.Moved())

    def _keep_place(self, before: int) -> None:
        grown = self.virtual_size.height - before
        if grown > 0:
            self.set_reactive(VerticalScroll.scroll_y, self.scroll_y)
            self.scroll_to(y=self.scroll_y + grown, animate=False, immediate=True)

    async def _later(self) -> None:
        try:
            for _ in range(PAGE):
                if self.last == len(self.exchanges):
                    break
                await self.mount_all(self._widgets(self.last))
                self.last += 1
            if (surplus := self.last - self.first - WINDOW) > 0:
                before = self.virtual_size.height
                await self._unmount(range(self.first, self.first + surplus))
                self.first += surplus
                self.call_after_refresh(
                    lambda: self.scroll_to(
                        y=self.scroll_y + min(0, self.virtual_size.height - before), animate=False, immediate=True
                    )
                )
        finally:
            self._moving = False
            self.post_message(self.Moved())

    async def reveal(self, number: int, words: str = "") -> None:
        """Bring exchange ``number`` into view, its message that has ``words`` chosen."""
        if not self.first <= number < self.last:
            self._moving = True
            try:
                await self._window(max(0, number - 2), min(len(self.exchanges), number + PAGE))
            finally:
                self._moving = False
        self.release_anchor()
        for widget in self.query(f".exchange-{number}"):
            if isinstance(widget, UserMessage | ReplyMessage) and words.lower() in widget.source.lower():
                widget.focus(scroll_visible=False)
                self.call_after_refresh(self.scroll_to_widget, widget, animate=False)
                return

    # Choosing a message.

    @property
    def chosen(self) -> UserMessage | ReplyMessage | None:
        """The message that has the focus."""
        focused = self.screen.focused
        return focused if isinstance(focused, UserMessage | ReplyMessage) else None

    @property
    def latest(self) -> ReplyMessage | None:
        """The last reply that is mounted."""
        found = list(self.query(ReplyMessage))
        return found[-1] if found else None

    def number_of(self, widget: UserMessage | ReplyMessage) -> int:
        """The exchange that a message belongs to."""
        return next(int(c.removeprefix("exchange-")) for c in widget.classes if c.startswith("exchange-"))

    def action_pick(self, by: int) -> None:
        messages = list(self.query(".message"))
        if not messages:
            return
        at = messages.index(self.chosen) + by if self.chosen in messages else len(messages) - 1
        if at >= len(messages):
            self.app.run_action("app.message")
            self.call_later(self.app.run_action, "message")
            return
        messages[max(0, at)].focus()

    async def action_ends(self, last: int) -> None:
        if self.exchanges:
            await self.reveal(len(self.exchanges) - 1 if last else 0)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:
            self.call_later(self.app.run_action, "message")
