"""What can be done with the messages on the screen: find one, copy it, look into a reply."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, cast

from textual.widgets import Input

from .looks import clean
from .panel import binding
from .transcript import ReplyMessage, UserMessage, pattern, says

if TYPE_CHECKING:
    from mlx_emotion import Exchange

    from .app import EmotionApp

CLIPBOARDS = (["pbcopy"], ["wl-copy"], ["xclip", "-selection", "clipboard"])


class Finder(Input):
    """The line that finds words in the conversation, as they are seen, from the end backwards."""

    BINDINGS = [
        binding("find.earlier", "step(False)"),
        binding("find.later", "step(True)"),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, placeholder="Find in this conversation; Enter goes back, Down forwards, Esc closes")
        self._found: tuple[str, int] = ("", -1)

    @property
    def open(self) -> bool:
        return self.has_class("-shown")

    def show(self) -> None:
        self.add_class("-shown")
        self.focus()

    def begin(self) -> None:
        """The next search begins at the end: it is another conversation."""
        self._found = ("", -1)

    def hide(self) -> None:
        self.remove_class("-shown")
        self._unmark()

    def _unmark(self) -> None:
        for message in self.screen.query(".-found"):
            message.remove_class("-found")
            cast("UserMessage | ReplyMessage", message).mark("")

    async def action_step(self, later: bool) -> None:
        await self.find(cast("EmotionApp", self.app), later)

    async def find(self, app: EmotionApp, later: bool = False) -> None:
        """Bring the next message that has the words into view: an earlier one, or a ``later`` one."""
        words = self.value.strip().lower()
        if not words:
            return
        exchanges = app.transcript.exchanges
        before, at = self._found
        count = len(exchanges)
        known = before == words and 0 <= at < count
        step, start = (1, at if known else -1) if later else (-1, at if known else count)
        for number in ((start + step * n) % count for n in range(1, count + 1)):
            if _has(exchanges[number], words):
                self._found = (words, number)
                await app.transcript.reveal(number, words)
                self.focus()
                self._unmark()
                for found in app.transcript.of(number):
                    found.add_class("-found")
                    found.mark(words)
                return
        app.notify(f"Not found: {self.value}", timeout=3, markup=False)


def _has(exchange: Exchange, words: str) -> bool:
    """Whether ``words`` are seen in a message, or in its reply that counts."""
    reply = exchange.reply
    return pattern(words).search(clean(exchange.user)) is not None or (reply is not None and says(reply.text, words))


def chosen(app: EmotionApp) -> UserMessage | ReplyMessage | None:
    """The message that has the focus, else the last reply."""
    return app.transcript.chosen or app.transcript.latest


def toggle_words(app: EmotionApp) -> None:
    """Colour the words of a reply by what was read, or plain again."""
    message = chosen(app)
    if isinstance(message, ReplyMessage) and message.live:
        app.notify("The words can be coloured when the reply is finished.", timeout=4)
    elif not isinstance(message, ReplyMessage) or not message.toggle_words():
        app.notify("Nothing was read for this reply; the meter reads those made in this window.", timeout=4)


def toggle_thoughts(app: EmotionApp) -> None:
    """Open or fold what the model thought before a reply."""
    message = chosen(app)
    if not isinstance(message, ReplyMessage) or not message.toggle_thoughts():
        app.notify("There are no thoughts before this message.", timeout=3)


def copy(app: EmotionApp) -> None:
    """Copy what is selected, else the chosen message.

    By OSC 52, and by the system's own tool where there is one (Terminal.app has no OSC 52).
    """
    message = app.transcript.chosen
    text = app.screen.get_selected_text() or (message.source if message is not None else clean(app.talk.last_said))
    if not text:
        app.notify("There is nothing to copy yet.", timeout=3)
        return
    app.copy_to_clipboard(text)
    tool = next((t for t in CLIPBOARDS if shutil.which(t[0])), None)
    if tool is not None:
        app.run_worker(lambda: _copy_with(tool, text), thread=True, group="copy", exit_on_error=False)
    app.notify("Copied.", timeout=2)


def _copy_with(tool: list[str], text: str) -> None:
    quiet = subprocess.DEVNULL
    subprocess.run(tool, input=text.encode(), check=False, timeout=5, stdout=quiet, stderr=quiet)
