"""Requests in JSON: found by whatever is asked, one of them whole, and as they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from passy_plugins.api.editing import Paging
from passy_plugins.api.errors import responses
from passy_plugins.api.usage import Exchange, WholeExchange, exchange_of, whole
from passy_plugins.api.words import Body, Id, Line, Name, Shown, shown_at
from passy_portal import saved_views
from passy_portal.pages.requests import asked_in, one_of
from passy_portal.saved_views import SavedView
from passy_portal.sought import Sought
from passy_portal.view import accounts_of, visitor_of

if TYPE_CHECKING:
    from passy_portal.tail import Tail

router = APIRouter(tags=["requests"])


class RequestsQuery(Sought, Paging): ...


class Requests(Shown):
    rows: list[Exchange]
    cursor: str | None
    reached: str = Field(
        description="The rows are all that is wanted from here on. A page that has fewer rows than "
        "its limit and a cursor has not looked farther yet."
    )


class ArrivedQuery(Sought):
    after: str = Field(
        default="",
        max_length=16_000,
        pattern=r"^[A-Za-z0-9_:,]*$",
        description="The `place` of the answer before; empty: only say where what comes begins.",
    )


class Arrived(Shown):
    """What has come since, in the order in which it came, each request once."""

    rows: list[WholeExchange]
    place: str = Field(description="For `after`, next time; for ten minutes at least.")
    more: bool = Field(description="There is more already.")
    lost: bool = Field(description="Something may be missing: the place was too old, or is none.")


class ViewShown(Shown):
    """A saved question."""

    id: str
    name: str
    query: str = Field(description="As it stands in the page's address.")


class Views(Shown):
    rows: list[ViewShown]


class NewView(Body):
    name: Name
    query: Line = Field(default="", description="As it stands in the page's address.")


CHANGE = responses(400, 401, 403, 404, 409, 413, 415, 422, 503)


@router.get("/api/requests", responses=responses(401, 422, 503))
async def requests(request: Request, query: Annotated[RequestsQuery, Query()]) -> Requests:
    """Latest first. A page is what can be found in a moment: it may have few rows, or none, and a
    cursor to go on from."""
    accounts = await accounts_of(request)
    wanted = query.wanted(visitor_of(request))
    found = await accounts.admin.exchanges.find(wanted, query.limit, query.cursor)
    return Requests(
        rows=[Exchange(**exchange_of(record)) for record in found.rows],
        cursor=found.cursor,
        reached=str(shown_at(found.reached / 1000)),
    )


@router.get("/api/requests/arrived", responses=responses(401, 422, 503))
async def arrived(request: Request, query: Annotated[ArrivedQuery, Query()]) -> Arrived:
    """What the live tail shows, for who asks now and then."""
    tail: Tail = await request.app.state.office.tail()
    visitor = visitor_of(request)
    if not query.after:
        return Arrived(rows=[], place=await tail.place(), more=False, lost=False)
    found = await tail.after(visitor, query.wanted(visitor), query.after)
    return Arrived(
        rows=[whole(record) for record in found.records],
        place=found.place,
        more=found.more,
        lost=found.lost,
    )


@router.get("/api/requests/views", responses=responses(401, 503))
async def views(request: Request) -> Views:
    """One's own saved views."""
    found = await saved_views.saved(await accounts_of(request), visitor_of(request))
    return Views(rows=[shown(view) for view in found])


@router.post("/api/requests/views", status_code=201, responses=CHANGE)
async def save_view(request: Request, body: NewView) -> ViewShown:
    """One more."""
    question = asked_in(body.query)
    made = await saved_views.save(
        await accounts_of(request), visitor_of(request), body.name, question.query()
    )
    return shown(made)


@router.delete("/api/requests/views/{id}", status_code=204, responses=CHANGE)
async def delete_view(request: Request, id: Id) -> Response:
    """One of one's own."""
    await saved_views.remove(await accounts_of(request), visitor_of(request), id)
    return Response(status_code=204)


@router.get("/api/requests/{id}", responses=responses(400, 401, 404, 422, 503))
async def show_request(request: Request, id: Id) -> WholeExchange:
    """One of them with every attempt."""
    return whole(await one_of(await accounts_of(request), visitor_of(request), id))


def shown(view: SavedView) -> ViewShown:
    return ViewShown(id=view.id, name=view.name, query=view.query)
