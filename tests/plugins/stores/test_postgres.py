"""The SQL store on PostgreSQL: its URL, its start, and what may happen to its server."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from harness.bouncer import bouncer
from harness.postgres import PASSWORD, Database, OwnServer
from pydantic import ValidationError

from passy_plugins.stores.sql import Sql, SqlSettings, migrate, postgres, statements
from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.driver import driver_for, place_of
from passy_plugins.stores.sql.engine import AT_ONCE, engine_for
from passy_plugins.stores.sql.postgres import Postgres
from passy_plugins.stores.sql.schema import metadata
from passy_proxy import keys
from passy_proxy.config.settings import Secret
from passy_proxy.evidence import Proof
from passy_proxy.issue import NewCredential, NewKey
from passy_proxy.json import dumps
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable

pytestmark = pytest.mark.anyio

RECORD = UsageRecord(
    *("req_0", 1_795_430_994.913, "key_1", "org_1", "team_1", "user_1", "a,b", "POST /v1/x"),
    *("m", "u", "m", "ok", 200, False, 1, 2, 0, 0, 0, 0, 0, False, 7, "p", 1, 2, ()),
)
RING = Keyring(["the secret key of these tests: 0123456789"])


OURS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
"""All connections to a database, without the one that asks, and without the server's own work."""


def store_at(url: str, folder: Path) -> Sql:
    return Sql(SqlSettings(url=Secret(url), start_timeout=0), Site(folder, RING))


@pytest.fixture
async def driver(database: Database) -> AsyncIterator[Postgres]:
    driver = driver_for(database.url, "test", most=2)
    assert isinstance(driver, Postgres)
    yield driver
    await driver.close()


# The URL


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://ada:hidden@db.test:5433/books", "postgresql://db.test:5433/books"),
        ("postgres://ada:hidden@db.test/books?sslmode=require", "postgresql://db.test/books"),
        ("postgres://ada:hid%40en@/books?host=/run/pg", "postgresql:///run/pg/books"),
        (
            "postgresql://ada:hidden@[::1]:5432/books?channel_binding=require&connect_timeout=5",
            "postgresql://[::1]:5432/books",
        ),
    ],
)
def test_a_database_is_called_by_its_place_without_its_password(url: str, place: str) -> None:
    assert place == place_of(url)
    settings = SqlSettings(url=Secret(url))
    assert "hid" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:hid/den@db.test/books",
        "postgresql://ada:hidden@db.test:port/books",
        "postgresql://ada:hidden@db.test/books#hidden",
        "postgresql://ada:hidden@db.test/books?sslmode",
        "postgresql://ada:hidden@[::1/books",
        "postgresql://ada:x@db.test/books?hidden=1&hidden2=2",
    ],
)
def test_a_url_with_a_mistake_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError, match="postgresql://user:password@host") as refused:
        SqlSettings(url=Secret(url))
    if "x@" not in url:
        assert "hid" not in str(refused.value)


# The start


def is_part(name: str | None) -> bool:
    """Whether it is a day's part of usage, or of an index on it; or what only PostgreSQL needs."""
    return re.match(r"usage_\d|arrivals$|uq_usage_", name or "") is not None


async def shape(database: Database) -> list[Any]:
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name !~ '^usage_[0-9]' ORDER BY 1, 2"
    )
    indexes = (
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
        " AND tablename !~ '^usage_[0-9]' ORDER BY 1"
    )
    rules = (
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace"
        " AND conrelid::regclass::text !~ '^usage_[0-9]' ORDER BY 1, 2"
    )
    return [database.rows(each) for each in (columns, indexes, rules)]


async def test_both_roads_lead_to_the_same_tables(database: Database, driver: Postgres) -> None:
    await driver.make()
    with database.server.database() as other:
        await migrate.upgrade(other.url)
        assert await shape(database) == await shape(other)
        assert database.rows(statements.REVISION) == other.rows(statements.REVISION)


async def test_the_tables_are_those_of_the_schema(database: Database, driver: Postgres) -> None:
    await driver.make()

    def differences(connection: Any) -> list[Any]:
        known = {"compare_type": True, "include_name": lambda name, *_: not is_part(name)}
        context = MigrationContext.configure(connection, opts=known)
        return list(compare_metadata(context, metadata))

    engine = engine_for(database.url)
    async with engine.connect() as connection:
        assert [] == await connection.run_sync(differences)
    await engine.dispose()


async def test_many_that_start_at_once_on_a_new_database_all_start(
    database: Database, tmp_path: Path
) -> None:
    stores = [store_at(database.url, tmp_path / str(number)) for number in range(6)]
    await asyncio.gather(*(store.start() for store in stores))
    assert 6 * [None] == [await store.principal(b"") for store in stores]
    await asyncio.gather(*(store.stop() for store in stores))


async def test_an_older_database_is_migrated_by_one_of_many(
    database: Database, tmp_path: Path
) -> None:
    database.run("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    stores = [store_at(database.url, tmp_path / str(number)) for number in range(2)]
    await asyncio.gather(*(store.start() for store in stores))
    assert [(statements.REVISIONS[-1],)] == database.rows(statements.REVISION)
    assert await stores[0].first_key()
    await asyncio.gather(*(store.stop() for store in stores))


async def test_a_database_of_something_else_is_refused(database: Database, tmp_path: Path) -> None:
    database.run("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreUnavailable, match="not a database of passy"):
        await store_at(database.url, tmp_path).start()
    assert [("recipes",)] == database.rows(
        "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'"
    )


@pytest.mark.parametrize("wrong", ["password", "name", "port"])
async def test_a_database_that_cannot_be_had_is_told_of_without_its_password(
    database: Database, tmp_path: Path, wrong: str
) -> None:
    url = {
        "password": database.url.replace(PASSWORD, "not-" + PASSWORD),
        "name": database.url.replace(database.name, "nowhere"),
        "port": f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/passy",
    }[wrong]
    with pytest.raises(StoreUnavailable, match=r"postgresql://127\.0\.0\.1") as refused:
        await store_at(url, tmp_path).start()
    assert PASSWORD not in str(refused.value)
    with pytest.raises(StoreUnavailable) as refused:
        async with Admin.opened(url, RING):
            pass
    assert PASSWORD not in str(refused.value)


# What may happen to a server


async def test_D4_it_goes_on_with_a_server_that_came_back(
    database: Database, own_postgres: OwnServer, tmp_path: Path
) -> None:
    store = store_at(database.url, tmp_path)
    await store.start()
    key = await store.first_key()
    assert key is not None
    digest = keys.digest(RING.pepper, key.encode())
    own_postgres.stop()
    with pytest.raises(StoreUnavailable):
        await store.principal(digest)
    own_postgres.start()
    began = time.monotonic()
    while True:
        try:
            assert await store.principal(digest) is not None
            break
        except StoreUnavailable:
            assert time.monotonic() < began + 90
            await asyncio.sleep(0.05)
    await store.stop()


def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without an answer is given up as soon as it is for users."""
    for each in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(postgres, each, 3.0)


async def test_D1_a_paused_server_costs_its_time_once_and_then_nobody_waits(
    database: Database, own_postgres: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Postgres(database.url, most=4)
    await driver.open()
    own_postgres.pause()
    hasty(monkeypatch)
    began = time.monotonic()
    said = await asyncio.gather(
        *(driver.fetch("SELECT 1") for _ in range(4)), return_exceptions=True
    )
    waited = time.monotonic() - began
    assert all(isinstance(each, StoreUnavailable) for each in said), said
    assert waited < 20
    for _ in range(8):  # On a machine that makes pauses, there may be one between the two.
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await driver.fetch("SELECT 1")
        if (waited := time.monotonic() - began) < 1.5:  # A time limit is twice that.
            break
    assert waited < 1.5
    own_postgres.resume()
    assert [(1,)] == await answered(driver)
    await driver.close()
    # Nothing of those who gave up is left.
    end = time.monotonic() + 60
    while any("asyncpg" in repr(task.get_coro()) for task in asyncio.all_tasks()):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_no_more_connections_than_it_may_have(database: Database) -> None:
    driver = Postgres(database.url, most=3)
    await asyncio.gather(*(driver.fetch("SELECT pg_sleep(0.05)") for _ in range(12)))
    assert [(3,)] == database.rows(f"SELECT count(*) FROM ({OURS}) AS ours")
    await driver.close()


async def test_what_nobody_can_write_is_a_value_s_fault_and_not_the_database_s(
    driver: Postgres,
) -> None:
    await driver.make()
    with pytest.raises(ValueError, match="null value"):
        await driver.fetch("INSERT INTO marks (name) VALUES (?)", "x")
    with pytest.raises(ValueError, match="invalid"):
        await driver.fetch("INSERT INTO marks (name, value) VALUES (?, ?)", "x", "a\0b")
    with pytest.raises(ValueError, match="invalid"):
        await driver.fetch("SELECT * FROM keys WHERE created = ?", "text")
    with pytest.raises(StoreUnavailable, match="nowhere"):
        await driver.fetch("SELECT * FROM nowhere")
    assert [] == await driver.fetch(statements.MARK, "x")


async def test_nothing_a_client_wrote_is_lost_to_the_books(
    database: Database, tmp_path: Path
) -> None:
    store = store_at(database.url, tmp_path)
    await store.start()
    hostile = ["nul \0 in it", "\\u0000", "\ud800 half", "x" * 20_000, "\u2028 🙂 '\"; --"]
    for number, model in enumerate(hostile):
        store.record(RECORD._replace(id=f"req_{number}", model=model).row())
    await store.stop()
    assert 0 == store._shipper.refused
    kept = [model for (model,) in database.rows("SELECT model FROM usage ORDER BY id")]
    assert ["nul \ufffd in it", "\\u0000", "? half"] == kept[:3]
    assert "\u2028 🙂 '\"; --" == kept[4]


async def test_truth_may_be_written_as_such_or_as_a_number(
    database: Database, tmp_path: Path
) -> None:
    store = store_at(database.url, tmp_path)
    await store.start()
    for number, truth in enumerate((0, 1, False, True)):
        row = RECORD._replace(id=f"req_{number}").row()
        place = RECORD._fields.index("streamed")
        store.record((*row[:place], truth, *row[place + 1 :]))
    await store.stop()
    assert [(0,), (1,), (0,), (1,)] == database.rows("SELECT streamed FROM usage ORDER BY id")


async def test_admin_and_store_see_the_same(database: Database, tmp_path: Path) -> None:
    store = store_at(database.url, tmp_path)
    await store.start()
    async with Admin.opened(database.url, RING) as admin:
        made, key = await admin.create_key(NewKey(name="Ada"))
        assert [made] == await admin.list_keys()
        digest = keys.digest(RING.pepper, key.encode())
        found = await store.principal(digest)
        assert found is not None
        assert made.id == found.key_id
        await admin.disable_key(made.id)
        with pytest.raises(ValueError, match="no organisation org_nowhere"):
            await admin.create_key(NewKey(organisation="org_nowhere"))
    disabled = await store.principal(digest)
    assert disabled is not None
    assert disabled.disabled
    await store.stop()


# Behind PgBouncer


async def test_all_of_it_works_behind_pgbouncer_in_transaction_mode(
    database: Database, tmp_path: Path
) -> None:
    """Whose connections take turns, so that anything that is kept in one is missing in the next."""
    with bouncer(database, pool=3) as url:
        stores = [store_at(url, tmp_path / str(number)) for number in range(3)]
        await asyncio.gather(*(store.start() for store in stores))
        async with Admin.opened(url, RING) as admin:
            acme = await admin.create_organisation("Acme")
            await admin.add_credential(NewCredential(acme, "openai"), "sk-acme")
            made = [await admin.create_key(NewKey(organisation=acme)) for _ in range(5)]
            digests = [keys.digest(RING.pepper, key.encode()) for _, key in made]

            async def ask(store: Sql, turn: int) -> None:
                found = await store.principal(digests[turn % 5])
                assert found is not None
                assert made[turn % 5][0].id == found.key_id
                [own] = await store.credentials(acme)
                assert "sk-acme" == own.secret
                assert acme == (await admin.list_organisations())[0].id

            for number, store in enumerate(stores):
                for turn in range(400):
                    proof = Proof("a", "b", ()) if turn % 3 == 0 else None
                    id = f"req_{number}_{turn}"
                    store.record(RECORD._replace(id=id, organisation=acme).row(), proof)
            await asyncio.gather(*(ask(store, turn) for store in stores for turn in range(20)))
            await asyncio.gather(*(store.stop() for store in stores))
            verdict = await admin.verify()
        assert [] == verdict.findings
        assert (1_200, 402) == (verdict.entries, verdict.proved)
        assert [(1_200,)] == database.rows("SELECT count(*) FROM usage")
        assert database.rows(f"SELECT count(*) FROM ({OURS}) AS ours") <= [(3,)]


class Wire:
    """A way to the server that does what its ``fault`` says to each answer: ``hole`` keeps it,
    ``reset`` ends within it, ``garbage`` is no answer, a number of seconds delays it."""

    def __init__(self, port: int) -> None:
        self.fault: str | float | None = None
        self._port = port
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        answers, there = await asyncio.open_connection("127.0.0.1", self._port)

        async def back() -> None:
            while data := await answers.read(1 << 16):
                if self.fault == "hole":
                    continue
                if self.fault == "reset":
                    writer.write(data[:1])
                    break
                if isinstance(self.fault, float):
                    await asyncio.sleep(self.fault)
                writer.write(b"\0garbage" + data if self.fault == "garbage" else data)
            writer.transport.abort()

        answering = asyncio.get_running_loop().create_task(back())
        try:
            while data := await reader.read(1 << 16):
                there.write(data)
        except OSError:
            pass
        finally:
            answering.cancel()
            await asyncio.wait([answering])
            for each in (writer, there):
                each.transport.abort()


@pytest.mark.parametrize("fault", ["hole", "reset", "garbage", 0.5])
async def test_D1_a_fault_on_the_way_to_the_server_loses_and_doubles_nothing(
    database: Database,
    own_postgres: OwnServer,
    fault: str | float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Wire(own_postgres.port) as wire:
        url = database.url.replace(f":{own_postgres.port}/", f":{wire.port}/")
        driver = Postgres(url, most=2)
        await driver.make()
        batch = [
            dumps(RECORD._replace(id=f"req_{number}", at=time.time()).row()) for number in range(50)
        ]
        await driver.record(batch[:10], [], RING)
        wire.fault = fault
        if not isinstance(fault, float):
            hasty(monkeypatch)
        end = time.monotonic() + 2
        failed, asked = [], 0
        while time.monotonic() < end or not asked:
            asked += 1
            began = time.monotonic()
            try:
                assert [(1,)] == await driver.fetch("SELECT 1")
            except StoreUnavailable as error:
                failed.append(str(error))
            assert time.monotonic() - began < 40
            await asyncio.sleep(0.05)
        assert bool(failed) == (not isinstance(fault, float))
        assert PASSWORD not in " ".join(failed)
        wire.fault = "reset" if fault == "garbage" else fault
        # Whether it was entered is not known: it comes again until that is.
        writing = asyncio.create_task(until_written(driver, batch))
        await asyncio.sleep(1.0)
        wire.fault = None
        began = time.monotonic()
        assert [(1,)] == await answered(driver)
        assert time.monotonic() - began < 40
        await writing
        await driver.close()
    assert [(50, 50)] == database.rows("SELECT count(*), count(DISTINCT id) FROM usage")
    assert [(50,)] == database.rows("SELECT sum(requests)::int FROM usage_days")


async def until_written(driver: Postgres, batch: list[bytes]) -> None:
    for _ in range(300):
        try:
            await driver.record(batch, [], RING)
            return
        except StoreUnavailable:
            await asyncio.sleep(0.2)
    raise AssertionError("it is never written")


async def answered(driver: Postgres) -> list[Any]:
    for _ in range(600):
        with suppress(StoreUnavailable):
            return await driver.fetch("SELECT 1")
        await asyncio.sleep(0.1)
    raise AssertionError("it never answers")


async def test_the_writing_side_keeps_its_connections_and_replaces_those_that_were_cut(
    database: Database, tmp_path: Path
) -> None:
    async with Admin.opened(database.url, RING) as admin:
        await asyncio.gather(*(admin.list_organisations() for _ in range(20)))
        first = set(database.rows(OURS))
        await asyncio.gather(*(admin.list_organisations() for _ in range(20)))
        assert first == set(database.rows(OURS))
        assert 1 <= len(first) <= AT_ONCE
        database.rows(f"SELECT pg_terminate_backend(pid) FROM ({OURS}) AS mine")
        until = time.monotonic() + 60
        while True:  # Who asks in the very moment may be told that it is away.
            try:
                await asyncio.gather(*(admin.list_organisations() for _ in range(20)))
                break
            except StoreUnavailable:
                assert time.monotonic() < until
        while not first.isdisjoint(database.rows(OURS)):  # Who has said goodbye is there for a bit.
            assert time.monotonic() < until
