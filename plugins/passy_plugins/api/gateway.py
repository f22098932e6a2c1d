"""The gateway itself: how it is, who answers for a model, and its configuration read again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent, responses
from passy_plugins.api.words import Shown
from passy_plugins.routing import provider, route
from passy_proxy import StoreUnavailable, __version__
from passy_proxy.in_step import Failed, drain_all, reload_all
from passy_proxy.log import dropped

if TYPE_CHECKING:
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.gateway import Gateway

router = APIRouter(tags=["gateway"])

PATIENCE = 2.0
"""Seconds that the database has to say a word for the status."""
MODES = ("on_error", "when_")
"""How the settings begin that say what becomes of a request when something it needs is away."""


class Configuration(Shown):
    path: str | None = Field(description="null: given as text.")
    hash: str
    problem: str = Field(description="Why the file is not what runs; empty when it is.")
    warnings: list[str]


class UpstreamShown(Shown):
    name: str
    url: str = Field(description="Empty for one inside the process.")
    tls_verified: bool
    has_credential: bool


class FilterShown(Shown):
    name: str
    modes: dict[str, str] = Field(description="What its failure, or its store's, means.")


class StoreShown(Shown):
    name: str
    kind: str
    waiting_bytes: int | None = Field(description="Of records in the journal that wait for it.")
    full: bool | None = Field(description="Whether the journal has no room for new records.")
    hears_changes: bool | None = Field(description="Whether edits are told to it as they happen.")
    keeps_usage: bool = Field(description="Whether it has single records of usage.")
    kept_days: int | None = Field(description="How long it keeps those; null: for ever.")


class Status(Shown):
    """How the worker is that answers."""

    version: str
    worker: int
    workers: int
    draining: bool
    overload: str
    running: int = Field(description="Exchanges under way.")
    log_lines_dropped: int
    configuration: Configuration
    apps: dict[str, str] = Field(description="Path → application.")
    apps_left_out: dict[str, str] = Field(description="Path → how to have it.")
    upstreams: list[UpstreamShown]
    upstreams_left_out: list[str] = Field(description="For want of a credential.")
    tls_off: list[str] = Field(description="Upstreams whose certificate is not checked.")
    filters: list[FilterShown]
    stores: list[StoreShown]
    database: str = Field(description="ok, or why it cannot be asked.")


class Reloaded(Shown):
    hash: str = Field(description="Of the configuration that runs now.")
    workers: int = Field(description="How many processes run it: all of this host.")
    warnings: list[str]


class Draining(Shown):
    draining: bool = Field(description="Clients are to be sent elsewhere; /readyz says 503.")
    ending: bool = Field(description="And the process is about to end: nobody can take that back.")
    workers: int = Field(description="How many processes it is said of: all of this host.")
    running: int = Field(description="Exchanges under way in all of them, this one among them.")


class Choice(Shown):
    provider: str
    model: str
    priority: int


class Alias(Shown):
    """One row of the routing table, in the words of earlier set-ups."""

    alias: str
    targets: list[Choice]
    fallbackOn: list[str] | None
    timeout: int | None = Field(description="Milliseconds.")
    leftOut: list[str] = Field(
        description="Upstreams that it names and that are left out for want of a credential."
    )


class Provider(Shown):
    id: str
    name: str
    baseUrl: str
    models: list[str]
    dialect: str | None
    verified: bool


class Routing(Shown):
    providers: list[Provider]
    routes: list[Alias]


@router.get("/status", responses=responses(401))
async def status(request: Request) -> Status:
    """How the gateway is: configuration, overload, stores, what is switched off."""
    gateway: Gateway = request.app.state.gateway()
    snapshot, vitals = gateway.snapshot, gateway.site.vitals
    upstreams = snapshot.upstreams
    unchecked = [one.name for one in upstreams.values() if not one.verified]
    return Status(
        version=__version__,
        worker=vitals.number,
        workers=max(1, len(vitals.slots)),
        draining=gateway.leaving,
        overload=gateway.overload.told if gateway.overload is not None else "ok",
        running=gateway.running,
        log_lines_dropped=dropped(),
        configuration=Configuration(
            path=str(gateway.path) if gateway.path else None,
            hash=snapshot.hash.decode(),
            problem=gateway.problem,
            warnings=[str(one) for one in snapshot.warnings],
        ),
        apps={one.path or "/": one.application.name for one in snapshot.mounts},
        apps_left_out=snapshot.apps_left_out,
        upstreams=[
            UpstreamShown(
                name=one.name,
                url=one.url,
                tls_verified=one.verified,
                has_credential=one.credential is not None,
            )
            for one in upstreams.values()
        ],
        upstreams_left_out=sorted(upstreams.left_out),
        tls_off=unchecked,
        filters=filters(snapshot),
        stores=[store(name, one) for name, one in snapshot.stores.items()],
        database=await database(request),
    )


@router.post("/reload", responses=responses(401, 409))
async def reload(request: Request) -> Reloaded:
    """Read the configuration again, in all workers of this host. Where it is refused the old one
    goes on serving, and `problems` says all that is wrong, `param` being file:line:column; where
    single workers refuse it, which they are."""
    gateway: Gateway = request.app.state.gateway()
    failed = await reload_all(gateway)
    if gateway.problem:
        wrong = [(one.place, one.message) for one in gateway.problems if one.severity == "error"]
        raise Denied(409, "configuration_refused", gateway.problem, problems=wrong)
    snapshot = gateway.snapshot
    if failed:
        raise differing(gateway, failed, "do not run it")
    return Reloaded(
        hash=snapshot.hash.decode(),
        workers=max(1, len(gateway.site.vitals.slots)),
        warnings=[str(one) for one in snapshot.warnings],
    )


@router.get("/drain", responses=responses(401))
async def draining(request: Request) -> Draining:
    """Whether clients are sent elsewhere."""
    return standing(request.app.state.gateway())


@router.post("/drain", responses=responses(401, 409))
async def drain(request: Request) -> Draining:
    """Have clients sent elsewhere, in all workers of this host: `/readyz` says 503 and every answer
    that its connection closes, as before an end; but all who come are served, and nothing ends.
    `DELETE` takes it back, and so does a restart of the gateway."""
    return await drained(request, away=True)


@router.delete("/drain", responses=responses(401, 409))
async def undrain(request: Request) -> Draining:
    """Have clients sent here again."""
    return await drained(request, away=False)


async def drained(request: Request, *, away: bool) -> Draining:
    gateway: Gateway = request.app.state.gateway()
    if gateway.draining:
        raise Denied(409, "draining", "The gateway was told to end, and nobody can take that back.")
    if failed := await drain_all(gateway, away):
        raise differing(gateway, failed, "have not come to it")
    return standing(gateway)


def standing(gateway: Gateway) -> Draining:
    vitals = gateway.site.vitals
    return Draining(
        draining=gateway.leaving,
        ending=gateway.draining,
        workers=max(1, len(vitals.slots)),
        running=round(vitals.gather()[1]["in_flight"][()][0]),
    )


def differing(gateway: Gateway, failed: Failed, what: str) -> Denied:
    """Not all workers did what they were asked."""
    wrong = [(f"worker {number}", why) for number, why in sorted(failed.items())]
    message = f"Of {len(gateway.site.vitals.slots)} workers {len(failed)} {what}."
    return Denied(409, "workers_differ", message, problems=wrong)


@router.get("/routing", responses=responses(401))
async def routing(request: Request) -> Routing:
    """The routing table: the providers, and who answers for which alias."""
    snapshot = request.app.state.gateway().snapshot
    return Routing(
        providers=[Provider.model_validate(provider(one)) for one in snapshot.upstreams.values()],
        routes=[Alias.model_validate(route(one)) for one in snapshot.models.aliases],
    )


@router.get("/routing/{alias:path}", responses=responses(400, 401, 404, 422))
async def routing_of(request: Request, alias: str) -> Alias:
    """One row of the table; also for a name that fits a pattern in it."""
    found = request.app.state.gateway().snapshot.models.find(alias)
    if found is None:
        raise absent("alias")
    return Alias.model_validate(route(found))


def filters(snapshot: Snapshot) -> list[FilterShown]:
    """Each filter once, with the settings that say what a failure means."""
    told: dict[tuple[Any, ...], FilterShown] = {}
    for one in snapshot.filters:
        fields = type(one.config).model_fields
        modes = {name: str(getattr(one.config, name)) for name in fields if name.startswith(MODES)}
        told[one.name, *sorted(modes.items())] = FilterShown(name=one.name, modes=modes)
    return list(told.values())


def store(name: str, one: Any) -> StoreShown:
    return StoreShown(
        name=name,
        kind=one.kind,
        waiting_bytes=getattr(one, "waiting", None),
        full=getattr(one, "full", None),
        hears_changes=getattr(one, "hears", None),
        keeps_usage=hasattr(one, "keep"),
        kept_days=getattr(one, "keep", None),
    )


async def database(request: Request) -> str:
    """``ok``, or what keeps it from answering."""
    try:
        async with asyncio.timeout(PATIENCE):
            await (await request.app.state.desk.admin()).get_key("key_0")
    except TimeoutError:
        return f"it says nothing within {PATIENCE:g} s"
    except StoreUnavailable as error:
        return str(error)
    return "ok"
