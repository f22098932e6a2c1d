"""What an organisation brings, for who has signed in: its own providers, and its own keys.

Pages and the JSON API both do it with these. A secret goes in and never comes out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from passy_plugins.api.credentials import credential as credential_shown
from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent, suggestion
from passy_plugins.api.providers import provider as provider_shown
from passy_proxy.transport.connect import AllowList, BadOrigin, parse_origin

if TYPE_CHECKING:
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console
    from passy_proxy.issue import NewCredential, NewProvider
    from passy_proxy.records import CustomProvider, StoredCredential

T = TypeVar("T")

MOST = 500
"""Providers of an organisation, and keys."""


async def provider_of(accounts: Accounts, visitor: Visitor, id: str) -> CustomProvider:
    """404 for one of another organisation."""
    for one in await accounts.admin.list_providers(visitor.organisation):
        if one.id == id:
            return one
    raise absent("provider")


async def credential_of(accounts: Accounts, visitor: Visitor, id: str) -> StoredCredential:
    """404 for one of another organisation."""
    for one in await accounts.admin.list_credentials(visitor.organisation):
        if one.id == id:
            return one
    raise absent("key")


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
    if any(one.id == name for one in await accounts.admin.list_providers(visitor.organisation)):
        return
    told = await console.get("/upstreams")
    if name in told["left_out"]:
        message = f"The operator has left {name} out. A key for it would not be used."
        raise Denied(422, "invalid_value", message, "upstream")
    names = [one["name"] for one in told["rows"] if one["dialect"] is not None]
    if name not in names:
        message = f"There is no provider {name}.{suggestion(name, names)}"
        raise Denied(422, "invalid_value", message, "upstream")


# Entering, changing, forgetting


async def add_provider(
    accounts: Accounts, visitor: Visitor, new: NewProvider, secret: str | None
) -> CustomProvider:
    """With its first key, if it has one."""
    admin = accounts.admin
    if len(await admin.list_providers(visitor.organisation)) >= MOST:
        raise Denied(422, "too_many", f"There are {MOST} providers already.")
    async with accounts.noting(visitor.who, "provider.create") as noted:
        noted.subject = await admin.add_provider(new, secret)
        made = await provider_of(accounts, visitor, noted.subject)
        noted.after = _told_of(made) | {"with_key": secret is not None}
    return made


async def change_provider(
    accounts: Accounts,
    visitor: Visitor,
    id: str,
    changes: Mapping[str, Any],
    action: str = "change",
) -> CustomProvider:
    """As it is now."""
    return await _changed(PROVIDER, accounts, visitor, id, changes, action)


async def remove_provider(accounts: Accounts, visitor: Visitor, id: str) -> None:
    """With its keys. What was spent stays in the books."""
    await _removed(PROVIDER, accounts, visitor, id)


async def add_credential(
    accounts: Accounts, visitor: Visitor, new: NewCredential, secret: str
) -> StoredCredential:
    admin = accounts.admin
    if len(await admin.list_credentials(visitor.organisation)) >= MOST:
        raise Denied(422, "too_many", f"There are {MOST} keys already.")
    async with accounts.noting(visitor.who, "credential.create") as noted:
        noted.subject = await admin.add_credential(new, secret)
        made = await credential_of(accounts, visitor, noted.subject)
        noted.after = _told_of_key(made)
    return made


async def change_credential(
    accounts: Accounts,
    visitor: Visitor,
    id: str,
    changes: Mapping[str, Any],
    action: str = "change",
) -> StoredCredential:
    """As it is now. Without a ``secret`` among the changes the one that is there stays."""
    return await _changed(CREDENTIAL, accounts, visitor, id, changes, action)


async def remove_credential(accounts: Accounts, visitor: Visitor, id: str) -> None:
    await _removed(CREDENTIAL, accounts, visitor, id)


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


def _told_of(one: CustomProvider) -> dict[str, Any]:
    told = provider_shown(one).model_dump()
    return {name: told[name] for name in ("name", "url", "dialect", "models", "status", "priority")}


def _told_of_key(one: StoredCredential) -> dict[str, Any]:
    told = credential_shown(one).model_dump()
    names = ("upstream", "name", "status", "priority", "last_four", "version")
    return {name: told[name] for name in names}


class _Sort(NamedTuple, Generic[T]):
    """What is brought: providers, or keys. What is done to either is noted in the same way."""

    name: str
    """As actions of the audit log and methods of the store have it."""
    one: Callable[[Accounts, Visitor, str], Awaitable[T]]
    """404 for one of another organisation."""
    told: Callable[[T], dict[str, Any]]
    """What the audit log says of it: no secret."""


PROVIDER: _Sort[CustomProvider] = _Sort("provider", provider_of, _told_of)
CREDENTIAL: _Sort[StoredCredential] = _Sort("credential", credential_of, _told_of_key)


async def _changed(
    sort: _Sort[T],
    accounts: Accounts,
    visitor: Visitor,
    id: str,
    changes: Mapping[str, Any],
    action: str,
) -> T:
    async with accounts.noting(visitor.who, f"{sort.name}.{action}", id) as noted:
        before = sort.told(await sort.one(accounts, visitor, id))
        if changes:
            await getattr(accounts.admin, f"change_{sort.name}")(id, **changes)
        found = await sort.one(accounts, visitor, id)
        noted.before, noted.after = _difference(before, sort.told(found))
    return found


async def _removed(sort: _Sort[T], accounts: Accounts, visitor: Visitor, id: str) -> None:
    async with accounts.noting(visitor.who, f"{sort.name}.delete", id) as noted:
        noted.before = sort.told(await sort.one(accounts, visitor, id))
        await getattr(accounts.admin, f"remove_{sort.name}")(id)


def _difference(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    differ = [name for name in after if before[name] != after[name]]
    return {name: before[name] for name in differ}, {name: after[name] for name in differ}
