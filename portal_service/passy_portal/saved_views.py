"""Questions that somebody has saved, each their own, within an organisation."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_portal.tables import saved_views

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from passy_portal.accounts import Accounts, Visitor

MOST = 50
"""Of one person in one organisation."""


@dataclass(frozen=True, slots=True)
class SavedView:
    id: str
    name: str
    query: str
    """As it stands in an address, without the question mark."""


async def saved(accounts: Accounts, visitor: Visitor) -> Sequence[SavedView]:
    """By name."""
    wanted = select(saved_views.c.id, saved_views.c.name, saved_views.c.query)
    async with accounts.admin.connected() as connection:
        rows = await connection.execute(wanted.where(*_mine(visitor)).order_by(saved_views.c.name))
        return [SavedView(*row) for row in rows]


async def save(accounts: Accounts, visitor: Visitor, name: str, query: str) -> SavedView:
    """One more. 409 where there are too many."""
    made = SavedView(f"view_{secrets.token_hex(8)}", name, query)
    async with accounts.noting(visitor.who, "view.save", made.id) as noted:
        async with accounts.admin.connected() as connection:
            count = select(func.count()).select_from(saved_views).where(*_mine(visitor))
            if ((await connection.execute(count)).scalar() or 0) >= MOST:
                raise Denied(409, "too_many", f"No more than {MOST} saved views; delete one first.")
            values = {
                "id": made.id,
                "user_id": visitor.user,
                "organisation": visitor.organisation,
                "name": name,
                "query": query,
                "created": int(time.time() * 1000),
            }
            await connection.execute(insert(saved_views).values(values))
        noted.after = {"name": name, "query": query}
    return made


async def remove(accounts: Accounts, visitor: Visitor, id: str) -> None:
    """404 for somebody else's."""
    gone = delete(saved_views).where(saved_views.c.id == id, *_mine(visitor))
    noting = accounts.noting(visitor.who, "view.delete", id)
    async with noting, accounts.admin.connected() as connection:
        if not (await connection.execute(gone)).rowcount:
            raise absent("view")


def _mine(visitor: Visitor) -> tuple[ColumnElement[bool], ...]:
    return (
        saved_views.c.user_id == visitor.user,
        saved_views.c.organisation == visitor.organisation,
    )
