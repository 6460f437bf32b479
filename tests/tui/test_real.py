"""The app on the model that ships, and in a real terminal."""

from __future__ import annotations

import re
import signal
import sys

import pytest

import mlx_emotion
from mlx_emotion import Store, models
from mlx_emotion.tui.app import EmotionApp
from mlx_emotion.tui.settings import Settings

from .fakes import say, text_of, until
from .terminal import CHAT, Terminal, endless, half_written

BROKEN = """
import sys
from mlx_emotion.cli import main
from mlx_emotion.tui.app import EmotionApp

def fail(self):
    raise RuntimeError("a fault of the app")

EmotionApp.action_help = fail
sys.exit(main())
"""
"""The program with a key that breaks it."""
PATIENT = """
import sys
from mlx_emotion.cli import main
from mlx_emotion.tui import app

app.LEAVE_SECONDS = 300
sys.exit(main())
"""
"""The program that takes its time to leave."""
LONG = 300
"""Seconds that a real model may take for something on a machine with much else to do."""


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> list[str]:
    """Options for a model that never ends its reply: what is done in the middle of one is never too late."""
    return endless(tmp_path_factory.mktemp("models") / "endless")


@pytest.fixture(scope="module")
def speaker(talker):
    """The same model, loaded."""
    model = mlx_emotion.load(talker[1], vectors=talker[3], force=True)
    yield model
    model.close()


@pytest.fixture
def terminal(monkeypatch):
    """``terminal(*command)``: a program in a terminal, ended with the test."""
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    made: list[Terminal] = []

    def make(*command: str) -> Terminal:
        made.append(Terminal(*command, columns=100, rows=30))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def ended(pilot, number: int, replies: int = 1) -> None:
    """Wait until so many replies have been made to message ``number``, the last of all."""
    app = pilot.app

    def over() -> bool:
        if app.talk.speaking is not None or len(app.transcript.exchanges) != number + 1:
            return False
        last = app.transcript.exchanges[-1]
        return len(last.replies) == replies and last.reply.state != "writing"

    await until(pilot, over, LONG)


@pytest.mark.anyio
async def test_a_real_conversation(speaker, monkeypatch):
    """Three replies that change in their middle and are stopped, one made again, a comparison, and all of it later."""
    settings, options = Settings(animation=False), {"max_tokens": 2000, "guard": False}
    app = EmotionApp(load=lambda name: speaker, settings=settings, options=options, seed=1)
    async with app.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: pilot.app.chat is not None, LONG)
        transcript = app.transcript

        def speaks(number: int) -> bool:
            return len(transcript.exchanges) > number == transcript.latest.number and bool(transcript.latest.pieces)

        for number, keys in enumerate((["space"], ["n", "down", "down", "space"], ["n", "b"])):
            app.box.focus()
            await say(pilot, "I heard a noise upstairs.")
            await until(pilot, lambda n=number: speaks(n), LONG)
            app.panel.bars.focus()
            await pilot.press(*keys)
            await until(pilot, lambda: len(transcript.latest.reply.timeline) >= 2, LONG)
            app.box.focus()
            await pilot.press("escape")
            await ended(pilot, number)
            reply = transcript.exchanges[number].reply
            assert reply.state == "cancelled"
            assert reply.text
            assert reply.text == "".join(piece for _, piece in transcript.latest.pieces).strip()
            assert len(reply.timeline) >= 2
            assert 0 < reply.timeline[1][0] <= reply.tokens
        app.chat.change(max_tokens=12)
        await pilot.press("ctrl+r")
        await ended(pilot, 2, replies=2)
        first, second = transcript.exchanges[2].replies
        assert (first, second.state) == (reply, "length")
        assert second.text != first.text
        assert transcript.exchanges[2].chosen == second.id
        # From here on it reads as much as the shipped model does: six times those replies take minutes on a slow BLAS.
        monkeypatch.setattr(models.LoadedModel, "context", 192)
        await pilot.press(*"And you?")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "6 chosen" in text_of(app), LONG)
        await pilot.press("enter")
        await until(pilot, lambda: getattr(app.screen, "running", None) is False, LONG)
        await pilot.press("2")
        await until(pilot, lambda: len(app.screen_stack) == 1 and len(transcript.exchanges) == 4, LONG)
        compared = transcript.exchanges[3]
        assert len(compared.replies) == 6
        assert compared.chosen == compared.replies[1].id
        assert app.panel.meter.own
        said = [(e.user, e.reply) for e in transcript.exchanges]
    options["max_tokens"] = 12
    again = EmotionApp(load=lambda name: speaker, settings=settings, options=options, resume="")
    async with again.run_test(size=(140, 40)) as pilot:
        await until(pilot, lambda: pilot.app.chat is not None, LONG)
        await until(pilot, lambda: len(again.transcript.exchanges) == 4, LONG)
        assert [(e.user, e.reply) for e in again.transcript.exchanges] == said
        await say(pilot, "Thank you.")
        await ended(pilot, 4)
        assert again.transcript.exchanges[4].reply.state == "length"


def test_in_a_terminal_from_start_to_end(terminal, tiny_model_path):
    app = terminal(*CHAT, "--model", str(tiny_model_path), "--max-tokens", "200")
    app.until(b"4-bit")
    app.write("hello\r")
    app.until(b"tok/s")
    app.write("\x11")
    assert app.wait() == 0
    assert app.left == []
    assert app.seen.count(b"\x1b[?1049h") == app.seen.count(b"\x1b[?1049l")
    (exchange,) = Store().exchanges(Store().find().id)
    assert exchange.user == "hello"


def test_killed_in_the_middle_of_a_reply(terminal, talker):
    """It is there when the app is opened again, and marked."""
    app = terminal(*CHAT, *talker, "--max-tokens", "4000")
    app.until(b"6-bit")
    app.write("hello\r")
    half_written(app)
    app.kill()
    (exchange,) = Store().exchanges(Store().find().id)
    assert (exchange.user, exchange.reply.state) == ("hello", "writing")
    later = terminal(*CHAT, *talker, "--resume")
    later.until(b"cut off")
    later.until(b"6-bit")
    assert max(re.findall(r"[a-z]+", exchange.reply.text)[-8:], key=len) in later.painted


def test_a_fault_leaves_the_terminal_as_it_was(terminal, tiny_model_path):
    app = terminal(sys.executable, "-c", BROKEN, "chat", "--model", str(tiny_model_path))
    app.until(b"4-bit")
    app.write("\x0b")
    assert app.wait() != 0
    assert app.left == []
    assert "a fault of the app" in app.painted


def test_ended_by_the_system_in_the_middle_of_a_reply(terminal, talker):
    """As if one had left it: the terminal is as it was, and what was said is kept."""
    app = terminal(sys.executable, "-c", PATIENT, *CHAT[3:], *talker, "--max-tokens", "4000")
    app.until(b"6-bit")
    app.write("hello\r")
    half = half_written(app)
    app.process.send_signal(signal.SIGTERM)
    app.wait()
    assert app.left == []
    (exchange,) = Store().exchanges(Store().find().id)
    assert exchange.reply.state == "cancelled"
    assert exchange.reply.text
    assert half.text.strip().startswith(exchange.reply.text[:20])
