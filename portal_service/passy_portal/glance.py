"""All that the Overview shows, asked of the books at once."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any, NamedTuple

from passy_plugins.api.denied import Denied
from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.counted import COUNTED
from passy_plugins.stores.sql.reports import Asked, Dimension, Group, Order, Pace, Reports, Sums
from passy_plugins.stores.sql.sums import WITHIN
from passy_portal.access import LEADERS
from passy_portal.accounts import Visitor
from passy_portal.forecast import DAY, DAYS, Forecast, forecast
from passy_portal.health import MINUTES, MOST, Health, of_attempts
from passy_portal.pages.reading import month, names_of, narrowed, now, today, tomorrow
from passy_portal.series import MEASURES, Series, by_groups, ended, whole
from passy_portal.series import MOST as MOST_SERIES
from passy_portal.spans import Span, Unit
from passy_proxy.issue import StoredBudget
from passy_proxy.periods import window_at

RANGES: dict[str, tuple[int, Unit]] = {
    "24h": (24, "hour"),
    "7d": (7, "day"),
    "30d": (30, "day"),
    "90d": (90, "day"),
}
GROUPS: dict[str, tuple[Dimension | None, str]] = {
    "ended": (None, "How it ended"),
    "model": ("model", "Model"),
    "provider": ("upstream", "Provider"),
    "key_id": ("key", "Key"),
    "team": ("team", "Team"),
    "user": ("user", "User"),
}
ROWS = 5
"""Of what did most."""
ALL = (*COUNTED, *WITHIN)
NOTHING = Sums(), Pace()
STALE = 300_000
"""Milliseconds within which a gateway should have delivered what it recorded."""
Named = Sequence[tuple[str, str, Sums]]
"""Value, what people call it, and its sums."""


class Look:
    """What the address of the page asks."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.range = _one(given.get("range", "30d"), RANGES, "range")
        self.by = _one(given.get("by", "ended"), GROUPS, "by")
        show = "requests" if self.by == "ended" else given.get("show", "requests")
        self.show = _one(show, MEASURES, "show")
        self.compare = given.get("compare", "") == "on"


def _one(text: str, known: Mapping[str, object], field: str) -> str:
    if text not in known:
        raise Denied(422, "invalid_value", f"One of {', '.join(known)}.", field)
    return text


@dataclass(frozen=True, slots=True)
class Spent:
    """A budget of the organisation, and what is used of it in its window."""

    stored: StoredBudget
    used: int
    until: float | None
    """Unix seconds; ``None`` for one that never begins anew."""


class Behind(NamedTuple):
    """A host whose records are not all in the books."""

    host: str
    """Empty for who does not lead the organisation: it is the operator's."""
    since: float
    """Unix seconds: those recorded before are here."""


@dataclass(frozen=True, slots=True)
class Glance:
    span: Span
    totals: Sums
    pace: Pace
    before: Sums
    """Of as much time before that, and so is ``pace_before``."""
    pace_before: Pace
    series: Series
    forecast: Forecast
    budgets: Sequence[Spent]
    models: Named
    keys: Named
    errors: Sequence[tuple[str, str, int]]
    """Outcome, status and requests."""
    health: Sequence[Health]
    behind: Sequence[Behind]
    """Gateways whose records have not come for long, longest first."""


async def glance(admin: Admin, visitor: Visitor, look: Look) -> Glance:
    """Raises `StoreUnavailable`."""
    reports, mine = admin.reports, narrowed(visitor)
    span = Span.last(*RANGES[look.range], now())
    asked = Asked(span.since, span.until, mine)
    days = Asked(min(month(), today() - DAYS * DAY), tomorrow(), mine)
    minutes = Asked(now() - MINUTES * 60_000, now(), mine)
    (ends, models, keys), (before, tried, delivered, upstreams) = await gather(
        gather(
            reports.series(asked, span.unit, ("outcome", "status"), ALL),
            _most(admin, visitor, asked, "model"),
            _most(admin, visitor, asked, "key"),
        ),
        gather(
            _before(reports, span, mine, look),
            reports.tried(minutes, MOST),
            reports.delivered(),
            names_of(admin, visitor, "upstream"),
        ),
    )
    if span.unit == "day" and span.since <= days.since:
        costs = _by_time(ends, COUNTED.index("cost_nanos"))
    else:
        costs = _by_time(await reports.series(days, "day", (), ("cost_nanos",)), 0)
    by_end: dict[tuple[str, str], tuple[Sums, Pace]] = {}
    for (_, (outcome, status)), counts in ends.items():
        sums, pace = by_end.get((outcome, status), NOTHING)
        one = Sums(*counts[: len(COUNTED)])
        more = Pace(one.ok, counts[len(COUNTED) :])
        by_end[outcome, status] = sums.plus(one), pace.plus(more)
    totals, pace = NOTHING
    for sums, one_pace in by_end.values():
        totals, pace = totals.plus(sums), pace.plus(one_pace)
    failed = [(*end, sums.requests) for end, (sums, _) in by_end.items() if not sums.ok]
    return Glance(
        span,
        totals,
        pace,
        *before,
        await _series(admin, visitor, look, span, ends),
        forecast(costs, now()),
        await _budgets(admin, visitor),
        models,
        keys,
        sorted(failed, key=lambda each: -each[2])[:ROWS],
        of_attempts(tried, upstreams),
        _behind(visitor, delivered),
    )


def _behind(visitor: Visitor, delivered: Mapping[str, int]) -> list[Behind]:
    names = visitor.role in LEADERS
    late = sorted((at, host) for host, at in delivered.items() if at < now() - STALE)
    return [Behind(host if names else "", at / 1000) for at, host in late]


def _by_time(found: Mapping[Any, Sequence[int]], place: int) -> dict[int, int]:
    """One of the counts, of all that has one time."""
    told: dict[int, int] = {}
    for (at, _), counts in found.items():
        told[at or 0] = told.get(at or 0, 0) + counts[place]
    return told


async def _before(
    reports: Reports, span: Span, mine: Mapping[Dimension, str], look: Look
) -> tuple[Sums, Pace]:
    """Of as much time before, where somebody compares."""
    if not look.compare:
        return NOTHING
    ago = Asked(span.before.since, span.before.until, mine)
    found = (await reports.most(ago, ())).rows
    return (found[0].sums, found[0].pace or NOTHING[1]) if found else NOTHING


async def _series(
    admin: Admin, visitor: Visitor, look: Look, span: Span, ends: Mapping[Any, Sequence[int]]
) -> Series:
    """``ends``: what is known by outcome and status already."""
    reports, mine = admin.reports, narrowed(visitor)
    asked = Asked(span.since, span.until, mine)
    measure = MEASURES[look.show]
    dimension = GROUPS[look.by][0]
    if dimension is None:
        series = ended(span, ((at, counts[0], counts[1]) for (at, _), counts in ends.items()))
    else:
        page = await reports.groups(asked, "total", [dimension], ORDER[look.show], MOST_SERIES)
        names = await names_of(admin, visitor, dimension, [group.by[0] for group in page.rows])
        first = {group.by[0]: names.get(group.by[0], group.by[0]) or "none" for group in page.rows}
        counted = [_by_time(ends, COUNTED.index(name)) for name in measure.counted]
        all = [measure.of(*(each.get(at, 0) for each in counted)) for at in span.starts]
        found = await reports.series(asked, span.unit, [dimension], measure.counted, list(first))
        series = by_groups(span, measure, first, found, all)
    if not look.compare:
        return series
    ago = Asked(span.before.since, span.before.until, mine)
    return Series(
        series.names, series.values, series.told, await whole(reports, ago, span.before, measure)
    )


ORDER: dict[str, Order] = {
    "cost": "cost",
    "tokens": "tokens",
    "requests": "requests",
    "errors": "requests",
}


async def _most(admin: Admin, visitor: Visitor, asked: Asked, dimension: Dimension) -> Named:
    found = await admin.reports.groups(asked, "total", [dimension], "requests", ROWS)
    groups: Sequence[Group] = found.rows
    names = await names_of(admin, visitor, dimension, [group.by[0] for group in groups])
    return [(group.by[0], names.get(group.by[0], group.by[0]), group.sums) for group in groups]


async def _budgets(admin: Admin, visitor: Visitor) -> list[Spent]:
    """Those of the whole organisation, for who sees all of it."""
    if visitor.role == "developer":
        return []
    found = []
    for stored in await admin.list_budgets("organisation", visitor.organisation):
        window = window_at(stored.budget.period, now() / 1000)
        until = tomorrow() if isinf(window.end) else int(window.end * 1000)
        asked = Asked(int(window.start * 1000), until, {"organisation": visitor.organisation})
        sums = await admin.reports.totals(asked)
        used = sums.cost_nanos if stored.budget.unit == "usd" else sums.tokens
        found.append(Spent(stored, used, None if isinf(window.end) else window.end))
    return found
