"""The books added up, by the hour and by the day of UTC: what was spent is asked of these, and not
of single records, of which there are too many.

Whoever enters records adds them to the sums in the same transaction, and a price that becomes known
later too. A gateway of the version before knows of no sums: what it enters says so (``summed`` is
0) and is added a moment later, by `Database.tend`. Until then it is counted by itself, so the sums
and the rest are exact at any time.

The statements are the same for both databases.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from functools import cache
from math import inf
from typing import Any

from passy_plugins.stores.sql.blocking import Connection

HOUR, DAY = 3_600_000, 86_400_000
"""Milliseconds."""
SPANS = {"usage_hours": HOUR, "usage_days": DAY}

DIMENSIONS = (
    "key_id",
    "organisation",
    "team",
    "user_id",
    "model",
    "upstream",
    "tags",
    "route",
    "upstream_model",
    "price",
    "outcome",
    "status",
)
"""What the sums tell apart. ``price`` is the one that was known when a record was entered."""
_TEXTS = [each if each != "status" else "status::text" for each in DIMENSIONS]
_DIGEST = " || ',' || ".join(f"quote_literal({text})" for text in _TEXTS)
APART = {"sqlite": ", ".join(DIMENSIONS), "postgresql": f"md5({_DIGEST})"}
"""Dialect → what tells apart the sums of one time. PostgreSQL's indexes take no entry above 2,704
bytes, and names in all alphabets with sixteen tags are more; what is quoted and separated cannot be
taken for something else."""
OK = "outcome = 'ok' AND status < 400"
"""What ended well."""
AMOUNTS = (
    "input",
    "output",
    "cached",
    "cache_write",
    "reasoning",
    "audio_input",
    "audio_output",
    "cost_nanos",
    "first_ms",
    "duration_ms",
)
BOUNDS = (10, 25, 50, 100, 150, 250, 400, 600, 1_000, 1_500, 2_500, 4_000, 6_000, 10_000, 30_000)
"""Milliseconds to the first byte of an answer: how many came within each of them is counted, so
that percentiles of any sums can be told, as near as the next bound."""
WITHIN = {f"within_{bound}": bound for bound in BOUNDS}
COUNTS = ("requests", "streamed", "estimated", "unpriced", "saved", *WITHIN)
_ATTEMPTS = {
    "sqlite": (
        "json_extract(attempts, '$[0][0]', '$[0][1]')",
        "json_extract(attempts, '$[#-1][0]', '$[#-1][1]')",
    ),
    "postgresql": (
        "(CAST(attempts AS jsonb) #>> '{0,0}', CAST(attempts AS jsonb) #>> '{0,1}')",
        "(CAST(attempts AS jsonb) #>> '{-1,0}', CAST(attempts AS jsonb) #>> '{-1,1}')",
    ),
}
"""Dialect → whom the first attempt asked, and whom the last one."""


def saved(dialect: str) -> str:
    """Whether a record was answered well by another than was asked first. Only of those with
    several attempts the JSON is looked into."""
    first, last = _ATTEMPTS[dialect]
    several = f"{OK} AND attempts LIKE '%],%[%'"
    return f"CASE WHEN {several} THEN CASE WHEN {first} <> {last} THEN 1 ELSE 0 END ELSE 0 END"


def counts(dialect: str) -> dict[str, str]:
    """What each record adds to `COUNTS`."""
    told = {
        "requests": "1",
        "streamed": "streamed",
        "estimated": "estimated",
        "unpriced": "CASE WHEN cost_nanos IS NULL THEN 1 ELSE 0 END",
        "saved": saved(dialect),
    }
    for name, bound in WITHIN.items():
        told[name] = f"CASE WHEN first_ms <= {bound} THEN 1 ELSE 0 END"
    return told


MOST, MOST_EACH = 2**63 - 1, 1 << 49
"""No sum goes beyond what a column holds, and no record adds more than so much: half a million
dollars. Nobody who makes an upstream say enormous numbers can stop the books with that."""

SUBJECTS = {"organisation": "organisation", "team": "team", "user": "user_id", "key": "key_id"}
"""Kind of who spends → the column of its id."""
AT_ONCE = 10_000
"""Records that are added later, in one transaction; by `MOST_EACH` they fit into a sum."""
PRICE_MS = 3_600_000
"""After so long nobody comes with the price of a record any more."""


NAMES = (*DIMENSIONS, *COUNTS, *AMOUNTS)
GIVEN = f"VALUES ({', '.join('?' * (1 + len(NAMES)))})"
"""Of `add`: one row."""


@cache
def grouped(source: str, dialect: str, *, priced: bool = False) -> str:
    """What the records of ``source`` (a table and its WHERE) add to the sums of their hours; or
    what a price that became known later changes there: where no price was known."""
    counted = counts(dialect)
    amounts = {name: _capped(name) for name in AMOUNTS}
    dimensions = dict(zip(DIMENSIONS, DIMENSIONS, strict=True))
    if priced:
        counted = dict.fromkeys(COUNTS, "0") | {"unpriced": "-1"}
        amounts = dict.fromkeys(AMOUNTS, "0") | {"cost_nanos": amounts["cost_nanos"]}
        dimensions["price"] = "''"
    return _summed(f"at - at % {HOUR}", dimensions, counted | amounts, source)


@cache
def by_day(source: str) -> str:
    """The same of days, of what `grouped` gave."""
    dimensions = dict(zip(DIMENSIONS, DIMENSIONS, strict=True))
    return _summed(f"start - start % {DAY}", dimensions, {n: n for n in NAMES[FIRST:]}, source)


def _summed(start: str, told: Mapping[str, str], added: Mapping[str, str], source: str) -> str:
    named = {"start": start, **told}
    dimensions = ", ".join(f"{each} AS {name}" for name, each in named.items())
    sums = ", ".join(f"CAST(sum({each}) AS BIGINT) AS {name}" for name, each in added.items())
    by = ", ".join(map(str, range(1, 2 + FIRST)))
    # In order: two who add to the same sums wait for each other, and not both.
    return f"SELECT {dimensions}, {sums} FROM {source} GROUP BY {by} ORDER BY {by}"


FIRST = len(DIMENSIONS)
"""Where the numbers begin, among the names."""


@cache
def add(table: str, source: str, dialect: str) -> str:
    """Add ``source``, which is as `grouped` or `by_day` gives it, or `GIVEN`, to ``table``."""
    more = [f"{name} = {table}.{name} + excluded.{name}" for name in COUNTS]
    more += [
        f"{name} = CASE WHEN {table}.{name} > {MOST} - excluded.{name} THEN {MOST}"
        f" ELSE {table}.{name} + excluded.{name} END"
        for name in AMOUNTS
    ]
    return (
        f"INSERT INTO {table} (start, {', '.join(NAMES)}) {source}"
        f" ON CONFLICT (start, {APART[dialect]}) DO UPDATE SET {', '.join(more)}"
    )


def enter(
    connection: Connection, source: str, values: Sequence[Any], *, priced: bool = False
) -> None:
    """Add the records of ``source``, within the transaction that enters them: on SQLite, or a price
    that became known on either. They are gone through once: there are many fewer sums than
    records."""
    dialect = "sqlite" if isinstance(connection, sqlite3.Connection) else "postgresql"
    found = connection.execute(grouped(source, "sqlite", priced=priced), values).fetchall()
    for table, span in SPANS.items():
        rows = [(start - start % span, *row) for start, *row in found]
        connection.executemany(add(table, GIVEN, dialect), rows)


def _capped(name: str) -> str:
    known = f"coalesce({name}, 0)" if name == "cost_nanos" else name
    return f"CASE WHEN {name} > {MOST_EACH} THEN {MOST_EACH} ELSE {known} END"


@cache
def spent(kind: str, unit: str) -> str:
    """What one of a ``kind`` has used; for the `values` of a span."""
    subject = SUBJECTS[kind]
    names = ("cost_nanos",) if unit == "usd" else ("input", "output")
    each, summed = (f"sum({' + '.join(n)})" for n in (map(_capped, names), names))
    mine = f"{subject} = ? AND {subject} <> ''"
    # As an expression: else all records of this subject would be looked through for the few that
    # nobody has added yet.
    late = f"summed = 0 AND {subject} || '' = ?"
    parts = (
        f"SELECT {each} AS n FROM usage WHERE {mine} AND at >= ? AND at < ?",
        f"SELECT {each} FROM usage WHERE {mine} AND at >= ? AND at < ?",
        f"SELECT {summed} FROM usage_hours WHERE {mine} AND start >= ? AND start < ?",
        f"SELECT {summed} FROM usage_hours WHERE {mine} AND start >= ? AND start < ?",
        f"SELECT {summed} FROM usage_days WHERE {mine} AND start >= ? AND start < ?",
        f"SELECT {each} FROM usage WHERE {late} AND at >= ? AND at < ?",
    )
    return f"SELECT coalesce(sum(n), 0) FROM ({' UNION ALL '.join(parts)}) AS parts"


def ranges(start: int, end: int) -> Sequence[tuple[int, int]]:
    """A span of time in milliseconds, as `spent` asks for it: records, records, hours, hours, days,
    and records that are in no sum yet. Each of them but the last one is of a time of its own; it is
    that of the sums."""
    first, last = -(-start // HOUR) * HOUR, end // HOUR * HOUR
    if first >= last:
        none = (start, start)
        return (start, end), none, none, none, none, none
    dawn, dusk = -(-first // DAY) * DAY, last // DAY * DAY
    if dawn >= dusk:
        dawn = dusk = last
    return (start, first), (last, end), (first, dawn), (dusk, last), (dawn, dusk), (first, last)


def values(subject: str, start: float, end: float) -> list[Any]:
    """Of `spent`, for Unix seconds."""
    span = milliseconds(start), MOST if end == inf else milliseconds(end)
    return [value for part in ranges(*span) for value in (subject, *part)]


def milliseconds(seconds: float) -> int:
    """As the books round moments."""
    return int(seconds * 1000 + 0.5)
