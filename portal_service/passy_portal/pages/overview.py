"""The first page: what was spent and asked, what did most of it, and how providers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from passy_plugins.stores.sql.reports import Asked
from passy_portal.accounts import Accounts
from passy_portal.door import own_origin
from passy_portal.figures import money, stacked
from passy_portal.glance import GROUPS, RANGES, Glance, Look, glance
from passy_portal.health import MINUTES
from passy_portal.pages.reading import narrowed, now
from passy_portal.series import MEASURES, as_rows, change
from passy_portal.snippets import snippets
from passy_portal.view import page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()


@router.get("/")
async def overview(request: Request) -> Response:
    """Tiles, a chart, the most used models and keys, what failed, and how providers do."""
    accounts: Accounts = await request.app.state.office.accounts()
    visitor, admin = visitor_of(request), accounts.admin
    look = Look(request.query_params)
    seen = await glance(admin, visitor, look)
    if not seen.totals.requests:
        ever = await admin.reports.totals(Asked(0, now(), narrowed(visitor)))
        if not ever.requests:
            keys = await admin.lists.keys({"organisation": visitor.organisation}, "", 1)
            codes = snippets(own_origin(request))
            return page(request, "overview_empty.html", snippets=codes, keys=bool(keys.rows))
    series = seen.series
    chart = stacked(seen.span.labels, series.names, series.values, series.told, series.before)
    return page(
        request, "overview.html", look=look, seen=seen, chart=chart, told=series.told,
        rows=as_rows(seen.span, series), ranges=RANGES, groups=GROUPS, shows=MEASURES,
        minutes=MINUTES, changes=changes(seen) if look.compare else NO_CHANGES,
        money=money, tokens=lambda each: f"{each:,} tokens",
    )  # fmt: skip


NO_CHANGES = dict.fromkeys(("requests", "errors", "tokens", "cost", "saved", "first"), "")


def changes(seen: Glance) -> dict[str, str]:
    """In words, against as much time before."""
    now_, ago = seen.totals, seen.before
    return {
        "requests": change(now_.requests, ago.requests),
        "errors": change(now_.requests - now_.ok, ago.requests - ago.ok),
        "tokens": change(now_.tokens, ago.tokens),
        "cost": change(now_.cost_nanos, ago.cost_nanos),
        "saved": change(now_.saved, ago.saved),
        "first": change(seen.pace.percentile(0.5) or 0, seen.pace_before.percentile(0.5) or 0),
    }
