"""How pages are made: templates, what each of them is given, and the files they load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from passy_plugins.api.errors import absent, id_of
from passy_portal.access import ACCESS, may
from passy_portal.accounts import Accounts, Visitor
from passy_portal.agents import browser_of
from passy_portal.door import (
    COOKIE,
    YEAR,
    Form,
    csrf_of,
    here,
    inner,
    own_cookie,
    safe,
    set_cookie,
)
from passy_portal.figures import count, milliseconds, money, percent, short
from passy_proxy import __version__

if TYPE_CHECKING:
    from passy_portal.console import Console
    from passy_portal.office import Office

HERE = Path(__file__).parent
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""What pages may do in a browser: nothing but with what is ours."""
KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
NAV = (
    ("Overview", "/", "o"),
    ("Requests", "/requests", "r"),
    ("Usage", "/usage", "u"),
    ("Keys", "/keys", "k"),
    ("Models", "/models", "m"),
    ("Providers", "/providers", "p"),
    ("Limits", "/limits", "l"),
    ("Playground", "/playground", "y"),
    ("Team", "/team", "t"),
    ("Settings", "/settings", "s"),
)
"""Name, path, and the letter that goes there after ``g``. Each is shown to who may go there."""
BELOW = {"/audit": "/team"}
"""Pages that are a part of another one, though their path does not say so."""
NOTES = {
    "saved": "Saved.",
    "several": "The keys are changed. Gateways follow within seconds.",
    "disabled": "The key is disabled. Within seconds no request gets through with it.",
    "enabled": "The key is enabled again.",
    "deleted": "The key is deleted. What it spent stays in the books.",
    "added": "It is entered. Requests use it within seconds.",
    "replaced": "The key is replaced. Requests show the new one within seconds.",
    "key_disabled": "The key is disabled. Within seconds it is shown to nobody.",
    "key_enabled": "The key is enabled again.",
    "key_gone": "The key is deleted here. The provider itself still knows it.",
    "provider_disabled": "The provider is disabled. Within seconds it is asked nothing.",
    "provider_enabled": "The provider is enabled again.",
    "provider_gone": "The provider and its keys are deleted.",
    "limits": "The limits are set. Gateways hold them within seconds.",
    "team": "The team is there. Put keys and members in it, and set its limits.",
    "team_deleted": "The team is deleted, with its keys. What they spent stays in the books.",
    "role": "The role is changed.",
    "removed": "They are no member any more, and their sessions have ended.",
    "withdrawn": "The invitation is withdrawn.",
    "password": "Your password is set. All other sessions have ended.",
    "proven": "It is you. Go on within five minutes.",
    "ended": "The session has ended.",
    "view": "The view is saved.",
    "view_gone": "The view is deleted.",
    "hook-disabled": "The webhook is told nothing until it is enabled again.",
    "hook-enabled": "The webhook is told again.",
    "hook-deleted": "The webhook is deleted.",
    "price": "The price is set. Gateways reckon with it within seconds, for requests from then on.",
    "price-reset": "It costs again what the configuration or the price list says.",
    "reloaded": "The file was read again, and is what runs now.",
    "linked": "From now on you can sign in with it.",
    "unlinked": "It lets you in no more, and what was begun with it has ended.",
    "pin": "The target is pinned. Within seconds it is asked before all others.",
    "disable": "The target is disabled. Within seconds it is asked nothing under this name.",
    "release": "The target stands where the configuration has it again.",
    "second": "Your second factor is off.",
    "transferred": "The organisation has another owner, and you are an admin.",
    "asked": "Members now need a second factor: who has none sets one up with their next click.",
    "unasked": "Members may do without a second factor.",
}
"""What a page says of the change that led to it."""

assets = APIRouter()

templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _words(text: str) -> Markup:
    """A sentence with code in backticks."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part
        for place, part in enumerate(text.split("`"))
    )


templates.filters |= {
    "count": count,
    "money": money,
    "percent": percent,
    "short": short,
    "milliseconds": milliseconds,
    "moment": _moment,
    "browser": browser_of,
    "words": _words,
}
templates.globals["may"] = may


@lru_cache
def _file(name: str) -> tuple[bytes, str]:
    content = (HERE / "static" / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


@lru_cache
def _names() -> frozenset[str]:
    return frozenset(path.name for path in (HERE / "static").iterdir())


@assets.get("/static/{name}")
async def asset(name: str) -> Response:
    """What pages load. Their address changes with their content, so that it is kept for ever."""
    if name not in _names():
        raise absent("file")
    content, mark = _file(name)
    headers = {"cache-control": "public, max-age=31536000, immutable", "etag": f'"{mark}"'}
    return Response(content, media_type=KINDS[name.rpartition(".")[2]], headers=headers)


@assets.post("/theme")
async def theme(request: Request) -> Response:
    """Light, dark, or as the system has it; kept in the browser."""
    form: Form = request.state.form
    chosen, then = form.text("theme"), form.text("then", 2_000)
    form.end()
    response = moved(request, safe(then))
    response.set_cookie(
        "passy_theme", chosen if chosen in ("light", "dark") else "", max_age=YEAR, samesite="lax"
    )
    return response


def page(
    request: Request,
    template: str,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **given: Any,
) -> Response:
    """A page, with what every page needs."""
    root: str = request.scope.get("root_path", "")
    visitor: Visitor | None = getattr(request.state, "visitor", None)
    cookie, fresh = own_cookie(request)
    theme = request.cookies.get("passy_theme", "")
    values: dict[str, Any] = {
        "root": root,
        "visitor": visitor,
        "csrf": csrf_of(cookie),
        "theme": theme if theme in ("light", "dark") else "",
        "nav": [one for one in NAV if visitor and goes(visitor, one[1])],
        "path": BELOW.get(inner(request), inner(request)),
        "here": here(request) if request.method == "GET" else "/",
        "note": NOTES.get(request.query_params.get("done", ""), ""),
        "asset": lambda name: f"{root}/static/{name}?v={_file(name)[1]}",
        "version": __version__,
        "request_id": id_of(request),
    }
    text = templates.get_template(template).render(values | given)
    response = HTMLResponse(text, status, dict(headers or {}))
    if fresh:
        set_cookie(request, response, COOKIE, cookie)
    return response


def goes(visitor: Visitor, path: str) -> bool:
    """Whether there is such a page, and for them."""
    return ("GET", path) in ACCESS and may(visitor.role, "GET", path)


def asking(origin: str) -> dict[str, str]:
    """The header of a page that asks somewhere else, too."""
    return {"content-security-policy": f"{POLICY}; connect-src 'self' {origin}"}


def moved(request: Request, path: str, done: str = "") -> Response:
    """To another page after a change; ``done`` is one of `NOTES`."""
    mark = ("&" if "?" in path else "?") + f"done={done}" if done else ""
    return RedirectResponse(f"{request.scope.get('root_path', '')}{path}{mark}", 303)


def said(error: Exception) -> str:
    """As a page shows it."""
    text = str(error)
    return text[:1].upper() + text[1:]


def visitor_of(request: Request) -> Visitor:
    """Who has signed in, on a route that needs it."""
    visitor: Visitor | None = request.state.visitor
    assert visitor is not None
    return visitor


async def accounts_of(request: Request) -> Accounts:
    """Who may sign in, and the writing side of the store. Raises `StoreUnavailable`."""
    accounts: Accounts = await request.app.state.office.accounts()
    return accounts


def office_of(request: Request) -> Office:
    """What the portal works with."""
    office: Office = request.app.state.office
    return office


def console_of(request: Request) -> Console:
    """Where the gateway is asked."""
    console: Console = request.app.state.console
    return console
