"""Models in JSON: the same as the page shows."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import Field

from passy_plugins.api.errors import responses
from passy_plugins.api.words import Body, Line
from passy_portal.catalogue import ModelsSeen, catalogue
from passy_portal.operating import operates, operating
from passy_portal.steering import steer
from passy_portal.view import accounts_of, console_of, visitor_of

router = APIRouter(tags=["models"])


class Steered(Body):
    model: Line = Field(description="The alias, as it is written.")
    target: Line = Field(description="One of its targets: upstream/model, as they are written.")
    do: Literal["pin", "disable", "release"] = Field(
        description="Ask it before all others, or never, or as the configuration has it."
    )


@router.get("/api/models", responses=responses(401, 503))
async def list_models(request: Request) -> ModelsSeen:
    """All names that the organisation can ask for, who answers, at what price, and how that went
    lately."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    runs = await operates(request, accounts, visitor)
    return await catalogue(accounts, visitor, console_of(request), runs=runs)


@router.put("/api/models/target", responses=responses(400, 401, 403, 404, 409, 413, 415, 422, 503))
async def steer_target(request: Request, wanted: Steered) -> Steered:
    """Pin, disable or release a target of an alias, for everybody who uses this gateway: for those
    who run it. Gateways follow within seconds."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    await operating(request, accounts, visitor)
    console = console_of(request)
    await steer(accounts, visitor, console, wanted.model, wanted.target, wanted.do)
    return wanted
