"""``mlx-emotion history``: what the app has stored, from the command line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from mlx_emotion.cli import main
from mlx_emotion.store import Exchange, Reply, Store

REPLY = Reply("I am **glad**.", state="stop", feeling="joy", timeline=((0, "joy"),), model="m", tokens=4)


@pytest.fixture
def run(capsys):
    """Run ``history`` in this process; gives (status, stdout, stderr)."""

    def go(*arguments):
        status = main(["history", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


@pytest.fixture
def ids():
    """Two stored conversations: their ids, the older first."""
    store = Store()
    exchanges = [Exchange("hi").with_reply(REPLY), Exchange("bye")]
    made = [store.fork("m", title, exchanges) for title in ("first", "second")]
    store.close()
    return made


def fails(result) -> str:
    """The one line that a command failed with."""
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("mlx-emotion: ")
    assert len(err.strip().splitlines()) == 1
    return err


def titles(run, *arguments) -> list[str]:
    status, out, _ = run("--json", *arguments)
    assert status == 0
    return [c["title"] for c in json.loads(out)]


def test_nothing_is_stored_yet(run):
    assert run() == (0, "", "no conversation yet; `mlx-emotion chat` begins one\n")
    assert run("--deleted") == (0, "", "nothing was deleted in the last week\n")
    assert run("--json") == (0, "[]\n", "")


def test_the_list_has_the_latest_first(run, ids):
    status, out, err = run()
    assert (status, err) == (0, "")
    head, *rows = [line.split() for line in out.splitlines()]
    assert head == ["id", "updated", "messages", "model", "title"]
    assert [(r[0], *r[-3:]) for r in rows] == [(ids[1][:8], "2", "m", "second"), (ids[0][:8], "2", "m", "first")]


def test_the_list_as_json(run, ids):
    found = json.loads(run("--json")[1])
    assert [(c["id"], c["title"], c["exchanges"], c["deleted"], c["until"]) for c in found] == [
        (ids[1], "second", 2, None, None),
        (ids[0], "first", 2, None, None),
    ]


def test_titles_cannot_move_the_cursor(run):
    store = Store()
    store.fork("m\x1b[2J", "a\x1b[31mb\x9b2Jc", [])
    store.close()
    assert "a[31mb2Jc" in run()[1]
    assert "\x1b" not in run()[1]
    assert titles(run) == ["a\x1b[31mb\x9b2Jc"]


def test_export_to_stdout(run, ids):
    status, out, err = run("export", "first")
    assert (status, err) == (0, "")
    assert out.startswith("# first\n")
    assert "**m**, joy\n\nI am **glad**.\n" in out
    status, out, err = run("export", ids[0][:8], "--format", "json")
    assert (status, err) == (0, "")
    assert [e["user"] for e in json.loads(out)["exchanges"]] == ["hi", "bye"]


def test_an_export_keeps_what_was_said_but_for_a_terminal(home):
    store = Store()
    id_ = store.fork("m", "t", [Exchange("a\x1b[31mb")])
    store.close()
    call = [sys.executable, "-m", "mlx_emotion", "history", "export", id_]
    assert b"a\x1b[31mb" in subprocess.run(call, stdout=subprocess.PIPE, check=True).stdout
    ours, theirs = pty.openpty()
    with subprocess.Popen(call, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"31mb" not in shown:
            shown += os.read(ours, 1000)
        os.close(ours)
    assert process.returncode == 0
    assert b"a[31mb" in shown


@pytest.mark.parametrize("kind", ["md", "json"])
def test_export_to_a_file_and_a_folder(run, ids, tmp_path, kind):
    printed = run("export", "first", "--format", kind)[1]
    target = tmp_path / f"out.{kind}"
    assert run("export", "first", "--format", kind, "--output", target) == (0, f"{target}\n", "")
    assert target.read_text() == printed
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (f"first.{kind}", f"first-2.{kind}"):
        assert run("export", "first", "--format", kind, "--output", folder) == (0, f"{folder / name}\n", "")
        assert (folder / name).read_text() == printed


def test_import_is_another_conversation(run, ids, tmp_path):
    path = tmp_path / "x.json"
    run("export", "first", "--format", "json", "--output", path)
    status, out, err = run("import", path)
    assert (status, err) == (0, "")
    assert out.strip() not in ids
    assert titles(run) == ["first", "second", "first"]
    assert "means 2 conversations" in fails(run("export", "first"))
    status, out, _ = run("export", out.strip())
    assert status == 0
    assert "I am **glad**." in out


def test_an_import_that_is_none(run, tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"format": 1, "version": 1, "title": "", "model": "", "exchanges": []}')
    assert f"{path}: 'format' of the file is int" in fails(run("import", path))
    path.write_text("no json")
    assert "not JSON" in fails(run("import", path))
    assert "No such file" in fails(run("import", tmp_path / "missing.json"))
    status, _, err = run("import", "~nobody-here/x.json")
    assert (status, err) == (2, "mlx-emotion: ~nobody-here/x.json: there is no such user here\n")
    assert titles(run) == []


def test_rename(run, ids):
    assert run("rename", "first", "  another\nname ") == (0, "", "")
    assert titles(run) == ["second", "another name"]
    assert "cannot be empty" in fails(run("rename", "second", " "))


def test_delete_and_undelete(run, ids):
    status, out, err = run("delete", "first")
    assert (status, out) == (0, "")
    assert err == f"deleted 'first'; `mlx-emotion history undelete {ids[0][:8]}` brings it back\n"
    assert titles(run) == ["second"]
    (gone,) = json.loads(run("--deleted", "--json")[1])
    assert gone["id"] == ids[0]
    assert datetime.fromisoformat(gone["until"]) - datetime.fromisoformat(gone["deleted"]) == timedelta(days=7)
    head, row = [line.split() for line in run("--deleted")[1].splitlines()]
    assert head == ["id", "until", "messages", "model", "title"]
    assert " ".join(row) == f"{ids[0][:8]} {gone['until'][:16].replace('T', ' ')} 2 m first"
    assert run("undelete", ids[0][:8]) == (0, "", "")
    assert titles(run) == ["second", "first"]
    assert titles(run, "--deleted") == []


@pytest.mark.parametrize("command", [["export"], ["rename", "x"], ["delete"], ["undelete"]])
def test_a_conversation_that_is_not_there(run, ids, command):
    name, *more = command
    lists = "history --deleted" if name == "undelete" else "history"
    assert f"no conversation 'nothing'; `mlx-emotion {lists}` lists them" in fails(run(name, "nothing", *more))
    assert run(name)[0] == 2
    assert len(titles(run)) == 2


def test_a_file_that_is_damaged_is_told_and_kept(run, home):
    path = home / "data" / "conversations" / "conversations.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    status, out, err = run("--json")
    assert (status, out) == (0, "[]\n")
    (kept,) = path.parent.glob("*corrupt*.sqlite3")
    assert err == f"mlx-emotion: the conversations could not be read; that file is kept as {kept}\n"
