"""The routes of the keys API. Names are in the style of the service it takes over from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import Pages
from passy_plugins.api.errors import absent, responses
from passy_plugins.api.framework import api
from passy_plugins.api.words import (
    Body,
    Email,
    Id,
    Line,
    Shown,
    UserId,
    Whole,
    changed,
    shown_at,
)
from passy_proxy.issue import IssuedKey, NewKey

if TYPE_CHECKING:
    from fastapi import FastAPI
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.api.desk import Desk
    from passy_plugins.stores.sql.admin import Admin

GRACE = 86_400
LONGEST_GRACE = 90 * 86_400
MOST_DOLLARS = 9_000_000

Dollars = Annotated[float, Field(ge=0, le=MOST_DOLLARS)]


class Wanted(Body):
    """A key that somebody wants."""

    model_config = ConfigDict(alias_generator=to_camel)

    email: Email | None = Field(
        default=None, description="Whom to ask about it; a test key has none."
    )
    description: Line | None = Field(default=None, description="A sentence about it.")
    usage_limit: Dollars | None = Field(
        default=None, description="US dollars it may spend in its life; null is no limit."
    )
    is_trial: bool | None = Field(default=False, description="Its description is “Trial Key”.")
    is_test: bool | None = Field(
        default=False, description="Its description is “Test Key”; it reaches nothing that costs."
    )


class Change(Body):
    """What shall be different of a key; what is not named stays."""

    model_config = ConfigDict(alias_generator=to_camel)

    email: Email | None = None
    description: Line = ""
    usage_limit: Dollars | None = None


class Rolling(Body):
    model_config = ConfigDict(alias_generator=to_camel)

    grace_seconds: Whole = Field(
        default=GRACE, ge=0, le=LONGEST_GRACE, description="How long the old key stays good."
    )


class Key(Shown):
    """A key as it may be shown again: everything but the key."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)

    id: str
    shown: str = Field(description="Its beginning and its end.")
    email: str | None
    description: str
    usage_limit: float | None
    is_trial: bool
    is_test: bool
    state: Literal["active", "disabled", "expired"]
    user_id: str | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    old_key_until: str | None = Field(description="Until when the key before it is good.")


class NewOne(Key):
    key: str = Field(description="The key itself. It is shown this once.")


class Keys(Shown):
    keys: list[Key]
    cursor: str | None = Field(description="Where the next page begins.")


class Asker:
    """Whose keys are asked for: a user's, or all, for the holder of the admin token."""

    def __init__(self, user: str | None) -> None:
        self.user = user

    def may_see(self, key: IssuedKey | None) -> bool:
        return key is not None and key.deleted is None and self.user in (None, key.user_id)


User = Annotated[
    UserId | None,
    Header(alias="X-Authenticated-User", description="The id of the user it is asked for."),
]


def asker(request: Request, user: User = None) -> Asker:
    """Reads: a service for one of its users, or an operator for all."""
    if request.scope["state"]["caller"] == "service" and user is None:
        raise Denied(
            422,
            "user_missing",
            "Say for whom you ask in the header X-Authenticated-User.",
            "header.X-Authenticated-User",
        )
    return Asker(user)


def owner(request: Request, asker: Annotated[Asker, Depends(asker)]) -> str:
    """Writes: a service for one of its users, and nobody else."""
    if request.scope["state"]["caller"] != "service" or asker.user is None:
        raise Denied(
            403, "read_only", "The admin token only reads here; it writes at the admin API."
        )
    return asker.user


Asks = Annotated[Asker, Depends(asker)]
Owner = Annotated[str, Depends(owner)]

READ = responses(400, 401, 422, 503)
ONE = responses(400, 401, 404, 422, 503)
WRITE = responses(400, 401, 403, 413, 422, 503)
CHANGE = responses(400, 401, 403, 404, 413, 422, 503)


def made(
    desk: Desk | None, log: FilteringBoundLogger | None, organisation: str = "first"
) -> FastAPI:
    """The application; to be described only where it is given nothing."""
    app = api("passy keys API", ABOUT, log, DESCRIBED)
    app.state.desk = desk
    app.state.organisation = organisation
    app.include_router(router)
    return app


ABOUT = "Keys for the users of a service that shows its secret."
DESCRIBED = {
    "service": {"type": "apiKey", "in": "header", "name": "X-Emby-Secure-Key"},
    "admin": {"type": "http", "scheme": "bearer"},
}
router = APIRouter()


@router.post("/api", status_code=201, responses=WRITE)
async def create_key(request: Request, wanted: Wanted, user: Owner) -> NewOne:
    """Make a key for a user, and show it, this once."""
    admin = await request.app.state.desk.admin()
    new = NewKey(
        organisation=await organisation_of(request, admin),
        email=wanted.email,
        description=wanted.description or "",
        user_id=user,
        usage_limit=wanted.usage_limit,
        is_test=bool(wanted.is_test),
        is_trial=bool(wanted.is_trial),
        created_by=user,
    )
    record, key = await admin.create_key(new)
    return NewOne(key=key, **shown(record))


@router.get("/", name="list_keys_here", responses=READ)
@router.get("/api", responses=READ)
async def list_keys(request: Request, asks: Asks, query: Pages) -> Keys:
    """A user's keys, oldest first; with the admin token and no user, all keys."""
    admin = await request.app.state.desk.admin()
    values = {} if asks.user is None else {"user_id": asks.user}
    page = await admin.lists.keys(values, "", query.limit, query.cursor)
    return Keys(keys=[Key(**shown(one)) for one in page.rows], cursor=page.cursor)


@router.get("/api/{key_id}", responses=ONE)
async def show_key(request: Request, key_id: Id, asks: Asks) -> Key:
    """What is known of a key."""
    return Key(**shown(await found(request, key_id, asks)))


@router.patch("/api/{key_id}", responses=CHANGE)
async def change_key(request: Request, key_id: Id, change: Change, user: Owner) -> Key:
    """Change what a key says, or what it may spend."""
    record = await found(request, key_id, Asker(user))
    if changes := changed(change):
        if "usage_limit" in changes:
            changes = {**changes, "usage_unit": "usd"}
        admin = await request.app.state.desk.admin()
        record = await admin.change_key(key_id, **changes)
    return Key(**shown(present(record)))


@router.post("/api/{key_id}/roll", responses=CHANGE)
async def roll_key(
    request: Request, key_id: Id, user: Owner, rolling: Rolling | None = None
) -> NewOne:
    """Another secret for the same key, shown this once; the old one stays good for a while."""
    await found(request, key_id, Asker(user))
    admin = await request.app.state.desk.admin()
    rolled = await admin.roll_key(key_id, (rolling or Rolling()).grace_seconds)
    record, key = present(rolled)
    return NewOne(key=key, **shown(record))


@router.post("/api/{key_id}/disable", responses=CHANGE)
async def disable_key(request: Request, key_id: Id, user: Owner) -> Key:
    """Nobody gets in with it any more."""
    await found(request, key_id, Asker(user))
    admin = await request.app.state.desk.admin()
    return Key(**shown(present(await admin.disable_key(key_id))))


@router.delete("/api/{key_id}", status_code=204, responses=CHANGE)
async def delete_key(request: Request, key_id: Id, user: Owner) -> Response:
    """For good. What it has spent stays in the books."""
    await found(request, key_id, Asker(user))
    admin = await request.app.state.desk.admin()
    await admin.delete_key(key_id)
    return Response(status_code=204)


async def organisation_of(request: Request, admin: Admin) -> str | None:
    """Whose the keys made here are. 503 where that is one that there is not: its operator has to
    mend it, and a key of nobody's would be seen by nobody."""
    wanted: str = request.app.state.organisation
    if wanted == "none":
        return None
    if wanted == "first":
        return await first_of(admin)
    if await admin.get_organisation(wanted) is None:
        request.app.state.log.error("organisation_missing", organisation=wanted)
        raise Denied(503, "organisation_missing", "The organisation of these keys is not there.")
    return wanted


async def first_of(admin: Admin) -> str:
    """The organisation that was entered first. Where there is none it is entered, and whoever
    becomes the portal's first owner has it."""
    for _ in range(2):
        page = await admin.lists.organisations(limit=1)
        if page.rows:
            first: str = page.rows[0].id
            return first
        async with admin.together("first organisation"):
            if not await admin.list_organisations():
                await admin.create_organisation("Default")
    raise absent("organisation")


async def found(request: Request, key_id: str, asks: Asker) -> IssuedKey:
    """A key that is theirs. 404 also for one that is somebody else's."""
    admin = await request.app.state.desk.admin()
    key: IssuedKey | None = await admin.get_key(key_id)
    if key is None or not asks.may_see(key):
        raise absent("key")
    return key


def present(thing: Any) -> Any:
    """What is there. 404 for what somebody deleted meanwhile."""
    if thing is None:
        raise absent("key")
    return thing


def shown(key: IssuedKey) -> dict[str, Any]:
    """The fields of `Key`."""
    return {
        "id": key.id,
        "shown": key.shown,
        "email": key.email,
        "description": key.description,
        "usage_limit": None if key.usage_unit == "tokens" else key.usage_limit,
        "is_trial": key.is_trial,
        "is_test": key.is_test,
        "state": state(key),
        "user_id": key.user_id,
        "created_at": shown_at(key.created),
        "expires_at": shown_at(key.expires),
        "last_used_at": shown_at(key.last_used),
        "old_key_until": shown_at(key.old_until),
    }


def state(key: IssuedKey) -> str:
    if key.disabled:
        return "disabled"
    return "expired" if key.expires is not None and key.expires <= time.time() else "active"
