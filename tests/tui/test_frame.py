"""The frame: sizes, help, settings, first start, loading, the dialogs."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from textual import events
from textual.binding import Binding
from textual.dom import DOMNode

import mlx_emotion
from mlx_emotion import CATALOGUE, Available, Exchange, MLXEmotionError, Reply, Step, Store, Token, UsageError
from mlx_emotion.files import config_file
from mlx_emotion.tui.app import EmotionApp
from mlx_emotion.tui.settings import KEYS, Settings

from .fakes import Fake, FullDisk, answered, ready, replied, say, styles_of, text_of, until

pytestmark = pytest.mark.anyio


async def compare(pilot, text: str) -> None:
    """Write a message and begin to compare it under six feelings."""
    pilot.app.box.put(text)
    await pilot.press("ctrl+t")
    await until(pilot, lambda: "6 chosen" in text_of(pilot.app))
    await pilot.press("enter")
    await until(pilot, lambda: hasattr(pilot.app.screen, "columns"))


def shown_keys(app) -> dict:
    """What the footer shows, by key."""
    return {key.key: key for key in app.screen.query("FooterKey")}


async def click_key(pilot, name: str) -> None:
    """Click a key in the footer once it is there and has its place."""
    await until(pilot, lambda: name in shown_keys(pilot.app) and shown_keys(pilot.app)[name].region.area > 0)
    await pilot.click(shown_keys(pilot.app)[name])


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (140, 40)])
async def test_every_size_shows_feeling_conversation_and_box(make_app, size):
    app = make_app(feeling="joy:0.8")
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await say(pilot, "hello")
        await answered(pilot, 1)
        await pilot.pause()
        shown = text_of(app)
        assert "joy 80 %" in shown
        assert "one two three" in shown
        assert "Say something" in shown
        assert app.panel.display is (size[0] >= 100)
        await pilot.press("tab")
        await until(pilot, lambda: app.panel.display)
        await pilot.pause()
        assert "████" in text_of(app)
        await pilot.press("escape")
        await pilot.pause()
        assert app.panel.display is (size[0] >= 100)


async def test_a_tiny_window_and_back(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await say(pilot, "hello")
        await answered(pilot, 1)
        for size in ((20, 5), (1, 1), (3, 40), (140, 40)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        assert "one two three" in text_of(app)
        await pilot.resize_terminal(20, 5)
        await say(pilot, "still here")
        await answered(pilot, 2)


async def test_the_first_start_explains_itself_once(make_app):
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.pause()
        assert "Tab goes to the emotions" in text_of(app)
    again = make_app()
    async with again.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.pause()
        assert "Tab goes to the emotions" not in text_of(again)


async def test_help_lists_every_id(make_app):
    app = make_app()
    async with app.run_test(size=(120, 60)) as pilot:
        await ready(pilot)
        await pilot.press("question_mark")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.pause()
        shown = text_of(app)
        await pilot.press("end")
        await until(pilot, lambda: list(KEYS)[-1] in text_of(app))
        shown += text_of(app)
        assert [i for i in KEYS if i not in shown] == []
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)


async def test_the_end_of_the_help_is_reached_in_a_low_window(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+k")
        await until(pilot, lambda: "Ctrl+P finds every command" in text_of(app))
        await pilot.press("end")
        await until(pilot, lambda: list(KEYS)[-1] in text_of(app))


def test_settings_tell_what_is_wrong_and_keep_the_rest():
    settings = Settings.of(
        {
            "theme": "light",
            "animation": "no",
            "colour": 1,
            "keys": {"message": {"send": "ctrl+s"}, "messag.send": "x", "again": 3},
        }
    )
    assert settings.theme == "light"
    assert settings.animation is True
    assert settings.keys == {"message.send": "ctrl+s"}
    told = "\n".join(settings.problems)
    assert "tui.animation is 'no', wanted true or false" in told
    assert "unknown setting tui.colour" in told
    assert "did you mean 'message.send'?" in told
    assert "tui.keys.again is 3" in told
    assert Settings.of([]).problems


def test_settings_tell_of_a_name_that_there_is_not(home):
    config_file().parent.mkdir(parents=True)
    config_file().write_text('modle = "a"\nmodel = "b"\n[tui]\ntheme = "light"')
    settings = Settings.load()
    assert settings.theme == "light"
    assert settings.problems == ("unknown setting modle: known are model, tui",)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("crtl+e", "'crtl' is not one of alt, ctrl"),
        ("ctrl+e,f99", "there is no key 'f99'"),
        ("return", "there is no key 'return'"),
        ("ctrl+e,", "a comma too many"),
        ("ctrl+g", "ctrl+g is the key of edit too"),
        ("ctrl+p", "ctrl+p is the key of the command palette too"),
    ],
)
def test_a_key_that_cannot_work_is_told(keys, told):
    settings = Settings.of({"keys": {"again": keys}})
    assert settings.keys == {}
    assert told in settings.problems[0]


def test_keys_are_taken_by_the_names_that_textual_has():
    given = {"again": "?, shift+ctrl+left", "edit": "ctrl+r", "copy": "f2", "conversations.undo": "ctrl+r"}
    settings = Settings.of({"keys": given})
    assert settings.problems == ()
    assert settings.keys["again"] == "question_mark,ctrl+shift+left"
    assert settings.keys["edit"] == "ctrl+r"  # `again` has left it, and no conversation is renamed there
    both = Settings.of({"keys": {"again": "f5", "copy": "f5"}})
    assert both.keys == {"again": "f5"}


@pytest.mark.parametrize(
    ("keys", "other"),
    [
        ({"transcript.copy": "r"}, "transcript.again"),
        ({"transcript.copy": "ctrl+r"}, "again"),
        ({"find.later": "escape"}, "stop"),
        ({"compare.start": "escape"}, "dialog.close"),
        ({"compare.right": "enter"}, "compare.take"),
        ({"compare.take": "ctrl+q"}, "quit"),
        ({"compare.take": "6"}, "a reply"),
        ({"panel.neutral": "5"}, "an intensity"),
    ],
)
def test_two_actions_of_one_place_cannot_share_a_key(keys, other):
    settings = Settings.of({"keys": keys})
    assert settings.keys == {}
    assert f"is the key of {other} too" in settings.problems[0]


def test_actions_of_different_places_can_share_a_key():
    keys = {"transcript.copy": "b", "find.later": "c", "compare.take": "ctrl+r", "compare.start": "right"}
    keys["transcript.edit"] = "tab"  # which goes to the emotions from the box alone
    assert Settings.of({"keys": keys}) == Settings(keys=keys)


def test_every_key_but_digits_has_an_id():
    found = 0
    for path in (Path(__file__).parents[2] / "tui").glob("*.py"):
        module = importlib.import_module(f"mlx_emotion.tui.{path.stem}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, DOMNode) and kind.__module__ == module.__name__:
                for key in vars(kind).get("BINDINGS", ()):
                    assert isinstance(key, Binding)
                    assert key.id in KEYS or key.key.isdigit(), f"{kind.__name__}: {key.key}"
                    found += 1
    assert found > len(KEYS) / 2


async def test_keys_of_the_conversation_of_find_and_of_compare_can_be_changed(make_app, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    keys = {"transcript.copy": "z", "find.earlier": "f4"}
    keys |= {"compare.start": "f5", "compare.right": "n", "compare.take": "y"}
    app = make_app(settings=Settings(animation=False, keys=keys))
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        for n, text in enumerate(("one thing", "two")):
            await say(pilot, text)
            await answered(pilot, n + 1)
        await pilot.press("shift+tab")
        await until(pilot, lambda: app.transcript.chosen is not None)
        await pilot.press("c", "up")
        assert app.clipboard == ""
        await pilot.press("z")
        await until(pilot, lambda: app.clipboard == "two")
        await pilot.press("ctrl+f", *"thing", "enter", "f4")
        await until(pilot, lambda: bool(app.query(".-found")))
        assert {m.number for m in app.query(".-found")} == {0}
        await pilot.press("escape", *"who", "ctrl+t")
        await until(pilot, lambda: "6 chosen" in text_of(app))
        await pilot.press("f5")
        await until(pilot, lambda: hasattr(app.screen, "columns") and not app.screen.running)
        await pilot.press("n", "enter")
        assert hasattr(app.screen, "columns")
        await pilot.press("y")
        await until(pilot, lambda: len(app.transcript.exchanges) == 3)
        assert app.transcript.exchanges[2].reply.text == "who with anger"


async def test_an_action_of_several_keys_is_given_one(make_app):
    app = make_app(settings=Settings(animation=False, keys={"panel.more": "m", "panel.up": "u", "messages": "f3"}))
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        app.panel.bars.focus()
        await pilot.press("right", "m", "u", "m")
        await until(pilot, lambda: app.feelings.current.weights == (("anger", 0.05), ("base", 0.05)))
        await pilot.pause()
        assert "lost it" not in text_of(app)


def test_the_app_uses_only_what_the_library_offers():
    for path in (Path(__file__).parents[2] / "tui").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names if a.name.split(".")[0] == "mlx_emotion"]
                assert names in ([], ["mlx_emotion"]), path
            elif isinstance(node, ast.ImportFrom) and node.level < 2 and (node.module or "").startswith("mlx_emotion"):
                assert node.module == "mlx_emotion", path
                assert {a.name for a in node.names} <= set(mlx_emotion.__all__), path
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2, path
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "mlx_emotion":
                assert node.attr in mlx_emotion.__all__, path


def test_a_config_that_is_not_toml_is_a_problem_not_an_error(home):
    path = home / "config" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[tui\n")
    assert str(path) in Settings.load().problems[0]
    path.write_text('[tui]\ntheme = "light"\n[tui.keys]\nmessage.send = "ctrl+s"\n')
    assert Settings.load() == Settings(theme="light", keys={"message.send": "ctrl+s"})


async def test_keys_can_be_changed(make_app):
    settings = Settings(animation=False, keys={"message.send": "ctrl+s", "again": "ctrl+x"})
    app = make_app(settings=settings)
    async with app.run_test() as pilot:
        await ready(pilot)
        await pilot.press("a", "enter", "b", "ctrl+s")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].user == "a\nb"
        await pilot.press("ctrl+x")
        await replied(pilot, 0, 2)


async def test_light_and_dark(make_app):
    app = make_app(settings=Settings(theme="light", animation=False))
    async with app.run_test() as pilot:
        await ready(pilot)
        assert not app.current_theme.dark
        app.action_theme()
        assert app.current_theme.dark


async def test_a_message_sent_while_loading_is_answered_later(fake):
    gate = threading.Event()

    def load(name):
        gate.wait(300)
        return fake

    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(120, 30)) as pilot:
        await say(pilot, "early")
        await until(pilot, lambda: app.talk.waiting)
        assert app.box.text == "early"
        gate.set()
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].user == "early"


async def test_a_message_sent_while_loading_does_not_go_into_another_conversation(fake):
    gate, store = threading.Event(), Store()
    other = store.create("fake")
    store.add(other, Exchange("of another"))
    store.close()

    def load(name):
        gate.wait(300)
        return fake

    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(120, 30)) as pilot:
        await say(pilot, "secret")
        await until(pilot, lambda: app.talk.waiting)
        await app.talk.open(other)
        gate.set()
        await ready(pilot)
        await pilot.pause()
        assert app.box.text == "secret"
        assert [e.user for e in app.talk.store.exchanges(other)] == ["of another"]


async def test_a_message_changed_while_loading_is_not_sent_by_itself(fake):
    gate = threading.Event()

    def load(name):
        gate.wait(300)
        return fake

    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(120, 30)) as pilot:
        await say(pilot, "early")
        await until(pilot, lambda: app.talk.waiting)
        assert app.box.text == "early"
        await pilot.press("x")
        await until(pilot, lambda: not app.talk.waiting)
        await until(pilot, lambda: "You have changed your message" in text_of(app))
        gate.set()
        await ready(pilot)
        await pilot.pause()
        assert app.box.text == "earlyx"
        assert app.talk.speaking is None
        await pilot.press("enter")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].user == "earlyx"


async def test_what_is_written_behind_a_message_that_waits_does_not_go_with_it(fake):
    gate = threading.Event()
    app = EmotionApp(load=lambda name: gate.wait(300) and fake, settings=Settings(animation=False))
    async with app.run_test(size=(120, 30)) as pilot:
        app.box.put("begun")
        await app.talk.send("early")
        assert app.box.text == "early\nbegun"
        assert not app.talk.waiting
        gate.set()
        await ready(pilot)


async def test_a_message_waits_no_more_when_the_load_has_failed(fake):
    gate = threading.Event()

    def load(name):
        if name is None:
            gate.wait(300)
            raise MLXEmotionError("no such model")
        return fake

    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(120, 30)) as pilot:
        await say(pilot, "early")
        await until(pilot, lambda: app.talk.waiting)
        gate.set()
        await until(pilot, lambda: app.loader.since is None)
        await pilot.pause()
        assert not app.talk.waiting
        assert "no such model" in text_of(app)
        app.loader.begin("other")
        await ready(pilot)
        await pilot.pause()
        assert app.box.text == "early"
        assert app.transcript.exchanges == []


async def test_a_model_that_cannot_be_loaded_and_then_one_that_can(fake, monkeypatch):
    def load(name):
        if name == "gone":
            raise MLXEmotionError("no model folder 'gone'")
        return fake

    monkeypatch.setattr(mlx_emotion, "available", lambda: [Available("other", "/x", 5_000_000, "4-bit", ("p",))])
    app = EmotionApp("gone", load=load, settings=Settings(animation=False))
    async with app.run_test(size=(140, 30)) as pilot:
        await until(pilot, lambda: app.loader.since is None)
        await pilot.pause()
        assert "no model folder 'gone'" in text_of(app)
        await pilot.press("x", "enter")
        await pilot.pause()
        assert app.box.text == "x"
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "has a pack" in text_of(app))
        await pilot.press("enter")
        await ready(pilot)
        await pilot.press("escape", "enter")
        await answered(pilot, 1)


async def test_a_pack_that_does_not_fit_and_then_another_model(fake, monkeypatch):
    asked = []

    def load(name, progress, **given):
        asked.append((name, given))
        if "vectors" in given:
            raise MLXEmotionError("p.safetensors is not for this model: width 64, wanted 192")
        return fake

    monkeypatch.setattr(mlx_emotion, "load", load)
    monkeypatch.setattr(mlx_emotion, "available", lambda: [Available("other", "/x", 5_000_000, "4-bit", ("p",))])
    given = {"vectors": "p.safetensors", "adapter": "a", "site": "residual"}
    app = EmotionApp("one", loading=given, settings=Settings(animation=False))
    async with app.run_test(size=(140, 30)) as pilot:
        await until(pilot, lambda: "p.safetensors is not for this model: width 64" in text_of(app))
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "has a pack" in text_of(app))
        await pilot.press("enter")
        await ready(pilot)
        await pilot.press("escape")
        await say(pilot, "hello")
        await answered(pilot, 1)
    assert asked == [("one", given), ("other", {"site": "residual"})]


async def test_loading_can_be_cancelled(fake, monkeypatch):
    slow, gate = Fake(id="slow"), threading.Event()

    def load(name):
        if name == "slow":
            gate.wait(300)
            return slow
        return fake

    monkeypatch.setattr(mlx_emotion, "available", lambda: [Available("slow", "/x", 5_000_000, "4-bit")])
    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "no pack yet" in text_of(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.loader.since is not None)
        await pilot.press("x")
        assert app.loader.since is None
        await pilot.press("escape")
        await say(pilot, "still you?")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].reply.model == "fake"
        assert app.loader.behind
        gate.set()
        await until(pilot, lambda: slow.closed)
        assert not app.loader.behind
        assert app.model is fake


async def test_a_model_is_taken_when_the_reply_has_ended(fake):
    other, gate = Fake(id="other"), threading.Event()

    def load(name):
        if name != "other":
            return fake
        gate.wait(300)
        return other

    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        app.loader.begin("other")
        fake.go.clear()
        await say(pilot, "while it loads")
        await until(pilot, lambda: app.talk.speaking is not None)
        gate.set()
        await until(pilot, lambda: app.loader.since is None)
        assert app.model is fake
        fake.go.set()
        await answered(pilot, 1)
        await until(pilot, lambda: app.model is other and fake.closed)
        reply = app.transcript.exchanges[0].reply
        assert (reply.model, reply.text, reply.state) == ("fake", fake.says, "stop")
        await say(pilot, "and now?")
        await answered(pilot, 2)
        assert app.transcript.exchanges[1].reply.model == "other"
        assert other.chats[0].turns[0] == ["while it loads", fake.says]


async def test_a_model_is_taken_when_the_comparison_has_ended(fake):
    other = Fake(id="other")
    app = EmotionApp(load=lambda name: other if name == "other" else fake, settings=Settings(animation=False))
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await compare(pilot, "who")
        app.loader.begin("other")
        await until(pilot, lambda: app.loader.since is None)
        await until(pilot, lambda: not app.screen.running)
        assert app.model is fake
        await pilot.press("1")
        await until(pilot, lambda: app.model is other and fake.closed)
        assert app.transcript.exchanges[0].reply.model == "fake"


async def test_a_folder_is_listed_by_its_path(fake, monkeypatch, tmp_path):
    asked = []

    def load(name):
        asked.append(name)
        return fake

    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlx_emotion, "available", list)
    app = EmotionApp("./mine", load=load, settings=Settings(animation=False))
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "no such file" in text_of(app).lower())  # it has no config.json
        await pilot.press("tab", *"other/model", "enter")
        await until(pilot, lambda: asked[-1] == "other/model")
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        await pilot.press("escape", "ctrl+l")
        await until(pilot, lambda: "no pack yet" in text_of(app))
        await pilot.press("enter")
        await until(pilot, lambda: asked[-1] == "./mine")


async def test_what_the_footers_show_can_be_clicked(make_app, fake):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await until(pilot, lambda: "ctrl+p" in shown_keys(app))  # the footer is empty while it is made anew
        assert shown_keys(app)["ctrl+p"].description == "palette"
        assert "escape" not in shown_keys(app)
        fake.go.clear()
        await say(pilot, "hi")
        await click_key(pilot, "escape")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].reply.state == "cancelled"
        await until(pilot, lambda: "ctrl+o" in shown_keys(app) and "escape" not in shown_keys(app))
        await click_key(pilot, "ctrl+o")
        await click_key(pilot, "d")
        await until(pilot, lambda: app.talk.store.conversations() == [])
        await click_key(pilot, "escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)


async def test_a_conversation_that_cannot_be_resumed_is_told_after_the_load_too(make_app):
    app = make_app(resume="nothing")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.pause()
        assert "no conversation 'nothing'" in text_of(app)


async def test_a_load_that_hangs_does_not_hold_the_exit():
    gate = threading.Event()
    app = EmotionApp(load=lambda name: gate.wait(600), settings=Settings(animation=False))
    async with app.run_test() as pilot:
        await until(pilot, lambda: any(t.name == "load" for t in threading.enumerate()))
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app._exit)
    loads = [t for t in threading.enumerate() if t.name == "load"]
    assert loads
    assert all(t.daemon for t in loads)  # the interpreter does not wait for it
    gate.set()
    for thread in loads:
        thread.join(10)


async def test_what_is_prepared_does_not_hold_the_exit(make_app, fake, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(Fake, "prepare", lambda model: gate.wait(600))
    app = make_app(options={"readout": True})
    async with app.run_test() as pilot:
        await ready(pilot)
        assert app.loader.busy  # so leaving does not wait
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app._exit)
    preparing = [t for t in threading.enumerate() if t.name == "prepare"]
    assert preparing
    assert all(t.daemon for t in preparing)
    gate.set()
    for thread in preparing:
        thread.join(10)
    assert not app.loader.busy


async def test_the_keys_of_a_panel_that_is_gone_go_to_the_message(make_app):
    app = make_app()
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        app.panel.bars.focus()  # as a click does; Tab would open it in the narrow window too
        await until(pilot, lambda: app.panel.has_focus_within)
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.box.has_focus and not app.panel.display)
        await pilot.press("n")
        await until(pilot, lambda: app.box.text == "n")


async def test_a_name_that_the_system_refuses_is_no_folder(make_app, monkeypatch):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        assert not app.has("/" + "x" * 300)
    listed = mlx_emotion.in_folders(["/" + "x" * 300, "~nobody-at-all/x"], [])
    assert [m.name for m in listed if m.name != "embedded"] == []


async def test_leaving_stores_a_reply_under_way(make_app, fake):
    fake.go.clear()
    app, store = make_app(), Store()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "hi")
        await until(pilot, lambda: app.talk.speaking is not None)
        await pilot.press("ctrl+q")
        (exchange,) = store.exchanges(store.find().id)
        assert exchange.reply.state == "cancelled"
    assert app.return_code == 0
    store.close()


async def test_what_a_full_disk_loses_at_the_end_is_told(make_app, fake, capsys):
    app = make_app(store=FullDisk)
    async with app.run_test() as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "my [b]question")
        await until(pilot, lambda: app.talk.speaking is not None)
        app.talk.store.full = True
        await pilot.press("ctrl+q")
    told = " ".join(capsys.readouterr().err.split())
    assert "the disk is full. Not saved: a reply to “my [b]question”." in told
    assert app.return_code == 1


async def test_a_reply_that_does_not_stop_in_time_is_stored_as_far_as_it_came(make_app, fake, monkeypatch):
    monkeypatch.setattr("mlx_emotion.tui.app.PARTING", 0.05)
    fake.waits_on_change = True
    app, store = make_app(), Store()
    async with app.run_test() as pilot:
        await ready(pilot)
        monkeypatch.setattr(fake.chats[0], "stop", lambda: None)
        fake.go.clear()
        await say(pilot, "hi")
        await until(pilot, lambda: app.talk.speaking is not None)
        app.feelings.set(fake.feeling("joy"))
        fake.go.set()  # one word, and then it waits
        await until(pilot, lambda: app.talk.last_said == "one")
        await pilot.press("ctrl+q")
        reply = store.exchanges(store.find().id)[0].reply
        assert (reply.text, reply.state) == ("one", "cancelled")
        fake.go.set()
    store.close()


def test_a_program_in_a_hurry_waits_for_no_thread():
    program = (
        "import mlx_emotion, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('over')\n"
        "mlx_emotion.hurry(3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "over\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
async def test_a_signal_leaves_in_good_order(make_app, name, monkeypatch):
    monkeypatch.setattr("mlx_emotion.tui.app.LEAVE_SECONDS", 100_000)  # the tests go on
    number = getattr(signal, name)
    before = signal.getsignal(number)
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        os.kill(os.getpid(), number)
        await until(pilot, lambda: app._exit)
    assert signal.getsignal(number) == before


async def test_the_memory_is_weighed_again_when_the_old_model_is_gone(fake):
    class Heavy(Fake):
        @property
        def memory(self):
            return 9_000_000_000 if not fake.closed else 4_000_000_000

        @memory.setter
        def memory(self, value):
            pass

    other = Heavy(id="other")
    app = EmotionApp(load=lambda name: other if name == "other" else fake, settings=Settings(animation=False))
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        app.loader.begin("other")
        await until(pilot, lambda: "other · 4-bit · 4.0 GB" in text_of(app))


async def test_a_reply_under_way_shows_its_speed(make_app, fake, monkeypatch):
    monkeypatch.setattr("mlx_emotion.tui.talk.PATIENCE", 0.0)
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "hi")
        await until(pilot, lambda: app.talk.speaking is not None)
        for index in range(4):
            app.talk.speaking.inbox.append(Token(" x", index))
            await app.talk.drain()
        await pilot.pause()
        shown = text_of(app)
        fake.go.set()
        await answered(pilot, 1)
        assert " · 4 tokens · " in shown
        assert " tok/s" in shown


async def test_a_key_typed_before_the_store_is_open(make_app):
    def store():
        app.action_conversations()
        return Store()

    app = make_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await until(pilot, lambda: "No conversation yet" in text_of(app))


async def test_a_download_shows_its_bytes(fake, monkeypatch):
    gate = threading.Event()

    def load(name, progress, **given):
        if name == "owner/large":
            progress(1_000_000, 4_300_000_000)
        if name is not None:
            gate.wait(300)
        return fake

    monkeypatch.setattr(mlx_emotion, "load", load)
    monkeypatch.setattr(mlx_emotion, "available", list)
    app = EmotionApp(settings=Settings(animation=False))
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        app.loader.begin("owner/large")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: text_of(app).count("1 MB of 4.3 GB fetched") == 2)  # in the header and the dialog
        app.loader.begin("owner/other")
        await until(pilot, lambda: "loading owner/other" in text_of(app))
        assert "fetched" not in app.loader.told  # the other download may go on behind
        gate.set()


async def test_a_model_is_not_loaded_twice(fake, monkeypatch):
    asked, gate = [], threading.Event()
    other = Fake(id="owner/other")

    def load(name):
        asked.append(name)
        if name is None:
            return fake
        gate.wait(300)
        return other

    monkeypatch.setattr(mlx_emotion, "available", lambda: [Available("owner/other", "/x", 5_000_000, "4-bit")])
    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "no pack yet" in text_of(app))
        await pilot.press("enter", "enter")
        await until(pilot, lambda: "owner/other is in use already, or is being loaded" in text_of(app))
        gate.set()
        await until(pilot, lambda: app.model is other)
        await pilot.press("enter")
        await pilot.pause()
        assert app.loader.since is None
        assert asked == [None, "owner/other"]


async def test_no_pack_is_made_during_a_reply(fake, monkeypatch):
    gate, made = threading.Event(), []

    def load(name):
        gate.wait(300)
        return fake

    monkeypatch.setattr(mlx_emotion, "make_pack", lambda *given, **more: made.append(given))
    monkeypatch.setattr(mlx_emotion, "available", list)
    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(140, 30)) as pilot:
        await say(pilot, "early")
        await until(pilot, lambda: app.talk.waiting)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        fake.go.clear()
        gate.set()
        await until(pilot, lambda: app.talk.speaking is not None)
        await pilot.press("q")
        await until(pilot, lambda: "A reply is under way" in text_of(app))
        fake.go.set()
        await answered(pilot, 1)
        assert made == []


async def test_names_and_titles_are_shown_without_control_characters(make_app, monkeypatch):
    store = Store()
    id_ = store.fork("mo\x1bdel", "t", [Exchange("hi").with_reply(Reply("ho", state="stop"))])
    store.rename(id_, "re\x1b[31md\nand more")
    store.close()
    models = [Available("na\x1bme\x9b", "/x", 5, problem="b\x07ad"), Available("other", "/y", 5, "4\x1b-bit")]
    monkeypatch.setattr(mlx_emotion, "available", lambda: models)
    app = make_app(Fake(id="a/mo\x1bdel", quantization="8\x1b-bit"))
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: "message ·" in text_of(app))
        assert "re[31md and more  1 message · model" in text_of(app)
        await pilot.press("escape", "ctrl+l")
        await until(pilot, lambda: "name  5 B  bad" in text_of(app))
        assert "4-bit" in text_of(app)
        await pilot.press("escape")
        app.warn("a\x1b]52;c;x\x07")
        await until(pilot, lambda: "a]52;c;x" in text_of(app))
        assert "a/model · 8-bit" in text_of(app)


async def test_what_was_shown_before_the_model_came_is_described_anew(make_app):
    store = Store()
    store.fork("m", "t", [Exchange("hi").with_reply(Reply("ho", "stop", "nostalgia"))])
    store.close()
    fake = Fake()
    fake.catalogue = {**fake.catalogue, "nostalgia": replace(CATALOGUE["joy"], name="nostalgia")}
    app = make_app(fake, resume="")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(pilot)
        await until(pilot, lambda: "nostalgia" in text_of(app))


async def test_opening_a_conversation_goes_to_the_message(make_app):
    store = Store()
    other = store.fork("m", "other", [Exchange("hi").with_reply(Reply("ho", state="stop"))])
    store.close()
    app = make_app()
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "one")
        await answered(pilot, 1)
        await pilot.press("shift+tab")
        await until(pilot, lambda: app.transcript.chosen is not None)
        await app.talk.open(other)
        await until(pilot, lambda: app.box.has_focus)
        assert [e.user for e in app.transcript.exchanges] == ["hi"]


async def test_a_model_that_disappears_leaves_the_one_in_use(fake, monkeypatch):
    def load(name):
        if name == "gone":
            raise MLXEmotionError("no model folder 'gone'")
        return fake

    monkeypatch.setattr(mlx_emotion, "available", lambda: [Available("gone", "/x", 5_000_000, "4-bit")])
    app = EmotionApp(load=load, settings=Settings(animation=False))
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "no pack yet" in text_of(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.loader.since is None)
        await pilot.press("escape")
        await until(pilot, lambda: "no model folder 'gone'" in text_of(app))
        await say(pilot, "still you?")
        await answered(pilot, 1)


async def test_no_color_leaves_no_hue(make_app, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(feeling="joy")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hello")
        await answered(pilot, 1)
        await pilot.pause()
        colours = [c for s in styles_of(app) for c in (s.color, s.bgcolor) if c is not None and not c.is_default]
        assert colours
        for colour in colours:
            red, green, blue = colour.get_truecolor()
            assert red == green == blue


@pytest.mark.parametrize(
    ("setting", "variable", "level"), [(True, "full", "full"), (True, "none", "none"), (False, "full", "none")]
)
async def test_nothing_moves_where_that_is_wanted(fake, monkeypatch, setting, variable, level):
    monkeypatch.setattr("textual.constants.TEXTUAL_ANIMATIONS", variable)
    app = EmotionApp(load=lambda name: fake, settings=Settings(animation=setting))
    async with app.run_test() as pilot:
        await ready(pilot)
        assert app.animation_level == level


async def test_extracting_a_pack_shows_progress_and_can_be_stopped(make_app, monkeypatch):
    fake = Fake(emotions=[])
    limits = []

    def make_pack(model, limit, progress, stopped, replace):
        limits.append(limit)
        progress(Step("extracting", 5, 200, 2))
        while not stopped():
            time.sleep(0.01)
        raise MLXEmotionError("extraction stopped; the same command goes on from here")

    monkeypatch.setattr(mlx_emotion, "make_pack", make_pack)
    monkeypatch.setattr(mlx_emotion, "available", list)
    app = make_app(fake)
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("q")
        await until(pilot, lambda: "extracting: 5 of 200" in text_of(app))
        assert "going on from 2" in text_of(app)
        await pilot.press("escape")
        await until(pilot, lambda: "extraction stopped" in text_of(app))
        assert limits == [20]


async def test_a_better_pack_is_replaced_by_the_second_press_alone(make_app, monkeypatch):
    made, asked = [], []

    def make_pack(model, limit, progress, stopped, replace):
        asked.append(limit)
        if not replace:
            raise UsageError("p.safetensors was made with more queries (100 for fear); nothing was made")
        made.append(limit)

    monkeypatch.setattr(mlx_emotion, "make_pack", make_pack)
    monkeypatch.setattr(mlx_emotion, "available", list)
    app = make_app()
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        for number, key in enumerate("qf", start=1):
            await pilot.press(key)
            await until(pilot, lambda n=number: len(asked) == n)
            await until(pilot, lambda: "same key again makes it all the same" in text_of(app))
            await until(pilot, lambda: app.screen._stop is None)
        assert made == []
        await pilot.press("f")
        await until(pilot, lambda: "The pack is made" in text_of(app))
        assert made == [None]


async def test_conversations_are_listed_renamed_deleted_and_brought_back(make_app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        for text in ("first talk", "second talk"):
            await app.talk.new()
            await say(pilot, text)
            await answered(pilot, 1)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: "first talk" in text_of(app))
        await pilot.press("r")
        await pilot.press(*"!", "enter")
        await until(pilot, lambda: app.talk.store.conversations()[0].title.endswith("!"))
        await pilot.press("d")
        await until(pilot, lambda: len(app.talk.store.conversations()) == 1)
        await pilot.press("u")
        await until(pilot, lambda: len(app.talk.store.conversations()) == 2)
        await pilot.press("j", "m")
        await until(pilot, lambda: len(list(tmp_path.glob("*talk*.md"))) == 1)
        (exported,) = tmp_path.glob("*talk*.json")
        assert json.loads(exported.read_text())["exchanges"][0]["user"] == "second talk"
        await pilot.press("i", *str(exported), "enter")
        await until(pilot, lambda: len(app.talk.store.conversations()) == 3)
        gone = app.screen._current
        other = Store()
        other.delete(gone)
        await pilot.press("r")
        await until(pilot, lambda: "deleted in another window" in text_of(app))
        other.undelete(gone)
        other.close()
        await pilot.press("i", *"/missing.json", "enter")
        await until(pilot, lambda: "No such file" in text_of(app))
        await pilot.press("escape", "end")
        first = app.screen._current
        await pilot.press("r", *"?", "enter")
        await until(pilot, lambda: "first talk?" in text_of(app))
        assert app.screen._current == first
        await pilot.press("d")
        await until(pilot, lambda: "first talk?" not in text_of(app))
        await pilot.press("u")
        await until(pilot, lambda: "first talk?" in text_of(app))
        assert app.screen._current == first
        await pilot.press("enter")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert app.transcript.exchanges[0].user == "first talk"


async def test_compare_and_go_on_with_one(make_app, fake):
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await say(pilot, "before")
        await answered(pilot, 1)
        await pilot.press(*"who")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "6 chosen" in text_of(app))
        await pilot.press("enter")
        await until(pilot, lambda: not getattr(app.screen, "running", True))
        await pilot.pause()
        assert "who with anger" in text_of(app)
        await pilot.press("5")
        await until(pilot, lambda: len(app.screen_stack) == 1 and len(app.transcript.exchanges) == 2)
        assert app.transcript.exchanges[1].reply.text == "who with joy"
        assert str(app.feelings.current) == "joy"
        stored = Store().exchanges(app.talk.conversation)[1]
        assert len(stored.replies) == 6
        assert stored.reply.text == "who with joy"
        await say(pilot, "next")
        await answered(pilot, 3)
        assert [u for u, _ in fake.chats[0].turns] == ["before", "who", "next"]
        assert fake.chats[0].turns[1][1] == "who with joy"


@pytest.mark.parametrize("width", [99, 100, 139])
async def test_all_that_is_compared_is_in_view(make_app, width):
    app = make_app()
    async with app.run_test(size=(width, 30)) as pilot:
        await ready(pilot)
        await compare(pilot, "who")
        await until(pilot, lambda: not app.screen.running)
        await pilot.pause()
        for column in app.screen.columns:
            assert app.screen.region.contains_region(column.region)
            assert column.region.width >= 16


@pytest.mark.parametrize("before", [[], ["one"]])
async def test_leaving_a_comparison_gives_the_message_back(make_app, before):
    """And a conversation that was begun for it is gone."""
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        for text in before:
            await say(pilot, text)
            await answered(pilot, 1)
        await compare(pilot, "who")
        await until(pilot, lambda: not app.screen.running)
        await pilot.press("escape")
        await until(pilot, lambda: app.box.text == "who")
        store = app.talk.store
        assert [[e.user for e in store.exchanges(c.id)] for c in store.conversations()] == [before] * len(before)
        assert store.conversations(deleted=True) == []
        await pilot.press("enter")
        await answered(pilot, len(before) + 1)
        (conversation,) = store.conversations()
        assert [e.user for e in store.exchanges(conversation.id)] == [*before, "who"]


@pytest.mark.parametrize(("opened", "leaves"), [("before", "5"), ("during", "5"), ("during", "escape")])
async def test_a_comparison_in_one_window_and_a_message_in_another(make_app, fake, opened, leaves):
    """The other window has opened the conversation ``before`` the comparison or ``during`` it."""
    one, other = make_app(), make_app(Fake(says="from elsewhere"), resume="")
    async with contextlib.AsyncExitStack() as stack:
        pilot = await stack.enter_async_context(one.run_test(size=(140, 40)))
        await ready(pilot)
        await say(pilot, "first")
        await answered(pilot, 1)
        first = one.talk.conversation
        fake.go.clear()
        if opened == "during":
            await compare(pilot, "who")
        beside = await stack.enter_async_context(other.run_test(size=(140, 40)))
        await ready(beside)
        if opened == "before":
            await compare(pilot, "who")
        await until(beside, lambda: other.talk.conversation == first)
        await say(beside, "second")
        await answered(beside, 2 + (opened == "during"))
        fake.go.set()
        await until(pilot, lambda: not one.screen.running)
        await pilot.press(leaves)
        await until(pilot, lambda: len(one.screen_stack) == 1 and not one.talk.comparing)
        await say(pilot, "third")
        shown = ["first", *(["who"] if leaves == "5" else []), "third"]
        await answered(pilot, len(shown))
        store = Store()
        talks = {c.id: store.exchanges(c.id) for c in store.conversations()}
        assert len(talks) == 2
        assert [e.user for e in talks[one.talk.conversation]] == shown
        assert [e.user for e in talks[other.talk.conversation]][-1] == "second"
        if opened == "before":
            assert one.talk.conversation == first
        else:
            assert [e.user for e in talks[first]] == ["first", "who", "second"]
        compared = [e for found in talks.values() for e in found if e.user == "who"]
        assert [[(r.text, r.state) for r in e.replies] for e in compared] == [
            [(f"who with {f}", "stop") for f in ("neutral", "anger", "calm", "fear", "joy", "sadness")]
        ] * len(compared)
        assert [e.reply.text for e in talks[other.talk.conversation] if e.user == "second"] == ["from elsewhere"]
        if leaves == "5":
            assert [e.reply.text for e in talks[one.talk.conversation] if e.user == "who"] == ["who with joy"]
        else:
            assert one.box.text == ""  # it was given back and sent with what was written then
        store.close()


async def test_a_comparison_is_stored_as_it_grows_and_quitting_ends_it(make_app, fake):
    app, store = make_app(), Store()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        fake.go.clear()
        await compare(pilot, "who")

        def stored():
            (exchange,) = store.exchanges(store.find().id)
            return exchange.replies

        await until(pilot, lambda: [r.text for r in stored()][-1] == "who with sadness")
        assert {r.state for r in stored()} == {"writing"}
        await pilot.press("ctrl+q")
    end = time.monotonic() + 60
    while "writing" in {r.state for r in stored()} and time.monotonic() < end:
        time.sleep(0.01)
    fake.go.set()  # not before: the columns would have ended by themselves
    assert {r.state for r in stored()} == {"cancelled"}
    assert [r.tokens for r in stored()] == [1] * 6
    assert len({r.seed for r in stored()} - {None}) == 1
    store.close()


async def test_a_stopped_comparison_keeps_what_came(make_app, fake):
    app = make_app(seed=7)
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        fake.go.clear()
        await compare(pilot, "who")
        await until(pilot, lambda: "who with sadness" in text_of(app))
        await pilot.press("escape")
        await until(pilot, lambda: not app.screen.running)
        await pilot.press("2")
        await until(pilot, lambda: bool(app.transcript.exchanges))
        reply = app.transcript.exchanges[0].reply
        assert (reply.text, reply.state, reply.tokens, reply.seed) == ("who with anger", "cancelled", 1, 7)


async def test_a_disk_that_fills_during_a_comparison(make_app, fake):
    app = make_app(store=FullDisk)
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        fake.go.clear()
        await compare(pilot, "who")
        app.talk.store.full = True
        fake.go.set()
        await until(pilot, lambda: not app.screen.running)
        await pilot.press("5")
        await until(pilot, lambda: "the disk is full" in text_of(app))
        app.talk.store.full = False
        await pilot.press("ctrl+q")
    (exchange,) = Store().exchanges(app.talk.conversation)
    assert [r.state for r in exchange.replies] == ["stop"] * 6
    assert exchange.reply.text == "who with joy"


async def test_answering_again_ends_editing(make_app, fake):
    app = make_app(seed=7)
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await say(pilot, "one")
        await answered(pilot, 1)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: "Editing your last message" in text_of(app))
        app.warn("")  # as when a model was loaded meanwhile
        await pilot.pause()
        assert "Editing your last message" in text_of(app)
        await pilot.press("ctrl+r")
        await replied(pilot, 0, 2)
        assert "Editing your last message" not in text_of(app)
        assert app.box.text == ""
        await say(pilot, "two")
        await answered(pilot, 2)
        assert [e.user for e in app.transcript.exchanges] == ["one", "two"]
        assert fake.chats[0].seeds == [7, 8, 7]  # not the same reply again


async def test_comparing_ends_editing(make_app):
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await say(pilot, "one")
        await answered(pilot, 1)
        await pilot.press("ctrl+g")
        await compare(pilot, "two")
        await until(pilot, lambda: not app.screen.running)
        await pilot.press("1")
        await until(pilot, lambda: len(app.transcript.exchanges) == 2)
        await say(pilot, "three")
        await answered(pilot, 3)
        assert [e.user for e in app.transcript.exchanges] == ["one", "two", "three"]


def test_the_docs_list_every_key():
    page = (Path(__file__).parents[2] / "docs" / "app.md").read_text(encoding="utf-8")
    for name, (keys, what) in KEYS.items():
        assert f"| `{name}` | {', '.join(f'`{k}`' for k in keys.split(','))} | {what} |" in page


def type_ahead(app, *keys: str) -> None:
    """Keys that come all at once, as over a slow line."""
    for key in keys:
        character = key if len(key) == 1 else " " if key == "space" else None
        app.post_message(events.Key(key, character))


async def test_keys_that_come_all_at_once_go_where_those_before_them_led(make_app):
    app = make_app(feeling="joy:0.8")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        app.box.focus()
        await pilot.pause()
        type_ahead(app, *"joy ", "tab", "n", "tab", *"n at last")
        await until(pilot, lambda: app.box.text == "joy n at last")
        assert app.chat.feeling.neutral
        type_ahead(app, "enter")
        await answered(pilot, 1)
        type_ahead(app, "ctrl+f", *"hello", "enter", "escape", *"back")
        await until(pilot, lambda: app.box.text == "back")
        assert (app.finder.value, app.finder.open) == ("hello", False)
        type_ahead(app, *"see this: ")
        app.post_message(events.Paste("pasted"))
        type_ahead(app, *" ok")
        await until(pilot, lambda: app.box.text == "backsee this: pasted ok")
        app.box.put("back")
        type_ahead(app, "ctrl+t")
        await until(pilot, lambda: "6 chosen" in text_of(app))
        type_ahead(app, *["space", "down"] * 3)
        await until(pilot, lambda: "3 chosen" in text_of(app))
        type_ahead(app, "escape", "ctrl+o", "down", "enter", *"!")
        await until(pilot, lambda: app.box.text == "back!")
        assert len(app.screen_stack) == 1
