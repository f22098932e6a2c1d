"""Organisations, their teams, and who is a member of them."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.editing import (
    IfMatch,
    Pages,
    Search,
    admin_of,
    editing,
    present,
    tagged,
)
from passy_plugins.api.errors import responses
from passy_plugins.api.levels import Level, LimitsShown, fields, limits_shown
from passy_plugins.api.words import Body, Id, Name, Shown, UserId, shown_at
from passy_proxy.issue import Member, Organisation, Role, Team

router = APIRouter(tags=["organisations"])

Byok = Literal["own_first", "own_only"]
Switch = Literal["active", "disabled"]


class NewOrganisation(Level):
    name: Name
    byok: Byok = Field(
        default="own_first",
        description="Whether the operator's keys serve where it has none of its own.",
    )


class OrganisationChange(Level):
    name: Name = ""
    status: Switch = "active"
    byok: Byok = "own_first"


class OrganisationShown(Shown):
    id: str
    name: str
    status: str
    limits: LimitsShown
    models: list[str] | None
    byok: Byok
    created_at: str | None


class Organisations(Shown):
    rows: list[OrganisationShown]
    cursor: str | None


class NewTeam(Level):
    name: Name


class TeamChange(Level):
    name: Name = ""
    status: Switch = "active"


class TeamShown(Shown):
    id: str
    organisation: str
    name: str
    status: str
    limits: LimitsShown
    models: list[str] | None
    created_at: str | None


class Teams(Shown):
    rows: list[TeamShown]
    cursor: str | None


class Place(Body):
    role: Role


class MemberShown(Shown):
    organisation: str
    user: str
    role: Role
    created_at: str | None


class Members(Shown):
    rows: list[MemberShown]
    cursor: str | None


LIST = responses(400, 401, 404, 422, 503)
ONE = responses(400, 401, 404, 422, 503)
MAKE = responses(400, 401, 404, 409, 413, 422, 503)
EDIT = responses(400, 401, 404, 412, 413, 422, 503)


@router.post("/organisations", status_code=201, responses=responses(400, 401, 413, 422, 503))
async def create_organisation(request: Request, new: NewOrganisation) -> OrganisationShown:
    """Enter an organisation."""
    admin = await admin_of(request)
    named = fields(new)
    id = await admin.create_organisation(named.pop("name"), **named)
    return organisation(present(await admin.get_organisation(id), "organisation"))


@router.get("/organisations", responses=responses(400, 401, 422, 503))
async def list_organisations(request: Request, query: Search) -> Organisations:
    """All of them, oldest first."""
    page = await (await admin_of(request)).lists.organisations(
        query.search, query.limit, query.cursor
    )
    return Organisations(rows=[organisation(one) for one in page.rows], cursor=page.cursor)


@router.get("/organisations/{id}", responses=ONE)
async def show_organisation(request: Request, response: Response, id: Id) -> OrganisationShown:
    """What is known of one."""
    return tagged(response, await known(request, id))


@router.patch("/organisations/{id}", responses=EDIT)
async def change_organisation(
    request: Request,
    response: Response,
    id: Id,
    change: OrganisationChange,
    if_match: IfMatch = None,
) -> OrganisationShown:
    """Change what is named. A disabled one's keys let nobody in."""
    async with editing(request, id, if_match, lambda: known(request, id)) as admin:
        present(await admin.change_organisation(id, **fields(change)), "organisation")
        return tagged(response, await known(request, id))


@router.delete("/organisations/{id}", status_code=204, responses=ONE)
async def delete_organisation(request: Request, id: Id) -> Response:
    """With its keys, teams and places. What was spent stays in the books."""
    present(await (await admin_of(request)).delete_organisation(id), "organisation")
    return Response(status_code=204)


# Teams


@router.post("/organisations/{id}/teams", status_code=201, responses=MAKE)
async def create_team(request: Request, id: Id, new: NewTeam) -> TeamShown:
    """Enter a team of an organisation."""
    await known(request, id)
    named = fields(new)
    made = await (await admin_of(request)).create_team(id, named.pop("name"), **named)
    return team(made)


@router.get("/organisations/{id}/teams", responses=LIST)
async def list_teams(request: Request, id: Id, query: Search) -> Teams:
    """An organisation's teams, oldest first."""
    await known(request, id)
    values = {"organisation": id}
    lists = (await admin_of(request)).lists
    page = await lists.teams(values, query.search, query.limit, query.cursor)
    return Teams(rows=[team(one) for one in page.rows], cursor=page.cursor)


@router.get("/organisations/{id}/teams/{team_id}", responses=ONE)
async def show_team(request: Request, response: Response, id: Id, team_id: Id) -> TeamShown:
    """What is known of one."""
    return tagged(response, await known_team(request, id, team_id))


@router.patch("/organisations/{id}/teams/{team_id}", responses=EDIT)
async def change_team(
    request: Request,
    response: Response,
    id: Id,
    team_id: Id,
    change: TeamChange,
    if_match: IfMatch = None,
) -> TeamShown:  # fmt: skip
    """Change what is named."""

    async def current() -> TeamShown:
        return await known_team(request, id, team_id)

    async with editing(request, team_id, if_match, current) as admin:
        present(await admin.change_team(team_id, **fields(change)), "team")
        return tagged(response, await current())


@router.delete("/organisations/{id}/teams/{team_id}", status_code=204, responses=ONE)
async def delete_team(request: Request, id: Id, team_id: Id) -> Response:
    """With its keys."""
    await known_team(request, id, team_id)
    present(await (await admin_of(request)).delete_team(team_id), "team")
    return Response(status_code=204)


# Members


@router.get("/organisations/{id}/members", responses=LIST)
async def list_members(request: Request, id: Id, query: Pages) -> Members:
    """Who is a member of an organisation."""
    await known(request, id)
    page = await (await admin_of(request)).lists.members(id, query.limit, query.cursor)
    return Members(rows=[member(one) for one in page.rows], cursor=page.cursor)


@router.put("/organisations/{id}/members/{user_id}", responses=MAKE)
async def set_member(request: Request, id: Id, user_id: UserId, place: Place) -> MemberShown:
    """A user's place in an organisation, or another role in it."""
    await known(request, id)
    admin = await admin_of(request)
    present(await admin.get_user(user_id), "user")
    await admin.set_member(id, user_id, place.role)
    places = await admin.places_of(user_id)
    return member(present(next((one for one in places if one.organisation == id), None), "member"))


@router.delete("/organisations/{id}/members/{user_id}", status_code=204, responses=ONE)
async def remove_member(request: Request, id: Id, user_id: UserId) -> Response:
    """Their keys stay."""
    present(await (await admin_of(request)).remove_member(id, user_id), "member")
    return Response(status_code=204)


async def known(request: Request, id: str) -> OrganisationShown:
    found = await (await admin_of(request)).get_organisation(id)
    return organisation(present(found, "organisation"))


async def known_team(request: Request, organisation: str, id: str) -> TeamShown:
    """404 also for a team of another organisation."""
    found = await (await admin_of(request)).get_team(id)
    if found is not None and found.organisation != organisation:
        found = None
    return team(present(found, "team"))


def organisation(one: Organisation) -> OrganisationShown:
    return OrganisationShown(
        id=one.id,
        name=one.name,
        status=one.status,
        limits=limits_shown(one.limits),
        models=None if one.models is None else list(one.models),
        byok=one.byok,
        created_at=shown_at(one.created),
    )


def team(one: Team) -> TeamShown:
    return TeamShown(
        id=one.id,
        organisation=one.organisation,
        name=one.name,
        status=one.status,
        limits=limits_shown(one.limits),
        models=None if one.models is None else list(one.models),
        created_at=shown_at(one.created),
    )


def member(one: Member) -> MemberShown:
    return MemberShown(
        organisation=one.organisation,
        user=one.user_id,
        role=one.role,
        created_at=shown_at(one.created),
    )
