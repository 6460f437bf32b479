"""Bracketed paste, made whole.

Textual 8.2 ends a paste at the first escape character in it and takes the rest for keys that were pressed:
a pasted line break would send the message, a pasted control character leave the app.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from textual._xterm_parser import XTermParser
from textual.message import Message

from .looks import clean

BEGIN, END = "\x1b[200~", "\x1b[201~"


class Pastes:
    """Takes the control characters out of pastes, wherever the reads from the terminal cut them."""

    def __init__(self) -> None:
        self._inside = False
        self._passed = ""  # what went before, for a beginning that is cut
        self._held = ""  # what may be the first part of an end

    def clean(self, data: str) -> str:
        """``data``, the next read, without them."""
        out = ""
        while data:
            if not self._inside:
                at = (self._passed + data).find(BEGIN)
                count = len(data) if at < 0 else at + len(BEGIN) - len(self._passed)
                out += data[:count]
                self._inside = at >= 0
                self._passed = "" if self._inside else (self._passed + data)[1 - len(BEGIN) :]
                data = data[count:]
                continue
            data, self._held = self._held + data, ""
            at = data.find(END)
            if at >= 0:
                out += _harmless(data[:at]) + END
                self._inside = False
                data = data[at + len(END) :]
                continue
            cut = next((n for n in range(len(END) - 1, 0, -1) if data.endswith(END[:n])), 0)
            self._held = data[len(data) - cut :]
            out += _harmless(data[: len(data) - cut])
            data = ""
        return out


def _harmless(text: str) -> str:
    return "\r".join(map(clean, text.split("\r")))  # a line break may be cut in two, so it stays as it is


class Parser(XTermParser):
    """Textual's parser of what a terminal sends, behind a ``Pastes``."""

    def __init__(self, debug: bool = False) -> None:
        self._pastes = Pastes()
        super().__init__(debug)

    def feed(self, data: str) -> Iterable[Message]:
        cleaned = self._pastes.clean(data)
        if data and not cleaned:  # nothing at all would mean the end of the input
            return ()
        return super().feed(cleaned)


def install() -> None:
    """Let Textual's driver for terminals use ``Parser``."""
    if sys.platform != "win32":
        from textual.drivers import linux_driver

        linux_driver.XTermParser = Parser  # type: ignore[misc]
