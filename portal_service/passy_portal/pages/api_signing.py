"""How one's own account is entered, in JSON: the password, the second factor, and the providers one
signs in with.

A provider is signed in to by a browser, which nothing here can do in its place: what begins that
answers with the address to open.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import responses
from passy_plugins.api.words import Body, Id, Shown, shown_at
from passy_portal import personal, totp
from passy_portal.flows import keep, new_flow, provider_of, way_back
from passy_portal.identities import identities_of, unlinked
from passy_portal.oidc import Flow, Refused
from passy_portal.pages.api_account import CHANGE, OWN, Me, anew
from passy_portal.pages.second import ISSUER
from passy_portal.view import accounts_of, office_of, visitor_of

router = APIRouter(tags=["account"])

GOING = responses(400, 401, 403, 404, 413, 415, 422, 429, 503)


class PasswordShown(Shown):
    exists: bool
    allowed: bool = Field(description="Whether one lets them in here: see `passwords`.")
    proven_until: str | None = Field(
        description="Until when a first one can be chosen; null: sign in with the provider first."
    )


class PasswordChange(Body):
    current: str = Field(default="", max_length=1_000, description="Of who has one.")
    new: str = Field(max_length=1_000)


class Proving(Body):
    provider: str = Field(max_length=200, description="Its name in gateway.yaml.")


class Going(Shown):
    to: str = Field(
        description="Where to sign in next, with this browser or with the cookies of this answer: "
        "the provider leads back to the portal, which does the rest."
    )


class SecondShown(Shown):
    on: bool
    since: str | None
    recovery_codes: int = Field(description="Those that are left.")
    required: bool = Field(description="An organisation of theirs asks for it.")


class SecondBegun(Shown):
    secret: str = Field(description="For an app; it counts as soon as a code confirms it.")
    uri: str = Field(description="The same, as QR codes have it.")


class Code(Body):
    code: str = Field(max_length=40)


class CodeAndPassword(Code):
    password: str = Field(default="", max_length=1_000, description="Of who has one.")


class RecoveryCodes(Shown):
    recovery_codes: list[str] = Field(description="Shown this once; each is good once.")
    csrf_token: str = Field(description="Of the session that goes on.")


class IdentityShown(Shown):
    id: str
    provider: str | None = Field(
        description="Its name in gateway.yaml; null: it has none any more, and lets nobody in."
    )
    title: str
    subject: str = Field(description="Who they are there.")
    created_at: str | None


class ProviderShown(Shown):
    name: str
    title: str


class IdentitiesShown(Shown):
    rows: list[IdentityShown]
    others: list[ProviderShown] = Field(description="Providers that can be linked.")


class Linking(Body):
    provider: str = Field(max_length=200, description="Its name in gateway.yaml.")
    password: str = Field(default="", max_length=1_000, description="Of who has one.")


class Unlinking(Body):
    password: str = Field(default="", max_length=1_000, description="Of who has one.")


@router.get("/api/me/password", responses=OWN)
async def show_password(request: Request) -> PasswordShown:
    """Whether one has a password, or may choose one."""
    accounts, visitor, office = await accounts_of(request), visitor_of(request), office_of(request)
    proven = visitor.proven if personal.is_proven(visitor) else None
    return PasswordShown(
        exists=await accounts.has_password(visitor.user),
        allowed=await personal.may_have_password(accounts, visitor, office),
        proven_until=shown_at(proven),
    )


@router.put("/api/me/password", responses=CHANGE)
async def change_password(request: Request, response: Response, change: PasswordChange) -> Me:
    """Another one, for who knows the present one, or a first one, for who has just signed in with
    their provider once more. All sessions end, and this one begins anew."""
    accounts, visitor, office = await accounts_of(request), visitor_of(request), office_of(request)
    await personal.change_password(accounts, visitor, office, change.current, change.new)
    return await anew(request, response, visitor.organisation)


@router.post("/api/me/password/proof", responses=GOING)
async def begin_proof(request: Request, response: Response, proving: Proving) -> Going:
    """Sign in once more with a provider, to choose a first password then, or to link another
    provider."""
    flow = new_flow(proving.provider, visitor=visitor_of(request), proves=True)
    return await _going(request, response, flow)


# The second factor


@router.get("/api/second", responses=OWN)
async def show_second(request: Request) -> SecondShown:
    """Whether one has a second factor."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    factor = await accounts.factors.of(visitor.user)
    on = factor is not None and factor.confirmed is not None
    return SecondShown(
        on=on, since=shown_at(factor.confirmed if factor else None),
        recovery_codes=factor.codes if factor else 0,
        required=bool(await accounts.factors.required_of(visitor.user)),
    )  # fmt: skip


@router.post("/api/second", status_code=201, responses=CHANGE)
async def begin_second(request: Request) -> SecondBegun:
    """A secret for an app, in the place of one that was not confirmed."""
    visitor = visitor_of(request)
    secret = await personal.begin_second(await accounts_of(request), visitor)
    return SecondBegun(secret=secret, uri=totp.uri(secret, visitor.email, ISSUER))


@router.post("/api/second/confirm", responses=CHANGE)
async def confirm_second(
    request: Request, response: Response, shown: CodeAndPassword
) -> RecoveryCodes:
    """From now on it is asked for. All sessions end, and this one begins anew."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    codes = await personal.confirm_second(accounts, visitor, shown.code, shown.password)
    return await _coded(request, response, codes)


@router.post("/api/second/codes", responses=CHANGE)
async def renew_codes(request: Request, response: Response, shown: Code) -> RecoveryCodes:
    """Other recovery codes, for who shows a code. All sessions end, and this one begins anew."""
    codes = await personal.renew_codes(
        await accounts_of(request), visitor_of(request), shown.code
    )  # fmt: skip
    return await _coded(request, response, codes)


@router.post("/api/second/drop", responses=CHANGE)
async def drop_second(request: Request, response: Response, shown: CodeAndPassword) -> Me:
    """Do without it, for who knows the password and shows a code. All sessions end, and this one
    begins anew."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await personal.drop_second(accounts, visitor, shown.code, shown.password)
    return await anew(request, response, visitor.organisation, second=False)


async def _coded(request: Request, response: Response, codes: list[str]) -> RecoveryCodes:
    told = await anew(request, response, visitor_of(request).organisation, second=True)
    return RecoveryCodes(recovery_codes=codes, csrf_token=told.csrf_token)


# Providers that vouch for them


@router.get("/api/identities", responses=OWN)
async def list_identities(request: Request) -> IdentitiesShown:
    """The accounts elsewhere that one signs in with."""
    accounts, providers = await accounts_of(request), office_of(request).providers
    found = await identities_of(accounts, providers, visitor_of(request).user)
    rows = [
        IdentityShown(
            id=one.id, provider=one.provider, title=one.title, subject=one.subject,
            created_at=shown_at(one.created),
        )
        for one in found
    ]  # fmt: skip
    others = [ProviderShown(name=one.name, title=one.title) for one in unlinked(providers, found)]
    return IdentitiesShown(rows=rows, others=others)


@router.post("/api/identities", responses=GOING)
async def begin_link(request: Request, response: Response, linking: Linking) -> Going:
    """Link one more: it is there as soon as they have signed in there. Who has no password signs in
    with the provider they have once more before."""
    provider_of(request, linking.provider)
    visitor = visitor_of(request)
    await personal.check_linking(await accounts_of(request), visitor, linking.password)
    return await _going(request, response, new_flow(linking.provider, visitor=visitor))


async def _going(request: Request, response: Response, flow: Flow) -> Going:
    provider = provider_of(request, flow.provider)
    try:
        to = await provider.beginning(flow, way_back(request, flow.provider))
    except Refused as refused:
        raise Denied(503, "provider_unavailable", str(refused)) from refused
    await keep(request, response, flow)
    return Going(to=to)


@router.post("/api/identities/{id}/unlink", status_code=204, responses=CHANGE)
async def unlink(request: Request, id: Id, unlinking: Unlinking | None = None) -> Response:
    """Sign in with it no more. All other sessions end."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    password = (unlinking or Unlinking()).password
    await personal.unlink(accounts, visitor, office_of(request), id, password)
    return Response(status_code=204)
