"""What every `Alerts` promises. A store passes by subclassing `AlertsContract`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.postgres import Database

from passy_plugins.stores.memory import Memory, MemorySettings
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_plugins.stores.sql.admin import Admin
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site
from passy_proxy.stores import Alerts

pytestmark = pytest.mark.anyio

RING = Keyring(["the secret key of these tests: 0123456789"])


class AlertsContract:
    """Override `stores`: two of the same, as two hosts have them."""

    @pytest.fixture
    def stores(self, tmp_path: Path) -> tuple[Alerts, Alerts]:
        raise NotImplementedError

    async def test_of_many_that_see_it_at_once_one_tells(
        self, stores: tuple[Alerts, Alerts]
    ) -> None:
        mine = await asyncio.gather(
            *(stores[number % 2].raise_alert("bud_1", "2026-11", 80, 60) for number in range(20))
        )
        assert 1 == sum(mine)

    async def test_each_threshold_of_each_window_is_told(
        self, stores: tuple[Alerts, Alerts]
    ) -> None:
        for budget in ("bud_1", "bud_2"):
            for window in ("2026-11", "2026-12"):
                for percent in (50, 100):
                    assert await stores[0].raise_alert(budget, window, percent, 60)
                    assert not await stores[1].raise_alert(budget, window, percent, 60)

    async def test_what_was_told_is_never_told_again(self, stores: tuple[Alerts, Alerts]) -> None:
        assert await stores[0].raise_alert("bud_1", "2026-11", 80, 0)
        await stores[0].alerted("bud_1", "2026-11", 80)
        for store in stores:
            assert not await store.raise_alert("bud_1", "2026-11", 80, 0)

    async def test_one_who_began_and_ended_before_it_was_told_is_followed_by_another(
        self, stores: tuple[Alerts, Alerts]
    ) -> None:
        assert await stores[0].raise_alert("bud_1", "2026-11", 80, 60)
        assert not await stores[1].raise_alert("bud_1", "2026-11", 80, 60)
        await asyncio.sleep(0.05)
        assert await stores[1].raise_alert("bud_1", "2026-11", 80, 0.02)
        assert not await stores[0].raise_alert("bud_1", "2026-11", 80, 60)


class TestMemory(AlertsContract):
    @pytest.fixture
    def stores(self, tmp_path: Path) -> tuple[Alerts, Alerts]:
        store = Memory(MemorySettings(), Site(tmp_path, RING))
        return store, store


class TestSqlite(AlertsContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/passy.db"

    @pytest.fixture
    async def stores(  # type: ignore[override]
        self, url: str, tmp_path: Path
    ) -> AsyncIterator[tuple[Sql, Sql]]:
        settings = SqlSettings(url=Secret(url))
        hosts = [Sql(settings, Site(tmp_path / name, RING)) for name in ("one", "other")]
        for host in hosts:
            await host.start()
        yield hosts[0], hosts[1]
        for host in hosts:
            await host.stop()

    async def test_an_organisation_and_the_operator_are_told(
        self, stores: tuple[Sql, Sql], url: str
    ) -> None:
        async with Admin.opened(url, RING) as admin:
            ours, theirs = [await admin.create_organisation(name) for name in ("Ours", "Theirs")]
            made = {}
            for organisation in (ours, theirs, None):
                hook, secret = await admin.add_webhook(organisation, "https://example.com/hook")
                made[organisation] = (hook.id, secret)
        found = await stores[0].hooks(ours, "budget.alert")
        assert {made[ours], made[None]} == {(each.id, each.secret.reveal()) for each in found}
        assert [made[None][0]] == [each.id for each in await stores[0].hooks(None, "budget.alert")]
        assert [] == list(await stores[0].hooks(ours, "another.event"))
        assert made[ours][1] not in repr(found)

    async def test_a_secret_of_another_ring_is_left_out(
        self, stores: tuple[Sql, Sql], url: str
    ) -> None:
        async with Admin.opened(url, RING) as admin:
            await admin.add_webhook(None, "https://example.com/hook")
        stores[0]._keyring = Keyring(["another secret key of these tests: 9876543210"])
        assert [] == list(await stores[0].hooks(None, "budget.alert"))


class TestPostgres(TestSqlite):
    @pytest.fixture
    def url(self, database: Database) -> str:
        return database.url
