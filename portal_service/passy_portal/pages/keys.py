"""Keys: the list, making one and seeing it once, and what can be done with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.keys_routes import state
from passy_plugins.api.words import Id
from passy_plugins.stores.sql.reports import Asked
from passy_portal import owned
from passy_portal.door import Form, gateway_origin
from passy_portal.key_form import (
    NANOS,
    Doubt,
    doubt,
    fields_of,
    resets,
    sure_of,
    used_of,
    values_of,
)
from passy_portal.pages.reading import LAST, days_before, now, tomorrow
from passy_portal.placing import teams_of
from passy_portal.snippets import snippets
from passy_portal.tree import EACH, amount_told
from passy_portal.view import accounts_of, asking, moved, page, visitor_of
from passy_proxy.issue import IssuedKey
from passy_proxy.periods import PERIODS

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

GRACES = (
    (0, "at once"),
    (3_600, "after an hour"),
    (86_400, "after a day"),
    (604_800, "after 7 days"),
)


@router.get("/keys/new")
async def new_key(request: Request) -> Response:
    """The form for a key."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    own = (await teams_of(accounts.admin, visitor.organisation)).get(visitor.user, "")
    return page(
        request, "key_new.html", **await _choices(request), values={"team": own}, error="", at="",
        sure="",
    )  # fmt: skip


@router.post("/keys/new")
async def create_key(request: Request) -> Response:
    """A key, shown this once."""
    form: Form = request.state.form
    values = dict(form)
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        sure = sure_of(form)
        fields = fields_of(form, new=True)
        form.end()
        await doubt(accounts.admin, visitor, fields, sure)
        made, key = await owned.create(accounts, visitor, fields)
    except Denied as error:
        return page(
            request, "key_new.html", status=error.status, **await _choices(request),
            values=values, error=str(error), at=error.param or "",
            sure=error.sure if isinstance(error, Doubt) else "",
        )  # fmt: skip
    return made_page(request, made, key)


@router.get("/keys/{id}")
async def show_key(request: Request, id: Id) -> Response:
    """One of them: what it is, what it spent, and what can be done with it."""
    key = await owned.key_of(await accounts_of(request), visitor_of(request), id)
    return await _shown(request, key, {})


@router.post("/keys/{id}")
async def change_key(request: Request, id: Id) -> Response:
    """What the form says, all of it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    key = await owned.key_of(accounts, visitor, id)
    form: Form = request.state.form
    values = dict(form)
    try:
        sure = sure_of(form)
        fields = fields_of(form, new=False)
        form.end()
        await doubt(accounts.admin, visitor, fields, sure, key)
        limits = fields.pop("limits")
        fields |= {"requests": limits.requests, "tokens": limits.tokens,
                   "concurrency": limits.concurrency}  # fmt: skip
        await owned.change(accounts, visitor, id, fields)
    except Denied as error:
        return await _shown(request, key, values, error)
    return moved(request, f"/keys/{id}", "saved")


@router.post("/keys/{id}/roll")
async def roll_key(request: Request, id: Id) -> Response:
    """Another secret for it, shown this once."""
    form: Form = request.state.form
    text = form.text("grace")
    form.end()
    if text not in [str(seconds) for seconds, _ in GRACES]:
        raise Denied(422, "invalid_value", "There is no such choice.", "grace")
    accounts, visitor = await accounts_of(request), visitor_of(request)
    made, key = await owned.roll(accounts, visitor, id, float(text))
    return made_page(request, made, key, rolled=dict(GRACES)[int(text)])


@router.post("/keys/{id}/disable")
async def disable_key(request: Request, id: Id) -> Response:
    """Nobody gets in with it until it is enabled."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await owned.change(accounts, visitor, id, {"disabled": True}, "disable")
    return moved(request, f"/keys/{id}", "disabled")


@router.post("/keys/{id}/enable")
async def enable_key(request: Request, id: Id) -> Response:
    """As before it was disabled."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await owned.change(accounts, visitor, id, {"disabled": False}, "enable")
    return moved(request, f"/keys/{id}", "enabled")


@router.post("/keys/{id}/delete")
async def delete_key(request: Request, id: Id) -> Response:
    """For good, for who types its name."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    key = await owned.key_of(accounts, visitor, id)
    form: Form = request.state.form
    typed = form.text("typed")
    form.end()
    if typed != owned.title(key):
        message = f"To delete it, type its name: {owned.title(key)}"
        error = Denied(422, "invalid_value", message, "typed")
        return await _shown(request, key, {}, error)
    await owned.remove(accounts, visitor, id)
    return moved(request, "/keys", "deleted")


def made_page(
    request: Request,
    made: IssuedKey,
    key: str,
    *,
    first: bool = False,
    rolled: str = "",
) -> Response:
    """The one page that holds a key."""
    given: dict[str, Any] = {
        "made": made,
        "title": owned.title(made),
        "key": key,
        "first": first,
        "rolled": rolled,
    }
    origin, model = gateway_origin(request), _model(request, made)
    codes = snippets(origin, key, model)
    return page(
        request, "key_made.html", headers=asking(origin), snippets=codes, **given,
        ask={"url": f"{origin}/v1/chat/completions", "model": model},
    )  # fmt: skip


def _model(request: Request, key: IssuedKey) -> str:
    """One that answers: the echo costs nothing."""
    plain = [name for name in key.models or () if "*" not in name]
    return plain[0] if plain and "echo" not in plain else "echo"


async def _choices(request: Request) -> dict[str, Any]:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    return {"teams": await accounts.admin.list_teams(visitor.organisation), "periods": PERIODS}


async def _shown(
    request: Request,
    key: IssuedKey,
    values: dict[str, str],
    error: Denied | None = None,
) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    month_asked = Asked(days_before(LAST), tomorrow(), {"key": key.id,
                        "organisation": visitor.organisation})  # fmt: skip
    sums = await accounts.admin.reports.totals(month_asked)
    used = 0
    if key.usage_limit is not None:
        period, unit = key.usage_period or "total", key.usage_unit or "usd"
        used = await used_of(accounts.admin, key, period, unit, now())
    holder = await accounts.admin.get_user(key.user_id) if key.user_id else None
    return page(
        request, "key.html", status=error.status if error else 200, key=key,
        title=owned.title(key), state=state(key), values=values or values_of(key),
        error=str(error or ""), at=(error and error.param) or "",
        sure=error.sure if isinstance(error, Doubt) else "",
        sums=sums, graces=GRACES, used=used, resets=resets(key.usage_period or "total", now()),
        amount_told=amount_told, each=EACH, nanos=NANOS,
        holder=holder, **await _choices(request),
    )  # fmt: skip
