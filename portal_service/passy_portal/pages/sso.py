"""Signing in with an OpenID provider: there, and back again."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_portal import personal
from passy_portal.door import (
    FLOW,
    Form,
    address,
    cookie_name,
    drop_cookie,
    is_safe,
    own_origin,
    set_cookie,
)
from passy_portal.identities import arrived, link
from passy_portal.oidc import Flow, Refused
from passy_portal.pages.account import account_page
from passy_portal.pages.signing import PLAIN, ask_second, begun, login_page, safe, signed_in
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy.json import dumps, loads

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.oidc import Claimed, Provider

router = APIRouter()

PATIENCE = 600
"""Seconds that signing in there may take."""


def provider_of(request: Request, name: str) -> Provider:
    found: Provider | None = request.app.state.office.providers.get(name)
    if found is None:
        raise absent("provider")
    return found


@router.get("/sso/{name}")
async def begin(request: Request, name: str, then: str = "", link: str = "") -> Response:
    """To the provider. What is needed on the way back is in a cookie that only we can read."""
    provider = provider_of(request, name)
    if not is_safe(request):
        return await login_page(request, status=400, error=PLAIN)
    flow = _new_flow(name, then=then[:2_000], link=link[:100])
    try:
        to = await provider.beginning(flow, _back(request, name))
    except Refused as refused:
        return await _refused(request, name, refused)
    return await _going(request, RedirectResponse(to, 303), flow)


@router.post("/sso/{name}/link")
async def begin_link(request: Request, name: str) -> Response:
    """To the provider, to sign in there for the account that has signed in here. The way leads over
    a page of ours: a browser lets no form lead to another site."""
    form: Form = request.state.form
    password = form.secret("password")
    form.end()
    provider, accounts = provider_of(request, name), await accounts_of(request)
    visitor = visitor_of(request)
    flow = _new_flow(name, session=visitor.session)
    try:
        await personal.proven(accounts, visitor, password)
        to = await provider.beginning(flow, _back(request, name))
    except Denied as error:
        return await account_page(request, str(error), error.status)
    except Refused as refused:
        return await _refused(request, name, refused, linking=True)
    return await _going(request, page(request, "going.html", provider=provider, to=to), flow)


def _new_flow(name: str, then: str = "", link: str = "", session: str = "") -> Flow:
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    return Flow(name, state, nonce, verifier, then, link, time.time() + PATIENCE, session)


async def _going(request: Request, response: Response, flow: Flow) -> Response:
    """With what is needed on the way back."""
    accounts = await accounts_of(request)
    sealed = accounts.admin.keyring.seal(dumps(asdict(flow)).decode(), *_owner(flow.provider))
    set_cookie(request, response, FLOW, sealed, PATIENCE)
    return response


@router.get("/sso/{name}/return")
async def back(request: Request, name: str) -> Response:
    """A session for who the provider vouches for, if they are expected; or one more way in, for who
    has begun that."""
    provider, accounts = provider_of(request, name), await accounts_of(request)
    query, linking = request.query_params, False
    try:
        flow = _flow(request, accounts, name)
        linking = bool(flow.session)
        said = {key: query[key] for key in query if len(query.getlist(key)) == 1}
        claimed = await provider.claimed(flow, said, _back(request, name))
        ended = _linked if linking else _entered
        response = await ended(request, provider, claimed, flow)
    except Refused as refused:
        response = await _refused(request, name, refused, linking=linking)
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


async def _linked(request: Request, provider: Provider, claimed: Claimed, flow: Flow) -> Response:
    """For the session that began it, as long as it lives, and for nobody else's."""
    visitor: Visitor | None = request.state.visitor
    if visitor is None or visitor.session != flow.session:
        raise Refused("You have signed in anew meanwhile. Link it again under Account.")
    await link(await accounts_of(request), visitor, provider, claimed)
    return moved(request, "/account", "linked")


async def _refused(
    request: Request, name: str, refused: Refused, *, linking: bool = False
) -> Response:
    why = refused.__cause__
    request.app.state.log.warning(
        "sign_in_refused", provider=name, reason=str(refused), cause=repr(why) if why else None
    )
    if linking and request.state.visitor is not None:
        return await account_page(request, str(refused), 403)
    return await login_page(request, status=403, error=str(refused))


def _flow(request: Request, accounts: Accounts, name: str) -> Flow:
    sealed = request.cookies.get(cookie_name(request, FLOW), "")
    try:
        flow = Flow(**loads(accounts.admin.keyring.open(sealed, *_owner(name))))
    except ValueError:
        raise Refused("This browser has not begun to sign in here. Begin again.") from None
    if time.time() > flow.until:
        raise Refused("That took too long. Begin again.")
    return flow


def _owner(name: str) -> tuple[str, ...]:
    """Bound to the provider: what was begun with one is not ended with another."""
    return "", "portal", "flow", name


def _back(request: Request, name: str) -> str:
    return f"{own_origin(request)}{request.scope.get('root_path', '')}/sso/{name}/return"
