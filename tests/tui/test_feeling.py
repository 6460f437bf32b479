"""The feeling panel: bars, circumplex, switches; by keys and mouse, also in the middle of a reply."""

from __future__ import annotations

import pytest
from textual import events

from mlx_emotion import MLXEmotionError
from mlx_emotion.tui.panel import Bars, Pad

from .fakes import Fake, answered, ready, say, text_of, until

pytestmark = pytest.mark.anyio


async def felt(pilot, spec: str) -> None:
    """Wait until that is the feeling."""
    await until(pilot, lambda: str(pilot.app.feelings.current) == spec)


async def test_tab_reaches_the_emotions_and_keeps_the_draft(make_app):
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        await pilot.press(*"half a", "tab")
        await until(pilot, lambda: isinstance(app.focused, Bars))
        await pilot.press("down", "down", "right", "right")
        assert str(app.feelings.current) == "fear:0.1"
        await pilot.press("tab")
        await until(pilot, lambda: app.focused is app.box)
        assert app.box.text == "half a"


async def test_bars_by_keys(make_app, fake):
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        app.panel.bars.focus()
        await pilot.press("space")
        await felt(pilot, "anger")
        await pilot.press("shift+right", "shift+right", "shift+right")
        await felt(pilot, "anger:1.5")
        await pilot.press("5")
        await felt(pilot, "anger:0.5")
        await pilot.press("down", "3")
        await felt(pilot, "anger:0.5,calm:0.3")
        await pilot.press("0", "up", "left")
        await felt(pilot, "anger:0.45")
        await pilot.press("b")
        await felt(pilot, "base")
        await pilot.press("n")
        await felt(pilot, "neutral")
        assert fake.chats[0].feeling == app.feelings.current


async def test_bars_by_mouse(make_app):
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        await until(pilot, lambda: app.panel.bars.size.height > 5)
        start, width = app.panel.bars._geometry()
        left = app.panel.bars.content_region.x - app.panel.bars.region.x
        await pilot.mouse_down(app.panel.bars, offset=(left + start + width // 3, 2))
        await pilot.hover(app.panel.bars, offset=(left + start + width * 2 // 3, 2))
        await pilot.mouse_up(app.panel.bars, offset=(left + start + width * 2 // 3, 2))
        ((name, value),) = app.feelings.current.weights
        assert name == "fear"
        assert value == pytest.approx(1.0, abs=0.1)
        felt = app.feelings.current
        await pilot.mouse_down(app.panel.bars, offset=(left + 1, 2))  # its name
        await pilot.hover(app.panel.bars, offset=(left + 2, 2))
        await pilot.mouse_up(app.panel.bars, offset=(left + 2, 2))
        assert app.feelings.current == felt
        app.panel.bars.focus()
        await until(pilot, lambda: app.panel.bars.has_focus)
        for event in (events.MouseScrollUp, events.MouseScrollDown):
            app.panel.bars.post_message(event(None, 0, 0, 0, 0, 0, shift=True, meta=False, ctrl=False))
        await pilot.pause()
        assert app.feelings.current.weights[0][1] == pytest.approx(value)


async def test_the_pad_mixes_neighbours(make_app):
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        app.panel.bars.focus()
        await pilot.press("p")
        assert isinstance(app.focused, Pad)
        await pilot.press("right", "right", "right", "right", "right")
        assert {n for n, _ in app.feelings.current.weights} == {"joy", "calm"}
        assert app.feelings.current.point == pytest.approx((0.5, 0.0), abs=0.01)
        assert app.panel.bars.weights == dict(app.feelings.current.weights)
        await pilot.press("0")
        assert app.feelings.current.neutral


async def test_the_pad_by_mouse_and_its_point_follows_the_bars(make_app):
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        pad = app.panel.pad
        await until(pilot, lambda: pad.size.height > 5 and pad.region.bottom <= 40)
        left = pad.content_region.x - pad.region.x
        column, row = pad._cell(-0.5, 0.5)
        await pilot.mouse_down(pad, offset=(left + column, row))
        await pilot.mouse_up(pad, offset=(left + column, row))
        valence, arousal = app.feelings.current.point
        assert valence == pytest.approx(-0.5, abs=0.1)
        assert arousal == pytest.approx(0.5, abs=0.15)
        app.panel.bars.focus()
        await pilot.press("n", "down", "down", "down", "space")
        assert str(app.feelings.current) == "joy"
        assert pad.point == pytest.approx(app.feelings.current.point)


async def test_three_changes_in_the_middle_of_a_reply(make_app, fake):
    fake.waits_on_change = True
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "hi")
        await until(pilot, lambda: app.talk.speaking is not None)
        app.panel.bars.focus()
        changes = (["space"], "anger"), (["n"], "neutral"), (["down", "5"], "calm:0.5")
        for number, (keys, feeling) in enumerate(changes, start=1):
            await pilot.press(*keys)
            await until(pilot, lambda f=feeling: str(app.feelings.current) == f)
            fake.go.set()
            await until(pilot, lambda n=number: len(app.transcript.latest.reply.timeline) == n + 1)
        fake.go.set()
        await answered(pilot, 1)
        reply = app.transcript.exchanges[0].reply
        assert [f for _, f in reply.timeline] == ["neutral", "anger", "neutral", "calm:0.5"]
        assert app.talk.store.exchanges(app.talk.conversation)[0].reply.timeline == reply.timeline
        await pilot.pause()
        assert "→" in text_of(app)


async def test_switches_and_the_guard(make_app):
    fake = Fake(trips_after=2)
    app = make_app(fake)
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        app.panel.bars.focus()
        await pilot.press("k")
        assert fake.chats[0].options.history == "refeel"
        await pilot.press("g")
        assert fake.chats[0].options.guard is False
        await pilot.press("g", "tab")
        await say(pilot, "hi")
        await answered(pilot, 1)
        await pilot.pause()
        shown = text_of(app)
        assert "refeel" in shown
        assert "guard left 50 %" in shown
        assert "began to loop" in shown


async def test_the_meter_shows_what_was_read(make_app):
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await say(pilot, "hi")
        await answered(pilot, 1)
        assert app.panel.meter.own["sadness"] == pytest.approx(0.4)
        await pilot.pause()
        assert "READ FROM THE ACTIVATIONS" in text_of(app)
        assert "40 %" in text_of(app)


async def test_a_pack_whose_full_dose_is_in_doubt_says_so(make_app):
    fake = Fake()
    fake.vectors.doubts = "fear: no scale was fluent"
    app = make_app(fake)
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        await pilot.pause()
        assert "fear: no scale was fluent" in text_of(app)


async def test_a_model_without_a_pack_says_so_and_talks(make_app):
    fake = Fake(emotions=[])
    app = make_app(fake, feeling="fear")
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        await pilot.pause()
        assert "No emotion vectors" in text_of(app)
        app.panel.bars.focus()
        await pilot.press("space", "right", "b", "n")
        app.box.focus()
        await say(pilot, "hi")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].reply.feeling == "neutral"


async def test_a_step_acts_at_once_and_is_not_undone(make_app, monkeypatch):
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        bars, pad, show, shown = app.panel.bars, app.panel.pad, app.panel.show, []

        def seen(*given):
            show(*given)
            shown.append((bars.weights.get("anger"), pad.point))

        monkeypatch.setattr(app.panel, "show", seen)
        for step in (0.05, 0.1, 0.15, 0.2):
            bars.action_change(1)
            assert app.chat.feeling.weights == (("anger", step),)  # no message is waited for
        assert [weight for weight, _ in shown] == [0.05, 0.1, 0.15, 0.2]
        shown.clear()
        for _ in range(4):
            pad.action_move(1, 0)
            assert app.feelings.current == app.panel._pointed
            assert pad.point == shown[-1][1]
        assert len({where for _, where in shown}) == 4


async def test_a_feeling_that_is_refused_is_taken_back_from_the_panel(make_app, fake, monkeypatch):
    app = make_app(feeling="joy")
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)

        def refuse(feeling):
            raise MLXEmotionError("it cannot feel that")

        monkeypatch.setattr(fake.chats[0], "feel", refuse)
        app.panel.bars.focus()
        await pilot.press("space")
        await until(pilot, lambda: "it cannot feel that" in text_of(app))
        assert app.panel.bars.weights == {"joy": 1.0}
        assert str(app.feelings.current) == "joy"


async def test_the_meter_begins_anew(make_app, fake):
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        await say(pilot, "hi")
        await answered(pilot, 1)
        assert app.panel.meter.own
        fake.go.clear()
        await say(pilot, "and now?")
        await until(pilot, lambda: app.talk.speaking is not None)
        assert app.panel.meter.own == {}
        fake.go.set()
        await answered(pilot, 2)
        assert app.panel.meter.own
        await app.talk.open(app.talk.conversation)
        assert app.panel.meter.own == {}


async def test_an_unknown_first_feeling_is_told(make_app):
    app = make_app(feeling="feer")
    async with app.run_test(size=(120, 40)) as pilot:
        await ready(pilot)
        await until(pilot, lambda: "unknown emotion 'feer'" in text_of(app))
        assert app.feelings.current.neutral


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
async def test_a_raw_scale_is_shown_and_kept(make_app, size):
    app = make_app(options={"scale": 30.0}, feeling="fear")
    async with app.run_test(size=size) as pilot:
        await ready(pilot)
        await until(pilot, lambda: "scale 30" in text_of(app))
        await say(pilot, "a\tb tabbed words here")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].reply.scale == 30.0
        await until(pilot, lambda: "a   b tabbed words here" in text_of(app))


async def test_the_emotions_go_while_one_of_them_is_dragged(make_app):
    app = make_app()
    async with app.run_test(size=(140, 40)) as pilot:
        await ready(pilot)
        bars = app.panel.bars
        await until(pilot, lambda: bars.size.height > 5)
        await pilot.mouse_down(bars, offset=(30, 1))
        assert bars._dragging
        bars.offer([], {}, "no pack")
        await pilot.hover(bars, offset=(34, 1))
        await pilot.mouse_up(bars, offset=(34, 1))
        assert app.is_running
