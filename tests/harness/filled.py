"""Books with millions of records, written by the database itself and added up as the shipper does.

What is counted here are rows and days; what they say is drawn from the number of each, so that two
databases hold the same.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from harness.postgres import Database
from passy_plugins.stores.sql import shipment, sums
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
Whose = Sequence[tuple[str, str, str, str]]
"""``key_id``, ``team``, ``user_id`` and ``tags`` of each key."""


def source(organisation: str, whose: Whose, first: int, last: int, begin: int, each: int) -> str:
    """Records ``first`` to ``last``, which begin at ``begin`` and come ``each`` microseconds."""
    keys = ", ".join(f"({n}, '{k}', '{t}', '{u}', '{g}')" for n, (k, t, u, g) in enumerate(whose))
    what = ", ".join(f"({n}, '{m}', '{u}', '{x}', '{p}')" for n, (m, u, x, p) in enumerate(WHAT))
    # Multiplied by a large prime, the low digits of neighbours have nothing to do with each other.
    draw = "(n * 48271 % 2147483647)"
    return f"""
WITH RECURSIVE who(k, key_id, team, user_id, tags) AS (VALUES {keys}),
what(w, model, upstream, upstream_model, price) AS (VALUES {what}),
numbers(n) AS (SELECT CAST({first} AS BIGINT) UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}),
drawn AS (SELECT n, {draw} AS d, {draw} / 1009 AS e, {draw} / 7919 AS f FROM numbers)
SELECT 'req_' || (1000000000 + n), {begin} + n * {each} / 1000, key_id, '{organisation}', team,
  user_id, tags, CASE WHEN d % 20 = 7 THEN 'POST /v1/embeddings'
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


def fill(
    database: Database | Path, organisation: str, whose: Whose, count: int, days: int = 30
) -> None:
    """``count`` records of the last ``days``, until now."""
    now = int(time.time() * 1000)
    begin = (now // DAY - days + 1) * DAY
    each = (now - begin) * 1000 // count
    if isinstance(database, Database):
        for day in range(begin // DAY, now // DAY + 1):
            span = f"FROM ({day * DAY}) TO ({(day + 1) * DAY})"
            table = f"{name_of(day)} PARTITION OF usage FOR VALUES {span}"
            _run(database, f"CREATE TABLE IF NOT EXISTS {table}")
    pieces = [*range(0, count, max(count // days // 4, 1)), count]
    for first, end in pairwise(pieces):
        rows = source(organisation, whose, first, end - 1, begin, each)
        if isinstance(database, Database):
            _postgres(database, rows)
        else:
            _sqlite(database, rows)
    tables = ["usage_days", "usage_hours"]
    if isinstance(database, Database):
        tables += [name_of(day) for day in range(begin // DAY, now // DAY + 1)]
    for table in tables:
        _run(database, f"ANALYZE {table}")


def _postgres(database: Database, rows: str) -> None:
    inserted = f"INSERT INTO usage ({COLUMNS}, summed) SELECT *, 1 FROM ({rows}) AS r RETURNING *"
    new = f"new AS ({inserted})"
    _run(database, f"{shipment.summed(new, 'new')} SELECT count(*) FROM new")


def _sqlite(path: Path, rows: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as books:
        books.execute("BEGIN IMMEDIATE")
        ((last,),) = books.execute("SELECT coalesce(max(rowid), 0) FROM usage")
        books.execute(f"INSERT INTO usage ({COLUMNS}, summed) SELECT *, 1 FROM ({rows})")
        sums.enter(books, "usage WHERE rowid > ?", (last,))
        books.execute("COMMIT")


def _run(database: Database | Path, statement: str) -> None:
    if isinstance(database, Database):
        database.run(f"SET statement_timeout = 0; {statement}")
        return
    with closing(sqlite3.connect(database, timeout=60)) as books, books:
        books.execute(statement)
