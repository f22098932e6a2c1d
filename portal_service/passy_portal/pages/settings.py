"""Settings: the organisation, webhooks, prices; and for who runs the gateway its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError

from passy_plugins.api.budgets import HookUrl
from passy_plugins.api.configuration import Plugins, Running
from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Id
from passy_portal import hooks, operating, organising
from passy_portal.access import may
from passy_portal.console import GatewayAway
from passy_portal.door import Form
from passy_portal.view import accounts_of, console_of, moved, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()


@router.get("/settings")
async def settings(request: Request) -> Response:
    """The organisation, and how long what is kept."""
    return await _settings(request)


@router.post("/settings/organisation")
async def rename(request: Request) -> Response:
    """Another name."""
    form: Form = request.state.form
    name = form.text("name")
    form.end()
    try:
        await organising.rename(await accounts_of(request), visitor_of(request), name)
    except Denied as error:
        return await _settings(request, str(error), error.status, name)
    return moved(request, "/settings", "saved")


async def _settings(
    request: Request, error: str = "", status: int = 200, name: str | None = None
) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    organisation = await organising.organisation_of(accounts, visitor)
    known, days = await organising.retention(console_of(request))
    return await settings_page(
        request, "settings.html", status, organisation=organisation, known=known, days=days,
        name=organisation.name if name is None else name, error=error,
    )  # fmt: skip


# Webhooks


@router.get("/settings/webhooks")
async def webhooks(request: Request) -> Response:
    """Who is told of budgets that run out."""
    return await _webhooks(request)


@router.post("/settings/webhooks")
async def create_webhook(request: Request) -> Response:
    """One more; its secret is shown this once."""
    form: Form = request.state.form
    url = form.text("url", 2_000)
    form.end()
    try:
        try:
            TypeAdapter(HookUrl).validate_python(url)
        except ValidationError:
            message = "Write a URL such as https://hooks.example.com/…"
            raise Denied(422, "invalid_value", message, "url") from None
        made, secret = await hooks.create(await accounts_of(request), visitor_of(request), url)
    except Denied as error:
        return await _webhooks(request, status=error.status, error=str(error), url=url)
    return await _webhooks(request, made=made, secret=secret)


@router.post("/settings/webhooks/{id}/test")
async def try_webhook(request: Request, id: Id) -> Response:
    """What comes of a message that means nothing."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        told = await hooks.tried(accounts, visitor, console_of(request), id)
    except GatewayAway as error:
        return await _webhooks(request, status=503, error=str(error))
    return await _webhooks(request, tried=(id, told))


@router.post("/settings/webhooks/{id}/disable")
async def disable_webhook(request: Request, id: Id) -> Response:
    """Tell it nothing for now."""
    request.state.form.end()
    await hooks.switch(await accounts_of(request), visitor_of(request), id, on=False)
    return moved(request, "/settings/webhooks", "hook-disabled")


@router.post("/settings/webhooks/{id}/enable")
async def enable_webhook(request: Request, id: Id) -> Response:
    """Tell it again."""
    request.state.form.end()
    await hooks.switch(await accounts_of(request), visitor_of(request), id, on=True)
    return moved(request, "/settings/webhooks", "hook-enabled")


@router.post("/settings/webhooks/{id}/delete")
async def delete_webhook(request: Request, id: Id) -> Response:
    """For good, for who types its host."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    form: Form = request.state.form
    typed = form.text("typed", 300)
    form.end()
    name = _host(hooks.host_of((await hooks.hook_of(accounts, visitor, id)).url))
    if typed != name:
        return await _webhooks(request, status=422, error=f"To delete it, type its host: {name}")
    await hooks.remove(accounts, visitor, id)
    return moved(request, "/settings/webhooks", "hook-deleted")


async def _webhooks(request: Request, status: int = 200, **given: Any) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    leads = may(visitor.role, "POST", "/settings/webhooks")
    rows = [
        {"id": one.id, "url": one.url if leads else hooks.host_of(one.url),
         "host": _host(hooks.host_of(one.url)), "enabled": bool(one.events),
         "created": one.created}
        for one in await hooks.listed(accounts, visitor)
    ]  # fmt: skip
    empty: dict[str, Any] = {"error": "", "url": "", "made": None, "secret": "", "tried": None}
    return await settings_page(
        request, "settings_webhooks.html", status, rows=rows, leads=leads, **(empty | given)
    )


def _host(url: str) -> str:
    return url.partition("://")[2].removesuffix("/…")


# The gateway, for who runs it


@router.get("/settings/gateway")
async def gateway(request: Request) -> Response:
    """What runs, how the file differs, and which plugins there are."""
    return await _gateway(request)


@router.post("/settings/gateway/reload")
async def reload(request: Request) -> Response:
    """Have the file read again. Where it is refused the old configuration goes on serving."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await operating.operating(request, accounts, visitor)
    try:
        await organising.reload(accounts, visitor, console_of(request))
    except Denied as error:
        return await _gateway(request, error)
    return moved(request, "/settings/gateway", "reloaded")


async def _gateway(request: Request, refused: Denied | None = None) -> Response:
    await operating.operating(request, await accounts_of(request), visitor_of(request))
    console = console_of(request)
    given: dict[str, Any] = {"away": "", "running": None, "told": None, "plugins": []}
    try:
        given["running"] = Running(**await console.get("/config"))
        given["told"] = await console.get("/status")
        given["plugins"] = Plugins(**await console.get("/plugins")).rows
    except GatewayAway as error:
        given["away"] = error.reason
    status = refused.status if refused else 200
    return await settings_page(request, "settings_gateway.html", status, refused=refused, **given)


async def settings_page(
    request: Request, template: str, status: int = 200, **given: Any
) -> Response:
    """With the tabs that are for who asks."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    leads = may(visitor.role, "GET", "/settings/gateway")
    runs = leads and await operating.operates(request, accounts, visitor)
    tabs = [("Organisation", "/settings"), ("Webhooks", "/settings/webhooks"),
            ("Prices", "/settings/prices")]  # fmt: skip
    if runs:
        tabs.append(("Gateway", "/settings/gateway"))
    return page(request, template, status=status, tabs=tabs, runs=runs, **given)
