"""One's own account: the password, the sessions, and the organisation one works in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.words import Id
from passy_portal import personal
from passy_portal.accounts import Accounts
from passy_portal.door import Form
from passy_portal.identities import identities_of, unlinked
from passy_portal.pages.sessions import begun, signed_in
from passy_portal.view import accounts_of, moved, office_of, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()


@router.get("/account")
async def account(request: Request) -> Response:
    """Who one is here, and where else one has signed in."""
    return await account_page(request)


@router.post("/account/password")
async def change_password(request: Request) -> Response:
    """Another password, for who knows the present one, or a first one, for who has just signed in
    once more. All other sessions end; this one goes on under another id."""
    form: Form = request.state.form
    current, new = form.secret("current"), form.secret("new")
    form.end()
    accounts, visitor, office = await accounts_of(request), visitor_of(request), office_of(request)
    try:
        await personal.change_password(accounts, visitor, office, current, new)
    except Denied as error:
        return await account_page(request, str(error), error.status)
    return await _again(request, accounts, visitor.organisation, "/account", "password")


@router.post("/account/organisation")
async def change_organisation(request: Request) -> Response:
    """Work in another organisation; the session gets another id."""
    form: Form = request.state.form
    wanted = form.text("organisation")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await personal.check_place(accounts, visitor, wanted)
    return await _again(request, accounts, wanted, "/", "")


@router.post("/account/sessions/end")
async def end_others(request: Request) -> Response:
    """All but this one."""
    request.state.form.end()
    await personal.end_others(await accounts_of(request), visitor_of(request))
    return moved(request, "/account", "ended")


@router.post("/account/sessions/{id}/end")
async def end_session(request: Request, id: Id) -> Response:
    """One of one's own."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if not await accounts.end_session(visitor.user, id):
        raise absent("session")
    return moved(request, "/account", "ended")


@router.post("/account/identities/{id}/unlink")
async def unlink(request: Request, id: Id) -> Response:
    """Sign in with it no more."""
    form: Form = request.state.form
    password = form.secret("password")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        await personal.unlink(accounts, visitor, office_of(request), id, password)
    except Denied as error:
        if error.status == 404:
            raise
        return await account_page(request, str(error), error.status)
    return moved(request, "/account", "unlinked")


async def _again(
    request: Request, accounts: Accounts, organisation: str, path: str, done: str
) -> Response:
    visitor = visitor_of(request)
    cookie = await begun(request, accounts, visitor.user, organisation, second=visitor.second)
    if cookie is None:
        raise Denied(403, "not_allowed", "You are a member of no organisation.")
    response = moved(request, path, done)
    signed_in(request, response, accounts, cookie, visitor.email)
    return response


async def account_page(request: Request, error: str = "", status: int = 200) -> Response:
    accounts, visitor, office = await accounts_of(request), visitor_of(request), office_of(request)
    identities = await identities_of(accounts, office.providers, visitor.user)
    return page(
        request, "account.html", status=status, error=error,
        places=await personal.places_of(accounts.admin, visitor.user),
        factor=await accounts.factors.of(visitor.user),
        sessions=await accounts.sessions_of(visitor.user), identities=identities,
        others=unlinked(office.providers, identities),
        password=await accounts.has_password(visitor.user),
        may_have_password=await personal.may_have_password(accounts, visitor, office),
        proven=personal.is_proven(visitor),
    )  # fmt: skip
