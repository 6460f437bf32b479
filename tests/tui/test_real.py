"""The app on the model that ships, and in a real terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import numpy as np
import pytest

from mlx_emotion import EmotionVectors, Store
from mlx_emotion.tui.app import EmotionApp
from mlx_emotion.tui.settings import Settings
from mlx_emotion.vectors import PackInfo

from .fakes import answered, ready, replied, say, text_of, until


@pytest.fixture
def speaker(embedded):
    """The embedded model; with vectors of chance where it has none, for this is about the app."""
    if not embedded.emotions:
        rng = np.random.default_rng(0)
        identity = embedded.identity
        shape = (identity.layers, identity.width)
        vectors = {n: rng.standard_normal(shape) * 0.01 for n in ("anger", "calm", "fear", "joy", "sadness")}
        emotions = {n: {"instructions": [], "count": 1, "scale": 1.0} for n in vectors}
        embedded.use(EmotionVectors(vectors, PackInfo(identity, "attention", emotions)))
    return embedded


@pytest.mark.anyio
async def test_a_real_conversation(speaker):
    """Three live changes of feeling, a stop, a reply made again, a comparison, and going on another time."""
    options = {"max_tokens": 60}
    app = EmotionApp(load=lambda name: speaker, settings=Settings(animation=False), options=options, seed=1)
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        app.panel.bars.focus()
        for number, keys in enumerate((["space"], ["n", "down", "down", "space"], ["n", "b"]), start=1):
            app.box.focus()
            await say(pilot, "I heard a noise upstairs.")
            await until(pilot, lambda n=number: len(app.transcript.exchanges) == n and app.transcript.latest.pieces)
            app.panel.bars.focus()
            await pilot.press(*keys)
            await answered(pilot, number)
        felt = {f for e in app.transcript.exchanges for _, f in e.reply.timeline}
        assert len(felt) >= 3  # a change may come after its reply's last token, and then acts on the next
        assert all(e.reply.text and e.reply.tokens for e in app.transcript.exchanges)
        app.box.focus()
        await say(pilot, "Tell me more.")
        await pilot.press("escape")
        await answered(pilot, 4)
        assert app.transcript.exchanges[3].reply.state in ("cancelled", "stop")
        await pilot.press("ctrl+r")
        await replied(pilot, 3, 2)
        await pilot.press(*"And you?")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "6 chosen" in text_of(app))
        await pilot.press("enter")
        await until(pilot, lambda: getattr(app.screen, "running", None) is False, seconds=120)
        await pilot.press("2")
        await until(pilot, lambda: len(app.screen_stack) == 1 and len(app.transcript.exchanges) == 5)
        assert len(app.transcript.exchanges[4].replies) == 6
        assert app.panel.meter.own
    again = EmotionApp(load=lambda name: speaker, settings=Settings(animation=False), options=options, resume="")
    async with again.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        assert [e.user for e in again.transcript.exchanges][-1] == "And you?"
        await say(pilot, "Thank you.")
        await answered(pilot, 6)
        assert again.transcript.exchanges[5].reply.state in ("stop", "length")


class Terminal:
    """A pseudo-terminal with a program in it; ``seen`` is all it has written."""

    def __init__(self, *command: str, columns: int = 100, rows: int = 30) -> None:
        self.parent, child = pty.openpty()
        ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(child)
        environment = {**os.environ, "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none"}
        self.child = child
        self.process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
        self.seen = b""

    def read(self, seconds: float) -> None:
        if select.select([self.parent], [], [], seconds)[0]:
            self.seen += os.read(self.parent, 1 << 16)

    def until(self, text: bytes, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} never came; last: {self.seen[-2000:]!r}"
            self.read(0.1)

    def write(self, text: bytes) -> None:
        os.write(self.parent, text)

    def wait(self, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, "it does not end"
            self.read(0.1)
        while select.select([self.parent], [], [], 0.2)[0]:
            self.seen += os.read(self.parent, 1 << 16)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.parent)
        os.close(self.child)


@pytest.fixture
def terminal(tiny_model_path):
    command = [sys.executable, "-m", "mlx_emotion", "chat", "--model", str(tiny_model_path), "--max-tokens", "200"]
    made = Terminal(*command)
    yield made
    made.close()


def test_in_a_terminal_from_start_to_end(terminal):
    terminal.until(b"4-bit")
    terminal.write(b"hello\r")
    terminal.until(b"tok/s")
    terminal.write(b"\x11")
    assert terminal.wait() == 0
    assert terminal.seen.rstrip().endswith(b"\x1b[?25h") or b"\x1b[?1049l" in terminal.seen[-500:]
    assert terminal.seen.count(b"\x1b[?1049h") == terminal.seen.count(b"\x1b[?1049l")
    assert termios.tcgetattr(terminal.child) == terminal.before
    (exchange,) = Store().exchanges(Store().find().id)
    assert exchange.user == "hello"


def test_killed_in_the_middle_of_a_reply(terminal):
    terminal.until(b"4-bit")
    terminal.write(b"hello\r")
    store = None
    end = time.monotonic() + 60
    while store is None or not any(c.exchanges for c in store.conversations()):
        assert time.monotonic() < end
        terminal.read(0.01)
        store = store or Store()
    os.kill(terminal.process.pid, signal.SIGKILL)
    terminal.process.wait()
    (exchange,) = store.exchanges(store.find().id)
    assert exchange.user == "hello"
    assert exchange.reply is not None
    store.close()
