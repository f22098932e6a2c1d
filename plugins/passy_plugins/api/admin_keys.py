"""Keys, as their operator sees them: everything that can be set of one, and of everybody's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from passy_plugins.api.editing import (
    IfMatch,
    Searching,
    admin_of,
    editing,
    present,
    tagged,
)
from passy_plugins.api.errors import responses
from passy_plugins.api.keys_routes import GRACE, LONGEST_GRACE, state
from passy_plugins.api.levels import (
    Level,
    LimitsSent,
    LimitsShown,
    fields,
    limits_of,
    limits_shown,
)
from passy_plugins.api.words import (
    Body,
    Email,
    Id,
    Line,
    Moment,
    Name,
    Shown,
    UserId,
    Whole,
    shown_at,
)
from passy_plugins.stores.sql.issued import MOST_TOKENS as MOST
from passy_proxy.issue import IssuedKey, NewKey, Unit
from passy_proxy.periods import Period

router = APIRouter(tags=["keys"])

Tag = Annotated[Name, Field(max_length=64, pattern=r"^[^,]*[^,\s][^,]*$")]
Tags = Annotated[list[Tag], Field(max_length=16)]
Networks = Annotated[list[Annotated[str, Field(max_length=60)]], Field(max_length=100)]
Upstreams = Annotated[list[Name], Field(max_length=100)]


class KeyFields(Level):
    """What can be said of a key by whoever it belongs to."""

    name: Line = ""
    email: Email | None = None
    description: Line = ""
    team: Id | None = None
    tags: Tags = Field(default=[], description="Usage can be asked for by them.")
    networks: Networks | None = Field(
        default=None,
        description="Where it may be used from: 203.0.113.7, 10.0.0.0/8; null is anywhere.",
    )
    upstreams: Upstreams | None = Field(
        default=None,
        description="The shared upstreams it may reach; null is any, for a test key echo.",
    )
    usage_limit: Annotated[float, Field(ge=0, le=MOST)] | None = Field(
        default=None,
        description="What it may use in each usage_period, of usage_unit; null is no limit.",
    )
    usage_period: Period = "total"
    usage_unit: Unit = Field(default="usd", description="US dollars, or tokens in and out.")
    expires_at: Moment | None = None


class KeyLevel(KeyFields):
    """What can be said of a key at its making and later."""

    user: UserId | None = Field(
        default=None, description="May be one that only another service knows."
    )


class NewKeyBody(KeyLevel):
    organisation: Id | None = None
    is_test: bool = Field(default=False, description="It reaches nothing that costs.")
    is_trial: bool = False


class KeyChange(KeyLevel):
    disabled: bool = False


class Rolling(Body):
    grace_seconds: Whole = Field(
        default=GRACE, ge=0, le=LONGEST_GRACE, description="How long the old key stays good."
    )


class KeyShown(Shown):
    """A key as it may be shown again: everything but the key."""

    id: str
    shown: str = Field(description="Its beginning and its end.")
    name: str
    email: str | None
    description: str
    organisation: str | None
    team: str | None
    user: str | None
    tags: list[str]
    limits: LimitsShown
    models: list[str] | None
    networks: list[str] | None
    upstreams: list[str] | None
    usage_limit: float | None
    usage_period: Period | None
    usage_unit: Unit | None
    is_test: bool
    is_trial: bool
    state: Literal["active", "disabled", "expired"]
    expires_at: str | None
    created_at: str | None
    created_by: str | None
    last_used_at: str | None
    old_key_until: str | None = Field(description="Until when the key before it is good.")


class KeyMade(KeyShown):
    key: str = Field(description="The key itself. It is shown this once.")


class KeysShown(Shown):
    rows: list[KeyShown]
    cursor: str | None


class KeysQuery(Searching):
    organisation: Id | None = None
    team: Id | None = None
    user: UserId | None = None


ONE = responses(400, 401, 404, 422, 503)
EDIT = responses(400, 401, 404, 412, 413, 422, 503)


@router.post("/keys", status_code=201, responses=responses(400, 401, 413, 422, 503))
async def create_key(request: Request, new: NewKeyBody) -> KeyMade:
    """Make a key and show it, this once."""
    wanted = NewKey(
        name=new.name,
        email=new.email,
        description=new.description,
        organisation=new.organisation,
        team=new.team,
        user_id=new.user,
        tags=tuple(new.tags),
        limits=limits_of(new.limits or LimitsSent()),
        models=tupled(new.models),
        networks=tupled(new.networks),
        upstreams=tupled(new.upstreams),
        usage_limit=new.usage_limit,
        usage_period=new.usage_period,
        usage_unit=new.usage_unit,
        expires=new.expires_at.timestamp() if new.expires_at else None,
        is_test=new.is_test,
        is_trial=new.is_trial,
        created_by="admin",
    )
    record, key = await (await admin_of(request)).create_key(wanted)
    return KeyMade(key=key, **shown(record))


@router.get("/keys", responses=responses(400, 401, 422, 503))
async def list_keys(request: Request, query: Annotated[KeysQuery, Query()]) -> KeysShown:
    """All of them, oldest first."""
    wanted = {"organisation": query.organisation, "team": query.team, "user_id": query.user}
    values = {name: value for name, value in wanted.items() if value is not None}
    lists = (await admin_of(request)).lists
    page = await lists.keys(values, query.search, query.limit, query.cursor)
    return KeysShown(rows=[KeyShown(**shown(one)) for one in page.rows], cursor=page.cursor)


@router.get("/keys/{id}", responses=ONE)
async def show_key(request: Request, response: Response, id: Id) -> KeyShown:
    """What is known of one."""
    return tagged(response, await known(request, id))


@router.patch("/keys/{id}", responses=EDIT)
async def change_key(
    request: Request, response: Response, id: Id, change: KeyChange, if_match: IfMatch = None
) -> KeyShown:
    """Change what is named. What kind of key it is, and whose organisation's, stays."""
    named = fields(change)
    if "user" in named:
        named["user_id"] = named.pop("user")
    if "expires_at" in named:
        moment = named.pop("expires_at")
        named["expires"] = moment.timestamp() if moment else None
    async with editing(request, id, if_match, lambda: known(request, id)) as admin:
        present(await admin.change_key(id, **named), "key")
        return tagged(response, await known(request, id))


@router.post("/keys/{id}/roll", responses=responses(400, 401, 404, 413, 422, 503))
async def roll_key(request: Request, id: Id, rolling: Rolling | None = None) -> KeyMade:
    """Another secret for the same key, shown this once; the old one stays good for a while."""
    admin = await admin_of(request)
    grace = (rolling or Rolling()).grace_seconds
    record, key = present(await admin.roll_key(id, grace), "key")
    return KeyMade(key=key, **shown(record))


@router.delete("/keys/{id}", status_code=204, responses=ONE)
async def delete_key(request: Request, id: Id) -> Response:
    """For good. What it has spent stays in the books."""
    present(await (await admin_of(request)).delete_key(id), "key")
    return Response(status_code=204)


async def known(request: Request, id: str) -> KeyShown:
    found = await (await admin_of(request)).get_key(id)
    if found is not None and found.deleted is not None:
        found = None
    return KeyShown(**shown(present(found, "key")))


def tupled(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def shown(key: IssuedKey) -> dict[str, Any]:
    """The fields of `KeyShown`."""
    return {
        "id": key.id,
        "shown": key.shown,
        "name": key.name,
        "email": key.email,
        "description": key.description,
        "organisation": key.organisation,
        "team": key.team,
        "user": key.user_id,
        "tags": list(key.tags),
        "limits": limits_shown(key.limits),
        "models": key.models and list(key.models),
        "networks": key.networks and list(key.networks),
        "upstreams": key.upstreams and list(key.upstreams),
        "usage_limit": key.usage_limit,
        "usage_period": key.usage_period,
        "usage_unit": key.usage_unit,
        "is_test": key.is_test,
        "is_trial": key.is_trial,
        "state": state(key),
        "expires_at": shown_at(key.expires),
        "created_at": shown_at(key.created),
        "created_by": key.created_by,
        "last_used_at": shown_at(key.last_used),
        "old_key_until": shown_at(key.old_until),
    }
