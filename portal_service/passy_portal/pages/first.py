"""The first owner, whom the link on the console makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_portal.accounts import Accounts
from passy_portal.audit import Who
from passy_portal.door import PLAIN, Form, address, is_safe
from passy_portal.links import GONE, Invitation
from passy_portal.pages.sessions import begun, signed_in
from passy_portal.view import accounts_of, moved, page, said

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_plugins.stores.sql.admin import Admin

router = APIRouter()


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
