"""An application at its path: what stands between its clients and its own code.

Around each request there is what a route has from the core: an id that is also the header
``x-request-id``, a cap on the body, an end that is noticed, and an answer in JSON for a failure,
which says no more than that id.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from passy_proxy.exchange import new_id
from passy_proxy.framing import Refused
from passy_proxy.refusal import plainly

if TYPE_CHECKING:
    from passy_proxy.application import Application, Message, Receive, Send
    from passy_proxy.config.model import Listener
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.downstream import Downstream


class Mount:
    """One line of ``apps:``, compiled."""

    def __init__(
        self,
        path: str,
        application: Application,
        body_limit: int,
        origin: str,
        listener: Listener = "main",
    ) -> None:
        self.path = path
        """Without a slash at its end; empty for the whole host."""
        self.root = path
        """What is not its own of the paths that it is asked for."""
        self.listener = listener
        self.application = application
        self.body_limit = body_limit
        """Bytes."""
        self.origin = origin
        """Where it stands in the configuration."""

    def short(self) -> Sequence[Mount]:
        """The places at the root of its listener where parts of the application are as well."""
        if self.listener != "admin" or not self.path:
            return ()
        made = []
        for path in self.application.short:
            place = Mount(path, self.application, self.body_limit, self.origin, self.listener)
            place.root = ""
            made.append(place)
        return made

    async def serve(self, snapshot: Snapshot, downstream: Downstream) -> None:
        """Answer one request, on the configuration that was live when it came."""
        snapshot.running += 1
        try:
            await _Visit(self, downstream).serve()
        finally:
            snapshot.left()


class _Visit:
    """One request to an application."""

    def __init__(self, mount: Mount, downstream: Downstream) -> None:
        self._mount = mount
        self._downstream = downstream
        self._receive: Receive
        self._send: Send
        self.id = new_id(time())
        self._began = monotonic()
        self._size = 0  # of the body so far
        self._status = 0  # of the answer, once it has begun
        self._ended = False  # the answer is complete
        self._left = False  # the client has left, or sends its body too slowly
        self._refused = False  # what the application says now, nobody hears

    async def serve(self) -> None:
        mount = self._mount
        scope, self._receive, self._send = self._downstream.asgi()
        scope["root_path"] = root = scope.get("root_path", "") + mount.root
        if scope["path"] == root:  # With or without a slash, it is the application's own root.
            scope["path"] += "/"
        scope["state"] = {**scope.get("state", {}), "request_id": self.id}
        log = mount.application.log
        try:
            if _length(scope["headers"]) > mount.body_limit:
                await self._refuse()
            else:
                await mount.application(scope, self.receive, self.send)
        except Exception as exc:
            # Broad, since applications are other people's code: one request ends, and no more.
            if not (self._gone or self._refused):
                log.error("app_failed", request_id=self.id, exc_info=exc)
                await self._fail()
        finally:
            path = scope["path"][:200]
            took = round((monotonic() - self._began) * 1000)
            log.info("app", method=scope["method"], path=path, status=self._status, ms=took,
                     request_id=self.id)  # fmt: skip

    @property
    def _gone(self) -> bool:
        return self._left or self._downstream.gone

    async def receive(self) -> Message:
        """What came of the body; at its cap the request is refused, whatever the application makes
        of that."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left = True
        elif message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._mount.body_limit and not self._status:
                await self._refuse()
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """What the application says; nothing more, once its request was refused."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [pair for pair in message.get("headers", ()) if pair[0] != b"x-request-id"]
            message = {**message, "headers": [*headers, (b"x-request-id", self.id.encode())]}
        await self._send(message)
        self._ended = message["type"] == "http.response.body" and not message.get("more_body")

    async def _refuse(self) -> None:
        message = f"The body is larger than {self._mount.body_limit} bytes."
        await self._say(Refused(413, "request_too_large", message))

    async def _fail(self) -> None:
        if not self._status:
            await self._say(Refused(500, "internal_error", f"Internal error; see {self.id}."))
        elif not self._ended:
            self._downstream.abort()

    async def _say(self, refusal: Refused) -> None:
        status, body, _ = plainly(refusal, self.id)
        headers: Any = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
        self._refused = True


def _length(headers: Any) -> int:
    return next((int(v) for name, v in headers if name == b"content-length" and v.isdigit()), 0)
