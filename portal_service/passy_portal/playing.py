"""Keys of the playground: with them a browser asks the gateway itself, as any client does.

Such a key belongs to who has signed in, so that what holds for them holds for it. It lives a
quarter of an hour, is known to one page, which keeps it in memory, and ends with the session that
it was made in: whatever ends sessions asks for `withdraw`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, or_, select

from passy_portal.tables import playground_keys, sessions
from passy_proxy.records import Limits
from passy_proxy.units import Rate

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

LIVES = 900.0
"""Seconds."""
MOST = 5
"""Of one session at a time: pages that are open."""
TAG = "playground"
LIMITS = Limits(requests=Rate(120, 60.0), concurrency=8)
"""Of each key, besides those of whose it is: more than a person does, less than a program."""


async def withdraw(admin: Admin) -> None:
    """End the keys that have expired, and those of sessions that are over."""
    over = or_(
        playground_keys.c.expires <= int(time.time() * 1000),
        playground_keys.c.session.not_in(select(sessions.c.id)),
    )
    async with admin.connected() as connection:
        rows = (await connection.execute(select(playground_keys.c.key_id).where(over))).all()
    for row in rows:
        await _end(admin, row.key_id)


async def make_room(admin: Admin, session: str) -> None:
    """End the oldest keys of a session, where one more would be too many."""
    mine = select(playground_keys.c.key_id).where(playground_keys.c.session == session)
    async with admin.connected() as connection:
        rows = (await connection.execute(mine.order_by(playground_keys.c.expires.desc()))).all()
    for row in rows[MOST - 1 :]:
        await _end(admin, row.key_id)


async def enter(admin: Admin, key: str, session: str, expires: float) -> None:
    """A key's id, the session it ends with, and when it does in any case, in Unix seconds."""
    row = {"key_id": key, "session": session, "expires": int(expires * 1000)}
    async with admin.connected() as connection:
        await connection.execute(insert(playground_keys).values(row))


async def _end(admin: Admin, key: str) -> None:
    await admin.delete_key(key)
    async with admin.connected() as connection:
        await connection.execute(delete(playground_keys).where(playground_keys.c.key_id == key))
