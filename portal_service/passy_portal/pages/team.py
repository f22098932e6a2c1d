"""Team: who is a member, what they may do, who was invited, and what was changed by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import APIRouter, Query, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Id, UserId
from passy_portal import audit, membership
from passy_portal.door import Form
from passy_portal.letters import invitation_sent
from passy_portal.placing import teams_of
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy.issue import ROLES, Role

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

ENTRIES = 50
ABOUT: dict[Role, str] = {
    "owner": "everything, and names other owners",
    "admin": "everything but owners",
    "developer": "their own keys and what those spent",
    "viewer": "sees all, changes nothing",
    "billing": "sees all, changes nothing; for who pays",
}


@router.get("/team")
async def team(request: Request) -> Response:
    """Members and invitations."""
    return await _page(request)


@router.post("/team/invite")
async def invite(request: Request) -> Response:
    """A link for somebody, shown this once, and mailed where there is a server for that."""
    form: Form = request.state.form
    email, role = form.text("email", 254), form.text("role")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        if email.count("@") != 1 or " " in email or "@" in (email[0], email[-1]):
            raise Denied(422, "invalid_value", "This is no e-mail address.", "email")
        token = await membership.invite(accounts, visitor, email, cast(Role, role))
    except Denied as error:
        return await _page(request, str(error), error.status, email=email, role=role)
    return await invited_page(request, email, role, token)


async def invited_page(request: Request, email: str, role: str, token: str) -> Response:
    """Members and invitations, and the link of one that was made just now."""
    link, undelivered = await invitation_sent(request, email, role, token)
    return await _page(
        request, link=link, invited=email,
        sent="yes" if undelivered == "" else "", why=undelivered or "",
    )  # fmt: skip


@router.post("/team/{user_id}/role")
async def change_role(request: Request, user_id: UserId) -> Response:
    """Another role. Their sessions end: what they may do has changed."""
    form: Form = request.state.form
    role = form.text("role")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await membership.change_role(accounts, visitor, user_id, cast(Role, role))
    return moved(request, "/team", "role")


@router.post("/team/{user_id}/remove")
async def remove(request: Request, user_id: UserId) -> Response:
    """They are no member any more. Their keys here are disabled, kept, or somebody else's."""
    form: Form = request.state.form
    keys, heir = form.text("keys") or "disable", form.text("heir")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await membership.remove(accounts, visitor, user_id, keys, heir)
    return moved(request, "/team", "removed")


@router.post("/team/invitations/{id}/resend")
async def resend(request: Request, id: Id) -> Response:
    """Another link for who was invited; the former one is good no more."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found, token = await membership.invite_again(accounts, visitor, id)
    return await invited_page(request, found.email, found.role, token)


@router.post("/team/invitations/{id}/withdraw")
async def withdraw(request: Request, id: Id) -> Response:
    """Its link is good no more."""
    request.state.form.end()
    await membership.withdraw(await accounts_of(request), visitor_of(request), id)
    return moved(request, "/team", "withdrawn")


@router.post("/team/second")
async def require_second(request: Request) -> Response:
    """Have all members show a second factor, or not."""
    form: Form = request.state.form
    wanted = form.text("wanted") == "yes"
    form.end()
    await membership.require_second(await accounts_of(request), visitor_of(request), wanted)
    return moved(request, "/team", "asked" if wanted else "unasked")


@router.get("/audit")
async def audit_log(
    request: Request, before: Annotated[int | None, Query(ge=1, le=1 << 62)] = None
) -> Response:
    """Who changed what, and whether the log is as it was written."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    async with accounts.admin.connected() as connection:
        found = await audit.entries(connection, visitor.organisation, before, ENTRIES + 1)
        broken = await audit.broken(connection, accounts.admin.keyring)
    users = {user.id: user.email or user.name for user in await accounts.admin.list_users()}
    more = found[ENTRIES - 1].seq if len(found) > ENTRIES else None
    return page(
        request, "audit.html", entries=found[:ENTRIES], users=users, more=more, broken=broken,
        before=before,
    )  # fmt: skip


async def _page(
    request: Request,
    error: str = "",
    status: int = 200,
    **typed: str,
) -> Response:
    """``typed``: into the form of an invitation, and what came of it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    admin, mine = accounts.admin, visitor.organisation
    members = await membership.listed(accounts, visitor)
    keys: dict[str, int] = {}
    teams = {team.id: team for team in await admin.list_teams(mine)}
    sizes = dict.fromkeys(teams, 0)
    for key in await admin.keys_within(mine):
        keys[key.user_id or ""] = keys.get(key.user_id or "", 0) + 1
        if key.team in sizes:
            sizes[key.team] += 1
    owners = sum(one.role == "owner" for one, _ in members)
    given: dict[str, Any] = {
        "email": "",
        "role": "developer",
        "link": "",
        "invited": "",
        "sent": "",
        "why": "",
        **typed,
    }
    return page(
        request, "team.html", status=status, members=members, owners=owners,
        invitations=await accounts.invitations(mine), about=ABOUT, error=error,
        keys=keys, teams=teams, sizes=sizes, placed=await teams_of(admin, mine),
        second_required=await accounts.factors.required(mine),
        **given,
        roles=[one for one in ROLES if one != "owner" or visitor.role == "owner"],
    )  # fmt: skip
