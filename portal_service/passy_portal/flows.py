"""What a browser keeps on its way to an OpenID provider and back, sealed: none but we read it."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from passy_plugins.api.errors import absent
from passy_portal.door import FLOW, cookie_name, own_origin, set_cookie
from passy_portal.oidc import Flow, Refused
from passy_portal.view import accounts_of, office_of
from passy_proxy.json import dumps, loads

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response

    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.oidc import Provider

PATIENCE = 600
"""Seconds that signing in there may take."""


def provider_of(request: Request, name: str) -> Provider:
    """404 for none of the configured ones."""
    found: Provider | None = office_of(request).providers.get(name)
    if found is None:
        raise absent("provider")
    return found


def new_flow(
    name: str, *, then: str = "", link: str = "", visitor: Visitor | None = None,
    proves: bool = False,
) -> Flow:  # fmt: skip
    """One more; see `Flow`. ``visitor``: who has signed in here already."""
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    session = visitor.session if visitor else ""
    return Flow(name, state, nonce, verifier, then, link, time.time() + PATIENCE, session, proves)


async def keep(request: Request, response: Response, flow: Flow) -> None:
    """Give the browser what is needed on the way back."""
    accounts = await accounts_of(request)
    sealed = accounts.admin.keyring.seal(dumps(asdict(flow)).decode(), *_owner(flow.provider))
    set_cookie(request, response, FLOW, sealed, PATIENCE)


def kept(request: Request, accounts: Accounts, name: str) -> Flow:
    """What it has kept. Raises `Refused`."""
    sealed = request.cookies.get(cookie_name(request, FLOW), "")
    try:
        flow = Flow(**loads(accounts.admin.keyring.open(sealed, *_owner(name))))
    except ValueError:
        raise Refused("This browser has not begun to sign in here. Begin again.") from None
    if time.time() > flow.until:
        raise Refused("That took too long. Begin again.")
    return flow


def way_back(request: Request, name: str) -> str:
    """The address that a provider sends browsers back to."""
    return f"{own_origin(request)}{request.scope.get('root_path', '')}/sso/{name}/return"


def _owner(name: str) -> tuple[str, ...]:
    """Bound to the provider: what was begun with one is not ended with another."""
    return "", "portal", "flow", name
