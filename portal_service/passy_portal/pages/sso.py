"""Signing in with an OpenID provider: there, and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

from passy_plugins.api.denied import Denied
from passy_portal import personal
from passy_portal.door import FLOW, PLAIN, Form, address, drop_cookie, is_safe, safe
from passy_portal.flows import keep, kept, new_flow, provider_of, way_back
from passy_portal.identities import arrived, link, prove
from passy_portal.oidc import Refused
from passy_portal.pages.account import account_page
from passy_portal.pages.sessions import ask_second, begun, signed_in
from passy_portal.pages.signing import login_page
from passy_portal.view import accounts_of, moved, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.accounts import Visitor
    from passy_portal.oidc import Claimed, Flow, Provider

router = APIRouter()


@router.get("/sso/{name}")
async def begin(request: Request, name: str, then: str = "", link: str = "") -> Response:
    """To the provider. What is needed on the way back is in a cookie that only we can read."""
    provider = provider_of(request, name)
    if not is_safe(request):
        return await login_page(request, status=400, error=PLAIN)
    flow = new_flow(name, then=then[:2_000], link=link[:100])
    try:
        to = await provider.beginning(flow, way_back(request, name))
    except Refused as refused:
        return await _refused(request, name, refused)
    response = RedirectResponse(to, 303)
    await keep(request, response, flow)
    return response


@router.post("/sso/{name}/link")
async def begin_link(request: Request, name: str) -> Response:
    """To the provider, to sign in there for the account that has signed in here."""
    form: Form = request.state.form
    password = form.secret("password")
    form.end()
    provider, visitor = provider_of(request, name), visitor_of(request)
    try:
        await personal.check_linking(await accounts_of(request), visitor, password)
    except Denied as error:
        return await account_page(request, str(error), error.status)
    return await _going(request, provider, new_flow(name, visitor=visitor))


@router.post("/sso/{name}/prove")
async def begin_proof(request: Request, name: str) -> Response:
    """To the provider, to show once more that one can sign in there."""
    request.state.form.end()
    provider, visitor = provider_of(request, name), visitor_of(request)
    return await _going(request, provider, new_flow(name, visitor=visitor, proves=True))


async def _going(request: Request, provider: Provider, flow: Flow) -> Response:
    """Over a page of ours: a browser lets no form lead to another site."""
    try:
        to = await provider.beginning(flow, way_back(request, provider.name))
    except Refused as refused:
        return await _refused(request, provider.name, refused, at_home=True)
    response = page(request, "going.html", provider=provider, to=to, proves=flow.proves)
    await keep(request, response, flow)
    return response


@router.get("/sso/{name}/return")
async def back(request: Request, name: str) -> Response:
    """A session for who the provider vouches for, if they are expected; or what the session that
    began it wants: one more way in, or to have shown that its holder has this one."""
    provider, accounts = provider_of(request, name), await accounts_of(request)
    query, at_home = request.query_params, False
    try:
        flow = kept(request, accounts, name)
        at_home = bool(flow.session)
        said = {key: query[key] for key in query if len(query.getlist(key)) == 1}
        claimed = await provider.claimed(flow, said, way_back(request, name))
        ended = _back_home if at_home else _entered
        response = await ended(request, provider, claimed, flow)
    except Refused as refused:
        response = await _refused(request, name, refused, at_home=at_home)
    drop_cookie(request, response, FLOW)
    return response


async def _entered(request: Request, provider: Provider, claimed: Claimed, flow: Flow) -> Response:
    accounts, place = await accounts_of(request), address(request)
    user, organisation = await arrived(accounts, provider, claimed, flow.link, place)
    email = await accounts.email_of(user)
    trusted = provider.settings.second_factor
    if not trusted and await accounts.factors.confirmed(user):
        return await ask_second(request, accounts, user, email, organisation, flow.then)
    cookie = await begun(request, accounts, user, organisation or None, second=trusted)
    if cookie is None:
        raise Refused("You are a member of no organisation.")
    response = moved(request, safe(flow.then))
    signed_in(request, response, accounts, cookie, email)
    return response


async def _back_home(
    request: Request, provider: Provider, claimed: Claimed, flow: Flow
) -> Response:  # fmt: skip
    """For the session that began it, as long as it lives, and for nobody else's."""
    visitor: Visitor | None = request.state.visitor
    if visitor is None or visitor.session != flow.session:
        raise Refused("You have signed in anew meanwhile. Begin again under Account.")
    ended = prove if flow.proves else link
    await ended(await accounts_of(request), visitor, provider, claimed)
    return moved(request, "/account", "proven" if flow.proves else "linked")


async def _refused(
    request: Request, name: str, refused: Refused, *, at_home: bool = False
) -> Response:
    """``at_home``: for who has signed in here."""
    why = refused.__cause__
    request.app.state.log.warning(
        "sign_in_refused", provider=name, reason=str(refused), cause=repr(why) if why else None
    )
    if at_home and request.state.visitor is not None:
        return await account_page(request, str(refused), 403)
    return await login_page(request, status=403, error=str(refused))
