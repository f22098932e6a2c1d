"""One's own account in JSON: who has signed in, sessions, the password, the second factor, and the
providers one signs in with.

What begins a session anew answers with the token of the new one, and sets its cookie.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent, responses
from passy_plugins.api.words import Body, Id, Shown, shown_at
from passy_portal import personal, totp
from passy_portal.accounts import Visitor
from passy_portal.door import COOKIE, address, cookie_name, csrf_of
from passy_portal.identities import identities_of
from passy_portal.pages.second import ISSUER
from passy_portal.pages.signing import begun, signed_in
from passy_portal.view import accounts_of, visitor_of
from passy_proxy.issue import Role

router = APIRouter(tags=["account"])

OWN = responses(401, 503)
CHANGE = responses(400, 401, 403, 404, 409, 413, 415, 422, 429, 503)


class Me(Shown):
    """Who has signed in."""

    user: str
    email: str
    name: str
    organisation: str
    organisation_name: str
    role: Role
    second_factor_due: bool = Field(
        description="The organisation asks for a second factor: until it is there, nothing else is."
    )
    csrf_token: str = Field(description="For the header `x-csrf-token` of each change.")


class PlaceShown(Shown):
    organisation: str
    name: str
    role: Role


class PlacesShown(Shown):
    rows: list[PlaceShown]


class PlaceChange(Body):
    organisation: Id


class SessionShown(Shown):
    id: str
    agent: str
    address: str
    created_at: str | None
    seen_at: str | None
    this: bool = Field(description="The one that asks.")


class SessionsShown(Shown):
    rows: list[SessionShown] = Field(description="Last used first.")


class Ended(Shown):
    ended: int


class PasswordChange(Body):
    current: str = Field(max_length=1_000)
    new: str = Field(max_length=1_000)


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


class IdentitiesShown(Shown):
    rows: list[IdentityShown]


class Unlinking(Body):
    password: str = Field(default="", max_length=1_000, description="Of who has one.")


@router.get("/api/me", responses=OWN)
async def me(request: Request) -> Me:
    """Who has signed in, and what changes need."""
    cookie = request.cookies.get(cookie_name(request, COOKIE), "")
    return who(visitor_of(request), cookie)


@router.get("/api/me/organisations", responses=OWN)
async def list_places(request: Request) -> PlacesShown:
    """Those that one can work in."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await personal.places_of(accounts.admin, visitor.user)
    rows = [PlaceShown(organisation=organisation.id, name=organisation.name, role=one.role)
            for one, organisation in found]  # fmt: skip
    return PlacesShown(rows=rows)


@router.put("/api/me/organisation", responses=CHANGE)
async def change_place(request: Request, response: Response, change: PlaceChange) -> Me:
    """Work in another one, in a new session."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await personal.check_place(accounts, visitor, change.organisation)
    return await anew(request, response, change.organisation)


@router.put("/api/me/password", responses=CHANGE)
async def change_password(request: Request, response: Response, change: PasswordChange) -> Me:
    """Another one, for who knows the present one. All sessions end, and this one begins anew."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await personal.change_password(accounts, visitor, change.current, change.new)
    return await anew(request, response, visitor.organisation)


# Sessions


@router.get("/api/sessions", responses=OWN)
async def list_sessions(request: Request) -> SessionsShown:
    """One's own."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    rows = [
        SessionShown(
            id=one.id, agent=one.agent, address=one.address, created_at=shown_at(one.created),
            seen_at=shown_at(one.seen), this=one.id == visitor.session,
        )
        for one in await accounts.sessions_of(visitor.user)
    ]  # fmt: skip
    return SessionsShown(rows=rows)


@router.delete("/api/sessions", responses=CHANGE)
async def end_sessions(request: Request) -> Ended:
    """All but the one that asks."""
    ended = await personal.end_others(await accounts_of(request), visitor_of(request))
    return Ended(ended=ended)


@router.delete("/api/sessions/{id}", status_code=204, responses=CHANGE)
async def end_session(request: Request, id: Id) -> Response:
    """One of one's own."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if not await accounts.end_session(visitor.user, id):
        raise absent("session")
    return Response(status_code=204)


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
    """The accounts elsewhere that one signs in with. One more is linked under Account."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    found = await identities_of(accounts, request.app.state.office.providers, visitor.user)
    rows = [
        IdentityShown(
            id=one.id, provider=one.provider, title=one.title, subject=one.subject,
            created_at=shown_at(one.created),
        )
        for one in found
    ]  # fmt: skip
    return IdentitiesShown(rows=rows)


@router.post("/api/identities/{id}/unlink", status_code=204, responses=CHANGE)
async def unlink(request: Request, id: Id, unlinking: Unlinking | None = None) -> Response:
    """Sign in with it no more. All other sessions end."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    password = (unlinking or Unlinking()).password
    await personal.unlink(accounts, visitor, request.app.state.office, id, password)
    return Response(status_code=204)


async def anew(
    request: Request, response: Response, organisation: str, *, second: bool | None = None
) -> Me:
    """Who they are in a new session, whose cookie ``response`` sets. ``second``: whether they have
    shown a second factor; as in the session before where it is ``None``."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    shown = visitor.second if second is None else second
    cookie = await begun(request, accounts, visitor.user, organisation, second=shown)
    now = await accounts.visitor(cookie, address(request)) if cookie else None
    if cookie is None or now is None:
        raise Denied(403, "not_allowed", "You are a member of no organisation.")
    signed_in(request, response, accounts, cookie, visitor.email)
    return who(now, cookie)


def who(visitor: Visitor, cookie: str) -> Me:
    return Me(
        user=visitor.user,
        email=visitor.email,
        name=visitor.name,
        organisation=visitor.organisation,
        organisation_name=visitor.organisation_name,
        role=visitor.role,
        second_factor_due=visitor.barred,
        csrf_token=csrf_of(cookie),
    )
