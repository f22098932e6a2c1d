"""Providers: what the organisation brings, the shared ones beside it, and how a new one is tried
and entered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_portal import brought
from passy_portal.door import Form
from passy_portal.pages.entering import SPOKEN, Back, entered_by, form_page, now_of
from passy_portal.recent import Recent, Tried, recent
from passy_portal.view import accounts_of, console_of, moved, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_proxy.records import CustomProvider, StoredCredential

router = APIRouter()

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
            return "off", "disabled"
        if self.keys and not any(key.active for key in self.keys):
            return "off", "no active key"
        if self.shared and self.shared["left_alone_by"]:
            back = self.shared["back_in_seconds"]
            return "failing", f"left alone{f', {back} s more' if back else ''}"
        return self.tried.health, WORDS[self.tried.health]


WORDS = {
    "well": "well",
    "shaky": "some requests fail",
    "failing": "failing",
    "idle": "no requests lately",
}
"""Of `Tried.health`."""


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
        lately=lately, policy=organisation.byok, policies=POLICIES, spoken=SPOKEN,
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
    return await form_page(request, Back({"for": wanted} if wanted else {}))


@router.post("/providers/new")
async def create_provider(request: Request) -> Response:
    """``do`` is ``test``; or ``save``, for what was tested well; or ``anyway``."""
    entered = await entered_by(request, request.state.form)
    if isinstance(entered, str):
        return moved(request, entered, "added")
    return await form_page(request, entered)


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
