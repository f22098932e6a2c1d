"""The list of keys: searched, filtered, in an order, and several of them changed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, field_validator

from passy_plugins.api.denied import Denied
from passy_plugins.api.keys_routes import state
from passy_plugins.api.words import Cursor, Line
from passy_plugins.stores.sql.key_list import KeyKind, KeysAsked, Listed, Order, State
from passy_portal import fields, owned
from passy_portal.accounts import Visitor
from passy_portal.door import Form
from passy_portal.key_form import NANOS, resets
from passy_portal.pages.reading import month, now, tomorrow
from passy_portal.standing import amount, used_in
from passy_portal.tree import EACH, amount_told
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy.periods import Period

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_plugins.stores.sql.admin import Admin

router = APIRouter()

ROWS = 50
ORDERS: Mapping[Order, str] = {
    "oldest": "oldest first",
    "newest": "newest first",
    "name": "by name",
    "spent": "most spent first",
    "used": "last used first",
    "unused": "longest unused first",
    "expires": "first to expire",
}
STATES: Sequence[State] = ("active", "disabled", "expired")
KINDS: Sequence[KeyKind] = ("normal", "test", "trial")
NO_TEAM = "none"
"""In an address: keys of no team."""


class Address(BaseModel):
    """What the page's address asks."""

    q: Line = ""
    status: State | None = None
    team: Line = ""
    kind: KeyKind | None = None
    sort: Order = "oldest"
    cursor: Cursor | None = None

    @field_validator("status", "kind", "cursor", mode="before")
    @classmethod
    def _any(cls, value: object) -> object:
        """What a form sends of a choice that is none."""
        return value or None

    @property
    def filters(self) -> dict[str, str]:
        """Those in force."""
        told = {"q": self.q, "status": self.status, "team": self.team, "kind": self.kind}
        return {name: value for name, value in told.items() if value}

    def link(self, cursor: str) -> str:
        """To the next page."""
        return urlencode({**self.filters, "sort": self.sort, "cursor": cursor})


@router.get("/keys")
async def list_keys(request: Request, address: Annotated[Address, Query()]) -> Response:
    """Those that who asks may see."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    asked = asked_of(visitor, address)
    found = await accounts.admin.lists.keys_of(asked, ROWS, address.cursor)
    moment = now()
    used = await used_limits(accounts.admin, found.rows, moment)
    users = await accounts.admin.list_users(visitor.organisation)
    names = {user.id: user.email or user.name or user.id for user in users}
    rows = [
        {"key": one.key, "title": owned.title(one.key), "state": state(one.key),
         "spent": one.nanos, "used": used.get(one.key.id, 0),
         "limit": limit_of(one), "resets": resets(one.key.usage_period or "total", moment),
         "holder": one.key.email or names.get(one.key.user_id or "", "")}
        for one in found.rows
    ]  # fmt: skip
    return page(
        request, "keys.html", rows=rows, address=address, orders=ORDERS, states=STATES,
        kinds=KINDS, no_team=NO_TEAM, each=EACH, amount_told=amount_told,
        teams=await accounts.admin.list_teams(visitor.organisation),
        more=address.link(found.cursor) if found.cursor else "",
    )  # fmt: skip


@router.post("/keys/several")
async def change_several(request: Request) -> Response:
    """Disable, enable or move those that are ticked: all of them are somebody's who may, or none
    is touched."""
    form: Form = request.state.form
    does = fields.one_of(form, "do", ("disable", "enable", "move"))
    team = form.text("team")
    boxes = [name for name in form if name.startswith("key-")]
    for box in boxes:
        form.text(box)
    form.end()
    ticked = [box.removeprefix("key-") for box in boxes]
    if not ticked:
        raise Denied(422, "invalid_value", "Tick a key first.", "key")
    accounts, visitor = await accounts_of(request), visitor_of(request)
    for id in ticked:
        await owned.key_of(accounts, visitor, id)
    changes: dict[str, Any] = {"disabled": does == "disable"}
    if does == "move":
        changes = {"team": None if team in ("", NO_TEAM) else team}
        known = await accounts.admin.list_teams(visitor.organisation)
        if changes["team"] and changes["team"] not in [one.id for one in known]:
            raise fields.wrong("There is no such team.", "team")
    for id in ticked:
        await owned.change(accounts, visitor, id, changes, "change" if does == "move" else does)
    return moved(request, "/keys", "several")


def asked_of(visitor: Visitor, address: Address) -> KeysAsked:
    """Within what somebody may see, with what each spent this month."""
    team: str | None = address.team or None
    return KeysAsked(
        visitor.organisation, month(), tomorrow(),
        user=visitor.user if visitor.role == "developer" else None,
        team="" if team == NO_TEAM else team, state=address.status, kind=address.kind,
        search=address.q, order=address.sort,
    )  # fmt: skip


def limit_of(one: Listed) -> int:
    """A key's usage limit as the books count."""
    limit = one.key.usage_limit or 0
    return round(limit * NANOS) if one.key.usage_unit == "usd" else round(limit)


async def used_limits(admin: Admin, rows: Sequence[Listed], moment: int) -> dict[str, int]:
    """Key → what is used of its usage limit, in the unit of that."""
    keys = [one.key for one in rows if one.key.usage_limit is not None]
    periods: dict[str, Period] = {key.id: key.usage_period or "total" for key in keys}
    found = await used_in(admin, periods, moment)
    return {key.id: amount(found[key.id], key.usage_unit or "usd") for key in keys}
