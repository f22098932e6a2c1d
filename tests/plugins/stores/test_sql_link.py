"""A database that is away at the start: when that ends the start, and what becomes of it later."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import structlog
from harness.postgres import Database, OwnServer

from passy_plugins.stores.sql import Sql, SqlSettings, link
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.site import Site
from passy_proxy.stores import StoreRefuses, StoreUnavailable
from passy_proxy.testing import KEYRING
from passy_proxy.vitals import Vitals

pytestmark = pytest.mark.anyio

DIGEST = b"d" * 32
Open = Callable[..., Sql]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def opened(url: str, keyring: Keyring = KEYRING, patience: str = "0") -> Sql:
            settings = SqlSettings.model_validate({"url": url, "start_timeout": patience})
            site = Site(tmp_path / "data", keyring, structlog.get_logger(), Vitals())
            made = Sql(settings, site)
            stack.push_async_callback(made.stop)
            return made

        yield opened


async def reached(store: Sql) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            assert None is await store.principal(DIGEST)
            return
        except StoreUnavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)


async def test_D4_a_first_start_without_its_server_says_why_and_ends(
    opened: Open, database: Database
) -> None:
    away = urlsplit(database.url)._replace(netloc="u:p@127.0.0.1:1").geturl()
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1") as failed:
        await opened(away).start()
    assert "p@" not in str(failed.value)


async def test_D4_a_first_start_waits_for_a_server_that_is_about_to_come(
    opened: Open, own_postgres: OwnServer
) -> None:
    with own_postgres.database() as database:
        own_postgres.stop()
        store = opened(database.url, patience="120s")
        starting = asyncio.create_task(store.start())
        await asyncio.sleep(2 * link.PAUSE)
        assert not starting.done()
        await asyncio.to_thread(own_postgres.start)
        await asyncio.wait_for(starting, 120)
        assert None is await store.principal(DIGEST)
        await store.stop()


@pytest.mark.parametrize(
    ("part", "wrong"), [("path", "/nothing_of_that_name"), ("netloc", "postgres:wrong@{at}")]
)
async def test_D4_what_waiting_does_not_mend_is_said_at_once(
    part: str, wrong: str, opened: Open, database: Database
) -> None:
    parts = urlsplit(database.url)
    at = parts.netloc.rpartition("@")[2]
    url = parts._replace(**{part: wrong.format(at=at)}).geturl()
    for _ in range(2):
        with pytest.raises(StoreRefuses):
            await asyncio.wait_for(opened(url, patience="1h").start(), 60)


async def test_D4_where_it_was_reached_before_it_may_be_away(
    opened: Open, own_postgres: OwnServer
) -> None:
    with own_postgres.database() as database:
        first = opened(database.url)
        await first.start()
        assert "ok" == first.state
        await first.stop()
        own_postgres.stop()
        store = opened(database.url)
        await asyncio.wait_for(store.start(), 90)
        assert "away" == store.state
        for _ in range(8):  # On a machine that makes pauses.
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.principal(DIGEST)
            if (waited := time.monotonic() - began) < 1.5:
                break
        assert waited < 1.5  # Nobody waits for what is known to be away.
        own_postgres.start()
        await reached(store)
        assert "ok" == store.state
        await store.stop()


async def test_D4_a_database_that_comes_back_is_migrated_first(
    opened: Open, tmp_path: Path
) -> None:
    file = tmp_path / "books.db"
    url = f"sqlite:///{file}"
    first = opened(url)
    await first.start()
    await first.stop()
    for each in tmp_path.glob("books.db*"):
        each.rename(each.with_name("away-" + each.name))
    file.mkdir()
    store = opened(url)
    await store.start()
    assert "away" == store.state
    with pytest.raises(StoreUnavailable):
        await store.principal(DIGEST)
    file.rmdir()  # Nothing is there now: tables are made, then asked.
    await reached(store)


async def test_K_another_installations_books_are_refused_also_when_they_come_late(
    opened: Open, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/books.db"
    first = opened(url)
    await first.start()
    await first.stop()
    others = Keyring(["another key for tests only, of 32 bytes or more"])
    with pytest.raises(KeyringError):
        await opened(url, others).start()
    os.rename(tmp_path / "books.db", tmp_path / "away.db")
    (tmp_path / "books.db").mkdir()
    store = opened(url, others)
    await store.start()
    (tmp_path / "books.db").rmdir()
    os.rename(tmp_path / "away.db", tmp_path / "books.db")
    end = time.monotonic() + 90
    while "another secret key" not in store._link.state:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    with pytest.raises(StoreUnavailable, match="another secret key"):
        await store.principal(DIGEST)
