"""One member: their role, another password for who has lost theirs, and the whole organisation for
who shall own it. And invitations that are sent once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import UserId
from passy_portal import membership
from passy_portal.accounts import Accounts
from passy_portal.audit import Who
from passy_portal.door import PLAIN, Form, address, is_safe
from passy_portal.identities import identities_of
from passy_portal.letters import reset_sent
from passy_portal.links import GONE, Invitation
from passy_portal.pages.sessions import begun, signed_in
from passy_portal.view import accounts_of, moved, page, said, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

RESETS = ("reset", "reset-all", "mailed", "mailed-all")
"""Kinds of links: those that were shown to who made them, those that were not; and with ``-all``
the second factor goes too."""


@router.get("/team/{user_id}")
async def member(request: Request, user_id: UserId) -> Response:
    """What an organisation knows of one of its members."""
    return await _page(request, user_id)


@router.post("/team/{user_id}/transfer")
async def transfer(request: Request, user_id: UserId) -> Response:
    """They are the owner, and who was it is an admin. Sessions of both begin anew."""
    form: Form = request.state.form
    typed = form.text("typed")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if user_id != visitor.user and typed != visitor.organisation_name:
        error = f"Type the name of the organisation: {visitor.organisation_name}."
        return await _page(request, user_id, error, 422)
    await membership.transfer(accounts, visitor, user_id)
    mine = visitor.organisation
    cookie = await begun(request, accounts, visitor.user, mine, second=visitor.second)
    assert cookie is not None
    response = moved(request, "/team", "transferred")
    signed_in(request, response, accounts, cookie, visitor.email)
    return response


@router.post("/team/{user_id}/reset")
async def make_reset(request: Request, user_id: UserId) -> Response:
    """A link by which they choose another password. Where they are a member of something else as
    well it is mailed to them and shown to nobody: an account is not one organisation's."""
    form: Form = request.state.form
    second = form.text("second") == "yes"
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    mails = request.app.state.office.mailer is not None
    try:
        user, token, seen = await membership.reset_token(
            accounts, visitor, user_id, second=second, mails=mails
        )
    except Denied as denied:
        if denied.status == 404:
            raise
        return await _page(request, user_id, str(denied), denied.status)
    link, undelivered = await reset_sent(request, user.email or "", token)
    if not seen:
        error = f"It was not sent: {undelivered}." if undelivered else ""
        return await _page(request, user_id, error, 502 if error else 200, sent=not error)
    return await _page(request, user_id, link=link, sent=undelivered == "", why=undelivered or "")


@router.get("/reset")
async def reset(request: Request, link: str = "") -> Response:
    """The page for who was sent such a link."""
    accounts = await accounts_of(request)
    found = await _found(accounts, link)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    error = "" if is_safe(request) else PLAIN
    return page(request, "reset.html", token=link, found=found, error=error)


@router.post("/reset")
async def choose(request: Request) -> Response:
    """Another password. All sessions end; a second factor stays, unless the link says otherwise."""
    form: Form = request.state.form
    token, password = form.secret("token"), form.secret("password")
    form.end()
    accounts = await accounts_of(request)
    found = await _found(accounts, token)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    user = found.made_by
    try:
        if not is_safe(request):
            raise ValueError(PLAIN)
        hashed = await accounts.passwords.hash(password)
        who = Who(found.organisation, user, address(request))
        async with accounts.noting(who, "account.reset", user) as noted:
            if not await accounts.void(found.organisation, found.id):
                raise ValueError(GONE)
            await accounts.set_password(user, hashed)
            if found.kind.endswith("-all"):
                noted.after = {"second_factor": await accounts.factors.drop(user)}
    except ValueError as error:
        return page(request, "reset.html", status=422, token=token, found=found, error=said(error))
    return moved(request, "/login", "password")


async def _found(accounts: Accounts, token: str) -> Invitation | None:
    for kind in RESETS:
        found = await accounts.invitation(kind, token)
        if found is not None and await accounts.resettable(found):
            return found
    return None


async def _page(
    request: Request, id: str, error: str = "", status: int = 200, **made: str | bool
) -> Response:
    """``made``: a ``link`` of just now, whether it was ``sent``, or ``why`` not."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    place, user = await membership.member_of(accounts, visitor, id)
    keys = [
        one for one in await accounts.admin.list_keys(visitor.organisation) if one.user_id == id
    ]
    sessions = await accounts.sessions_of(id)
    identities = await identities_of(accounts, request.app.state.office.providers, id)
    given: dict[str, Any] = {"link": "", "sent": False, "why": "", **made}
    return page(
        request, "member.html", status=status, error=error, place=place, user=user,
        keys=len(keys), factor=await accounts.factors.confirmed(id),
        seen=sessions[0].seen if sessions else None, mine=user.id == visitor.user,
        alone=len(await accounts.admin.places_of(id)) == 1,
        mails=request.app.state.office.mailer is not None, identities=identities,
        password=await accounts.has_password(id), **given,
    )  # fmt: skip
