"""Conversations on disk: what is written is there again, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from mlx_emotion import store as store_module
from mlx_emotion.errors import StoreError
from mlx_emotion.store import Conflict, Exchange, Reply, Store, export_file, markdown

FULL = Reply(
    text="I am **afraid**.",
    state="stop",
    feeling="joy:0.5",
    timeline=((0, "fear"), (4, "joy:0.5")),
    seed=7,
    model="embedded",
    fingerprint="abc",
    pack="embedded-attention",
    guard=True,
    tokens=9,
    tokens_per_second=12.5,
    thinking="Who could it be?\n\nNobody.",
    thinking_tokens=6,
    scale=30.0,
)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "c.sqlite3")
    yield made
    made.close()


def test_what_is_added_is_read_back(store, tmp_path):
    id_ = store.create("embedded")
    exchange = Exchange("Who is\nthere?").with_reply(FULL)
    store.add(id_, exchange)
    other = Store(tmp_path / "c.sqlite3")
    assert other.exchanges(id_) == [exchange]
    (summary,) = other.conversations()
    assert (summary.id, summary.title, summary.exchanges) == (id_, "Who is there?", 1)
    other.close()


def test_a_reply_grows_in_place_and_the_one_that_was_chosen_counts(store):
    id_ = store.create("m")
    first = Reply(state="writing")
    exchange = Exchange("hi").with_reply(first)
    store.add(id_, exchange)
    store.save_reply(exchange, replace(first, text="Hel"))
    second = Reply(text="Hey", state="stop")
    store.choose(id_, exchange, second)
    store.save_reply(exchange, replace(first, text="Hello", state="stop"))
    (found,) = store.exchanges(id_)
    assert [r.text for r in found.replies] == ["Hello", "Hey"]
    assert found.reply == second


def test_a_reply_made_again_is_a_change_of_the_conversation(store, tmp_path):
    id_, exchange = store.create("m"), Exchange("one").with_reply(Reply(text="yes", state="stop"))
    store.add(id_, exchange)
    other = Store(tmp_path / "c.sqlite3")
    other.exchanges(id_)
    store.choose(id_, exchange, Reply())
    with pytest.raises(Conflict):
        other.add(id_, Exchange("two"))
    with pytest.raises(Conflict):
        other.choose(id_, exchange, Reply(text="no"))
    assert len(store.exchanges(id_)[0].replies) == 2
    other.close()


def test_another_windows_reply_grows_and_takes_no_choice_back(store, tmp_path):
    id_, growing = store.create("m"), Reply("half a", state="writing")
    exchange = Exchange("one").with_reply(growing)
    store.add(id_, exchange)
    other = Store(tmp_path / "c.sqlite3")
    (seen,) = other.exchanges(id_)
    mine = Reply("mine", state="stop")
    other.choose(id_, seen, mine)
    store.save_reply(exchange, replace(growing, text="half a loaf", state="stop"))
    assert other.exchanges(id_)[0].reply == mine
    other.choose(id_, seen, seen.reply)  # as it was read, before it had grown
    assert other.exchanges(id_)[0].reply.text == "half a loaf"
    with pytest.raises(Conflict):
        store.add(id_, Exchange("two"))
    other.close()


def test_what_another_window_adds_between_two_reads_comes_with_the_next(store, tmp_path, monkeypatch):
    id_ = store.create("m")
    other, read = Store(tmp_path / "c.sqlite3"), store._read

    def late(query, *values):
        if "FROM replies" in query and len(other.exchanges(id_)) == 0:
            other.add(id_, Exchange("one").with_reply(Reply("a", state="stop")))
        return read(query, *values)

    monkeypatch.setattr(store, "_read", late)
    assert store.exchanges(id_) == []
    assert store.exchanges(id_)[0].reply.text == "a"
    other.close()


def test_of_replies_without_a_choice_the_first_that_says_something_counts(store):
    id_ = store.create("m", "t")
    empty, said, other = Reply(), Reply("a", state="stop"), Reply("b", state="stop")
    store.add(id_, Exchange("one", (empty, said, other)))
    (found,) = store.exchanges(id_)
    assert found.undecided
    assert (found.reply, found.chosen) == (said, None)
    assert "neutral (the first of 3; none was chosen)\n\na\n" in markdown(store.export(id_))
    assert not Exchange("one").undecided
    assert Exchange("one").reply is None


def test_a_conversation_is_begun_as_a_whole_or_not_at_all(store, monkeypatch):
    first, second = Exchange("one").with_reply(FULL), Exchange("two")
    insert = store._insert

    def full_at_the_second(db, id_, exchange):
        if exchange is second:
            raise StoreError("the disk is full")
        insert(db, id_, exchange)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_insert", full_at_the_second)
        with pytest.raises(StoreError, match="full"):
            store.fork("m", "copy", [first], second)
    assert store.conversations() == []
    id_ = store.fork("m", "", [first], second)
    copied, added = store.exchanges(id_)
    assert (copied.user, copied.reply.text, added) == ("one", FULL.text, second)
    assert copied.id != first.id
    assert store.find().title == "one"
    store.add(id_, Exchange("three"))


def test_a_dropped_exchange_is_gone_from_the_conversation(store):
    id_ = store.create("m")
    kept, dropped, new = Exchange("one"), Exchange("two"), Exchange("three")
    store.add(id_, kept)
    store.add(id_, dropped)
    store.drop(id_, dropped)
    store.add(id_, new)
    assert [e.user for e in store.exchanges(id_)] == ["one", "three"]


def test_a_conversation_goes_with_the_last_exchange_that_is_dropped(store):
    only, kept = Exchange("one", (FULL,)), store.fork("m", "", [Exchange("kept")])
    id_ = store.fork("m", "", [], only)
    store.drop(id_, only)
    assert [c.id for c in store.conversations()] == [kept]
    assert store.conversations(deleted=True) == []
    with pytest.raises(Conflict):
        store.save_reply(only, FULL)


def test_two_windows_conflict_and_nothing_is_lost(store, tmp_path):
    id_ = store.create("m")
    store.add(id_, Exchange("one"))
    other = Store(tmp_path / "c.sqlite3")
    mine = other.exchanges(id_)
    store.add(id_, Exchange("from the first window"))
    with pytest.raises(Conflict):
        other.add(id_, Exchange("from the second"))
    copy = other.fork("m", "copy", mine)
    other.add(copy, Exchange("from the second"))
    assert [e.user for e in other.exchanges(id_)] == ["one", "from the first window"]
    assert [e.user for e in other.exchanges(copy)] == ["one", "from the second"]
    other.close()


def test_an_edited_exchange_goes_when_the_new_one_is_stored(store, monkeypatch):
    id_, old = store.create("m"), Exchange("tow")
    store.add(id_, old)

    def full(*_):
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_insert", full)
        with pytest.raises(StoreError, match="full"):
            store.add(id_, Exchange("two"), old)
    assert [e.user for e in store.exchanges(id_)] == ["tow"]
    store.add(id_, Exchange("two"), old)
    assert [e.user for e in store.exchanges(id_)] == ["two"]


def test_what_another_window_goes_on_with_is_no_longer_deleted(store, tmp_path):
    id_ = store.create("m")
    store.add(id_, Exchange("one"))
    other = Store(tmp_path / "c.sqlite3")
    other.delete(id_)
    store.add(id_, Exchange("two"))
    assert [c.exchanges for c in other.conversations()] == [2]
    assert other.conversations(deleted=True) == []
    other.close()


def test_an_export_does_not_hide_what_another_window_adds(store, tmp_path):
    id_ = store.create("m")
    store.add(id_, Exchange("one"))
    other = Store(tmp_path / "c.sqlite3")
    other.exchanges(id_)
    other.add(id_, Exchange("from elsewhere"))
    assert len(store.export(id_)["exchanges"]) == 2
    with pytest.raises(Conflict):
        store.add(id_, Exchange("two"))
    other.close()


def test_delete_undelete_rename_find(store):
    first, second = store.create("m", "first"), store.create("m", "second")
    store.delete(second)
    assert [c.id for c in store.conversations()] == [first]
    assert [c.id for c in store.conversations(deleted=True)] == [second]
    assert store.find("second", deleted=True).id == second
    store.undelete(second)
    store.rename(second, "  another\nname ")
    assert store.find("another name").id == second
    assert store.find(first[:10]).id == first
    with pytest.raises(StoreError, match="no conversation 'nothing'"):
        store.find("nothing")
    with pytest.raises(StoreError, match="empty"):
        store.rename(first, " ")


def test_what_was_deleted_long_ago_is_forgotten(store, tmp_path, monkeypatch):
    id_ = store.create("m", "old")
    monkeypatch.setattr(store_module, "now", lambda: "2020-01-01T00:00:00+00:00")
    store.delete(id_)
    again = Store(tmp_path / "c.sqlite3")
    assert again.conversations(deleted=True) == []
    again.close()


def test_export_import_is_the_same_conversation(store, tmp_path):
    id_ = store.create("embedded", "the noise")
    store.add(id_, Exchange("Who?").with_reply(Reply(text="no", state="stop")).with_reply(FULL))
    store.add(id_, Exchange("unanswered"))
    path = export_file(store, id_, tmp_path, "json")
    copy = store.import_file(path)
    strip = [(e.user, [replace(r, id="") for r in e.replies], e.reply and e.reply.text) for e in store.exchanges(id_)]
    back = [(e.user, [replace(r, id="") for r in e.replies], e.reply and e.reply.text) for e in store.exchanges(copy)]
    assert back == strip
    assert copy != id_
    again = export_file(store, id_, tmp_path, "json")
    assert again != path
    assert json.loads(again.read_text()) == json.loads(path.read_text())


def test_markdown_tells_who_felt_what(store):
    id_ = store.create("embedded", "t")
    store.add(id_, Exchange("Who?").with_reply(replace(FULL, state="cancelled")))
    text = markdown(store.export(id_))
    assert "**You**\n\nWho?" in text
    assert "**embedded**, fear → joy:0.5 (not finished)" in text
    store.add(id_, Exchange("And now?").with_reply(replace(FULL, id="later", model="other")))
    assert "**other**, fear → joy:0.5\n" in markdown(store.export(id_))
    assert "> *thoughts*\n>\n> Who could it be?\n>\n> Nobody.\n\nI am **afraid**." in text


def test_a_conversation_from_before_thoughts_were_kept(store, tmp_path):
    """Both a file of schema 1, and an export that was made from one."""
    path = tmp_path / "old.sqlite3"
    db = sqlite3.connect(path)
    store_module.MIGRATIONS[0](db)
    db.execute("PRAGMA user_version=1")
    db.execute("INSERT INTO conversations VALUES ('c', 't', 'm', '2026', '2026', NULL, 0)")
    db.execute("INSERT INTO exchanges VALUES ('e', 'c', 0, 'hi', 'r', '2026', NULL)")
    db.execute(
        "INSERT INTO replies VALUES ('r', 'e', 'yes', 'stop', 'joy', '[]', 1, 'm', '', NULL, 0, 1, 2.0, NULL, '2026')"
    )
    db.commit()
    db.close()
    old = Store(path)
    (exchange,) = old.exchanges("c")
    assert (exchange.reply.text, exchange.reply.thinking, exchange.reply.thinking_tokens) == ("yes", "", 0)
    data = json.loads(json.dumps(old.export("c")))
    old.close()
    for name in ("thinking", "thinking_tokens", "scale"):
        del data["exchanges"][0]["replies"][0][name]
    (back,) = store.exchanges(store.import_(data))
    assert back.reply.text == "yes"
    assert (back.reply.thinking, back.reply.scale) == ("", None)


def test_the_last_deleted_is_the_first_to_come_back(store, monkeypatch):
    first, second = (store.create("m") for _ in range(2))
    for id_, text in ((first, "old one"), (second, "newer one")):
        store.add(id_, Exchange(text))
    times = iter(("2026-01-01T00:00:01+00:00", "2026-01-01T00:00:02+00:00"))
    monkeypatch.setattr(store_module, "now", lambda: next(times))
    store.delete(second)
    store.delete(first)
    assert [c.id for c in store.conversations(deleted=True)] == [first, second]


def changed(data: dict, place: str, value: object) -> dict:
    """``data`` with ``value`` in the conversation, its first exchange or that one's first reply."""
    *path, name = place.split("/")
    target = data
    if path:
        target = data["exchanges"][0]
    if path == ["exchange", "reply"]:
        target = target["replies"][0]
    target[name] = value
    return data


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("format", "other", "wanted 'mlx-emotion conversation'"),
        ("exchanges", {}, "'exchanges' of the file is dict"),
        ("exchanges", ["x"], "exchange 0 is not an object"),
        ("exchange/user", 3, "'user' of exchange 0 is int"),
        ("exchange/reply/state", "x", "state of reply 0 of exchange 0"),
        ("exchange/reply/timeline", [1], "timeline of reply 0"),
        ("exchange/reply/timeline", [[2**63, "joy"]], "timeline of reply 0"),
        ("exchange/reply/timeline", [[0, "\ud800"]], "timeline of reply 0"),
        ("exchange/reply/tokens", 1e30, "'tokens' of reply 0 of exchange 0 is float"),
        ("exchange/reply/tokens", True, "'tokens' of reply 0 of exchange 0 is bool"),
        ("exchange/reply/seed", 2**63, "'seed' of reply 0 of exchange 0 is too large"),
        ("exchange/reply/tokens_per_second", float("nan"), "'tokens_per_second' of reply 0 of exchange 0 is no number"),
        ("exchange/reply/text", "\ud800", "'text' of reply 0 of exchange 0 has a character that is not Unicode"),
        ("exchange/user", "a\udfff", "'user' of exchange 0 has a character that is not Unicode"),
        ("title", "\ud800", "'title' of the file has a character that is not Unicode"),
        ("version", True, "'version' of the file is bool"),
    ],
)
def test_a_wrong_import_is_one_line_and_stores_nothing(store, place, value, told):
    id_ = store.create("m", "t")
    store.add(id_, Exchange("hi").with_reply(FULL))
    data = json.loads(json.dumps(store.export(id_)))
    with pytest.raises(StoreError, match=told) as raised:
        store.import_(changed(data, place, value))
    assert len(str(raised.value).splitlines()) == 1
    assert len(store.conversations()) == 1


def test_what_cannot_be_written_is_an_error_and_the_next_write_works(store):
    id_ = store.create("m")
    for exchange in (Exchange("\ud800"), Exchange("hi").with_reply(Reply(seed=2**63))):
        with pytest.raises(StoreError, match="conversations in"):
            store.add(id_, exchange)
    with pytest.raises(StoreError):
        store.exchanges("\ud800")
    store.add(id_, Exchange("again"))
    assert [e.user for e in store.exchanges(id_)] == ["again"]


def test_replies_of_one_id_in_an_import_are_all_kept(store):
    id_ = store.create("m", "t")
    store.add(id_, Exchange("hi", (Reply("a"), Reply("b"))))
    data = json.loads(json.dumps(store.export(id_)))
    for reply in data["exchanges"][0]["replies"]:
        reply["id"] = "same"
    assert [r.text for r in store.exchanges(store.import_(data))[0].replies] == ["a", "b"]


@pytest.mark.parametrize("damaged", ["", "[[0", "7", '[["x", 1]]', "[" * 100_000, b"\xff\xfe"])
def test_a_damaged_row_is_shown_without_what_is_damaged(store, damaged):
    id_ = store.create("m", "t")
    store.add(id_, Exchange("hi").with_reply(FULL))
    store._db.execute("UPDATE replies SET timeline = CAST(? AS TEXT), feeling = CAST(? AS TEXT)", (damaged, b"jo\xffy"))
    (exchange,) = store.exchanges(id_)
    assert (exchange.reply.text, exchange.reply.timeline, exchange.reply.feeling) == (FULL.text, (), "jo\ufffdy")
    assert len(store.conversations()) == 1


@pytest.mark.parametrize("content", [b"not json", b"\xff\xfe", b'{"a":' * 50])
def test_a_file_that_is_not_json(store, tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not JSON"):
        store.import_file(path)
    with pytest.raises(StoreError, match="No such file"):
        store.import_file(tmp_path / "missing.json")


def test_a_corrupt_file_is_kept_aside(tmp_path):
    path = tmp_path / "c.sqlite3"
    garbage = b"this is no database " * 500
    path.write_bytes(garbage)
    store = Store(path)
    assert store.aside is not None
    assert store.aside.read_bytes() == garbage
    store.add(store.create("m"), Exchange("works again"))
    assert len(store.conversations()) == 1
    store.close()


def damage(path, table):
    """Overwrite a page of ``table`` in a file that is otherwise sound; returns what the page is now."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = db.execute("PRAGMA page_size").fetchone()[0]
    number = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    db.close()
    page = b"\xee" * size
    with open(path, "r+b") as file:
        file.seek((number - 1) * size)
        file.write(page)
    return page


@pytest.fixture
def long(tmp_path):
    """A file of one long conversation, and its id."""
    path = tmp_path / "long.sqlite3"
    store = Store(path)
    id_ = store.fork("m", "long", [Exchange(f"m{n}").with_reply(replace(FULL, text="x" * 500)) for n in range(100)])
    store.close()
    return path, id_


@pytest.mark.parametrize("table", ["conversations", "notes"])
def test_damage_in_the_list_is_met_when_the_file_is_opened(long, table):
    path, _ = long
    page = damage(path, table)
    store = Store(path)
    assert page in store.aside.read_bytes()
    assert store.conversations() == []
    store.close()


@pytest.mark.parametrize("how", ["read", "grow", "add"])
def test_damage_in_a_conversation_is_met_when_it_is_used(long, how):
    path, id_ = long
    first = Store(path)
    exchanges = first.exchanges(id_)
    first.close()
    page = damage(path, "exchanges" if how == "add" else "replies")
    store = Store(path)
    assert (store.aside, len(store._read("SELECT id FROM conversations"))) == (None, 1)
    use = {
        "read": lambda: store.exchanges(id_),
        "grow": lambda: store.save_reply(exchanges[-1], exchanges[-1].reply),
        "add": lambda: store.add(id_, Exchange("more")),
    }
    with pytest.raises(StoreError, match=r"was damaged; it is kept as .*corrupt.*, and a new one is begun") as raised:
        use[how]()
    assert not isinstance(raised.value, Conflict)
    assert page in store.aside.read_bytes()
    with pytest.raises(Conflict):  # who still has the conversation goes on in a copy
        store.add(id_, Exchange("more"))
    with pytest.raises(Conflict):
        store.save_reply(exchanges[-1], exchanges[-1].reply)
    store.exchanges(store.fork("m", "copy", exchanges, Exchange("more")))
    assert [c.exchanges for c in store.conversations()] == [101]
    store.close()


def test_two_windows_meet_the_same_damage(long):
    path, id_ = long
    damage(path, "replies")
    first, second = Store(path), Store(path)
    with pytest.raises(StoreError, match="kept as"):
        first.exchanges(id_)
    new = first.fork("m", "new", [Exchange("hi")])
    with pytest.raises(StoreError, match="another window has put it aside"):
        second.exchanges(id_)
    assert second.aside is None
    assert [c.id for c in second.conversations()] == [new]
    assert len(list(path.parent.glob("*corrupt*.sqlite3"))) == 1
    first.close()
    second.close()


def test_a_file_of_a_later_version_is_left_alone(tmp_path):
    path = tmp_path / "c.sqlite3"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="schema 99"):
        Store(path)
    assert list(tmp_path.glob("*corrupt*")) == []


def test_no_space_is_an_error_and_the_next_write_works(store):
    id_ = store.create("m")
    store._db.execute(f"PRAGMA max_page_count={store._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(StoreError, match="full"):
        store.add(id_, Exchange("x" * 100_000))
    store._db.execute("PRAGMA max_page_count=100000")
    store.add(id_, Exchange("again"))
    assert [e.user for e in store.exchanges(id_)] == ["again"]


def test_killed_while_a_reply_grows(tmp_path):
    code = """
import sys, time
from mlx_emotion.store import Exchange, Reply, Store
from dataclasses import replace
s = Store(sys.argv[1]); r = Reply(); e = Exchange("hello").with_reply(r)
s.add(s.create("m"), e); s.save_reply(e, replace(r, text="half a")); print("ready", flush=True); time.sleep(60)
"""
    path = tmp_path / "c.sqlite3"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, signal.SIGKILL)
    store = Store(path)
    (exchange,) = store.exchanges(store.find().id)
    assert exchange.user == "hello"
    assert exchange.reply.text == "half a"
    assert exchange.reply.partial
    store.close()
