"""Organisations' own upstreams, and how what they bring is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, Field, SecretStr

from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import (
    IfMatch,
    Pages,
    admin_of,
    editing,
    present,
    tagged,
)
from passy_plugins.api.errors import responses
from passy_plugins.api.organisations import known as known_organisation
from passy_plugins.api.words import Body, Id, Line, Models, Name, Shown, Whole, changed
from passy_proxy.advice import advice
from passy_proxy.config.model import BaseURL
from passy_proxy.issue import NewProvider
from passy_proxy.records import Credential, CustomProvider
from passy_proxy.transport.connect import BadOrigin, parse_origin
from passy_proxy.trial import Trial, candidates, trial

if TYPE_CHECKING:
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.gateway import Gateway
    from passy_proxy.registry import Registry
    from passy_proxy.upstream import Upstream

router = APIRouter(tags=["providers"])

OURS = ("openai", "anthropic")
"""Dialects that are there whether or not the configuration names them."""
LOWEST, HIGHEST = -(1 << 31), (1 << 31) - 1


def _sendable(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError("a header cannot carry this: a space at an end, or an odd character")
    return secret


WriteOnly = Annotated[
    SecretStr,
    AfterValidator(_sendable),
    Field(min_length=1, max_length=4_000, description="It is never shown again."),
]
Switch = Literal["active", "disabled"]
Priority = Annotated[Whole, Field(ge=LOWEST, le=HIGHEST, description="Lowest first.")]
Url = Annotated[BaseURL, Field(max_length=2_000, description="Where it is reached.")]


class NewProviderBody(Body):
    name: Name
    url: Url
    dialect: Name = Field(default="openai", description="What it speaks.")
    models: Models = Field(default=["*"], description="What it serves; * stands for anything.")
    status: Switch = "active"
    priority: Priority = 0
    credential: WriteOnly | None = Field(default=None, description="Its key; null: it needs none.")


class ProviderChange(Body):
    name: Name = ""
    url: Url = ""
    dialect: Name = ""
    models: Models = Field(default=[])
    status: Switch = "active"
    priority: Priority = 0


class ProviderShown(Shown):
    id: str
    upstream: str = Field(description="What it is called in usage: custom-<id>.")
    organisation: str
    name: str
    url: str
    dialect: str
    models: list[str]
    status: Switch
    priority: int
    version: int


class Providers(Shown):
    rows: list[ProviderShown]
    cursor: str | None


class Trying(Body):
    model: Line = Field(default="", description="What to ask for; else one that is listed.")


class StepShown(Shown):
    name: Literal["authentication", "models", "call"]
    verdict: Literal["ok", "refused", "limited", "failed", "unclear", "skipped"]
    ms: int
    status: int = Field(description="Of the upstream's answer; 0 when there was none.")
    message: str = Field(description="In our words.")
    theirs: str = Field(description="In the upstream's.")


class Tried(Shown):
    ok: bool = Field(description="Whether the key can be used.")
    upstream: str
    steps: list[StepShown]
    models: list[str] = Field(description="Those that the upstream listed.")
    advice: list[str] = Field(description="What to check where it did not go well.")


LIST = responses(400, 401, 404, 422, 503)
MAKE = responses(400, 401, 404, 413, 422, 503)
EDIT = responses(400, 401, 404, 412, 413, 422, 503)
TRY = responses(400, 401, 404, 409, 413, 422, 503)


@router.post("/organisations/{id}/providers", status_code=201, responses=MAKE)
async def create_provider(request: Request, id: Id, new: NewProviderBody) -> ProviderShown:
    """Enter an upstream of an organisation's own, and its key."""
    await known_organisation(request, id)
    check(request, new.url, new.dialect)
    values = {name: getattr(new, name) for name in type(new).model_fields if name != "credential"}
    wanted = NewProvider(organisation=id, **values | {"models": tuple(new.models)})
    secret = new.credential.get_secret_value() if new.credential else None
    made = await (await admin_of(request)).add_provider(wanted, secret)
    return provider(await known_provider(request, id, made))


@router.get("/organisations/{id}/providers", responses=LIST)
async def list_providers(request: Request, id: Id, query: Pages) -> Providers:
    """An organisation's own upstreams, oldest first."""
    await known_organisation(request, id)
    page = await (await admin_of(request)).lists.providers(id, query.limit, query.cursor)
    return Providers(rows=[provider(one) for one in page.rows], cursor=page.cursor)


@router.get("/organisations/{id}/providers/{provider_id}", responses=LIST)
async def show_provider(
    request: Request, response: Response, id: Id, provider_id: Id
) -> ProviderShown:
    """What is known of one."""
    return tagged(response, provider(await known_provider(request, id, provider_id)))


@router.patch("/organisations/{id}/providers/{provider_id}", responses=EDIT)
async def change_provider(
    request: Request,
    response: Response,
    id: Id,
    provider_id: Id,
    change: ProviderChange,
    if_match: IfMatch = None,
) -> ProviderShown:
    """Change what is named. Its connections are made anew."""

    async def current() -> ProviderShown:
        return provider(await known_provider(request, id, provider_id))

    values = dict(changed(change))
    check(request, values.get("url"), values.get("dialect"))
    async with editing(request, provider_id, if_match, current) as admin:
        if values:
            present(await admin.change_provider(provider_id, **values), "provider")
        return tagged(response, await current())


@router.delete("/organisations/{id}/providers/{provider_id}", status_code=204, responses=LIST)
async def delete_provider(request: Request, id: Id, provider_id: Id) -> Response:
    """With its keys."""
    await known_provider(request, id, provider_id)
    present(await (await admin_of(request)).remove_provider(provider_id), "provider")
    return Response(status_code=204)


@router.post("/organisations/{id}/providers/{provider_id}/test", responses=TRY)
async def try_provider(
    request: Request, id: Id, provider_id: Id, trying: Trying | None = None
) -> Tried:
    """Try it with its first key: is it taken, what is listed, does a call go through. That costs a
    few tokens."""
    own = await known_provider(request, id, provider_id)
    admin = await admin_of(request)
    keys = await admin.list_credentials(id)
    mine = [one.id for one in keys if one.upstream == own.id and one.active]
    key = await admin.open_credential(mine[0]) if mine else None
    return await tried(request, custom(request, own), key, trying)


async def tried(
    request: Request, upstream: Upstream, key: Credential | None, trying: Trying | None
) -> Tried:
    """What came of a trial."""
    if upstream.dialect is None:
        raise Denied(409, "no_upstream", f"The upstream {upstream.name} takes no key.")
    model = trying.model if trying else ""
    names = [model] if model else candidates(upstream, snapshot_of(request).models)
    result: Trial = await trial(upstream, key, names)
    return Tried(
        ok=result.ok,
        upstream=result.upstream,
        steps=[
            StepShown(
                name=step.name,
                verdict=step.verdict,
                ms=step.ms,
                status=step.status,
                message=step.message,
                theirs=step.theirs,
            )
            for step in result.steps
        ],
        models=list(result.models),
        advice=list(advice(result)),
    )


def snapshot_of(request: Request) -> Snapshot:
    gateway: Gateway = request.app.state.gateway()
    return gateway.snapshot


def custom(request: Request, own: CustomProvider, *, kept: bool = True) -> Upstream:
    """The upstream of an organisation's own, under the rules for tenants. One that is not ``kept``
    is the caller's to close."""
    connections = snapshot_of(request).connections
    try:
        return connections.custom(own) if kept else connections.built(own)
    except ValueError as error:
        raise Denied(409, "provider_url_refused", f"{own.url} cannot be used: {error}") from None


def check(request: Request, url: str | None, dialect: str | None) -> None:
    """422 for a URL that tenants may not have, and for a dialect that nobody speaks here."""
    parts = request.app.state.gateway().parts
    if url is not None:
        try:
            parse_origin(url, True, parts.connector.settings.allow)
        except BadOrigin as error:
            raise Denied(
                422, "invalid_value", f"The url cannot be used: {error}", "body.url"
            ) from None
    if dialect is not None and dialect not in (known := spoken(parts.registry)):
        message = f"No such dialect; there are {', '.join(known)}."
        raise Denied(422, "invalid_value", message, "body.dialect")


def spoken(registry: Registry) -> list[str]:
    """The dialects that an upstream may speak: ours, and those of plugins in use."""
    for name in OURS:
        registry.dialect(name)
    return sorted(registry.dialects)


async def provider_of(request: Request, organisation: str, id: str) -> CustomProvider | None:
    """404s are for others: ``None`` where it is not theirs."""
    found = await (await admin_of(request)).list_providers(organisation)
    return next((one for one in found if one.id == id), None)


async def known_provider(request: Request, organisation: str, id: str) -> CustomProvider:
    found: CustomProvider = present(await provider_of(request, organisation, id), "provider")
    return found


def provider(one: CustomProvider) -> ProviderShown:
    return ProviderShown(
        id=one.id,
        upstream=f"custom-{one.id}",
        organisation=one.organisation,
        name=one.name,
        url=one.url,
        dialect=one.dialect,
        models=list(one.models),
        status="active" if one.active else "disabled",
        priority=one.priority,
        version=one.version,
    )
