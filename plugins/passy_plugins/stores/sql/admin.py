"""The writing side: issuing keys, entering organisations and what they bring, reading the books.

Used by commands and the portal, never by a request. Every value goes to the database as a
parameter.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from passy_plugins.stores.sql.allotted import Allotted
from passy_plugins.stores.sql.arrivals import Arrivals
from passy_plugins.stores.sql.database import sqlite_path
from passy_plugins.stores.sql.driver import driver_for, is_postgres
from passy_plugins.stores.sql.engine import AT_ONCE, engine_for
from passy_plugins.stores.sql.exchanges import Exchanges
from passy_plugins.stores.sql.issued import BY_KEY, Issued
from passy_plugins.stores.sql.lists import Lists
from passy_plugins.stores.sql.postgres import Postgres
from passy_plugins.stores.sql.pricing import Pricing
from passy_plugins.stores.sql.ready import agree, make_ready
from passy_plugins.stores.sql.reports import Reports
from passy_plugins.stores.sql.schema import usage
from passy_plugins.stores.sql.switching import Switching
from passy_plugins.stores.sql.tenants import Tenants
from passy_plugins.stores.sql.vault import Vaulted
from passy_plugins.stores.sql.verify import Tell, verify, verify_within
from passy_proxy.evidence import Verdict
from passy_proxy.issue import Edited
from passy_proxy.json import loads
from passy_proxy.records import UsageRecord
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from passy_proxy.keyring import Keyring


class Admin(Issued, Tenants, Allotted, Vaulted, Switching, Pricing):
    """Writes to the database of ``url``. See `opened`."""

    def __init__(
        self, engine: AsyncEngine, keyring: Keyring, url: str, edited: Edited | None = None
    ) -> None:
        self._engine = engine
        self._url = url
        self._keyring = keyring
        self._edited = edited
        self._noted = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self.reports = Reports(self._connected)
        self.lists = Lists(self._connected)
        self.exchanges = Exchanges(self._connected)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: str, keyring: Keyring, edited: Edited | None = None
    ) -> AsyncIterator[Admin]:
        """An Admin on a database that is there and of the newest revision, closed at the end.
        ``edited`` is told of each edit once it is entered.

        `StoreUnavailable` when it cannot be had, `KeyringError` when its keys are not ours.
        """
        database = driver_for(url, "admin")
        try:
            await make_ready(database, url)
            await agree(database, keyring)
        finally:
            await database.close()
        engine = engine_for(url)
        try:
            yield cls(engine, keyring, url, edited)
        finally:
            await engine.dispose()

    @property
    def keyring(self) -> Keyring:
        """What its secrets are sealed with, and what is attested with."""
        return self._keyring

    def connected(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection and its transaction, for tables that others keep beside ours; that of
        `together` within it."""
        return self._connected()

    def arrivals(self) -> Arrivals:
        """What is entered from now on; to be closed by whoever asks for it."""
        return Arrivals(driver_for(self._url, "tail"), postgres=is_postgres(self._url))

    async def usage_of(self, key_id: str, most: int = 100) -> list[UsageRecord]:
        """The latest exchanges of a key, latest first."""
        mine = (usage.c.key_id == key_id, BY_KEY)
        rows = await self._read(_USAGE.where(*mine).order_by(usage.c.at.desc()).limit(most))
        return [_usage(row) for row in rows]

    async def verify(self, tell: Tell | None = None, noted: str = "") -> Verdict:
        """What was done to the books; see `passy_plugins.stores.sql.verify`."""
        if is_postgres(self._url):
            database = Postgres(self._url)
            try:
                return await database.look(
                    lambda books: verify_within(books, self._keyring, tell, noted)
                )
            finally:
                await database.close()
        path = sqlite_path(self._url)
        try:
            return await asyncio.to_thread(verify, path, self._keyring, tell, noted)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{path}: {error}") from error

    @asynccontextmanager
    async def together(self, subject: str) -> AsyncIterator[None]:
        """All that is read and written within is one transaction, and only one of ``subject`` runs
        at a time, in whatever process."""
        async with self._connected() as connection:
            if is_postgres(self._url):
                name = f"passy:{subject}"
                await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))
            else:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            token = _TOGETHER.set((self, connection))
            try:
                yield
            finally:
                _TOGETHER.reset(token)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        """A connection and its transaction; what is said of a failure holds no values."""
        owner, shared = _TOGETHER.get()
        try:
            if owner is self and shared is not None:
                yield shared
            else:
                async with self._transaction() as connection:
                    yield connection
        except IntegrityError as error:
            raise ValueError(str(error.orig)) from None
        except (DBAPIError, OSError) as error:
            raise StoreUnavailable(str(getattr(error, "orig", error))) from None

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        """One that tells of its edits once it has ended."""
        noted: list[tuple[str, str]] = []
        async with self._room, self._engine.begin() as connection:
            self._noted[connection] = noted
            try:
                yield connection
            finally:
                del self._noted[connection]
        if self._edited is not None:
            for kind, subject in noted:
                await self._edited(kind, subject)


_TOGETHER: ContextVar[tuple[Admin | None, AsyncConnection | None]] = ContextVar(
    "together", default=(None, None)
)
"""Whose connection a task has for all that it does; see `Admin.together`."""

_USAGE = select(*(usage.c[name] for name in UsageRecord._fields))


def _usage(row: Row[Any]) -> UsageRecord:
    return UsageRecord.of((*row[:-1], loads(row.attempts)))
