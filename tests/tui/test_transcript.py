"""The conversation on the screen: what is mounted, marked, selected and kept; and nothing that a terminal obeys."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.segment import Segment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.selection import Selection
from textual.strip import Strip

import mlx_emotion.tui
from mlx_emotion import CATALOGUE, Exchange, Reading, Reply
from mlx_emotion.tui.looks import clean
from mlx_emotion.tui.messages import Finder
from mlx_emotion.tui.transcript import FOUND, READ, WINDOW, ReplyMessage, Transcript, places, restyled, says

from .fakes import text_of, until

pytestmark = pytest.mark.anyio

HOSTILE = "a\x1b]52;c;cHduZWQ=\x07b \x9b2J\x7f\u202etfel &#8238; &#27;"


class Frame(App[None]):
    """A transcript, the line that finds, and nothing else of the app."""

    CSS_PATH = Path(mlx_emotion.tui.__file__).with_name("app.tcss")

    def compose(self) -> ComposeResult:
        yield Transcript(id="transcript")
        yield Finder(id="find")

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)


def said(count: int) -> list[Exchange]:
    return [Exchange(f"m{n}.").with_reply(Reply(f"r{n}.", state="stop")) for n in range(count)]


def long(lines: int) -> str:
    return "\n\n".join(f"line {n}" for n in range(lines))


def mounted(transcript: Transcript) -> list[int]:
    """The exchanges that are mounted, in order."""
    return sorted({m.number for m in transcript.messages}, key=[m.number for m in transcript.messages].index)


def test_what_a_terminal_obeys_is_taken_out():
    assert clean("a\x1b[31m\tb\r\nc\rd\x85\u2066e\udc80\u200f") == "a[31m\tb\nc\nde\u200f"


def test_words_are_found_over_line_breaks_and_marked_by_characters():
    assert places(["say A", "  b, a.b"], "a b") == [Selection(Offset(4, 0), Offset(3, 1))]
    assert places(["aXb a.b"], "a.b") == [Selection(Offset(4, 0), Offset(7, 0))]
    assert places(["a"], " ") == []
    strip = Strip([Segment("日本 x", Style(bold=True)), Segment("yz")])
    marked = restyled(strip, (1, 4), FOUND)
    assert [s.text for s in marked if s.style and s.style.reverse] == ["本 x"]
    assert (marked.text, marked.cell_length) == (strip.text, strip.cell_length)
    assert restyled(strip, (4, -1), FOUND).text == restyled(strip, (9, -1), FOUND).text == strip.text


async def test_nothing_is_painted_that_a_terminal_would_obey():
    app = Frame()
    async with app.run_test(size=(80, 40)) as pilot:
        transcript = app.transcript
        failed = Reply(HOSTILE, state="failed", error=HOSTILE, thinking=HOSTILE)
        await transcript.show([Exchange(HOSTILE).with_reply(failed)], CATALOGUE)
        live = await transcript.append(Exchange(HOSTILE).with_reply(Reply()), live=True)
        live.write("", HOSTILE)
        await until(pilot, lambda: "thinking" in text_of(app))
        shown = text_of(app)
        live.write(f"{HOSTILE}\n\nmore {HOSTILE}")
        live.toggle_thoughts()
        await until(pilot, lambda: "more" in text_of(app))
        shown += text_of(app)
        live.pieces.append((0, HOSTILE))
        live.readings[0] = Reading(0, (("joy", 1.0),), ())
        live.finish(Reply(HOSTILE, state="stop", thinking=HOSTILE))
        assert live.toggle_words()
        await until(pilot, lambda: "activations" in text_of(app))
        shown += text_of(app)
        assert "a]52;c;cHduZWQ=b" in shown
        assert shown == clean(shown)
        assert clean(live.source) == live.source


async def test_a_tall_window_is_filled_and_its_beginning_reached():
    app = Frame()
    async with app.run_test(size=(100, 90)) as pilot:
        transcript = app.transcript
        await transcript.show(said(60), CATALOGUE)
        await until(pilot, lambda: transcript.max_scroll_y > 0)
        assert transcript.is_vertical_scroll_end  # and followed, though more came before it
        assert mounted(transcript) == list(range(transcript.first, 60))
        assert transcript.first < 60 - WINDOW
        last = await transcript.append(Exchange("new").with_reply(Reply()), live=True)
        last.write(long(40))
        await until(pilot, lambda: "line 39" in text_of(app))
        last.finish(Reply("new", state="stop"))
        await transcript.reveal(2)
        await until(pilot, lambda: transcript.max_scroll_y > 0 and "r2." in text_of(app))
        assert mounted(transcript) == list(range(transcript.first, transcript.last))
        await transcript.show([Exchange(f"m{n}.") for n in range(200)], CATALOGUE)  # of two lines each
        await until(pilot, lambda: transcript.max_scroll_y > 20 and transcript.is_vertical_scroll_end)
        await pilot.resize_terminal(100, 200)
        await until(pilot, lambda: transcript.max_scroll_y > 20 and transcript.is_vertical_scroll_end)
        await until(pilot, lambda: not transcript._moving)
        assert mounted(transcript) == list(range(transcript.first, 200))


async def test_up_and_down_reach_what_is_not_mounted(monkeypatch):
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        transcript = app.transcript
        monkeypatch.setattr(transcript, "_begin_move", lambda *_, **__: None)  # scrolling mounts nothing
        await transcript.show(said(24), CATALOGUE)
        for at, by, letter in ((0, -1, "r"), (-1, 1, "m")):
            chosen = transcript.messages[at]
            chosen.focus()
            await until(pilot, lambda chosen=chosen: transcript.chosen is chosen)
            transcript.action_pick(by)
            wanted = f"{letter}{chosen.number + by}."
            await until(pilot, lambda wanted=wanted: transcript.chosen and transcript.chosen.source == wanted)
            await until(pilot, lambda: not transcript._moving)
            assert mounted(transcript) == list(range(transcript.first, transcript.last))


async def test_the_focus_of_a_message_that_leaves_moves_nothing():
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        transcript = app.transcript
        await transcript.show(said(60), CATALOGUE)
        await until(pilot, lambda: transcript.max_scroll_y > 0 and not transcript._moving)
        transcript.messages[-1].focus()
        await until(pilot, lambda: transcript.chosen is transcript.messages[-1])
        for last in (58, 56, 54, 52):
            transcript.scroll_home(animate=False, immediate=True)
            await until(pilot, lambda: not transcript._moving)
            await pilot.pause(0.3)  # what a focus may set going comes a little later
            assert transcript.last == last
            assert transcript.scroll_y < transcript.max_scroll_y / 2
            assert transcript.chosen is transcript.messages[-1]


async def test_moves_race_with_what_is_sent_and_opened():
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        transcript = app.transcript
        await transcript._move(-2)  # there is nothing to move
        assert not transcript._moving
        await transcript.show(said(60), CATALOGUE)
        new = Exchange("new").with_reply(Reply("newer", state="stop"))
        await asyncio.gather(
            transcript._move(-2), transcript.append(new), transcript._move(2), transcript.reveal(5),
            transcript._move(2), transcript.replace(5, new), transcript._move(-4), transcript.pop(),
            transcript.action_ends(1),
        )  # fmt: skip
        await until(pilot, lambda: not transcript._moving)
        assert mounted(transcript) == list(range(transcript.first, transcript.last))
        assert transcript.last == len(transcript.exchanges) == 60
        await asyncio.gather(transcript._move(-2), transcript.show([], CATALOGUE), transcript._move(-2))
        assert transcript.messages == []
        await until(pilot, lambda: not transcript._moving)


async def test_an_error_in_a_move_ends_neither_the_app_nor_the_moving(monkeypatch):
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        transcript = app.transcript
        await transcript.show(said(40), CATALOGUE)
        await pilot.pause()

        async def fails(*_):
            raise ValueError("no")

        with monkeypatch.context() as patched:
            patched.setattr(transcript, "_mount", fails)
            transcript._begin_move(-2)
            assert transcript._moving
            await until(pilot, lambda: not transcript._moving)
        transcript._begin_move(-2)
        await until(pilot, lambda: transcript.first == 22)


async def test_a_reply_is_selected_by_the_mouse():
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        await app.transcript.show([Exchange("hi").with_reply(Reply("One **two** three.\n\nFour.", state="stop"))], {})
        await until(pilot, lambda: "Four." in text_of(app))
        reply = app.transcript.latest
        await pilot.mouse_down(reply, offset=(6, 1))  # behind border and padding
        await pilot.hover(reply, offset=(4, 3))
        await until(pilot, lambda: bool(app.screen.selections))
        await pilot.mouse_up(reply, offset=(4, 3))
        assert app.screen.get_selected_text() == "two three.\n\nFou"
        style = app.screen.get_component_rich_style("screen--selection")
        painted = [s for y in range(4) for s in reply.render_line(y)]
        assert "".join(s.text for s in painted if s.style.bgcolor == style.bgcolor).split() == ["two", "three.", "Fou"]
        app.screen.selections = {reply: Selection(Offset(0, 90), Offset(3, 95))}  # it was longer
        assert app.screen.get_selected_text() == ""


async def test_what_was_read_outlives_the_widget():
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        transcript = app.transcript
        await transcript.show(said(40), CATALOGUE)
        reply = Reply()
        exchange = Exchange("new").with_reply(reply)
        live = await transcript.append(exchange, live=True)
        live.pieces.append((0, "word"))
        live.readings[0] = Reading(0, (("fear", 0.1), ("joy", 1.0)), (("fear", 1.0),))
        assert not live.toggle_words()
        ended = Reply("word", state="stop", id=reply.id)
        transcript.update(40, ended)
        live.finish(ended)
        await transcript.reveal(0)
        assert not live.is_attached
        await transcript.action_ends(1)
        await until(pilot, lambda: transcript.latest is not None and transcript.latest.source == "word")
        assert transcript.latest is not live
        assert transcript.latest.readings == {0: Reading(0, (("joy", 1.0),), ())}
        other = await transcript.replace(40, exchange.with_reply(Reply("other", state="stop")))
        assert not other.toggle_words()
        again = await transcript.replace(40, exchange.with_reply(ended))
        assert again.toggle_words()
        for _ in range(READ + 5):
            transcript.exchanges.append(Exchange("x").with_reply(Reply()))
            transcript._widgets(len(transcript.exchanges) - 1, live=True)
        assert len(transcript._read) == READ


async def test_what_is_found_is_in_view_and_marked_until_the_end():
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        transcript, finder = app.transcript, app.query_one(Finder)
        talk = said(30)
        talk[20] = Exchange("tell me of a line 55").with_reply(Reply(long(60), state="stop"))
        await transcript.show(talk, CATALOGUE)
        finder.show()
        finder.value = "line 55"
        await finder.find(app)
        await until(pilot, lambda: finder.has_focus and "line 55" in text_of(app).replace("of a line 55", ""))
        user, reply = transcript.of(20)
        assert isinstance(reply, ReplyMessage)
        line = reply.lines.index("line 55")
        assert [s.text for s in reply.render_line(line) if s.style.reverse] == ["line 55"]
        assert [s.text for s in user.render_line(0) if s.style and s.style.reverse] == ["line 55"]
        finder.hide()
        assert not app.query(".-found")
        assert not any(s.style.reverse for s in reply.render_line(line))
        finder.show()
        finder.value = "m1"
        found = []
        for later in (False, False, True, True, True):
            await finder.action_step(later)
            found.append(finder._found[1])
        assert found == [19, 18, 19, 1, 10]


@pytest.mark.parametrize(
    ("words", "there"),
    [
        ("bold word", True),
        ("BOLD   word & un-bold", True),
        ("**bold**", False),
        ("a link there", True),
        ("example.org", False),
        ("soft break", True),
        ("x = __y__", True),
        ("&amp;z", True),
        ("café", True),
        ("left right", True),
        ("never", False),
        ("one two", True),
        ("link here", True),
        ("break bold", False),
        (";", True),
    ],
)
def test_what_is_seen_of_markdown_is_found(words, there):
    text = (
        "A **bold** word &amp; *un*-bold, a [link](http://example.org) there, soft\nbreak <!-- never --> caf&eacute;"
        "\n\n```\nx = __y__ &amp;z\n```\n\n| left | right |\n|---|---|\n| 1 | 2 |\n"
        "\n1. one\n2. two\n\nA [link][x] here.\n\n[x]: http://example.org\n"
    )
    assert says(text, words) is there


async def test_what_is_found_is_marked_as_it_is_seen():
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        talk = said(30)
        talk[3] = Exchange("as **it** was\nwritten").with_reply(Reply("A **bold** word.", state="stop"))
        await app.transcript.show(talk, CATALOGUE)
        finder = app.query_one(Finder)
        finder.show()

        def marked(message) -> str:
            lines = [message.render_line(y) for y in range(message.size.height)]
            return "".join(s.text for line in lines for s in line if s.style and s.style.reverse)

        for words, n, shown in (("bold word", 1, "bold word"), ("**IT** was written", 0, "**it** waswritten")):
            finder.value = words
            await finder.find(app)
            await until(pilot, lambda n=n, shown=shown: marked(app.transcript.of(3)[n]) == shown)
            assert marked(app.transcript.of(3)[1 - n]) == ""


async def test_the_end_is_followed_again():
    app = Frame()
    async with app.run_test(size=(60, 20)) as pilot:
        transcript = app.transcript
        await transcript.show(said(40), CATALOGUE)
        live = await transcript.append(Exchange("new").with_reply(Reply()), live=True)
        live.write(long(30))
        await until(pilot, lambda: "line 29" in text_of(app))
        await transcript.reveal(0)
        await until(pilot, lambda: "m0." in text_of(app))
        await transcript.action_ends(1)
        await until(pilot, lambda: transcript.chosen is live and "line 29" in text_of(app))
        live.write(f"\n\n{long(50)}")
        await until(pilot, lambda: "line 49" in text_of(app))
