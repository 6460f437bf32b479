"""Models that think before they answer: their thoughts are shown apart, folded, kept, and told to nobody."""

from __future__ import annotations

import pytest

from mlx_emotion import Exchange, Reply, Store

from .fakes import Fake, answered, ready, say, text_of, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def fake() -> Fake:
    return Fake(thinks="let me see now", says="the answer is six")


async def test_thoughts_are_shown_and_folded_when_the_answer_begins(make_app, fake):
    fake.go.clear()
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "how many?")
        await until(pilot, lambda: "let me see now" in text_of(app))
        assert "▾ thinking…" in text_of(app)
        fake.go.set()
        await answered(pilot, 1)
        await until(pilot, lambda: "▸ thought for 4 tokens" in text_of(app))
        assert "the answer is six" in text_of(app)
        assert "let me see now" not in text_of(app)
        assert app.transcript.latest.source == "the answer is six"  # what is copied


async def test_thoughts_open_by_key_and_by_mouse(make_app):
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "how many?")
        await answered(pilot, 1)
        await pilot.press("shift+tab", "t")
        await until(pilot, lambda: "let me see now" in text_of(app))
        await pilot.press("t")
        await until(pilot, lambda: "let me see now" not in text_of(app))
        reply = app.transcript.latest
        await pilot.click(reply, offset=(3, 1))
        await until(pilot, lambda: "let me see now" in text_of(app))


async def test_thoughts_are_kept_over_a_resume_and_are_not_told_to_the_model(make_app, fake):
    app = make_app(feeling="joy")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "how many?")
        await answered(pilot, 1)
    reply = Store().exchanges(Store().find().id)[0].reply
    assert (reply.text, reply.thinking, reply.thinking_tokens) == ("the answer is six", "let me see now", 4)
    again = make_app(resume="")
    async with again.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await until(pilot, lambda: "▸ thought for 4 tokens" in text_of(again))
        await say(pilot, "and then?")
        await answered(pilot, 2)
    assert fake.chats[1].turns[0] == ["how many?", "the answer is six"]


async def test_changes_of_feeling_are_told_as_places_in_the_answer(make_app, fake):
    store = Store()
    timeline = ((0, "joy"), (2, "fear"), (9, "calm"))
    reply = Reply("an answer", "stop", timeline=timeline, tokens=12, thinking="hm", thinking_tokens=4)
    store.add(store.create("fake"), Exchange("hi").with_reply(reply))
    store.close()
    app = make_app(resume="")
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "and?")
        await answered(pilot, 2)
    assert fake.chats[0].felt == [((0, "fear"), (5, "calm"))]


async def test_a_reply_of_thoughts_alone_says_why(make_app, fake):
    def only_thoughts(seed):
        from mlx_emotion import Thought

        yield Thought("on and on", 0)
        yield app.chat._done("", "length", app.feelings.current, 3, [(0, "neutral")], False, "on and on")

    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        app.chat._answer = only_thoughts
        await say(pilot, "how many?")
        await answered(pilot, 1)
        await until(pilot, lambda: "a larger --max-tokens" in text_of(app))
