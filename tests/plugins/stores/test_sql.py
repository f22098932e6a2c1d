"""The SQL store: its schema, its start, its secrets, and several processes on one file."""

from __future__ import annotations

import asyncio
import io
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import ValidationError
from sqlalchemy import create_engine

from passy_plugins.stores.sql import Sql, SqlSettings, migrate, statements
from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.schema import metadata
from passy_proxy import keys
from passy_proxy.config.settings import Secret
from passy_proxy.issue import NewCredential, NewKey, NewProvider
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.log import configure
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable

pytestmark = pytest.mark.anyio

OLD = "the old secret key of these tests: 0123456789"
NEW = "a newer secret key of these tests: 9876543210"
RING = Keyring([OLD])


def store_at(path: Path, ring: Keyring = RING, **settings: object) -> Sql:
    given = {"url": Secret(url_of(path)), **settings}
    return Sql(SqlSettings.model_validate(given), Site(path.parent, ring))


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def shape(path: Path) -> list[tuple[str, str]]:
    """Every table and index as SQLite remembers how it was made."""
    with closing(sqlite3.connect(path)) as connection, connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    return [(name, " ".join((sql or "").split())) for name, sql in rows]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "passy.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Sql]:
    store = store_at(path)
    await store.start()
    yield store
    await store.stop()


# The schema


@pytest.mark.parametrize(("dialect", "name"), migrate.FRESH.items())
def test_the_script_for_new_databases_is_what_alembic_makes(dialect: str, name: str) -> None:
    made = Path(migrate.__file__).with_name(name).read_text(encoding="utf-8")
    assert migrate.script(dialect) == made, "python -m passy_plugins.stores.sql.migrate --fresh"


async def test_both_roads_lead_to_the_same_tables(tmp_path: Path) -> None:
    await migrate.upgrade(url_of(tmp_path / "migrated.db"))
    fresh = store_at(tmp_path / "fresh.db")
    await fresh.start()
    await fresh.stop()
    assert shape(tmp_path / "migrated.db") == shape(tmp_path / "fresh.db")


async def test_the_tables_are_those_of_the_schema(store: Sql, path: Path) -> None:
    engine = create_engine(url_of(path))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert [] == compare_metadata(context, metadata)
    engine.dispose()


def test_the_known_revisions_are_alembic_s() -> None:
    scripts = ScriptDirectory.from_config(migrate.settings())
    walked = [script.revision for script in scripts.walk_revisions()]
    assert list(reversed(walked)) == list(statements.REVISIONS)


USAGE = "SELECT * FROM usage WHERE key_id = ? AND key_id <> '' ORDER BY at DESC LIMIT 9"


@pytest.mark.parametrize(
    "statement", [statements.PRINCIPAL, statements.PROVIDERS, statements.CREDENTIALS, USAGE]
)
async def test_no_question_reads_a_whole_table(store: Sql, path: Path, statement: str) -> None:
    values = ["x"] * statement.count("?")
    with closing(sqlite3.connect(path)) as connection, connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
    steps = [step[-1] for step in plan]
    assert [step for step in steps if step.startswith("SEARCH")]
    assert [] == [step for step in steps if step.startswith("SCAN")]


# The start


def test_a_start_imports_neither_sqlalchemy_nor_alembic(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site

async def start():
    site = Site(Path(), Keyring([{OLD!r}]))
    store = Sql(SqlSettings(url=Secret("sqlite:///folder/passy.db")), site)
    await store.start()
    await store.principal(b"")
    await store.stop()

asyncio.run(start())
print(sorted({{"sqlalchemy", "alembic", "cryptography"}} & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ("[]\n", "") == (ran.stdout, ran.stderr)
    assert (tmp_path / "folder/passy.db").is_file()


async def test_many_that_start_at_once_on_a_new_file_all_start(path: Path) -> None:
    stores = [store_at(path) for _ in range(8)]
    await asyncio.gather(*(store.start() for store in stores))
    assert 8 * [None] == [await store.principal(b"") for store in stores]
    await asyncio.gather(*(store.stop() for store in stores))


async def test_an_older_database_is_migrated(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    store = store_at(path)
    await store.start()
    assert await store.first_key()
    await store.stop()


async def test_a_database_of_a_later_version_is_refused(store: Sql, path: Path) -> None:
    await store.stop()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnavailable, match="9999"):
        await store_at(path).start()


@pytest.fixture
def prose(path: Path) -> Path:
    path.write_text("listen: 127.0.0.1:8080\n" * 100)
    return path


async def test_a_file_that_is_no_database_is_refused(prose: Path) -> None:
    with pytest.raises(StoreUnavailable, match="not a database"):
        await store_at(prose).start()


async def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreUnavailable, match="not a database of passy"):
        await store_at(path).start()


@pytest.mark.parametrize(
    "url",
    ["mysql://u:hidden@h/x", "sqlite://", "sqlite:///:memory:", "passy.db", "sqlite://h/x?hidden"],
)
def test_a_url_without_a_driver_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValidationError, match="sqlite:///") as refused:
        SqlSettings(url=Secret(url))
    assert "hidden" not in str(refused.value)


# Secrets


async def test_keys_made_under_another_secret_key_are_refused(store: Sql, path: Path) -> None:
    with pytest.raises(KeyringError, match="PASSY_SECRET_KEYS"):
        await store_at(path, Keyring([NEW])).start()


async def test_a_new_secret_key_in_front_changes_nothing_for_clients(path: Path) -> None:
    first = store_at(path)
    await first.start()
    key = await first.first_key()
    assert key is not None
    await first.stop()
    rotated = Keyring([NEW, OLD])
    second = store_at(path, rotated)
    await second.start()
    assert await second.principal(keys.digest(rotated.pepper, key.encode()))
    await second.stop()


async def test_K6_a_missing_key_refuses_the_start_or_its_credentials_alone(path: Path) -> None:
    rotated = Keyring([NEW, OLD])
    async with Admin.opened(url_of(path), rotated) as admin:
        acme = await admin.create_organisation("Acme")
        await admin.add_credential(NewCredential(acme, "openai"), "sk-acme")
    with pytest.raises(KeyringError, match=f"1 credential is sealed with {rotated.first}"):
        await store_at(path).start()
    async with Admin.opened(url_of(path), RING) as admin:
        await admin.add_credential(NewCredential(acme, "nebius"), "sk-other")
    store = store_at(path, when_key_missing="serve")
    await store.start()
    nebius, openai = await store.credentials(acme)
    assert ("sk-other", "") == (nebius.secret, nebius.trouble)
    assert ("openai", "") == (openai.upstream, openai.secret)
    assert rotated.first in openai.trouble
    await store.stop()


async def test_a_disabled_credential_needs_no_key(path: Path) -> None:
    async with Admin.opened(url_of(path), Keyring([NEW, OLD])) as admin:
        acme = await admin.create_organisation("Acme")
        await admin.add_credential(NewCredential(acme, "openai", status="disabled"), "sk-acme")
    store = store_at(path)
    await store.start()
    assert [] == await store.credentials(acme)
    await store.stop()


async def test_the_file_holds_no_key_no_credential_and_no_pepper(path: Path) -> None:
    async with Admin.opened(url_of(path), RING) as admin:
        _, key = await admin.create_key(NewKey(name="Ada"))
        acme = await admin.create_organisation("Acme")
        await admin.add_credential(NewCredential(acme, "openai"), "sk-canary-of-acme")
    content = b"".join(file.read_bytes() for file in path.parent.glob("passy.db*"))
    assert b"Ada" in content
    for secret in (key.encode(), b"sk-canary-of-acme", RING.pepper, RING.pepper.hex().encode()):
        assert secret not in content


# Keys


async def test_the_first_key_is_made_once_in_an_organisation(store: Sql, path: Path) -> None:
    key = await store.first_key()
    assert key is not None
    assert keys.well_formed(key.encode())
    principal = await store.principal(keys.digest(RING.pepper, key.encode()))
    async with Admin.opened(url_of(path), RING) as admin:
        [organisation] = await admin.list_organisations()
    assert principal is not None
    assert (organisation.id, "Default") == (principal.organisation, organisation.name)
    assert await store.first_key() is None


@pytest.mark.parametrize(
    ("wanted", "description", "email"),
    [
        (NewKey(email="a@b.test"), "Emby-generated API Key", "a@b.test"),
        (NewKey(email="a@b.test", description="Mine"), "Mine", "a@b.test"),
        (NewKey(email="a@b.test", description="Mine", is_trial=True), "Trial Key", "a@b.test"),
        (NewKey(email="a@b.test", description="Mine", is_test=True), "Test Key", None),
    ],
)
async def test_a_key_is_described_as_the_earlier_service_did(
    store: Sql, path: Path, wanted: NewKey, description: str, email: str | None
) -> None:
    async with Admin.opened(url_of(path), RING) as admin:
        made, key = await admin.create_key(wanted)
        assert [made] == await admin.list_keys()
    assert (description, email) == (made.description, made.email)
    assert (wanted.is_test, wanted.is_trial) == (made.is_test, made.is_trial)
    assert made.shown == keys.shown(key)


async def test_what_another_process_changes_is_seen_at_once(store: Sql, path: Path) -> None:
    async with Admin.opened(url_of(path), RING) as admin:
        made, key = await admin.create_key(NewKey())
        digest = keys.digest(RING.pepper, key.encode())
        before = await store.principal(digest)
        await admin.disable_key(made.id)
    after = await store.principal(digest)
    assert before is not None
    assert after is not None
    assert (False, True) == (before.disabled, after.disabled)


async def test_a_key_of_an_unknown_organisation_is_refused(store: Sql, path: Path) -> None:
    async with Admin.opened(url_of(path), RING) as admin:
        with pytest.raises(ValueError, match="no organisation org_nowhere"):
            await admin.create_key(NewKey(organisation="org_nowhere"))
        assert [] == await admin.list_keys()


async def test_a_switched_off_provider_has_another_version(store: Sql, path: Path) -> None:
    async with Admin.opened(url_of(path), RING) as admin:
        acme = await admin.create_organisation("Acme")
        mine = await admin.add_provider(NewProvider(acme, "Mine", "https://mine.test"))
        assert await admin.change_provider(mine, status="disabled")
        assert not await admin.change_provider("prov_nowhere", status="disabled")
        with pytest.raises(ValueError, match="active or disabled"):
            await admin.change_provider(mine, status="inactive")
    (provider,) = await store.providers(acme)
    assert (False, 2) == (provider.active, provider.version)


async def test_a_passing_key_is_a_test_key_that_makes_room_for_the_next(store: Sql) -> None:
    gone = [await store.passing_key("one request", 0) for _ in range(3)]
    key = await store.passing_key("one request", 60)
    found = await store.principal(keys.digest(RING.pepper, key.encode()))
    assert found is not None
    assert ("one request", True, False) == (found.name, found.is_test, found.disabled)
    assert found.expires is not None
    assert 0 < found.expires - time.time() <= 60
    for old in gone:
        assert await store.principal(keys.digest(RING.pepper, old.encode())) is None


async def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store = store_at(tmp_path / "new/passy.db")
    await store.start()
    modes = {each.name: each.stat().st_mode & 0o777 for each in (tmp_path / "new").iterdir()}
    await store.stop()
    database = {"passy.db": 0o600, "passy.db-wal": 0o600, "passy.db-shm": 0o600}
    assert {**database, "journal": 0o700} == modes
    assert 0o700 == (tmp_path / "new").stat().st_mode & 0o777


@pytest.fixture
def shared_file(path: Path) -> Path:
    """An empty file that others may read, in a folder that they may enter."""
    path.touch()
    path.chmod(0o640)
    path.parent.chmod(0o750)
    return path


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_a_file_and_a_folder_that_are_there_keep_their_rights(shared_file: Path) -> None:
    store = store_at(shared_file)
    await store.start()
    await store.stop()
    assert (0o640, 0o750) == (rights(shared_file), rights(shared_file.parent))


async def test_what_the_store_logs_goes_to_the_gateways_log_masked(path: Path) -> None:
    lines = io.StringIO()
    site = Site(path.parent, RING, configure("info", "json", lines))
    store = Sql(SqlSettings(url=Secret(url_of(path))), site)
    store._shipper._log.warning("usage_waits", error="for sk-passy-abcdefghijkl")
    assert '"store":"sql"' in lines.getvalue()
    assert "abcdefghijkl" not in lines.getvalue()
