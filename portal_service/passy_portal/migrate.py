"""The portal's tables, brought to the newest revision when the portal first asks for them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, MetaData, Table, inspect, select

from passy_proxy.stores import StoreRefuses

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

VERSION_TABLE = "portal_version"
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Oldest first."""


async def migrate(admin: Admin, to: str = REVISIONS[-1]) -> None:
    """Run what is missing. Of two processes at once the second finds nothing left to do. Raises
    `StoreRefuses` where a later version has been here."""
    async with admin.connected() as connection:
        found = await connection.run_sync(_revision)
    if found == to:
        return
    if found is not None and found not in REVISIONS:
        raise StoreRefuses(
            f"the portal's tables are of revision {found}, which this version does not know; "
            f"it knows up to {REVISIONS[-1]}"
        )
    await asyncio.to_thread(_ready)
    async with admin.together("portal tables"), admin.connected() as connection:
        await connection.run_sync(_upgrade, to)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    table = Table(VERSION_TABLE, MetaData(), autoload_with=connection)
    return connection.execute(select(table.c.version_num)).scalar()


def _ready() -> None:
    """Import what weighs something, off the loop."""
    from alembic import command  # noqa: F401


def _upgrade(connection: Connection, to: str) -> None:
    from alembic import command  # Needed once in a version's life.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
