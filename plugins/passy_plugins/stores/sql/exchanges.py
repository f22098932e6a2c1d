"""Single exchanges: found by whatever is asked of them, a piece of time after the other.

What is rare may be anywhere in millions of rows. So the time that is asked for is gone through from
its end in pieces, each as long as the last one was quick, until there is a page or patience ends:
an answer then says how far it has looked, and whoever wants to goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, Select, and_, not_, or_, select, tuple_

from passy_plugins.stores.sql.counted import column_of, conditions, holds
from passy_plugins.stores.sql.pages import MOST, cursor_of, position_of
from passy_plugins.stores.sql.reports import Asked, Reports, bounded
from passy_plugins.stores.sql.schema import usage
from passy_proxy.json import loads
from passy_proxy.records import UsageRecord

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
            if not (f",{value}," in f",{found}," if dimension == "tag" else found == value):
                return False
        if self.search and not (record.id.startswith(self.search) or self.search in record.model):
            return False
        if self.ended is not None and self.ended not in endings(record):
            return False
        return record.duration_ms >= self.slower and (not self.retried or len(record.attempts) > 1)


class Found(NamedTuple):
    """A page of exchanges, latest first."""

    rows: Sequence[UsageRecord]
    cursor: str | None
    """Where to go on; ``None`` at the end."""
    reached: int
    """Unix milliseconds: nothing was left out from there on."""


def endings(record: UsageRecord) -> tuple[Ended, ...]:
    """What `Wanted.ended` would find it."""
    if record.outcome == "client_gone":
        return ("left",)
    if record.outcome == "ok" and record.status < 400:
        return ("ok",)
    return ("refused" if 400 <= record.status <= 499 else "failed", "errors")


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
        piece, began = FIRST_PIECE, monotonic()
        async with self._connected() as connection:
            undo = await bounded(connection)
            try:
                while end > wanted.since:
                    start, turn = max(wanted.since, end - piece), monotonic()
                    page = _between(start, end, wanted, behind).limit(limit + 1 - len(found))
                    found += map(_record, await connection.execute(page))
                    if len(found) > limit:
                        return _page(found[:limit])
                    end, behind = start, None
                    took = monotonic() - turn
                    piece *= GROWTH if took * GROWTH < patience / GROWTH else 1
                    if monotonic() - began + took * GROWTH > patience:
                        break
            finally:
                await undo()
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
_OK = and_(usage.c.outcome == "ok", usage.c.status < 400)
_LEFT = usage.c.outcome == "client_gone"
_ERRORS = and_(not_(_OK), not_(_LEFT))
_REFUSED = usage.c.status.between(400, 499)
_ENDED: dict[Ended, ColumnElement[bool]] = {
    "ok": _OK,
    "errors": _ERRORS,
    "refused": and_(_ERRORS, _REFUSED),
    "failed": and_(_ERRORS, not_(_REFUSED)),
    "left": _LEFT,
}


def _more(wanted: Wanted) -> list[ColumnElement[bool]]:
    """What `conditions` does not know of."""
    found: list[ColumnElement[bool]] = []
    if wanted.ended is not None:
        found.append(_ENDED[wanted.ended])
    if wanted.slower:
        found.append(usage.c.duration_ms >= wanted.slower)
    if wanted.retried:
        found.append(or_(*(holds(usage.c.attempts, each) for each in _SECOND_TRY)))
    return found


def _record(row: Any) -> UsageRecord:
    return UsageRecord.of((*row[:-1], loads(row[-1])))
