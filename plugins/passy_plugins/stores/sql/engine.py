"""The SQLAlchemy engine of the writing side: admin commands, the portal, migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from passy_plugins.stores.sql.database import BUSY_SECONDS, sqlite_path
from passy_plugins.stores.sql.driver import is_postgres
from passy_plugins.stores.sql.postgres import connect

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

AT_ONCE = 6
"""Connections of one engine: a server has a hundred for all of them. They stay: to sign in at the
server, and to learn its tables, costs more than most questions."""
RECYCLED = 300
"""Seconds after which one is not used again: what stands in between may have forgotten it."""


def engine_for(url: str) -> AsyncEngine:
    """An engine on the database of ``url``, in the forms that drivers know."""
    if is_postgres(url):
        return _postgres(url)
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{sqlite_path(url)}",
        connect_args={"timeout": BUSY_SECONDS},
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "connect", _prepare)
    return engine


def _postgres(url: str) -> AsyncEngine:
    """Connections that are the gateway's own, with its care for what may stand in between; see
    ``postgres.py``."""

    async def creator(*_: Any, **__: Any) -> Any:
        return await connect(url)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=creator,
        connect_args={
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
        },
        pool_size=AT_ONCE,
        max_overflow=0,
        pool_recycle=RECYCLED,
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "checkout", _alive)
    event.listen(engine.sync_engine, "handle_error", _spoiled)
    return engine


def _alive(
    connection: DBAPIConnection, entry: ConnectionPoolEntry, proxy: PoolProxiedConnection
) -> None:
    """Another one is taken in place of one that the server has closed meanwhile."""
    driver: Any = entry.driver_connection
    if driver.is_closed():
        raise DisconnectionError


def _spoiled(context: ExceptionContext) -> None:
    """A connection whose protocol is out of step, as it is for a moment when the server ends it, is
    not kept."""
    from asyncpg import InternalClientError

    cause = getattr(context.original_exception, "__cause__", None)
    if isinstance(cause, InternalClientError):
        context.is_disconnect = True


def _prepare(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
