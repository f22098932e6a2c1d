"""The live tail of requests: server-sent events, each with rows that have just arrived.

The id of an event is where to go on behind it; a browser that comes back says it, and misses
nothing and sees nothing twice. ``end`` says that there will be no more, and why.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from passy_plugins.api.denied import Denied
from passy_portal.sought import sought
from passy_portal.tail import Piece, Tail, Watcher
from passy_portal.view import templates, visitor_of
from passy_proxy import json

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

SILENCE = 10.0
"""Seconds after which a sign of life is sent."""
MOST_SHOWN = 500
"""Rows in one event: nobody reads more, and a page has no room for them."""
EVENTS = "text/event-stream"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@router.get("/requests/tail")
async def watch(request: Request, place: Annotated[str, Query(max_length=16_000)] = "") -> Response:
    """From ``place`` on, as the page says it, or from where the browser was."""
    if EVENTS not in request.headers.get("accept", ""):
        raise Denied(406, "not_acceptable", f"This is for who accepts {EVENTS}.")
    tail: Tail = await request.app.state.office.tail()
    visitor = visitor_of(request)
    wanted = sought(request.query_params).wanted(visitor)
    place = request.headers.get("last-event-id", "") or place or await tail.place()
    watcher = tail.watch(visitor, wanted, place)
    root: str = request.scope.get("root_path", "")

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"retry: 1000\n\n"
            while True:
                piece = await watcher.next(SILENCE)
                if piece is not None:
                    yield event(root, piece)
                elif watcher.over:
                    yield ending(watcher)
                    return
                else:
                    yield f"id: {watcher.place}\n\n".encode()
        finally:
            tail.leave(watcher)

    return StreamingResponse(events(), media_type=EVENTS, headers=HEADERS)


def event(root: str, piece: Piece) -> bytes:
    """Rows as the page has them, newest first."""
    told: dict[str, Any] = {"count": len(piece.rows), "lost": piece.lost, "away": piece.away}
    if rows := [*reversed(piece.rows)][:MOST_SHOWN]:
        told["rows"] = templates.get_template("request_rows.html").render(rows=rows, root=root)
        told["failed"] = sum(row.ending in ("refused", "failed") for row in rows)
    place = f"id: {piece.place}\n" if piece.place else ""
    return b"%bdata: %b\n\n" % (place.encode(), json.dumps(told))


def ending(watcher: Watcher) -> bytes:
    """Who did not take what there was just comes back; so does who watched a process that ends."""
    return b"event: end\ndata: session\n\n" if watcher.over == "session" else b": come back\n\n"
