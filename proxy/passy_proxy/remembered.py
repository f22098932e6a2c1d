"""What stores have said, kept on disk for a time when they cannot be asked: `known.db`.

A gateway that starts while its database is away must still know the keys it knew a minute ago. So
filters leave here what they learn, and look here when the store does not answer, at no other time.
All workers of a data folder share the file.

Two rules. What is found was written by us: each entry carries an HMAC under the key ring, and one
that was changed is as good as none. And nothing is believed for longer than whoever wrote it said,
or once an edit of what it is about was told of.

Nothing here waits for the disk but `find`: entries are gathered, and written by a thread. A disk
that is full or broken costs memory of that kind, and no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from passy_proxy import json
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.tasks import Tasks

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

T = TypeVar("T")

FILE = "known.db"
GATHERED = 1.0
"""Seconds between an entry and its write."""
WAITING = 20_000
"""Entries that may wait to be written; what is beyond is learned again."""
KEPT = 200_000
"""Entries in the file, at most."""
TIDIED = 60.0
"""Seconds between two looks for what has had its time."""
LOG_EVERY = 60.0
BUSY = 1.0
"""Seconds that one worker waits for another's write."""
VERSION = 1
SECOND = 1_000_000
"""In the unit of the file's times."""

_TABLES = f"""
DROP TABLE IF EXISTS remembered;
DROP TABLE IF EXISTS edited;
CREATE TABLE remembered (
  kind TEXT NOT NULL, key BLOB NOT NULL, at INTEGER NOT NULL, until INTEGER NOT NULL,
  subjects TEXT NOT NULL, value BLOB NOT NULL, proof TEXT NOT NULL,
  PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE INDEX remembered_until ON remembered (until);
CREATE TABLE edited (subject TEXT NOT NULL PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION}
"""
_PUT = """
INSERT INTO remembered (kind, key, at, until, subjects, value, proof) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (kind, key) DO UPDATE SET at = excluded.at, until = excluded.until,
  subjects = excluded.subjects, value = excluded.value, proof = excluded.proof
WHERE excluded.at >= remembered.at
"""
_KNOWN = "SELECT 1 FROM remembered WHERE kind = ? AND key = ?"
_FIND = "SELECT at, until, subjects, value, proof FROM remembered WHERE kind = ? AND key = ?"
_EDITED = """
INSERT INTO edited (subject, at) VALUES (?, ?)
ON CONFLICT (subject) DO UPDATE SET at = max(at, excluded.at)
"""
_EDITED_AT = "SELECT at FROM edited WHERE subject = ?"
_TIDY = (
    "DELETE FROM remembered WHERE until < :now",
    "DELETE FROM remembered WHERE (kind, key) IN (SELECT kind, key FROM remembered"
    " ORDER BY until LIMIT max(0, (SELECT count(*) FROM remembered) - :kept))",
    "DELETE FROM edited WHERE at < coalesce((SELECT min(at) FROM remembered), :now)",
)


class Said(NamedTuple):
    """What a store said."""

    value: bytes
    asked: float
    """When; Unix seconds."""
    seconds: float
    """For how long from then on it may be believed."""
    subjects: Sequence[str] = ()
    """What it is about, as `Remembered.edited` calls it."""


class Found(NamedTuple):
    value: bytes
    left: float
    """Seconds for which it may still be believed."""


class _Entry(NamedTuple):
    at: int
    until: int
    subjects: str
    value: bytes
    only_known: bool


class Remembered:
    """One for a process. ``kind`` says whose an entry is and of which store, so that what one
    directory said is never taken for another's word."""

    def __init__(self, folder: Path, keyring: Keyring, log: FilteringBoundLogger) -> None:
        self._path = folder / FILE
        self._keyring = keyring
        self._log = log
        self._tasks = Tasks(log)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passy-known")
        self._database: sqlite3.Connection | None = None
        self._entries: dict[tuple[str, bytes], _Entry] = {}
        self._edits: dict[str, int] = {}
        self._writing: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._tidied = monotonic()
        self._silent_until = 0.0
        self._closed = False

    def put(self, kind: str, key: bytes, said: Said, *, only_known: bool = False) -> None:
        """``only_known``: in place of an entry, and not where there is none."""
        if self._closed or (len(self._entries) >= WAITING and (kind, key) not in self._entries):
            return
        at, until = _micros(said.asked), _micros(said.asked + said.seconds)
        about = json.dumps(said.subjects).decode()
        self._entries[kind, key] = _Entry(at, until, about, said.value, only_known)
        self._gather()

    def edited(self, subject: str) -> None:
        """Whatever was said of ``subject`` before is to be believed no more. Written at once."""
        if not self._closed:
            self._edits[subject] = _micros(time())
            self._gather()
            self._hurry.set()

    async def find(self, kind: str, key: bytes) -> Found | None:
        """What was put and may still be believed."""
        entry = self._entries.get((kind, key))
        now = _micros(time())
        if entry is not None and not entry.only_known:
            if any(self._edits.get(one, -1) >= entry.at for one in json.loads(entry.subjects)):
                return None
            return _believed(entry, now)
        if self._closed:
            return None
        edits = dict(self._edits)
        return await self._in_thread(lambda: self._found(kind, key, now, edits))

    async def aclose(self) -> None:
        """Write what waits, then close."""
        if self._closed:
            return
        self._closed = True
        if self._writing is not None:
            self._hurry.set()
            await asyncio.wait([self._writing])
        await self._write()
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    def _gather(self) -> None:
        if self._writing is None:
            self._writing = self._tasks.start(self._gathered())

    async def _gathered(self) -> None:
        while self._entries or self._edits:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHERED):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._write()
        self._writing = None

    async def _write(self) -> None:
        entries, self._entries = self._entries, {}
        edits, self._edits = self._edits, {}
        if entries or edits:
            await self._in_thread(lambda: self._written(entries, edits))

    async def _in_thread(self, work: Callable[[], T]) -> T | None:
        """``None`` where it cannot be done."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            if monotonic() >= self._silent_until:
                self._silent_until = monotonic() + LOG_EVERY
                self._log.warning("not_remembered", file=str(self._path), error=str(error))
            return None

    # In the thread

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = self._connected()
        return self._database

    def _connected(self) -> sqlite3.Connection:
        try:
            return _prepared(self._path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            # Not a database, or a damaged one: it held what can be learned again.
            for end in ("", "-wal", "-shm"):
                self._path.with_name(FILE + end).unlink(missing_ok=True)
            return _prepared(self._path)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _written(self, entries: dict[tuple[str, bytes], _Entry], edits: dict[str, int]) -> None:
        database = self._open()
        try:
            with database:
                database.execute("BEGIN IMMEDIATE")
                for (kind, key), entry in entries.items():
                    if not entry.only_known or database.execute(_KNOWN, (kind, key)).fetchone():
                        proof = self._keyring.attest(_signed(kind, key, entry))
                        database.execute(_PUT, (kind, key, *entry[:4], proof))
                database.executemany(_EDITED, edits.items())
                if monotonic() >= self._tidied + TIDIED:
                    self._tidied = monotonic()
                    for statement in _TIDY:
                        database.execute(statement, {"now": _micros(time()), "kept": KEPT})
        except sqlite3.Error:
            self._close()  # It may be another file by now, or need to be.
            raise

    def _found(self, kind: str, key: bytes, now: int, edits: dict[str, int]) -> Found | None:
        database = self._open()
        try:
            row = database.execute(_FIND, (kind, key)).fetchone()
            if row is None:
                return None
            at, until, subjects, value, proof = row
            entry = _Entry(at, until, subjects, value, only_known=False)
            if not self._ours(kind, key, entry, proof):
                return None
            for subject in json.loads(entry.subjects):
                edited = database.execute(_EDITED_AT, (subject,)).fetchone() or (-1,)
                if max(edited[0], edits.get(subject, -1)) >= entry.at:
                    return None
        except sqlite3.Error:
            self._close()
            raise
        return _believed(entry, now)

    def _ours(self, kind: str, key: bytes, entry: _Entry, proof: str) -> bool:
        try:
            return self._keyring.attested(_signed(kind, key, entry), proof)
        except (KeyringError, TypeError, AttributeError):  # Not even of the right types.
            return False


def _micros(seconds: float) -> int:
    return int(seconds * SECOND)


def _believed(entry: _Entry, now: int) -> Found | None:
    """Nothing of the future: a clock was set back, and nobody knows how old it is."""
    if entry.at > now + SECOND or entry.until <= now:
        return None
    return Found(entry.value, (entry.until - now) / SECOND)


def _signed(kind: str, key: bytes, entry: _Entry) -> bytes:
    said = [FILE, VERSION, kind, key.hex(), entry.at, entry.until, entry.subjects]
    return json.dumps(said) + b"\n" + entry.value


def _prepared(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # For its owner alone from the first moment on; SQLite gives -wal and -shm the same rights. One
    # that is there is not opened: to close it would take the locks of SQLite's away.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_RDWR, 0o600))
    database = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
    try:
        _in_wal_mode(database)
        database.execute("PRAGMA synchronous = NORMAL")
        with database:
            database.execute("BEGIN IMMEDIATE")
            if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                for statement in _TABLES.split(";"):
                    database.execute(statement)
    except BaseException:
        database.close()
        raise
    return database


def _in_wal_mode(database: sqlite3.Connection) -> None:
    last = monotonic() + BUSY
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:  # Changing the mode does not wait for others by itself.
            if monotonic() > last:
                raise
            sleep(0.02)
