"""Teams of an organisation: made, renamed, disabled and deleted; the members and keys in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.keys_routes import state
from passy_plugins.api.words import Id
from passy_plugins.stores.sql.reports import Asked
from passy_portal import fields, owned, playing
from passy_portal.accounts import Accounts, Visitor
from passy_portal.door import Form
from passy_portal.pages.reading import month, narrowed, tomorrow
from passy_portal.placing import place, teams_of
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy.issue import Team

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

MOST = 200
"""Keys that are shown, and that can be moved at once."""


@router.post("/teams")
async def create_team(request: Request) -> Response:
    """An empty one, and its page."""
    form: Form = request.state.form
    name = form.text("name")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await check_name(accounts, visitor, name)
    async with accounts.noting(visitor.who, "team.create", after={"name": name}) as noted:
        made = await accounts.admin.create_team(visitor.organisation, name)
        noted.subject = made.id
    return moved(request, f"/teams/{made.id}", "team")


@router.get("/teams/{id}")
async def show_team(request: Request, id: Id) -> Response:
    """Who and what is in it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    return await _page(request, await team_of(accounts, visitor, id))


@router.post("/teams/{id}")
async def change_team(request: Request, id: Id) -> Response:
    """Another name, or whether its keys let anybody in."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    form: Form = request.state.form
    try:
        name, status = form.text("name"), fields.one_of(form, "status", ("active", "disabled"))
        form.end()
        await check_name(accounts, visitor, name, team.id)
    except Denied as error:
        return await _page(request, team, str(error), error.param or "", error.status)
    before = {"name": team.name, "status": team.status}
    after = {"name": name, "status": status}
    async with accounts.noting(visitor.who, "team.change", id, before, after):
        if not await accounts.admin.change_team(id, **after):
            raise absent("team")
    return moved(request, f"/teams/{id}", "saved")


@router.post("/teams/{id}/members")
async def place_member(request: Request, id: Id) -> Response:
    """Somebody comes in, with their keys where that is said, or goes out."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    form: Form = request.state.form
    user, does = form.text("user"), fields.one_of(form, "do", ("in", "out"))
    along = form.text("keys") == "along"
    form.end()
    await put_member(accounts, visitor, team, user, does == "in", along)
    return moved(request, f"/teams/{id}", "saved")


@router.post("/teams/{id}/keys")
async def place_key(request: Request, id: Id) -> Response:
    """A key comes in, or goes out."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    form: Form = request.state.form
    key, does = form.text("key_id"), fields.one_of(form, "do", ("in", "out"))
    form.end()
    found = await owned.key_of(accounts, visitor, key)
    if does == "out" and found.team != team.id:
        raise absent("key")
    await owned.change(accounts, visitor, key, {"team": id if does == "in" else None})
    return moved(request, f"/teams/{id}", "saved")


@router.post("/teams/{id}/delete")
async def delete_team(request: Request, id: Id) -> Response:
    """With its keys, for who types its name."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    team = await team_of(accounts, visitor, id)
    form: Form = request.state.form
    typed = form.text("typed")
    form.end()
    if typed != team.name:
        message = f"To delete it, type its name: {team.name}"
        return await _page(request, team, message, "typed", 422)
    keys = [key.id for key in await _keys(accounts, visitor) if key.team == id]
    before = {"name": team.name, "keys": keys}
    async with accounts.noting(visitor.who, "team.delete", id, before):
        if not await accounts.admin.delete_team(id):
            raise absent("team")
    return moved(request, "/team", "team_deleted")


async def team_of(accounts: Accounts, visitor: Visitor, id: str) -> Team:
    """404 for one of another organisation; for a developer also where none of their keys is, nor
    they."""
    found = await accounts.admin.get_team(id)
    if found is None or found.organisation != visitor.organisation:
        raise absent("team")
    if visitor.role == "developer":
        own = (await teams_of(accounts.admin, visitor.organisation)).get(visitor.user)
        if own != id and not any(key.team == id for key in await _keys(accounts, visitor)):
            raise absent("team")
    return found


async def check_name(accounts: Accounts, visitor: Visitor, name: str, but: str = "") -> None:
    """422 without a name, 409 for one that another team has."""
    if not name:
        raise fields.wrong("Give the team a name.", "name")
    for team in await accounts.admin.list_teams(visitor.organisation):
        if team.name.lower() == name.lower() and team.id != but:
            raise Denied(409, "exists_already", f"There is a team {team.name} already.", "name")


async def put_member(
    accounts: Accounts, visitor: Visitor, team: Team, user: str, comes: bool, along: bool
) -> None:
    """``along``: the keys they hold come along."""
    admin, mine = accounts.admin, visitor.organisation
    if not any(one.user_id == user for one in await admin.list_members(mine)):
        raise absent("member")
    was = (await teams_of(admin, mine)).get(user)
    if not comes and was != team.id:
        raise absent("member")
    moved_keys = []
    async with accounts.noting(visitor.who, "team.member", user, {"team": was}) as noted:
        await place(admin, mine, user, team.id if comes else None)
        if comes and along:
            for key in await admin.keys_within(mine):
                if key.user_id == user and key.team != team.id:
                    await admin.change_key(key.id, team=team.id)
                    moved_keys.append(key.id)
        noted.after = {"team": team.id if comes else None, "keys_moved": moved_keys}


async def _keys(accounts: Accounts, visitor: Visitor) -> list[Any]:
    keys = await accounts.admin.keys_within(visitor.organisation)
    return [key for key in keys if owned.sees(visitor, key) and playing.TAG not in key.tags]


async def _page(
    request: Request, team: Team, error: str = "", at: str = "", status: int = 200
) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    admin, mine = accounts.admin, visitor.organisation
    keys = await _keys(accounts, visitor)
    inside = [key for key in keys if key.team == team.id]
    users = {user.id: user.email or user.name or user.id for user in await admin.list_users(mine)}
    placed = await teams_of(admin, mine)
    asked = Asked(month(), tomorrow(), narrowed(visitor, {"team": team.id}))
    names = {one.id: one.name for one in await admin.list_teams(mine)}
    return page(
        request, "team_one.html", status=status, team=team, error=error, at=at,
        keys=[(key, owned.title(key), state(key), users.get(key.user_id or "", ""))
              for key in inside[:MOST]],
        others=[(key.id, owned.title(key)) for key in keys if key.team != team.id][:MOST],
        hidden=max(0, len(inside) - MOST),
        members=[(id, name) for id, name in users.items() if placed.get(id) == team.id],
        outside=[(id, name, names.get(placed.get(id, ""), ""))
                 for id, name in users.items() if placed.get(id) != team.id],
        sums=await admin.reports.totals(asked),
    )  # fmt: skip
