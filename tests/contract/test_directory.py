"""What every `Directory` promises. A store passes by subclassing `DirectoryContract`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.postgres import Database

from passy_plugins.stores.memory import Memory, MemorySettings
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_proxy import keys
from passy_proxy.config.settings import Secret
from passy_proxy.issue import NewKey
from passy_proxy.keyring import Keyring
from passy_proxy.records import Limits, Principal
from passy_proxy.site import Site
from passy_proxy.stores import Directory
from passy_proxy.units import Rate

pytestmark = pytest.mark.anyio

PEPPER_OF = Keyring(["the secret key of these tests: 0123456789"])
LIMITS = Limits(Rate(60, 60), Rate(100_000, 3_600), 4)
EXPIRES = 1_900_000_000.0


def digest(key: str) -> bytes:
    return keys.digest(PEPPER_OF.pepper, key.encode())


class DirectoryContract:
    """Override `filled`: a store with a key of every kind, and the keys.

    ``whole`` has every limit, models and an end; ``plain`` has nothing; ``disabled`` is.
    """

    @pytest.fixture
    async def filled(self, tmp_path: Path) -> AsyncIterator[tuple[Directory, dict[str, str]]]:
        raise NotImplementedError
        yield  # noqa: PT022  # makes it the generator that overrides are

    async def test_a_key_says_whose_it_is_and_what_it_may(
        self, filled: tuple[Directory, dict[str, str]]
    ) -> None:
        store, known = filled
        found = await store.principal(digest(known["whole"]))
        assert found is not None
        wanted = Principal(
            key_id=found.key_id,
            name="Ada",
            organisation=found.organisation,
            limits=LIMITS,
            models=("gpt-4o", "claude-*"),
            expires=EXPIRES,
        )
        assert wanted == found
        assert found.key_id
        assert found.organisation

    async def test_a_key_without_settings_has_no_limits_of_its_own(
        self, filled: tuple[Directory, dict[str, str]]
    ) -> None:
        store, known = filled
        found = await store.principal(digest(known["plain"]))
        assert found is not None
        assert Principal(key_id=found.key_id) == found

    async def test_a_disabled_key_is_shown_as_disabled(
        self, filled: tuple[Directory, dict[str, str]]
    ) -> None:
        store, known = filled
        found = await store.principal(digest(known["disabled"]))
        assert found is not None
        assert found.disabled

    async def test_each_key_has_an_id_of_its_own_that_stays(
        self, filled: tuple[Directory, dict[str, str]]
    ) -> None:
        store, known = filled
        seen = set()
        for key in known.values():
            first, second = [await store.principal(digest(key)) for _ in range(2)]
            assert first is not None
            assert first == second
            seen.add(first.key_id)
        assert len(known) == len(seen)

    async def test_nobody_is_found_under_anything_but_the_whole_digest(
        self, filled: tuple[Directory, dict[str, str]]
    ) -> None:
        store, known = filled
        right = digest(known["plain"])
        wrong = [
            b"",
            right[:20],
            right[:-1] + bytes([right[-1] ^ 1]),
            right + b"\0",
            right.hex().encode(),
            known["plain"].encode(),
            digest(keys.new_key()),
            b"' OR 1=1 --",
        ]
        assert [None] * len(wrong) == [await store.principal(each) for each in wrong]


class TestMemory(DirectoryContract):
    @pytest.fixture
    async def filled(self, tmp_path: Path) -> AsyncIterator[tuple[Directory, dict[str, str]]]:
        known = {name: keys.new_key() for name in ("whole", "plain", "disabled")}
        settings = MemorySettings.model_validate(
            {
                "keys": [
                    {
                        "key": known["whole"],
                        "name": "Ada",
                        "organisation": "acme",
                        "requests": "60/min",
                        "tokens": "100k/h",
                        "concurrency": 4,
                        "models": ["gpt-4o", "claude-*"],
                        "expires": "2030-03-17T17:46:40",
                    },
                    {"digest": digest(known["plain"]).hex()},
                    {"key": known["disabled"], "disabled": True},
                ]
            }
        )
        store = Memory(settings, Site(tmp_path, PEPPER_OF))
        await store.start()
        yield store, known
        await store.stop()


class TestSqlite(DirectoryContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/passy.db"

    @pytest.fixture
    async def filled(
        self, tmp_path: Path, url: str
    ) -> AsyncIterator[tuple[Directory, dict[str, str]]]:
        site = Site(tmp_path, PEPPER_OF)
        settings = SqlSettings(url=Secret(url))
        store = Sql(settings, site)
        await store.start()
        async with Sql.issuer(settings, site) as issuer:
            wanted = {
                "whole": NewKey(
                    name="Ada",
                    organisation=await issuer.create_organisation("Acme"),
                    limits=LIMITS,
                    models=("gpt-4o", "claude-*"),
                    expires=EXPIRES,
                ),
                "plain": NewKey(),
                "disabled": NewKey(),
            }
            made = {name: await issuer.create_key(new) for name, new in wanted.items()}
            await issuer.disable_key(made["disabled"][0].id)
        yield store, {name: key for name, (_, key) in made.items()}
        await store.stop()


class TestPostgres(TestSqlite):
    @pytest.fixture
    def url(self, database: Database) -> str:
        return database.url
