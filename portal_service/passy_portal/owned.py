"""Keys within the organisation of who asks: what pages and the JSON API both do with them.

A developer sees and changes the keys they made or hold, the others of an organisation see all. What
is not for somebody does not exist for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passy_plugins.api.admin_keys import KeyShown, shown
from passy_plugins.api.errors import absent
from passy_portal.accounts import Accounts, Visitor
from passy_portal.placing import may_place, placed, teams_of
from passy_proxy.issue import IssuedKey, NewKey

GRACE = 86_400
"""Seconds that a rolled key stays good where nobody says otherwise."""


async def key_of(accounts: Accounts, visitor: Visitor, id: str) -> IssuedKey:
    """404 for one of another organisation, or of somebody else's."""
    found = await accounts.admin.get_key(id)
    if found is None or found.deleted is not None or not sees(visitor, found):
        raise absent("key")
    return found


def sees(visitor: Visitor, key: IssuedKey) -> bool:
    if key.organisation != visitor.organisation:
        return False
    return visitor.role != "developer" or key.user_id == visitor.user


async def create(
    accounts: Accounts, visitor: Visitor, fields: Mapping[str, Any]
) -> tuple[IssuedKey, str]:
    """The record and the key. It belongs to who makes it: what holds for them holds for it."""
    fields = await placed(accounts.admin, visitor, fields)
    wanted = NewKey(
        **{**fields, "description": fields["description"] or fields["name"]},
        organisation=visitor.organisation,
        user_id=visitor.user,
        created_by=visitor.user,
    )
    async with accounts.noting(visitor.who, "key.create") as noted:
        made, key = await accounts.admin.create_key(wanted)
        noted.subject, noted.after = made.id, told(made)
    return made, key


async def change(
    accounts: Accounts, visitor: Visitor, id: str, fields: Mapping[str, Any], action: str = "change"
) -> IssuedKey:
    """The record as it is now."""
    async with accounts.noting(visitor.who, f"key.{action}", id) as noted:
        was = await key_of(accounts, visitor, id)
        if "team" in fields and fields["team"] != was.team:
            own = (await teams_of(accounts.admin, visitor.organisation)).get(visitor.user)
            may_place(visitor, own, fields["team"])
        found = await accounts.admin.change_key(id, **fields)
        if found is None:
            raise absent("key")
        before, after = told(was), told(found)
        differ = [name for name in after if before[name] != after[name]]
        noted.before = {name: before[name] for name in differ}
        noted.after = {name: after[name] for name in differ}
    return found


async def roll(
    accounts: Accounts, visitor: Visitor, id: str, grace: float
) -> tuple[IssuedKey, str]:
    """Another secret for the same key; the old one is good for ``grace`` seconds more."""
    async with accounts.noting(visitor.who, "key.roll", id, after={"grace": grace}):
        await key_of(accounts, visitor, id)
        rolled = await accounts.admin.roll_key(id, grace)
        if rolled is None:
            raise absent("key")
    return rolled


async def remove(accounts: Accounts, visitor: Visitor, id: str) -> None:
    """For good; what it spent stays in the books."""
    async with accounts.noting(visitor.who, "key.delete", id) as noted:
        noted.before = told(await key_of(accounts, visitor, id))
        if not await accounts.admin.delete_key(id):
            raise absent("key")


def told(key: IssuedKey) -> dict[str, Any]:
    """What the audit log holds of a key."""
    fields = KeyShown(**shown(key)).model_dump()
    for name in ("last_used_at", "created_at", "created_by", "old_key_until"):
        del fields[name]
    return fields


def title(key: IssuedKey) -> str:
    """What people call it."""
    return key.name or key.description or key.shown
