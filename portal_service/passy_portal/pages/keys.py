"""Keys: the list, making one and seeing it once, and what can be done with one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.keys_routes import state
from passy_plugins.api.words import Cursor, Id, Line, rate_shown
from passy_plugins.stores.sql.reports import Asked
from passy_portal import fields as read
from passy_portal import owned
from passy_portal.accounts import Accounts
from passy_portal.door import Form, gateway_origin
from passy_portal.pages.reading import LAST, days_before, month, spent_by, tomorrow
from passy_portal.snippets import snippets
from passy_portal.view import moved, page, visitor_of
from passy_proxy.issue import IssuedKey
from passy_proxy.periods import PERIODS
from passy_proxy.records import Limits

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

ROWS = 50
UNITS = ("usd", "tokens")
GRACES = (
    (0, "at once"),
    (3_600, "after an hour"),
    (86_400, "after a day"),
    (604_800, "after 7 days"),
)


async def accounts_of(request: Request) -> Accounts:
    accounts: Accounts = await request.app.state.office.accounts()
    return accounts


@router.get("/keys")
async def list_keys(
    request: Request, q: Annotated[Line, Query()] = "", cursor: Cursor | None = None
) -> Response:
    """Those that who asks may see, oldest first."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await accounts.admin.lists.keys(owned.values_of(visitor), q, ROWS, cursor)
    spent = await spent_by(accounts.admin, visitor, "key", month())
    rows = [{"key": key, "title": owned.title(key), "state": state(key),
             "spent": spent.get(key.id)} for key in found.rows]  # fmt: skip
    return page(request, "keys.html", rows=rows, q=q, cursor=found.cursor, later=bool(cursor))


@router.get("/keys/new")
async def new_key(request: Request) -> Response:
    """The form for a key."""
    return page(request, "key_new.html", **await _choices(request), values={}, error="", at="")


@router.post("/keys/new")
async def create_key(request: Request) -> Response:
    """A key, shown this once."""
    form: Form = request.state.form
    values = dict(form)
    try:
        fields = fields_of(form, new=True)
        form.end()
        made, key = await owned.create(await accounts_of(request), visitor_of(request), fields)
    except Denied as error:
        return page(
            request, "key_new.html", status=error.status, **await _choices(request),
            values=values, error=str(error), at=error.param or "",
        )  # fmt: skip
    return made_page(request, made, key)


@router.get("/keys/{id}")
async def show_key(request: Request, id: Id) -> Response:
    """One of them: what it is, what it spent, and what can be done with it."""
    key = await owned.key_of(await accounts_of(request), visitor_of(request), id)
    return await _shown(request, key, {}, "", "")


@router.post("/keys/{id}")
async def change_key(request: Request, id: Id) -> Response:
    """What the form says, all of it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    key = await owned.key_of(accounts, visitor, id)
    form: Form = request.state.form
    values = dict(form)
    try:
        fields = fields_of(form, new=False)
        form.end()
        limits = fields.pop("limits")
        fields |= {"requests": limits.requests, "tokens": limits.tokens,
                   "concurrency": limits.concurrency}  # fmt: skip
        await owned.change(accounts, visitor, id, fields)
    except Denied as error:
        return await _shown(request, key, values, str(error), error.param or "", error.status)
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
        return await _shown(request, key, {}, message, "typed", 422)
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
    codes = snippets(gateway_origin(request), key, _model(request, made))
    return page(request, "key_made.html", snippets=codes, **given)


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
    error: str,
    at: str,
    status: int = 200,
) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    month_asked = Asked(days_before(LAST), tomorrow(), {"key": key.id,
                        "organisation": visitor.organisation})  # fmt: skip
    sums = await accounts.admin.reports.totals(month_asked)
    holder = await accounts.admin.get_user(key.user_id) if key.user_id else None
    return page(
        request, "key.html", status=status, key=key, title=owned.title(key), state=state(key),
        values=values or _values(key), error=error, at=at, sums=sums, graces=GRACES,
        holder=holder, **await _choices(request),
    )  # fmt: skip


def _values(key: IssuedKey) -> dict[str, str]:
    """A key as the fields of its form."""
    limit = key.usage_limit
    return {
        "name": key.name,
        "email": key.email or "",
        "description": key.description,
        "team": key.team or "",
        "tags": ", ".join(key.tags),
        "models": ", ".join(key.models or ()),
        "networks": ", ".join(key.networks or ()),
        "requests": rate_shown(key.limits.requests) or "",
        "tokens": rate_shown(key.limits.tokens) or "",
        "concurrency": str(key.limits.concurrency or ""),
        "usage_limit": "" if limit is None else f"{limit:.9f}".rstrip("0").rstrip("."),
        "usage_period": key.usage_period or "month",
        "usage_unit": key.usage_unit or "usd",
        "expires": datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%d")
        if key.expires else "",
    }  # fmt: skip


def fields_of(form: Form, *, new: bool) -> dict[str, Any]:
    """What a form says of a key. `Denied` names the field that is wrong."""
    period = read.one_of(form, "usage_period", PERIODS)
    unit = form.text("usage_unit") or "usd"
    if unit not in UNITS:
        raise read.wrong("There is no such unit.", "usage_unit")
    amount = read.tokens if unit == "tokens" else read.dollars
    name = form.text("name")
    if not name:
        raise read.wrong("Give the key a name.", "name")
    fields: dict[str, Any] = {
        "name": name,
        "email": read.email(form),
        "description": form.text("description"),
        "team": form.text("team") or None,
        "tags": tuple(form.lines("tags")),
        "models": tuple(form.lines("models")) or None,
        "networks": tuple(form.lines("networks")) or None,
        "limits": Limits(
            read.rate(form, "requests"), read.rate(form, "tokens"),
            read.whole(form, "concurrency"),
        ),
        "usage_limit": amount(form, "usage_limit"),
        "usage_period": period,
        "usage_unit": unit,
        "expires": read.day(form, "expires"),
    }  # fmt: skip
    if new:
        kind = form.text("kind")
        if kind not in ("", "test", "trial"):
            raise read.wrong("There is no such kind.", "kind")
        fields |= {"is_test": kind == "test", "is_trial": kind == "trial"}
    return fields
