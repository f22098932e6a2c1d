"""What every `Vault` promises. A store passes by subclassing `VaultContract`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.postgres import Database

from passy_plugins.stores.memory import Memory, MemorySettings
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_plugins.stores.sql.admin import Admin, NewProvider
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import CredentialRef
from passy_proxy.site import Site
from passy_proxy.stores import Vault

pytestmark = pytest.mark.anyio


class Filled(NamedTuple):
    """A vault: ``acme`` has a key for openai and two providers, ``other`` a key for nebius."""

    store: Vault
    acme: str
    other: str
    first: str
    """acme's inactive provider of m1 and m2, priority 0, with the credential ``sk-first``."""
    second: str
    """acme's active provider of everything, priority 5, without a credential."""


class VaultContract:
    """Override `vault`."""

    @pytest.fixture
    async def vault(self, tmp_path: Path) -> AsyncIterator[Filled]:
        raise NotImplementedError
        yield  # noqa: PT022  # makes it the generator that overrides are

    async def test_an_organisation_is_given_its_own_credential(self, vault: Filled) -> None:
        found = await vault.store.credential(CredentialRef(vault.acme, "openai"))
        assert found is not None
        assert ("sk-acme", vault.acme) == (found.secret, found.owner)

    async def test_a_credential_does_not_show_itself(self, vault: Filled) -> None:
        found = await vault.store.credential(CredentialRef(vault.acme, "openai"))
        assert "sk-acme" not in f"{found} {found!r}"

    async def test_no_other_credential_is_given_in_its_place(self, vault: Filled) -> None:
        refs = [
            CredentialRef(vault.other, "openai"),
            CredentialRef(vault.acme, "nebius"),
            CredentialRef(vault.acme, ""),
            CredentialRef("", "openai"),
            CredentialRef("nobody", "openai"),
            CredentialRef(vault.other, vault.first),
            CredentialRef(vault.acme, "%"),
        ]
        assert [None] * len(refs) == [await vault.store.credential(ref) for ref in refs]

    async def test_a_provider_s_credential_goes_by_its_id(self, vault: Filled) -> None:
        found = await vault.store.credential(CredentialRef(vault.acme, vault.first))
        assert found is not None
        assert ("sk-first", vault.acme) == (found.secret, found.owner)
        assert await vault.store.credential(CredentialRef(vault.acme, vault.second)) is None

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
    "status": "inactive",
}
SECOND = {"name": "Second", "url": "https://second.test/v1", "priority": 5}


class TestMemory(VaultContract):
    @pytest.fixture
    async def vault(self, tmp_path: Path) -> AsyncIterator[Filled]:
        acme = {
            "credentials": {"openai": "sk-acme"},
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
            acme = await admin.create_organisation("Acme")
            other = await admin.create_organisation("Other")
            await admin.set_credential(acme, "openai", "sk-old")
            await admin.set_credential(acme, "openai", "sk-acme")
            await admin.set_credential(other, "nebius", "sk-other")
            second = await admin.add_provider(NewProvider(acme, **SECOND))
            first = await admin.add_provider(NewProvider(acme, **FIRST), "sk-first")
        yield Filled(store, acme, other, first, second)
        await store.stop()


class TestPostgres(TestSqlite):
    @pytest.fixture
    def url(self, database: Database) -> str:
        return database.url
