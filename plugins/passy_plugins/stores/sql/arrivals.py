"""What is entered in the books, as it comes: for those who watch.

Records come out of order (their journals are shipped when they can be) and from many writers at
once, so neither their times nor any number that is given before a transaction ends tells what a
reader has not seen. On SQLite rows are numbered as they are entered, and one writer ends before the
next one begins. On PostgreSQL a reader's place is a snapshot: what is in a later one and was not in
it has arrived since, no more and no less. For this each batch leaves a line in ``arrivals`` with
its transaction and its ids, for a while.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from passy_proxy.json import dumps, loads
from passy_proxy.records import UsageRecord

if TYPE_CHECKING:
    from passy_plugins.stores.sql.database import Value
    from passy_plugins.stores.sql.driver import Database

KEPT_MS = 600_000
"""For so long a place can be gone on from, on PostgreSQL."""
MOST = 1_000
"""Rows that are read at once, on SQLite."""
BATCHES = 8
"""The same on PostgreSQL, where a batch has no more than 500 rows."""
MOST_BEHIND = 200
"""Batches: whoever is farther behind than that does not want to see them any more."""

_NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
NOTE = (
    "INSERT INTO arrivals (at, ids, first, last)"
    f" SELECT {_NOW}, array_agg(id ORDER BY at, id), min(at), max(at)"
)
"""Of a batch; its source follows."""
FORGET = f"DELETE FROM arrivals WHERE at < {_NOW} - CAST(? AS BIGINT)"

_COLUMNS = ", ".join(UsageRecord._fields)
_PLACE = f"SELECT {_NOW}, pg_current_snapshot()::text"
_SINCE = f"""
SELECT {_NOW}, upto::text, a.xid::text, a.first, a.last,
       CASE WHEN row_number() OVER (ORDER BY a.xid) <= {BATCHES} THEN to_json(a.ids)::text END
FROM (
  SELECT CAST(CAST(? AS text) AS pg_snapshot) AS seen,
         coalesce(CAST(CAST(? AS text) AS pg_snapshot), pg_current_snapshot()) AS upto
) AS place
LEFT JOIN arrivals AS a
  ON a.xid >= pg_snapshot_xmin(seen)
 AND NOT pg_visible_in_snapshot(a.xid, seen)
 AND pg_visible_in_snapshot(a.xid, upto)
ORDER BY a.xid
"""
"""The last condition is for a database that was moved to another server, whose count of
transactions is lower."""
_ROWS = f"""
SELECT {_COLUMNS} FROM usage
WHERE at BETWEEN ? AND ?
  AND id = ANY(ARRAY(SELECT jsonb_array_elements_text(CAST(? AS jsonb))))
  AND (CAST(? AS boolean)
       OR organisation = ANY(ARRAY(SELECT jsonb_array_elements_text(CAST(? AS jsonb)))))
"""
_LAST = """
SELECT coalesce(max(rowid), 0), (SELECT id FROM usage WHERE rowid = ?),
       (SELECT id FROM usage ORDER BY rowid DESC LIMIT 1)
FROM usage
"""
_BEHIND = f"""
SELECT rowid, {_COLUMNS} FROM usage
WHERE rowid > ? AND rowid <= ? AND (? OR organisation IN (SELECT value FROM json_each(?)))
ORDER BY rowid LIMIT {MOST}
"""


class Arrived(NamedTuple):
    """What came after a place."""

    records: list[UsageRecord]
    place: str
    """Where to go on: a text of 20 characters or some hundreds, which may be kept."""
    more: bool
    """There is more already."""
    lost: bool = False
    """It is not known what came before these: the place was too old, or is none."""


class Arrivals:
    """Reads what arrives, through ``database``, by which nobody else reads. Raises
    `StoreUnavailable`."""

    def __init__(self, database: Database, *, postgres: bool) -> None:
        self._database = database
        self._postgres = postgres

    async def place(self) -> str:
        """Where what comes from now on begins."""
        if self._postgres:
            [(now, snapshot)] = await self._fetch(_PLACE)
            return f"{now}_{snapshot}"
        [(rowid, _, id)] = await self._fetch(_LAST, 0)
        return f"{rowid}_{id or ''}"

    async def after(
        self, place: str, organisations: Collection[str] | None, until: str = ""
    ) -> Arrived:
        """What has come since, of these organisations or (``None``) of all. Asked again with the
        place it gives, it tells each record once, in the order in which they came. ``until`` is a
        later place, where it ends; as far as there is something otherwise."""
        told = self._snapshots if self._postgres else self._numbers
        return await told(place, organisations, until)

    async def close(self) -> None:
        await self._database.close()

    async def _fetch(self, statement: str, *values: Value) -> list[Any]:
        return [*await self._database.fetch(statement, *values)]

    async def _numbers(
        self, place: str, organisations: Collection[str] | None, until: str
    ) -> Arrived:
        number, _, seen = place.partition("_")
        rowid = int(number) if number.isascii() and number.isdigit() and len(number) < 19 else -1
        [(last, there, id)] = await self._fetch(_LAST, rowid)
        end = until or f"{last}_{id or ''}"
        if until:
            last = int(until.partition("_")[0])
        if rowid < 0 or (there or "") != seen or (rowid and not seen):
            # The row was dropped for its age, or all of them were given other numbers.
            return Arrived([], end, False, lost=True)
        rows = await self._fetch(
            _BEHIND, rowid, last, organisations is None, _listed(organisations)
        )
        if len(rows) == MOST:
            return Arrived([_record(row[1:]) for row in rows], f"{rows[-1][0]}_{rows[-1][1]}", True)
        return Arrived([_record(row[1:]) for row in rows], end, False)

    async def _snapshots(
        self, place: str, organisations: Collection[str] | None, until: str
    ) -> Arrived:
        at, _, seen = place.partition("_")
        if not (is_snapshot(seen) and at.isascii() and at.isdigit()):
            return Arrived([], until or await self.place(), False, lost=True)
        found = await self._fetch(_SINCE, seen, until.partition("_")[2] or None)
        now, snapshot = found[0][:2]
        if now - int(at) > KEPT_MS or len(found) > MOST_BEHIND:
            return Arrived([], until or f"{now}_{snapshot}", False, lost=True)
        batches = [row[2:] for row in found if row[2] is not None]
        records: list[UsageRecord] = []
        for _, first, last, ids in batches[:BATCHES]:
            rows = await self._fetch(
                _ROWS, first, last, ids, organisations is None, _listed(organisations)
            )
            records += sorted(map(_record, rows), key=lambda record: (record.at, record.id))
        rest = [int(xid) for xid, *_ in batches[BATCHES:]]
        if until and not rest:
            return Arrived(records, until, False)
        return Arrived(records, f"{now}_{without(snapshot, rest)}", bool(rest))


def is_snapshot(text: str) -> bool:
    """Whether it is one as PostgreSQL writes it: its server would refuse another."""
    parts = text.split(":")
    if len(parts) != 3 or len(text) > 16_000:
        return False
    numbers = [*parts[:2], *(parts[2].split(",") if parts[2] else ())]
    if not all(each.isascii() and each.isdigit() and len(each) < 19 for each in numbers):
        return False
    first, end, *running = map(int, numbers)
    return 0 < first <= end and all(
        first <= each < end and each > before
        for each, before in zip(running, [0, *running], strict=False)
    )


def without(snapshot: str, transactions: Collection[int]) -> str:
    """A snapshot as it would have been, had these transactions not ended by then."""
    if not transactions:
        return snapshot
    first, end, running = snapshot.split(":")
    listed = sorted({*transactions, *(map(int, running.split(",")) if running else ())})
    return f"{min(int(first), listed[0])}:{end}:{','.join(map(str, listed))}"


def _listed(names: Collection[str] | None) -> str:
    return dumps(list(names or ())).decode()


def _record(row: Sequence[Any]) -> UsageRecord:
    return UsageRecord.of((*row[:-1], loads(row[-1])))
