"""Joining an organisation by invitation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_portal.accounts import Accounts
from passy_portal.audit import Who
from passy_portal.door import PLAIN, Form, address, is_safe
from passy_portal.identities import has_identity
from passy_portal.links import GONE, Invitation
from passy_portal.pages.sessions import ask_second, begun, signed_in
from passy_portal.view import accounts_of, moved, page, said

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()


@router.get("/join")
async def join(request: Request, link: str = "") -> Response:
    """The page for who was invited."""
    accounts = await accounts_of(request)
    found = await accounts.invitation("invitation", link)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    return await _joining(request, accounts, found, link)


@router.post("/join")
async def joined(request: Request) -> Response:
    """A place in an organisation: for somebody new, or for who shows that the account is theirs."""
    form: Form = request.state.form
    token, name, password = form.secret("token"), form.text("name"), form.secret("password")
    form.end()
    accounts = await accounts_of(request)
    found = await accounts.invitation("invitation", token)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    try:
        if not is_safe(request):
            raise ValueError(PLAIN)
        user = await _member(request, accounts, found, name, password)
    except (ValueError, Denied) as error:
        return await _joining(request, accounts, found, token, said(error))
    if await accounts.factors.confirmed(user):
        return await ask_second(request, accounts, user, found.email, found.organisation, "/")
    cookie = await begun(request, accounts, user, found.organisation)
    assert cookie is not None
    response = moved(request, "/")
    signed_in(request, response, accounts, cookie, found.email)
    return response


async def _joining(
    request: Request, accounts: Accounts, found: Invitation, token: str, error: str = ""
) -> Response:
    organisation = await accounts.admin.get_organisation(found.organisation)
    user = await accounts.admin.user_of(found.email)
    office = request.app.state.office
    return page(
        request, "join.html", status=422 if error else 200, token=token, found=found,
        organisation=organisation, known=bool(user and await accounts.has_password(user.id)),
        error=error, providers=list(office.providers.values()),
        passwords=await _may_have_password(request, accounts, found),
    )  # fmt: skip


async def _may_have_password(request: Request, accounts: Accounts, found: Invitation) -> bool:
    """Not where passwords are for owners. And who has an account without one proves that it is
    theirs where they sign in: else whoever invites them could give themselves their account."""
    if request.app.state.office.settings.passwords == "owners" and found.role != "owner":
        return False
    user = await accounts.admin.user_of(found.email)
    if user is None or await accounts.has_password(user.id):
        return True
    return not await has_identity(accounts, user.id)


async def _member(
    request: Request, accounts: Accounts, found: Invitation, name: str, password: str
) -> str:
    """The user who takes an invitation. ValueError for a password that is wrong or weak."""
    admin, place = accounts.admin, address(request)
    if not await _may_have_password(request, accounts, found):
        raise Denied(403, "not_allowed", "Join with the provider you sign in with.")
    user = await admin.user_of(found.email)
    if known := user is not None and await accounts.has_password(user.id):
        if await accounts.throttle.enter(found.email, place) > 0:
            raise ValueError("Too many tries. Wait a moment, then try again.")
        if await accounts.known(found.email, password) is None:
            raise ValueError("This is not the password of your account.")
        await accounts.throttle.forgive(found.email, place)
    hashed = "" if known else await accounts.passwords.hash(password)
    who = Who(found.organisation, user.id if user else "", place)
    async with accounts.noting(who, "member.join", after={"role": found.role}) as noted:
        if not await accounts.void(found.organisation, found.id):
            raise ValueError(GONE)
        user = user or await admin.create_user(found.email, name)
        if not known:
            await accounts.set_password(user.id, hashed)
        await admin.set_member(found.organisation, user.id, found.role)
        noted.subject = user.id
    return user.id
