"""Settings, Prices: what models cost, from where that is known, and what people set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError

from passy_plugins.api.denied import Denied
from passy_plugins.api.prices import PriceSet, Rates
from passy_portal import priced
from passy_portal.access import may
from passy_portal.console import GatewayAway
from passy_portal.door import Form
from passy_portal.fields import dollars, wrong
from passy_portal.pages.settings import settings_page
from passy_portal.priced import Priced
from passy_portal.view import accounts_of, console_of, moved, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

KINDS = {
    "input": "Tokens read",
    "output": "Tokens written",
    "cached_input": "Read from a cache",
    "cache_write": "Written into a cache",
    "reasoning": "Thought",
    "audio_input": "Audio heard",
    "audio_output": "Audio spoken",
}


@router.get("/settings/prices")
async def prices(request: Request) -> Response:
    """What models cost, from where that is known, and of which nobody knows."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    away, rows = "", []
    try:
        rows = await priced.prices(accounts, visitor, console_of(request))
    except GatewayAway as error:
        away = error.reason
    return await settings_page(
        request, "settings_prices.html", rows=rows, away=away,
        missing=[one for one in rows if one.unknown],
        leads=may(visitor.role, "POST", "/settings/prices/set"),
        unpriced=await priced.unpriced(accounts, visitor),
    )  # fmt: skip


@router.get("/settings/prices/set")
async def set_form(
    request: Request, target: Annotated[str, Query(max_length=400)] = ""
) -> Response:
    """A form for what one costs."""
    return await _form(request, target.strip())


@router.post("/settings/prices/set")
async def set_price(request: Request) -> Response:
    """From now on it costs that, or again what the configuration or the price list says."""
    form: Form = request.state.form
    target, do = form.text("target", 400), form.text("do")
    typed = {name: form.get(name, "") for name in KINDS}
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        rates = _read(form) if do != "reset" else None
        if do == "reset":
            for name in KINDS:
                form.pop(name, None)
        form.end()
        try:
            wanted = PriceSet(target=target, rates=rates)
        except ValidationError:
            raise wrong("Write upstream/model, as the table has it.", "target") from None
        await priced.set_price(request, accounts, visitor, wanted.target, wanted.rates)
    except Denied as error:
        return await _form(request, target, error, typed)
    return moved(request, "/settings/prices", "price-reset" if rates is None else "price")


def _read(form: Form) -> Rates:
    told = {name: dollars(form, name) for name in KINDS}
    for name in ("input", "output"):
        if told[name] is None:
            raise wrong("Say what these cost; 0 is free.", name)
    try:
        return Rates(**told)  # type: ignore[arg-type]  # Both are there.
    except ValidationError as error:
        raise wrong("This is too much.", str(error.errors()[0]["loc"][0])) from None


async def _form(
    request: Request, target: str, error: Denied | None = None, typed: dict[str, str] | None = None
) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found: Priced | None = None
    away = ""
    if "/" in target and not await priced.may_set(request, accounts, visitor, target):
        raise Denied(403, "not_allowed", priced.NOT_THEIRS)
    try:
        rows = await priced.prices(accounts, visitor, console_of(request))
        found = next((one for one in rows if one.target == target), None)
    except GatewayAway as gone:
        away = gone.reason
    rates = found.ours.rates if found and found.ours else {}
    values = typed or {name: f"{rates[name]:.15g}" for name in KINDS if name in rates}
    at = (error.param or "").removeprefix("body.") if error else ""
    return await settings_page(
        request, "settings_price.html", error.status if error else 200, target=target, found=found,
        kinds=KINDS, values={"target": target, **values}, away=away,
        error=str(error) if error else "", at=at,
    )  # fmt: skip
