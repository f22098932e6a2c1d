"""What the books say, for people: sums by time and by whatever else is asked, and single exchanges.

Names of columns come from the tables below and from nowhere else; values are parameters. Each page
is a short transaction of its own that goes on behind the last row of the one before, so that a long
export holds nothing open and one that is read while rows come in skips none and repeats none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from operator import add
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    Text,
    and_,
    cast,
    func,
    or_,
    select,
    tuple_,
)

from passy_plugins.stores.sql import delivery
from passy_plugins.stores.sql.counted import COUNTED, PACE, column_of, conditions, source, span_of
from passy_plugins.stores.sql.pages import MOST, Page, paged, position_of
from passy_plugins.stores.sql.schema import marks, usage
from passy_plugins.stores.sql.spent import Span, Spent, spent_in, told
from passy_plugins.stores.sql.sums import BOUNDS, WITHIN
from passy_proxy.json import loads
from passy_proxy.records import AttemptRecord, UsageRecord
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from passy_proxy.issue import Kind

Bucket = Literal["hour", "day", "total"]
Dimension = Literal[
    "model", "upstream", "upstream_model", "key", "team", "user", "organisation", "tag", "route",
    "outcome", "status", "price",
]  # fmt: skip
Order = Literal["time", "requests", "tokens", "cost"]

Part = tuple[int, str | None]
"""So many, behind a cursor."""

MOST_SETS = 20_000
"""Groups that are looked at to find the sums of single tags."""
TOO_MANY = "there are too many groups; ask for less time, or fewer dimensions"
PATIENCE = 10.0
"""Seconds that one statement may take."""


class TooLong(StoreUnavailable):
    """The question takes the database too long: it should ask for less."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which exchanges are meant: from ``since`` to before ``until``, in milliseconds of Unix time,
    with these values. ``search`` is what an id begins with, or what is in a model's name."""

    since: int
    until: int
    values: Mapping[Dimension, str] = field(default_factory=dict)
    search: str = ""


class Sums(NamedTuple):
    """What some exchanges come to."""

    requests: int = 0
    ok: int = 0
    """Those of them that were answered well."""
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0
    cost_nanos: int = 0
    """Of those with a price."""
    unpriced: int = 0
    """Answered, or left, without a price that is known: the cost is a lower bound."""
    estimated: int = 0
    """Those whose tokens were not told by the provider."""
    duration_ms: int = 0
    """Of all of them together, as is ``first_ms``."""
    first_ms: int = 0
    saved: int = 0
    """Answered well by another than was asked first, which had failed."""

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(*map(sum, zip(self, other, strict=True)))

    @property
    def tokens(self) -> int:
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class Pace:
    """How many ended well, and how many of them had the first byte of their answer within each of
    `sums.BOUNDS`."""

    ok: int = 0
    within: Sequence[int] = (0,) * len(BOUNDS)

    def plus(self, other: Pace) -> Pace:
        """Both together."""
        return Pace(self.ok + other.ok, tuple(map(add, self.within, other.within)))

    def percentile(self, part: float) -> int | None:
        """Milliseconds within which ``part`` of them were answered, read off between two bounds as
        if they were spread evenly there. Beyond the last bound nothing is known: it is that one.
        ``None`` of nothing."""
        wanted = part * self.ok
        before = low = 0
        for bound, count in zip(BOUNDS, self.within, strict=True):
            if count >= wanted and count > before:
                return low + round((bound - low) * max(0.0, wanted - before) / (count - before))
            before, low = count, bound
        return BOUNDS[-1] if self.ok else None


class Group(NamedTuple):
    """The sums of what has one time and one value in each dimension; and how soon answers began
    there, where that is asked."""

    at: int | None
    """The beginning of its hour or day, in milliseconds; ``None`` for all the time asked."""
    by: tuple[str, ...]
    sums: Sums
    pace: Pace | None = None


class Reports:
    """Reads the books through ``connected``. Raises `StoreUnavailable`, `TooLong`, and ValueError
    for a cursor that is none."""

    def __init__(
        self, connected: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    ) -> None:
        self._connected = connected

    async def totals(self, asked: Asked) -> Sums:
        [row] = await self._read(select(*_added(source(asked, "total", ()), COUNTED)))
        return _sums(row)

    async def groups(
        self,
        asked: Asked,
        bucket: Bucket = "day",
        by: Sequence[Dimension] = (),
        order: Order = "time",
        limit: int = MOST,
        cursor: str | None = None,
    ) -> Page:
        """Sums by time and dimensions. ``time`` goes forward; the other orders begin with the
        most."""
        return await self._groups(asked, bucket, by, order, (limit, cursor), COUNTED)

    async def most(
        self, asked: Asked, by: Sequence[Dimension], order: Order = "cost", limit: int = MOST
    ) -> Page:
        """Of all the time, those with the most, and how soon answers began there."""
        return await self._groups(asked, "total", by, order, (limit, None), (*COUNTED, *WITHIN))

    async def _groups(
        self,
        asked: Asked,
        bucket: Bucket,
        by: Sequence[Dimension],
        order: Order,
        part: Part,
        counted: Sequence[str],
    ) -> Page:
        limit, cursor = part
        if "tag" in by:
            return await self._by_tag(asked, bucket, by, order, part, counted)
        statement = _grouped(asked, bucket, by, counted)
        if bucket == "total" and not by:  # One row, also of nothing.
            found = [_group(row, bucket, len(counted)) for row in await self._read(statement)]
            return Page([group for group in found if group.sums.requests], None)
        inner = statement.subquery()
        keys = [inner.c[f"k{n}"] for n in range((bucket != "total") + len(by))]
        measure = _measure(inner, order)
        wanted = select(inner)
        if cursor is not None:
            wanted = wanted.where(_behind(keys, measure, _position(cursor, bucket, by, order)))
        orders = ([] if measure is None else [measure.desc()]) + [key.asc() for key in keys]
        rows = await self._read(wanted.order_by(*orders).limit(limit + 1))
        found = [_group(row, bucket, len(counted)) for row in rows]
        return paged(found, limit, lambda last: _place(last, order))

    async def series(
        self,
        asked: Asked,
        bucket: Bucket,
        by: Sequence[Dimension],
        counted: Sequence[str] = ("requests",),
        only: Sequence[str] | None = None,
    ) -> dict[tuple[int | None, tuple[str, ...]], tuple[int, ...]]:
        """All groups at once, in the order of time and dimensions: their time and values → what is
        ``counted``, which are fields of `Sums` and `WITHIN`. ``only``: values of the first
        dimension, which is not ``tag``. `TooLong` for too many."""
        rows = await self._read(_grouped(asked, bucket, by, counted, only).limit(MOST_SETS + 1))
        if len(rows) > MOST_SETS:
            raise TooLong(TOO_MANY)
        found: dict[tuple[int | None, tuple[str, ...]], tuple[int, ...]] = {}
        for row in rows:
            keys = list(row[: len(row) - len(counted)])
            at = None if bucket == "total" else int(keys.pop(0))
            counts = tuple(map(int, row[len(row) - len(counted) :]))
            for key in _each_tag(tuple(keys), by, asked.values.get("tag")):
                known = found.get((at, key))
                found[at, key] = counts if known is None else tuple(map(add, known, counts))
        return dict(sorted(found.items(), key=lambda each: (each[0][0] or 0, each[0][1])))

    async def pace(
        self, asked: Asked, bucket: Bucket = "total", by: Sequence[Dimension] = ()
    ) -> dict[tuple[int | None, tuple[str, ...]], Pace]:
        """How soon answers began; as `series`."""
        found = await self.series(asked, bucket, by, PACE)
        return {key: Pace(ok, within) for key, (ok, *within) in found.items()}

    async def tried(self, asked: Asked, most: int) -> list[tuple[int, list[AttemptRecord]]]:
        """Of the latest exchanges when each was, in milliseconds, and its attempts; latest first,
        and so many of them at most."""
        span = (usage.c.at >= asked.since, usage.c.at < asked.until)
        wanted = select(usage.c.at, usage.c.attempts).where(*span, *conditions(usage, asked))
        latest = wanted.order_by(usage.c.at.desc()).limit(most)
        return [
            (row.at, [AttemptRecord(*each) for each in loads(row.attempts)])
            for row in await self._read(latest)
        ]

    async def delivered(self) -> dict[str, int]:
        """Host of a gateway → until when all that it recorded is in these books, in milliseconds:
        each tells every `tending.SECONDS`, more or less."""
        rows = await self._read(select(marks.c.value).where(marks.c.name.like(delivery.LIKE)))
        return delivery.by_host(row.value for row in rows)

    async def _by_tag(
        self,
        asked: Asked,
        bucket: Bucket,
        by: Sequence[Dimension],
        order: Order,
        part: Part,
        counted: Sequence[str],
    ) -> Page:
        """As `groups`. What has several tags counts for each of them; what has none, for ``""``."""
        limit, cursor = part
        rows = await self._read(_grouped(asked, bucket, by, counted).limit(MOST_SETS + 1))
        if len(rows) > MOST_SETS:
            raise TooLong(TOO_MANY)
        merged: dict[tuple[int | None, tuple[str, ...]], Group] = {}
        for row in rows:
            group = _group(row, bucket, len(counted))
            for key in _each_tag(group.by, by, asked.values.get("tag")):
                known = merged.get((group.at, key))
                one = group._replace(by=key)
                merged[group.at, key] = one if known is None else _both(known, one)
        found = list(merged.values())
        found.sort(key=lambda group: _rank(group, order))
        if cursor is not None:
            position = _position(cursor, bucket, by, order)
            last = (0, *position) if order == "time" else (-position[0], *position[1:])
            found = [group for group in found if _rank(group, order) > last]
        return paged(found[: limit + 1], limit, lambda last: _place(last, order))

    async def exchanges(self, asked: Asked, limit: int = MOST, cursor: str | None = None) -> Page:
        """`UsageRecord`s, latest first."""
        span = (usage.c.at >= asked.since, usage.c.at < asked.until)
        wanted = select(*_RECORD).where(*span, *conditions(usage, asked))
        if cursor is not None:
            at, id = position_of(cursor, (int, str))
            wanted = wanted.where(tuple_(usage.c.at, usage.c.id) < (at, id))
        latest = wanted.order_by(usage.c.at.desc(), usage.c.id.desc()).limit(limit + 1)
        found = [_record(row) for row in await self._read(latest)]
        return paged(found, limit, lambda last: (int(last.at * 1000 + 0.5), last.id))

    async def exchange(self, id: str) -> UsageRecord | None:
        """One of them, with its attempts."""
        rows = await self._read(select(*_RECORD).where(usage.c.id == id))
        return _record(rows[0]) if rows else None

    async def all_groups(
        self, asked: Asked, bucket: Bucket, by: Sequence[Dimension], order: Order
    ) -> AsyncIterator[Sequence[Group]]:
        """Every page of `groups`."""
        cursor: str | None = None
        while True:
            page = await self.groups(asked, bucket, by, order, MOST, cursor)
            yield page.rows
            if (cursor := page.cursor) is None:
                return

    async def all_exchanges(self, asked: Asked) -> AsyncIterator[Sequence[UsageRecord]]:
        """Every page of `exchanges`."""
        cursor: str | None = None
        while True:
            page = await self.exchanges(asked, MOST, cursor)
            yield page.rows
            if (cursor := page.cursor) is None:
                return

    async def spent(
        self, kind: Kind, subjects: Collection[str], spans: Sequence[Span]
    ) -> Mapping[str, Sequence[Spent]]:
        """Subject → what it spent in each of some spans of whole days."""
        return told(await self._read(spent_in(kind, subjects, spans))) if subjects else {}

    async def _read(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        began = monotonic()
        try:
            async with self._connected() as connection:
                undo = await bounded(connection)
                try:
                    rows: Sequence[Row[Any]] = (await connection.execute(statement)).all()
                    return rows
                finally:
                    await undo()
        except StoreUnavailable as error:
            if monotonic() - began >= PATIENCE:
                raise TooLong(
                    f"the books were searched for {PATIENCE:g} s; ask for less"
                ) from error
            raise


async def bounded(connection: AsyncConnection) -> Callable[[], Any]:
    """Have statements end after `PATIENCE`; the result ends that."""

    async def nothing() -> None: ...

    if connection.dialect.name == "postgresql":
        patience = str(round(PATIENCE * 1000))
        await connection.execute(select(func.set_config("statement_timeout", patience, True)))
        return nothing
    driver: Any = (await connection.get_raw_connection()).driver_connection
    end = monotonic() + PATIENCE
    await driver.set_progress_handler(lambda: int(monotonic() > end), 10_000)

    async def unbounded() -> None:
        await driver.set_progress_handler(None, 0)

    return unbounded


_RECORD = [usage.c[name] for name in UsageRecord._fields]


def _grouped(
    asked: Asked,
    bucket: Bucket,
    by: Sequence[Dimension],
    counted: Sequence[str] = COUNTED,
    only: Sequence[str] | None = None,
) -> Select[Any]:
    rows = source(asked, bucket, by, counted)
    span = span_of(bucket)
    times = [] if span is None else [rows.c.at - rows.c.at % span]
    keys = [*times, *(_key(rows, dimension) for dimension in by)]
    labelled = [key.label(f"k{n}") for n, key in enumerate(keys)]
    found = select(*labelled, *_added(rows, counted)).group_by(*labelled)
    return found if only is None else found.where(_key(rows, by[0]).in_(only))


def _each_tag(
    key: tuple[str, ...], by: Sequence[Dimension], wanted: str | None
) -> list[tuple[str, ...]]:
    """What stands for a set of tags: each of them, or the one that is wanted."""
    if "tag" not in by:
        return [key]
    place = list(by).index("tag")
    tags = [tag for tag in key[place].split(",") if wanted is None or tag == wanted]
    return [(*key[:place], tag, *key[place + 1 :]) for tag in tags]


def _key(rows: FromClause, dimension: Dimension) -> ColumnElement[Any]:
    column = rows.c[column_of(dimension)]
    return cast(column, Text) if dimension == "status" else column


def _added(rows: FromClause, counted: Sequence[str]) -> list[ColumnElement[Any]]:
    return [func.coalesce(func.sum(rows.c[name]), 0).label(name) for name in counted]


def _measure(inner: Any, order: Order) -> ColumnElement[Any] | None:
    measures = {
        "requests": lambda: inner.c.requests,
        "tokens": lambda: inner.c.input + inner.c.output,
        "cost": lambda: inner.c.cost_nanos,
    }
    return measures[order]() if order in measures else None


def _behind(
    keys: Sequence[ColumnElement[Any]], measure: ColumnElement[Any] | None, position: Sequence[Any]
) -> ColumnElement[bool]:
    """What comes after a position."""
    if measure is None:
        return tuple_(*keys) > tuple(position)
    first, *rest = position
    less: ColumnElement[bool] = measure < first
    if not keys:
        return less
    return or_(measure < first, and_(measure == first, tuple_(*keys) > tuple(rest)))


def _rank(group: Group, order: Order) -> tuple[Any, ...]:
    """What `_behind` compares, for groups that Python puts in order."""
    measures = {
        "requests": group.sums.requests,
        "tokens": group.sums.tokens,
        "cost": group.sums.cost_nanos,
    }
    times = () if group.at is None else (group.at,)
    return (-measures.get(order, 0), *times, *group.by)


def _place(group: Group, order: Order) -> list[Any]:
    """What a cursor says of where a group is."""
    first, *keys = _rank(group, order)
    return keys if order == "time" else [-first, *keys]


def _position(
    cursor: str, bucket: Bucket, by: Sequence[Dimension], order: Order
) -> tuple[Any, ...]:
    """What `_place` said."""
    kinds = [int] * ((order != "time") + (bucket != "total")) + [str] * len(by)
    return position_of(cursor, kinds)


def _group(row: Row[Any], bucket: Bucket, counted: int) -> Group:
    keys, counts = list(row[: len(row) - counted]), row[len(row) - counted :]
    at = None if bucket == "total" else int(keys.pop(0))
    sums, within = _sums(counts[: len(COUNTED)]), tuple(map(int, counts[len(COUNTED) :]))
    return Group(at, tuple(keys), sums, Pace(sums.ok, within) if within else None)


def _both(one: Group, other: Group) -> Group:
    """As the one."""
    pace = one.pace.plus(other.pace) if one.pace and other.pace else None
    return one._replace(sums=one.sums.plus(other.sums), pace=pace)


def _sums(values: Sequence[Any]) -> Sums:
    return Sums(*map(int, values))


def _record(row: Row[Any]) -> UsageRecord:
    values = row._asdict()
    return UsageRecord.of([*({**values, "attempts": loads(values["attempts"])}.values())])
