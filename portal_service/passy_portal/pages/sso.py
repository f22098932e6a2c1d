"""Signing in with an OpenID provider: there, and back again."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

from passy_plugins.api.errors import absent
from passy_portal.door import (
    FLOW,
    address,
    cookie_name,
    drop_cookie,
    is_safe,
    own_origin,
    set_cookie,
)
from passy_portal.identities import arrived
from passy_portal.oidc import Flow, Refused
from passy_portal.pages.signing import PLAIN, ask_second, begun, login_page, safe, signed_in
from passy_portal.view import accounts_of, moved
from passy_proxy.json import dumps, loads

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.accounts import Accounts
    from passy_portal.oidc import Provider

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
    provider, accounts = provider_of(request, name), await accounts_of(request)
    if not is_safe(request):
        return await login_page(request, status=400, error=PLAIN)
    flow = Flow(
        name, secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(32),
        then[:2_000], link[:100], time.time() + PATIENCE,
    )  # fmt: skip
    try:
        to = await provider.beginning(flow, _back(request, name))
    except Refused as refused:
        return await _refused(request, name, refused)
    response: Response = RedirectResponse(to, 303)
    sealed = accounts.admin.keyring.seal(dumps(asdict(flow)).decode(), *_owner(name))
    set_cookie(request, response, FLOW, sealed, PATIENCE)
    return response


@router.get("/sso/{name}/return")
async def back(request: Request, name: str) -> Response:
    """A session for who the provider vouches for, if they are expected."""
    provider, accounts = provider_of(request, name), await accounts_of(request)
    query = request.query_params
    try:
        flow = _flow(request, accounts, name)
        said = {key: query[key] for key in query if len(query.getlist(key)) == 1}
        claimed = await provider.claimed(flow, said, _back(request, name))
        user, organisation = await arrived(accounts, provider, claimed, flow.link, address(request))
        response = await _entered(request, accounts, provider, user, organisation, flow)
    except Refused as refused:
        response = await _refused(request, name, refused)
    drop_cookie(request, response, FLOW)
    return response


async def _entered(
    request: Request,
    accounts: Accounts,
    provider: Provider,
    user: str,
    organisation: str,
    flow: Flow,
) -> Response:
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


async def _refused(request: Request, name: str, refused: Refused) -> Response:
    why = refused.__cause__
    request.app.state.log.warning(
        "sign_in_refused", provider=name, reason=str(refused), cause=repr(why) if why else None
    )
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
