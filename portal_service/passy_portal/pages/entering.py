"""Trying a key and entering it: on the page for that, and in the first run.

A form is tested first. What was pasted then is held in an envelope (see `drafts`), so that it is
entered as it was tested, and never sent back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.providers import HIGHEST, LOWEST
from passy_portal import brought, drafts
from passy_portal.accounts import Accounts, Visitor
from passy_portal.console import Console, GatewayAway
from passy_portal.door import Form
from passy_portal.drafts import Draft, Place
from passy_portal.view import accounts_of, console_of, page, visitor_of
from passy_proxy.issue import NewCredential, NewProvider

if TYPE_CHECKING:
    from starlette.responses import Response

PLACES = (
    "https://api.openai.com/v1",
    "https://api.anthropic.com",
    "https://api.mistral.ai/v1",
    "https://api.studio.nebius.ai/v1",
    "https://api.deepinfra.com/v1/openai",
)
"""Addresses that are offered while one types."""
SPOKEN = {"openai": "OpenAI's API", "anthropic": "Anthropic's API"}


@dataclass(frozen=True, slots=True)
class Back:
    """What a form comes back with."""

    values: Mapping[str, str] | None = None
    """As they were typed."""
    error: str = ""
    at: str = ""
    """The field that it is about."""
    status: int = 200
    trial: Any = None
    """See `passy_plugins.api.providers.Tried`."""
    held: str = ""
    """See `drafts`."""

    def told(self) -> dict[str, Any]:
        """What templates are given of it, but for the values."""
        return {"error": self.error, "at": self.at, "trial": self.trial, "held": self.held,
                "advice": self.trial["advice"] if self.trial else ()}  # fmt: skip


def refused(error: Denied, values: Mapping[str, str], held: str = "") -> Back:
    """What is wrong with a form, at its field."""
    at = (error.param or "").removeprefix("body.")
    named = {"secret": "key", "upstream": "for"}
    return Back(values, str(error), named.get(at, at), error.status, held=held)


async def entered_by(request: Request, form: Form) -> str | Back:
    """Where what was entered is shown; or what `form_page` is to show instead."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    values = {name: value for name, value in form.items() if name not in ("key", "held", "do")}
    key, held, do = form.secret("key").strip(), form.secret("held"), form.text("do")
    try:
        new = await _read(request, form)
        form.end()
        if key and not (key.isascii() and key.isprintable()):
            raise Denied(422, "invalid_value", "A header cannot carry these characters.", "key")
        draft = drafts.opened(accounts.admin.keyring, visitor, held) if held else None
        secret = key or (draft.secret if draft and draft.place == new.place else "")
        if not secret and new.place.upstream:
            message = "Paste the key again: the one before was for something else, or too long ago."
            raise Denied(422, "invalid_value", message if held else "Paste the key.", "key")
        if do not in ("test", "save", "anyway"):
            raise Denied(422, "invalid_value", "There is no such choice.", "do")
        untested = draft is None or bool(key) or draft.place != new.place or not draft.ok
        if do == "test" or (do == "save" and untested):
            return await _tested(request, new, secret, values)
        return await _entered(accounts, visitor, new, secret)
    except Denied as error:
        known = drafts.opened(accounts.admin.keyring, visitor, held) if held else None
        return refused(error, values, held if known else "")


class New(NamedTuple):
    """What a form says."""

    place: Place
    name: str
    models: tuple[str, ...]
    priority: int
    model: str
    """What the test asks for."""


async def _read(request: Request, form: Form) -> New:
    accounts, visitor, console = (
        await accounts_of(request),
        visitor_of(request),
        console_of(request),
    )
    name, models, model = form.text("name"), form.lines("models"), form.text("model")
    upstream, url, dialect = form.text("for"), form.text("url", 2_000), form.text("dialect")
    priority = whole(form)
    if upstream:
        await brought.check_upstream(accounts, visitor, console, upstream)
        return New(Place(upstream), name, (), priority, model)
    if not url:
        raise Denied(422, "invalid_value", "Say where it is reached.", "url")
    if not name:
        raise Denied(422, "invalid_value", "Give it a name.", "name")
    await brought.check_place(console, url, dialect)
    return New(Place("", url.rstrip("/"), dialect), name, tuple(models) or ("*",), priority, model)


async def _tested(request: Request, new: New, secret: str, values: dict[str, str]) -> Back:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    upstream, url, dialect = new.place.upstream, new.place.url, new.place.dialect
    asked: dict[str, Any] = {"secret": secret or None, "model": new.model}
    path = "/credentials/test"
    own = next((one for one in await accounts.admin.list_providers(visitor.organisation)
                if one.id == upstream), None)  # fmt: skip
    if own is not None:
        url, dialect = own.url, own.dialect
        upstream = ""
    asked |= {"upstream": upstream} if upstream else {"url": url, "dialect": dialect}
    trial = await brought.tried(console_of(request), visitor, path, asked)
    draft = Draft(secret, new.place, trial["ok"])
    held = drafts.sealed(accounts.admin.keyring, visitor, draft)
    return Back(values, trial=trial, held=held)


async def _entered(accounts: Accounts, visitor: Visitor, new: New, secret: str) -> str:
    mine = visitor.organisation
    if new.place.upstream:
        wanted = NewCredential(mine, new.place.upstream, new.name, new.priority)
        key = await brought.CREDENTIAL.add(accounts, visitor, wanted, secret)
        own = new.place.upstream.startswith("prov_")
        return f"/providers/{key.upstream}" if own else "/providers"
    provider = NewProvider(
        mine, new.name, new.place.url, new.place.dialect, new.models, priority=new.priority
    )
    made = await brought.PROVIDER.add(accounts, visitor, provider, secret or None)
    return f"/providers/{made.id}"


def whole(form: Form) -> int:
    """The priority that a form says."""
    text = form.text("priority", 12) or "0"
    try:
        number = int(text)
    except ValueError:
        number = HIGHEST + 1
    if not LOWEST <= number <= HIGHEST:
        raise Denied(422, "invalid_value", "Write a whole number; the lowest is first.", "priority")
    return number


async def form_page(
    request: Request, back: Back, template: str = "provider_new.html", **more: Any
) -> Response:
    """The form, with what came of a test."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    upstreams, away = await now_of(console_of(request))
    choices = [(one["name"], one["name"]) for one in upstreams["rows"] if one["dialect"]]
    providers = await accounts.admin.list_providers(visitor.organisation)
    choices += [(one.id, f"{one.name} (your own)") for one in providers]
    first = choices[0][0] if choices else ""
    values = {"priority": "0", "for": first, **(back.values or {})}
    return page(
        request, template, status=back.status, values=values, choices=choices, away=away,
        dialects=spoken(upstreams["dialects"] or SPOKEN), places=PLACES, **back.told(), **more,
    )  # fmt: skip


def spoken(dialects: Iterable[str]) -> list[tuple[str, str]]:
    """Their names, and what people call them; OpenAI's first."""
    return [
        (name, SPOKEN.get(name, name)) for name in sorted(dialects, key=lambda n: n != "openai")
    ]


async def now_of(console: Console) -> tuple[dict[str, Any], str]:
    """The shared upstreams as they are; or none, and why the gateway cannot be asked."""
    try:
        told: dict[str, Any] = await console.get("/upstreams")
    except GatewayAway as error:
        return {
            "rows": [],
            "left_out": [],
            "dialects": [],
            "byok": True,
            "workers": 0,
        }, error.reason
    return told, ""
