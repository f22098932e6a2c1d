"""Usage: what was asked and spent, by time and by whatever is of interest, also as a file."""

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.files import Format, exported
from passy_plugins.api.usage import Counts, bin_of, flat
from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.kinds import Kinds, kinds_of
from passy_plugins.stores.sql.reports import Asked, Group, Order, Pace, Reports, Sums
from passy_portal.accounts import Accounts, Visitor
from passy_portal.figures import Chart, lined, stacked
from passy_portal.pages.reading import names_of
from passy_portal.question import GROUPS, Question
from passy_portal.series import (
    LATENCY,
    MEASURES,
    MOST,
    SHOWS,
    Series,
    as_rows,
    by_groups,
    change,
    pace,
    whole,
)
from passy_portal.view import page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

ROWS = 200
"""Groups of the table; all of them are in the file."""
ORDERS: dict[str, Order] = {
    "cost": "cost",
    "tokens": "tokens",
    "requests": "requests",
    "errors": "requests",
    LATENCY: "requests",
}
TOKENS = (
    ("input", "Tokens in"),
    ("cached", "Cached"),
    ("cache_write", "Cache write"),
    ("audio_input", "Audio in"),
    ("output", "Tokens out"),
    ("reasoning", "Reasoning"),
    ("audio_output", "Audio out"),
)
ALWAYS = ("input", "output")
"""The other columns are there where there is something in them."""
KINDS = {
    "input": "Input",
    "cached": "Cached input",
    "cache_write": "Written to a cache",
    "output": "Output",
    "reasoning": "Reasoning",
    "audio_input": "Audio in",
    "audio_output": "Audio out",
    "requests": "Fees a request",
    "unknown": "Not told apart",
}


async def admin_of(request: Request) -> Admin:
    accounts: Accounts = await request.app.state.office.accounts()
    return accounts.admin


@router.get("/usage")
async def usage(request: Request) -> Response:
    """A chart by time, and tables with the same numbers."""
    admin, visitor = await admin_of(request), visitor_of(request)
    question = Question(request.query_params)
    asked, reports = question.asked(visitor), admin.reports
    ago = question.asked(visitor, question.span.before)
    order = ORDERS[question.show]
    prices, groups, before = await gather(
        reports.most(asked, ["price"]),
        reports.most(asked, [question.dimension], order, ROWS),
        _before(reports, question, ago),
    )
    shown = [group.by[0] for group in groups.rows]
    names = await names_of(admin, visitor, question.dimension, shown)
    totals, whole_pace = all_of(prices.rows)
    rows = ranked(groups.rows, question, names)
    series = await _series(reports, question, asked, rows)
    if question.compare and question.show != LATENCY:
        measure, span = MEASURES[question.show], question.span.before
        compared = await whole(reports, ago, span, measure)
        series = Series(series.names, series.values, series.told, compared)
    return page(
        request, "usage.html", question=question, totals=totals, rows=rows, pace=whole_pace,
        paces={group.by[0]: group.pace for group in groups.rows},
        before=before, more=bool(groups.cursor),
        chart=charted(question, series), series=series, table=as_rows(question.span, series),
        kinds=named_kinds(kinds_of(prices.rows)), unpriced=await _unpriced(reports, asked, totals),
        columns=[each for each in TOKENS if each[0] in ALWAYS or getattr(totals, each[0])],
        groups=GROUPS, shows=SHOWS, change=change, LATENCY=LATENCY,
        filters=await _filters(admin, visitor, question),
    )  # fmt: skip


def all_of(groups: Sequence[Group]) -> tuple[Sums, Pace]:
    """Sums and pace of all groups together."""
    sums, pace = Sums(), Pace()
    for group in groups:
        sums, pace = sums.plus(group.sums), pace.plus(group.pace or Pace())
    return sums, pace


def ranked(
    groups: Sequence[Group], question: Question, names: Mapping[str, str]
) -> list[tuple[str, str, Sums]]:
    """Value, what people call it, and sums; the most first."""
    rows = [(group.by[0], named(group.by[0], names), group.sums) for group in groups]
    if question.show == "errors":
        rows.sort(key=lambda row: -MEASURES["errors"].of_sums(row[2]))
    return rows


async def _series(
    reports: Reports, question: Question, asked: Asked, rows: Sequence[tuple[str, str, Sums]]
) -> Series:
    if question.show == LATENCY:
        return await pace(reports, asked, question.span)
    first = {value: title for value, title, _ in rows[:MOST]}
    measure, span, by = MEASURES[question.show], question.span, [question.dimension]
    if question.by == "tag":  # One request may be of several: the others are not what is left.
        found, all = await reports.series(asked, span.unit, by, measure.counted), None
    else:
        found, all = await gather(
            reports.series(asked, span.unit, by, measure.counted, list(first)),
            whole(reports, asked, span, measure),
        )
    return by_groups(span, measure, first, found, all)


async def _before(reports: Reports, question: Question, ago: Asked) -> dict[str, Sums]:
    """Each group's sums in as much time before, where somebody compares."""
    if not question.compare:
        return {}
    page = await reports.groups(ago, "total", [question.dimension], ORDERS[question.show])
    return {group.by[0]: group.sums for group in page.rows}


def charted(question: Question, series: Series) -> Chart:
    labels = question.span.labels
    if question.show == LATENCY:
        return lined(labels, series.names, series.values)
    return stacked(labels, series.names, series.values, series.told, series.before)


def named_kinds(kinds: Kinds) -> list[tuple[str, int]]:
    """What each kind of token cost, where it cost anything."""
    told = kinds._asdict()
    return [(title, told[kind]) for kind, title in KINDS.items() if told[kind]]


async def _unpriced(reports: Reports, asked: Asked, totals: Sums) -> list[tuple[str, int]]:
    """Models without a known price, and how many of their requests; the most first."""
    if not totals.unpriced:
        return []
    found = await reports.series(asked, "total", ["model"], ("unpriced",))
    models = [(model, count) for (_, (model,)), (count,) in found.items() if count]
    return sorted(models, key=lambda each: -each[1])


@router.get("/usage.csv")
async def usage_csv(request: Request) -> Response:
    """The same by day or hour, all of it."""
    return await _file(request, "csv")


@router.get("/usage.jsonl")
async def usage_jsonl(request: Request) -> Response:
    """The same as lines of JSON."""
    return await _file(request, "jsonl")


async def _file(request: Request, format: Format) -> Response:
    admin, visitor = await admin_of(request), visitor_of(request)
    question = Question(request.query_params)
    pages = admin.reports.all_groups(
        question.asked(visitor), question.unit, [question.dimension], "time"
    )
    names = await names_of(admin, visitor, question.dimension)

    async def rows() -> AsyncIterator[list[dict[str, Any]]]:
        async for groups in pages:
            yield [_line(group, question, names) for group in groups]

    columns = [question.unit, question.by, *(["name"] if names else []), *Counts.model_fields]
    return await exported("usage", format, columns, rows())


def _line(group: Group, question: Question, names: Mapping[str, str]) -> dict[str, Any]:
    told = flat(bin_of(group, [question.by]))
    at = told.pop("at")
    name = {"name": names.get(group.by[0], "")} if names else {}
    return {question.unit: at[:10] if question.unit == "day" else at, **told, **name}


async def _filters(
    admin: Admin, visitor: Visitor, question: Question
) -> list[tuple[str, str, str]]:
    """Those in force: name, heading, and what people call the value."""
    shown = []
    for name, value in question.filters.items():
        names = await names_of(admin, visitor, GROUPS[name][0], [value])
        shown.append((name, GROUPS[name][1], named(value, names)))
    return shown


def named(value: str, names: Mapping[str, str]) -> str:
    return names.get(value, value) or "none"
