"""Prices that people set, before what the configuration and the price list say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import admin_of
from passy_plugins.api.errors import responses, suggestion
from passy_plugins.api.words import Body, Shown, shown_at
from passy_proxy.config.model import PriceSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from passy_proxy.gateway import Gateway
    from passy_proxy.records import SetPrice

router = APIRouter(tags=["models"])

MOST = 1_000_000
Dollars = Annotated[float, Field(ge=0, le=MOST)]
TargetName = Annotated[
    str, Field(min_length=3, max_length=400, pattern=r"^[^\s/*\x00-\x1f]+/[^*\x00-\x1f\x7f]+$")
]
"""``upstream/model``."""


class Rates(Body):
    """US dollars for a million tokens. A kind that is not named costs like any other that is read
    or written."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None
    cache_write: Dollars | None = None
    reasoning: Dollars | None = None
    audio_input: Dollars | None = None
    audio_output: Dollars | None = None


class PriceSet(Body):
    target: TargetName = Field(description="upstream/model, as requests reach it.")
    rates: Rates | None = Field(
        description="null leaves it to the configuration and the price list again."
    )


class SetPriceShown(Shown):
    """What somebody set a price to."""

    target: str
    rates: Rates
    by: str = Field(description="A user's id; empty: who held the admin token.")
    at: str


class SetPrices(Shown):
    rows: list[SetPriceShown]


@router.get("/prices", responses=responses(401, 503))
async def list_prices(request: Request) -> SetPrices:
    """Those that somebody set; what the gateway goes by otherwise is told with its models."""
    return await shown(request)


@router.put("/prices", responses=responses(400, 401, 404, 413, 422, 503))
async def set_price(request: Request, wanted: PriceSet) -> SetPrices:
    """Set one, or leave it as it was before. Gateways whose books are in this store follow within
    seconds; what is in the books keeps what it cost."""
    gateway: Gateway = request.app.state.gateway()
    admin = await admin_of(request)
    if wanted.rates is not None:
        known = [*gateway.snapshot.upstreams, *gateway.snapshot.upstreams.left_out]
        known += [f"custom-{one.id}" for one in await admin.list_providers()]
        check(wanted.target, known)
    await admin.set_price(wanted.target, told(wanted.rates))
    return await shown(request)


async def shown(request: Request) -> SetPrices:
    found = await (await admin_of(request)).list_prices()
    return SetPrices(rows=[price_set(one) for one in found])


def price_set(one: SetPrice) -> SetPriceShown:
    rates = Rates.model_validate(one.rates)
    return SetPriceShown(target=one.target, rates=rates, by=one.by, at=str(shown_at(one.at)))


def told(rates: Rates | None) -> dict[str, float] | None:
    """As the store keeps them."""
    return None if rates is None else rates.model_dump(exclude_none=True)


def settings_of(one: SetPrice) -> PriceSettings:
    return PriceSettings.model_validate(one.rates)


def check(target: str, upstreams: Iterable[str]) -> None:
    """404 for one of an upstream that there is not."""
    upstream, known = target.partition("/")[0], list(upstreams)
    if upstream not in known:
        message = f"There is no upstream {upstream}.{suggestion(upstream, known)}"
        raise Denied(404, "not_found", message, "body.target")
