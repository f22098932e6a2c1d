"""Requests: the list with its filters, saved views and files, and one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Query, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.files import Format, exported
from passy_plugins.api.usage import Exchange, exchange_of
from passy_plugins.api.words import Cursor, Id
from passy_plugins.stores.sql.reports import Asked
from passy_portal import saved_views
from passy_portal.access import ACCESS
from passy_portal.accounts import Accounts, Visitor
from passy_portal.door import gateway_origin, own_origin
from passy_portal.pages.reading import days_before, narrowed, tomorrow
from passy_portal.shown_requests import PARTS, as_curl, ran, rows_of, timeline
from passy_portal.sought import ENDINGS, NAMES, SPANS, Sought, sought
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy import retold
from passy_proxy.records import UsageRecord

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.door import Form

router = APIRouter()

ROWS = 50
MOST_CHOICES = 200
CHOICES = 7
"""Days whose models and providers can be chosen; others are asked by their names."""


@router.get("/requests")
async def requests(request: Request, cursor: Annotated[Cursor | None, Query()] = None) -> Response:
    """Latest first."""
    question = sought(request.query_params)
    return await listed(request, question, cursor)


async def listed(
    request: Request,
    question: Sought,
    cursor: str | None = None,
    error: str = "",
    status: int = 200,
) -> Response:
    """The list, with what was wrong with something that was asked on it."""
    visitor = visitor_of(request)
    accounts = await accounts_of(request)
    wanted = question.wanted(visitor)
    given: dict[str, Any] = {"question": question, "spans": SPANS, "endings": ENDINGS,
                             "later": bool(cursor), "error": error}  # fmt: skip
    # Before the rows: what comes meanwhile is told twice rather than never.
    place = "" if cursor else await _place(request)
    found = await accounts.admin.exchanges.find(wanted, ROWS, cursor)
    choices = await _choices(accounts, visitor)
    return page(
        request, "requests.html", status=status, **given,
        rows=await rows_of(accounts.admin, found.rows), cursor=found.cursor, place=place,
        reached=found.reached / 1000, views=await saved_views.saved(accounts, visitor),
        chips=_chips(question, choices), choices=choices,
    )  # fmt: skip


async def _place(request: Request) -> str:
    tail = await request.app.state.office.tail()
    place: str = await tail.place()
    return place


async def _choices(accounts: Accounts, visitor: Visitor) -> dict[str, dict[str, str]]:
    """What can be chosen, by name of the field: value → what people call it."""
    admin, mine = accounts.admin, visitor.organisation
    values = {"organisation": mine}
    if visitor.role == "developer":
        values["user_id"] = visitor.user
    keys = await admin.lists.keys(values, "", MOST_CHOICES)
    lately = Asked(days_before(CHOICES), tomorrow(), narrowed(visitor))
    used = await admin.reports.groups(lately, "total", ["model", "upstream"], "requests")
    models, upstreams = ({group.by[place] for group in used.rows} for place in (0, 1))
    chosen = {
        "key_id": {key.id: key.name or key.description or key.shown for key in keys.rows},
        "model": {name: name for name in sorted(models) if name},
        "upstream": {name: name for name in sorted(upstreams) if name},
        "team": {team.id: team.name for team in await admin.list_teams(mine)},
    }
    if visitor.role != "developer":
        users = await admin.list_users(mine)
        chosen["user"] = {user.id: user.email or user.name or user.id for user in users}
    return chosen


def _chips(
    question: Sought, choices: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str, str]]:
    """Filters in force: name, heading, and what people call the value."""
    shown = []
    for name, value in question.filters.items():
        told = choices.get(name, {}).get(value, value)
        if name == "last" and question.last is not None:
            told = SPANS[question.last][1].lower()
        elif name == "ended" and question.ended is not None:
            told = ENDINGS[question.ended].lower()
        elif name == "slower_ms":
            told = f"{question.slower_ms:,} ms"
        elif name == "retried":
            told = "several"
        elif name in ("since", "until"):
            told = f"{value.replace('T', ' ')} UTC"
        shown.append((name, NAMES[name], told))
    return shown


@router.get("/requests.csv")
async def as_csv(request: Request) -> Response:
    """All that the address asks for, as CSV."""
    return await _file(request, "csv")


@router.get("/requests.jsonl")
async def as_jsonl(request: Request) -> Response:
    """The same, a JSON object a line."""
    return await _file(request, "jsonl")


async def _file(request: Request, format: Format) -> Response:
    accounts = await accounts_of(request)
    wanted = sought(request.query_params).wanted(visitor_of(request))
    pages = accounts.admin.exchanges.all(wanted)

    async def rows() -> AsyncIterator[list[dict[str, Any]]]:
        async for records in pages:
            yield [told(record, format) for record in records]

    columns = [*Exchange.model_fields, "attempts"]
    return await exported("requests", format, columns, rows())


def told(record: UsageRecord, format: Format) -> dict[str, Any]:
    """A line of a file. In a table attempts are one text: ``openai✗429 → anthropic✓``."""
    if format == "csv":
        return {**exchange_of(record), "attempts": retold.route(record.attempts)}
    return {**exchange_of(record), "attempts": [one._asdict() for one in record.attempts]}


@router.post("/requests/views")
async def save_view(request: Request) -> Response:
    """What the page asks just now, under a name."""
    form: Form = request.state.form
    question = asked_in(form.text("query", 4_000))
    try:
        name = form.text("name", 80)
        form.end()
        if not name:
            raise Denied(422, "invalid_value", "Give the view a name.", "name")
        await saved_views.save(
            await accounts_of(request), visitor_of(request), name, question.query()
        )
    except Denied as error:
        return await listed(request, question, error=str(error), status=error.status)
    return moved(request, f"/requests?{question.query()}", "view")


def asked_in(query: str) -> Sought:
    """What a query in an address asks."""
    try:
        return sought(dict(parse_qsl(query, max_num_fields=100)))
    except ValueError:
        raise Denied(422, "invalid_value", "This is no question.", "query") from None


@router.post("/requests/views/{id}/delete")
async def delete_view(request: Request, id: Id) -> Response:
    """One of one's own."""
    request.state.form.end()
    await saved_views.remove(await accounts_of(request), visitor_of(request), id)
    return moved(request, "/requests", "view_gone")


@router.get("/requests/{id}")
async def show_request(request: Request, id: Id) -> Response:
    """One of them: what became of it, try by try."""
    accounts = await accounts_of(request)
    record = await one_of(accounts, visitor_of(request), id)
    [row] = await rows_of(accounts.admin, [record])
    holder = await accounts.admin.get_user(record.user_id) if record.user_id else None
    teams = await accounts.admin.list_teams(record.organisation) if record.team else ()
    return page(
        request, "request.html", row=row, record=record, retold=retold, parts=PARTS,
        timeline=timeline(row), curl=as_curl(gateway_origin(request), record),
        holder=holder, team=next((t.name for t in teams if t.id == record.team), record.team),
        link=f"{own_origin(request)}{request.scope.get('root_path', '')}/requests/{record.id}",
        playground=("GET", "/playground") in ACCESS, flag_words=retold.FLAGS, ran=ran(record),
    )  # fmt: skip


async def one_of(accounts: Accounts, visitor: Visitor, id: str) -> UsageRecord:
    """404 for one of another organisation, or of somebody else's."""
    record = await accounts.admin.exchanges.exchange(id)
    mine = narrowed(visitor)
    if record is None or record.organisation != mine["organisation"]:
        raise absent("request")
    if record.user_id != mine.get("user", record.user_id):
        raise absent("request")
    return record
