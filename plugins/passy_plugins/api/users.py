"""Users: those who sign in, or whom another service knows."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import (
    IfMatch,
    Searching,
    admin_of,
    editing,
    present,
    tagged,
)
from passy_plugins.api.errors import responses
from passy_plugins.api.levels import Level, LimitsShown, fields, limits_shown
from passy_plugins.api.words import Email, Id, Line, Shown, UserId, shown_at
from passy_proxy.issue import User

router = APIRouter(tags=["users"])


class NewUser(Level):
    id: UserId | None = Field(
        default=None, description="The one that another service knows them by."
    )
    email: Email | None = None
    name: Line = ""


class UserChange(Level):
    email: Email | None = None
    name: Line = ""
    status: Literal["active", "disabled"] = "active"


class UserShown(Shown):
    id: str
    email: str | None
    name: str
    status: str
    limits: LimitsShown
    models: list[str] | None
    created_at: str | None


class UsersQuery(Searching):
    organisation: Id | None = Field(default=None, description="Its members only.")


class Users(Shown):
    rows: list[UserShown]
    cursor: str | None


ONE = responses(400, 401, 404, 422, 503)


@router.post("/users", status_code=201, responses=responses(400, 401, 409, 413, 422, 503))
async def create_user(request: Request, new: NewUser) -> UserShown:
    """Enter a user."""
    named, admin = fields(new), await admin_of(request)
    if new.id is None:
        named.pop("id", None)
    elif await admin.get_user(new.id) is not None:
        raise taken(f"There is a user {new.id} already.", "body.id")
    email = named.pop("email", None)
    await free(request, email)
    return user(await admin.create_user(email, **named))


@router.get("/users", responses=responses(400, 401, 422, 503))
async def list_users(request: Request, query: Annotated[UsersQuery, Query()]) -> Users:
    """All of them, oldest first."""
    values = {} if query.organisation is None else {"organisation": query.organisation}
    lists = (await admin_of(request)).lists
    page = await lists.users(values, query.search, query.limit, query.cursor)
    return Users(rows=[user(one) for one in page.rows], cursor=page.cursor)


@router.get("/users/{id}", responses=ONE)
async def show_user(request: Request, response: Response, id: UserId) -> UserShown:
    """What is known of one."""
    return tagged(response, await known(request, id))


@router.patch("/users/{id}", responses=responses(400, 401, 404, 409, 412, 413, 422, 503))
async def change_user(
    request: Request, response: Response, id: UserId, change: UserChange, if_match: IfMatch = None
) -> UserShown:
    """Change what is named. The keys of somebody disabled let nobody in."""
    async with editing(request, id, if_match, lambda: known(request, id)) as admin:
        await free(request, change.email, id)
        present(await admin.change_user(id, **fields(change)), "user")
        return tagged(response, await known(request, id))


@router.delete("/users/{id}", status_code=204, responses=ONE)
async def delete_user(request: Request, id: UserId) -> Response:
    """With their keys and places. What was spent stays in the books."""
    present(await (await admin_of(request)).delete_user(id), "user")
    return Response(status_code=204)


async def free(request: Request, email: str | None, but: str = "") -> None:
    """409 where another user has the e-mail."""
    if email is not None:
        found = await (await admin_of(request)).user_of(email)
        if found is not None and found.id != but:
            raise taken(f"There is a user {email} already.", "body.email")


def taken(message: str, param: str) -> Denied:
    return Denied(409, "exists_already", message, param)


async def known(request: Request, id: str) -> UserShown:
    return user(present(await (await admin_of(request)).get_user(id), "user"))


def user(one: User) -> UserShown:
    return UserShown(
        id=one.id,
        email=one.email,
        name=one.name,
        status=one.status,
        limits=limits_shown(one.limits),
        models=None if one.models is None else list(one.models),
        created_at=shown_at(one.created),
    )
