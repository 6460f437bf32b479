"""The conversation: messages, replies that stream, and a window that keeps long conversations quick."""

from __future__ import annotations

import html
import re
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import itemgetter

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markdown import Markdown as RichMarkdown
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.color import Color
from textual.containers import VerticalScroll
from textual.geometry import Offset, Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from mlx_emotion import Emotion, Exchange, Reading, Reply

from .looks import blend, clean, colour_of, felt, parse, timeline
from .panel import binding

PAGE = 2
"""Exchanges mounted at once when the window moves."""
WINDOW = 16
"""Exchanges kept mounted; the others are mounted when one scrolls to them."""
SPARE = 0.5
"""Screens of messages that are mounted beyond what is in view, so that there is something to scroll."""
LEAST = 4
"""Lines that an exchange takes at least, with its margin; to reckon how many fill a screen."""
READ = 200
"""Replies whose readings are kept, for the colours of their words."""
TIMELINE = 24
THOUGHTS_SHOWN = 1200
"""Characters of its thoughts that are painted while a model still thinks: the last ones."""
NOTES = {
    "writing": "cut off: the program ended while this was being written",
    "cancelled": "stopped",
    "length": "ended at the length limit",
    "loop": "ended by the guard: it was looping",
}


FOUND = Style(reverse=True)
SEEN = ("text", "code_inline", "code_block", "fence", "image")
"""The tokens of Markdown whose content is painted."""
LETTERS = re.compile(r"[^\W_]+")
UNSEEN = re.compile(r"\]\([^()]*\)|\]\[[^\[\]]*\]|<[^<>]*>|^\s*\d+[.)]\s", re.MULTILINE)
"""What may stand between the letters of Markdown without being painted: a link's address, a tag, an item's number."""


def pattern(words: str) -> re.Pattern[str]:
    """What finds ``words``, in capitals or not; a space in them may be a line break."""
    return re.compile(r"\s+".join(map(re.escape, words.split())), re.IGNORECASE)


def seen(markdown: str) -> str:
    """The text that is painted of ``markdown``, without its marks."""
    parts = []
    for block in RichMarkdown(markdown).parsed:
        for token in block.children or [block]:
            parts.append(token.content if token.type in SEEN else "\n" if token.type.endswith("break") else "")
        parts.append("\n")
    return clean("".join(parts))


def says(markdown: str, words: str) -> bool:
    """Whether ``words`` are painted of ``markdown``; signs alone are looked for as they were written.

    Parsing thousands of replies takes seconds, so their letters are looked at first: the marks are between them.
    """
    sought = _letters(words)
    if not sought:
        return pattern(words).search(markdown) is not None
    if sought not in _letters(markdown) and sought not in _letters(html.unescape(UNSEEN.sub("", markdown))):
        return False
    return pattern(words).search(seen(markdown)) is not None


def _letters(text: str) -> str:
    return "".join(LETTERS.findall(text)).lower()


def places(lines: Sequence[str], words: str) -> list[Selection]:
    """Where ``words`` stand in painted ``lines``; a space in them may be a line break there."""
    if not words.strip():
        return []
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))

    def place(at: int) -> Offset:
        line = bisect(starts, at) - 1
        return Offset(at - starts[line], line)

    found = pattern(words).finditer("\n".join(lines))
    return [Selection(place(match.start()), place(match.end())) for match in found]


def restyled(strip: Strip, span: tuple[int, int] | None, style: Style) -> Strip:
    """``strip`` with ``style`` over its characters from ``span[0]`` to ``span[1]``, -1 being the end."""
    if span is None:
        return strip
    text, (first, last) = strip.text, span
    start, end = cell_len(text[:first]), cell_len(text if last < 0 else text[:last])
    middle = strip.crop(start, end)
    over = Strip(Segment.apply_style(middle, post_style=style), middle.cell_length)
    return Strip.join([strip.crop(0, start), over, strip.crop(max(start, end))])


class UserMessage(Static, can_focus=True):
    """A message of the user's."""

    def __init__(self, text: str, number: int) -> None:
        # Tabs have no width of their own: the bubble would be narrower than its text.
        self.source, self.number = clean(text).expandtabs(4), number
        super().__init__(Text(self.source), classes="message user", markup=False)

    @property
    def lines(self) -> list[str]:
        """The lines as they are painted."""
        return [self.render_line(y).text.rstrip() for y in range(self.size.height)]

    def places(self, words: str) -> list[Selection]:
        """Where ``words`` are in it."""
        return places(self.lines, words)

    def mark(self, words: str) -> None:
        """Mark ``words``; with none, take the marks away."""
        text = Text(self.source)
        if words:
            text.highlight_regex(pattern(words), FOUND)
        self.update(text, layout=False)

    def says(self, words: str) -> bool:
        """Whether ``words`` are in it, which is painted as it was written."""
        return pattern(words).search(self.source) is not None


class ReplyMessage(Widget, can_focus=True):
    """A reply: what was felt on top, what was thought, the text, and how it ended.

    Thoughts are shown while they come and folded when the answer begins; ``toggle_thoughts`` opens them.

    One widget that keeps its painted lines. While the reply grows, only what follows its last finished
    paragraph is made anew and only changed lines are painted; the screen is laid out again when there is
    one line more, not at each piece (textual 8.2's Markdown widget does that, 22 ms on a small machine).
    """

    def __init__(
        self, reply: Reply, number: int, catalogue: Mapping[str, Emotion], others: int = 0, live: bool = False
    ) -> None:
        super().__init__(classes="message reply")
        self.reply, self.number, self.catalogue = reply, number, catalogue
        self.others, self.live = others, live
        self.pieces: list[tuple[int, str]] = []  # these two outlive the widget, see Transcript
        self.readings: dict[int, Reading] = {}
        self._thoughts = clean(reply.thinking)
        self._opened: bool | None = None  # as the user wants it
        self._answering = not live
        self._words = False
        self._marked = ""
        self._marks: list[Selection] = []
        self._text = ""  # what has come of a reply under way
        self._settled = 0  # characters of it in finished paragraphs
        self._above: list[Strip] = []  # head and thoughts
        self._paragraphs: list[Strip] = []  # the settled ones
        self._below: list[Strip] = []  # all that follows
        self._width = 0  # that of the lines above; 0 when they have to be made

    @property
    def source(self) -> str:
        """The text, or what there is of it so far."""
        return self._text.strip() if self.live else clean(self.reply.text)

    @property
    def lines(self) -> list[str]:
        """The lines as they were painted last, for who wants to read them."""
        return [strip.text.rstrip() for strip in (*self._above, *self._paragraphs, *self._below)]

    def on_mount(self) -> None:
        self.describe()

    def describe(self) -> None:
        """Paint what is known."""
        steps = self.reply.timeline or ((0, self.reply.feeling),)
        last = parse(steps[-1][1], self.catalogue)
        self.styles.border_left = ("outer", blend(last.weights, self.catalogue))
        self._width = 0
        self.refresh(layout=True)

    def _make(self, width: int) -> None:
        """Make every line, for a width in cells."""
        self._width = width
        above: list[RenderableType] = [self._head(self.reply.timeline or ((0, self.reply.feeling),))]
        if self._thoughts:
            above += self._thought()
        self._above = self._painted(*above)
        self._paragraphs, self._settled = [], 0
        if self.live:
            self._grow()
        else:
            below: list[RenderableType] = [self._coloured() if self._words else RichMarkdown(self.source)]
            if note := self._note():
                below.append(Text(note, "italic dim"))
            self._below = self._painted(*below)
        self._marks = self.places(self._marked)

    def _grow(self) -> None:
        """Make the lines that follow the last finished paragraph."""
        end = self._text.rfind("\n\n", self._settled)
        if end > self._settled and self._text[:end].count("```") % 2 == 0:  # not within a block of code
            self._paragraphs += [*self._painted(RichMarkdown(self._text[self._settled : end])), Strip([])]
            self._settled = end
        self._below = self._painted(RichMarkdown(self._text[self._settled :]))

    def _painted(self, *renderables: RenderableType) -> list[Strip]:
        options = self.app.console_options.update(width=self._width, height=None, highlight=False)
        # Cleaned here too: Markdown turns ``&#8238;`` and the like into characters.
        segments = (Segment(clean(s.text), s.style) for s in self.app.console.render(Group(*renderables), options))
        lines = Segment.split_and_crop_lines(segments, self._width, include_new_lines=False, pad=False)
        return [Strip(line) for line in lines]

    # What is marked and selected.

    def mark(self, words: str) -> None:
        """Mark ``words``; with none, take the marks away."""
        if words != self._marked:
            self._marked = words
            self._marks = self.places(words)
            self.refresh()

    def says(self, words: str) -> bool:
        """Whether ``words`` are in the text."""
        return says(self.source, words)

    def places(self, words: str) -> list[Selection]:
        """Where ``words`` are in the text, not in what is above it."""
        head = len(self._above)
        return places([""] * head + self.lines[head:], words) if words else []

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        lines = self.lines
        if selection.start is not None and selection.start.y >= len(lines):  # they were more when it was made
            return None
        return selection.extract("\n".join(lines)), "\n"

    # What is painted.

    def get_content_width(self, container: Size, viewport: Size) -> int:  # noqa: ARG002
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        if width != self._width:
            self._make(max(1, width))
        return len(self._above) + len(self._paragraphs) + len(self._below)

    def render_line(self, y: int) -> Strip:
        width, back = self.content_size.width, Style(bgcolor=self.rich_style.bgcolor)
        at = y
        for part in (self._above, self._paragraphs, self._below):
            if at < len(part):
                strip = part[at].apply_style(self.rich_style)
                for mark in self._marks:
                    strip = restyled(strip, mark.get_span(y), FOUND)
                if (selection := self.text_selection) is not None:
                    style = self.screen.get_component_rich_style("screen--selection")
                    strip = restyled(strip, selection.get_span(y), style)
                if not strip.cell_length:  # a selection sees only what has an offset
                    return Strip.blank(width, back).apply_offsets(0, y)
                return strip.apply_offsets(0, y).adjust_cell_length(width, back)
            at -= len(part)
        return Strip.blank(width, back)

    def _head(self, steps: Sequence[tuple[int, str]]) -> Text:
        feelings = [parse(spec, self.catalogue) for _, spec in steps]
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append("● ", blend(feelings[-1].weights, self.catalogue))
        for n, feeling in enumerate(feelings[-3:]):
            head.append(" → " if n or len(steps) > 3 else "", "dim")
            head.append_text(felt(feeling.weights, self.catalogue))
        if len(steps) > 1:
            head.append("  ")
            head.append_text(timeline(steps, self.reply.tokens, TIMELINE, self.catalogue))
        if self.others:
            head.append(f"   {self.others + 1} replies made", "dim")
        return head

    @property
    def _open(self) -> bool:
        return not self._answering if self._opened is None else self._opened

    def _thought(self) -> list[RenderableType]:
        """The line that opens and folds the thoughts, and they themselves if they are open."""
        count = self.reply.thinking_tokens
        told = "thinking…" if not self._answering else f"thought for {count} tokens" if count else "thoughts"
        handle = Style(dim=True, meta={"thoughts": True})
        title = Text(f"{'▾' if self._open else '▸'} {told}", handle, no_wrap=True)
        if not self._open:
            return [title]
        text = self._thoughts.strip()
        if not self._answering and len(text) > THOUGHTS_SHOWN:
            text = f"…{text[-THOUGHTS_SHOWN:]}"
        return [title, Padding(Text(text, "dim italic"), (0, 0, 1, 2))]

    def toggle_thoughts(self) -> bool:
        """Open or fold the thoughts; ``False`` if there are none."""
        if not self._thoughts:
            return False
        self._opened = not self._open
        self.describe()
        return True

    def on_click(self, event: events.Click) -> None:
        if event.style.meta.get("thoughts"):
            event.stop()
            self.toggle_thoughts()

    def _note(self) -> str:
        reply = self.reply
        notes = [f"failed: {clean(reply.error or '')}" if reply.state == "failed" else NOTES.get(reply.state, "")]
        if reply.guard:
            notes.append("the guard weakened the feeling: it began to loop")
        return "; ".join(n for n in notes if n)

    def write(self, text: str, thoughts: str = "") -> None:
        """More of a reply under way."""
        begins = bool(text) and not self._answering
        self._answering = self._answering or begins
        self._thoughts += clean(thoughts)
        self._text = (self._text + clean(text)).lstrip()
        if thoughts or (begins and self._thoughts):
            self.describe()
            return
        if not text or not self._width:
            return
        old, first = self._below, len(self._above) + len(self._paragraphs)
        count = first + len(old)
        self._grow()
        if len(self._above) + len(self._paragraphs) + len(self._below) != count:
            self.refresh(layout=True)
            return
        for n, (was, now) in enumerate(zip(old, self._below)):
            if was != now:
                self.refresh(Region(0, first + n, self._width, len(old) - n))
                return

    def finish(self, reply: Reply) -> None:
        """The reply is complete: painted once more as a whole."""
        self.reply = reply
        self._thoughts = clean(reply.thinking)
        self._answering = True
        self.live = False
        for index, reading in self.readings.items():  # the strongest is all that is shown, and they are kept
            self.readings[index] = Reading(index, (max(reading.own, key=itemgetter(1)),) if reading.own else (), ())
        self.describe()

    def toggle_words(self) -> bool:
        """Show the text coloured by what was read from each token, or plain again; ``False`` if nothing was read."""
        if self.live or not self.readings:
            return False
        self._words = not self._words
        self.describe()
        return True

    def _coloured(self) -> Text:
        """Each token on the colour of the emotion that its activations say most, the more the stronger."""
        back = self.app.theme_variables.get("background", "#14161b")
        text = Text()
        shown: set[str] = set()
        for index, piece in self.pieces:
            reading = self.readings.get(index)
            name, value = max(reading.own if reading else (), key=itemgetter(1), default=("", 0.0))
            piece = clean(piece)
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
    """All exchanges of a conversation; only a window of them is mounted.

    What mounts and unmounts does so within ``batch``, whose lock one task may take several times: what is
    mounted is ``first`` to ``last`` whenever it is free.
    """

    BINDINGS = [
        binding("transcript.earlier", "pick(-1)"),
        binding("transcript.later", "pick(1)"),
        binding("transcript.first", "ends(0)"),
        binding("transcript.last", "ends(1)"),
        binding("transcript.copy", "app.copy", show=True, label="Copy"),
        binding("transcript.again", "app.again(True)", show=True, label="Same feeling again"),
        binding("transcript.edit", "app.edit", show=True, label="Edit"),
        binding("transcript.words", "app.words", show=True, label="Words"),
        binding("transcript.variant", "app.variant", show=True, label="Other reply"),
        binding("transcript.thoughts", "app.thoughts", show=True, label="Thoughts"),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.exchanges: list[Exchange] = []
        self.catalogue: Mapping[str, Emotion] = {}
        self.first = self.last = 0
        self._most = WINDOW
        self._hidden: list[UserMessage | ReplyMessage] = []
        self._moving = False
        self._aim: UserMessage | ReplyMessage | None = None  # what is about to be brought into view
        self._read: dict[str, tuple[list[tuple[int, str]], dict[int, Reading]]] = {}

    # What is shown.

    def _widgets(self, number: int, live: bool = False) -> list[UserMessage | ReplyMessage]:
        exchange = self.exchanges[number]
        found: list[UserMessage | ReplyMessage] = [UserMessage(exchange.user, number)]
        if exchange.reply is not None:
            reply = ReplyMessage(exchange.reply, number, self.catalogue, len(exchange.replies) - 1, live)
            if live:
                self._read[exchange.reply.id] = (reply.pieces, reply.readings)
                if len(self._read) > READ:
                    del self._read[next(iter(self._read))]
            elif exchange.reply.id in self._read:
                reply.pieces, reply.readings = self._read[exchange.reply.id]
            found.append(reply)
        return found

    async def show(self, exchanges: Sequence[Exchange], catalogue: Mapping[str, Emotion]) -> None:
        """Another conversation; its end is in view."""
        async with self.batch():
            self.exchanges, self.catalogue = list(exchanges), catalogue
            await self._window(len(self.exchanges), max(WINDOW, self._filling))
        self.anchor()
        self.scroll_end(animate=False)

    def take_catalogue(self, catalogue: Mapping[str, Emotion]) -> None:
        """Other emotions are known too: what is mounted is described anew."""
        self.catalogue = {**self.catalogue, **catalogue}
        for message in (*self.messages, *self._hidden):
            if isinstance(message, ReplyMessage):
                message.catalogue = self.catalogue
                message.describe()

    @property
    def _filling(self) -> int:
        """Exchanges that fill the screen and what is to spare, short as they may be."""
        return round((1 + SPARE) * self.size.height / LEAST)

    async def _window(self, first: int, count: int) -> None:
        """Mount ``count`` exchanges from ``first`` on, or the last ones, and no others."""
        async with self.batch():
            first = max(0, min(first, len(self.exchanges) - count))
            await self._unmount(range(self.first, self.last))
            self.first, self.last = first, min(first + count, len(self.exchanges))
            self._most = max(WINDOW, count)
            await self._mount(range(self.first, self.last))
        self.call_after_refresh(self._fill)

    async def _last_window(self) -> None:
        """Have the end mounted."""
        async with self.batch():
            if self.last != len(self.exchanges):
                await self._window(len(self.exchanges), max(WINDOW, self._filling))

    async def append(self, exchange: Exchange, live: bool = False) -> ReplyMessage | None:
        """A new exchange at the end, in view; returns its reply's widget."""
        async with self.batch():
            await self._last_window()
            number = len(self.exchanges)
            self.exchanges.append(exchange)
            self.last = number + 1
            widgets = self._widgets(number, live)
            await self.mount_all(widgets)
            surplus = self.last - self.first - self._most
            if surplus >= PAGE:
                await self._unmount(range(self.first, self.first + surplus))
                self.first += surplus
        self.anchor()
        return widgets[-1] if isinstance(widgets[-1], ReplyMessage) else None

    async def replace(self, number: int, exchange: Exchange, live: bool = False) -> ReplyMessage | None:
        """Another reply in the place of an exchange's; returns its widget where it is mounted."""
        async with self.batch():
            self.exchanges[number] = exchange
            if live and not self.first <= number < self.last:
                await self._last_window()
            old = self.of(number)
            if not old:
                return None
            user, *replies = old
            await self.remove_children(replies)
            _, *new = self._widgets(number, live)
            await self.mount_all(new, after=user)
        return new[0] if new and isinstance(new[0], ReplyMessage) else None

    async def pop(self) -> None:
        """Take the last exchange away."""
        async with self.batch():
            number = len(self.exchanges) - 1
            self.exchanges.pop()
            await self._unmount(range(number, number + 1))
            self.last = min(self.last, number)
            self.first = min(self.first, self.last)

    def update(self, number: int, reply: Reply) -> None:
        """Remember what a reply has become, without painting."""
        self.exchanges[number] = self.exchanges[number].with_reply(reply)

    async def _mount(self, numbers: range, before: UserMessage | ReplyMessage | None = None) -> None:
        """Mount exchanges, ``before`` a message or at the end; show again what was only hidden."""
        back = [w for w in self._hidden if w.number in numbers]
        widgets = [w for n in numbers if not back or n != back[0].number for w in self._widgets(n)]
        place = before or next(iter(self._hidden), None)
        for widget in back:
            widget.display = True
            self._hidden.remove(widget)
        await self.mount_all(widgets, before=place)

    async def _unmount(self, numbers: range) -> None:
        """Unmount exchanges; the one being spoken is the last, goes on growing and is only hidden."""
        found = [w for w in self.messages if w.number in numbers]
        self._keep_focus(found)
        spoken = {w.number for w in found if isinstance(w, ReplyMessage) and w.live}
        for widget in found:
            if widget.number in spoken:
                widget.display = False
                self._hidden.append(widget)
        await self.remove_children([w for w in found if w.number not in spoken])

    def _keep_focus(self, leaving: Sequence[UserMessage | ReplyMessage]) -> None:
        """Before it leaves, the focus goes to the next message that stays, if any does, and moves nothing.

        Textual would give it to whatever it finds first, and bring that into view.
        """
        chosen = self.chosen
        if chosen is not None and chosen in leaving:
            places = {w: n for n, w in enumerate(self.messages)}
            staying = [w for w in places if w not in leaving]
            nearest = min(staying, key=lambda w: abs(places[w] - places[chosen]), default=None)
            self.screen.set_focus(nearest, scroll_visible=False)

    async def unmount_hidden(self) -> None:
        """Unmount what was kept for as long as it was spoken."""
        async with self.batch():
            hidden, self._hidden = self._hidden, []
            await self.remove_children(hidden)

    @property
    def messages(self) -> list[UserMessage | ReplyMessage]:
        """The messages that are mounted, in order."""
        return [w for w in self.children if isinstance(w, UserMessage | ReplyMessage) and w.display]

    def of(self, number: int) -> list[UserMessage | ReplyMessage]:
        """The mounted messages of one exchange."""
        return [w for w in self.messages if w.number == number]

    # The window moves.

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if new < old and new <= 3:
            self._begin_move(-PAGE)
        elif new > old and new >= self.max_scroll_y - 3:
            self._begin_move(PAGE)

    def watch_virtual_size(self) -> None:
        self._fill()

    def on_resize(self) -> None:
        self._fill()

    def _fill(self) -> None:
        """Mount more where what is mounted is too little to be scrolled."""
        enough, messages = (1 + SPARE) * self.size.height, self.messages
        if self.virtual_size.height >= enough or not messages:
            return
        begin, end = messages[0].virtual_region, messages[-1].virtual_region
        missing = enough - (end.bottom - begin.y)
        if begin and end and missing > 0:  # they have been laid out
            count = max(PAGE, round(missing / LEAST))
            self._begin_move(-count if self.first > 0 else count, more=True)

    def _begin_move(self, by: int, more: bool = False) -> None:
        if not self._moving and (self.first > 0 if by < 0 else self.last < len(self.exchanges)):
            self._moving = True
            self.run_worker(self._move(by, more), exclusive=False, exit_on_error=False)

    async def _move(self, by: int, more: bool = False) -> None:
        """Mount so many exchanges more, before the first ones if it is negative, without moving what is in view.

        As many are unmounted at the other end, but where there are to be ``more``.
        """
        settles = False
        try:
            async with self.batch():
                first, last = max(0, self.first + min(by, 0)), min(len(self.exchanges), self.last + max(by, 0))
                messages = self.messages
                if not messages:
                    return
                if more:
                    self._most = max(self._most, last - first)
                fixed = messages[0 if by < 0 else -1]
                was = fixed.virtual_region.y
                if by < 0:
                    await self._mount(range(first, self.first), fixed)
                else:
                    self.release_anchor()  # that is for the end of all
                    await self._mount(range(self.last, last))
                self.first, self.last = first, last
                surplus = max(0, last - first - self._most)
                if by < 0:
                    await self._unmount(range(last - surplus, last))
                    self.last -= surplus
                else:
                    await self._unmount(range(first, first + surplus))
                    self.first += surplus
            settles = self.call_after_refresh(self._settle, fixed, was)
        finally:
            self._moving = settles

    def _settle(self, fixed: UserMessage | ReplyMessage, was: int) -> None:
        moved = fixed.virtual_region.y - was if fixed.is_attached and fixed.display else 0
        if moved and self.max_scroll_y:
            self.scroll_y += moved  # not scroll_to, which would release the anchor
            self.scroll_target_y = self.scroll_y
        self._moving = False
        self._fill()

    async def reveal(self, number: int, words: str = "") -> None:
        """Bring exchange ``number`` into view, its message that has ``words`` chosen."""
        async with self.batch():
            if not 0 <= number < len(self.exchanges):
                return
            if not self.first <= number < self.last:
                self._moving = True
                try:
                    await self._window(number - 2, max(WINDOW // 2, self._filling))
                finally:
                    self._moving = False
        self.release_anchor()
        for widget in self.of(number):
            if widget.says(words):
                widget.focus(scroll_visible=False)
                self._aim = widget
                self.call_after_refresh(self._show_words, widget, words)
                return

    def _show_words(self, widget: UserMessage | ReplyMessage, words: str) -> None:
        """Bring a message into view; of one that is taller than that, the line that has ``words``."""
        if widget is not self._aim:  # one has gone elsewhere meanwhile
            return
        self.release_anchor()
        if widget.size.height > self.size.height and (found := widget.places(words)):
            line = Region(0, widget.virtual_region.y + (found[0].start or Offset()).y, 1, 1)
            self.scroll_to_region(line, animate=False, center=True)
        else:
            self.scroll_to_widget(widget, animate=False)

    # Choosing a message.

    @property
    def chosen(self) -> UserMessage | ReplyMessage | None:
        """The message that has the focus."""
        focused = self.screen.focused
        return focused if isinstance(focused, UserMessage | ReplyMessage) else None

    @property
    def latest(self) -> ReplyMessage | None:
        """The last reply that is mounted."""
        return next((m for m in reversed(self.messages) if isinstance(m, ReplyMessage)), None)

    def action_pick(self, by: int) -> None:
        messages = self.messages
        if not messages:
            return
        at = messages.index(self.chosen) + by if self.chosen in messages else len(messages) - 1
        if self.first > 0 if at < 0 else at >= len(messages) and self.last < len(self.exchanges):
            self.call_later(self._pick_beyond, by)
        elif at >= len(messages):
            self.call_later(self.app.run_action, "message")
        else:
            messages[max(0, at)].focus()

    async def _pick_beyond(self, by: int) -> None:
        """Choose a message that is not mounted yet."""
        chosen = self.chosen
        await self._move(by * PAGE)
        messages = self.messages
        if chosen in messages:
            messages[min(max(0, messages.index(chosen) + by), len(messages) - 1)].focus()

    async def action_ends(self, last: int) -> None:
        if not last:
            await self.reveal(0)
            return
        await self._last_window()
        if self.messages:
            self.messages[-1].focus(scroll_visible=False)
        self.anchor()
        self.scroll_end(animate=False)

    def anchor(self, anchor: bool = True) -> None:
        self._aim = None
        super().anchor(anchor)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:
            self.call_later(self.app.run_action, "message")
