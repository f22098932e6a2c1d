"""What an organisation brings, for who has signed in: its own providers, and its own keys.

Pages and the JSON API both do it with these. A secret goes in and never comes out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from passy_plugins.api.credentials import credential as credential_shown
from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent, suggestion
from passy_plugins.api.providers import provider as provider_shown
from passy_proxy.transport.connect import AllowList, BadOrigin, parse_origin

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console
    from passy_proxy.issue import NewCredential, NewProvider
    from passy_proxy.records import CustomProvider, StoredCredential

    New = NewCredential | NewProvider

T = TypeVar("T", bound="CustomProvider | StoredCredential")

MOST = 500
"""Providers of an organisation, and keys."""


class Sort(Generic[T]):
    """Providers, or keys: what is done to either is done and noted in the same way."""

    def __init__(
        self, name: str, word: str, listed: Callable[[Admin, str], Awaitable[list[T]]],
        told: Callable[[T], dict[str, Any]],
    ) -> None:  # fmt: skip
        """``name``: as actions of the audit log and methods of the store have it; ``word``: as
        people do. ``told``: what the audit log says of one, which is no secret."""
        self.name = name
        self.word = word
        self._listed = listed
        self._told = told

    async def listed(self, accounts: Accounts, visitor: Visitor) -> list[T]:
        """Those of their organisation."""
        return await self._listed(accounts.admin, visitor.organisation)

    async def one(self, accounts: Accounts, visitor: Visitor, id: str) -> T:
        """404 for one of another organisation."""
        for each in await self.listed(accounts, visitor):
            if each.id == id:
                return each
        raise absent(self.word)

    async def add(self, accounts: Accounts, visitor: Visitor, new: New, secret: str | None) -> T:
        """One more, with its secret if it has one."""
        if len(await self.listed(accounts, visitor)) >= MOST:
            raise Denied(422, "too_many", f"There are {MOST} {self.word}s already.")
        async with accounts.noting(visitor.who, f"{self.name}.create") as noted:
            noted.subject = await getattr(accounts.admin, f"add_{self.name}")(new, secret)
            made = await self.one(accounts, visitor, noted.subject)
            noted.after = self._told(made) | ({"with_key": False} if secret is None else {})
        return made

    async def change(
        self,
        accounts: Accounts,
        visitor: Visitor,
        id: str,
        changes: Mapping[str, Any],
        action: str = "change",
    ) -> T:
        """As it is now. Without a ``secret`` among the changes the one that is there stays."""
        async with accounts.noting(visitor.who, f"{self.name}.{action}", id) as noted:
            before = self._told(await self.one(accounts, visitor, id))
            if changes:
                await getattr(accounts.admin, f"change_{self.name}")(id, **changes)
            found = await self.one(accounts, visitor, id)
            noted.before, noted.after = _difference(before, self._told(found))
        return found

    async def remove(self, accounts: Accounts, visitor: Visitor, id: str) -> None:
        """A provider goes with its keys. What was spent stays in the books."""
        async with accounts.noting(visitor.who, f"{self.name}.delete", id) as noted:
            noted.before = self._told(await self.one(accounts, visitor, id))
            await getattr(accounts.admin, f"remove_{self.name}")(id)


def _told_of_provider(one: CustomProvider) -> dict[str, Any]:
    told = provider_shown(one).model_dump()
    return {name: told[name] for name in ("name", "url", "dialect", "models", "status", "priority")}


def _told_of_key(one: StoredCredential) -> dict[str, Any]:
    told = credential_shown(one).model_dump()
    names = ("upstream", "name", "status", "priority", "last_four", "version")
    return {name: told[name] for name in names}


def _difference(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    differ = [name for name in after if before[name] != after[name]]
    return {name: before[name] for name in differ}, {name: after[name] for name in differ}


PROVIDER: Sort[CustomProvider] = Sort(
    "provider", "provider", lambda admin, mine: admin.list_providers(mine), _told_of_provider
)
CREDENTIAL: Sort[StoredCredential] = Sort(
    "credential", "key", lambda admin, mine: admin.list_credentials(mine), _told_of_key
)


# What may be brought


async def check_place(console: Console, url: str | None, dialect: str | None) -> None:
    """422 for a URL that tenants may not have, and for what nobody speaks."""
    if url is None and dialect is None:
        return
    told = await console.get("/upstreams")
    if url is not None:
        try:
            parse_origin(url, True, AllowList.of(told["tenants_may_reach"]))
        except BadOrigin as error:
            raise Denied(
                422, "invalid_value", f"This address cannot be used: {error}.", "url"
            ) from None
    if dialect is not None and dialect not in told["dialects"]:
        known = ", ".join(told["dialects"])
        raise Denied(422, "invalid_value", f"Nothing speaks that; there are {known}.", "dialect")


async def check_upstream(accounts: Accounts, visitor: Visitor, console: Console, name: str) -> None:
    """422 for what is neither a shared provider that takes keys nor one of theirs."""
    if any(one.id == name for one in await PROVIDER.listed(accounts, visitor)):
        return
    told = await console.get("/upstreams")
    if name in told["left_out"]:
        message = f"The operator has left {name} out. A key for it would not be used."
        raise Denied(422, "invalid_value", message, "upstream")
    names = [one["name"] for one in told["rows"] if one["dialect"] is not None]
    if name not in names:
        message = f"There is no provider {name}.{suggestion(name, names)}"
        raise Denied(422, "invalid_value", message, "upstream")


async def set_policy(accounts: Accounts, visitor: Visitor, byok: str) -> None:
    """``own_first`` or ``own_only``."""
    admin, mine = accounts.admin, visitor.organisation
    async with accounts.noting(visitor.who, "organisation.byok", mine) as noted:
        was = await admin.get_organisation(mine)
        noted.before = {"byok": was.byok if was else None}
        await admin.change_organisation(mine, byok=byok)
        noted.after = {"byok": byok}


# Trying


async def tried(console: Console, visitor: Visitor, path: str, body: object) -> Any:
    """What came of a trial, as `passy_plugins.api.providers.Tried` has it. One at a time."""
    mine = visitor.organisation
    if mine in console.trying:
        raise Denied(429, "busy", "A test is running already. Wait for its end.")
    console.trying.add(mine)
    try:
        return await console.post(f"/organisations/{mine}{path}", body)
    finally:
        console.trying.discard(mine)
