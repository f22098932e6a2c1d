"""Keys of the playground: with them a browser asks the gateway itself, as any client does.

Such a key belongs to who has signed in, so that what holds for them holds for it. It lives a
quarter of an hour, is known to one page, which keeps it in memory, and ends with the session that
it was made in.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, or_, select

from passy_portal import owned
from passy_portal.tables import playground_keys, sessions
from passy_proxy.records import Limits
from passy_proxy.units import Rate

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.accounts import Accounts, Visitor
    from passy_proxy.issue import IssuedKey

LIVES = 900.0
"""Seconds."""
MOST = 5
"""Of one session at a time: pages that are open."""
TAG = "playground"
LIMITS = Limits(requests=Rate(120, 60.0), concurrency=8)
"""Of each key, besides those of whose it is: more than a person does, less than a program."""


async def issue(accounts: Accounts, visitor: Visitor) -> tuple[IssuedKey, str]:
    """A key for one page of a session. The oldest ends where there are too many."""
    await withdraw(accounts.admin)
    mine = select(playground_keys).where(playground_keys.c.session == visitor.session)
    async with accounts.admin.connected() as connection:
        rows = (await connection.execute(mine.order_by(playground_keys.c.expires))).all()
    await _end(accounts.admin, [row.key_id for row in rows[: max(0, len(rows) - MOST + 1)]])
    expires = time.time() + LIVES
    wanted: dict[str, Any] = {
        "name": "Playground",
        "description": f"Playground of {visitor.email or visitor.user}",
        "tags": (TAG,),
        "limits": LIMITS,
        "expires": expires,
    }
    made, key = await owned.create(accounts, visitor, wanted)
    row = {"key_id": made.id, "session": visitor.session, "expires": int(expires * 1000)}
    async with accounts.admin.connected() as connection:
        await connection.execute(insert(playground_keys).values(row))
    return made, key


async def withdraw(admin: Admin) -> None:
    """End the keys that have expired, and those of sessions that are over."""
    living = select(sessions.c.id)
    over = or_(
        playground_keys.c.expires <= int(time.time() * 1000),
        playground_keys.c.session.not_in(living),
    )
    async with admin.connected() as connection:
        rows = (await connection.execute(select(playground_keys.c.key_id).where(over))).all()
    await _end(admin, [row.key_id for row in rows])


async def _end(admin: Admin, keys: list[str]) -> None:
    for key in keys:
        await admin.delete_key(key)
        async with admin.connected() as connection:
            gone = delete(playground_keys).where(playground_keys.c.key_id == key)
            await connection.execute(gone)
