"""Providers in JSON: what an organisation brings, as the admin API has it, and how that does."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.credentials import (
    CredentialChange,
    CredentialShown,
    NewCredentialBody,
    Untried,
    credential,
)
from passy_plugins.api.errors import responses
from passy_plugins.api.models import Health
from passy_plugins.api.organisations import Byok
from passy_plugins.api.providers import (
    NewProviderBody,
    ProviderChange,
    ProviderShown,
    Tried,
    Trying,
    provider,
)
from passy_plugins.api.words import Body, Id, Shown, changed, shown_at
from passy_portal import brought
from passy_portal.recent import Recent, recent
from passy_portal.recent import Tried as TriedLately
from passy_portal.view import accounts_of, console_of, visitor_of
from passy_proxy.issue import NewCredential, NewProvider
from passy_proxy.records import StoredCredential

router = APIRouter(tags=["providers"])


class Lately(Shown):
    """The last 24 hours, as far as who asks may see them."""

    attempts: int
    failed: int
    health: str = Field(description="idle, well, shaky (5 % failed) or failing (half).")
    last_ok_at: str | None = Field(description="Before yesterday its day.")
    last_failure: str = Field(description="Why the latest try that failed did.")
    since: str = Field(description="In busy books less than 24 hours ago.")


class ProviderSeen(ProviderShown):
    lately: Lately


class ProvidersSeen(Shown):
    rows: list[ProviderSeen]


class CredentialSeen(CredentialShown):
    lately: Lately


class CredentialsSeen(Shown):
    rows: list[CredentialSeen]


class SharedSeen(Health):
    """A shared provider, and how it serves this organisation."""

    name: str
    dialect: str | None = Field(description="null: inside the gateway; it takes no key.")
    operators_key: bool = Field(description="Whether the operator has a key for it.")
    own_keys: int = Field(description="Active ones of this organisation.")
    lately: Lately


class UpstreamsSeen(Shown):
    rows: list[SharedSeen]
    left_out: list[str] = Field(description="The operator has no key for them.")
    dialects: list[str]
    byok: Byok = Field(description="Whether the operator's keys serve where there is none of own.")
    used: bool = Field(description="Whether the gateway uses what organisations bring.")
    workers: int


class Policy(Body):
    byok: Byok


READ = responses(400, 401, 403, 404, 422, 503)
CHANGE = responses(400, 401, 403, 404, 413, 415, 422, 503)
TRY = responses(400, 401, 403, 404, 409, 413, 415, 422, 429, 503)


@router.get("/api/upstreams", responses=responses(401, 503))
async def list_upstreams(request: Request) -> UpstreamsSeen:
    """The shared providers, and whose keys are shown to them."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    told = await console_of(request).get("/upstreams")
    lately = await recent(accounts.admin, visitor)
    organisation = await accounts.admin.get_organisation(visitor.organisation)
    keys = await accounts.admin.list_credentials(visitor.organisation)
    assert organisation is not None
    return UpstreamsSeen(
        rows=[
            SharedSeen(
                **{name: one[name] for name in ("name", "dialect", "operators_key",
                                                "left_alone_by", "back_in_seconds")},
                own_keys=sum(key.upstream == one["name"] and key.active for key in keys),
                lately=lately_of(lately, one["name"]),
            )
            for one in told["rows"]
        ],
        left_out=told["left_out"],
        dialects=told["dialects"],
        byok=organisation.byok,
        used=told["byok"],
        workers=told["workers"],
    )  # fmt: skip


@router.patch("/api/byok", responses=CHANGE)
async def change_policy(request: Request, policy: Policy) -> Policy:
    """Whether the operator's keys serve where the organisation has none of its own."""
    await brought.set_policy(await accounts_of(request), visitor_of(request), policy.byok)
    return policy


@router.get("/api/providers", responses=responses(401, 503))
async def list_providers(request: Request) -> ProvidersSeen:
    """The organisation's own ones, oldest first."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    lately = await recent(accounts.admin, visitor)
    found = await accounts.admin.list_providers(visitor.organisation)
    return ProvidersSeen(rows=[seen(provider(one), lately) for one in found])


@router.post("/api/providers", status_code=201, responses=CHANGE)
async def create_provider(request: Request, new: NewProviderBody) -> ProviderShown:
    """Enter one, with its key. Nothing is tried."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await brought.check_place(console_of(request), new.url, new.dialect)
    wanted = NewProvider(
        visitor.organisation, new.name, new.url, new.dialect, tuple(new.models), new.status,
        new.priority,
    )  # fmt: skip
    secret = new.credential.get_secret_value() if new.credential else None
    return provider(await brought.PROVIDER.add(accounts, visitor, wanted, secret))


@router.get("/api/providers/{id}", responses=READ)
async def show_provider(request: Request, id: Id) -> ProviderSeen:
    """What is known of one."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = provider(await brought.PROVIDER.one(accounts, visitor, id))
    return seen(found, await recent(accounts.admin, visitor))


@router.patch("/api/providers/{id}", responses=CHANGE)
async def change_provider(request: Request, id: Id, change: ProviderChange) -> ProviderShown:
    """Change what is named."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await brought.PROVIDER.one(accounts, visitor, id)
    values = dict(changed(change))
    await brought.check_place(console_of(request), values.get("url"), values.get("dialect"))
    return provider(await brought.PROVIDER.change(accounts, visitor, id, values))


@router.delete("/api/providers/{id}", status_code=204, responses=CHANGE)
async def delete_provider(request: Request, id: Id) -> Response:
    """With its keys."""
    await brought.PROVIDER.remove(await accounts_of(request), visitor_of(request), id)
    return Response(status_code=204)


@router.post("/api/providers/{id}/test", responses=TRY)
async def try_provider(request: Request, id: Id, trying: Trying | None = None) -> Tried:
    """Try it with its first key: is it taken, what is listed, does a call go through. That costs a
    few tokens."""
    await brought.PROVIDER.one(await accounts_of(request), visitor_of(request), id)
    return Tried(**await _tried(request, f"/providers/{id}/test", trying))


@router.get("/api/credentials", responses=responses(401, 503))
async def list_credentials(request: Request) -> CredentialsSeen:
    """The organisation's own keys, in the order in which they are shown; never the secrets."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await accounts.admin.list_credentials(visitor.organisation)
    lately = await recent(accounts.admin, visitor)
    return CredentialsSeen(rows=[key_seen(one, lately) for one in found])


@router.post("/api/credentials", status_code=201, responses=CHANGE)
async def create_credential(request: Request, new: NewCredentialBody) -> CredentialShown:
    """Enter a key for a shared provider or one of its own. Nothing is tried."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await brought.check_upstream(accounts, visitor, console_of(request), new.upstream)
    wanted = NewCredential(
        visitor.organisation, new.upstream, new.name, new.priority, new.status
    )  # fmt: skip
    secret = new.secret.get_secret_value()
    return credential(await brought.CREDENTIAL.add(accounts, visitor, wanted, secret))


@router.post("/api/credentials/test", responses=TRY)
async def try_new(request: Request, new: Untried) -> Tried:
    """Try a key before it is entered. Nothing of it is kept."""
    told = new.model_dump(exclude={"secret"}, exclude_none=True)
    told["secret"] = new.secret.get_secret_value() if new.secret else None
    path = "/credentials/test"
    return Tried(**await brought.tried(console_of(request), visitor_of(request), path, told))


@router.get("/api/credentials/{id}", responses=READ)
async def show_credential(request: Request, id: Id) -> CredentialSeen:
    """What is known of one."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await brought.CREDENTIAL.one(accounts, visitor, id)
    return key_seen(found, await recent(accounts.admin, visitor))


@router.patch("/api/credentials/{id}", responses=CHANGE)
async def change_credential(request: Request, id: Id, change: CredentialChange) -> CredentialShown:
    """Change what is named. Without a `secret` the one that is there stays."""
    values = dict(changed(change))
    if (secret := values.pop("secret", None)) is not None:
        values["secret"] = secret.get_secret_value()
    accounts = await accounts_of(request)
    return credential(await brought.CREDENTIAL.change(accounts, visitor_of(request), id, values))


@router.delete("/api/credentials/{id}", status_code=204, responses=CHANGE)
async def delete_credential(request: Request, id: Id) -> Response:
    """Forget it."""
    await brought.CREDENTIAL.remove(await accounts_of(request), visitor_of(request), id)
    return Response(status_code=204)


@router.post("/api/credentials/{id}/test", responses=TRY)
async def try_credential(request: Request, id: Id, trying: Trying | None = None) -> Tried:
    """Try it: is it taken, what is listed, does a call go through. That costs a few tokens."""
    await brought.CREDENTIAL.one(await accounts_of(request), visitor_of(request), id)
    return Tried(**await _tried(request, f"/credentials/{id}/test", trying))


async def _tried(request: Request, path: str, trying: Trying | None) -> Any:
    told = {"model": trying.model if trying else ""}
    return await brought.tried(console_of(request), visitor_of(request), path, told)


def seen(one: ProviderShown, lately: Recent) -> ProviderSeen:
    return ProviderSeen(**one.model_dump(), lately=lately_of(lately, one.upstream))


def key_seen(one: StoredCredential, lately: Recent) -> CredentialSeen:
    told = _lately(lately, lately.with_key(one.id))
    return CredentialSeen(**credential(one).model_dump(), lately=told)


def lately_of(found: Recent, upstream: str) -> Lately:
    return _lately(found, found.of(upstream))


def _lately(found: Recent, tried: TriedLately) -> Lately:
    return Lately(
        attempts=tried.attempts,
        failed=tried.failed,
        health=tried.health,
        last_ok_at=shown_at(tried.last_ok),
        last_failure=tried.last_failure,
        since=str(shown_at(found.since / 1000)),
    )
