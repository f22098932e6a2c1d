"""The ASGI callable: pins a snapshot, matches a route, runs its chain; or asks an application."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from passy_proxy import json
from passy_proxy.downstream import AsgiDownstream, Downstream
from passy_proxy.exchange import Exchange, Request
from passy_proxy.framing import Refused, RequestHead, RequestLine, check_path, check_told, told
from passy_proxy.refusal import Said, plainly, spoken

if TYPE_CHECKING:
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.gateway import Gateway
    from passy_proxy.route import RouteTable

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

NOTHING: dict[str, Any] = {}


class App:
    """Raw ASGI. Runs under our own edge, and under any ASGI server."""

    home: ClassVar[bytes] = json.dumps({"passy": "LLM gateway", "base_url": "/v1"})
    """What is at ``/`` where nothing else is."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def table(self, snapshot: Snapshot) -> RouteTable:
        """What can be asked here."""
        return snapshot.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.other(scope, receive, send)
            return
        downstream: Downstream | None = (scope.get("extensions") or NOTHING).get("passy.edge")
        if downstream is None:
            downstream = AsgiDownstream(scope, receive, send)
            if (refusal := unclear(scope)) is not None:
                await self.say(downstream, *self.refused(refusal))
                return
        head = told(
            scope["method"],
            scope["path"],
            scope["query_string"],
            scope["headers"],
            scope.get("raw_path") or b"%",
        )
        await self.answer(head, downstream)

    def answer(self, head: RequestHead, downstream: Downstream) -> Awaitable[None]:
        """Answer one request. Our own edge calls this in place of the application."""
        line = head.line
        snapshot = self.gateway.snapshot
        route = self.table(snapshot).find(line.method, line.path)
        if route is None:
            return self.unrouted(line, downstream)
        request = Request(head, downstream)
        return route.chain.run(Exchange(snapshot, route, request, downstream))

    def refused(self, refusal: Refused) -> Said:
        """What is said to a request that no route sees, as those parse it who ask there."""
        dialect = self.table(self.gateway.snapshot).spoken(refusal.path)
        return plainly(refusal) if dialect is None else spoken(refusal, dialect)

    async def say(self, downstream: Downstream, status: int, body: bytes, lines: bytes) -> None:
        """An answer outside of every route."""
        downstream.whole(status, [(b"content-type", b"application/json")], body, lines)
        if (unsent := downstream.settle()) is not None:
            await unsent

    async def unrouted(self, line: RequestLine, downstream: Downstream) -> None:
        """Health for orchestrators, applications; for everything else a 404 that helps."""
        method, path = line.method, line.path
        looks = method in ("GET", "HEAD")
        if looks and (known := self.gateway.health(path, line.query)) is not None:
            await self.say(downstream, *known, b"")
            return
        snapshot = self.gateway.snapshot
        if (mount := self.table(snapshot).mount(path)) is not None:
            await mount.serve(snapshot, downstream)
            return
        if looks and path == "/":
            await self.say(downstream, 200, self.home, b"")
            return
        status, body, lines = self.refused(self.not_found(method, path))
        if status == 405:
            allowed = ", ".join(self.table(snapshot).methods(path))
            lines += b"allow: %b\r\n" % allowed.encode()
        await self.say(downstream, status, body, lines)

    def not_found(self, method: str, path: str) -> Refused:
        """404, or 405 where another method would have done."""
        routes = self.table(self.gateway.snapshot)
        shown = path[:200]
        # A route for pre-flight requests to any path does not make the path a known one.
        if allowed := [one for one in routes.methods(path) if one != "OPTIONS"]:
            message = f"{method} is not possible at {shown}; use {' or '.join(allowed)}."
            return Refused(405, "method_not_allowed", message, path)
        hint = ""
        if path.rstrip("/") == "/v1" and routes.find("GET", "/v1/models") is not None:
            hint = " It is where clients begin, their base_url; GET /v1/models lists the models."
        else:
            # Without /v1, with more before it or a slash behind it, in capitals.
            plain = path.rstrip("/").lower()
            for other in (plain, plain[max(plain.rfind("/v1/"), 0) :], f"/v1{plain}"):
                if other != path and routes.find(method, other) is not None:
                    hint = f" Did you mean {other}? An OpenAI client's base_url ends in /v1."
                    break
        message = f"There is nothing at {method} {shown}.{hint}"
        return Refused(404, "unknown_url", message, path)

    async def other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server's life cycle; WebSockets are refused."""
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    async def lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.gateway.start()
        except Exception as exc:
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            raise
        spare_the_collector()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.gateway.stop()
        await send({"type": "lifespan.shutdown.complete"})


class AdminApp(App):
    """What is asked at the listener of those who run the gateway. The main one starts and stops
    what both have in common."""

    home = json.dumps({"passy": "LLM gateway", "listener": "admin"})

    def table(self, snapshot: Snapshot) -> RouteTable:
        return snapshot.admin_routes


def spare_the_collector() -> None:
    """What is loaded by now stays: the collector need not look at it again and again.

    A request leaves no reference cycles behind, so there is little to find, and looking less often
    is worth a tenth of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def unclear(scope: Scope) -> Refused | None:
    """Why a request is refused that our own edge would not let in either."""
    try:
        check_path(scope.get("raw_path") or quote(scope["path"]).encode())
        check_told(scope["query_string"], scope["headers"])
    except Refused as refusal:
        refusal.path = scope["path"]
        return refusal
    return None
