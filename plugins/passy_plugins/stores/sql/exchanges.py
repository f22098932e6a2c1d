"""Single exchanges: found by whatever is asked of them, a piece of time after the other.

What is rare may be anywhere in millions of rows. So the time that is asked for is gone through from
its end in pieces, each as long as the last one was quick, until there is a page or patience ends:
an answer then says how far it has looked, and whoever wants to goes on from there.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, Select, Table, and_, not_, or_, select, text, tuple_

from passy_plugins.stores.sql.counted import column_of, conditions, holds
from passy_plugins.stores.sql.pages import MOST, cursor_of, position_of
from passy_plugins.stores.sql.reports import Asked, Reports, bounded
from passy_plugins.stores.sql.schema import usage, usage_days, usage_hours
from passy_plugins.stores.sql.sums import DAY, HOUR, SPANS
from passy_proxy.json import loads
from passy_proxy.records import UsageRecord
from passy_proxy.retold import ending

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Ended = Literal["ok", "errors", "refused", "failed", "left"]
"""As the sums have it: ``refused`` is 4xx, ``left`` the client did, ``failed`` all else that is not
``ok``; ``errors`` are both."""
ENDED: tuple[Ended, ...] = get_args(Ended)

PATIENCE = 0.15
"""Seconds that are spent on looking for a page."""
FIRST_PIECE = 3_600_000
GROWTH = 4
"""The next piece of time takes so many times as long at most as the one before."""
_TOLD_TIME = re.compile(r"req_([0-9a-f]{12})[0-9a-f]{20}")
_ERRORS_TOO = (("errors", "refused"), ("errors", "failed"))
_SECOND_TRY = ('],["', '], ["')
"""Between two attempts, as JSON is written with and without spaces. Within a text there would be a
backslash before the quotation mark."""


@dataclass(frozen=True, slots=True)
class Wanted(Asked):
    """Which exchanges are meant, and what became of them."""

    ended: Ended | None = None
    slower: int = 0
    """Milliseconds that they took, or more."""
    retried: bool = False
    """More than one attempt was made."""

    def holds(self, record: UsageRecord) -> bool:
        """Whether it is one of them, whenever it was."""
        told = record._asdict()
        for dimension, value in self.values.items():
            found = told[column_of(dimension)]
            if not (f",{value}," in f",{found}," if dimension == "tag" else str(found) == value):
                return False
        if self.search and not (record.id.startswith(self.search) or self.search in record.model):
            return False
        if self.ended is not None:
            met = ending(record)
            if self.ended != met and (self.ended, met) not in _ERRORS_TOO:
                return False
        return record.duration_ms >= self.slower and (not self.retried or len(record.attempts) > 1)


class Found(NamedTuple):
    """A page of exchanges, latest first."""

    rows: Sequence[UsageRecord]
    cursor: str | None
    """Where to go on; ``None`` at the end."""
    reached: int
    """Unix milliseconds: nothing was left out from there on."""


class Exchanges(Reports):
    """Finds them. Raises as `Reports` does."""

    async def find(
        self, wanted: Wanted, limit: int = 50, cursor: str | None = None, patience: float = PATIENCE
    ) -> Found:
        """Those that are wanted, as many as a page has or as are found soon."""
        end, behind = wanted.until, None
        if cursor is not None:
            at, id = position_of(cursor, (int, str))
            end, behind = min(end, at + 1), (at, id)
        found: list[UsageRecord] = []
        began = monotonic()
        async with self._connected() as connection:
            undo = await bounded(connection)
            try:
                pieces = Pieces(wanted.since, end, await _hours(connection, wanted, end))
                await pieces.next()
                while pieces.end > wanted.since:
                    turn = monotonic()
                    page = _between(pieces.start, pieces.end, wanted, behind)
                    rows = await connection.execute(page.limit(limit + 1 - len(found)))
                    found += map(_record, rows)
                    if len(found) > limit:
                        return _page(found[:limit])
                    behind, took = None, monotonic() - turn
                    await pieces.next(faster=took * GROWTH < patience / GROWTH)
                    if monotonic() - began + took * GROWTH > patience:
                        break
            finally:
                await undo()
        end = max(pieces.end, wanted.since)
        return Found(found, cursor_of((end, "")) if end > wanted.since else None, end)

    async def all(self, wanted: Wanted) -> AsyncIterator[Sequence[UsageRecord]]:
        """Every page; the first one may be empty."""
        cursor: str | None = None
        while True:
            page = await self.find(wanted, MOST, cursor, patience=1.0)
            if page.rows or cursor is None or page.cursor is None:
                yield page.rows
            if (cursor := page.cursor) is None:
                return

    async def exchange(self, id: str) -> UsageRecord | None:
        """One of them, with its attempts. An id of ours tells when it was, so that no other day is
        looked through."""
        if told := _TOLD_TIME.fullmatch(id):
            at = int(told[1], 16)
            near = (usage.c.id == id, usage.c.at >= at - 1, usage.c.at <= at + 1)
            if rows := await self._read(select(*_COLUMNS).where(*near)):
                return _record(rows[0])
        return await super().exchange(id)


class Pieces:
    """The time from ``end`` back to ``since``, piece by piece; of ``hours`` alone, where those that
    have any are known."""

    def __init__(self, since: int, end: int, hours: Hours | None) -> None:
        self._since = since
        self._hours = hours
        self._length = FIRST_PIECE
        self.start = self.end = end

    async def next(self, *, faster: bool = False) -> None:
        """Go on to the one before; at the end it is empty, and at ``since``."""
        self._length *= GROWTH if faster else 1
        self.end = self.start
        self.start = max(self._since, self.end - self._length)
        if self._hours is not None:
            run = await self._hours.before(self.end, self._length)
            begin, end = run or (self._since, self._since)
            self.start, self.end = max(self._since, begin), min(self.end, end)


class Hours:
    """Those that have any, as the sums tell: asked for some days at a time, and of those days alone
    that have any."""

    def __init__(self, connection: AsyncConnection, wanted: Wanted, days: Sequence[int]) -> None:
        """``days``: latest first, as are hours."""
        self._connection = connection
        self._wanted = wanted
        self._days = deque(days)
        self._known: deque[int] = deque()
        self._at_once = 1

    async def before(self, end: int, length: int) -> tuple[int, int] | None:
        """The latest before ``end`` with those that it follows on, for about so long: where they
        begin and end."""
        known = self._known
        while True:
            while known and known[0] >= end:
                known.popleft()
            if known:
                break
            if not self._days:
                return None
            days = [self._days.popleft() for _ in range(min(self._at_once, len(self._days)))]
            self._at_once *= GROWTH
            since = max(days[-1], self._wanted.since)
            known.extend(
                await _starts(self._connection, usage_hours, self._wanted, since, days[0] + DAY)
            )
        begin = last = known.popleft()
        while known and known[0] == begin - HOUR and end - begin < length:
            begin = known.popleft()
        return begin, last + HOUR


async def _hours(connection: AsyncConnection, wanted: Wanted, end: int) -> Hours | None:
    """``None`` where the sums cannot tell them, or where they would be no help."""
    if wanted.values.keys() <= {"organisation", "user"} and wanted.ended in (None, "ok"):
        return None
    late = select(usage.c.id).where(
        text("usage.summed = 0"), usage.c.at + 0 >= wanted.since, usage.c.at + 0 < end
    )
    if (await connection.execute(late.limit(1))).first() is not None:
        return None
    days = await _starts(connection, usage_days, wanted, wanted.since, end)
    return Hours(connection, wanted, days)


async def _starts(
    connection: AsyncConnection, table: Table, wanted: Wanted, since: int, end: int
) -> list[int]:
    """The beginnings of those hours or days between two moments that have any, latest first."""
    start = table.c.start
    mine = [start > since - SPANS[table.name], start < end]
    mine += conditions(table, Asked(wanted.since, end, wanted.values))
    if wanted.ended is not None:
        mine.append(_ended(table, wanted.ended))
    rows = await connection.execute(select(start).distinct().where(*mine).order_by(start.desc()))
    return [int(row.start) for row in rows]


def _page(rows: Sequence[UsageRecord]) -> Found:
    at = int(rows[-1].at * 1000 + 0.5)
    return Found(rows, cursor_of((at, rows[-1].id)), at)


def _between(start: int, end: int, wanted: Wanted, behind: tuple[int, str] | None) -> Select[Any]:
    """Latest first."""
    mine = [usage.c.at >= start, usage.c.at < end, *conditions(usage, wanted), *_more(wanted)]
    if behind is not None:
        mine.append(tuple_(usage.c.at, usage.c.id) < behind)
    return select(*_COLUMNS).where(*mine).order_by(usage.c.at.desc(), usage.c.id.desc())


_COLUMNS = [usage.c[name] for name in UsageRecord._fields]


def _ended(table: Table, ended: Ended) -> ColumnElement[bool]:
    """Of records, and of their sums."""
    ok = and_(table.c.outcome == "ok", table.c.status < 400)
    left = table.c.outcome == "client_gone"
    refused = table.c.status.between(400, 499)
    errors = and_(not_(ok), not_(left))
    return {
        "ok": ok,
        "errors": errors,
        "refused": and_(errors, refused),
        "failed": and_(errors, not_(refused)),
        "left": left,
    }[ended]


def _more(wanted: Wanted) -> list[ColumnElement[bool]]:
    """What `conditions` does not know of."""
    found: list[ColumnElement[bool]] = []
    if wanted.ended is not None:
        found.append(_ended(usage, wanted.ended))
    if wanted.slower:
        found.append(usage.c.duration_ms >= wanted.slower)
    if wanted.retried:
        found.append(or_(*(holds(usage.c.attempts, each) for each in _SECOND_TRY)))
    return found


def _record(row: Any) -> UsageRecord:
    return UsageRecord.of((*row[:-1], loads(row[-1])))
