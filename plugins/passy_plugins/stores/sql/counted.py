"""What sums are made of: days and hours that are added up already, and single records for the rest.

A question of a month is answered from a few thousand rows instead of some millions. Only a search
is asked of the records, and what is left of the first and the last hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.ext.compiler import compiles

from passy_plugins.stores.sql.schema import usage, usage_days, usage_hours
from passy_plugins.stores.sql.sums import AMOUNTS, DAY, HOUR, MOST_EACH, WITHIN, ranges, saved

if TYPE_CHECKING:
    from passy_plugins.stores.sql.reports import Asked, Bucket, Dimension

COLUMN = {"key": "key_id", "user": "user_id", "tag": "tags"}
"""Columns that are not called like their dimension."""
SOMETIMES = ("key_id", "organisation", "team", "user_id")
"""Columns whose indexes are limited to what is not empty; a question that does not say so is not
given them."""
COUNTED = (
    *("requests", "ok", *AMOUNTS[:8], "unpriced", "estimated"),
    *("duration_ms", "first_ms", "saved"),
)
PACE = ("ok", *WITHIN)
"""What percentiles are told from: of what ended well."""


def column_of(dimension: Dimension) -> str:
    return COLUMN.get(dimension, dimension)


def source(
    asked: Asked, bucket: Bucket, by: Sequence[Dimension], counted: Sequence[str] = COUNTED
) -> FromClause:
    """Rows with ``at``, the dimensions that are asked for, and what is ``counted``."""
    dimensions = [column_of(each) for each in by]
    if asked.search:
        return _records(asked, dimensions, counted, asked.since, asked.until).subquery()
    before, behind, hours, evening, days, late = ranges(asked.since, asked.until)
    if bucket == "hour":
        hours, evening, days = late, (0, 0), (0, 0)
    parts = [
        _records(asked, dimensions, counted, *span)
        for span in (before, behind)
        if span[0] < span[1]
    ]
    parts += [
        _sums(table, asked, dimensions, counted, *span)
        for table, span in ((usage_hours, hours), (usage_hours, evening), (usage_days, days))
        if span[0] < span[1]
    ]
    if late[0] < late[1]:
        parts.append(_late(asked, dimensions, counted, *late))
    if not parts:
        return _records(asked, dimensions, counted, asked.since, asked.until).subquery()
    return union_all(*parts).subquery()


def span_of(bucket: Bucket) -> int | None:
    """Milliseconds of a bucket."""
    return {"hour": HOUR, "day": DAY}.get(bucket)


def conditions(table: Table, asked: Asked) -> list[Any]:
    """Which rows of a table are meant, whenever they were."""
    found: list[Any] = []
    for dimension, value in asked.values.items():
        column = table.c[column_of(dimension)]
        if dimension == "tag":
            found.append(holds(literal(",") + column + literal(","), f",{value},"))
            continue
        if dimension == "status":
            found.append(cast(column, Text) == value)
            continue
        found.append(column == value)
        if value and column.name in SOMETIMES:
            found.append(text(_said[table.name, column.name]))
    if asked.search:
        begins = func.substr(usage.c.id, 1, len(asked.search)) == asked.search
        found.append(or_(begins, holds(usage.c.model, asked.search)))
    return found


def holds(column: ColumnElement[Any], part: str) -> ColumnElement[bool]:
    """Whether ``part`` is in it, to the letter: LIKE knows wildcards, and SQLite's does not tell
    small letters from large ones."""
    found: ColumnElement[bool] = func.replace(column, part, "") != column
    return found


_said = {
    (table.name, column): f"{table.name}.{column} <> ''"
    for table in (usage, usage_hours, usage_days)
    for column in SOMETIMES
}


def _records(
    asked: Asked, dimensions: Sequence[str], counted: Sequence[str], since: int, until: int
) -> Select[Any]:
    span = (usage.c.at >= since, usage.c.at < until)
    return _told(dimensions, counted).where(*span, *conditions(usage, asked))


def _late(
    asked: Asked, dimensions: Sequence[str], counted: Sequence[str], since: int, until: int
) -> Select[Any]:
    """Those that are in no sum yet. They are few, and found by that: by the time, as an expression,
    no index is looked through."""
    at = usage.c.at + 0
    unsummed = text("usage.summed = 0")
    span = (unsummed, at >= since, at < until)
    return _told(dimensions, counted).where(*span, *conditions(usage, asked))


def _told(dimensions: Sequence[str], counted: Sequence[str]) -> Select[Any]:
    counts = [_RECORD[name].label(name) for name in counted]
    return select(usage.c.at, *(usage.c[name] for name in dimensions), *counts)


def _sums(
    table: Table,
    asked: Asked,
    dimensions: Sequence[str],
    counted: Sequence[str],
    since: int,
    until: int,
) -> Select[Any]:
    c = table.c
    good = and_(c.outcome == "ok", c.status < 400)
    answered = or_(good, c.outcome == "client_gone")
    counts: dict[str, ColumnElement[Any]] = {name: c[name] for name in COUNTED if name in c} | {
        "ok": case((good, c.requests), else_=0),
        "unpriced": case((answered, c.unpriced), else_=0),
        **{name: case((good, c[name]), else_=0) for name in WITHIN},
    }
    told = [c[name] for name in dimensions]
    span = (c.start >= since, c.start < until)
    added = [counts[name].label(name) for name in counted]
    return select(c.start.label("at"), *told, *added).where(*span, *conditions(table, asked))


def capped(name: str) -> ColumnElement[Any]:
    """As the sums have it."""
    column, most = usage.c[name], literal(MOST_EACH, BigInteger)
    return case((column > most, most), else_=func.coalesce(column, literal(0, BigInteger)))


class _Saved(ColumnElement[int]):
    """`sums.saved` of a record."""

    inherit_cache = True
    _traverse_internals = []  # noqa: RUF012  # As SQLAlchemy declares it.
    """Each is like the other: else the statements they are in were compiled anew each time."""
    type = BigInteger()


@compiles(_Saved)
def _saved(element: _Saved, compiler: Any, **kw: Any) -> str:
    return saved(compiler.dialect.name)


_OK = and_(usage.c.outcome == "ok", usage.c.status < 400)
_ANSWERED = or_(_OK, usage.c.outcome == "client_gone")
_RECORD: dict[str, ColumnElement[Any]] = {name: capped(name) for name in AMOUNTS} | {
    "requests": literal(1, BigInteger),
    "ok": case((_OK, 1), else_=0),
    "unpriced": case((and_(usage.c.cost_nanos.is_(None), _ANSWERED), 1), else_=0),
    "estimated": usage.c.estimated,
    "saved": _Saved(),
    **{
        name: case((and_(_OK, usage.c.first_ms <= bound), 1), else_=0)
        for name, bound in WITHIN.items()
    },
}
