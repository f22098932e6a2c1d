"""What every `Vault` promises. A store passes by subclassing `VaultContract`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.postgres import Database

from passy_plugins.stores.memory import Memory, MemorySettings
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_plugins.stores.sql.admin import Admin
from passy_proxy.config.settings import Secret
from passy_proxy.issue import NewCredential, NewProvider
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site
from passy_proxy.stores import Vault

pytestmark = pytest.mark.anyio


class Filled(NamedTuple):
    """A vault: ``acme`` has three keys for openai and two providers, ``other`` a key for nebius."""

    store: Vault
    acme: str
    other: str
    first: str
    """acme's disabled provider of m1 and m2, priority 0, with the credential ``sk-first``."""
    second: str
    """acme's active provider of everything, priority 5, without a credential."""


class VaultContract:
    """Override `vault`."""

    @pytest.fixture
    async def vault(self, tmp_path: Path) -> AsyncIterator[Filled]:
        raise NotImplementedError
        yield  # noqa: PT022  # makes it the generator that overrides are

    async def test_an_organisation_is_given_its_own_credentials_in_order(
        self, vault: Filled
    ) -> None:
        found = await vault.store.credentials(vault.acme)
        shown = [one.secret for one in found if one.upstream == "openai"]
        assert ["sk-acme", "sk-acme-second"] == shown, "by priority, without the disabled one"
        assert {vault.acme} == {one.owner for one in found}
        assert {""} == {one.trouble for one in found}

    async def test_each_credential_has_an_id_of_its_own(self, vault: Filled) -> None:
        found = await vault.store.credentials(vault.acme)
        assert len(found) == len({one.id for one in found}) == 3
        assert all(one.id for one in found)

    async def test_a_credential_does_not_show_itself(self, vault: Filled) -> None:
        found = await vault.store.credentials(vault.acme)
        assert "sk-" not in f"{found} {found!r}"

    async def test_nobody_is_given_another_s_credentials(self, vault: Filled) -> None:
        (only,) = await vault.store.credentials(vault.other)
        assert ("nebius", "sk-other") == (only.upstream, only.secret)
        for nobody in ("", "nobody", "%", vault.first, "openai"):
            assert [] == list(await vault.store.credentials(nobody))

    async def test_a_provider_s_credential_goes_by_its_id(self, vault: Filled) -> None:
        found = {one.upstream: one.secret for one in await vault.store.credentials(vault.acme)}
        assert "sk-first" == found[vault.first]
        assert vault.second not in found

    async def test_providers_come_in_order_of_priority(self, vault: Filled) -> None:
        first, second = await vault.store.providers(vault.acme)
        assert (vault.first, vault.second) == (first.id, second.id)
        assert (vault.acme, "First", "anthropic") == (first.organisation, first.name, first.dialect)
        assert ("https://first.test/v1", ("m1", "m2")) == (first.url, first.models)
        assert (False, True) == (first.active, second.active)
        assert (0, 5) == (first.priority, second.priority)
        assert ("*",) == second.models

    async def test_who_has_no_providers_is_given_none(self, vault: Filled) -> None:
        assert [] == list(await vault.store.providers(vault.other))
        assert [] == list(await vault.store.providers("nobody"))


FIRST = {
    "name": "First",
    "dialect": "anthropic",
    "url": "https://first.test/v1",
    "models": ("m1", "m2"),
    "status": "disabled",
}
SECOND = {"name": "Second", "url": "https://second.test/v1", "priority": 5}


class TestMemory(VaultContract):
    @pytest.fixture
    async def vault(self, tmp_path: Path) -> AsyncIterator[Filled]:
        acme = {
            "credentials": {
                "openai": [
                    {"key": "sk-acme-second", "priority": 2},
                    {"key": "sk-acme-gone", "status": "disabled"},
                    {"key": "sk-acme", "priority": 1},
                ]
            },
            "providers": [
                {"id": "two", **SECOND},
                {"id": "one", "credential": "sk-first", **FIRST},
            ],
        }
        settings = MemorySettings.model_validate(
            {"organisations": {"acme": acme, "other": {"credentials": {"nebius": "sk-other"}}}}
        )
        store = Memory(settings, Site(tmp_path, Keyring.load(tmp_path, None)))
        await store.start()
        yield Filled(store, "acme", "other", "one", "two")
        await store.stop()


class TestSqlite(VaultContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/passy.db"

    @pytest.fixture
    async def vault(self, tmp_path: Path, url: str) -> AsyncIterator[Filled]:
        site = Site(tmp_path, Keyring.load(tmp_path, None))
        store = Sql(SqlSettings(url=Secret(url)), site)
        await store.start()
        async with Admin.opened(url, site.keyring) as admin:
            acme, other, first, second = await filled(admin)
        yield Filled(store, acme, other, first, second)
        await store.stop()


class TestPostgres(TestSqlite):
    @pytest.fixture
    def url(self, database: Database) -> str:
        return database.url


async def filled(admin: Admin) -> tuple[str, str, str, str]:
    """What a vault that is written to is filled with; acme, other and acme's two providers."""
    acme = await admin.create_organisation("Acme")
    other = await admin.create_organisation("Other")
    await admin.add_credential(NewCredential(acme, "openai", priority=2), "sk-acme-second")
    gone = await admin.add_credential(NewCredential(acme, "openai"), "sk-acme-gone")
    assert await admin.change_credential(gone, status="disabled")
    mine = await admin.add_credential(NewCredential(acme, "openai", priority=1), "sk-old")
    assert await admin.change_credential(mine, secret="sk-acme")
    await admin.add_credential(NewCredential(other, "nebius"), "sk-other")
    second = await admin.add_provider(NewProvider(acme, **SECOND))
    first = await admin.add_provider(NewProvider(acme, **FIRST), "sk-first")
    return acme, other, first, second
