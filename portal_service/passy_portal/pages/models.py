"""Models: what can be asked for, who answers, how they are and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request

from passy_plugins.api.words import Line
from passy_portal.catalogue import catalogue
from passy_portal.console import GatewayAway
from passy_portal.view import accounts_of, console_of, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

MOST = 200
"""Models on the page; a search finds the others."""
KINDS = {"listed": "from the provider's list", "in_process": "inside the gateway", "own": "own"}
"""Of a model that is no alias."""


@router.get("/models")
async def list_models(request: Request, q: Annotated[Line, Query()] = "") -> Response:
    """All of them, in the order of the routing table; or those with ``q`` in their name."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        found = await catalogue(accounts, visitor, console_of(request))
    except GatewayAway as error:
        return page(request, "models.html", away=error.reason, rows=[], q=q, more=0, found=None)
    words = q.lower().split()
    rows = [row for row in found.rows
            if all(any(word in text.lower() for text in
                       (row.name, *(f"{one.title}/{one.model}" for one in row.targets)))
                   for word in words)]  # fmt: skip
    return page(
        request, "models.html", away="", rows=rows[:MOST], q=q, more=len(rows[MOST:]), found=found,
        kinds=KINDS, unpriced=[row.name for row in found.rows if row.unpriced],
    )  # fmt: skip
