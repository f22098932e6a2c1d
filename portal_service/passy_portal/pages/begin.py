"""The first run, after the owner: a provider's key or the echo, then a first key to ask with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from passy_portal import owned
from passy_portal.accounts import Accounts, Visitor
from passy_portal.door import Form
from passy_portal.pages.entering import Back, entered_by, form_page
from passy_portal.pages.keys import made_page
from passy_portal.view import accounts_of, moved, visitor_of
from passy_proxy.records import Limits

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

ECHO = "echo"
FIRST = "first key"


@router.get("/begin")
async def begin(request: Request) -> Response:
    """The second step; the first one made the owner."""
    if await _begun(await accounts_of(request), visitor_of(request)):
        return moved(request, "/")
    return await form_page(request, Back(), "begin.html")


@router.post("/begin")
async def go_on(request: Request) -> Response:
    """``do`` is ``echo``, for no provider yet; or as for a provider that is added. Then a first key
    is made, and shown this once."""
    form: Form = request.state.form
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if await _begun(accounts, visitor):
        return moved(request, "/")
    if form.get("do") == ECHO:
        # What was typed for a provider is of no use now.
        for name in ("do", "for", "name", "url", "dialect", "models", "key", "held", "priority",
                     "model"):  # fmt: skip
            form.secret(name)
        form.end()
    else:
        entered = await entered_by(request, form)
        if isinstance(entered, Back):
            return await form_page(request, entered, "begin.html")
    made, key = await owned.create(accounts, visitor, {
        "name": FIRST,
        "email": visitor.email or None,
        "description": "Made with the organisation",
        "limits": Limits(),
    })  # fmt: skip
    return made_page(request, made, key, first=True)


async def _begun(accounts: Accounts, visitor: Visitor) -> bool:
    """Whether they have a key: then the first run is over."""
    mine = {"organisation": visitor.organisation, "user_id": visitor.user}
    return bool((await accounts.admin.lists.keys(mine, "", 1)).rows)
