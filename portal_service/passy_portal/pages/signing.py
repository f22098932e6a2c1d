"""Signing in and out, the first owner, and joining by invitation."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_portal.accounts import Accounts
from passy_portal.audit import Who
from passy_portal.door import (
    BROWSER,
    COOKIE,
    Form,
    address,
    cookie_name,
    drop_cookie,
    is_safe,
    set_cookie,
)
from passy_portal.identities import has_identity
from passy_portal.links import Invitation
from passy_portal.view import accounts_of, moved, page
from passy_proxy.keyring import KeyringError

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_plugins.stores.sql.admin import Admin

router = APIRouter()

WRONG = "E-mail and password do not fit."
YEAR = 365 * 86_400
TOLD_AGAIN = 60_000
"""Milliseconds between two links on the console."""
PLAIN = (
    "Passwords are taken over https only, or on this machine itself. Behind a proxy that ends TLS, "
    "set public_url of the portal."
)
GONE = "This link was used, has expired, or was never ours. Ask for a new one."


@router.get("/login")
async def login(request: Request, then: str = "") -> Response:
    """The page to sign in."""
    if request.state.visitor is not None:
        return moved(request, "/")
    accounts = await accounts_of(request)
    if first := not await accounts.has_owner():
        await _tell(request, accounts)
    error = "" if is_safe(request) else PLAIN
    return await login_page(request, then=then, error=error, first=first)


async def login_page(
    request: Request,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **given: Any,
) -> Response:
    """``given``: ``error``, and what was typed."""
    office = request.app.state.office
    values = {"then": "", "email": "", "error": "", "first": False, **given}
    return page(
        request, "login.html", status=status, headers=headers,
        providers=list(office.providers.values()), passwords=office.settings.passwords,
        **values,
    )  # fmt: skip


async def _tell(request: Request, accounts: Accounts) -> None:
    """Have the console show how to make the first owner, once in a while. Without the host, which
    whoever asks can make up, and whom the link would lead to."""
    token = await accounts.first_token(TOLD_AGAIN)
    if token is not None:
        root = request.app.state.public_url + request.scope.get("root_path", "")
        request.app.state.log.warning("portal_has_no_owner", open=f"{root}/first?link={token}")


@router.post("/login")
async def sign_in(request: Request) -> Response:
    """A new session, whatever cookie came with the form."""
    form: Form = request.state.form
    email, password, then = form.text("email"), form.secret("password"), form.text("then", 2_000)
    form.end()
    if not is_safe(request):
        raise Denied(400, "insecure", PLAIN)
    accounts = await accounts_of(request)
    email = email.lower()
    browser = known_browser(request, accounts, email)
    wait = await accounts.throttle.enter(email, address(request), browser)
    if wait > 0:
        seconds = math.ceil(wait)
        error = f"Too many tries. Wait {seconds} s, then try again."
        headers = {"retry-after": str(seconds)}
        return await login_page(
            request, status=429, headers=headers, then=then, email=email, error=error
        )
    user = await accounts.known(email, password)
    if user is not None and not await _by_password(request, accounts, user):
        user = None
    if user is not None and await accounts.factors.confirmed(user):
        return await ask_second(request, accounts, user, email, "", then)
    cookie = await begun(request, accounts, user, None) if user else None
    if user is None or cookie is None:
        return await login_page(request, status=401, then=then, email=email, error=WRONG)
    await accounts.throttle.forgive(email, address(request), browser)
    response = moved(request, safe(then))
    signed_in(request, response, accounts, cookie, email)
    return response


async def _by_password(request: Request, accounts: Accounts, user: str) -> bool:
    """Whether a password is enough of them, or they have to come by a provider."""
    settings = request.app.state.office.settings
    return settings.passwords == "all" or await accounts.owns(user)


@router.post("/logout")
async def logout(request: Request) -> Response:
    """The session ends here and at the server."""
    request.state.form.end()
    accounts = await accounts_of(request)
    await accounts.end(request.cookies.get(cookie_name(request, COOKIE), ""))
    response = moved(request, "/login")
    drop_cookie(request, response, COOKIE)
    return response


@router.post("/theme")
async def theme(request: Request) -> Response:
    """Light, dark, or as the system has it; kept in the browser."""
    form: Form = request.state.form
    chosen, then = form.text("theme"), form.text("then", 2_000)
    form.end()
    response = moved(request, safe(then))
    response.set_cookie(
        "passy_theme", chosen if chosen in ("light", "dark") else "", max_age=YEAR, samesite="lax"
    )
    return response


@router.get("/first")
async def first(request: Request, link: str = "") -> Response:
    """The page that makes the first owner, for who has the link from the console."""
    accounts = await accounts_of(request)
    if await accounts.has_owner():
        return moved(request, "/login")
    found = await accounts.invitation("first", link)
    return page(
        request, "first.html", status=200 if found else 404, token=link if found else "",
        error="" if is_safe(request) else PLAIN, values={},
    )  # fmt: skip


@router.post("/first")
async def make_first(request: Request) -> Response:
    """Owner and organisation, both or none; what follows is in ``begin.py``."""
    form: Form = request.state.form
    token = form.secret("token")
    values = {name: form.text(name) for name in ("name", "email", "organisation")}
    password = form.secret("password")
    form.end()
    accounts = await accounts_of(request)
    found = await accounts.invitation("first", token)
    if found is None:
        return page(request, "first.html", status=404, token="", error="", values={})
    try:
        if not is_safe(request):
            raise ValueError(PLAIN)
        if not values["organisation"]:
            raise ValueError("Give your organisation a name.")
        hashed = await accounts.passwords.hash(password)
        cookie = await _found(request, accounts, found, values, hashed)
    except (ValueError, Denied) as error:
        return page(
            request, "first.html", status=422, token=token, error=said(error), values=values
        )
    response = moved(request, "/begin")
    signed_in(request, response, accounts, cookie, values["email"].lower())
    return response


async def _found(
    request: Request,
    accounts: Accounts,
    token: Invitation,
    values: dict[str, str],
    hashed: str,
) -> str:
    """The cookie of their session."""
    admin = accounts.admin
    who = Who("", "", address(request))
    async with accounts.noting(who, "organisation.found") as noted:
        if not await accounts.void("", token.id) or await accounts.has_owner():
            raise ValueError(GONE)
        user = await admin.user_of(values["email"]) or await admin.create_user(
            values["email"], values["name"]
        )
        organisation = await _home(admin, values["organisation"])
        await admin.set_member(organisation, user.id, "owner")
        await accounts.set_password(user.id, hashed)
        noted.who = Who(organisation, user.id, address(request))
        noted.subject = organisation
        noted.after = {"owner": user.id, "name": values["organisation"]}
    cookie = await begun(request, accounts, user.id, organisation)
    assert cookie is not None
    return cookie


async def _home(admin: Admin, name: str) -> str:
    """The only organisation, where nobody is in it: a first start made it for its key. Else a new
    one."""
    found = await admin.list_organisations()
    if len(found) == 1 and not await admin.list_members(found[0].id):
        await admin.change_organisation(found[0].id, name=name)
        return found[0].id
    return await admin.create_organisation(name)


@router.get("/join")
async def join(request: Request, link: str = "") -> Response:
    """The page for who was invited."""
    accounts = await accounts_of(request)
    found = await accounts.invitation("invitation", link)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    return await _joining(request, accounts, found, link)


@router.post("/join")
async def joined(request: Request) -> Response:
    """A place in an organisation: for somebody new, or for who shows that the account is theirs."""
    form: Form = request.state.form
    token, name, password = form.secret("token"), form.text("name"), form.secret("password")
    form.end()
    accounts = await accounts_of(request)
    found = await accounts.invitation("invitation", token)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    try:
        if not is_safe(request):
            raise ValueError(PLAIN)
        user = await _member(request, accounts, found, name, password)
    except (ValueError, Denied) as error:
        return await _joining(request, accounts, found, token, said(error))
    if await accounts.factors.confirmed(user):
        return await ask_second(request, accounts, user, found.email, found.organisation, "/")
    cookie = await begun(request, accounts, user, found.organisation)
    assert cookie is not None
    response = moved(request, "/")
    signed_in(request, response, accounts, cookie, found.email)
    return response


async def _joining(
    request: Request, accounts: Accounts, found: Invitation, token: str, error: str = ""
) -> Response:
    organisation = await accounts.admin.get_organisation(found.organisation)
    user = await accounts.admin.user_of(found.email)
    office = request.app.state.office
    return page(
        request, "join.html", status=422 if error else 200, token=token, found=found,
        organisation=organisation, known=bool(user and await accounts.has_password(user.id)),
        error=error, providers=list(office.providers.values()),
        passwords=await _may_have_password(request, accounts, found),
    )  # fmt: skip


async def _may_have_password(request: Request, accounts: Accounts, found: Invitation) -> bool:
    """Not where passwords are for owners. And who has an account without one proves that it is
    theirs where they sign in: else whoever invites them could give themselves their account."""
    if request.app.state.office.settings.passwords == "owners" and found.role != "owner":
        return False
    user = await accounts.admin.user_of(found.email)
    if user is None or await accounts.has_password(user.id):
        return True
    return not await has_identity(accounts, user.id)


async def _member(
    request: Request, accounts: Accounts, found: Invitation, name: str, password: str
) -> str:
    """The user who takes an invitation. ValueError for a password that is wrong or weak."""
    admin, place = accounts.admin, address(request)
    if not await _may_have_password(request, accounts, found):
        raise Denied(403, "not_allowed", "Join with the provider you sign in with.")
    user = await admin.user_of(found.email)
    if known := user is not None and await accounts.has_password(user.id):
        if await accounts.throttle.enter(found.email, place) > 0:
            raise ValueError("Too many tries. Wait a moment, then try again.")
        if await accounts.known(found.email, password) is None:
            raise ValueError("This is not the password of your account.")
        await accounts.throttle.forgive(found.email, place)
    hashed = "" if known else await accounts.passwords.hash(password)
    who = Who(found.organisation, user.id if user else "", place)
    async with accounts.noting(who, "member.join", after={"role": found.role}) as noted:
        if not await accounts.void(found.organisation, found.id):
            raise ValueError(GONE)
        user = user or await admin.create_user(found.email, name)
        if not known:
            await accounts.set_password(user.id, hashed)
        await admin.set_member(found.organisation, user.id, found.role)
        noted.subject = user.id
    return user.id


async def ask_second(
    request: Request, accounts: Accounts, user: str, email: str, organisation: str, then: str
) -> Response:
    """The page that asks for a code of who has shown all the rest; see ``second.py``."""
    token = await accounts.half(user, organisation, email)
    return page(request, "second.html", token=token, then=then, error="")


async def begun(
    request: Request,
    accounts: Accounts,
    user: str,
    organisation: str | None,
    *,
    second: bool = False,
) -> str | None:
    """A new session. The one there was ends: its cookie lets nobody in any more."""
    old = request.cookies.get(cookie_name(request, COOKIE), "")
    if old:
        await accounts.end(old)
    agent = request.headers.get("user-agent", "")
    return await accounts.begin(user, organisation, agent, address(request), second=second)


def signed_in(
    request: Request, response: Response, accounts: Accounts, cookie: str, email: str
) -> None:
    """Give a browser its session, and have it known to the account from now on."""
    set_cookie(request, response, COOKIE, cookie, accounts.longest)
    id = secrets.token_hex(8)
    proof = accounts.admin.keyring.attest(_browser(id, email))
    set_cookie(request, response, BROWSER, f"{id}.{proof}", YEAR)


def known_browser(request: Request, accounts: Accounts, email: str) -> str:
    """The id of a browser that has signed in to this account before; empty for any other."""
    cookie = request.cookies.get(cookie_name(request, BROWSER), "")
    id, _, proof = cookie.partition(".")
    with suppress(KeyringError):
        if accounts.admin.keyring.attested(_browser(id, email), proof):
            return id
    return ""


def _browser(id: str, email: str) -> bytes:
    return f"portal/browser/v1 {id} {email.lower()}".encode(errors="replace")


def safe(then: str) -> str:
    """A path of ours, whatever was asked for."""
    return then if then.startswith("/") and then[1:2] not in ("/", "\\") else "/"


def said(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
