"""Providers: what the organisation brings, the shared ones beside it, and how a new one is tried
and entered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.providers import HIGHEST, LOWEST
from passy_portal import brought, drafts
from passy_portal.accounts import Accounts, Visitor
from passy_portal.advice import advice
from passy_portal.console import Console, GatewayAway
from passy_portal.door import Form
from passy_portal.drafts import Draft, Place
from passy_portal.recent import Recent, Tried, recent
from passy_portal.view import moved, page, visitor_of
from passy_proxy.issue import NewCredential, NewProvider

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_proxy.records import CustomProvider, StoredCredential

router = APIRouter()

PLACES = (
    "https://api.openai.com/v1",
    "https://api.anthropic.com",
    "https://api.mistral.ai/v1",
    "https://api.studio.nebius.ai/v1",
    "https://api.deepinfra.com/v1/openai",
)
"""Addresses that are offered while one types."""
POLICIES = {
    "own_first": "Shared keys serve where you have none of your own",
    "own_only": "Only keys of your own, never shared ones",
}


class Card(NamedTuple):
    """A provider as the list shows it."""

    title: str
    id: str
    """Of one of the organisation's own; empty for a shared one."""
    upstream: str
    """What the books call it."""
    url: str
    dialect: str
    models: tuple[str, ...]
    active: bool
    priority: int
    keys: list[StoredCredential]
    tried: Tried
    shared: dict[str, Any] | None
    """What the gateway says of a shared one now."""

    @property
    def state(self) -> tuple[str, str]:
        """A word that has a colour, and what is said."""
        if not self.active:
            return "disabled", "disabled"
        if self.keys and not any(key.active for key in self.keys):
            return "disabled", "no active key"
        if self.shared and self.shared["left_alone_by"]:
            back = self.shared["back_in_seconds"]
            return "failing", f"left alone{f', {back} s more' if back else ''}"
        return self.tried.health, WORDS[self.tried.health]


WORDS = {
    "well": "well",
    "shaky": "some requests fail",
    "failing": "failing",
    "quiet": "no requests lately",
}
"""Of `Tried.health`."""


async def accounts_of(request: Request) -> Accounts:
    accounts: Accounts = await request.app.state.office.accounts()
    return accounts


def console_of(request: Request) -> Console:
    console: Console = request.app.state.console
    return console


@router.get("/providers")
async def list_providers(request: Request) -> Response:
    """What there is of the organisation's own, and which shared providers serve it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    organisation = await accounts.admin.get_organisation(visitor.organisation)
    assert organisation is not None
    lately = await recent(accounts.admin, visitor)
    upstreams, away = await now_of(console_of(request))
    providers = await accounts.admin.list_providers(visitor.organisation)
    keys = await accounts.admin.list_credentials(visitor.organisation)
    shared = {one["name"]: one for one in upstreams["rows"]}
    cards = [_own(one, keys, lately) for one in sorted(providers, key=lambda one: one.priority)]
    ids = {one.id for one in providers}
    for name in dict.fromkeys(key.upstream for key in keys if key.upstream not in ids):
        cards.append(_shared(name, keys, lately, shared.get(name)))
    mine = {card.upstream for card in cards}
    others = [_shared(name, keys, lately, one) for name, one in shared.items() if name not in mine]
    return page(
        request, "providers.html", cards=cards, others=others, upstreams=upstreams, away=away,
        lately=lately, policy=organisation.byok, policies=POLICIES,
    )  # fmt: skip


@router.post("/providers/policy")
async def change_policy(request: Request) -> Response:
    """Whether shared keys serve where there is none of one's own."""
    form: Form = request.state.form
    byok = form.text("byok")
    form.end()
    if byok not in POLICIES:
        raise Denied(422, "invalid_value", "There is no such choice.", "byok")
    await brought.set_policy(await accounts_of(request), visitor_of(request), byok)
    return moved(request, "/providers", "saved")


@router.get("/providers/new")
async def new_provider(request: Request) -> Response:
    """The form for a key, and for a provider that is not shared."""
    wanted = request.query_params.get("for", "")
    return await form_page(request, {"for": wanted} if wanted else {})


@router.post("/providers/new")
async def create_provider(request: Request) -> Response:
    """``do`` is ``test``; or ``save``, for what was tested well; or ``anyway``."""
    entered = await entered_by(request, request.state.form)
    if isinstance(entered, str):
        return moved(request, entered, "added")
    return await form_page(request, **entered)


# Trying and entering, here and in the first run


async def entered_by(request: Request, form: Form) -> str | dict[str, Any]:
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
        at = (error.param or "").removeprefix("body.")
        return {"values": values, "error": str(error), "at": {"secret": "key"}.get(at, at),
                "status": error.status}  # fmt: skip


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


async def _tested(
    request: Request, new: New, secret: str, values: dict[str, str]
) -> dict[str, Any]:
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
    return {"values": values, "trial": trial,
            "held": drafts.sealed(accounts.admin.keyring, visitor, draft)}  # fmt: skip


async def _entered(accounts: Accounts, visitor: Visitor, new: New, secret: str) -> str:
    mine = visitor.organisation
    if new.place.upstream:
        wanted = NewCredential(mine, new.place.upstream, new.name, new.priority)
        made = await brought.add_credential(accounts, visitor, wanted, secret)
        own = new.place.upstream.startswith("prov_")
        return f"/providers/{made.upstream}" if own else "/providers"
    provider = NewProvider(
        mine, new.name, new.place.url, new.place.dialect, new.models, priority=new.priority
    )
    return (
        f"/providers/{(await brought.add_provider(accounts, visitor, provider, secret or None)).id}"
    )


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
    request: Request,
    values: dict[str, str],
    trial: Any = None,
    held: str = "",
    error: str = "",
    at: str = "",
    status: int = 200,
    template: str = "provider_new.html",
    **more: Any,
) -> Response:
    """The form, with what came of a test."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    upstreams, away = await now_of(console_of(request))
    choices = [(one["name"], one["name"]) for one in upstreams["rows"] if one["dialect"]]
    providers = await accounts.admin.list_providers(visitor.organisation)
    choices += [(one.id, f"{one.name} (your own)") for one in providers]
    first = values.get("for", choices[0][0] if choices else "")
    return page(
        request, template, status=status, values={"priority": "0", **values, "for": first},
        choices=choices, dialects=upstreams["dialects"] or ["openai", "anthropic"], places=PLACES,
        away=away, trial=trial, advice=advice(trial) if trial else (), held=held, error=error,
        at=at, **more,
    )  # fmt: skip


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


def _own(one: CustomProvider, keys: list[StoredCredential], lately: Recent) -> Card:
    mine = [key for key in keys if key.upstream == one.id]
    upstream = f"custom-{one.id}"
    return Card(
        one.name, one.id, upstream, one.url, one.dialect, one.models, one.active, one.priority,
        mine, lately.of(upstream), None,
    )  # fmt: skip


def _shared(
    name: str, keys: list[StoredCredential], lately: Recent, now: dict[str, Any] | None
) -> Card:
    mine = [key for key in keys if key.upstream == name]
    dialect = (now["dialect"] if now else "") or ""
    return Card(name, "", name, "", dialect, (), True, 0, mine, lately.of(name), now)
