"""The application put together: one area of it is one file in ``pages``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from passy_plugins.api import errors
from passy_plugins.api.denied import Denied
from passy_plugins.api.framework import api, asked_once
from passy_portal.door import Enrol, SignIn, admit, is_api
from passy_portal.pages import (
    account,
    api_account,
    api_keys,
    api_limits,
    api_models,
    api_people,
    api_playground,
    api_providers,
    api_requests,
    api_settings,
    api_signing,
    api_teams,
    api_usage,
    begin,
    first,
    joining,
    key_list,
    keys,
    limits,
    models,
    overview,
    people,
    playground,
    prices,
    provider,
    providers,
    requests,
    second,
    settings,
    signing,
    sso,
    tail,
    team,
    teams,
    usage,
)
from passy_portal.view import POLICY, assets, moved, page
from passy_proxy import StoreUnavailable

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import Response
    from structlog.typing import FilteringBoundLogger

    from passy_portal.console import Console
    from passy_portal.office import Office
    from passy_proxy.application import Asgi, Message, Receive, Send

ABOUT = """The JSON API under the portal's pages, for who has signed in, within their organisation.
Changes need the header `x-csrf-token`, as `/api/me` gives it, and come from the portal's own
origin."""
PAGES = (
    assets,
    signing.router,
    first.router,
    joining.router,
    sso.router,
    begin.router,
    overview.router,
    usage.router,
    key_list.router,
    tail.router,
    requests.router,
    keys.router,
    models.router,
    providers.router,
    provider.router,
    limits.router,
    teams.router,
    playground.router,
    team.router,
    people.router,
    settings.router,
    prices.router,
)
API = (
    api_account.router,
    api_signing.router,
    api_people.router,
    api_keys.router,
    api_usage.router,
    api_models.router,
    api_providers.router,
    api_playground.router,
    api_limits.router,
    api_teams.router,
    api_requests.router,
    api_settings.router,
)

HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
]
"""Where an answer does not have one of its own."""


def made(
    office: Office | None, console: Console, public_url: str, log: FilteringBoundLogger | None
) -> Asgi:
    """The application, ready to be served. ``console`` is where its gateway is asked. In a thread:
    what is made here is made for no page, while others wait."""
    app = application(office, public_url, log)
    app.state.console = console
    asked_once(app)
    return Guarded(app)


def application(
    office: Office | None, public_url: str, log: FilteringBoundLogger | None
) -> FastAPI:
    """Without its headers; to be described only where it is given nothing."""
    app = api(
        "passy portal", ABOUT, log,
        {"session": {"type": "apiKey", "in": "cookie", "name": "__Host-passy_session"}},
    )  # fmt: skip
    app.state.office = office
    app.state.public_url = public_url
    app.router.dependencies.append(Depends(admit))
    for router in PAGES:
        app.include_router(router, include_in_schema=False)
    app.include_router(account.router, include_in_schema=False)
    app.include_router(second.router, include_in_schema=False)
    for router in API:
        app.include_router(router)
    app.add_exception_handler(SignIn, sign_in)
    app.add_exception_handler(Enrol, enrol)
    for kind, told in _TOLD.items():
        app.add_exception_handler(kind, in_its_format(told))
    return app


class Guarded:
    """With the headers that keep a browser from doing what our pages did not ask for."""

    def __init__(self, served: FastAPI) -> None:
        self._served = served

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/openapi.json"):  # It takes half a second, and few ask for it.
            await asyncio.to_thread(self._served.openapi)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                names = {name for name, _ in own}
                message = {**message, "headers": own + [h for h in HEADERS if h[0] not in names]}
            await send(message)

        await self._served(scope, receive, guarded)


Told = Callable[[Request, Exception], Awaitable["Response"]]


def in_its_format(told: Told) -> Told:
    """An error of the JSON API as it is, and that of a page as a page."""

    async def answer(request: Request, exc: Exception) -> Response:
        said = await told(request, exc)
        if is_api(request):
            return said
        status, message = said.status_code, words_of(exc, said.status_code)
        given = {k: v for k, v in said.headers.items() if k in ("allow", "retry-after")}
        return page(request, "error.html", status=status, headers=given, message=message)

    return answer


def words_of(exc: Exception, status: int) -> str:
    if isinstance(exc, Denied):
        return str(exc)
    return {
        404: "There is no such page.",
        405: "This cannot be done with a page.",
        422: "Something in this address does not fit.",
        503: "The database cannot be asked now. Running requests are not affected.",
    }.get(status, "Something went wrong on our side. The request id is noted in the log.")


async def sign_in(request: Request, exc: Exception) -> Response:
    from urllib.parse import quote

    assert isinstance(exc, SignIn)
    root = request.scope.get("root_path", "")
    then = f"?then={quote(exc.then, safe='')}" if exc.then not in ("", "/") else ""
    return RedirectResponse(f"{root}/login{then}", 303)


async def enrol(request: Request, exc: Exception) -> Response:
    return moved(request, "/account/second")


_TOLD: dict[type[Exception], Told] = {
    Denied: errors.denied,
    HTTPException: errors.refused,
    RequestValidationError: errors.invalid,
    StoreUnavailable: errors.unavailable,
    Exception: errors.failed,
}
