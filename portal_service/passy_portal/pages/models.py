"""Models: what can be asked for, who answers, how they are and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Line
from passy_portal.access import may
from passy_portal.catalogue import catalogue
from passy_portal.console import GatewayAway
from passy_portal.operating import operates, operating
from passy_portal.steering import STATES, steer
from passy_portal.view import accounts_of, console_of, moved, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.door import Form

router = APIRouter()

MOST = 200
"""Models on the page; a search finds the others."""
LONGEST = 400
"""Characters of the name of an alias, and of a target."""
KINDS = {"listed": "from the provider's list", "in_process": "inside the gateway", "own": "own"}
"""Of a model that is no alias."""


@router.get("/models")
async def list_models(request: Request, q: Annotated[Line, Query()] = "") -> Response:
    """All of them, in the order of the routing table; or those with ``q`` in their name."""
    return await _listed(request, q)


@router.post("/models/target")
async def steer_target(request: Request) -> Response:
    """``do`` is ``pin``, ``disable`` or ``release``; for who runs the gateway."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await operating(request, accounts, visitor)
    form: Form = request.state.form
    model, target = form.text("model", LONGEST), form.text("target", LONGEST)
    done = form.text("do")
    form.end()
    try:
        if done not in STATES:
            raise Denied(422, "invalid_value", "There is no such choice.", "do")
        await steer(accounts, visitor, console_of(request), model, target, done)
    except Denied as error:
        return await _listed(request, "", error)
    return moved(request, "/models", done)


async def _listed(request: Request, q: str, refused: Denied | None = None) -> Response:
    """The page, with what was wrong with a change that was asked on it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    runs = await operates(request, accounts, visitor)
    status = refused.status if refused else 200
    try:
        found = await catalogue(accounts, visitor, console_of(request), runs=runs)
    except GatewayAway as error:
        return page(request, "models.html", status, away=error.reason, rows=[], q=q, more=0,
                    found=None)  # fmt: skip
    words = q.lower().split()
    rows = [row for row in found.rows
            if all(any(word in text.lower() for text in
                       (row.name, *(f"{one.title}/{one.model}" for one in row.targets)))
                   for word in words)]  # fmt: skip
    return page(
        request, "models.html", status, away="", rows=rows[:MOST], q=q, more=len(rows[MOST:]),
        found=found, kinds=KINDS, unpriced=[row.name for row in found.rows if row.unpriced],
        error=str(refused or ""), runs=runs and may(visitor.role, "POST", "/models/target"),
    )  # fmt: skip
