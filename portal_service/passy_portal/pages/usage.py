"""Usage: what was asked and spent, by day and by whatever is of interest, also as a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.files import exported
from passy_plugins.api.usage import Counts, bin_of, flat
from passy_plugins.stores.sql.reports import Asked, Dimension, Group, Sums
from passy_portal.accounts import Accounts
from passy_portal.figures import count, money, stacked
from passy_portal.pages.reading import LAST, names_of, narrowed
from passy_portal.view import page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

GROUPS: dict[str, tuple[Dimension, str]] = {
    "model": ("model", "Model"),
    "provider": ("upstream", "Provider"),
    "key_id": ("key", "Key"),  # Nothing in an address is called key: it might be one.
    "team": ("team", "Team"),
    "user": ("user", "User"),
    "tag": ("tag", "Tag"),
    "outcome": ("outcome", "Outcome"),
}
"""What the page calls a dimension → the dimension, and its heading."""
SHOWS: dict[str, str] = {"cost": "Cost", "requests": "Requests", "tokens": "Tokens"}
SERIES = 5
"""Groups with a colour of their own; the others are one."""
MOST_DAYS = 366
_EPOCH = date(1970, 1, 1)


class Question:
    """What the address of the page asks, as it stands there: the address is its permalink."""

    def __init__(self, given: Mapping[str, str]) -> None:
        today = datetime.now(UTC).date()
        self.until = _date(given.get("until", ""), today, "until")
        self.since = _date(given.get("since", ""), self.until - timedelta(days=LAST - 1), "since")
        if not 0 <= (self.until - self.since).days < MOST_DAYS:
            raise Denied(
                422, "invalid_value", "From must be before to, by a year at most.", "since"
            )
        self.by = _one(given.get("by", "model"), GROUPS, "by")
        self.show = _one(given.get("show", "cost"), SHOWS, "show")
        self.filters: dict[str, str] = {
            name: given[name][:200] for name in GROUPS if given.get(name)
        }

    @property
    def dimension(self) -> Dimension:
        return GROUPS[self.by][0]

    @property
    def days(self) -> list[date]:
        return [self.since + timedelta(days=n) for n in range((self.until - self.since).days + 1)]

    def asked(self, request: Request) -> Asked:
        """In the words of the books, within what who asks may see."""
        values = {GROUPS[name][0]: value for name, value in self.filters.items()}
        begin, end = _milliseconds(self.since), _milliseconds(self.until + timedelta(days=1))
        return Asked(begin, end, narrowed(visitor_of(request), values))

    def link(self, path: str, **changed: str) -> str:
        """The address that asks the same but for what is ``changed``; ``""`` leaves it out."""
        asked = {"since": str(self.since), "until": str(self.until), "by": self.by,
                 "show": self.show, **self.filters, **changed}  # fmt: skip
        return f"{path}?{urlencode({name: value for name, value in asked.items() if value})}"


async def accounts_of(request: Request) -> Accounts:
    accounts: Accounts = await request.app.state.office.accounts()
    return accounts


@router.get("/usage")
async def usage(request: Request) -> Response:
    """A chart by day, and a table with the same numbers."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    question = Question(request.query_params)
    asked, reports = question.asked(request), accounts.admin.reports
    totals = await reports.totals(asked)
    names = await names_of(accounts.admin, visitor, question.dimension)
    groups: list[Group] = []
    async for part in reports.all_groups(asked, "total", [question.dimension], "cost"):
        groups += part
    days: list[Group] = []
    async for part in reports.all_groups(asked, "day", [question.dimension], "time"):
        days += part
    ranked = sorted(groups, key=lambda group: -measured(group.sums, question.show))
    first = [group.by[0] for group in ranked[:SERIES]]
    labels = [named(value, names) for value in first]
    others = len(ranked) > SERIES
    series = [*labels, *(["others"] if others else [])]
    values = [[0] * len(series) for _ in question.days]
    for group in days:
        place = (group.at or 0) // 86_400_000 - (question.since - _EPOCH).days
        column = first.index(group.by[0]) if group.by[0] in first else len(first)
        values[place][column] += measured(group.sums, question.show)
    told = money if question.show == "cost" else count
    chart = stacked([str(day) for day in question.days], series, values, told)
    rows = [(group.by[0], named(group.by[0], names), group.sums) for group in ranked]
    return page(
        request, "usage.html", question=question, totals=totals, chart=chart, rows=rows,
        daily=list(zip(question.days, values, strict=True)), told=told, groups=GROUPS, shows=SHOWS,
        filters=await _filters(accounts, request, question),
    )  # fmt: skip


@router.get("/usage.csv")
async def usage_file(request: Request) -> Response:
    """The same by day, all of it."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    question = Question(request.query_params)
    pages = accounts.admin.reports.all_groups(
        question.asked(request), "day", [question.dimension], "time"
    )
    names = await names_of(accounts.admin, visitor, question.dimension)

    async def rows() -> AsyncIterator[list[dict[str, Any]]]:
        async for groups in pages:
            yield [_line(group, question, names) for group in groups]

    columns = ["day", question.by, *(["name"] if names else []), *Counts.model_fields]
    return await exported("usage", "csv", columns, rows())


def _line(group: Group, question: Question, names: Mapping[str, str]) -> dict[str, Any]:
    told = flat(bin_of(group, [question.by]))
    told["day"] = told.pop("at")[:10]
    if names:
        told["name"] = names.get(group.by[0], "")
    return told


async def _filters(
    accounts: Accounts, request: Request, question: Question
) -> list[tuple[str, str, str]]:
    """Those in force: name, heading, and what people call the value."""
    shown = []
    for name, value in question.filters.items():
        names = await names_of(accounts.admin, visitor_of(request), GROUPS[name][0])
        shown.append((name, GROUPS[name][1], named(value, names)))
    return shown


def measured(sums: Sums, show: str) -> int:
    """Billionths of a dollar, requests or tokens."""
    if show == "cost":
        return sums.cost_nanos
    return sums.requests if show == "requests" else sums.tokens


def named(value: str, names: Mapping[str, str]) -> str:
    return names.get(value, value) or "none"


def _one(text: str, known: Mapping[str, Any], field: str) -> str:
    if text not in known:
        raise Denied(422, "invalid_value", f"One of {', '.join(known)}.", field)
    return text


def _date(text: str, otherwise: date, field: str) -> date:
    try:
        day = date.fromisoformat(text) if text else otherwise
    except ValueError:
        day = _EPOCH - timedelta(days=1)
    if not _EPOCH <= day <= date(9998, 12, 31):
        raise Denied(422, "invalid_value", "Write a date such as 2027-01-31.", field)
    return day


def _milliseconds(day: date) -> int:
    return (day - _EPOCH).days * 86_400_000
