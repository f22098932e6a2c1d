"""Settings in JSON: the organisation, its webhooks, what models cost; and for who runs the gateway
its configuration."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.budgets import HookUrl, WebhookMade, WebhookTried
from passy_plugins.api.configuration import Plugins, Running
from passy_plugins.api.errors import responses
from passy_plugins.api.gateway import Reloaded
from passy_plugins.api.models import PriceShown
from passy_plugins.api.prices import PriceSet
from passy_plugins.api.words import Body, Id, Name, Shown, shown_at
from passy_portal import hooks, operating, organising, priced
from passy_portal.view import accounts_of, console_of, visitor_of
from passy_proxy.issue import Webhook

router = APIRouter(tags=["settings"])

CHANGE = responses(400, 401, 403, 404, 413, 415, 422, 503)
GATEWAY = responses(401, 403, 404, 503)


class OrganisationChange(Body):
    name: Name


class Settings(Shown):
    organisation: str
    name: str
    status: str
    created_at: str | None
    usage_kept_days: int | None = Field(description="Of single records; null: for ever.")
    usage_known: bool = Field(description="Whether the gateway could be asked for that.")
    runs_the_gateway: bool = Field(description="Whether this organisation sees its configuration.")


class HookShown(Shown):
    id: str
    url: str = Field(description="To those who may not change it, its host alone.")
    enabled: bool
    created_at: str | None


class HooksShown(Shown):
    rows: list[HookShown]


class NewHook(Body):
    url: HookUrl


class HookChange(Body):
    enabled: bool = True


class PricedShown(Shown):
    upstream: str = Field(description="As gateway.yaml names it.")
    provider: str = Field(description="As people do.")
    model: str
    names: list[str] = Field(description="What it is asked for by.")
    price: PriceShown | None
    price_asked: bool = Field(description="The price list is being asked.")
    set_by: str | None = Field(description="Who set it; null where nobody did.")
    set_at: str | None


class Prices(Shown):
    rows: list[PricedShown]
    unpriced: dict[str, int] = Field(
        description="Model → requests of the last 30 days whose cost nobody knows."
    )


@router.get("/api/settings", responses=responses(401, 503))
async def settings(request: Request) -> Settings:
    """The organisation, and how long usage is kept."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await organising.organisation_of(accounts, visitor)
    known, days = await organising.retention(console_of(request))
    return Settings(
        organisation=found.id,
        name=found.name,
        status=found.status,
        created_at=shown_at(found.created),
        usage_kept_days=days,
        usage_known=known,
        runs_the_gateway=await operating.operates(request, accounts, visitor),
    )


@router.patch("/api/settings", responses=CHANGE)
async def change_settings(request: Request, change: OrganisationChange) -> Settings:
    """Another name."""
    await organising.rename(await accounts_of(request), visitor_of(request), change.name)
    return await settings(request)


@router.get("/api/webhooks", responses=responses(401, 503))
async def list_hooks(request: Request) -> HooksShown:
    """Those of the organisation, oldest first."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    whole = visitor.role in ("owner", "admin")
    rows = [shown(one, whole=whole) for one in await hooks.listed(accounts, visitor)]
    return HooksShown(rows=rows)


@router.post("/api/webhooks", status_code=201, responses=CHANGE)
async def create_hook(request: Request, new: NewHook) -> WebhookMade:
    """Have somebody told of budgets that run out. Its secret is shown this once."""
    made, secret = await hooks.create(await accounts_of(request), visitor_of(request), new.url)
    return WebhookMade(
        id=made.id, organisation=made.organisation, url=made.url, events=list(made.events),
        created_at=shown_at(made.created), secret=secret,
    )  # fmt: skip


@router.patch("/api/webhooks/{id}", responses=CHANGE)
async def change_hook(request: Request, id: Id, change: HookChange) -> HookShown:
    """Tell it nothing for a while, or everything again."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if "enabled" in change.model_fields_set:
        await hooks.switch(accounts, visitor, id, on=change.enabled)
    return shown(await hooks.hook_of(accounts, visitor, id), whole=True)


@router.post("/api/webhooks/{id}/test", responses=CHANGE)
async def try_hook(request: Request, id: Id) -> WebhookTried:
    """Send it a signed message of the type `webhook.test`."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    return await hooks.tried(accounts, visitor, console_of(request), id)


@router.delete("/api/webhooks/{id}", status_code=204, responses=CHANGE)
async def remove_hook(request: Request, id: Id) -> Response:
    """Tell it no more."""
    await hooks.remove(await accounts_of(request), visitor_of(request), id)
    return Response(status_code=204)


@router.get("/api/prices", responses=responses(401, 503))
async def list_prices(request: Request) -> Prices:
    """What the models cost that the organisation may ask for."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await priced.prices(accounts, visitor, console_of(request))
    return Prices(
        rows=[
            PricedShown(
                upstream=one.upstream,
                provider=one.provider,
                model=one.model,
                names=one.names,
                price=one.price,
                price_asked=one.asked,
                set_by=one.ours.by if one.ours else None,
                set_at=shown_at(one.ours.at) if one.ours else None,
            )
            for one in found
        ],
        unpriced=await priced.unpriced(accounts, visitor),
    )


@router.put("/api/prices", responses=CHANGE)
async def set_price(request: Request, wanted: PriceSet) -> Prices:
    """Set what a model costs, or leave it as it was before. Gateways follow within seconds; what is
    in the books keeps what it cost."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await priced.set_price(request, accounts, visitor, wanted.target, wanted.rates)
    return await list_prices(request)


@router.get("/api/gateway/configuration", responses=GATEWAY)
async def configuration(request: Request) -> Running:
    """What runs, and how the file differs; for the organisation that runs the gateway."""
    await operating.operating(request, await accounts_of(request), visitor_of(request))
    return Running(**await console_of(request).get("/config"))


@router.get("/api/gateway/plugins", responses=GATEWAY)
async def plugins(request: Request) -> Plugins:
    """What is installed; for the organisation that runs the gateway."""
    await operating.operating(request, await accounts_of(request), visitor_of(request))
    return Plugins(**await console_of(request).get("/plugins"))


@router.post("/api/gateway/reload", responses=responses(401, 403, 404, 409, 415, 503))
async def reload(request: Request) -> Reloaded:
    """Have the configuration read again; for the organisation that runs the gateway."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await operating.operating(request, accounts, visitor)
    return Reloaded(**await organising.reload(accounts, visitor, console_of(request)))


def shown(one: Webhook, *, whole: bool) -> HookShown:
    return HookShown(
        id=one.id,
        url=one.url if whole else hooks.host_of(one.url),
        enabled=bool(one.events),
        created_at=shown_at(one.created),
    )
