"""Keys in JSON: as the admin API has them, within the organisation of who has signed in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from passy_plugins.api.admin_keys import (
    KeyFields,
    KeyMade,
    KeyShown,
    KeysShown,
    Rolling,
    shown,
    tupled,
)
from passy_plugins.api.errors import responses
from passy_plugins.api.levels import fields, limits_of
from passy_plugins.api.words import Cursor, Id, Line, Shown, shown_at
from passy_plugins.stores.sql.key_list import KeyKind, Order, State
from passy_plugins.stores.sql.reports import Asked
from passy_portal import owned
from passy_portal.pages.key_list import Address, asked_of
from passy_portal.pages.reading import narrowed, now
from passy_portal.view import accounts_of, visitor_of

router = APIRouter(tags=["keys"])


class NewOwn(KeyFields):
    """Whose it is cannot be said: it is of who makes it."""

    is_test: bool = Field(default=False, description="It reaches nothing that costs.")
    is_trial: bool = False


class OwnChange(KeyFields):
    disabled: bool = False


class Used(Shown):
    """Whether a key was used."""

    requests: int
    last_used_at: str | None


class KeysQuery(Shown):
    search: Line = Field(default="", description="A part of what people know it by.")
    state: State | None = None
    team: Id | None = Field(default=None, description="Of a team; none is those of no team.")
    kind: KeyKind | None = None
    order: Order = "oldest"
    limit: int = Field(default=100, ge=1, le=1_000)
    cursor: Cursor | None = None


CHANGE = responses(400, 401, 403, 404, 413, 415, 422, 503)


@router.get("/api/keys", responses=responses(401, 422, 503))
async def list_keys(request: Request, query: Annotated[KeysQuery, Query()]) -> KeysShown:
    """Those that who asks may see."""
    lists = (await accounts_of(request)).admin.lists
    address = Address(q=query.search, status=query.state, team=query.team or "", kind=query.kind,
                      sort=query.order)  # fmt: skip
    page = await lists.keys_of(asked_of(visitor_of(request), address), query.limit, query.cursor)
    return KeysShown(rows=[KeyShown(**shown(one.key)) for one in page.rows], cursor=page.cursor)


@router.post("/api/keys", status_code=201, responses=responses(400, 401, 403, 413, 415, 422, 503))
async def create_key(request: Request, new: NewOwn) -> KeyMade:
    """Make a key and show it, this once."""
    wanted = {
        "name": new.name,
        "email": new.email,
        "description": new.description,
        "team": new.team,
        "tags": tuple(new.tags),
        "limits": limits_of(new.limits),
        "models": tupled(new.models),
        "networks": tupled(new.networks),
        "upstreams": tupled(new.upstreams),
        "usage_limit": new.usage_limit,
        "usage_period": new.usage_period,
        "usage_unit": new.usage_unit,
        "expires": new.expires_at.timestamp() if new.expires_at else None,
        "is_test": new.is_test,
        "is_trial": new.is_trial,
    }
    made, key = await owned.create(await accounts_of(request), visitor_of(request), wanted)
    return KeyMade(key=key, **shown(made))


@router.get("/api/keys/{id}", responses=responses(400, 401, 404, 422, 503))
async def show_key(request: Request, id: Id) -> KeyShown:
    """What is known of one."""
    accounts = await accounts_of(request)
    return KeyShown(**shown(await owned.key_of(accounts, visitor_of(request), id)))


@router.patch("/api/keys/{id}", responses=CHANGE)
async def change_key(request: Request, id: Id, change: OwnChange) -> KeyShown:
    """Change what is named. What kind of key it is, and whose, stays."""
    named = fields(change)
    if "expires_at" in named:
        moment = named.pop("expires_at")
        named["expires"] = moment.timestamp() if moment else None
    accounts = await accounts_of(request)
    return KeyShown(**shown(await owned.change(accounts, visitor_of(request), id, named)))


@router.post("/api/keys/{id}/roll", responses=CHANGE)
async def roll_key(request: Request, id: Id, rolling: Rolling | None = None) -> KeyMade:
    """Another secret for the same key, shown this once; the old one stays good for a while."""
    grace = (rolling or Rolling()).grace_seconds
    made, key = await owned.roll(await accounts_of(request), visitor_of(request), id, grace)
    return KeyMade(key=key, **shown(made))


@router.delete("/api/keys/{id}", status_code=204, responses=CHANGE)
async def delete_key(request: Request, id: Id) -> Response:
    """For good. What it has spent stays in the books."""
    await owned.remove(await accounts_of(request), visitor_of(request), id)
    return Response(status_code=204)


@router.get("/api/keys/{id}/used", responses=responses(400, 401, 404, 422, 503))
async def used(request: Request, id: Id) -> Used:
    """Whether a key was used by now, as the books have it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    key = await owned.key_of(accounts, visitor, id)
    asked = Asked(int(key.created * 1000), now(), narrowed(visitor, {"key": id}))
    totals = await accounts.admin.reports.totals(asked)
    return Used(requests=totals.requests, last_used_at=shown_at(key.last_used))
