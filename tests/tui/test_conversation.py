"""Talking: streaming, stopping, answering again, editing, finding, copying; and what is stored of it."""

from __future__ import annotations

import threading

import pytest

from mlx_emotion import Exchange, MLXEmotionError, Reply, Store
from mlx_emotion.tui.transcript import ReplyMessage

from .fakes import Fake, FullDisk, answered, ready, replied, say, text_of, until

pytestmark = pytest.mark.anyio


async def test_a_message_is_answered_and_stored(make_app, fake):
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hello there")
        await answered(pilot, 1)
        await pilot.pause()
        assert app.box.text == ""
        shown = text_of(app)
        assert "hello there" in shown
        assert "one two three four five six" in shown
        assert "100 tok/s" in shown
    (summary,) = Store().conversations()
    (exchange,) = Store().exchanges(summary.id)
    assert (exchange.user, exchange.reply.text, exchange.reply.state) == ("hello there", fake.says, "stop")
    assert (exchange.reply.model, exchange.reply.pack, exchange.reply.seed) == ("fake", "fake-pack", 1)


async def test_the_message_is_on_disk_before_the_model_speaks(make_app, fake):
    fake.go.clear()
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "are you there?")
        await until(pilot, lambda: app.talk.speaking is not None)
        other = Store()
        (exchange,) = other.exchanges(other.find().id)
        assert exchange.user == "are you there?"
        assert exchange.reply.state == "writing"
        other.close()
        fake.go.set()
        await answered(pilot, 1)


async def test_a_line_break_does_not_send(make_app):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await pilot.press("a", "ctrl+j", "b")
        assert app.box.text == "a\nb"
        await pilot.press("enter")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].user == "a\nb"


async def test_up_brings_older_messages_and_down_the_draft(make_app):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        for n, text in enumerate(("first", "second")):
            await say(pilot, text)
            await answered(pilot, n + 1)
        await pilot.press("d", "up")
        assert app.box.text == "second"
        await pilot.press("up")
        assert app.box.text == "first"
        await pilot.press("down", "down")
        assert app.box.text == "d"


async def test_an_older_message_that_was_changed_is_kept_while_one_looks_at_others(make_app):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        for n, text in enumerate(("first", "second")):
            await say(pilot, text)
            await answered(pilot, n + 1)
        await pilot.press("d", "up", "!", "up", "down")
        assert app.box.text == "second!"
        await pilot.press("down", "x", "down", "up", "down")
        assert app.box.text == "dx"
        await pilot.press("up", "up")
        assert app.box.text == "first"
        await pilot.press("ctrl+g")
        assert app.box.text == "second"
        await pilot.press("down")  # it is not among the older ones
        assert app.box.text == "second"
        await pilot.press("up", "up")
        await app.talk.open(app.talk.conversation)
        assert app.box.text == "first"
        await pilot.press("up")
        assert app.box.text == "second"


async def test_escape_stops_and_keeps_what_came(make_app, fake):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "go on")
        await until(pilot, lambda: app.talk.speaking is not None)
        await pilot.press("escape")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].reply.state == "cancelled"
        fake.go.set()
        await say(pilot, "again")
        await answered(pilot, 2)
        assert app.transcript.exchanges[1].reply.text == fake.says
    assert fake.chats[0].turns == [["again", fake.says]]  # an unanswered message is not told to the model


async def test_again_with_another_feeling_keeps_both_replies(make_app, fake):
    app = make_app(feeling="fear")
    async with app.run_test(size=(120, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hi")
        await answered(pilot, 1)
        app.feelings.set(fake.feeling("joy:0.5"))
        fake.says = "another reply"
        await pilot.press("ctrl+r")
        await replied(pilot, 0, 2)
        exchange = app.transcript.exchanges[0]
        assert [r.feeling for r in exchange.replies] == ["fear", "joy:0.5"]
        assert exchange.reply.text == "another reply"
        await pilot.pause()
        assert "2 replies made" in text_of(app)
        await app.talk.variant()
        assert app.transcript.exchanges[0].reply.text == "one two three four five six"
        await app.talk.again(True)  # as the chosen one was felt
        await replied(pilot, 0, 3)
        assert app.transcript.exchanges[0].reply.feeling == "fear"
        assert str(app.feelings.current) == "fear"


async def test_editing_replaces_the_last_message(make_app, fake):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "one")
        await answered(pilot, 1)
        await say(pilot, "tow")
        await answered(pilot, 2)
        await pilot.press("ctrl+g")
        assert app.box.text == "tow"
        await pilot.press("escape")
        assert app.box.text == ""
        assert len(app.transcript.exchanges) == 2
        await pilot.press("ctrl+g")
        await say(pilot, "two")
        await answered(pilot, 2)
        assert [e.user for e in app.transcript.exchanges] == ["one", "two"]
        assert [u for u, _ in fake.chats[0].turns] == ["one", "two"]
        stored = app.talk.store.exchanges(app.talk.conversation)
        assert [e.user for e in stored] == ["one", "two"]


async def test_a_draft_comes_back_after_editing(make_app):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "one")
        await answered(pilot, 1)
        await pilot.press(*"half", "ctrl+g")
        assert app.box.text == "one"
        await pilot.press("escape")
        assert app.box.text == "half"
        await pilot.press("ctrl+g", "!", "ctrl+g", "2", "enter")
        await until(pilot, lambda: [e.user for e in app.transcript.exchanges] == ["one2"])
        await answered(pilot, 1)
        assert app.box.text == "half"


async def test_a_full_disk_while_editing_drops_nothing(make_app):
    app = make_app(store=FullDisk)
    async with app.run_test() as pilot:
        await ready(pilot)
        for n, text in enumerate(("one", "tow")):
            await say(pilot, text)
            await answered(pilot, n + 1)
        await pilot.press("ctrl+g")
        app.talk.store.full = True
        await say(pilot, "two")
        await until(pilot, lambda: "the disk is full" in text_of(app))
        await until(pilot, lambda: app.box.text == "two")
        assert [e.user for e in app.transcript.exchanges] == ["one", "tow"]
        app.talk.store.full = False
        await pilot.press("enter")
        await until(pilot, lambda: [e.user for e in app.transcript.exchanges] == ["one", "two"])
        await answered(pilot, 2)
        assert [e.user for e in app.talk.store.exchanges(app.talk.conversation)] == ["one", "two"]


async def test_editing_in_two_windows(make_app):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        for n, text in enumerate(("one", "tow")):
            await say(pilot, text)
            await answered(pilot, n + 1)
        first, other = app.talk.conversation, Store()
        other.exchanges(first)
        other.add(first, Exchange("from elsewhere"))
        await pilot.press("ctrl+g")
        await say(pilot, "two")
        await until(pilot, lambda: [e.user for e in app.transcript.exchanges] == ["one", "two"])
        await answered(pilot, 2)
        assert [e.user for e in other.exchanges(first)] == ["one", "tow", "from elsewhere"]
        assert [e.user for e in other.exchanges(app.talk.conversation)] == ["one", "two"]
        other.close()


async def test_a_reply_that_fails_is_kept_and_the_next_works(make_app):
    fake = Fake(breaks_after=2)
    app = make_app(fake)
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hi")
        await answered(pilot, 1)
        reply = app.transcript.exchanges[0].reply
        assert (reply.state, reply.text, reply.error) == ("failed", "one two", "the engine broke")
        await pilot.pause()
        assert "the engine broke" in text_of(app)
        fake.breaks_after = None
        await say(pilot, "and now?")
        await answered(pilot, 2)
        assert app.transcript.exchanges[1].reply.state == "stop"


async def test_a_full_disk_loses_no_message(make_app, fake):
    app = make_app(store=FullDisk)
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        app.talk.store.full = True
        await say(pilot, "precious")
        await until(pilot, lambda: "the disk is full" in text_of(app))
        await until(pilot, lambda: app.box.text == "precious")
        assert fake.chats[0].turns == []
        app.talk.store.full = False
        await pilot.press("enter")
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].reply.text == fake.says


async def test_a_disk_that_fills_during_a_reply(make_app, fake):
    app = make_app(store=FullDisk)
    async with app.run_test() as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "hi")
        await until(pilot, lambda: app.talk.speaking is not None)
        app.talk.store.full = True
        fake.go.set()
        await answered(pilot, 1)
        assert app.transcript.exchanges[0].reply.text == fake.says
        app.talk.store.full = False
        await say(pilot, "next")
        await answered(pilot, 2)
        assert [e.reply.text for e in app.talk.store.exchanges(app.talk.conversation)] == [fake.says] * 2


async def test_two_windows_on_one_conversation(make_app):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "one")
        await answered(pilot, 1)
        first = app.talk.conversation
        other = Store()
        other.exchanges(first)
        other.add(first, Exchange("from elsewhere"))
        await say(pilot, "two")
        await answered(pilot, 2)
        assert app.talk.conversation != first
        assert [e.user for e in other.exchanges(first)] == ["one", "from elsewhere"]
        assert [e.user for e in other.exchanges(app.talk.conversation)] == ["one", "two"]
        other.close()


async def test_a_corrupt_database_is_told_and_kept(make_app, home):
    path = home / "data" / "conversations" / "conversations.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    app = make_app()
    async with app.run_test(size=(140, 30)) as pilot:
        await ready(pilot)
        assert ["could not be read" in n.message for n in app._notifications] == [True]
        assert app.talk.store.aside.exists()
        assert app.talk.store.aside.read_bytes() == b"no database" * 1000
        await say(pilot, "hi")
        await answered(pilot, 1)


async def test_pasted_control_characters_are_harmless(make_app):
    from textual.events import Paste

    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        app.post_message(Paste("a\x1b[31mred\x07\r\nb\x9b2J"))
        await until(pilot, lambda: "b" in app.box.text)
        assert app.box.text == "a[31mred\nb2J"
        app.box.put("")
        app.post_message(Paste("x" * 100_000))
        await until(pilot, lambda: len(app.box.text) == 100_000)
        await pilot.press("enter")
        await answered(pilot, 1)
        assert len(app.transcript.exchanges[0].user) == 100_000


@pytest.mark.parametrize("every", [1, 2, 5, 1000])
def test_a_bracketed_paste_with_escapes_stays_one_paste(every):
    """However it is cut by reads; and keys before and after it stay keys."""
    from textual.events import Key, Paste

    from mlx_emotion.tui.pasting import Parser

    parser, found = Parser(), []
    data = "k\x1b[200~a\x1b[31mred\x07\rb\x1b[2J\x11\x1b[20\x1b[201~z\x1b[A\x1b[200~\x1b\x1b[201~"
    for at in range(0, len(data), every):
        found += parser.feed(data[at : at + every])
    told = [e.text if isinstance(e, Paste) else e.key for e in found if isinstance(e, Paste | Key)]
    assert told == ["k", "a[31mred\rb[2J[20", "z", "up", ""]


async def test_find_reveals_a_message_that_is_not_mounted(make_app):
    store = Store()
    id_ = store.fork("fake", "long", [Exchange(f"m{n}.").with_reply(Reply(f"r{n}.", state="stop")) for n in range(200)])
    store.close()
    app = make_app(resume=id_)
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        assert len(app.transcript.messages) < 60
        assert app.transcript.of(3) == []
        await pilot.press("ctrl+f", *"r3.", "enter")
        await until(pilot, lambda: bool(app.transcript.of(3)))
        assert "r3." in [m.source for m in app.transcript.of(3)]


def long(count: int) -> None:
    """A stored conversation of ``count`` messages."""
    store = Store()
    store.fork("fake", "long", [Exchange(f"m{n}").with_reply(Reply(f"r{n}", state="stop")) for n in range(count)])
    store.close()


async def test_scrolling_up_mounts_older_and_unmounts_newer(make_app):
    long(80)
    app = make_app(resume="")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        for _ in range(400):
            if app.transcript.first == 0:
                break
            app.transcript.scroll_relative(y=-8, animate=False)
            await pilot.pause(0.01)
        assert app.transcript.first == 0
        assert app.transcript.last < 80
        assert [m.source for m in app.transcript.messages][:2] == ["m0", "r0"]
        await app.transcript.action_ends(1)
        await until(pilot, lambda: bool(app.transcript.of(79)))


@pytest.mark.parametrize("back", [False, True])
async def test_a_reply_grows_on_while_one_looks_at_the_beginning(make_app, fake, back):
    """``back``: one is at its end again before the reply is."""
    long(40)
    app = make_app(resume="")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "go on")
        await until(pilot, lambda: app.talk.speaking is not None)
        await app.transcript.action_ends(0)
        await until(pilot, lambda: bool(app.transcript.of(0)))
        assert app.transcript.of(40) == []
        if back:
            await app.transcript.action_ends(1)
        fake.go.set()
        await answered(pilot, 41)
        await app.transcript.action_ends(1)
        await until(pilot, lambda: fake.says in text_of(app))
        assert [m.source for m in app.transcript.of(40)] == ["go on", fake.says]
        assert "cut off" not in text_of(app)
        assert len(app.transcript.children) == len(app.transcript.messages)


async def test_home_and_end_at_once_lead_to_the_end(make_app, monkeypatch):
    """Also where what Home has left to do comes late."""
    long(40)
    app = make_app(resume="")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        transcript, late = app.transcript, []
        after = transcript.call_after_refresh

        def call_after_refresh(work, *given):
            return late.append((work, given)) if work == transcript._show_words else after(work, *given)

        monkeypatch.setattr(transcript, "call_after_refresh", call_after_refresh)
        await transcript.action_ends(0)
        await transcript.action_ends(1)
        ((work, given),) = late
        work(*given)
        assert not transcript._anchor_released  # what grows there is followed
        await until(pilot, lambda: transcript.chosen is transcript.messages[-1])
        await until(pilot, lambda: "r39" in text_of(app))


async def test_resume_tells_the_model_what_was_said(make_app, fake):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "one")
        await answered(pilot, 1)
    again = make_app(resume="")
    async with again.run_test() as pilot:
        await ready(pilot)
        assert [e.user for e in again.transcript.exchanges] == ["one"]
        await say(pilot, "two")
        await answered(pilot, 2)
    assert fake.chats[1].turns == [["one", fake.says], ["two", fake.says]]


async def test_a_cut_off_reply_is_marked(make_app):
    store = Store()
    id_ = store.create("fake")
    store.add(id_, Exchange("hi").with_reply(Reply("half a", tokens=2)))
    store.close()
    app = make_app(resume="")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.pause()
        assert "cut off" in text_of(app)


async def test_words_are_coloured_by_what_was_read(make_app):
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hi")
        await answered(pilot, 1)
        reply = app.transcript.latest
        assert isinstance(reply, ReplyMessage)
        assert len(reply.readings) == 6
        await pilot.press("ctrl+b")
        await pilot.pause()
        assert "the model's own activations" in text_of(app)
        await pilot.press("ctrl+b")
        await pilot.pause()
        assert "the model's own activations" not in text_of(app)


async def test_copy_takes_the_chosen_message(make_app, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "take me")
        await answered(pilot, 1)
        await pilot.press("ctrl+y")
        assert app.clipboard == "one two three four five six"
        await pilot.press("shift+tab")
        await until(pilot, lambda: app.transcript.chosen is not None)
        await pilot.press("up")
        await pilot.press("c")
        assert app.clipboard == "take me"


async def test_copying_a_reply_under_way_takes_what_is_there(make_app, fake, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    fake.waits_on_change = True
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "hi")
        await until(pilot, lambda: app.talk.speaking is not None)
        app.copy_to_clipboard("before")
        await pilot.press("ctrl+y")
        assert app.clipboard == "before"
        app.feelings.set(fake.feeling("joy"))
        fake.go.set()  # one word, and then it waits
        await until(pilot, lambda: app.talk.last_said == "one")
        await pilot.press("ctrl+y")
        assert app.clipboard == "one"
        fake.go.set()
        await answered(pilot, 1)


async def test_the_last_reply_is_the_last_also_where_it_is_out_of_sight(make_app, fake, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    long(40)
    app = make_app(resume="")
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await pilot.press("ctrl+r")
        await replied(pilot, 39, 2)
        await app.transcript.action_ends(0)
        await until(pilot, lambda: app.transcript.of(39) == [])
        app.box.focus()
        await pilot.press("ctrl+y")
        assert app.clipboard == fake.says
        await app.talk.variant()
        assert app.transcript.exchanges[39].reply.text == "r39"
        assert [m.source for m in app.transcript.of(39)] == ["m39", "r39"]


async def test_escape_in_the_panel_closes_it_and_keeps_what_is_edited(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await say(pilot, "first")
        await answered(pilot, 1)
        await pilot.press("ctrl+g", *" one", "tab")
        await until(pilot, lambda: app.panel.has_focus_within)
        await pilot.press("escape")
        await until(pilot, lambda: app.box.has_focus)
        assert (app.box.text, app.talk.editing) == ("first one", True)
        await pilot.press("escape")
        await until(pilot, lambda: not app.talk.editing)
        assert app.box.text == ""


async def test_again_stopped_before_its_first_word_leaves_the_reply_before(make_app, fake):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "who are you?")
        await answered(pilot, 1)
        fake.go.clear()
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.talk.speaking is not None)
        await pilot.press("escape")
        await replied(pilot, 0, 2)
        (exchange,) = app.transcript.exchanges
        assert [r.text for r in exchange.replies] == [fake.says, ""]
        assert exchange.reply.text == fake.says
        assert app.talk.store.exchanges(app.talk.conversation) == [exchange]
        fake.go.set()
        await say(pilot, "and now?")
        await answered(pilot, 2)
        assert fake.chats[0].turns == [["who are you?", fake.says], ["and now?", fake.says]]


async def test_a_feeling_that_changes_before_the_reply_begins_is_its_first(make_app, fake):
    fake.breaks_after = 3
    app = make_app(feeling="joy")
    async with app.run_test() as pilot:
        await ready(pilot)
        app.talk.stale = True
        fake.on_reset = lambda: app.chat.feel("fear:0.8")
        await say(pilot, "hello")
        await answered(pilot, 1)
        for exchange in (app.transcript.exchanges[0], *app.talk.store.exchanges(app.talk.conversation)):
            reply = exchange.reply
            assert (reply.feeling, reply.timeline) == ("fear:0.8", ((0, "fear:0.8"),))
            assert (reply.state, reply.text, reply.tokens) == ("failed", "one two three", 3)


async def test_escape_before_the_model_is_asked_leaves_it_unasked(make_app, fake):
    told, go_on = threading.Event(), threading.Event()

    def telling():
        told.set()
        assert go_on.wait(30)

    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        app.talk.stale = True
        fake.on_reset = telling
        fake.go.clear()
        await say(pilot, "hello")
        await until(pilot, told.is_set)
        await pilot.press("escape")
        await pilot.pause()
        go_on.set()
        await answered(pilot, 1)
        assert (app.transcript.latest.reply.state, app.transcript.latest.reply.text) == ("cancelled", "")


async def test_a_reply_that_could_not_be_stored_is_there_when_its_conversation_is_opened_again(make_app, fake):
    app = make_app(store=FullDisk)
    async with app.run_test() as pilot:
        await ready(pilot)
        fake.go.clear()
        await say(pilot, "first")
        await until(pilot, lambda: app.talk.speaking is not None)
        app.talk.store.full = True
        fake.go.set()
        await answered(pilot, 1)
        first = app.talk.conversation
        await app.talk.new()
        with pytest.raises(MLXEmotionError, match="disk is full"):
            await app.talk.open(first)
        app.talk.store.full = False
        await app.talk.open(first)
        assert [e.reply.text for e in app.transcript.exchanges] == [fake.says]


async def test_a_conversation_that_another_window_deleted_stays_on_the_screen(make_app, fake):
    app = make_app()
    async with app.run_test() as pilot:
        await ready(pilot)
        await say(pilot, "precious")
        await answered(pilot, 1)
        Store().delete(app.talk.conversation)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("escape")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.pause()
        assert [e.user for e in app.transcript.exchanges] == ["precious"]
        Store().undelete(app.talk.conversation)
        await pilot.press("ctrl+o")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("d")
        await until(pilot, lambda: not app.talk.store.conversations())
        await pilot.press("escape")
        await until(pilot, lambda: app.transcript.exchanges == [])


async def test_find_begins_at_the_end_of_another_conversation(make_app):
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        for n, text in enumerate(("a noise", "a noise again")):
            await say(pilot, text)
            await answered(pilot, n + 1)
        await pilot.press("ctrl+f", *"noise", "enter", "enter")
        await until(pilot, lambda: app.finder._found[1] == 0)
        await app.talk.open(app.talk.conversation)
        await pilot.press("ctrl+f", "enter")
        await until(pilot, lambda: app.finder._found[1] == 1)


async def test_the_folder_that_it_was_started_in_is_gone(make_app, tmp_path, monkeypatch):
    app = make_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await ready(pilot)
        await say(pilot, "hello")
        await answered(pilot, 1)
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        await pilot.press("ctrl+o")
        await until(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("m")
        await until(pilot, lambda: "is not there any more" in text_of(app))
        monkeypatch.chdir(tmp_path)
