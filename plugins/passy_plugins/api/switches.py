"""Targets of aliases that are pinned or disabled, whatever the configuration says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import admin_of
from passy_plugins.api.errors import absent, responses, suggestion
from passy_plugins.api.words import Body, Line, Shown, shown_at
from passy_plugins.switches import held
from passy_proxy.records import SwitchState

if TYPE_CHECKING:
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.gateway import Gateway
    from passy_proxy.records import Switch

router = APIRouter(tags=["models"])


class SwitchShown(Shown):
    """Where requests for an alias go, by somebody's decision."""

    model: str = Field(description="The alias.")
    target: str = Field(description="upstream/model, as it is written.")
    state: SwitchState = Field(description="It is asked before all others, or never.")
    by: str = Field(description="A user's id; empty: who held the admin token.")
    at: str


class Switches(Shown):
    rows: list[SwitchShown]
    held: bool = Field(
        description="Whether the gateway goes by them: its filter `alias` names this store as its "
        "`switchboard`."
    )


class Switched(Body):
    model: Line = Field(description="The alias, as it is written.")
    target: Line = Field(description="One of its targets, as it is written: upstream/model.")
    state: SwitchState | None = Field(description="null leaves it to the configuration again.")


@router.get("/switches", responses=responses(401, 503))
async def list_switches(request: Request) -> Switches:
    """All of them, of aliases that are gone as well."""
    return await shown(request)


@router.put("/switches", responses=responses(400, 401, 404, 409, 413, 422, 503))
async def switch(request: Request, wanted: Switched) -> Switches:
    """Pin a target, disable it, or release it. All gateways on this store follow within seconds,
    and whatever starts later. Of an alias one target is pinned: who pins another releases it."""
    gateway: Gateway = request.app.state.gateway()
    if wanted.state is not None:
        check(gateway.snapshot, request.app.state.desk.store, wanted.model, wanted.target)
    await (await admin_of(request)).switch(wanted.model, wanted.target, wanted.state)
    return await shown(request)


async def shown(request: Request) -> Switches:
    gateway: Gateway = request.app.state.gateway()
    found = await (await admin_of(request)).list_switches()
    return Switches(
        rows=[switch_shown(one) for one in found],
        held=held(gateway.snapshot, request.app.state.desk.store),
    )


def switch_shown(one: Switch) -> SwitchShown:
    return SwitchShown(
        model=one.model, target=one.target, state=one.state, by=one.by, at=str(shown_at(one.at))
    )


def check(snapshot: Snapshot, store: object, model: str, target: str) -> None:
    """404 for what the configuration does not know; 409 where nothing would come of it."""
    if not held(snapshot, store):
        raise Denied(409, "switchboard_missing", NOT_HELD)
    found = next((one for one in snapshot.models.aliases if one.name == model), None)
    if found is None:
        raise absent("alias")
    labels = [one.label for one in found.choices]
    if target not in labels:
        message = f"{model} has no target {target}.{suggestion(target, labels)}"
        raise Denied(404, "not_found", message, "body.target")


NOT_HELD = (
    "The gateway would not go by it: in its chain the filter alias has to name the store, as in "
    "alias: {switchboard: books}."
)
