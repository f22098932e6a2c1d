"""Teams in JSON: as the admin API has them, within the organisation of who has signed in."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.errors import absent, responses
from passy_plugins.api.organisations import Switch, TeamShown
from passy_plugins.api.organisations import team as shown
from passy_plugins.api.words import Body, Id, Name, Shown, UserId
from passy_portal.pages.api_limits import CHANGE
from passy_portal.pages.teams import check_name, put_member, team_of
from passy_portal.placing import teams_of
from passy_portal.view import accounts_of, visitor_of

router = APIRouter(tags=["teams"])


class NewTeamHere(Body):
    """Its limits are set at /api/limits/team/{id}."""

    name: Name


class TeamChangeHere(Body):
    name: Name = ""
    status: Switch = "active"


class Place(Body):
    keys: bool = Field(default=True, description="Whether the keys they hold come along.")


class TeamsHere(Shown):
    rows: list[TeamShown]
    members: dict[str, str] = Field(description="User → the id of the team they are in.")


@router.get("/api/teams", responses=responses(401, 503))
async def list_teams(request: Request) -> TeamsHere:
    """Those that who asks may see, and who is in them."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    admin, mine = accounts.admin, visitor.organisation
    teams, members = await admin.list_teams(mine), dict(await teams_of(admin, mine))
    if visitor.role == "developer":
        keys = [key for key in await admin.keys_within(mine) if key.user_id == visitor.user]
        own = {key.team for key in keys} | {members.get(visitor.user)}
        teams = [team for team in teams if team.id in own]
        members = {user: team for user, team in members.items() if user == visitor.user}
    return TeamsHere(rows=[shown(team) for team in teams], members=members)


@router.post("/api/teams", status_code=201, responses=CHANGE | responses(409))
async def create_team(request: Request, new: NewTeamHere) -> TeamShown:
    """An empty one."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await check_name(accounts, visitor, new.name)
    async with accounts.noting(visitor.who, "team.create", after={"name": new.name}) as noted:
        made = await accounts.admin.create_team(visitor.organisation, new.name)
        noted.subject = made.id
    return shown(made)


@router.get("/api/teams/{id}", responses=responses(400, 401, 404, 422, 503))
async def show_team(request: Request, id: Id) -> TeamShown:
    """What is known of one."""
    return shown(await team_of(await accounts_of(request), visitor_of(request), id))


@router.patch("/api/teams/{id}", responses=CHANGE | responses(409))
async def change_team(request: Request, id: Id, change: TeamChangeHere) -> TeamShown:
    """Another name, or whether its keys let anybody in."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    after = {name: getattr(change, name) for name in change.model_fields_set}
    if "name" in after:
        await check_name(accounts, visitor, change.name, id)
    before = {name: getattr(team, name) for name in after}
    async with accounts.noting(visitor.who, "team.change", id, before, after):
        if not await accounts.admin.change_team(id, **after):
            raise absent("team")
    return shown(await team_of(accounts, visitor, id))


@router.delete("/api/teams/{id}", status_code=204, responses=CHANGE)
async def delete_team(request: Request, id: Id) -> Response:
    """With its keys. What they spent stays in the books."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    async with accounts.noting(visitor.who, "team.delete", id, {"name": team.name}):
        if not await accounts.admin.delete_team(id):
            raise absent("team")
    return Response(status_code=204)


@router.put("/api/teams/{id}/members/{user_id}", status_code=204, responses=CHANGE)
async def put_in(request: Request, id: Id, user_id: UserId, place: Place | None = None) -> Response:
    """Somebody comes in, out of the team they were in."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    await put_member(accounts, visitor, team, user_id, True, (place or Place()).keys)
    return Response(status_code=204)


@router.delete("/api/teams/{id}/members/{user_id}", status_code=204, responses=CHANGE)
async def take_out(request: Request, id: Id, user_id: UserId) -> Response:
    """Their keys stay where they are."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    await put_member(accounts, visitor, team, user_id, False, False)
    return Response(status_code=204)
