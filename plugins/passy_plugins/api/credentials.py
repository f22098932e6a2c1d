"""Organisations' own keys, for shared upstreams and their own. A secret goes in and never comes
out; what is shown of it is its last four characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.editing import IfMatch, Pages, admin_of, editing, present, tagged
from passy_plugins.api.organisations import known as known_organisation
from passy_plugins.api.providers import (
    EDIT,
    LIST,
    MAKE,
    TRY,
    Priority,
    Switch,
    Tried,
    Trying,
    Url,
    WriteOnly,
    check,
    custom,
    provider_of,
    snapshot_of,
    tried,
)
from passy_plugins.api.words import Body, Id, Line, Name, Shown, changed, shown_at
from passy_proxy.config.problem import nearest
from passy_proxy.issue import NewCredential
from passy_proxy.records import Credential, CustomProvider, StoredCredential

if TYPE_CHECKING:
    from passy_proxy.upstream import Upstream

router = APIRouter(tags=["providers"])


class NewCredentialBody(Body):
    upstream: Name = Field(description="The name of a shared upstream, or the id of a provider.")
    secret: WriteOnly
    name: Line = ""
    status: Switch = "active"
    priority: Priority = 0


class CredentialChange(Body):
    secret: WriteOnly | None = Field(default=None, description="A new one in its place.")
    name: Line = ""
    status: Switch = "active"
    priority: Priority = 0


class Untried(Body):
    """A key that is not entered yet, for a shared upstream or for one at a URL."""

    upstream: Line = Field(default="", description="The name of a shared upstream.")
    url: Url | None = Field(default=None, description="Where else it is reached.")
    dialect: Name = Field(default="openai", description="What that speaks.")
    secret: WriteOnly | None = Field(default=None, description="null: it needs no key.")
    model: Line = Field(default="", description="What to ask for; else one that is listed.")


class CredentialShown(Shown):
    id: str
    organisation: str
    upstream: str
    name: str
    status: Switch
    priority: int
    last_four: str = Field(description="Of the secret; empty where that would say too much.")
    version: int = Field(description="Grows with each new secret.")
    created_at: str | None


class Credentials(Shown):
    rows: list[CredentialShown]
    cursor: str | None


@router.post("/organisations/{id}/credentials", status_code=201, responses=MAKE)
async def create_credential(request: Request, id: Id, new: NewCredentialBody) -> CredentialShown:
    """Enter an organisation's own key for an upstream."""
    await known_organisation(request, id)
    await check_upstream(request, id, new.upstream)
    wanted = NewCredential(id, new.upstream, new.name, new.priority, new.status)
    admin = await admin_of(request)
    made = await admin.add_credential(wanted, new.secret.get_secret_value())
    return credential(await known_credential(request, id, made))


@router.get("/organisations/{id}/credentials", responses=LIST)
async def list_credentials(request: Request, id: Id, query: Pages) -> Credentials:
    """An organisation's own keys, oldest first; never the secrets."""
    await known_organisation(request, id)
    page = await (await admin_of(request)).lists.credentials(id, query.limit, query.cursor)
    return Credentials(rows=[credential(one) for one in page.rows], cursor=page.cursor)


@router.get("/organisations/{id}/credentials/{credential_id}", responses=LIST)
async def show_credential(
    request: Request, response: Response, id: Id, credential_id: Id
) -> CredentialShown:
    """What is known of one."""
    return tagged(response, credential(await known_credential(request, id, credential_id)))


@router.patch("/organisations/{id}/credentials/{credential_id}", responses=EDIT)
async def change_credential(
    request: Request,
    response: Response,
    id: Id,
    credential_id: Id,
    change: CredentialChange,
    if_match: IfMatch = None,
) -> CredentialShown:
    """Change what is named. Without a `secret` the one that is there stays."""

    async def current() -> CredentialShown:
        return credential(await known_credential(request, id, credential_id))

    values = dict(changed(change))
    if (secret := values.pop("secret", None)) is not None:
        values["secret"] = secret.get_secret_value()
    async with editing(request, credential_id, if_match, current) as admin:
        if values:
            present(await admin.change_credential(credential_id, **values), "credential")
        return tagged(response, await current())


@router.delete("/organisations/{id}/credentials/{credential_id}", status_code=204, responses=LIST)
async def delete_credential(request: Request, id: Id, credential_id: Id) -> Response:
    """Forget it."""
    await known_credential(request, id, credential_id)
    present(await (await admin_of(request)).remove_credential(credential_id), "credential")
    return Response(status_code=204)


@router.post("/organisations/{id}/credentials/test", responses=TRY)
async def try_new(request: Request, id: Id, new: Untried) -> Tried:
    """Try a key before it is entered, as `try_credential` does. Nothing of it is kept."""
    await known_organisation(request, id)
    if bool(new.upstream) == bool(new.url):
        raise Denied(422, "invalid_value", "Give an upstream or a url.", "body.upstream")
    key = Credential(new.secret.get_secret_value(), id, "new") if new.secret else None
    if not new.url:
        await check_upstream(request, id, new.upstream)
        return await tried(request, shared(request, new.upstream), key, Trying(model=new.model))
    check(request, new.url, new.dialect)
    own = CustomProvider("new", id, "new", new.dialect, new.url, ("*",))
    upstream = custom(request, own, kept=False)
    try:
        return await tried(request, upstream, key, Trying(model=new.model))
    finally:
        await upstream.transport.aclose()


@router.post("/organisations/{id}/credentials/{credential_id}/test", responses=TRY)
async def try_credential(
    request: Request, id: Id, credential_id: Id, trying: Trying | None = None
) -> Tried:
    """Try it: is it taken, what is listed, does a call go through. That costs a few tokens."""
    stored = await known_credential(request, id, credential_id)
    admin = await admin_of(request)
    own = await provider_of(request, id, stored.upstream)
    upstream = custom(request, own) if own is not None else shared(request, stored.upstream)
    key = present(await admin.open_credential(credential_id), "credential")
    return await tried(request, upstream, key, trying)


def shared(request: Request, name: str) -> Upstream:
    """409 for one that is not there, or left out."""
    found = snapshot_of(request).upstreams.get(name)
    if found is None:
        raise Denied(409, "no_upstream", f"The upstream {name} is not there, or left out.")
    return found


async def check_upstream(request: Request, organisation: str, name: str) -> None:
    """422 for what is neither a shared upstream nor one of theirs."""
    upstreams = snapshot_of(request).upstreams
    if name in upstreams or name in upstreams.left_out:
        return
    if await provider_of(request, organisation, name) is None:
        meant = nearest(name, [*upstreams, *upstreams.left_out])
        hint = f"; did you mean {meant}?" if meant else "."
        message = f"There is no upstream {name}{hint}"
        raise Denied(422, "invalid_value", message, "body.upstream")


async def known_credential(request: Request, organisation: str, id: str) -> StoredCredential:
    listed = await (await admin_of(request)).list_credentials(organisation)
    found: StoredCredential = present(
        next((one for one in listed if one.id == id), None), "credential"
    )
    return found


def credential(one: StoredCredential) -> CredentialShown:
    fields: dict[str, Any] = {
        name: getattr(one, name)
        for name in ("id", "organisation", "upstream", "name", "priority", "version")
    }
    return CredentialShown(
        **fields,
        status="active" if one.active else "disabled",
        last_four=one.shown,
        created_at=shown_at(one.created),
    )
