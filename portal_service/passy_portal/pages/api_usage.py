"""Usage in JSON: as the admin API has it, within what who has signed in may see."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request

from passy_plugins.api.errors import responses
from passy_plugins.api.usage import Bin, Counts, Usage, UsageQuery, bin_of, counts
from passy_plugins.api.words import shown_at
from passy_portal.accounts import Accounts
from passy_portal.pages.reading import narrowed
from passy_portal.view import visitor_of

router = APIRouter(tags=["usage"])


@router.get("/api/usage", responses=responses(401, 422, 503))
async def usage(request: Request, query: Annotated[UsageQuery, Query()]) -> Usage:
    """Sums by hour or day, and by whatever is asked for. An organisation that is asked for and is
    another one's has none."""
    accounts: Accounts = await request.app.state.office.accounts()
    reports, visitor = accounts.admin.reports, visitor_of(request)
    asked = query.asked()
    mine = narrowed(visitor)
    if any(asked.values.get(name, value) != value for name, value in mine.items()):
        asked = replace(asked, until=asked.since)
    asked = replace(asked, values={**asked.values, **mine})
    page = await reports.groups(
        asked, query.bucket, query.by, query.order, query.limit, query.cursor
    )
    return Usage(
        since=str(shown_at(asked.since / 1000)),
        until=str(shown_at(asked.until / 1000)),
        rows=[Bin(**bin_of(group, query.by)) for group in page.rows],
        totals=Counts(**counts(await reports.totals(asked))),
        cursor=page.cursor,
    )
