"""Where the statements run, by the scheme of the URL: the one place that knows a driver."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from passy_plugins.stores.sql import statements, sums
from passy_plugins.stores.sql.evidence import Chain, priced, tolerant
from passy_plugins.stores.sql.retention import forget
from passy_proxy.json import dumps, loads
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord
from passy_proxy.stores import StoreUnavailable

T = TypeVar("T")
Value = str | int | float | bytes | None
Row = tuple[Value, ...]

BUSY_SECONDS = 5.0
"""How long one process waits for another's write to this file to end."""

COLUMNS = len(UsageRecord._fields)

_LAST_ROW = "SELECT coalesce(max(rowid), 0) FROM usage"
_LATE = (
    "usage WHERE rowid IN (SELECT rowid FROM usage WHERE summed = 0"
    f" AND (cost_nanos IS NOT NULL OR at < ?) ORDER BY at LIMIT {sums.AT_ONCE})"
)
_OLD = (
    "usage WHERE rowid IN (SELECT rowid FROM usage WHERE at < ? AND summed = 1"
    " ORDER BY at LIMIT 2000)"
)
_FRESH = Path(__file__).with_name("fresh.sql")
_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"

_WRONG = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    OverflowError,
)
"""Not the database's fault, and no better the next time."""


def sqlite_path(url: str) -> Path:
    """The file that ``sqlite:///relative`` or ``sqlite:////absolute`` names.

    ValueError for any other URL; its message repeats no more than the scheme, since a URL may hold
    a password.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite":
        raise ValueError(
            f"no driver for '{parts.scheme}://'; write sqlite:///folder/file.db or"
            " postgresql://user:password@host:5432/name"
        )
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or parts.query or path in ("", ":memory:"):
        raise ValueError("write sqlite:///relative/file.db or sqlite:////absolute/file.db")
    return Path(path)


class Sqlite:
    """One connection to one file, in a thread of its own: a slow disk delays only who asked.

    A `passy_plugins.stores.sql.driver.Database`.
    """

    def __init__(self, path: Path, name: str, *, lasting: bool = False) -> None:
        """``lasting``: what is written survives a power failure from then on."""
        self.path = path
        self.place = str(path)
        self._lasting = lasting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"passy-sql-{name}")
        self._live: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect now, to learn of trouble at the start. A file that is not there is made."""
        await self._run(lambda connection: None)

    async def close(self) -> None:
        """Wait for what is running, then disconnect; for good."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
            self._thread.shutdown(wait=False)

    async def fetch(self, statement: str, *values: Value) -> list[Row]:
        """All rows. Like everything here it raises `StoreUnavailable`."""
        return await self._run(lambda connection: connection.execute(statement, values).fetchall())

    async def record(
        self, records: Sequence[bytes], prices: Sequence[bytes], keyring: Keyring
    ) -> None:
        """All or none, in one transaction; see `Database`."""
        await self._run(lambda connection: _record(connection, records, prices, keyring))

    async def make(self) -> None:
        """Make the tables where there are none at all, unless somebody else has by the time this
        may write."""
        if await self.fetch(_TABLES) == [(0,)]:
            await self._run(_make)

    async def tend(
        self, now: int, oldest: int | None, keyring: Keyring, oldest_sums: int | None = None
    ) -> int:
        """See `Database`."""
        while await self._run(lambda connection: _sum_late(connection, now)):
            pass
        await self.fetch(statements.FORGET_CHANGES, now - statements.CHANGES_MS)
        if oldest_sums is not None:
            for statement in statements.DROP_SUMS:
                await self.fetch(statement, oldest_sums)
        dropped = 0
        if oldest is not None:
            await self.fetch(statements.MOVE_ON, statements.KEPT_FROM, str(oldest))
        while oldest is not None:
            count = await self._run(lambda connection: _drop(connection, oldest, keyring))
            if not count:
                break
            dropped += count
            await asyncio.sleep(0.05)  # Others write meanwhile.
        return dropped

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable(f"{self.path}: closed")

        def here() -> T:
            if self._live is None:
                self._live = _connect(self.path, self._lasting)
            return work(self._live)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, here)
        except _WRONG as error:
            raise ValueError(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def _disconnect(self) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None


def _connect(path: Path, lasting: bool = False) -> sqlite3.Connection:
    if not path.exists():
        _create_private(path)
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        _prepare(connection, lasting)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_private(path: Path) -> None:
    """An empty file for its owner alone; SQLite gives -wal and -shm the same rights.

    Made under another name: to close a file that SQLite has open in this process, as the writer of
    another store may by now, would take its locks away.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)


def _prepare(connection: sqlite3.Connection, lasting: bool) -> None:
    """Readers beside one writer, and no flush to the disk but at checkpoints; or with each
    transaction."""
    last = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:  # changing the mode does not wait for others by itself
            if time.monotonic() > last:
                raise
            time.sleep(0.02)
    connection.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")


def _transaction(connection: sqlite3.Connection, work: Callable[[], None]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        work()
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _record(
    connection: sqlite3.Connection,
    records: Sequence[bytes],
    prices: Sequence[bytes],
    keyring: Keyring,
) -> None:
    def work() -> None:
        start = 0
        ((last,),) = connection.execute(_LAST_ROW)
        evidence = Chain.last(connection, keyring)
        for size in statements.ROWS_AT_ONCE:
            while len(records) - start >= size:
                # SQLite could read the JSON itself, and takes four times as long for a row.
                rows = loads(b"[%b]" % b",".join(records[start : start + size]))
                proofs: dict[Any, Sequence[Any]] = {}
                for row in rows:
                    if len(row) > COLUMNS:
                        proof = row.pop()
                        proofs.setdefault(row[0], proof)
                    row[-1] = dumps(row[-1]).decode()
                values = list(chain.from_iterable(rows))
                if proofs and evidence is None:
                    evidence = Chain.begun(connection, keyring)
                if evidence is None:
                    connection.execute(statements.record_usage(size), values)
                else:
                    told = connection.execute(statements.record_usage(size, True), values)
                    evidence.enter_all(told.fetchall(), proofs)
                start += size
        if records:
            sums.enter(connection, "usage WHERE rowid > ?", (last,))
        for price in prices:
            nanos, text, id = loads(price)
            if evidence is None:
                priced(connection, (nanos, text, id))
            else:
                evidence.price(id, (nanos, text, id))
        if evidence is not None:
            evidence.close()

    connection.text_factory = tolerant
    _transaction(connection, work)


def _sum_late(connection: sqlite3.Connection, now: int) -> bool:
    """Add a piece of what is in no sum yet; whether there was any."""
    values = (now - sums.PRICE_MS,)
    if connection.execute(f"SELECT 1 FROM {_LATE} LIMIT 1", values).fetchone() is None:
        return False

    def work() -> None:
        sums.enter(connection, _LATE, values)
        connection.execute("UPDATE usage SET summed = 1" + _LATE.removeprefix("usage"), values)

    _transaction(connection, work)
    return True


def _drop(connection: sqlite3.Connection, oldest: int, keyring: Keyring) -> int:
    """Drop a piece of what is of a time before ``oldest``; how many records."""
    count = 0

    def work() -> None:
        nonlocal count
        forget(connection, keyring, _OLD, (oldest,), oldest)
        count = connection.execute(f"DELETE FROM {_OLD}", (oldest,)).rowcount

    connection.text_factory = tolerant
    if connection.execute(f"SELECT 1 FROM {_OLD} LIMIT 1", (oldest,)).fetchone() is not None:
        _transaction(connection, work)
    return count


def _make(connection: sqlite3.Connection) -> None:
    def work() -> None:
        if connection.execute(_TABLES).fetchone() == (0,):
            for statement in _FRESH.read_text(encoding="utf-8").split(";"):
                connection.execute(statement)

    _transaction(connection, work)
