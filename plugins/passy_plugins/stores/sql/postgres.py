"""PostgreSQL, through asyncpg.

Safe behind PgBouncer in transaction mode, where each transaction may be another server process's:
no statement is prepared under a name, nothing is set for longer than a transaction, and locks are
the transaction's own. One statement alone is a transaction by itself.

A question that is not answered in time ends with its connection: what a server may have in mind
about it is not our trouble any more. For a moment after that nobody waits for it again.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from passy_plugins.stores.sql import arrivals, partitions, shipment, statements
from passy_plugins.stores.sql.address import address, shown
from passy_plugins.stores.sql.blocking import Blocking, numbered
from passy_plugins.stores.sql.partitions import PARTING
from passy_plugins.stores.sql.retention import forget
from passy_plugins.stores.sql.shipment import listed
from passy_plugins.stores.sql.sums import DAY, PRICE_MS
from passy_proxy.stores import StoreRefuses, StoreUnavailable

if TYPE_CHECKING:
    import asyncpg

    from passy_plugins.stores.sql.database import Row, Value
    from passy_proxy.keyring import Keyring

T = TypeVar("T")

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 3.0
WRITE_SECONDS = 15.0
DROP_SECONDS = 600.0
TRIES = 3
LONGEST = 86_400.0
PAUSE_SECONDS = 0.5
"""After a failure, for so long nobody else waits for the same."""

MAKING, CHAINING = 7_238_101_001, 7_238_101_002
"""Advisory locks: of who changes tables, and of who enters evidence."""

REFUSED = ("28", "3D")
"""Classes of errors that waiting does not mend: who asks, and the name of the database."""

_FRESH = Path(__file__).with_name("fresh.postgres.sql")
_TABLES = "SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = current_schema()"
_CHAINS = "SELECT 1 FROM marks WHERE name >= 'evidence:' AND name < 'evidence;' LIMIT 1"


async def connect(url: str) -> asyncpg.Connection:
    """A new connection, without a cache of statements."""
    import asyncpg

    try:
        return await asyncpg.connect(address(url), timeout=CONNECT_SECONDS, statement_cache_size=0)
    except TimeoutError:
        raise StoreUnavailable(
            f"{shown(url)}: no connection within {CONNECT_SECONDS:g} s"
        ) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        wrong = isinstance(error, ValueError) or getattr(error, "sqlstate", "")[:2] in REFUSED
        kind = StoreRefuses if wrong else StoreUnavailable
        raise kind(f"{shown(url)}: {said(error)}") from None


class NoPartition(ValueError):
    """There is no table for the day of a record."""


def said(error: BaseException) -> str:
    """What an error says, without the row it speaks of."""
    if isinstance(error, OSError) or not error.args:
        return str(error) or type(error).__name__
    return str(error.args[0])


class Postgres:
    """A few connections to one database. Lives on one event loop."""

    def __init__(self, url: str, *, most: int = 1, lasting: bool = False) -> None:
        """``lasting``: what is written survives a power failure of the server from then on."""
        self.place = shown(url)
        self._url = url
        self._begin = f"BEGIN; SET LOCAL statement_timeout = '{WRITE_SECONDS:.0f}s'"
        if lasting:
            self._begin += "; SET LOCAL synchronous_commit = on"
        self._free: list[asyncpg.Connection] = []
        self._turns = asyncio.Semaphore(most)
        self._away = (-inf, "")
        """Until when nobody is to wait, and why."""
        self._closed = False

    async def open(self) -> None:
        """Connect now, to learn of trouble at the start."""
        await self.fetch("SELECT 1")

    async def close(self) -> None:
        """Disconnect, for good; who is served is served to the end."""
        self._closed = True
        while self._free:
            with suppress(Exception):
                await self._free.pop().close(timeout=1)

    async def fetch(self, statement: str, *values: Value) -> list[Row]:
        """All rows. Like everything here it raises `StoreUnavailable`."""
        text = numbered(statement)

        async def ask(connection: asyncpg.Connection) -> list[Row]:
            return [tuple(row) for row in await connection.fetch(text, *values)]

        return await self._served(ask, ANSWER_SECONDS)

    async def make(self) -> None:
        """Make the tables where there are none at all, unless somebody else does by now."""

        async def work(connection: asyncpg.Connection) -> None:
            await connection.execute(f"SELECT pg_advisory_xact_lock({MAKING})")
            if not await connection.fetchval(_TABLES):
                await connection.execute(_FRESH.read_text(encoding="utf-8"))

        if await self.fetch(_TABLES) == [(0,)]:
            await self._transaction(work)

    async def record(
        self, records: Sequence[bytes], prices: Sequence[bytes], keyring: Keyring
    ) -> None:
        """All or none; see `passy_plugins.stores.sql.driver.Database`."""

        for _ in range(TRIES):
            try:
                await self._enter(records, prices, keyring)
                return
            except NoPartition:
                await self._part(listed(records))
        raise StoreUnavailable(f"{self.place}: somebody drops what is to be entered")

    async def _part(self, records: str) -> None:
        """Make tables for the days of ``records``."""

        async def work(connection: asyncpg.Connection) -> None:
            days = [day for (day,) in await connection.fetch(partitions.DAYS, records)]
            await partitions.make(connection, days)

        await self._transaction(work)

    async def _enter(
        self, records: Sequence[bytes], prices: Sequence[bytes], keyring: Keyring
    ) -> None:
        async def work(connection: asyncpg.Connection) -> bool:
            await connection.execute(f"SELECT pg_advisory_xact_lock_shared({CHAINING})")
            if any(map(shipment.has_proof, records)) or await connection.fetchval(_CHAINS):
                return False
            await shipment.enter(connection, records, prices)
            return True

        async def prove(connection: asyncpg.Connection) -> None:
            # Whoever enters without evidence waits: else it would not know that there is some now.
            await connection.execute(f"SELECT pg_advisory_xact_lock({CHAINING})")
            blocking = Blocking(connection, get_running_loop())
            await asyncio.to_thread(shipment.prove, blocking, records, prices, keyring)

        if not await self._transaction(work):
            await self._transaction(prove)

    async def tend(
        self, now: int, oldest: int | None, keyring: Keyring, oldest_sums: int | None = None
    ) -> int:
        """See `Database`."""
        today = now // DAY

        async def ahead(connection: asyncpg.Connection) -> None:
            await partitions.make(connection, range(today - 1, today + partitions.AHEAD))

        async def late(connection: asyncpg.Connection) -> int:
            return int(await connection.fetchval(shipment.LATE, now - PRICE_MS))

        async def old(connection: asyncpg.Connection) -> list[int]:
            ends = (oldest or 0) // DAY
            return sorted(day for day in await partitions.known(connection) if day < ends)

        await self._transaction(ahead)
        while await self._transaction(late):
            pass
        await self.fetch(statements.FORGET_CHANGES, now - statements.CHANGES_MS)
        if oldest_sums is not None:
            for statement in statements.DROP_SUMS:
                await self.fetch(statement, oldest_sums)
        if oldest is not None:
            await self.fetch(statements.MOVE_ON, statements.KEPT_FROM, str(oldest))
        await self.fetch(arrivals.FORGET, arrivals.KEPT_MS)
        return sum([await self._dropped(day, keyring) for day in await self._transaction(old)])

    async def _dropped(self, day: int, keyring: Keyring) -> int:
        """How many records there were of that day, which are gone with its table."""
        name = partitions.name_of(day)

        def forgotten(blocking: Blocking) -> None:
            forget(blocking, keyring, f"{name} WHERE true", (), (day + 1) * DAY)

        async def work(connection: asyncpg.Connection) -> int:
            await connection.execute(
                # Rather not today than that all others wait for us, who wait for one of them.
                f"SET LOCAL lock_timeout = '2s';"
                f"SET LOCAL statement_timeout = '{DROP_SECONDS:.0f}s';"
                f"SELECT pg_advisory_xact_lock({PARTING}), pg_advisory_xact_lock({CHAINING})"
            )
            if day not in await partitions.known(connection):
                return 0  # Somebody else was faster.
            # Nobody writes to it any more; to drop it takes all of usage, for a moment.
            await connection.execute(f"LOCK TABLE {name} IN SHARE MODE")
            if await connection.fetchval(f"SELECT 1 FROM {name} WHERE summed = 0 LIMIT 1"):
                return 0
            count = int(await connection.fetchval(f"SELECT count(*) FROM {name}"))
            await asyncio.to_thread(forgotten, Blocking(connection, get_running_loop()))
            await connection.execute(f"DROP TABLE {name}")
            return count

        return await self._transaction(work, DROP_SECONDS)

    async def look(self, work: Callable[[Blocking], T]) -> T:
        """What ``work``, in a thread, makes of the books as they are at one moment, however long
        that takes."""

        async def within(connection: asyncpg.Connection) -> T:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            done = await asyncio.to_thread(work, Blocking(connection, get_running_loop()))
            await connection.execute("COMMIT")
            return done

        return await self._served(within, LONGEST)

    async def _transaction(
        self, work: Callable[[asyncpg.Connection], Awaitable[T]], seconds: float = WRITE_SECONDS
    ) -> T:
        async def within(connection: asyncpg.Connection) -> T:
            await connection.execute(self._begin)
            done = await work(connection)
            await connection.execute("COMMIT")
            return done

        return await self._served(within, seconds)

    async def _served(
        self, work: Callable[[asyncpg.Connection], Awaitable[T]], seconds: float
    ) -> T:
        """What ``work`` makes of a connection, which is its own until then."""
        import asyncpg

        if self._closed:
            raise StoreUnavailable(f"{self.place}: closed")
        clock = get_running_loop().time
        until, why = self._away
        if clock() < until:
            raise StoreUnavailable(why)
        try:
            async with asyncio.timeout(seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"{self.place}: no free connection") from None
        try:
            try:
                connection = await self._connected()
            except StoreUnavailable as error:
                self._away = (clock() + PAUSE_SECONDS, str(error))
                raise
            timer = get_running_loop().call_later(seconds, connection.terminate)
            try:
                done = await work(connection)
            except BaseException as error:
                late = connection.is_closed() and timer.when() <= clock()
                # Whatever transaction was open: its end is the connection's.
                connection.terminate()
                # The last one: the protocol is out of step for a moment when a connection is ended.
                theirs = (
                    asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError
                )
                if isinstance(error, AttributeError) and not late:
                    raise
                # An AttributeError: ended while it prepares a statement, it has no protocol left.
                if not isinstance(error, theirs | OSError | AttributeError):
                    raise
                raise self._told(error, f"no answer within {seconds:g} s" if late else "") from None
            finally:
                timer.cancel()
            if self._closed:
                connection.terminate()
            else:
                self._free.append(connection)
            return done
        finally:
            self._turns.release()

    async def _connected(self) -> asyncpg.Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        return await connect(self._url)

    def _told(self, error: Exception, why: str) -> Exception:
        """What the caller is told of an error; those who come next need not meet it as well."""
        import asyncpg

        if isinstance(error, asyncpg.CheckViolationError) and "no partition" in said(error):
            return NoPartition(said(error))
        wrong = (
            ValueError
            | asyncpg.DataError
            | asyncpg.IntegrityConstraintViolationError
            | asyncpg.ProgramLimitExceededError  # Some text is too long for an index.
        )
        if isinstance(error, wrong):
            return ValueError(said(error))
        told = StoreUnavailable(f"{self.place}: {why or said(error)}")
        if not isinstance(error, asyncpg.PostgresError) or error.sqlstate[:2] in ("08", "57"):
            self._away = (get_running_loop().time() + PAUSE_SECONDS, str(told))
            while self._free:
                self._free.pop().terminate()
        return told
