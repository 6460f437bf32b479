"""The feeling panel: a bar for each emotion, the circumplex, the meter. Always live."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from mlx_emotion import Emotion, Feeling

from .looks import QUIET, bar, blend, colour_of, felt
from .settings import KEYS

MOST = 1.5
STEP = 0.05
BASE = "base"


def binding(id_: str, action: str, show: bool = False, label: str = "", priority: bool = False) -> Binding:
    """The binding of one entry of ``KEYS``."""
    keys, description = KEYS[id_]
    return Binding(keys, action, label or description, show=show, id=id_, priority=priority, tooltip=description)


class Bars(Widget, can_focus=True):
    """One row an emotion, 0 to 150 %. Up and down choose, left and right change, the mouse drags.

    ``moved`` is called with the weights, at once.
    """

    DEFAULT_CSS = "Bars { height: auto; padding: 0 1; }"
    BINDINGS = [
        binding("panel.up", "choose(-1)"),
        binding("panel.down", "choose(1)"),
        binding("panel.more", "change(1)", show=True, label="Stronger"),
        binding("panel.less", "change(-1)", show=True, label="Weaker"),
        binding("panel.much_more", "change(5)"),
        binding("panel.much_less", "change(-5)"),
        binding("panel.off", "set(0.0)", show=True, label="Off"),
        binding("panel.full", "flip", show=True, label="100 %"),
        *(Binding(str(n), f"set({n / 10})", f"{n}0 %", show=False) for n in range(1, 10)),
    ]

    weights: reactive[dict[str, float]] = reactive(dict, always_update=True)
    row: reactive[int] = reactive(0)

    def __init__(self, moved: Callable[[dict[str, float]], None], id: str | None = None) -> None:
        super().__init__(id=id)
        self.moved = moved
        self.names: list[str] = []
        self.catalogue: Mapping[str, Emotion] = {}
        self.empty = ""
        self._dragging = False

    def offer(self, names: list[str], catalogue: Mapping[str, Emotion], empty: str) -> None:
        """The emotions there are now; ``empty`` is said where there are none."""
        self.empty = empty
        self.names = [*names, BASE] if names else []
        self.catalogue = catalogue
        self.row = min(self.row, max(0, len(self.names) - 1))
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        return max(1, len(self.names))

    def _geometry(self) -> tuple[int, int]:
        """(first cell of the bars, their width)."""
        label = max((len(n) for n in self.names), default=0)
        label = min(label, 12) + 3
        return label, max(4, self.content_size.width - label - 6)

    def render(self) -> Text:
        if not self.names:
            return Text(self.empty, "dim italic")
        start, width = self._geometry()
        out = Text()
        for n, name in enumerate(self.names):
            value = self.weights.get(name, 0.0)
            colour = colour_of(name, self.catalogue)
            here = self.has_focus and n == self.row
            out.append("▸ " if here else "  ", f"bold {colour}")
            style = f"bold {colour}" if value else ("bold" if here else "")
            out.append(f"{name[: start - 3]:<{start - 3}} ", style)
            out.append_text(bar(value, MOST, width, colour, mark=1.0))
            out.append(f"{value:>5.0%}".replace("%", " %"), "bold" if value else "dim")
            if n < len(self.names) - 1:
                out.append("\n")
        out.no_wrap = True
        return out

    def _put(self, name: str, value: float) -> None:
        value = round(min(MOST, max(0.0, value)), 3)
        weights = {n: w for n, w in self.weights.items() if n != name}
        if value:
            weights[name] = value
        if weights != self.weights:
            self.weights = weights
            self.moved(weights)

    def action_choose(self, by: int) -> None:
        if self.names:
            self.row = (self.row + by) % len(self.names)
            if isinstance(self.parent, VerticalScroll):
                self.parent.scroll_to_region(self._row_region(), animate=False)

    def _row_region(self):
        return self.virtual_region.translate((0, self.row)).crop_size((self.size.width, 1))

    def action_change(self, steps: int) -> None:
        if self.names:
            name = self.names[self.row]
            self._put(name, round(self.weights.get(name, 0.0) / STEP) * STEP + steps * STEP)

    def action_set(self, value: float) -> None:
        if self.names:
            self._put(self.names[self.row], value)

    def action_flip(self) -> None:
        if self.names:
            self._put(self.names[self.row], 0.0 if self.weights.get(self.names[self.row]) else 1.0)

    def _drag(self, event: events.MouseEvent) -> None:
        start, width = self._geometry()
        offset = event.get_content_offset_capture(self)
        value = (offset.x - start + 0.5) / width * MOST
        self._put(self.names[self.row], 0.0 if offset.x < start else round(value / STEP) * STEP)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        offset = event.get_content_offset(self)
        if offset is None or not 0 <= offset.y < len(self.names):
            return
        self.row = offset.y
        if offset.x >= self._geometry()[0]:  # not its name
            self._dragging = True
            self.capture_mouse()
            self._drag(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragging and self.names:  # a model without a pack may have been taken meanwhile
            self._drag(event)

    def on_mouse_up(self) -> None:
        self._dragging = False
        self.release_mouse()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        if self.has_focus and event.shift:
            self.action_change(1)
            event.stop()

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        if self.has_focus and event.shift:
            self.action_change(-1)
            event.stop()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()


class Pad(Widget, can_focus=True):
    """Russell's circumplex: pleasant to the right, aroused at the top. Its point is the feeling.

    ``moved`` is called with valence and arousal, each in [-1, 1], at once.
    """

    DEFAULT_CSS = "Pad { height: 11; padding: 0 1; }"
    BINDINGS = [
        binding("pad.up", "move(0, 1)"),
        binding("pad.down", "move(0, -1)"),
        binding("pad.left", "move(-1, 0)"),
        binding("pad.right", "move(1, 0)"),
        binding("pad.centre", "centre", show=True, label="To the middle"),
    ]

    point: reactive[tuple[float, float]] = reactive((0.0, 0.0))

    def __init__(self, moved: Callable[[float, float], None], id: str | None = None) -> None:
        super().__init__(id=id)
        self.moved = moved
        self.emotions: list[Emotion] = []
        self.colour = QUIET
        self._dragging = False

    def offer(self, emotions: list[Emotion]) -> None:
        """The emotions that have a place."""
        self.emotions = emotions
        self.refresh()

    def _cell(self, valence: float, arousal: float) -> tuple[int, int]:
        """The cell (column, row) of a point; a cell is taken to be twice as high as wide."""
        width, height = self.content_size
        radius = self._radius()
        return (
            round((width - 1) / 2 + valence * radius * 2),
            round((height - 1) / 2 - arousal * radius),
        )

    def _radius(self) -> float:
        width, height = self.content_size
        return max(1.0, min((height - 1) / 2, (width - 1) / 4))

    def render(self) -> Text:
        width, height = self.content_size
        if width < 9 or height < 5:
            return Text("")
        cells: dict[tuple[int, int], tuple[str, str]] = {}
        for degree in range(0, 360, 3):
            angle = math.radians(degree)
            cells[self._cell(math.cos(angle), math.sin(angle))] = ("·", "dim")
        column, row = self._cell(0, 0)
        for x in range(column - round(self._radius() * 2) + 1, column + round(self._radius() * 2)):
            cells.setdefault((x, row), ("╌", "dim"))
        for y in range(height):
            cells.setdefault((column, y), ("╎", "dim"))
        cells[(column, row)] = ("┼", "dim")
        dots = {self._cell(e.valence, e.arousal): e for e in self.emotions}
        for place, emotion in dots.items():
            cells[place] = ("●", emotion.colour)
        for place, emotion in dots.items():
            self._label(cells, place, emotion)
        at = self._cell(*self.point)
        cells[at] = (
            "◉" if self.point != (0.0, 0.0) else "○",
            f"bold {self.colour} reverse" if self.has_focus else f"bold {self.colour}",
        )
        out = Text(no_wrap=True)
        for y in range(height):
            for x in range(width):
                character, style = cells.get((x, y), (" ", ""))
                out.append(character, style)
            if y < height - 1:
                out.append("\n")
        return out

    def _label(self, cells: dict[tuple[int, int], tuple[str, str]], place: tuple[int, int], emotion: Emotion) -> None:
        """The emotion's name beside its dot: outwards, else inwards, else only its beginning."""
        column, row = place
        name = emotion.name
        right, left = column + 2, column - 1 - len(name)
        outwards, inwards = (right, left) if emotion.valence >= 0 else (left, right)
        short = column + 2 if emotion.valence >= 0 else column - 4
        for first, text in ((outwards, name), (inwards, name), (short, name[:3])):
            places = [(first + n, row) for n in range(-1, len(text) + 1)]
            free = all(cells.get(p, ("·", ""))[0] in "·╌╎┼●" for p in (places[0], places[-1]))
            free &= all(cells.get(p, ("·", ""))[0] in "·╌╎" for p in places[1:-1])
            if free and first >= 0 and first + len(text) <= self.content_size.width:
                for p, character in zip(places[1:-1], text):
                    cells[p] = (character, emotion.colour)
                return

    def action_move(self, right: int, up: int) -> None:
        self._put(self.point[0] + 0.1 * right, self.point[1] + 0.1 * up)

    def action_centre(self) -> None:
        self._put(0.0, 0.0)

    def _put(self, valence: float, arousal: float) -> None:
        if not self.emotions:
            return
        radius = max(1.0, math.hypot(valence, arousal))
        valence, arousal = round(valence / radius, 3), round(arousal / radius, 3)
        self.point = (valence, arousal)
        self.moved(valence, arousal)

    def _drag(self, event: events.MouseEvent) -> None:
        offset = event.get_content_offset_capture(self)
        width, height = self.content_size
        radius = self._radius()
        self._put((offset.x - (width - 1) / 2) / (2 * radius), ((height - 1) / 2 - offset.y) / radius)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._dragging = True
        self.capture_mouse()
        self._drag(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragging:
            self._drag(event)

    def on_mouse_up(self) -> None:
        self._dragging = False
        self.release_mouse()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()


class Meter(Widget):
    """What the activations said of the last few tokens: the model's own, and with what steering adds.

    The bar is the model's own output at the tapped site, the tick is with the added vectors; 100 % is
    what a full dose of that emotion alone adds.
    """

    DEFAULT_CSS = "Meter { height: auto; padding: 0 1; }"
    SMOOTH = 0.25

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.names: list[str] = []
        self.catalogue: Mapping[str, Emotion] = {}
        self.own: dict[str, float] = {}
        self.steered: dict[str, float] = {}

    def offer(self, names: list[str], catalogue: Mapping[str, Emotion]) -> None:
        self.names, self.catalogue = list(names), catalogue
        self.own, self.steered = {}, {}
        self.refresh(layout=True)

    def clear(self) -> None:
        """What was read is over."""
        if self.own:
            self.own, self.steered = {}, {}
            self.refresh()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        return len(self.names)

    def take(self, own: Mapping[str, float], steered: Mapping[str, float]) -> None:
        """One more token's reading; ``show`` paints."""
        for held, new in ((self.own, own), (self.steered, steered)):
            for name, value in new.items():
                held[name] = held.get(name, value) * (1 - self.SMOOTH) + value * self.SMOOTH

    def render(self) -> Text:
        width = max(4, self.content_size.width - 15 - 6)
        out = Text(no_wrap=True)
        for n, name in enumerate(self.names):
            colour = colour_of(name, self.catalogue)
            value, with_ = self.own.get(name), self.steered.get(name)
            out.append(f"  {name[:12]:<12} ", "dim" if value is None else "")
            line = bar(value or 0.0, MOST, width, colour)
            if with_ is not None and value is not None and abs(with_ - value) > 0.02:
                at = min(width - 1, max(0, int(with_ / MOST * width)))
                line = Text.assemble(line[:at], ("│", f"bold {colour}"), line[at + 1 :])
            out.append_text(line)
            out.append(f"{value:>5.0%}".replace("%", " %") if value is not None else "     –", "dim")
            if n < len(self.names) - 1:
                out.append("\n")
        return out


class Panel(VerticalScroll, can_focus=False):
    """Bars, pad, switches and meter, for one feeling.

    ``changed`` is called at once when the user sets another: a message would wait behind the painting of a reply,
    and the model writes on.
    """

    BINDINGS = [
        binding("feelings", "app.feelings", show=True, label="Back"),
        binding("panel.neutral", "neutral", show=True, label="Neutral"),
        binding("panel.base", "base", show=True, label="Base"),
        binding("panel.history", "app.history", show=True, label="Keep/refeel"),
        binding("panel.guard", "app.guard", show=True, label="Guard"),
        binding("panel.pad", "pad", show=True, label="Pad"),
    ]

    def __init__(self, changed: Callable[[Feeling], None], id: str | None = None) -> None:
        super().__init__(id=id)
        self.changed = changed
        self.catalogue: Mapping[str, Emotion] = {}
        self.feeling = Feeling()
        self._pointed: Feeling | None = None

    def on_hide(self) -> None:
        """The terminal has become narrow: keys must not go to what nobody sees."""
        if self.has_focus_within or self.screen.focused is None:  # a child may have lost it before this
            self.call_later(self.app.run_action, "message")

    def compose(self) -> ComposeResult:
        yield Static("FEELING", classes="title", id="switches")
        yield Bars(self._bar_moved, id="bars")
        yield Pad(self._point_moved, id="pad")
        yield Static(Text("READ FROM THE ACTIVATIONS", "bold"), classes="title", id="meter-title")
        yield Meter(id="meter")
        yield Static("█ the model's own  │ with steering", classes="caption", id="meter-caption")

    @property
    def bars(self) -> Bars:
        return self.query_one(Bars)

    @property
    def pad(self) -> Pad:
        return self.query_one(Pad)

    @property
    def meter(self) -> Meter:
        return self.query_one(Meter)

    def offer(
        self,
        names: list[str],
        catalogue: Mapping[str, Emotion],
        meter: bool,
        empty: str = "No emotion vectors for this model.",
    ) -> None:
        """Another model's emotions."""
        self.catalogue = catalogue
        placed = [catalogue[n] for n in names if n in catalogue and catalogue[n].radius > 0]
        self.bars.offer(names, catalogue, empty)
        self.pad.offer(placed)
        self.pad.display = bool(placed)
        self.meter.offer(names if meter else [], catalogue)
        for part in ("#meter-title", "#meter-caption"):
            self.query_one(part).display = bool(names) and meter

    def show(
        self, feeling: Feeling, history: str, guard: bool, tripped: float | None, scale: float | None = None
    ) -> None:
        """Paint the state; ``tripped`` is the share of the dose that the guard left, while it acts.

        ``scale`` is a raw multiplier in the place of calibrated intensities.
        """
        self.feeling = feeling
        self.bars.weights = dict(feeling.weights)
        self.pad.colour = blend(feeling.weights, self.catalogue)
        # The point stays where the user has put it, also where its neighbours' mix does not quite reach it.
        if feeling != self._pointed:
            self.pad.point = feeling.point
        self.pad.refresh()
        text = Text(no_wrap=True)
        text.append("FEELING", "bold")
        text.append(f"  {history}", "bold")
        text.append(" · guard ", "dim")
        if tripped is not None:
            text.append(f"left {tripped:.0%}".replace("%", " %"), "bold #f0803c")
        else:
            text.append("on" if guard else "off", "bold")
        if scale is not None:
            text.append(f" · scale {scale:g}", "bold")
        self.query_one("#switches", Static).update(text)

    def _bar_moved(self, weights: dict[str, float]) -> None:
        self.changed(Feeling.of(weights, self.catalogue))

    def _point_moved(self, valence: float, arousal: float) -> None:
        self._pointed = Feeling.at(valence, arousal, {e.name: e for e in self.pad.emotions})
        self.changed(self._pointed)

    def action_neutral(self) -> None:
        self._pointed = None
        self.changed(Feeling())

    def action_base(self) -> None:
        if self.bars.names:
            self.changed(Feeling.of({BASE: 1.0}, self.catalogue))

    def action_pad(self) -> None:
        (self.bars if self.pad.has_focus or not self.pad.display else self.pad).focus()


def feeling_line(
    feeling: Feeling, catalogue: Mapping[str, Emotion], history: str, guard: str, scale: float | None = None
) -> Text:
    """The panel folded to one line, for narrow terminals."""
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(" ● ", blend(feeling.weights, catalogue))
    text.append_text(felt(feeling.weights, catalogue))
    raw = "" if scale is None else f" · scale {scale:g}"
    text.append(f"   {history} · guard {guard}{raw}", "dim")
    return text
