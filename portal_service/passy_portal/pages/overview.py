"""The first page: what happened today and this month, and what did most of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.stores.sql.reports import Asked, Dimension, Sums
from passy_portal.accounts import Accounts
from passy_portal.door import gateway_origin
from passy_portal.figures import Chart, count, stacked
from passy_portal.pages.reading import (
    DAY,
    LAST,
    days_before,
    month,
    names_of,
    narrowed,
    today,
    tomorrow,
)
from passy_portal.snippets import snippets
from passy_portal.view import page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

MOST = 5
"""Rows of what did most."""


@router.get("/")
async def overview(request: Request) -> Response:
    """Tiles, the last 30 days, and the most used models and keys."""
    accounts: Accounts = await request.app.state.office.accounts()
    visitor, admin, until = visitor_of(request), accounts.admin, tomorrow()
    whole = Asked(days_before(LAST), until, narrowed(visitor))
    totals = await admin.reports.totals(whole)
    if not totals.requests:
        keys = await admin.lists.keys({"organisation": visitor.organisation}, "", 1)
        codes = snippets(gateway_origin(request))
        return page(request, "overview_empty.html", snippets=codes, keys=bool(keys.rows))
    days = await admin.reports.groups(whole, "day")
    this_month = Asked(month(), until, narrowed(visitor))
    this_day = Asked(today(), until, narrowed(visitor))
    chart, table = by_day({group.at: group.sums for group in days.rows})
    return page(
        request, "overview.html",
        today=await admin.reports.totals(this_day),
        month=await admin.reports.totals(this_month),
        totals=totals, chart=chart, table=table, days=LAST, told=count,
        models=await _most(accounts, request, whole, "model"),
        keys=await _most(accounts, request, whole, "key"),
        failures=await _failures(accounts, this_day),
    )  # fmt: skip


def by_day(sums: dict[Any, Sums]) -> tuple[Chart, list[tuple[str, Sums]]]:
    """Requests of each of the last days: those that ended well, and the others."""
    first = days_before(LAST)
    rows = [(_day(first + n * DAY), sums.get(first + n * DAY, Sums())) for n in range(LAST)]
    values = [(each.ok, each.requests - each.ok) for _, each in rows]
    chart = stacked([day for day, _ in rows], ["ended well", "failed"], values, count)
    return chart, rows


def _day(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d")


async def _most(
    accounts: Accounts, request: Request, asked: Asked, dimension: Dimension
) -> list[tuple[str, str, Sums]]:
    found = await accounts.admin.reports.groups(asked, "total", [dimension], "requests", MOST)
    names = await names_of(accounts.admin, visitor_of(request), dimension)
    return [(group.by[0], names.get(group.by[0], group.by[0]), group.sums) for group in found.rows]


async def _failures(accounts: Accounts, asked: Asked) -> list[tuple[str, Sums]]:
    """What did not end well, by how it ended: of one day, since single records are asked."""
    found = await accounts.admin.reports.groups(asked, "total", ["outcome"], "requests", 20)
    return [(g.by[0], g.sums) for g in found.rows if g.by[0] != "ok"][:MOST]
