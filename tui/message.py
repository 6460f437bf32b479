"""The message box: several lines, a history, and pasted text made harmless."""

from __future__ import annotations

from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.widgets import TextArea

from .looks import clean
from .panel import binding


class MessageBox(TextArea):
    """Where the user writes. ``Sent`` carries the text; the box keeps it until ``sent`` is called."""

    BINDINGS = [
        binding("message.send", "send", show=True, label="Send", priority=True),
        binding("message.newline", "newline", priority=True),
        binding("message.older", "older"),
        binding("message.newer", "newer"),
        binding("feelings", "app.feelings", show=True, label="Feelings", priority=True),
        Binding("shift+tab", "app.messages", "To the conversation", show=False, priority=True),
        Binding("question_mark", "ask", "Help, in an empty box", show=False, priority=True),
    ]

    class Sent(Message):
        """The user sent the message."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, soft_wrap=True, tab_behavior="focus", placeholder="Say something")
        self.sent_before: list[str] = []
        self._at: int | None = None
        self._draft = ""

    def sent(self) -> None:
        """The message is safe elsewhere: remember it and empty the box."""
        if self.text.strip() and self.sent_before[-1:] != [self.text]:
            self.sent_before.append(self.text)
        self._at = None
        self.text = ""

    def put(self, text: str) -> None:
        """Another text, the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def action_send(self) -> None:
        if self.text.strip():
            self.post_message(self.Sent(clean(self.text)))

    def action_newline(self) -> None:
        self.insert("\n")

    def action_ask(self) -> None:
        if self.text:
            self.insert("?")
        else:
            self.app.run_worker(self.app.run_action("help"))

    def action_older(self) -> None:
        if self.wrapped_document.location_to_offset(self.cursor_location).y > 0 or not self.sent_before:
            self.action_cursor_up()
            return
        if self._at is None:
            self._draft, self._at = self.text, len(self.sent_before)
        if self._at > 0:
            self._at -= 1
            self.put(self.sent_before[self._at])

    def action_newer(self) -> None:
        last = self.wrapped_document.height - 1
        if self._at is None or self.wrapped_document.location_to_offset(self.cursor_location).y < last:
            self.action_cursor_down()
            return
        self._at += 1
        if self._at >= len(self.sent_before):
            self._at = None
            self.put(self._draft)
        else:
            self.put(self.sent_before[self._at])

    def _on_paste(self, event: events.Paste) -> None:
        event.text = clean(event.text)  # textual goes on with the base class' own handler
