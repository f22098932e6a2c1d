"""Bring a database to the newest revision: ``python -m passy_plugins.stores.sql.migrate``.

A gateway runs this as a process of its own, so that what alembic and SQLAlchemy weigh (45 MB) is
gone when it is done. The URL comes by standard input: arguments can be read by every user of a
machine.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from passy_plugins.stores.sql.driver import is_postgres
from passy_plugins.stores.sql.engine import engine_for
from passy_plugins.stores.sql.postgres import MAKING


def settings(output: io.StringIO | None = None) -> Config:
    """alembic's configuration: no ini file, only where the migrations are."""
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config


async def upgrade(url: str, revision: str = "head") -> None:
    """Run what is missing, all or nothing. Of two processes at once the second one finds nothing
    left to do."""
    engine = engine_for(url)
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql(ALONE if is_postgres(url) else "BEGIN IMMEDIATE")
            await connection.run_sync(_upgrade, revision)
            await connection.commit()
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, revision: str) -> None:
    config = settings()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


ALONE = f"SELECT pg_advisory_xact_lock({MAKING})"
FRESH = {"sqlite": "fresh.sql", "postgresql": "fresh.postgres.sql"}
"""Dialect → the file that makes a new database."""


def script(dialect: str) -> str:
    """The SQL that makes a new database, as its file in `FRESH` holds it."""
    output = io.StringIO()
    config = settings(output)
    config.attributes["dialect"] = dialect
    command.upgrade(config, "head", sql=True)
    lines = [line.rstrip() for line in output.getvalue().splitlines() if not line.startswith("--")]
    if dialect == "postgresql":
        # Sent as it is, and so within a transaction by itself.
        text = "\n".join(line for line in lines if line not in ("BEGIN;", "COMMIT;"))
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    statements = (each.strip() for each in "\n".join(lines).split(";"))
    kept = [each for each in statements if each and each not in ("BEGIN", "COMMIT")]
    return ";\n\n".join(kept) + "\n"


def write_scripts() -> None:
    """After a new migration: ``python -m passy_plugins.stores.sql.migrate --fresh``."""
    for dialect, name in FRESH.items():
        Path(__file__).with_name(name).write_text(script(dialect), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--fresh"]:
        write_scripts()
    else:
        asyncio.run(upgrade(sys.stdin.readline().strip()))
