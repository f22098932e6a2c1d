"""The books within one organisation, as several pages read them."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import select

from passy_plugins.stores.sql.reports import Asked, Dimension, Sums
from passy_plugins.stores.sql.schema import keys
from passy_portal.accounts import Visitor

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

DAY = 86_400_000
LAST = 30
"""Days that are looked at where nobody says otherwise."""


def now() -> int:
    """The first millisecond that has not begun."""
    return int(time.time() * 1000) + 1


def today() -> int:
    """Where the day of UTC began."""
    return now() // DAY * DAY


def tomorrow() -> int:
    """Where the day of UTC ends. What is asked in whole days is added up already."""
    return today() + DAY


def month() -> int:
    """Where the month of UTC began."""
    at = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return int(at.timestamp() * 1000)


def days_before(days: int) -> int:
    """Where the first of so many days began, today among them."""
    return today() - (days - 1) * DAY


def narrowed(visitor: Visitor, values: dict[Dimension, str] | None = None) -> dict[Dimension, str]:
    """To what who asks may see: their organisation, and of that their own where they develop."""
    mine: dict[Dimension, str] = {"organisation": visitor.organisation}
    if visitor.role == "developer":
        mine["user"] = visitor.user
    return {**(values or {}), **mine}


async def spent_by(
    admin: Admin, visitor: Visitor, dimension: Dimension, since: int
) -> dict[str, Sums]:
    """The sums of each value of a dimension, since a moment: of the thousand that cost most."""
    asked = Asked(since, tomorrow(), narrowed(visitor))
    found = await admin.reports.groups(asked, "total", [dimension], "cost")
    return {group.by[0]: group.sums for group in found.rows}


async def names_of(
    admin: Admin, visitor: Visitor, dimension: str, among: Collection[str] | None = None
) -> dict[str, str]:
    """What people call the keys, teams, users or own providers of an organisation; ``among``: only
    these are asked for, where there may be many."""
    mine = visitor.organisation
    if dimension == "key":
        return await key_names(admin, mine, among)
    if dimension == "team":
        return {team.id: team.name for team in await admin.list_teams(mine)}
    if dimension == "user":
        return {user.id: user.email or user.name for user in await admin.list_users(mine)}
    if dimension == "upstream":
        return {f"custom-{each.id}": each.name for each in await admin.list_providers(mine)}
    return {}


async def key_names(
    admin: Admin, organisation: str, ids: Collection[str] | None = None
) -> dict[str, str]:
    """What people call keys of the books, deleted ones among them."""
    wanted = select(keys.c.id, keys.c.name, keys.c.description, keys.c.shown)
    wanted = wanted.where(keys.c.organisation == organisation)
    if ids is not None:
        if not any(ids):
            return {}
        wanted = wanted.where(keys.c.id.in_(ids))
    async with admin.connected() as connection:
        found = (await connection.execute(wanted)).all()
    return {row.id: row.name or row.description or row.shown for row in found}
