"""Bring a database to the newest revision: ``python -m passy_plugins.stores.sql.migrate``.

A gateway runs this as a process of its own, so that what alembic and SQLAlchemy weigh (45 MB) is
gone when it is done. The URL comes by standard input: arguments can be read by every user of a
machine.
"""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from passy_plugins.stores.sql.engine import engine_for


def settings(output: io.StringIO | None = None) -> Config:
    """alembic's configuration: no ini file, only where the migrations are."""
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


async def upgrade(url: str) -> None:
    """Run what is missing. Of two processes at once the second one finds nothing left to do."""
    engine = engine_for(url)
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
            await connection.run_sync(_upgrade)
            await connection.commit()
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = settings()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def script() -> str:
    """The SQL that makes a new SQLite database, as ``fresh.sql`` holds it."""
    output = io.StringIO()
    command.upgrade(settings(output), "head", sql=True)
    lines = [line.rstrip() for line in output.getvalue().splitlines() if not line.startswith("--")]
    statements = (each.strip() for each in "\n".join(lines).split(";"))
    kept = [each for each in statements if each and each not in ("BEGIN", "COMMIT")]
    return ";\n\n".join(kept) + "\n"


if __name__ == "__main__":
    asyncio.run(upgrade(sys.stdin.readline().strip()))
