"""The message box: several lines, a history, and pasted text made harmless."""

from __future__ import annotations

from textual import events
from textual.message import Message
from textual.widgets import TextArea

from .keyboard import InOrder
from .looks import clean
from .panel import binding
from .settings import KEYS, Settings

LOW = 10
"""Lines below which the terminal is too small for frames."""
ACTIONS = {
    "message.send": "send",
    "message.newline": "newline",
    "message.older": "older",
    "message.newer": "newer",
    "feelings": "feelings",
}


class MessageBox(TextArea):
    """Where the user writes. ``Sent`` carries the text and leaves the box empty; ``restore`` gives it back."""

    BINDINGS = [
        binding("message.send", "send", show=True, label="Send"),
        binding("message.newline", "newline"),
        binding("feelings", "app.feelings", show=True, label="Feelings"),
        binding("messages", "app.messages", priority=True),
    ]

    class Sent(Message):
        """The user sent the message."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Asked(Message):
        """The user asked for something else: ``feelings`` or ``help``."""

        def __init__(self, what: str) -> None:
            super().__init__()
            self.what = what

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, soft_wrap=True, tab_behavior="focus", placeholder="Say something")
        self.sent_before: list[str] = []
        self._at: int | None = None  # which of them is shown
        self._changed: dict[int, str] = {}  # what the user has made of them, and of the draft, which is the last
        self._colour = "white"

    def on_mount(self) -> None:
        chosen: dict[str, str] = getattr(self.app, "settings", Settings()).keys
        self._actions = {
            key.strip(): action for id_, action in ACTIONS.items() for key in chosen.get(id_, KEYS[id_][0]).split(",")
        }

    async def _on_key(self, event: events.Key) -> None:
        # Here and not by priority bindings: those overtake characters that were typed just before.
        action = next((self._actions[k] for k in (event.key, *event.aliases) if k in self._actions), None)
        if action is None and event.character == "?" and not self.text:
            action = "help"
        if action is not None:
            event.stop()
            event.prevent_default()
            getattr(self, f"action_{action}")()

    def frame(self, colour: str | None = None, height: int | None = None) -> None:
        """A border of ``colour``, where the terminal's ``height`` leaves room for one."""
        self._colour = colour or self._colour
        room = (self.app.size.height if height is None else height) >= LOW
        self.styles.border = ("round" if room else "none", self._colour)

    def restore(self, text: str) -> None:
        """Give back a message that could not be sent, before what was typed since."""
        self.put(f"{text}\n{self.text}" if self.text else text)

    def put(self, text: str) -> None:
        """Another text, the cursor at its end."""
        self._at = None
        self._show(text)

    def remember(self, sent: list[str]) -> None:
        """Other messages that were sent before; what is in the box stays."""
        self.sent_before, self._at = sent, None

    def _show(self, text: str) -> None:
        self.text = text
        self.move_cursor(self.document.end)

    def action_send(self) -> None:
        text = clean(self.text)
        if text.strip():
            if self.sent_before[-1:] != [text]:
                self.sent_before.append(text)
            self._at = None
            self.text = ""
            self.post_message(self.Sent(text))
            if isinstance(self.app, InOrder):
                self.app.focus_stays()

    def action_newline(self) -> None:
        self.insert("\n")

    def action_feelings(self) -> None:
        self.post_message(self.Asked("feelings"))

    def action_help(self) -> None:
        self.post_message(self.Asked("help"))

    def action_older(self) -> None:
        if self.wrapped_document.location_to_offset(self.cursor_location).y > 0 or not self.sent_before:
            self.action_cursor_up()
            return
        if self._at is None:
            self._at, self._changed = len(self.sent_before), {}
        if self._at > 0:
            self._recall(self._at, self._at - 1)

    def action_newer(self) -> None:
        last = self.wrapped_document.height - 1
        recalled = self._at is not None and self._at < len(self.sent_before)
        if not recalled or self.wrapped_document.location_to_offset(self.cursor_location).y < last:
            self.action_cursor_down()
            return
        assert self._at is not None
        self._recall(self._at, self._at + 1)

    def _recall(self, old: int, new: int) -> None:
        """Another message of before, or the draft, as the user has left it."""
        self._changed[old], self._at = self.text, new
        self._show(self._changed[new] if new in self._changed else self.sent_before[new])

    async def _on_paste(self, event: events.Paste) -> None:
        event.text = clean(event.text)  # textual goes on with the base class' own handler
