"""The way of usage into the database: troubles, several writers, a killed one."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_plugins.stores.sql import Sql, SqlSettings, database, ledger
from passy_plugins.stores.sql.ledger import Spool
from passy_proxy.config.settings import Secret
from passy_proxy.json import loads
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, UsageRecord
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable

pytestmark = pytest.mark.anyio

KEY = "the secret key of these tests: 0123456789"
ATTEMPT = AttemptRecord("echo", "echo", 200, "", 0, 1, False)
COUNTS = (1, 2, 0, 0, 0, 0, 0)
NAMES = ("key_1", "", "/v1/chat/completions", "echo", "echo", "echo", "ok")
RECORD = UsageRecord("req_0", 1.5, *NAMES, 200, False, *COUNTS, False, 0, "", 1, 2, (ATTEMPT,))

WRITER = f"""
import asyncio, sys
from pathlib import Path
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, UsageRecord
from passy_proxy.site import Site

RECORD = UsageRecord("", 1.5, *{NAMES}, 200, False, *{COUNTS}, False, 0, "", 1, 2,
    (AttemptRecord("echo", "echo", 200, "", 0, 1, False),))

async def write(url, first, last):
    store = Sql(SqlSettings(url=Secret(url)), Site(Path(), Keyring([{KEY!r}])))
    await store.start()
    for number in range(int(first), int(last)):
        store.record(RECORD._replace(id=f"req_{{number:06}}").row())
        if number % 100 == 0:
            await asyncio.sleep(0.005)
            print(number, flush=True)
    await store.stop()

asyncio.run(write(*sys.argv[1:]))
"""


def store_at(path: Path, **settings: Any) -> Sql:
    url = Secret(f"sqlite:///{path}")
    return Sql(SqlSettings(url=url, **settings), Site(path.parent, Keyring([KEY])))


def writer(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, f"sqlite:///{path}", str(first), str(last)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def ids(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM usage ORDER BY id")]


def numbered(first: int, last: int) -> list[UsageRecord]:
    return [RECORD._replace(id=f"req_{number:06}") for number in range(first, last)]


async def until(true: Any) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110  # it waits for threads and other processes
            await asyncio.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "passy.db"


async def test_processes_that_write_at_once_lose_and_double_nothing(path: Path) -> None:
    first, second = writer(path, 0, 3_000), writer(path, 2_000, 5_000)
    for process in (first, second):
        await asyncio.to_thread(process.communicate, timeout=60)
    assert (0, 0) == (first.returncode, second.returncode)
    assert [record.id for record in numbered(0, 5_000)] == ids(path)


async def test_what_a_killed_process_had_written_is_not_written_twice(path: Path) -> None:
    process = writer(path, 0, 1_000_000)
    assert process.stdout is not None
    with process:
        await until(lambda: path.exists() and _rows(path) > 500)
        process.kill()
    written = _rows(path)
    store = store_at(path)
    await store.start()
    for record in numbered(0, written + 500):  # as a journal would, from its beginning
        store.record(record.row())
    await store.stop()
    assert [record.id for record in numbered(0, written + 500)] == ids(path)


def _rows(path: Path) -> int:
    try:
        return len(ids(path))
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0


async def test_records_wait_while_the_database_is_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(ledger, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ledger, "LONGEST_PAUSE", 0.05)
    store = store_at(path)
    with structlog.testing.capture_logs() as logs, closing(sqlite3.connect(path)) as other:
        await store.start()
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        for record in numbered(0, 600):
            store.record(record.row())
        await until(lambda: logs)
        store.record(numbered(600, 601)[0].row())
        await asyncio.sleep(0.3)
        assert (601, 0) == (store.waiting, store.lost)
        other.execute("ROLLBACK")
        await until(lambda: store.waiting == 0)
        await store.stop()
    assert 601 == len(ids(path))
    assert ["usage_waits"] == [entry["event"] for entry in logs]


async def test_a_record_that_cannot_be_written_is_lost_alone(path: Path) -> None:
    store = store_at(path)
    records = numbered(0, 300)
    records[7] = records[7]._replace(input=2**70)
    records[8] = records[8]._replace(input=2**63)  # JSON can say it, the database cannot keep it.
    records[9] = records[9]._replace(model="\ud800")
    failed = ATTEMPT._replace(failure="broken: \ud800")
    records[10] = records[10]._replace(attempts=(failed,))
    with structlog.testing.capture_logs() as logs:
        await store.start()
        for record in records:
            store.record(record.row())
        await store.stop()
    assert 296 == len(ids(path))
    assert 4 == store.lost
    assert ["usage_refused", "usage_lost"] == [entry["event"] for entry in logs]


class Away:
    """A database that takes nothing until it is back."""

    def __init__(self) -> None:
        self.here = False
        self.tries = 0
        self.written: list[bytes] = []

    async def write(self, batch: Sequence[bytes]) -> None:
        self.tries += 1
        if not self.here:
            raise StoreUnavailable("away")
        self.written += batch


async def test_what_does_not_fit_any_more_is_lost_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ledger, "FLUSH_SECONDS", 0.01)
    away = Away()
    with structlog.testing.capture_logs() as logs:
        spool = Spool(away.write, structlog.get_logger(), capacity=100)
        spool.start()
        records = numbered(0, 130)
        for record in records:
            spool.record(record.row())
        await until(lambda: away.tries > 2)
        assert (100, 30) == (len(spool), spool.lost)
        away.here = True
        await spool.stop()
    assert [record.id for record in records[:100]] == [loads(row)[0] for row in away.written]
    assert ["usage_waits", "usage_lost"] == [entry["event"] for entry in logs]
    assert 30 == logs[-1]["records"]


async def test_a_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away()
    with structlog.testing.capture_logs():
        spool = Spool(away.write, structlog.get_logger())
        spool.start()
        for record in numbered(0, 7):
            spool.record(record.row())
        await spool.stop(seconds=0.1)
    assert (0, 7) == (len(spool), spool.lost)


async def test_a_record_that_waits_takes_no_more_room_than_its_text() -> None:
    away = Away()
    spool = Spool(away.write, structlog.get_logger())
    records = [record.row() for record in numbered(0, 400)]
    tracemalloc.start()
    try:
        for record in records:
            spool.record(record)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / len(records) < 600


async def test_records_are_written_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "FLUSH_SECONDS", 3_600.0)
    away = Away()
    away.here = True
    spool = Spool(away.write, structlog.get_logger())
    spool.start()
    enough = ledger.ENOUGH
    for record in numbered(0, enough - 1):
        spool.record(record.row())
    for _ in range(10):
        await asyncio.sleep(0)
    assert 0 == away.tries
    spool.record(numbered(enough - 1, enough)[0].row())
    await until(lambda: away.tries)
    assert enough == len(away.written)
    await spool.stop()
    assert 1 == away.tries
