"""What a database goes through before it is used: its tables, its revision, its secret key."""

from __future__ import annotations

import asyncio
import sys

from passy_plugins.stores.sql import statements
from passy_plugins.stores.sql.driver import Database
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.stores import StoreRefuses, StoreUnavailable


async def make_ready(database: Database, url: str) -> None:
    """Bring the tables to the newest revision: nothing to do, a script for a new file, or alembic.

    `StoreUnavailable` says why it cannot be done.
    """
    await database.make()
    newest = statements.REVISIONS[-1]
    found = await _revision(database)
    if found == newest:
        return
    if found is not None and found not in statements.REVISIONS:
        raise StoreRefuses(
            f"the database is of revision {found}, which this version does not know; "
            f"it knows up to {newest}"
        )
    await _upgrade(url)


async def agree(database: Database, keyring: Keyring) -> None:
    """Make sure that the keys in the database were made under our pepper; else `KeyringError`."""
    mine = keyring.mark()
    await database.fetch(statements.SET_MARK, "pepper", mine)
    if await database.fetch(statements.MARK, "pepper") != [(mine,)]:
        named = await database.fetch(statements.MARK, "pepper key")
        which = f", {named[0][0]!s}" if named else ""
        raise KeyringError(
            f"the keys in this database were made under another secret key{which}; give the one it "
            "was made with last in PASSY_SECRET_KEYS, or its secret.key in the data folder"
        )
    await database.fetch(statements.SET_MARK, "pepper key", keyring.last)


async def _revision(database: Database) -> object:
    try:
        rows = await database.fetch(statements.REVISION)
    except StoreUnavailable as error:
        await database.open()  # It may be away since a moment ago.
        raise StoreRefuses(f"this is not a database of passy ({error})") from error
    return rows[0][0] if rows else None


async def _upgrade(url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "passy_plugins.stores.sql.migrate",
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate(url.encode() + b"\n")
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise StoreUnavailable(f"the database could not be migrated: {' '.join(last)}")
