"""What the screens look like: characters and styles, against the files in ``tests/snapshots``.

``SNAPSHOTS=update pytest tests/tui/test_snapshots.py`` writes the files anew; look at the difference before
you keep it. A file has the screen's text, then one letter a cell for its style, then what the letters mean.
"""

from __future__ import annotations

import difflib
import os
import string
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.segment import Segment
from textual.widgets import Input, TextArea

import mlx_emotion
from mlx_emotion import Exchange, MLXEmotionError, Reply, Store
from mlx_emotion.library import Available
from mlx_emotion.tui.app import EmotionApp
from mlx_emotion.tui.settings import Settings

from .fakes import Fake, answered, ready, say, text_of, until

MADE_WITH = "8.2.8"
"""The version of textual that painted the files; another one may paint the same things otherwise."""

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(version("textual") != MADE_WITH, reason=f"the snapshots are textual {MADE_WITH}'s"),
]

FOLDER = Path(__file__).parents[1] / "snapshots"
UPDATE = os.environ.get("SNAPSHOTS") == "update"
LETTERS = string.ascii_letters + string.digits + "".join(chr(c) for c in range(0x3B1, 0x3CA))
ANSWER = (
    "I am **so glad** you asked! Here is what I would do:\n\n1. open the window\n2. look outside\n\nThen `breathe`."
)
STILL = Settings(animation=False)


def lines_of(app: EmotionApp) -> list[list[Segment]]:
    width, height = app.size
    app.console.width, app.console.height = width, height
    update = app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)
    segments = app.console.render(update, app.console.options.update(width=width, height=height))
    return list(Segment.split_lines(s for s in segments if not s.control))[:height]


def snapshot(app: EmotionApp) -> str:
    """The screen as text."""
    legend: dict[str, str] = {}
    texts, styles = [], []
    for line in lines_of(app):
        text = style = ""
        for segment in line:
            name = str(segment.style)
            letter = legend.setdefault(name, LETTERS[len(legend)])
            text += segment.text
            style += letter * cell_len(segment.text)
        texts.append(text.rstrip())
        styles.append(style)
    meanings = [f"{letter} {name}" for name, letter in legend.items()]
    return "\n".join([*texts, "-" * 20, *styles, "-" * 20, *meanings, ""])


async def check(pilot, name: str) -> None:
    """The screen is, or comes to be, as it was."""
    app, path = pilot.app, FOLDER / f"{name}.txt"
    for screen in app.screen_stack:
        for widget in screen.query("TextArea, Input"):
            assert isinstance(widget, TextArea | Input)
            widget.cursor_blink = False
    if UPDATE:
        seen = [""]
        while len(seen) < 4 or len(set(seen[-4:])) > 1:
            await pilot.pause(0.15)
            seen.append(snapshot(app))
        path.write_text(seen[-1], encoding="utf-8")
        return
    expected = path.read_text(encoding="utf-8")
    end = time.monotonic() + 300
    while snapshot(app) != expected:
        if time.monotonic() > end:
            found = difflib.unified_diff(expected.splitlines(), snapshot(app).splitlines(), lineterm="")
            pytest.fail("\n".join([f"{name} looks different", *found]))
        await pilot.pause(0.02)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The clock stands still, in UTC; the welcome has been seen."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr("mlx_emotion.store.now", lambda: "2026-02-03T04:05:06+00:00")
    monkeypatch.setattr("mlx_emotion.tui.loading.Loader.seconds", 2.0)
    Store().set_note("welcomed", "0")


@pytest.fixture
def fake() -> Fake:
    return Fake(says=ANSWER)


def earlier() -> None:
    """A conversation that was had before, its feeling changed half-way."""
    first = Reply("Who is *there*?", "stop", "joy", ((0, "fear:0.8"), (3, "joy")), tokens=6, model="fake")
    second = Reply("I was about to", "cancelled", "calm:0.5", ((0, "calm:0.5"),), tokens=5, model="fake")
    store = Store()
    id_ = store.create("fake")
    store.add(id_, Exchange("I heard a noise upstairs.").with_reply(first))
    store.add(id_, Exchange("Never mind.\nIt was the cat.").with_reply(second))
    store.close()


async def talked(pilot) -> None:
    await ready(pilot)
    await say(pilot, "What should I do?")
    await answered(pilot, 3)


@pytest.mark.parametrize("size", ["80x24", "100x30", "140x40"])
async def test_the_main_screen(make_app, size):
    earlier()
    app = make_app(resume="", feeling="joy:0.8,calm:0.3")
    async with app.run_test(size=tuple(map(int, size.split("x")))) as pilot:
        await talked(pilot)
        await check(pilot, f"main-{size}")


@pytest.mark.parametrize("size", ["100x30", "140x40"])
async def test_the_light_theme(make_app, size):
    earlier()
    app = make_app(resume="", feeling="joy:0.8", settings=Settings(theme="light", animation=False))
    async with app.run_test(size=tuple(map(int, size.split("x")))) as pilot:
        await talked(pilot)
        await check(pilot, f"light-{size}")


async def test_without_colour(make_app, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    earlier()
    app = make_app(resume="", feeling="joy:0.8")
    async with app.run_test(size=(100, 30)) as pilot:
        await talked(pilot)
        await check(pilot, "no-color-100x30")


async def test_the_folded_panel_opened(make_app):
    app = make_app(feeling="joy:0.8")
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("tab")
        await until(pilot, lambda: app.panel.bars.size.height > 5)  # it scrolls by what is laid out
        await pilot.press("down", "space")
        await check(pilot, "panel-80x24")


async def test_the_pad(make_app):
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await pilot.press("tab", "p", *["right"] * 4, *["up"] * 3)
        await check(pilot, "pad-140x40")


@pytest.mark.parametrize("size", ["80x24", "140x40"])
async def test_comparing(make_app, size):
    app = make_app()
    async with app.run_test(size=tuple(map(int, size.split("x")))) as pilot:
        await ready(pilot)
        app.box.put("Who is there?")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "6 chosen" in text_of(app))
        if size == "80x24":
            await check(pilot, "choose-80x24")
        await pilot.press("enter")
        await until(pilot, lambda: not getattr(app.screen, "running", True))
        await check(pilot, f"compare-{size}")


async def test_the_conversations(make_app):
    earlier()
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+o")
        await check(pilot, "conversations-100x30")


async def test_the_models(make_app, monkeypatch):
    found = [
        Available("embedded", Path("/e"), 1_100_000, "4-bit", (Path("p"),)),
        Available("mlx-community/Qwen2.5-7B-Instruct-4bit", Path("/q"), 4_300_000_000, "4-bit"),
        Available("broken", Path("/b"), 12, problem="no config.json"),
    ]
    monkeypatch.setattr(mlx_emotion, "available", lambda: found)
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "no config.json" in text_of(app))
        await check(pilot, "models-100x30")


async def test_the_keys(make_app):
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+k")
        await check(pilot, "help-140x40")


async def test_the_command_palette(make_app):
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+p")
        await until(pilot, lambda: "Answer again" in text_of(app))
        await check(pilot, "commands-100x30")


async def test_an_error(make_app):
    app = make_app(Fake(breaks_after=2))
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hello")
        await answered(pilot, 1)
        await check(pilot, "error-100x30")


async def test_a_tiny_window(make_app):
    earlier()
    app = make_app(resume="")
    async with app.run_test(size=(20, 5)) as pilot:
        await ready(pilot)
        await check(pilot, "tiny-20x5")


async def test_the_first_start_while_the_model_loads(fake):
    gate = threading.Event()

    def load(name):
        gate.wait(600)
        return fake

    class New(Store):
        def note(self, name):
            return None

    app = EmotionApp("some/model", load=load, store=New, settings=STILL)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "Tab goes" in text_of(app))
        await check(pilot, "first-start-100x30")
        gate.set()
        await ready(pilot)


async def test_a_model_that_cannot_be_loaded():
    def load(name):
        raise MLXEmotionError("no model folder './gone'; give a folder with config.json, or an id owner/name")

    app = EmotionApp("./gone", load=load, settings=STILL)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.loader.since is None)
        await check(pilot, "no-model-80x24")


async def test_a_model_without_a_pack(make_app):
    app = make_app(Fake(emotions=[]))
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await check(pilot, "no-pack-100x30")


async def test_thoughts(make_app, fake):
    fake = replace(fake, thinks="The user wants to know what to do. I could say a lot of things about windows.")
    fake.go.clear()
    app = make_app(fake)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await say(pilot, "What should I do?")
        await until(pilot, lambda: "windows" in text_of(app))
        await check(pilot, "thinking-80x24")
        fake.go.set()
        await answered(pilot, 1)
        await check(pilot, "thought-80x24")


async def test_coloured_words(make_app):
    app = make_app(Fake())
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hello")
        await answered(pilot, 1)
        await pilot.press("ctrl+b")
        await check(pilot, "words-100x30")


async def test_finding(make_app):
    earlier()
    app = make_app(resume="")
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+f", *"noise", "enter")
        await until(pilot, lambda: bool(app.query(".-found")))
        await check(pilot, "find-80x24")
