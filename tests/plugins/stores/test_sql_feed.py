"""The table of changes: each is told once, also one that came to be seen late."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest
import structlog

from passy_plugins.stores.sql import feed
from passy_plugins.stores.sql.feed import BEHIND, LATE, LONG, Feed
from passy_proxy.stores import ANYTHING, StoreUnavailable

pytestmark = pytest.mark.anyio

SOMETHING = (ANYTHING, ANYTHING)


class Table:
    """The changes of a database that can be away."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.away = False
        self.asked = 0

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return self.database.execute(statement, values).fetchall()

    def edit(self, subject: str, seq: int | None = None) -> None:
        self.database.execute("INSERT INTO changes VALUES (?, 'key', ?, 0)", (seq, subject))


@pytest.fixture
def table() -> Iterator[Table]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.execute(
            "CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind, subject, at)"
        )
        yield Table(database)


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(feed, "monotonic", lambda: made.now)
    return made


@pytest.fixture
async def heard(table: Table, clock: Clock) -> AsyncIterator[tuple[Feed, list[tuple[str, str]]]]:
    """A feed that looks when the test says so, and what it told."""
    made = Feed(table.fetch, structlog.get_logger())
    told: list[tuple[str, str]] = []
    made._listeners.append(lambda kind, subject: told.append((kind, subject)))
    yield made, told
    await made.stop()


Heard = tuple[Feed, list[tuple[str, str]]]


async def test_what_was_edited_before_is_something_and_then_each_edit_once(
    table: Table, heard: Heard
) -> None:
    feed, told = heard
    for number in range(5):
        table.edit(f"old {number}")
    await feed._told()
    assert [SOMETHING] == told
    for number in range(3):
        table.edit(f"{number}")
        await feed._told()
        await feed._told()
    assert [("key", "0"), ("key", "1"), ("key", "2")] == told[1:]


async def test_an_edit_that_is_seen_after_a_later_one_is_told_too(
    table: Table, heard: Heard, clock: Clock
) -> None:
    feed, told = heard
    table.edit("first", 200)
    await feed._told()
    table.edit("later", 203)
    await feed._told()
    clock.now += LATE - 1
    table.edit("late", 201)
    table.edit("later still", 204)
    await feed._told()
    table.edit("from before the first look", 200 - BEHIND + 1)
    await feed._told()
    assert ["later", "late", "later still", "from before the first look"] == [
        subject for _, subject in told[1:]
    ]
    clock.now += LATE + 1
    await feed._told()
    assert {} == feed._seen  # Nothing is remembered for longer.
    await feed._told()
    assert 5 == len(told)


async def test_many_edits_at_once_are_all_told(
    table: Table, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed_, told = heard
    monkeypatch.setattr(feed, "PAGE", 10)
    await feed_._told()
    for number in range(95):
        table.edit(str(number))
    await feed_._told()
    assert [str(number) for number in range(95)] == [subject for _, subject in told[1:]]


async def test_what_was_edited_while_nobody_could_look_is_told_afterwards(
    table: Table, heard: Heard, clock: Clock
) -> None:
    feed, told = heard
    await feed._told()
    table.away = True
    with pytest.raises(StoreUnavailable):
        await feed._told()
    table.edit("meanwhile")
    clock.now += LONG - 1
    table.away = False
    await feed._told()
    assert [SOMETHING, ("key", "meanwhile")] == told
    # After so long that rows may have been cleared away, it may be anything.
    clock.now += LONG + 1
    await feed._told()
    assert [SOMETHING] == told[2:]


async def test_who_publishes_is_heard_at_once(table: Table) -> None:
    made = Feed(table.fetch, structlog.get_logger())
    told: list[tuple[str, str]] = []
    unlisten = made.listen(lambda kind, subject: told.append((kind, subject)))
    assert not made.hears
    try:
        while not told:
            await feed.asyncio.sleep(0)
        assert made.hears
        await made.publish("key", "k1")
        while len(told) < 2:
            await feed.asyncio.sleep(0)
        assert [SOMETHING, ("key", "k1")] == told
        late: list[tuple[str, str]] = []
        made.listen(lambda kind, subject: late.append((kind, subject)))
        assert [SOMETHING] == late
        unlisten()
        await made.publish("key", "k2")
        while len(late) < 2:
            await feed.asyncio.sleep(0)
        assert 2 == len(told)
    finally:
        await made.stop()
