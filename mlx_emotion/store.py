"""Conversations on disk: one SQLite file, written as things happen.

The user's message is stored before the model starts, and a reply is stored while it grows, so that a
killed process loses at most the last half second. An edited message and every reply that was made
again stay in the file; only what was chosen is the conversation. May be used from any thread.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import StoreError
from .files import atomic_write, check_size, conversations_folder, user_path

if TYPE_CHECKING:
    from .events import Done
    from .model import Model

FORMAT = "mlx-emotion conversation"
FORMAT_VERSION = 1
WRITING = "writing"
STATES = (WRITING, "stop", "length", "cancelled", "loop", "failed")
UNDO_DAYS = 7
"""How long a deleted conversation can be brought back."""
TITLE_LENGTH = 60
MAX_IMPORT = 256 << 20

Timeline = tuple[tuple[int, str], ...]


class Conflict(StoreError):
    """Another window has gone on with this conversation, or it is not in the file any more; nothing was written."""


def now() -> str:
    """The time as it is stored: ISO 8601, UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Reply:
    """One reply. ``state`` is ``writing`` (or cut off, if nothing writes it any more), or how it ended.

    ``timeline`` are (index of the first token, feeling); ``model`` and ``pack`` are ids, ``fingerprint``
    the model's; ``scale`` is the raw multiplier, where one took the place of calibrated intensities. ``thinking``
    is the reasoning block before ``text``, and took ``thinking_tokens`` of the tokens.
    """

    text: str = ""
    state: str = WRITING
    feeling: str = "neutral"
    timeline: Timeline = ()
    seed: int | None = None
    model: str = ""
    fingerprint: str = ""
    pack: str | None = None
    guard: bool = False
    tokens: int = 0
    tokens_per_second: float = 0.0
    error: str | None = None
    thinking: str = ""
    thinking_tokens: int = 0
    scale: float | None = None
    created: str = field(default_factory=now)
    id: str = field(default_factory=new_id)

    @property
    def partial(self) -> bool:
        """Whether the text is not all that would have been said."""
        return self.state in (WRITING, "cancelled", "failed")

    @classmethod
    def begun(cls, model: Model, feeling: str, scale: float | None, state: str = WRITING) -> Reply:
        """A reply about to be made by ``model`` under ``feeling``."""
        pack = model.vectors.path if model.vectors is not None else None
        return cls(
            state=state,
            feeling=feeling,
            timeline=((0, feeling),),
            model=model.id,
            fingerprint=model.identity.fingerprint,
            pack=Path(pack).stem if pack else None,
            scale=scale,
        )

    def ended(self, done: Done) -> Reply:
        """The same reply as it ended."""
        return replace(
            self,
            text=done.text,
            thinking=done.thinking,
            thinking_tokens=done.thinking_tokens,
            state=done.finish_reason,
            feeling=done.feeling,
            timeline=done.timeline,
            seed=done.seed,
            guard=done.guard,
            tokens=done.tokens,
            tokens_per_second=round(done.tokens_per_second, 2),
        )


@dataclass(frozen=True)
class Exchange:
    """A message and the replies made to it; ``chosen`` is the id of the one that counts.

    A comparison that was left or killed has replies of which none was chosen.
    """

    user: str
    replies: tuple[Reply, ...] = ()
    chosen: str | None = None
    created: str = field(default_factory=now)
    id: str = field(default_factory=new_id)

    @property
    def undecided(self) -> bool:
        """Whether there are replies and none of them was chosen."""
        return bool(self.replies) and all(r.id != self.chosen for r in self.replies)

    @property
    def reply(self) -> Reply | None:
        """The reply that counts; where none was chosen, the first that says something."""
        if self.undecided:
            return next((r for r in self.replies if r.text), self.replies[0])
        return next((r for r in self.replies if r.id == self.chosen), None)

    def with_reply(self, reply: Reply) -> Exchange:
        """The same exchange with ``reply`` added, or in the place of its older self, and chosen."""
        others = {r.id: r for r in self.replies} | {reply.id: reply}
        return replace(self, replies=tuple(others.values()), chosen=reply.id)


@dataclass(frozen=True)
class Summary:
    """A conversation as a list shows it. ``exchanges`` counts messages sent; ``deleted`` is when it was, if it was."""

    id: str
    title: str
    model: str
    created: str
    updated: str
    exchanges: int
    deleted: str | None = None

    @property
    def until(self) -> str | None:
        """Until when a deleted conversation can be brought back."""
        if self.deleted is None:
            return None
        return (datetime.fromisoformat(self.deleted) + timedelta(days=UNDO_DAYS)).isoformat(timespec="seconds")


def _schema_1(db: sqlite3.Connection) -> None:
    for statement in (
        """CREATE TABLE conversations (
            id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, created TEXT NOT NULL,
            updated TEXT NOT NULL, deleted TEXT, revision INTEGER NOT NULL DEFAULT 0)""",
        """CREATE TABLE exchanges (
            id TEXT PRIMARY KEY, conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
            position INTEGER NOT NULL, user TEXT NOT NULL, chosen TEXT, created TEXT NOT NULL, dropped TEXT)""",
        "CREATE INDEX exchange_order ON exchanges (conversation, position)",
        """CREATE TABLE replies (
            id TEXT PRIMARY KEY, exchange TEXT NOT NULL REFERENCES exchanges ON DELETE CASCADE,
            text TEXT NOT NULL, state TEXT NOT NULL, feeling TEXT NOT NULL, timeline TEXT NOT NULL,
            seed INTEGER, model TEXT NOT NULL, fingerprint TEXT NOT NULL, pack TEXT, guard INTEGER NOT NULL,
            tokens INTEGER NOT NULL, tokens_per_second REAL NOT NULL, error TEXT, created TEXT NOT NULL)""",
        "CREATE INDEX reply_order ON replies (exchange)",
        "CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ):
        db.execute(statement)


def _schema_2(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE replies ADD COLUMN thinking TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE replies ADD COLUMN thinking_tokens INTEGER NOT NULL DEFAULT 0")


def _schema_3(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE replies ADD COLUMN scale REAL")


_FAILURES = (sqlite3.Error, UnicodeEncodeError, OverflowError)
"""What SQLite raises, and what Python does for a text or a number that SQLite has no room for."""


def _damage(error: Exception) -> bool:
    """Whether ``error`` says that the file is damaged or no database; all else has a class of its own."""
    return type(error) is sqlite3.DatabaseError


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file is at ``path``; another one has another identity."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_schema_1, _schema_2, _schema_3)
"""Migration n brings a file from schema n to n + 1; the file's number is its ``user_version``."""


class Store:
    """The conversations in one file. ``aside`` is where a damaged file was put, or ``None``.

    The file is not read as a whole when it is opened, which would take longer with each conversation: damage is
    noticed where it is met. Then too the file is put aside and a new one begun, and the call fails with that news.

    Raises ``StoreError`` where the file cannot be opened or written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else conversations_folder() / "conversations.sqlite3"
        self.aside: Path | None = None
        self._lock = threading.RLock()
        self._revisions: dict[str, int] = {}
        self._file: tuple[int, int] | None = None
        try:
            self._db = self._open()
        except sqlite3.Error as error:
            if not _damage(error):  # locked, no permission, no space
                raise self._problem(error) from None
            self._begin_anew()
        except OSError as error:
            raise StoreError(f"cannot open {self.path}: {error.strerror or error}") from None

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _identity(self.path)
        db = sqlite3.connect(self.path, timeout=3, check_same_thread=False, isolation_level=None)
        db.row_factory = sqlite3.Row
        db.text_factory = lambda data: str(data, "utf-8", "replace")  # a damaged letter must not hide the rest
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")  # a killed program loses nothing, and replies don't wait for fsync
            db.execute("PRAGMA foreign_keys=ON")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"{self.path} is of schema {version}, this version reads {len(MIGRATIONS)}; update mlx-emotion"
                )
            for number in range(version, len(MIGRATIONS)):
                db.execute("BEGIN IMMEDIATE")
                if db.execute("PRAGMA user_version").fetchone()[0] == number:  # no other window was faster
                    MIGRATIONS[number](db)
                    db.execute(f"PRAGMA user_version={number + 1}")
                db.execute("COMMIT")
            # These two read all that is small, so damage there is known before anything is shown.
            limit = datetime.now(UTC) - timedelta(days=UNDO_DAYS)
            db.execute("DELETE FROM conversations WHERE deleted < ?", (limit.isoformat(timespec="seconds"),))
            db.execute("SELECT name, value FROM notes").fetchall()
            self._file = _identity(self.path)
        except BaseException:
            db.close()
            raise
        return db

    def _begin_anew(self) -> None:
        """Put the damaged file aside and open a new one in its place. Raises ``StoreError``."""
        self._revisions.clear()
        try:
            if self._file is None or _identity(self.path) == self._file:  # else another window has done it
                self.aside = self._put_aside()
            self._db = self._open()
        except (sqlite3.Error, OSError) as error:
            raise self._problem(error) from None

    def _put_aside(self) -> Path:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        aside = self.path.with_name(f"{self.path.stem}-corrupt-{stamp}{self.path.suffix}")
        count = 1
        while aside.exists():
            count += 1
            aside = aside.with_name(f"{self.path.stem}-corrupt-{stamp}-{count}{self.path.suffix}")
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{ending}").rename(f"{aside}{ending}")
        return aside

    def _problem(self, error: Exception) -> StoreError:
        return StoreError(f"conversations in {self.path}: {error}")

    def _failed(self, error: Exception) -> StoreError:
        """What went wrong, in one line; what is damaged is put aside."""
        if not _damage(error):
            return self._problem(error)
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        before = self.aside
        try:
            self._begin_anew()
        except StoreError as second:
            return StoreError(f"{self.path} is damaged, and no new file could be begun: {second}")
        where = f"it is kept as {self.aside}" if self.aside != before else "another window has put it aside"
        return StoreError(f"{self.path} was damaged; {where}, and a new one is begun")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                        self._db.execute("ROLLBACK")
                    raise
            except _FAILURES as error:
                raise self._failed(error) from None

    def _read(self, query: str, values: Iterable[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._db.execute(query, tuple(values)).fetchall()
            except _FAILURES as error:
                raise self._failed(error) from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # Conversations.

    def conversations(self, deleted: bool = False) -> list[Summary]:
        """All conversations, the latest first, or those deleted lately, the last deleted first."""
        rows = self._read(
            "SELECT id, title, model, created, updated, deleted, (SELECT count(*) FROM exchanges e WHERE "
            "e.conversation = c.id AND e.dropped IS NULL) AS exchanges FROM conversations c "
            f"WHERE deleted IS {'NOT ' if deleted else ''}NULL "
            f"ORDER BY {'deleted DESC, ' if deleted else ''}updated DESC, rowid DESC"
        )
        return [Summary(**dict(r)) for r in rows]

    def find(self, which: str | None = None, deleted: bool = False) -> Summary:
        """The conversation whose id begins with ``which`` or whose title is ``which``; the latest without one."""
        found = self.conversations(deleted)
        if which is not None:
            found = [c for c in found if c.title == which] or [c for c in found if c.id.startswith(which)]
        if not found:
            lists = f"`mlx-emotion history{' --deleted' if deleted else ''}` lists them"
            raise StoreError(f"no conversation {which!r}; {lists}" if which else "no conversation yet")
        if which is not None and len(found) > 1:
            raise StoreError(f"{which!r} means {len(found)} conversations; give more of the id")
        return found[0]

    def exchanges(self, conversation: str) -> list[Exchange]:
        """All of a conversation, oldest first; from here on, what another window adds is a ``Conflict``."""
        with self._lock:
            row = self._read("SELECT revision FROM conversations WHERE id = ?", (conversation,))
            if not row:
                raise StoreError(f"no conversation {conversation!r}; it may have been deleted in another window")
            self._revisions[conversation] = row[0]["revision"]
            return self._exchanges(conversation)

    def _exchanges(self, conversation: str) -> list[Exchange]:
        with self._lock:
            rows = self._read(
                "SELECT * FROM exchanges WHERE conversation = ? AND dropped IS NULL ORDER BY position, rowid",
                (conversation,),
            )
            replies: dict[str, list[Reply]] = {r["id"]: [] for r in rows}
            for r in self._read(
                "SELECT r.* FROM replies r JOIN exchanges e ON r.exchange = e.id "
                "WHERE e.conversation = ? AND e.dropped IS NULL ORDER BY r.rowid",
                (conversation,),
            ):
                values = dict(r)
                exchange = values.pop("exchange")
                values["timeline"] = _timeline(values["timeline"])
                if exchange in replies:  # not what another window added between the two
                    replies[exchange].append(Reply(**values | {"guard": bool(values["guard"])}))
        return [
            Exchange(r["user"], tuple(replies[r["id"]]), r["chosen"], created=r["created"], id=r["id"]) for r in rows
        ]

    def create(self, model: str, title: str = "") -> str:
        """A new, empty conversation; returns its id. Without a title it takes the first message's beginning."""
        return self._begin(model, title, ())

    def fork(self, model: str, title: str, exchanges: Iterable[Exchange], added: Exchange | None = None) -> str:
        """A new conversation with copies of ``exchanges`` and then ``added`` itself; returns its id."""
        copies = [_renewed(exchange) for exchange in exchanges]
        return self._begin(model, _title(title), copies if added is None else [*copies, added])

    def _begin(self, model: str, title: str, exchanges: Iterable[Exchange]) -> str:
        id_ = new_id()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO conversations (id, title, model, created, updated) VALUES (?, ?, ?, ?, ?)",
                (id_, title, model, now(), now()),
            )
            for exchange in exchanges:
                self._insert(db, id_, exchange)
        self._revisions[id_] = 0
        return id_

    def rename(self, conversation: str, title: str) -> None:
        """Raises ``StoreError`` for an empty title."""
        if not title.strip():
            raise StoreError("a conversation's title cannot be empty")
        with self._transaction() as db:
            db.execute("UPDATE conversations SET title = ? WHERE id = ?", (_title(title), conversation))

    def delete(self, conversation: str) -> None:
        """Take it off the list; ``undelete`` brings it back for a week."""
        with self._transaction() as db:
            db.execute("UPDATE conversations SET deleted = ? WHERE id = ?", (now(), conversation))

    def undelete(self, conversation: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE conversations SET deleted = NULL WHERE id = ?", (conversation,))

    # Exchanges and replies.

    def add(self, conversation: str, exchange: Exchange, instead_of: Exchange | None = None) -> None:
        """Append an exchange with what replies it has, ``instead_of`` the one whose message has been edited.

        Raises ``Conflict`` when another window has changed the conversation first.
        """
        with self._next_revision(conversation) as db:
            if instead_of is not None:
                self._drop(db, instead_of)
            self._insert(db, conversation, exchange)

    def drop(self, conversation: str, exchange: Exchange) -> None:
        """Take an exchange out of the conversation. It stays in the file, but a conversation of it alone is gone."""
        with self._next_revision(conversation) as db:
            self._drop(db, exchange)
            db.execute(
                "DELETE FROM conversations WHERE id = :id AND NOT EXISTS "
                "(SELECT 1 FROM exchanges WHERE conversation = :id AND dropped IS NULL)",
                {"id": conversation},
            )

    def _drop(self, db: sqlite3.Connection, exchange: Exchange) -> None:
        db.execute("UPDATE exchanges SET dropped = ? WHERE id = ?", (now(), exchange.id))

    def save_reply(self, exchange: Exchange, reply: Reply) -> None:
        """Write ``reply`` of ``exchange``, new or grown; which reply counts stays as it is.

        Raises ``Conflict`` when the exchange is not in the file any more.
        """
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM exchanges WHERE id = ?", (exchange.id,)).fetchone() is None:
                raise Conflict("the conversation of this reply is no longer in the file")
            self._put_reply(db, exchange.id, reply)

    def choose(self, conversation: str, exchange: Exchange, reply: Reply) -> None:
        """Have ``reply`` count; one that is new is written.

        Raises ``Conflict`` when another window has changed the conversation first.
        """
        with self._next_revision(conversation) as db:
            # One that is there is left: the window that writes it may have written more than this one has read.
            if db.execute("SELECT 1 FROM replies WHERE id = ?", (reply.id,)).fetchone() is None:
                self._put_reply(db, exchange.id, reply)
            db.execute("UPDATE exchanges SET chosen = ? WHERE id = ?", (reply.id, exchange.id))

    @contextlib.contextmanager
    def _next_revision(self, conversation: str) -> Iterator[sqlite3.Connection]:
        """A transaction that fails with ``Conflict`` if another window has changed the conversation since.

        A conversation that one window has deleted and another one goes on with is back on the list.
        """
        known = self._revisions.get(conversation, 0)
        with self._transaction() as db:
            done = db.execute(
                "UPDATE conversations SET revision = revision + 1, updated = ?, deleted = NULL "
                "WHERE id = ? AND revision = ?",
                (now(), conversation, known),
            )
            if not done.rowcount:
                raise Conflict("this conversation was changed in another window")
            yield db
        self._revisions[conversation] = known + 1

    def _insert(self, db: sqlite3.Connection, conversation: str, exchange: Exchange) -> None:
        db.execute(
            "INSERT INTO exchanges (id, conversation, position, user, chosen, created) VALUES (?, ?, "
            "(SELECT coalesce(max(position), -1) + 1 FROM exchanges WHERE conversation = ?), ?, ?, ?)",
            (exchange.id, conversation, conversation, exchange.user, exchange.chosen, exchange.created),
        )
        for reply in exchange.replies:
            self._put_reply(db, exchange.id, reply)
        db.execute(
            "UPDATE conversations SET title = ? WHERE id = ? AND title = ''", (_title(exchange.user), conversation)
        )

    def _put_reply(self, db: sqlite3.Connection, exchange: str, reply: Reply) -> None:
        values = asdict(reply) | {"exchange": exchange, "timeline": json.dumps(reply.timeline)}
        names = ", ".join(values)
        changes = ", ".join(f"{n} = excluded.{n}" for n in values if n not in ("id", "exchange", "created"))
        db.execute(
            f"INSERT INTO replies ({names}) VALUES ({', '.join(':' + n for n in values)}) "
            f"ON CONFLICT (id) DO UPDATE SET {changes}",
            values,
        )

    # Notes: small facts about the user, such as having seen the welcome.

    def note(self, name: str) -> str | None:
        """``None`` too where it cannot be read: nothing depends on it."""
        try:
            rows = self._read("SELECT value FROM notes WHERE name = ?", (name,))
        except StoreError:
            return None
        return rows[0]["value"] if rows else None

    def set_note(self, name: str, value: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    # Export and import.

    def export(self, conversation: str) -> dict[str, Any]:
        """The conversation as an object for JSON; ``import_`` reads it back."""
        found = self._read("SELECT * FROM conversations WHERE id = ?", (conversation,))
        if not found:
            raise StoreError(f"no conversation {conversation!r}")
        row = found[0]
        head = {n: row[n] for n in ("title", "model", "created", "updated")}
        return exported(head, self._exchanges(conversation))

    def import_(self, data: Any) -> str:
        """Store what ``export`` made as a new conversation; returns its id. Raises ``StoreError``."""
        title, model, exchanges = _checked(data)
        return self.fork(model, title or (exchanges[0].user if exchanges else "imported"), exchanges)

    def import_file(self, path: str | Path) -> str:
        """``import_`` of a JSON file; ``~`` in a text is the user's home."""
        path = user_path(path) if isinstance(path, str) else path
        try:
            check_size(path, MAX_IMPORT, StoreError, "this is not a conversation")
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}: not JSON: {error}") from None
        try:
            return self.import_(data)
        except StoreError as error:
            raise StoreError(f"{path}: {error}") from None


def exported(head: Mapping[str, str], exchanges: Iterable[Exchange]) -> dict[str, Any]:
    """A conversation as ``Store.import_`` reads it; ``head`` has its title, model, created and updated."""
    return {"format": FORMAT, "version": FORMAT_VERSION, **head, "exchanges": [asdict(e) for e in exchanges]}


def markdown(data: dict[str, Any]) -> str:
    """An exported conversation as Markdown."""
    lines = [f"# {data['title']}", "", f"{data['model']}, {data['created']}", ""]
    for exchange in data["exchanges"]:
        lines += ["**You**", "", exchange["user"], ""]
        replies = exchange["replies"]
        chosen = [r for r in replies if r["id"] == exchange["chosen"]]
        for reply in chosen or [r for r in replies if r["text"]][:1]:
            felt = [f for _, f in reply["timeline"]] or [reply["feeling"]]
            mark = " (not finished)" if reply["state"] in (WRITING, "cancelled", "failed") else ""
            mark += "" if chosen else f" (the first of {len(replies)}; none was chosen)"
            lines += [f"**{reply.get('model') or data['model']}**, {' → '.join(felt)}{mark}", ""]
            if thinking := reply.get("thinking"):
                lines += ["> *thoughts*", ">", *(f"> {line}".rstrip() for line in thinking.splitlines()), ""]
            lines += [reply["text"], ""]
    return "\n".join(lines)


def _title(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1].rstrip()}…"


def _renewed(exchange: Exchange) -> Exchange:
    """A copy with ids of its own."""
    replies = tuple(replace(r, id=new_id()) for r in exchange.replies)
    chosen = next((new.id for old, new in zip(exchange.replies, replies) if old.id == exchange.chosen), None)
    return replace(exchange, id=new_id(), replies=replies, chosen=chosen)


def _timeline(stored: str) -> Timeline:
    """A reply's timeline as it was stored; empty where it is damaged."""
    try:
        steps = json.loads(stored)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(steps, list) or not all(map(_is_step, steps)):
        return ()
    return tuple((i, f) for i, f in steps)


def _is_step(step: Any) -> bool:
    if not (isinstance(step, list) and list(map(type, step)) == [int, str]):
        return False
    return not (_unfit(step[0]) or _unfit(step[1]))


def _unfit(value: Any) -> str:
    """Why ``value`` cannot be stored; empty if it can."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "has a character that is not Unicode"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "is too large"
    elif isinstance(value, float) and not math.isfinite(value):
        return "is no number"
    return ""


_REPLY_KINDS: dict[str, Any] = {
    "text": str, "state": str, "feeling": str, "timeline": list, "seed": (int, type(None)), "model": str,
    "fingerprint": str, "pack": (str, type(None)), "guard": bool, "tokens": int, "tokens_per_second": (int, float),
    "error": (str, type(None)), "created": str, "id": str,
}  # fmt: skip
_ADDED_LATER: dict[str, Any] = {"thinking": str, "thinking_tokens": int, "scale": (int, float, type(None))}


def _fields(what: str, value: Any, kinds: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StoreError(f"{what} is not an object")
    for name, kind in kinds.items():
        if name not in value:
            raise StoreError(f"{what} has no {name!r}")
        if type(value[name]) not in (kind if isinstance(kind, tuple) else (kind,)):  # a bool is an int too
            raise StoreError(f"{name!r} of {what} is {type(value[name]).__name__}")
        if problem := _unfit(value[name]):
            raise StoreError(f"{name!r} of {what} {problem}")
    return {name: value[name] for name in kinds}


def _checked(data: Any) -> tuple[str, str, list[Exchange]]:
    head = _fields("the file", data, {"format": str, "version": int, "title": str, "model": str, "exchanges": list})
    if head["format"] != FORMAT or head["version"] != FORMAT_VERSION:
        raise StoreError(f"wanted {FORMAT!r} version {FORMAT_VERSION}, found {head['format']!r} {head['version']}")
    exchanges = []
    for n, entry in enumerate(head["exchanges"]):
        kinds = {"user": str, "replies": list, "chosen": (str, type(None)), "created": str, "id": str}
        values = _fields(f"exchange {n}", entry, kinds)
        replies = []
        for m, item in enumerate(values["replies"]):
            what = f"reply {m} of exchange {n}"
            reply = _fields(what, item, _REPLY_KINDS)
            reply |= _fields(what, item, {n: kind for n, kind in _ADDED_LATER.items() if n in item})
            if reply["state"] not in STATES:
                raise StoreError(f"state of {what} is {reply['state']!r}, wanted one of {', '.join(STATES)}")
            steps = reply["timeline"]
            if not all(map(_is_step, steps)):
                raise StoreError(f"timeline of {what} must be pairs of a token index and a feeling")
            replies.append(Reply(**reply | {"timeline": tuple((i, f) for i, f in steps)}))
        exchanges.append(Exchange(**values | {"replies": tuple(replies)}))
    return head["title"], head["model"], exchanges


def as_text(data: dict[str, Any], kind: str) -> str:
    """An exported conversation as ``md`` or ``json`` text."""
    return markdown(data) if kind == "md" else json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def export_file(store: Store, conversation: str, target: Path, kind: str = "md") -> Path:
    """Write a conversation as ``md`` or ``json`` to a file, or into a folder under a free name; returns the path."""
    data = store.export(conversation)
    if target.is_dir():
        stem = "".join(c if c.isalnum() else "-" for c in data["title"].lower()).strip("-")[:40] or "conversation"
        folder, count = target, 1
        target = folder / f"{stem}.{kind}"
        while target.exists():
            count += 1
            target = folder / f"{stem}-{count}.{kind}"
    with atomic_write(target, StoreError) as temporary:
        temporary.write_text(as_text(data, kind), encoding="utf-8")
    return target
