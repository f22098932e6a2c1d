"""One's own account in JSON: who has signed in, where they work, and their sessions. How an account
is entered is in ``api_signing.py``.

What begins a session anew answers with the token of the new one, and sets its cookie.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent, responses
from passy_plugins.api.words import Body, Id, Shown, shown_at
from passy_portal import personal
from passy_portal.accounts import Visitor
from passy_portal.door import COOKIE, address, cookie_name, csrf_of
from passy_portal.pages.sessions import begun, signed_in
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
