"""Books with millions of records, written by the database itself and added up as the shipper does.

What is counted here are rows and days; what they say is drawn from the number of each, so that two
databases hold the same.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from harness.postgres import Database
from passy_plugins.stores.sql import sums
from passy_plugins.stores.sql.partitions import name_of
from passy_plugins.stores.sql.sums import DAY
from passy_proxy.records import UsageRecord

COLUMNS = ", ".join(UsageRecord._fields)
WHAT = (
    ("gpt-4o", "openai", "gpt-4o-2024-11-20", "2.5 in, 10 out per 1M (a list)"),
    ("gpt-4o-mini", "openai", "gpt-4o-mini", "0.15 in, 0.6 out per 1M (a list)"),
    ("claude-sonnet", "anthropic", "claude-sonnet-4", "3 in, 15 out per 1M (a list)"),
    ("claude-sonnet", "bedrock", "claude-sonnet-4", "3 in, 15 out per 1M (a list)"),
    ("llama-70b", "nebius", "llama-3.3-70b", "0.13 in, 0.4 out per 1M (a list)"),
    ("house-model", "deepinfra", "house-model", ""),
)
LONG = 1800.0
"""Seconds."""
Whose = Sequence[tuple[str, str, str, str]]
"""``key_id``, ``team``, ``user_id`` and ``tags`` of each key."""


def source(organisation: str, whose: Whose, numbers: str, rhythm: Rhythm) -> str:
    """Records of the ``numbers``, which are a SELECT."""
    keys = ", ".join(f"({n}, '{k}', '{t}', '{u}', '{g}')" for n, (k, t, u, g) in enumerate(whose))
    what = ", ".join(f"({n}, '{m}', '{u}', '{x}', '{p}')" for n, (m, u, x, p) in enumerate(WHAT))
    # Multiplied by a large prime, the low digits of neighbours have nothing to do with each other.
    draw = "(n * 48271 % 2147483647)"
    return f"""
WITH RECURSIVE who(k, key_id, team, user_id, tags) AS (VALUES {keys}),
what(w, model, upstream, upstream_model, price) AS (VALUES {what}),
numbers(n) AS ({numbers}),
drawn AS (SELECT n, {draw} AS d, {draw} / 1009 AS e, {draw} / 7919 AS f FROM numbers)
SELECT 'req_' || (1000000000 + n), {rhythm.begin} + n * {rhythm.each} / 1000, key_id,
  '{organisation}', team, user_id, tags, CASE WHEN d % 20 = 7 THEN 'POST /v1/embeddings'
    ELSE 'POST /v1/chat/completions' END,
  model, upstream, upstream_model,
  CASE WHEN e % 100 < 95 THEN 'ok' WHEN e % 100 = 95 THEN 'client_gone'
    WHEN e % 100 < 98 THEN 'upstream_status' ELSE 'rate_limited' END,
  CASE WHEN e % 100 < 96 THEN 200 WHEN e % 100 < 98 THEN 503 ELSE 429 END,
  d % 2, d % 3000, e % 800, d % 7 * 40, 0, e % 5, 0, 0, 0,
  CASE WHEN price = '' THEN NULL ELSE d % 9000000 END, price, 20 + d % 1900, 400 + e % 9000,
  CASE WHEN f % 30 = 0 THEN '[["backup","m",503,"status: status 503",0,40,false],' ||
      '["' || upstream || '","m",200,"",41,300,false]]'
    ELSE '[["' || upstream || '","m",200,"",0,300,false]]' END
FROM drawn JOIN who ON k = d % {len(whose)}
  JOIN what ON w = (d % {len(whose)} + CASE WHEN f % 3 = 0 THEN f % {len(WHAT)} ELSE 0 END)
    % {len(WHAT)}
"""


class Rhythm(NamedTuple):
    """One record comes every ``each`` microseconds from ``begin`` (Unix milliseconds) on."""

    begin: int
    each: int

    @classmethod
    def of(cls, count: int, days: int = 30) -> Rhythm:
        """So many in the last days, until now."""
        now = int(time.time() * 1000)
        begin = (now // DAY - days + 1) * DAY
        return cls(begin, (now - begin) * 1000 // count)

    def before(self, moment: int) -> int:
        """How many come before."""
        return -(-(moment - self.begin) * 1000 // self.each)


def fill(
    database: Database | Path, organisation: str, whose: Whose, rhythm: Rhythm, first: int = 0
) -> Iterator[int]:
    """All records until now, from the ``first`` on; tells after each day how many there are."""
    now = int(time.time() * 1000)
    while (start := rhythm.begin + first * rhythm.each // 1000) < now:
        day = start // DAY
        end = rhythm.before(min((day + 1) * DAY, now))
        if end <= first:
            break
        if isinstance(database, Database):
            numbers = f"SELECT generate_series({first}::bigint, {end - 1})"
            _postgres(database, day, source(organisation, whose, numbers, rhythm))
        else:
            numbers = f"SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {end - 1}"
            _sqlite(database, source(organisation, whose, numbers, rhythm))
        yield (first := end)
    if isinstance(database, Database):
        database.run("VACUUM (ANALYZE) usage_days, usage_hours, usage", LONG)
        return
    with closing(sqlite3.connect(database, timeout=60)) as books, books:
        books.execute("ANALYZE usage_days")
        books.execute("ANALYZE usage_hours")


def _postgres(database: Database, day: int, rows: str) -> None:
    """All its records at once, in a table that gets its indexes when it is part of the books, and
    their sums as the shipper adds them."""
    name = name_of(day)
    span = f"FROM ({day * DAY}) TO ({(day + 1) * DAY})"
    hours = sums.add("usage_hours", "SELECT * FROM added", "postgresql")
    days = sums.add("usage_days", sums.by_day("added"), "postgresql")
    database.run(
        f"""
SET statement_timeout = 0;
BEGIN;
CREATE TABLE filled (LIKE usage INCLUDING DEFAULTS);
INSERT INTO filled ({COLUMNS}, summed) SELECT *, 1 FROM ({rows}) AS r;
WITH added AS ({sums.grouped("filled", "postgresql")}), hours AS ({hours}), days AS ({days})
SELECT 1;
DO $$ BEGIN
  IF to_regclass('{name}') IS NULL THEN
    ALTER TABLE filled RENAME TO {name};
    ALTER TABLE usage ATTACH PARTITION {name} FOR VALUES {span};
  ELSE
    INSERT INTO usage SELECT * FROM filled;
    DROP TABLE filled;
  END IF;
END $$;
COMMIT;
""",
        LONG,
    )


def _sqlite(path: Path, rows: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as books:
        books.execute("BEGIN IMMEDIATE")
        ((last,),) = books.execute("SELECT coalesce(max(rowid), 0) FROM usage")
        books.execute(f"INSERT INTO usage ({COLUMNS}, summed) SELECT *, 1 FROM ({rows})")
        sums.enter(books, "usage WHERE rowid > ?", (last,))
        books.execute("COMMIT")
