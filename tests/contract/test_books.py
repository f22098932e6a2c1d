"""What every `Books` promises. A store passes by subclassing `BooksContract`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from harness.postgres import Database

from passy_plugins.stores.memory import Memory, MemorySettings
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord
from passy_proxy.site import Site

pytestmark = pytest.mark.anyio

NOON = 1_795_435_200.0
"""2026-11-23 12:00 UTC."""
HOUR, DAY = 3_600.0, 86_400.0

RECORD = UsageRecord(
    id="req_0",
    at=NOON,
    key_id="key_1",
    organisation="org_1",
    team="team_1",
    user_id="user_1",
    tags="a,b",
    route="POST /v1/chat/completions",
    model="gpt-4o",
    upstream="openai",
    upstream_model="gpt-4o",
    outcome="ok",
    status=200,
    streamed=False,
    input=100,
    output=11,
    cached=50,
    cache_write=0,
    reasoning=5,
    audio_input=0,
    audio_output=0,
    estimated=False,
    cost_nanos=7_000,
    price="p",
    first_ms=1,
    duration_ms=2,
    attempts=(),
)


class BooksContract:
    """Override `store`: a ledger and the books it writes, stopped; and `entered`, which returns
    when the running one has entered all that was recorded."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield  # noqa: PT022  # makes it the generator that overrides are

    async def entered(self, store: Any) -> None:
        return None

    async def record(self, store: Any, **changes: Any) -> None:
        store.record(RECORD._replace(**changes).row())

    async def test_nothing_was_spent_before_anything_was(self, store: Any) -> None:
        assert 0 == await store.spent("key", "key_1", "usd", 0, inf)
        assert 0 == await store.spent("organisation", "", "tokens", 0, inf)

    async def test_each_unit_is_added_up_for_key_and_organisation(self, store: Any) -> None:
        for number in range(3):
            await self.record(store, id=f"req_{number}")
        await self.record(store, id="req_other", key_id="key_2")
        await self.record(store, id="req_nobody", key_id="", organisation="")
        await self.entered(store)
        found = [
            await store.spent(kind, subject, unit, 0, inf)
            for kind, subject in (("key", "key_1"), ("key", "key_2"), ("organisation", "org_1"))
            for unit in ("usd", "tokens")
        ]
        assert [21_000, 333, 7_000, 111, 28_000, 444] == found
        for kind, subject in (("team", "team_1"), ("user", "user_1")):
            assert 35_000 == await store.spent(kind, subject, "usd", 0, inf)
        assert 0 == await store.spent("key", "key_3", "usd", 0, inf)

    async def test_a_record_that_comes_twice_is_counted_once(self, store: Any) -> None:
        for _ in range(2):
            await self.record(store)
        await self.entered(store)
        await self.record(store)
        await self.record(store, id="req_1")
        await self.entered(store)
        assert 14_000 == await store.spent("key", "key_1", "usd", 0, inf)

    async def test_a_price_that_is_known_later_is_counted_from_then_on(self, store: Any) -> None:
        await self.record(store, cost_nanos=None, price="")
        await self.record(store, id="req_1")
        await self.entered(store)
        assert 7_000 == await store.spent("key", "key_1", "usd", 0, inf)
        store.price("req_0", 1_234, "late")
        await self.entered(store)
        assert 8_234 == await store.spent("key", "key_1", "usd", 0, inf)
        assert 222 == await store.spent("key", "key_1", "tokens", 0, inf)

    async def test_O8_any_split_of_a_span_adds_up_to_the_whole(self, store: Any) -> None:
        shifts = (-DAY - 0.001, -HOUR, -0.001, 0, 0.001, HOUR - 0.001, 3 * HOUR, 12 * HOUR, 2 * DAY)
        for number, shift in enumerate(shifts):
            at = NOON + shift
            await self.record(store, id=f"req_{number}", at=at, input=1 << number, output=0)
        await self.entered(store)

        async def within(start: float, end: float) -> int:
            return int(await store.spent("key", "key_1", "tokens", start, end))

        whole = (1 << len(shifts)) - 1
        assert whole == await within(0, inf)
        for cuts in (
            [NOON],
            [NOON - 0.001, NOON + 0.001],
            [NOON - DAY, NOON + HOUR, NOON + 12 * HOUR],
            [NOON - 12 * HOUR, NOON + 0.5, NOON + 0.75, NOON + 13 * HOUR + 0.25],
        ):
            parts = [await within(start, end) for start, end in pairwise([0, *cuts, inf])]
            assert whole == sum(parts), cuts
        # Of each span exactly those within it, the start among them and the end not.
        assert 0b1000 == await within(NOON, NOON + 0.001)
        assert 0b110 == await within(NOON - HOUR, NOON)


class TestMemory(BooksContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Memory]:
        store = Memory(MemorySettings(), Site(tmp_path, Keyring.load(tmp_path, None)))
        await store.start()
        yield store
        await store.stop()


async def shipped(store: Sql) -> None:
    """Until nothing waits in the journal."""
    for _ in range(6_000):
        if not store.waiting:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it is never entered")


class TestSqlite(BooksContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/passy.db"

    @pytest.fixture
    async def store(self, tmp_path: Path, url: str) -> AsyncIterator[Sql]:
        site = Site(tmp_path, Keyring.load(tmp_path, None))
        store = Sql(SqlSettings(url=Secret(url)), site)
        await store.start()
        yield store
        await store.stop()

    async def entered(self, store: Sql) -> None:
        await shipped(store)


class TestPostgres(TestSqlite):
    @pytest.fixture
    def url(self, database: Database) -> str:
        return database.url
