"""What every `Ledger` promises. A store passes by subclassing `LedgerContract`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from harness.postgres import Database

from passy_plugins.stores.memory import Memory, MemorySettings
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_plugins.stores.sql.admin import Admin
from passy_proxy.config.settings import Secret
from passy_proxy.evidence import Proof
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, UsageRecord
from passy_proxy.site import Site

pytestmark = pytest.mark.anyio

RECORD = UsageRecord(
    id="req_0",
    at=1_795_430_994.913,
    key_id="key_1",
    organisation="org_1",
    team="team_1",
    user_id="user_1",
    tags="blue,green",
    route="/v1/chat/completions",
    model="gpt-4o",
    upstream="openai",
    upstream_model="gpt-4o-2024-08-06",
    outcome="ok",
    status=200,
    streamed=True,
    input=120,
    output=300,
    cached=100,
    cache_write=1,
    reasoning=2,
    audio_input=3,
    audio_output=4,
    estimated=True,
    cost_nanos=3_300_000,
    price="2.5/10 per 1M (genai-prices)",
    first_ms=310,
    duration_ms=2_045,
    attempts=(
        AttemptRecord("nebius", "llama", 0, "timeout", 0, 30_000, True),
        AttemptRecord("openai", "gpt-4o-2024-08-06", 200, "", 30_001, 310, False),
    ),
)
REFUSED = RECORD._replace(
    id="req_refused",
    streamed=False,
    estimated=False,
    cost_nanos=None,
    status=429,
    outcome="rate_limit_exceeded",
    attempts=(),
)


def numbered(count: int, start: int = 0) -> list[UsageRecord]:
    return [RECORD._replace(id=f"req_{number:06}") for number in range(start, start + count)]


class LedgerContract:
    """Override `store` and `kept`, which reads back what the stopped store holds of ``key_1``."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def kept(self, store: Any, tmp_path: Path) -> Callable[[], Awaitable[list[UsageRecord]]]:
        raise NotImplementedError

    async def test_a_record_comes_back_as_it_was_given(self, store: Any, kept: Any) -> None:
        await store.start()
        store.record(RECORD.row())
        store.record(REFUSED.row())
        await store.stop()
        assert [RECORD, REFUSED] == sorted(await kept())

    async def test_a_proof_changes_nothing_of_the_record(self, store: Any, kept: Any) -> None:
        await store.start()
        store.record(RECORD.row(), Proof("aa", "bb", ("filter", "gateway")))
        store.record(REFUSED.row())
        await store.stop()
        assert [RECORD, REFUSED] == sorted(await kept())

    async def test_one_id_is_kept_once_and_the_first_stays(self, store: Any, kept: Any) -> None:
        await store.start()
        store.record(RECORD.row())
        store.record(RECORD._replace(input=999_999).row())
        await asyncio.sleep(0.6)  # so that a late one comes after the first was written
        store.record(RECORD._replace(output=999_999).row())
        await store.stop()
        assert [RECORD] == await kept()

    async def test_all_that_was_recorded_is_kept_when_it_stops(
        self,
        store: Any,
        kept: Any,
    ) -> None:
        await store.start()
        records = numbered(3_000)
        for record in records:
            store.record(record.row())
        await store.stop()
        assert records == sorted(await kept())

    async def test_recording_does_not_wait(self, store: Any, kept: Any) -> None:
        await store.start()
        assert store.record(RECORD.row()) is True
        await store.stop()
        assert 1 == len(await kept())

    async def test_a_store_without_records_stops(self, store: Any, kept: Any) -> None:
        await store.start()
        await store.stop()
        assert [] == await kept()


class TestMemory(LedgerContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Memory:
        settings = MemorySettings(keep=5_000)
        return Memory(settings, Site(tmp_path, Keyring.load(tmp_path, None)))

    @pytest.fixture
    def kept(self, store: Memory, tmp_path: Path) -> Callable[[], Awaitable[list[UsageRecord]]]:
        async def read() -> list[UsageRecord]:
            return store.records

        return read


class TestSqlite(LedgerContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/passy.db"

    @pytest.fixture
    def store(self, tmp_path: Path, url: str) -> Sql:
        site = Site(tmp_path, Keyring.load(tmp_path, None))
        return Sql(SqlSettings(url=Secret(url)), site)

    @pytest.fixture
    def kept(
        self, store: Sql, tmp_path: Path, url: str
    ) -> Callable[[], Awaitable[list[UsageRecord]]]:
        async def read() -> list[UsageRecord]:
            async with Admin.opened(url, Keyring.load(tmp_path, None)) as admin:
                return await admin.usage_of("key_1", most=10_000)

        return read


class TestPostgres(TestSqlite):
    @pytest.fixture
    def url(self, database: Database) -> str:
        return database.url
