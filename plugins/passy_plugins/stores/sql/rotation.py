"""Putting what is sealed under another key of the ring, beside whoever reads and writes it.

Nothing is opened: a new key wraps the data key anew (but for what earlier versions sealed). Each
row is changed only if it still is what it was read as, so a value that somebody wrote meanwhile
stays. There is no list of what is left to do: the rows say it, so that an interrupted rotation goes
on wherever it is begun again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Executable,
    MetaData,
    Row,
    Table,
    func,
    inspect,
    select,
    update,
)

from passy_plugins.stores.sql.schema import credentials, webhooks
from passy_plugins.stores.sql.sealed import bound_to, hook_owner, last_four
from passy_plugins.stores.sql.writing import Writing
from passy_proxy import envelope
from passy_proxy.issue import Rotation, Seals, Tell
from passy_proxy.json import loads
from passy_proxy.keyring import KeyringError

BATCH = 100
"""Secrets that are wrapped in one transaction: others wait for it to end."""
BESIDE = "portal_"
"""How the names of tables begin that an application keeps beside ours."""
PASSES = 10
"""How often the rows are gone through, while somebody goes on writing with an earlier key."""


class Rotating(Writing):
    """Part of `Admin`."""

    async def seals(self) -> list[Seals]:
        """By key of the ring, the first one first."""
        ring = self._keyring
        found: dict[str, list[int]] = {}
        for place in await self._places():
            beginning = func.substr(place.table.c.sealed, 1, 11)
            wanted = select(beginning, func.count()).where(place.table.c.sealed.is_not(None))
            rows: Sequence[Any] = await self._read(wanted.group_by(beginning))
            for text, count in rows:
                numbers = found.setdefault(envelope.key_id(text), [0, 0])
                numbers[not text.startswith(envelope.FORMAT)] += count
        told = [
            Seals(key_id, key_id in ring, key_id == ring.first, current, earlier)
            for key_id, (current, earlier) in found.items()
        ]
        return sorted(told, key=lambda one: (not one.first, not one.given, one.key_id))

    async def rotate(self, tell: Tell | None = None) -> Rotation:
        """Wrap everything under the first key of the ring; see `Sealing`."""
        rotation = Rotation()
        places = await self._places()
        for _ in range(PASSES):
            rotation.seen, rotation.failed = 0, {}
            before = rotation.wrapped
            wanted = [select(func.count()).select_from(place.table) for place in places]
            size = sum([(await self._read(count))[0][0] for count in wanted])
            for place in places:
                await self._rotate(place, rotation, size, tell)
            if rotation.wrapped == before:
                break
        return rotation

    async def _places(self) -> list[Place]:
        """Our tables, and those that an application keeps beside them for secrets of its own."""
        async with self._connected() as connection:
            beside = await connection.run_sync(_beside)
        return [*PLACES, *(Place(table, _told) for table in beside)]

    async def _rotate(self, place: Place, rotation: Rotation, size: int, tell: Tell | None) -> None:
        """One pass through a table, in the order of its ids."""
        table, last = place.table, ""
        while True:
            wanted = select(table).where(table.c.id > last).order_by(table.c.id).limit(BATCH)
            rows = await self._read(wanted)
            if not rows:
                return
            last = rows[-1].id
            wrappings = await asyncio.to_thread(self._rewrapped, place, rows, rotation)
            if wrappings:
                async with self._connected() as connection:
                    for each in wrappings:
                        rotation.wrapped += (await connection.execute(each)).rowcount
            rotation.seen += len(rows)
            if tell is not None:
                tell(rotation.seen, max(size, rotation.seen))

    def _rewrapped(
        self, place: Place, rows: Sequence[Row[Any]], rotation: Rotation
    ) -> list[Executable]:
        """What puts those of ``rows`` that are not under the first key under it, each if it still
        is what it was read as."""
        table = place.table
        made: list[Executable] = []
        for row in rows:
            if row.sealed is None:
                continue
            owner = place.owner(row)
            try:
                sealed = self._keyring.rewrap(row.sealed, *owner)
                if sealed == row.sealed:
                    continue
                more = place.more(row, lambda: self._keyring.open(sealed, *owner))  # noqa: B023
            except KeyringError as error:
                rotation.failed[f"{table.name} {row.id}"] = str(error)
                continue
            unchanged = (table.c.id == row.id, table.c.sealed == row.sealed)
            made.append(update(table).where(*unchanged).values(sealed=sealed, **more))
        return made


class Place(NamedTuple):
    """A table with a column ``sealed``, and whom its envelopes are bound to."""

    table: Table
    owner: Callable[[Row[Any]], tuple[str, ...]]
    more: Callable[[Row[Any], Callable[[], str]], dict[str, str]] = lambda row, secret: {}
    """What else is written with a new envelope, from the secret."""


def _beside(connection: Connection) -> list[Table]:
    """Tables of applications that have the columns ``id``, ``sealed``, and ``owner``: a list, in
    JSON, of what each envelope is bound to."""
    names = [name for name in inspect(connection).get_table_names() if name.startswith(BESIDE)]
    tables = [Table(name, MetaData(), autoload_with=connection) for name in sorted(names)]
    return [table for table in tables if {"id", "sealed", "owner"} <= set(table.c.keys())]


def _told(row: Row[Any]) -> tuple[str, ...]:
    return tuple(map(str, loads(row.owner)))


def _shown(row: Row[Any], secret: Callable[[], str]) -> dict[str, str]:
    """Nobody could open the earlier rows when they were given this column."""
    return {} if row.version != 1 or row.shown else {"shown": last_four(secret())}


PLACES = (
    Place(
        credentials,
        lambda row: bound_to(row.organisation, row.upstream, row.id, row.version),
        _shown,
    ),
    Place(webhooks, lambda row: hook_owner(row.organisation, row.id)),
)
