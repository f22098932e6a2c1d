"""W12: tables are brought forward under load, on both databases. Who dies on the way or comes at
the same time does no harm, and a gateway of the version before goes on."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any

import pytest
from harness.crowd import until
from harness.figures import Note
from harness.postgres import Database

from passy_plugins.stores.sql import Sql, SqlSettings, migrate, statements, sums
from passy_plugins.stores.sql.driver import driver_for
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site

pytestmark = pytest.mark.anyio

RING = Keyring(["the secret key of these tests: 0123456789"])
AT = int(time.time() * 1000)
COLUMNS = (
    "id, at, key_id, organisation, route, model, upstream, upstream_model, outcome, status,"
    " streamed, input, output, cached, cache_write, reasoning, audio_input, audio_output,"
    " estimated, cost_nanos, price, first_ms, duration_ms, attempts"
)
"""Of a record, as the first version and all after it write them."""


class Books:
    """A database of either kind, as somebody left it."""

    def __init__(self, folder: Path, database: Database | None) -> None:
        self.folder = folder
        self.database = database
        self.url = f"sqlite:///{folder}/passy.db" if database is None else database.url

    def rows(self, *several: str) -> list[tuple[Any, ...]]:
        """What the last statement gives; all in one transaction."""
        if self.database is not None:
            *first, last = several
            return self.database.rows(last) if not first else self._run(several)
        with closing(sqlite3.connect(self.folder / "passy.db", timeout=90)) as books, books:
            for statement in several:
                found = books.execute(statement).fetchall()
            return found

    def _run(self, several: tuple[str, ...]) -> list[tuple[Any, ...]]:
        assert self.database is not None
        self.database.run(";".join(several))
        return []

    def record(self, first: int, count: int = 1) -> None:
        """What a gateway of any version before enters."""
        values = ", ".join(
            f"('req_{number}', {AT + number}, 'key_1', 'org_1', 'r', 'm', 'u', 'm',"
            f" 'ok', 200, 0, {number}, 1, 0, 0, 0, 0, 0, 0, 7, 'p', 1, 2, '[]')"
            for number in range(first, first + count)
        )
        self.rows(f"INSERT INTO usage ({COLUMNS}) VALUES {values} RETURNING id")

    def shape(self) -> list[tuple[Any, ...]]:
        """Every column and index."""
        if self.database is None:
            found = self.rows("SELECT name, sql FROM sqlite_master ORDER BY name")
            return [(name, " ".join((sql or "").split())) for name, sql in found]
        return self.rows(
            "SELECT table_name::text, column_name::text, data_type::text, is_nullable::text"
            " FROM information_schema.columns WHERE table_schema = 'public'"
            " AND table_name !~ '^usage_[0-9]' UNION ALL"
            " SELECT tablename::text, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'"
            " AND tablename !~ '^usage_[0-9]' ORDER BY 1, 2"
        )


@pytest.fixture(params=["sqlite", "postgres"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Books:
    kind = request.param
    return Books(tmp_path, request.getfixturevalue("database") if kind == "postgres" else None)


async def made_new(books: Books) -> list[tuple[Any, ...]]:
    """The shape of a database that was never older."""
    driver = driver_for(books.url, "new")
    await driver.make()
    await driver.close()
    return books.shape()


@pytest.fixture
def fresh(books: Books, tmp_path: Path) -> Iterator[Books]:
    """Another database of the same kind."""
    (tmp_path / "fresh").mkdir()
    if books.database is None:
        yield Books(tmp_path / "fresh", None)
        return
    with books.database.server.database() as other:
        yield Books(tmp_path / "fresh", other)


async def ended(books: Books, script: str = "") -> tuple[int, str]:
    """How a migration in a process of its own ends, and what it complains of; ``script`` is what
    it does before."""
    run = f"{script}\nimport asyncio, sys\nfrom passy_plugins.stores.sql import migrate\n"
    run += "asyncio.run(migrate.upgrade(sys.stdin.readline().strip()))\n"
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", run],
        input=f"{books.url}\n".encode(),
        capture_output=True,
        timeout=60,
    )
    return ran.returncode, ran.stderr.decode()


async def test_W12_every_revision_leads_to_the_same_tables_and_keeps_every_record(
    books: Books, fresh: Books
) -> None:
    for revision in statements.REVISIONS:
        await migrate.upgrade(books.url, revision)
        number = int(revision)
        books.record(100 * number, 10)
    assert await made_new(fresh) == books.shape()
    kept = "SELECT count(*), sum(input) FROM usage"
    wanted = sum(100 * int(each) + n for each in statements.REVISIONS for n in range(10))
    found = books.rows(kept)[0]
    assert (10 * len(statements.REVISIONS), wanted) == (found[0], int(found[1]))
    store = Sql(SqlSettings(url=Secret(books.url)), Site(books.folder, RING))
    await store.start()
    assert 7 * found[0] == await store.spent("key", "key_1", "usd", 0, inf)
    await store.stop()


DYING = """
import os, signal
from alembic import op

def dying(function):
    def called(*arguments, **named):
        DYING.count += 1
        if DYING.count == {}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return called

class DYING:
    count = 0

for name in ("create_table", "create_index", "add_column", "execute", "drop_table"):
    setattr(op, name, dying(getattr(op, name)))
"""


async def test_W12_a_migration_that_is_killed_anywhere_is_as_if_it_had_not_begun(
    books: Books, fresh: Books, figure: Note
) -> None:
    await migrate.upgrade(books.url, "0001")
    books.record(0, 30)
    before = books.shape()
    dice = random.Random(12)
    steps = sorted({1, *(dice.randrange(2, 40) for _ in range(3))})
    for step in steps:
        code, complaints = await ended(books, DYING.format(step))
        assert -signal.SIGKILL == code, complaints
        # A server notices a moment later.
        assert before == books.shape()
        assert [("0001",)] == books.rows(statements.REVISION)
    await migrate.upgrade(books.url)
    assert await made_new(fresh) == books.shape()
    assert [(30,)] == books.rows("SELECT count(*) FROM usage")
    figure("killed at steps", steps)


async def test_W12_of_several_that_migrate_at_once_one_does(books: Books, fresh: Books) -> None:
    await migrate.upgrade(books.url, "0001")
    books.record(0, 30)
    for code, complaints in await asyncio.gather(*(ended(books) for _ in range(3))):
        assert 0 == code, complaints
    assert await made_new(fresh) == books.shape()
    assert [(30,)] == books.rows("SELECT count(*) FROM usage")


@pytest.mark.parametrize("count", [3_000, pytest.param(1_000_000, marks=pytest.mark.large)])
async def test_W12_an_older_gateway_goes_on_while_and_after_tables_are_brought_forward(
    books: Books, figure: Note, count: int
) -> None:
    await migrate.upgrade(books.url, statements.REVISIONS[-2])
    for start in range(0, count, 1_000):
        books.record(start, 1_000)
    if books.database is None:
        books.rows("PRAGMA journal_mode = WAL")
    over = threading.Event()
    entered, longest = 0, 0.0

    def enter() -> None:
        """A gateway of the version before; its shipper tries again where it fails."""
        nonlocal entered, longest
        while not over.is_set():
            began = time.monotonic()
            books.record(count + entered)
            longest = max(longest, time.monotonic() - began)
            entered += 1
            time.sleep(0.005)

    older = threading.Thread(target=enter)
    older.start()
    try:
        began = time.monotonic()
        store = Sql(SqlSettings(url=Secret(books.url)), Site(books.folder, RING))
        await store.start()  # It brings the tables forward.
        took = time.monotonic() - began
        by_then, end = entered, time.monotonic() + 90
        while entered < by_then + 20 and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    finally:
        over.set()
        await asyncio.to_thread(older.join)
    assert entered >= by_then + 20
    total = count + entered
    assert 7 * total == await store.spent("organisation", "org_1", "usd", 0, inf)
    now = int(time.time() * 1000)
    driver = driver_for(books.url, "tend")
    await driver.tend(now, None, RING)
    await driver.close()
    # The store tends, too, and may be adding the last ones just now.
    late = "SELECT count(*) FROM usage WHERE summed = 0"
    await until(lambda: [(0,)] == books.rows(late), 90)
    assert [(0,)] == books.rows(late)
    for table in sums.SPANS:
        found = books.rows(f"SELECT sum(requests), sum(cost_nanos), sum(input) FROM {table}")[0]
        assert (total, 7 * total, total * (total - 1) // 2) == tuple(map(int, found))
    assert 7 * total == await store.spent("organisation", "org_1", "usd", 0, inf)
    await store.stop()
    figure("brought forward in (s), longest write meanwhile (s)", f"{took:.1f}, {longest:.2f}")
