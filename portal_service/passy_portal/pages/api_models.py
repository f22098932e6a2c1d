"""Models in JSON: the same as the page shows."""

from __future__ import annotations

from fastapi import APIRouter, Request

from passy_plugins.api.errors import responses
from passy_portal.catalogue import ModelsSeen, catalogue
from passy_portal.view import accounts_of, console_of, visitor_of

router = APIRouter(tags=["models"])


@router.get("/api/models", responses=responses(401, 503))
async def list_models(request: Request) -> ModelsSeen:
    """All names that the organisation can ask for, who answers, at what price, and how that went
    lately."""
    return await catalogue(await accounts_of(request), visitor_of(request), console_of(request))
