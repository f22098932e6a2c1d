"""What there is, in pages: oldest first, each row once, however many come meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Select, select, tuple_

from passy_plugins.stores.sql import allotted, tenants
from passy_plugins.stores.sql.issued import KEYS, issued
from passy_plugins.stores.sql.key_list import KeysAsked, listed
from passy_plugins.stores.sql.pages import MOST, Page, paged, position_of, searched
from passy_plugins.stores.sql.schema import (
    budgets,
    credentials,
    custom_providers,
    keys,
    members,
    organisations,
    teams,
    users,
    webhooks,
)
from passy_plugins.stores.sql.vault import provider_of, stored_of

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

Values = Mapping[str, str]
"""Columns and what they hold; names are those of `_FILTERS`."""


class Lists:
    """Reads through ``connected``. Raises `StoreUnavailable`, and ValueError for a cursor that is
    none. What was deleted is in none of them."""

    def __init__(
        self, connected: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    ) -> None:
        self._connected = connected

    async def organisations(
        self, search: str = "", limit: int = MOST, cursor: str | None = None
    ) -> Page:
        wanted = select(organisations).where(organisations.c.status != "deleted")
        columns = (organisations.c.id, organisations.c.name)
        wanted = searched(wanted, search, *columns)
        return await self._page(wanted, organisations.c, tenants.organisation, limit, cursor)

    async def teams(
        self, values: Values, search: str = "", limit: int = MOST, cursor: str | None = None
    ) -> Page:
        """By ``organisation``."""
        wanted = _having(select(teams).where(teams.c.status != "deleted"), teams.c, values)
        wanted = searched(wanted, search, teams.c.id, teams.c.name)
        return await self._page(wanted, teams.c, tenants.team, limit, cursor)

    async def users(
        self, values: Values, search: str = "", limit: int = MOST, cursor: str | None = None
    ) -> Page:
        """By ``organisation``: its members."""
        wanted = select(users).where(users.c.status != "deleted")
        if (organisation := values.get("organisation")) is not None:
            mine = select(members.c.user_id).where(members.c.organisation == organisation)
            wanted = wanted.where(users.c.id.in_(mine))
        wanted = searched(wanted, search, users.c.id, users.c.email, users.c.name)
        return await self._page(wanted, users.c, tenants.user, limit, cursor)

    async def members(
        self, organisation: str, limit: int = MOST, cursor: str | None = None
    ) -> Page:
        wanted = select(members).where(members.c.organisation == organisation)
        order = {"created": members.c.created, "id": members.c.user_id}
        return await self._page(wanted, order, tenants.member, limit, cursor)

    async def keys(
        self, values: Values, search: str = "", limit: int = MOST, cursor: str | None = None
    ) -> Page:
        """By ``organisation``, ``team`` and ``user_id``."""
        wanted = _having(KEYS.where(keys.c.deleted.is_(None)), keys.c, values)
        named = (keys.c.id, keys.c.shown, keys.c.name, keys.c.description, keys.c.email)
        wanted = searched(wanted, search, *named)
        return await self._page(wanted, keys.c, issued, limit, cursor)

    async def keys_of(self, asked: KeysAsked, limit: int = MOST, cursor: str | None = None) -> Page:
        """`Listed`: those of an organisation, with what they spent, in any order."""
        return await listed(self._connected, asked, limit, cursor)

    async def budgets(self, values: Values, limit: int = MOST, cursor: str | None = None) -> Page:
        """By ``kind`` and ``subject``."""
        wanted = _having(select(budgets), budgets.c, values)
        return await self._page(wanted, budgets.c, allotted.stored, limit, cursor)

    async def webhooks(self, values: Values, limit: int = MOST, cursor: str | None = None) -> Page:
        """By ``organisation``."""
        wanted = _having(select(webhooks), webhooks.c, values)
        return await self._page(wanted, webhooks.c, allotted.webhook, limit, cursor)

    async def providers(
        self, organisation: str, limit: int = MOST, cursor: str | None = None
    ) -> Page:
        mine = custom_providers.c.organisation == organisation
        wanted = select(custom_providers).where(mine)
        return await self._page(wanted, custom_providers.c, provider_of, limit, cursor)

    async def credentials(
        self, organisation: str, limit: int = MOST, cursor: str | None = None
    ) -> Page:
        wanted = select(credentials).where(credentials.c.organisation == organisation)
        return await self._page(wanted, credentials.c, stored_of, limit, cursor)

    async def _page(
        self,
        wanted: Select[Any],
        columns: Mapping[str, Column[Any]] | Any,
        made: Callable[[Row[Any]], Any],
        limit: int,
        cursor: str | None,
    ) -> Page:
        created, id = columns["created"], columns["id"]
        if cursor is not None:
            wanted = wanted.where(tuple_(created, id) > position_of(cursor, (int, str)))
        ordered = wanted.order_by(created, id).limit(limit + 1)
        async with self._connected() as connection:
            rows = (await connection.execute(ordered)).all()
        page = paged(rows, limit, lambda row: (row._mapping[created], row._mapping[id]))
        return Page([made(row) for row in page.rows], page.cursor)


def _having(wanted: Select[Any], columns: Any, values: Values) -> Select[Any]:
    for name, value in values.items():
        wanted = wanted.where(columns[name] == value)
    return wanted
