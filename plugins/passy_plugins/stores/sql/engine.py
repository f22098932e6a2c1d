"""The SQLAlchemy engine of the writing side: admin commands, the portal, migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from passy_plugins.stores.sql.database import BUSY_SECONDS, sqlite_path
from passy_plugins.stores.sql.driver import is_postgres
from passy_plugins.stores.sql.postgres import connect

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry


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
    ``postgres.py``. None is kept: whoever administers does so once in a while."""

    async def creator(*_: Any, **__: Any) -> Any:
        return await connect(url)

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=creator,
        connect_args={
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
        },
        poolclass=NullPool,
        hide_parameters=True,
    )


def _prepare(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
