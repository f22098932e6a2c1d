"""One member: their role, another password for who has lost theirs, and the whole organisation for
who shall own it. And invitations that are sent once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.words import UserId
from passy_portal import audit
from passy_portal.accounts import Accounts
from passy_portal.audit import Noted, Who
from passy_portal.door import Form, address, is_safe, own_origin
from passy_portal.identities import has_identity
from passy_portal.links import RESET_GOOD_FOR, Invitation
from passy_portal.mail import Undelivered
from passy_portal.pages.signing import GONE, PLAIN, begun, said, signed_in
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy.issue import Member, User

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.accounts import Visitor
    from passy_portal.mail import Mailer

router = APIRouter()

RESETS = ("reset", "reset-all", "mailed", "mailed-all")
"""Kinds of links: those that were shown to who made them, those that were not; and with ``-all``
the second factor goes too."""
INVITED = """{who} invites you to {organisation}, as {role}.

Open this to join; it is good for seven days, for one person:

{link}

If you do not know what this is about, leave it: nothing happens.
"""
RESET = """{who} has asked for another password of yours at {organisation}.

Open this to choose one; it is good for a day, once:

{link}

If you did not ask for it, tell them.
"""


@router.get("/team/{user_id}")
async def member(request: Request, user_id: UserId) -> Response:
    """What an organisation knows of one of its members."""
    return await _page(request, user_id)


@router.post("/team/{user_id}/transfer")
async def transfer(request: Request, user_id: UserId) -> Response:
    """They are the owner, and who was it is an admin. Sessions of both begin anew."""
    form: Form = request.state.form
    typed = form.text("typed")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if user_id == visitor.user:
        raise Denied(409, "conflict", "It is yours already.")
    if typed != visitor.organisation_name:
        error = f"Type the name of the organisation: {visitor.organisation_name}."
        return await _page(request, user_id, error, 422)
    admin, mine = accounts.admin, visitor.organisation
    async with accounts.noting(visitor.who, "organisation.transfer", mine) as noted:
        was, _ = await member_of(accounts, visitor, user_id)
        noted.before, noted.after = {"owner": visitor.user}, {"owner": user_id}
        await admin.set_member(mine, user_id, "owner")
        await admin.set_member(mine, visitor.user, "admin")
        for user, before, after in (
            (user_id, was.role, "owner"),
            (visitor.user, "owner", "admin"),
        ):
            told = Noted(visitor.who, user, {"role": before}, {"role": after})
            async with admin.connected() as connection:
                await audit.enter(connection, admin.keyring, "member.role", told)
            await accounts.end_all(user)
    cookie = await begun(request, accounts, visitor.user, mine, second=visitor.second)
    assert cookie is not None
    response = moved(request, "/team", "transferred")
    signed_in(request, response, accounts, cookie, visitor.email)
    return response


@router.post("/team/{user_id}/reset")
async def make_reset(request: Request, user_id: UserId) -> Response:
    """A link by which they choose another password. Where they are a member of something else as
    well it is mailed to them and shown to nobody: an account is not one organisation's."""
    form: Form = request.state.form
    second = form.text("second") == "yes"
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    _, user = await member_of(accounts, visitor, user_id)
    alone = len(await accounts.admin.places_of(user_id)) == 1
    mailer: Mailer | None = request.app.state.office.mailer
    try:
        if user_id == visitor.user:
            raise Denied(409, "conflict", "Your own password is changed under Account.")
        if not user.email:
            raise Denied(409, "conflict", "They have no e-mail address to sign in with.")
        if not await accounts.has_password(user_id) and await has_identity(accounts, user_id):
            raise Denied(409, "conflict", "They sign in with a provider, and have no password.")
        if not alone and mailer is None:
            message = (
                "They are a member of another organisation as well, so a link may go to nobody but"
                " them; and no mail server is set."
            )
            raise Denied(409, "conflict", message)
    except Denied as denied:
        return await _page(request, user_id, str(denied), denied.status)
    noted = {"second_factor_too": second}
    async with accounts.noting(visitor.who, "member.reset", user_id, after=noted):
        token = await accounts.token(
            f"{'reset' if alone else 'mailed'}{'-all' if second else ''}", visitor.organisation,
            user.email, "", user_id, RESET_GOOD_FOR,
        )  # fmt: skip
    link = link_to(request, "reset", token)
    letter = RESET.format(who=named(visitor), organisation=visitor.organisation_name, link=link)
    undelivered = await mailed(request, user.email, "Another password for passy", letter)
    if not alone:
        error = f"It was not sent: {undelivered}." if undelivered else ""
        return await _page(request, user_id, error, 502 if error else 200, sent=not error)
    return await _page(request, user_id, link=link, sent=undelivered == "", why=undelivered or "")


@router.get("/reset")
async def reset(request: Request, link: str = "") -> Response:
    """The page for who was sent such a link."""
    accounts = await accounts_of(request)
    found = await _found(accounts, link)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    error = "" if is_safe(request) else PLAIN
    return page(request, "reset.html", token=link, found=found, error=error)


@router.post("/reset")
async def choose(request: Request) -> Response:
    """Another password. All sessions end; a second factor stays, unless the link says otherwise."""
    form: Form = request.state.form
    token, password = form.secret("token"), form.secret("password")
    form.end()
    accounts = await accounts_of(request)
    found = await _found(accounts, token)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    user = found.made_by
    try:
        if not is_safe(request):
            raise ValueError(PLAIN)
        hashed = await accounts.passwords.hash(password)
        who = Who(found.organisation, user, address(request))
        async with accounts.noting(who, "account.reset", user) as noted:
            if not await accounts.void(found.organisation, found.id):
                raise ValueError(GONE)
            await accounts.set_password(user, hashed)
            if found.kind.endswith("-all"):
                noted.after = {"second_factor": await accounts.factors.drop(user)}
    except ValueError as error:
        return page(request, "reset.html", status=422, token=token, found=found, error=said(error))
    return moved(request, "/login", "password")


async def mailed(request: Request, to: str, subject: str, text: str) -> str | None:
    """Send a letter: empty when it was taken, else why not; ``None`` where nobody sends mail."""
    mailer: Mailer | None = request.app.state.office.mailer
    if mailer is None:
        return None
    try:
        await mailer.send(to, subject, text)
    except Undelivered as undelivered:
        request.app.state.log.warning("mail_undelivered", reason=str(undelivered))
        return str(undelivered)
    return ""


def link_to(request: Request, path: str, token: str) -> str:
    return f"{own_origin(request)}{request.scope.get('root_path', '')}/{path}?link={token}"


def named(visitor: Visitor) -> str:
    return visitor.name or visitor.email


async def member_of(accounts: Accounts, visitor: Visitor, id: str) -> tuple[Member, User]:
    """404 for who is none here."""
    places = await accounts.admin.places_of(id)
    found = next((one for one in places if one.organisation == visitor.organisation), None)
    user = await accounts.admin.get_user(id)
    if found is None or user is None:
        raise absent("member")
    return found, user


async def _found(accounts: Accounts, token: str) -> Invitation | None:
    for kind in RESETS:
        found = await accounts.invitation(kind, token)
        if found is not None and await accounts.resettable(found):
            return found
    return None


async def _page(
    request: Request, id: str, error: str = "", status: int = 200, **made: str | bool
) -> Response:
    """``made``: a ``link`` of just now, whether it was ``sent``, or ``why`` not."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    place, user = await member_of(accounts, visitor, id)
    keys = [
        one for one in await accounts.admin.list_keys(visitor.organisation) if one.user_id == id
    ]
    sessions = await accounts.sessions_of(id)
    given: dict[str, Any] = {"link": "", "sent": False, "why": "", **made}
    return page(
        request, "member.html", status=status, error=error, place=place, user=user,
        keys=len(keys), factor=await accounts.factors.confirmed(id),
        seen=sessions[0].seen if sessions else None, mine=user.id == visitor.user,
        alone=len(await accounts.admin.places_of(id)) == 1,
        mails=request.app.state.office.mailer is not None, **given,
    )  # fmt: skip
