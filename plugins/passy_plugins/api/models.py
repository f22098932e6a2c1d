"""What can be asked for: shared upstreams as they are now, and who answers an organisation for
which model, at what price."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from math import isinf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fastapi import APIRouter, Request
from pydantic import Field

from passy_plugins.api.editing import admin_of, present
from passy_plugins.api.errors import responses
from passy_plugins.api.providers import spoken
from passy_plugins.api.switches import SwitchShown, switch_shown
from passy_plugins.api.words import Id, Shown
from passy_plugins.breaker import GAUGE, last_failures, left_alone
from passy_plugins.switches import held
from passy_proxy.models import serves
from passy_proxy.prices import Price
from passy_proxy.upstream import Target

if TYPE_CHECKING:
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.gateway import Gateway
    from passy_proxy.issue import Organisation
    from passy_proxy.records import CustomProvider, StoredCredential, Switch
    from passy_proxy.upstream import Upstream
    from passy_proxy.vitals import Tables

router = APIRouter(tags=["models"])

BYOK = "byok"
"""The filter without which nothing that organisations bring is used."""


class Health(Shown):
    left_alone_by: int = Field(description="Workers that pass it over now, since it kept failing.")
    back_in_seconds: int | None = Field(description="null: not passed over by who answers this.")


class Connected(Shown):
    in_use: int = Field(description="Requests are under way on them.")
    idle: int
    waiting: int = Field(description="Attempts that wait for one.")
    opened: int = Field(description="So far.")
    reused: int = Field(description="How often one was used again.")


class Failed(Shown):
    at: datetime
    kind: str = Field(examples=["connect", "timeout", "status"])
    status: int | None = Field(description="null: nothing was answered.")
    message: str


class UpstreamNow(Health):
    """A shared upstream."""

    name: str
    url: str = Field(description="Empty for one inside the process.")
    dialect: str | None = Field(description="null: inside the process; it takes no key.")
    models: list[str] = Field(description="What it serves without an alias.")
    operators_key: bool = Field(description="Whether the operator has a key for it.")
    tls_verified: bool
    connections: Connected = Field(description="To it, of all workers.")
    last_failure: Failed | None = Field(description="null: the breaker of no worker saw one.")


class UpstreamsNow(Shown):
    rows: list[UpstreamNow]
    left_out: list[str] = Field(description="For want of a credential.")
    dialects: list[str] = Field(description="What an upstream may speak.")
    tenants_may_reach: list[str] = Field(description="Besides public addresses by https.")
    byok: bool = Field(description="Whether what organisations bring is used at all.")
    workers: int


class PriceShown(Shown):
    """US dollars for a million tokens of each kind."""

    input: str = Field(examples=["0.15"])
    output: str
    cached: str
    cache_write: str
    reasoning: str
    audio_input: str
    audio_output: str
    request: str = Field(description="US dollars for each request besides.")
    above: int | None = Field(description="Of longer requests tokens cost something else.")
    source: str


class TargetShown(Health):
    """Who can answer, and what that costs."""

    upstream: str
    model: str = Field(description="Its name there; * stands for the name that is asked for.")
    dialect: str | None = Field(description="null: inside the process.")
    priority: int
    weight: float
    key: Literal["own", "shared", "none"] = Field(description="Whose credential is shown to it.")
    context: int | None = Field(description="Tokens that fit, where the price list says so.")
    price: PriceShown | None = Field(description="null: nobody knows it.")
    price_asked: bool = Field(description="The price list is being asked.")
    switch: SwitchShown | None = Field(
        default=None, description="What somebody decided of it; null: nothing."
    )


class ModelShown(Shown):
    name: str = Field(description="What is asked for; with * a pattern.")
    kind: Literal["alias", "listed", "in_process", "own"] = Field(
        description="From the routing table, from an upstream's list, or of the organisation's own."
    )
    own: bool = Field(description="The organisation's own upstreams answer, and no others.")
    allowed: bool = Field(description="Whether the organisation may ask for it.")
    fallback_on: list[str] | None = Field(description="null: as the chain has it.")
    targets: list[TargetShown] = Field(description="Best first.")
    missing: list[str] = Field(description="Targets left out for want of a credential.")


class ModelsShown(Shown):
    rows: list[ModelShown]
    switchable: bool = Field(description="Whether the gateway goes by switches; see `/switches`.")
    workers: int


@router.get("/upstreams", responses=responses(401))
async def list_upstreams(request: Request) -> UpstreamsNow:
    """The shared upstreams, how they are, and what organisations may bring besides."""
    gateway: Gateway = request.app.state.gateway()
    snapshot, now = gateway.snapshot, _Now(gateway)
    return UpstreamsNow(
        rows=[
            UpstreamNow(
                name=one.name,
                url=one.url,
                dialect=one.dialect.name if one.dialect else None,
                models=list(one.models),
                operators_key=one.credential is not None,
                tls_verified=one.verified,
                connections=now.connections(one.name),
                last_failure=now.failed(one.name),
                **now.health(one),
            )
            for one in snapshot.upstreams.values()
        ],
        left_out=sorted(snapshot.upstreams.left_out),
        dialects=spoken(gateway.parts.registry),
        tenants_may_reach=list(snapshot.settings.connect.tenants_may_reach),
        byok=any(one.name == BYOK for one in snapshot.filters),
        workers=now.workers,
    )


@router.get("/organisations/{id}/models", responses=responses(400, 401, 404, 422, 503))
async def models_of(request: Request, id: Id) -> ModelsShown:
    """All names that an organisation can ask for, and who answers."""
    admin = await admin_of(request)
    organisation = present(await admin.get_organisation(id), "organisation")
    providers = [one for one in await admin.list_providers(id) if one.active]
    keys = [one for one in await admin.list_credentials(id) if one.active]
    gateway: Gateway = request.app.state.gateway()
    now, switchable = _Now(gateway), held(gateway.snapshot, request.app.state.desk.store)
    switches = await admin.list_switches() if switchable else ()
    theirs = _Theirs(organisation, providers, keys)
    rows = list(now.models(theirs, {(one.model, one.target): one for one in switches}))
    return ModelsShown(rows=rows, switchable=switchable, workers=now.workers)


class _Theirs(NamedTuple):
    """What an organisation brings, of that what is in use."""

    organisation: Organisation
    providers: Sequence[CustomProvider]
    keys: Sequence[StoredCredential]

    def allows(self, name: str) -> bool:
        allowed = self.organisation.models
        return allowed is None or serves(allowed, name)

    def serving(self, name: str) -> list[CustomProvider]:
        """Their own upstreams that answer for a name, the first one first."""
        found = [one for one in self.providers if serves(one.models, name)]
        return sorted(found, key=lambda one: (one.priority, one.id))


class _Now:
    """A gateway at this moment."""

    def __init__(self, gateway: Gateway) -> None:
        self._snapshot: Snapshot = gateway.snapshot
        vitals = gateway.site.vitals
        self.workers = max(1, len(vitals.slots))
        self._counted, self._present = vitals.gather()
        self._by = {key[0]: int(row[0]) for key, row in self._present.get(GAUGE, {}).items()}
        self._failed = last_failures(vitals)
        self._back = left_alone(vitals)
        self._at = time.time()

    def health(self, upstream: Upstream) -> dict[str, Any]:
        """The fields of `Health`."""
        back = self._back.get(upstream.name)
        by = self._by.get(upstream.name, 0)
        return {"left_alone_by": by, "back_in_seconds": None if back is None else round(back)}

    def connections(self, name: str) -> Connected:
        def count(tables: Tables, what: str) -> int:
            return int(tables.get(f"upstream_{what}", {}).get((name,), [0])[0])

        now, ever = self._present, self._counted
        idle = count(now, "idle")
        return Connected(
            in_use=count(now, "open") - idle, idle=idle, waiting=count(now, "waiting"),
            opened=count(ever, "opened"), reused=count(ever, "reused"),
        )  # fmt: skip

    def failed(self, name: str) -> Failed | None:
        last = self._failed.get(name)
        if last is None:
            return None
        at = datetime.fromtimestamp(last.at, UTC)
        return Failed(at=at, kind=last.kind, status=last.status or None, message=last.message)

    def models(
        self, theirs: _Theirs, switches: Mapping[tuple[str, str], Switch]
    ) -> Iterator[ModelShown]:
        """Aliases in the order of the file, then what can be named without one, then their own."""
        models, seen = self._snapshot.models, set[str]()
        for alias in models.aliases:
            seen.add(alias.name)
            choices = alias.choices
            first = choices[0] if choices else None
            told = first.fallback_on if first else None
            targets = []
            for choice in choices:
                target = self._target(choice.at(alias.name), choice.priority, choice.weight, theirs)
                if (switch := switches.get((alias.name, choice.label))) is not None:
                    target = target.model_copy(update={"switch": switch_shown(switch)})
                targets.append(target)
            shown = self._model(alias.name, "alias", targets, theirs)
            fallback = None if told is None else sorted(told)
            more = {"missing": list(alias.missing), "fallback_on": fallback}
            yield shown.model_copy(update=more)
        for name in models.names():
            if name not in seen:
                seen.add(name)
                found = models.direct(name) or ()
                kind: Literal["listed", "in_process"] = (
                    "listed" if name in models.listed else "in_process"
                )
                targets = [self._target(one, 0, 1.0, theirs) for one in found]
                yield self._model(name, kind, targets, theirs)
        for provider in theirs.providers:
            for name in provider.models:
                if name not in seen:
                    seen.add(name)
                    yield self._model(name, "own", [], theirs)

    def _model(
        self,
        name: str,
        kind: Literal["alias", "listed", "in_process", "own"],
        targets: list[TargetShown],
        theirs: _Theirs,
    ) -> ModelShown:
        serving = theirs.serving(name)
        if serving:
            targets = [self._own(one, name, theirs) for one in serving]
        return ModelShown(
            name=name, kind=kind, own=bool(serving), allowed=theirs.allows(name),
            fallback_on=None, targets=targets, missing=[],
        )  # fmt: skip

    def _own(self, provider: CustomProvider, name: str, theirs: _Theirs) -> TargetShown:
        try:
            upstream = self._snapshot.connections.custom(provider)
        except ValueError:  # Not under the rules of now: it is shown, and has no price.
            return TargetShown(
                upstream=f"custom-{provider.id}", model=name, dialect=provider.dialect,
                priority=provider.priority, weight=1.0, key="none", context=None, price=None,
                price_asked=False, left_alone_by=0, back_in_seconds=None,
            )  # fmt: skip
        return self._target(Target.at(upstream, name), provider.priority, 1.0, theirs)

    def _target(self, target: Target, priority: int, weight: float, theirs: _Theirs) -> TargetShown:
        upstream, model, prices = target.upstream, target.model, self._snapshot.prices
        pattern = "*" in model
        price = None if pattern else prices.price(upstream, model, self._at)
        return TargetShown(
            upstream=upstream.name,
            model=model,
            dialect=upstream.dialect.name if upstream.dialect else None,
            priority=priority,
            weight=weight,
            key=_key(upstream, theirs),
            context=None if pattern else prices.context(upstream, model),
            price=None if price is None else price_shown(price),
            price_asked=not pattern and price is None and prices.known_soon(upstream, model),
            **self.health(upstream),
        )


def _key(upstream: Upstream, theirs: _Theirs) -> Literal["own", "shared", "none"]:
    if upstream.dialect is None:
        return "none"
    if any(one.upstream == upstream.key for one in theirs.keys):
        return "own"
    if upstream.credential is None or theirs.organisation.byok == "own_only":
        return "none"
    return "shared"


def price_shown(price: Price) -> PriceShown:
    """In US dollars, to the last digit."""
    told = {name: _dollars(rate, 12) for name, rate in price.rates._asdict().items()}
    told["request"] = _dollars(price.rates.request, 18)
    above = None if isinf(price.above) else int(price.above)
    return PriceShown(**told, above=above, source=price.source)


def _dollars(rate: int, places: int) -> str:
    """Attodollars as text: for each token of a million (12 places), or one (18)."""
    return format(Decimal(rate).scaleb(-places).normalize(), "f")
