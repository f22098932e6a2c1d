"""The playground: a page that asks the gateway as any client does, with a key of who has signed in.

The portal serves the page and gives it a key; what is asked and answered never comes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Id, Line
from passy_portal import explained, prompts
from passy_portal.access import ACCESS
from passy_portal.accounts import Accounts
from passy_portal.console import Console, GatewayAway
from passy_portal.door import gateway_origin, own_origin
from passy_portal.pages.api_playground import shown
from passy_portal.view import asking, page, visitor_of
from passy_proxy.models import serves

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.accounts import Visitor

router = APIRouter()

EXAMPLES = (
    (
        "Explain",
        "You explain things to curious people, in plain words and without jargon.",
        "Why is the sky blue at noon and red in the evening? Five sentences.",
    ),
    (
        "Extract",
        "Answer with a JSON object and nothing else.",
        "Take the name, the date and the amount from this: "
        "“Invoice of 3 March 2026 for Ada Lovelace, in all 420.50 EUR.”",
    ),
    (
        "Code",
        "You are a careful programmer. Code first, then one sentence about it.",
        "Write a Python function that yields the moving average of a stream of numbers.",
    ),
    (
        "Summarise",
        "",
        "Summarise in three bullet points what an LLM gateway does for a team that uses four "
        "providers.",
    ),
)
"""Name, system message, question."""


@router.get("/playground")
async def playground(
    request: Request,
    model: Annotated[Line, Query()] = "",
    open: Annotated[Id | None, Query()] = None,
) -> Response:
    """The page, with a prompt that was kept where one is named."""
    accounts: Accounts = await request.app.state.office.accounts()
    visitor = visitor_of(request)
    known, away = await models_of(request, accounts, visitor)
    names = [name for name in known if "*" not in name]
    kept = [shown(one, visitor.user) for one in await prompts.listed(accounts, visitor)]
    given: dict[str, Any] = {
        "base": f"{gateway_origin(request)}/v1",
        "model": model or _first(names),
        "asked": bool(model),
        "books": ("GET", "/api/requests/{id}") in ACCESS,
        "explained": {
            "code": explained.BY_CODE,
            "status": explained.BY_STATUS,
            "unreached": explained.UNREACHED,
        },
        "open": None,
    }
    if open is not None:
        given["open"] = shown(
            await prompts.opened(accounts, visitor, open), visitor.user
        ).model_dump()
    origin = gateway_origin(request)
    headers = {} if origin == own_origin(request) else asking(origin)
    return page(
        request, "playground.html", headers=headers, given=given, models=names, away=away,
        patterns=[name for name in known if "*" in name],
        kept=kept, examples=EXAMPLES,
    )  # fmt: skip


async def models_of(
    request: Request, accounts: Accounts, visitor: Visitor
) -> tuple[list[str], str]:
    """The names and patterns that who has signed in may ask for, and why they cannot be told if
    so."""
    console: Console = request.app.state.console
    user = await accounts.admin.get_user(visitor.user)
    mine = user.models if user is not None else None
    try:
        told = await console.get(f"/organisations/{visitor.organisation}/models")
    except GatewayAway as error:
        return [], error.reason
    except Denied as error:
        return [], str(error)
    names = [
        row["name"]
        for row in told["rows"]
        if row["allowed"] and row["targets"] and (mine is None or serves(mine, row["name"]))
    ]  # fmt: skip
    return list(dict.fromkeys(names)), ""


def _first(names: list[str]) -> str:
    """What costs nothing, where there is such a one."""
    return "echo" if "echo" in names else names[0] if names else ""
