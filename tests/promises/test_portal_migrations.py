"""W12: the portal's tables are brought forward whole or not at all, on both databases, and what the
version before writes and reads there still works."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness.figures import Note
from sqlalchemy import Column, Connection, MetaData, insert, inspect, select

from passy_plugins.stores.sql.admin import Admin
from passy_portal.migrate import REVISIONS, VERSION_TABLE, migrate
from passy_portal.tables import metadata
from passy_proxy.keyring import Keyring

pytestmark = pytest.mark.anyio

RING = "the secret key of these tests: 0123456789"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/passy.db"
    return str(request.getfixturevalue("database").url)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Admin]:
    async with Admin.opened(url, Keyring([RING])) as admin:
        yield admin


def reflected(connection: Connection) -> MetaData:
    """The portal's tables as they are."""
    names = [name for name in inspect(connection).get_table_names() if name.startswith("portal_")]
    found = MetaData()
    found.reflect(connection, only=names)
    return found


def shape(connection: Connection) -> list[str]:
    """Every column and index, and the revision."""
    looked = inspect(connection)
    tables = reflected(connection)
    told = [
        f"{table} {column.name} {column.type} {column.nullable}"
        for table in tables.tables.values()
        for column in table.c
    ]
    told += [
        f"{name} {index['name']} {index['column_names']} {index['unique']}"
        for name in tables.tables
        for index in looked.get_indexes(name)
    ]
    if VERSION_TABLE in tables.tables:
        told += map(str, connection.execute(select(tables.tables[VERSION_TABLE])).all())
    return sorted(told)


KILLED = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[4])
import alembic.command, aiosqlite, asyncpg, sqlalchemy.ext.asyncio  # once, for all that follow
from alembic import op
from promises.test_portal_migrations import migrate, opened, shape
from passy_portal.migrate import REVISIONS

url, start, stride = sys.argv[1], sys.argv[2], int(sys.argv[3])

def dying(step):
    left = [step]
    def wrapped(function):
        def called(*arguments, **named):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), 9)
            return function(*arguments, **named)
        return called
    for name in ("create_table", "create_index", "add_column", "drop_table", "execute"):
        setattr(op, name, wrapped(getattr(op, name)))

async def to(revision):
    async with opened(url) as admin:
        await migrate(admin, revision)

async def shown(file):
    async with opened(url) as admin, admin.connected() as connection:
        os.write(file, json.dumps(await connection.run_sync(shape)).encode())

def child(work):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)

def look():
    read, write = os.pipe()
    assert child(lambda: asyncio.run(shown(write))) == 0
    os.close(write)
    with os.fdopen(read) as file:
        return json.loads(file.read())

if start:
    assert child(lambda: asyncio.run(to(start))) == 0
before, step, killed = look(), 1, 0
while True:
    def work():
        dying(step)
        asyncio.run(to(REVISIONS[-1]))
    status = child(work)
    if status == 0:
        break
    assert status == 9, status
    assert look() == before, step
    killed, step = killed + 1, step + stride
print(json.dumps([killed, look()]))
"""
"""Dies at each step of a migration in turn, each time in a process of its own, and looks at what is
left. What it ends with is told, and the tables."""


LARGE = pytest.mark.large


@pytest.mark.parametrize(
    ("start", "stride"),
    [
        (REVISIONS[0], 4),
        pytest.param(REVISIONS[0], 1, marks=LARGE),
        pytest.param("", 1, marks=LARGE),
    ],
)
async def test_W12_the_portals_migration_is_killed_anywhere_as_if_it_had_not_begun(
    url: str, start: str, stride: int, figure: Note
) -> None:
    program = [sys.executable, "-W", "ignore", "-c", KILLED]
    ran = await asyncio.to_thread(
        subprocess.run,
        [*program, url, start, str(stride), str(Path(__file__).parents[1])],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert 0 == ran.returncode, ran.stderr
    killed, ended = json.loads(ran.stdout)
    assert killed >= 10 // stride
    assert set(metadata.tables) <= {line.split()[0] for line in ended if "portal_" in line}
    figure("killed at steps", killed)


async def test_W12_every_revision_leads_to_the_tables_that_are_described(url: str) -> None:
    async with opened(url) as admin:
        for revision in REVISIONS:
            await migrate(admin, revision)
        async with admin.connected() as connection:
            found = await connection.run_sync(reflected)
    described = {
        name: sorted((c.name, c.nullable, c.primary_key) for c in table.c)
        for name, table in metadata.tables.items()
    }
    made = {
        name: sorted((c.name, c.nullable, c.primary_key) for c in table.c)
        for name, table in found.tables.items()
        if name != VERSION_TABLE
    }
    assert described == made


async def test_W12_what_the_portal_of_the_version_before_writes_and_reads_still_works(
    url: str,
) -> None:
    """Of each revision: a row of every table as it was then, entered after the next one came."""
    async with opened(url) as admin:
        for number, (revision, following) in enumerate(pairwise(REVISIONS)):
            await migrate(admin, revision)
            async with admin.connected() as connection:
                before = await connection.run_sync(reflected)
            await migrate(admin, following)
            for name, table in before.tables.items():
                if name == VERSION_TABLE:
                    continue
                row = {column.name: value_of(column, number) for column in table.c}
                async with admin.connected() as connection:
                    await connection.execute(insert(table).values(row))
                    rows = (await connection.execute(select(table))).all()
                assert row in [dict(one._mapping) for one in rows], name


def value_of(column: Column[Any], number: int) -> Any:
    if column.type.python_type is bytes:
        return f"{column.name} {number}".encode()
    if column.type.python_type is str:
        return f"{column.name} {number}"
    return column.type.python_type(number + 1)


async def test_W12_of_several_portals_that_migrate_at_once_one_does(url: str) -> None:
    async with opened(url) as one, opened(url) as two, opened(url) as three:
        await migrate(one, REVISIONS[0])
        await asyncio.gather(*(migrate(each) for each in (one, two, three)))
        async with one.connected() as connection:
            found = await connection.run_sync(shape)
    assert str((REVISIONS[-1],)) in found
