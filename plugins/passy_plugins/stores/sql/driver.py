"""Which database a URL names, and the driver that speaks to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from passy_plugins.stores.sql.address import SCHEMES, shown
from passy_plugins.stores.sql.database import Row, Sqlite, Value, sqlite_path
from passy_plugins.stores.sql.postgres import Postgres

if TYPE_CHECKING:
    from passy_proxy.keyring import Keyring


class Database(Protocol):
    """Where the statements run. Everything here raises `StoreUnavailable` while it cannot be had,
    and ValueError when the tables' own rules forbid it."""

    @property
    def place(self) -> str:
        """Where it is, for logs and errors: without a password."""
        ...

    async def open(self) -> None:
        """Connect now, to learn of trouble at the start."""
        ...

    async def close(self) -> None:
        """Wait for what is running, then disconnect; for good."""
        ...

    async def make(self) -> None:
        """Make the tables where there are none at all, unless somebody else does at this moment."""
        ...

    async def fetch(self, statement: str, *values: Value) -> list[Row]:
        """All rows of a statement with ``?`` for each of the values."""
        ...

    async def record(
        self, records: Sequence[bytes], prices: Sequence[bytes], keyring: Keyring
    ) -> None:
        """All or none, in one transaction; records already there are left alone, and so are prices
        already known.

        Each is JSON: the list of a `UsageRow`'s values, with the `Proof` behind them where there is
        one; a list of nanos, price and id. ``keyring`` is for their evidence. ValueError when one
        among them can never be written.
        """
        ...

    async def tend(
        self, now: int, oldest: int | None, keyring: Keyring, oldest_sums: int | None = None
    ) -> int:
        """What is to be done once in a while, by one of all who share the database: make room for
        the days to come, add up what nobody has added yet, forget changes of yesterday, and drop
        the records of a time before ``oldest`` and the sums of one before ``oldest_sums`` (Unix
        milliseconds, as ``now``; the beginning of a day). How many records were dropped."""
        ...


def is_postgres(url: str) -> bool:
    return url.partition("://")[0] in SCHEMES


def place_of(url: str) -> str:
    """What ``url`` names, for logs, errors and the name of a folder; never a password. ValueError
    for a URL that no driver takes; its message repeats no more than the scheme."""
    return shown(url) if is_postgres(url) else str(sqlite_path(url).absolute())


def driver_for(url: str, name: str, *, most: int = 1, lasting: bool = False) -> Database:
    """A driver that connects when it is first asked. ``name`` is for threads, ``most`` the number
    of connections; ``lasting``: what is written survives a power failure from then on."""
    if is_postgres(url):
        return Postgres(url, most=most, lasting=lasting)
    return Sqlite(sqlite_path(url), name, lasting=lasting)
