"""An organisation's own settings, and what is done to the gateway from the portal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_portal.console import GatewayAway

if TYPE_CHECKING:
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console
    from passy_proxy.issue import Organisation


async def organisation_of(accounts: Accounts, visitor: Visitor) -> Organisation:
    found = await accounts.admin.get_organisation(visitor.organisation)
    if found is None:
        raise absent("organisation")
    return found


async def rename(accounts: Accounts, visitor: Visitor, name: str) -> None:
    """422 for no name."""
    if not name:
        raise Denied(422, "invalid_value", "Give the organisation a name.", "name")
    async with accounts.noting(
        visitor.who, "organisation.change", visitor.organisation, after={"name": name}
    ) as noted:
        noted.before = {"name": (await organisation_of(accounts, visitor)).name}
        await accounts.admin.change_organisation(visitor.organisation, name=name)


async def retention(console: Console) -> tuple[bool, int | None]:
    """Whether the gateway says it, and how many days single records are kept; ``None``: for
    ever."""
    try:
        stores = (await console.get("/status"))["stores"]
    except GatewayAway:
        return False, None
    kept = [one["kept_days"] for one in stores if one.get("keeps_usage")]
    return bool(kept), min((days for days in kept if days is not None), default=None)


async def reload(accounts: Accounts, visitor: Visitor, console: Console) -> dict[str, Any]:
    """Have the configuration read again; `Denied` with the reasons where it is not taken. Noted
    once it is known what came of it: no transaction waits for a gateway."""
    try:
        told: dict[str, Any] = await console.post("/reload")
    except GatewayAway:
        raise
    except Denied as error:
        after = {"taken": False, "reason": str(error).partition("\n")[0][:300]}
        async with accounts.noting(visitor.who, "gateway.reload", after=after):
            pass
        raise
    after = {"taken": True, "hash": told["hash"]}
    async with accounts.noting(visitor.who, "gateway.reload", after=after):
        pass
    return told
