"""What Overview and Usage show in JSON, within what who has signed in may see."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field

from passy_plugins.api.errors import responses
from passy_plugins.api.usage import (
    Bin,
    Counts,
    Filters,
    Grouping,
    Usage,
    UsageQuery,
    bin_of,
    counts,
)
from passy_plugins.api.words import Shown, shown_at
from passy_plugins.stores.sql.reports import Asked
from passy_portal.accounts import Accounts, Visitor
from passy_portal.glance import Look, glance
from passy_portal.pages.reading import narrowed
from passy_portal.view import visitor_of
from passy_proxy.records import Budget
from passy_proxy.units import dollars

router = APIRouter(tags=["usage"])


class LatencyQuery(Filters, Grouping): ...


class Latency(Shown):
    """How soon answers began that ended well."""

    at: str | None = Field(description="Where its hour or day begins, UTC.")
    by: dict[str, str]
    ok: int
    p50_first_ms: int | None = Field(description="As near as the bounds that are counted by.")
    p95_first_ms: int | None


class BudgetShown(Shown):
    id: str
    unit: str
    period: str
    hard: bool
    amount: str = Field(description="US dollars, or tokens.")
    used: str


class HealthShown(Shown):
    """One provider, of the last minutes."""

    upstream: str
    state: str
    tries: int
    failed: int
    head_ms: int | None = Field(description="Half of its answers began within so many.")
    last_ok: str | None
    trouble: str


class ErrorShown(Shown):
    outcome: str
    status: int
    requests: int


class BehindShown(Shown):
    host: str | None = Field(description="null for who does not lead the organisation.")
    since: str = Field(description="What was recorded there before is here.")


class Overview(Shown):
    since: str
    until: str
    totals: Counts
    p50_first_ms: int | None
    p95_first_ms: int | None
    spent_today_usd: str
    spent_this_month_usd: str
    forecast_usd: str | None = Field(
        description="By the end of the month, if the days to come cost what the last whole ones "
        "did on average; null before there was one."
    )
    forecast_days: int = Field(description="How many whole days that mean is of.")
    budgets: list[BudgetShown]
    errors: list[ErrorShown]
    health: list[HealthShown]
    behind: list[BehindShown] = Field(
        description="Gateways whose records have not come for five minutes, longest first: what "
        "was asked of them since may be missing."
    )


def scoped(asked: Asked, visitor: Visitor) -> Asked:
    """Within what they may see. Of an organisation that is asked for and is another one's there is
    nothing."""
    mine = narrowed(visitor)
    if any(asked.values.get(name, value) != value for name, value in mine.items()):
        asked = replace(asked, until=asked.since)
    return replace(asked, values={**asked.values, **mine})


@router.get("/api/usage", responses=responses(401, 422, 503))
async def usage(request: Request, query: Annotated[UsageQuery, Query()]) -> Usage:
    """Sums by hour or day, and by whatever is asked for. An organisation that is asked for and is
    another one's has none."""
    accounts: Accounts = await request.app.state.office.accounts()
    reports, asked = accounts.admin.reports, scoped(query.asked(), visitor_of(request))
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


@router.get("/api/usage/latency", responses=responses(401, 422, 503))
async def latency(request: Request, query: Annotated[LatencyQuery, Query()]) -> list[Latency]:
    """Percentiles of the first byte, by hour or day and by whatever is asked for; in the order of
    time."""
    accounts: Accounts = await request.app.state.office.accounts()
    asked = scoped(query.asked(), visitor_of(request))
    found = await accounts.admin.reports.pace(asked, query.bucket, query.by)
    return [
        Latency(
            at=None if at is None else shown_at(at / 1000),
            by=dict(zip(query.by, by, strict=True)),
            ok=pace.ok,
            p50_first_ms=pace.percentile(0.5),
            p95_first_ms=pace.percentile(0.95),
        )
        for (at, by), pace in found.items()
    ]


@router.get("/api/overview", responses=responses(401, 422, 503))
async def overview(request: Request, range: str = "30d") -> Overview:
    """The figures of the Overview: of 24h, 7d, 30d or 90d, today and this month."""
    accounts: Accounts = await request.app.state.office.accounts()
    seen = await glance(accounts.admin, visitor_of(request), Look({"range": range}))
    end = seen.forecast.end
    return Overview(
        since=str(shown_at(seen.span.since / 1000)),
        until=str(shown_at(seen.span.until / 1000)),
        totals=Counts(**counts(seen.totals)),
        p50_first_ms=seen.pace.percentile(0.5),
        p95_first_ms=seen.pace.percentile(0.95),
        spent_today_usd=dollars(seen.forecast.today),
        spent_this_month_usd=dollars(seen.forecast.month),
        forecast_usd=None if end is None else dollars(end),
        forecast_days=seen.forecast.days,
        budgets=[_budget(spent.stored.budget, spent.used) for spent in seen.budgets],
        errors=[
            ErrorShown(outcome=outcome, status=int(status), requests=requests)
            for outcome, status, requests in seen.errors
        ],
        health=[
            HealthShown(**{**each._asdict(), "last_ok": shown_at(each.last_ok)})
            for each in seen.health
        ],
        behind=[
            BehindShown(host=each.host or None, since=str(shown_at(each.since)))
            for each in seen.behind
        ],
    )


def _budget(budget: Budget, used: int) -> BudgetShown:
    told = dollars if budget.unit == "usd" else str
    return BudgetShown(
        id=budget.id,
        unit=budget.unit,
        period=budget.period,
        hard=budget.hard,
        amount=told(budget.amount),
        used=told(used),
    )
