"""Usage on PostgreSQL, a table for each day of UTC: what is old is dropped at once, as a table.

They are made some days ahead, by whoever tends the books; and by whoever meets a record of a day
that has none, such as a host that was away for long. None is made by way of the whole table, which
would lock everybody out of it: each is made by itself, and attached.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from passy_plugins.stores.sql.sums import DAY

if TYPE_CHECKING:
    import asyncpg

AHEAD = 7
"""Days."""
LAST = (datetime(9999, 12, 31, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days

PARTING = 7_238_101_003
"""Advisory lock of who makes or drops one."""

DAYS = f"SELECT DISTINCT (r->>1)::bigint / {DAY} FROM jsonb_array_elements($1::jsonb) AS r"
"""Of a batch of records, as JSON."""

_THERE = """
SELECT c.relname::text FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'usage'::regclass
"""
_PREFIX = "usage_"


def name_of(day: int) -> str:
    """The table of a day, which is counted from 1970 on. ValueError for one that has no date."""
    if not 0 <= day <= LAST:
        raise ValueError(f"a record of day {day} after 1970")
    return f"{_PREFIX}{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(day):%Y%m%d}"


def day_of(name: str) -> int:
    moment = datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).days


async def known(connection: asyncpg.Connection) -> set[int]:
    """The days that have a table."""
    return {day_of(name) for (name,) in await connection.fetch(_THERE)}


async def make(connection: asyncpg.Connection, days: Iterable[int]) -> None:
    """Those that are missing; within somebody's transaction."""
    await connection.execute(f"SELECT pg_advisory_xact_lock({PARTING})")
    for day in sorted(set(days) - await known(connection)):
        name, start, end = name_of(day), day * DAY, (day + 1) * DAY
        await connection.execute(
            f"CREATE TABLE {name} (LIKE usage INCLUDING DEFAULTS);"
            f"ALTER TABLE usage ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})"
        )
