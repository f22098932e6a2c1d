"""A connection to PostgreSQL for those who wait, used as sqlite3's is: evidence has one code for
both.

It is used in a thread, while the connection lives on an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import count
from re import sub
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncpg

    from passy_plugins.stores.sql.database import Row

AT_ONCE = 1_000
"""Rows of a long answer that are here at a time."""


@cache
def numbered(statement: str) -> str:
    """``?`` as ``$1``, ``$2`` …"""
    numbers = count(1)
    return sub(r"\?", lambda _: f"${next(numbers)}", statement)


class Answer(Protocol):
    """Rows, as they are asked for."""

    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """Of sqlite3, or a `Blocking`."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Answer: ...
    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> object: ...


class Rows:
    """An `Answer` that may be long."""

    def __init__(self, parts: Iterable[list[Row]]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            yield from part

    def fetchone(self) -> Row | None:
        return next(iter(self), None)

    def fetchall(self) -> list[Row]:
        return list(self)


class Blocking:
    """Within a transaction of ``connection``, which lives on ``loop``."""

    def __init__(self, connection: asyncpg.Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._cursors = 0

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        """As sqlite3 does, with ``?``. A question without values may have a long answer: it is read
        part by part."""
        if not values and statement.lstrip().startswith("SELECT"):
            return Rows(self._parts(statement))
        return Rows([self._fetched(numbered(statement), *values)])

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> None:
        """One after the other."""
        for row in rows:
            self.execute(statement, row)

    def _parts(self, statement: str) -> Iterator[list[Row]]:
        # By name in SQL: a cursor of the protocol leaves a prepared statement behind.
        self._cursors += 1
        name = f"passy_{self._cursors}"
        self._fetched(f"DECLARE {name} NO SCROLL CURSOR FOR {statement}")
        while part := self._fetched(f"FETCH {AT_ONCE} FROM {name}"):
            yield part
        self._fetched(f"CLOSE {name}")

    def _fetched(self, statement: str, *values: Any) -> list[Row]:
        asked = self._rows(statement, values)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()

    async def _rows(self, statement: str, values: Sequence[Any]) -> list[Row]:
        return [tuple(row) for row in await self._connection.fetch(statement, *values)]
