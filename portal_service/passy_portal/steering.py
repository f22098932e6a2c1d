"""Where requests for an alias go: a target pinned or disabled by who runs the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.switches import NOT_HELD

if TYPE_CHECKING:
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console
    from passy_proxy.records import SwitchState

STATES: dict[str, SwitchState | None] = {"pin": "pinned", "disable": "disabled", "release": None}
"""What is done → what the target is then."""


async def steer(
    accounts: Accounts, visitor: Visitor, console: Console, model: str, target: str, done: str
) -> None:
    """Do one of `STATES` to a target of an alias, for all gateways on this store. Raises
    `GatewayAway`; 404 for what the gateway does not know, 409 where it would not go by it."""
    state = STATES[done]
    if state is not None:
        await _check(console, model, target)
    subject = f"{model} → {target}"
    async with accounts.noting(visitor.who, f"target.{done}", subject) as noted:
        of = {one.target: one.state for one in await accounts.admin.list_switches()
              if one.model == model}  # fmt: skip
        was = of.get(target)
        before: dict[str, str | None] = {"state": was}
        for name, one in of.items() if state == "pinned" else ():
            if one == "pinned":
                before["pinned"] = name
        noted.before, noted.after = before, {"state": state}
        noted.left_out = was == state
        if was != state:
            await accounts.admin.switch(model, target, state, visitor.user)


async def _check(console: Console, model: str, target: str) -> None:
    if not (await console.get("/switches"))["held"]:
        raise Denied(409, "switchboard_missing", NOT_HELD)
    for row in (await console.get("/routing"))["routes"]:
        if row["alias"] == model:
            if target in {f"{one['provider']}/{one['model']}" for one in row["targets"]}:
                return
            raise absent("target")
    raise absent("alias")
