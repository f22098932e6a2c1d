"""The client side of an exchange, behind one protocol.

Our own edge hands the app a :class:`Downstream` in ``scope["extensions"]["passy.edge"]`` and it is
used as it is: no task, queue or copy between the core and the socket. Under any other ASGI server
:class:`AsgiDownstream` gives the same over ``receive`` and ``send``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from operator import methodcaller
from typing import Any, Protocol

Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_PARTS = methodcaller("partition", b": ")


class ClientGone(Exception):
    """The client hung up before the answer was complete."""


class BodyTooLarge(Exception):
    """The body exceeds the cap; ``limit`` in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")
        self.limit = limit


class BodyTimeout(Exception):
    """The client sends its body too slowly."""


class BadUpload(Exception):
    """A streamed upload that is refused for what was seen of it on its way."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Downstream(Protocol):
    """What the core needs of the client's connection, for one request."""

    started: bool
    """The head of the answer was given to ``start``."""

    gone: bool
    """The client hung up."""

    @property
    def peer(self) -> str:
        """The address at the other end of the connection; empty where there is none."""
        ...

    @property
    def stalled(self) -> bool:
        """The client is gone because it took too little of its answer, and was cut for it."""
        ...

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that serves the request."""
        ...

    def arrived(self, limit: int) -> bytes | None:
        """The whole request body without waiting; ``None`` where ``body`` has to be asked."""
        ...

    async def body(self, limit: int) -> bytes:
        """The whole request body. Raises BodyTooLarge, BodyTimeout, ClientGone."""
        ...

    def pieces(self, limit: int) -> AsyncIterator[bytes]:
        """The request body as it arrives, for streamed uploads. Raises like ``body``."""
        ...

    def watch(self, hang_up: Callable[[], None] | None) -> None:
        """Call ``hang_up`` once, from the loop, when the client leaves; ``None`` stops watching.

        If the client is already gone, ``hang_up`` is called at once.
        """
        ...

    def whole(self, status: int, headers: Headers, body: bytes, lines: bytes = b"") -> None:
        """A whole answer: ``start``, with the length of ``body`` added, and ``finish`` at once."""
        ...

    def start(self, status: int, headers: Headers, lines: bytes = b"") -> None:
        """The head: ``headers``, and ``lines`` of our own, rendered.

        With ``content-length`` in ``headers`` the body is sent as it is, else chunked (closed at
        the end for HTTP/1.0). Nothing is written yet: the head goes out with the first bytes of
        the body, in one write.
        """
        ...

    def write(self, data: bytes) -> bool:
        """Send a piece of the body (``b""``: just the head). False: ``await drain()`` before more.

        The rule is not advice: under a stock server ``drain`` is what sends. Writing to a client
        that left is silently nothing; it returns False, and ``drain`` then raises.
        """
        ...

    def finish(self, data: bytes = b"") -> None:
        """Send the last piece and end the answer."""
        ...

    async def drain(self) -> None:
        """Wait until the client has read enough. Raises ClientGone, also if it stopped reading."""
        ...

    def settle(self) -> Awaitable[None] | None:
        """Called once, at the very end: what is to be awaited, if anything, to send what ``finish``
        could not send by itself."""
        ...

    def abort(self) -> None:
        """Cut the connection: the answer cannot be completed honestly any other way."""
        ...

    def asgi(self) -> tuple[dict[str, Any], Receive, Send]:
        """The request as ASGI has it, for an application of another's: scope, receive and send.
        Whoever asks uses nothing else of this, but ``gone`` and ``abort``."""
        ...


def pairs(lines: bytes) -> Headers:
    """Rendered lines as names and values."""
    return [(name, value) for name, _, value in map(_PARTS, lines.split(b"\r\n")) if name]


class AsgiDownstream:
    """A Downstream over plain ASGI, for any other server than our own edge.

    ``start``, ``write`` and ``finish`` only take note; ``drain`` and ``settle`` send. What the
    server does not tell us, we cannot: the pace of an upload is its business (BodyTimeout is never
    raised), and an answer is cut by leaving it incomplete, which servers turn into a closed
    connection.
    """

    __slots__ = (
        "_body",
        "_cut",
        "_hang_up",
        "_length",
        "_read",
        "_receive",
        "_scope",
        "_send",
        "_unsent",
        "_watcher",
        "finished",
        "gone",
        "started",
        "task",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._length = _content_length(scope["headers"])
        self._body = b""
        self._read = False  # the body has been read to its end
        self._unsent: list[Message] = []
        self._hang_up: Callable[[], None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._cut = False
        self.task = asyncio.current_task()
        self.started = False
        self.finished = False
        self.gone = False

    @property
    def peer(self) -> str:
        client = self._scope.get("client")
        return client[0] if client else ""

    @property
    def stalled(self) -> bool:
        """False: how slowly a client reads is the server's business."""
        return False

    def arrived(self, limit: int) -> bytes | None:
        """``None``: a server that is not ours has to be asked."""
        return None

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge, ClientGone."""
        if not self._read:
            self._body = b"".join([piece async for piece in self.pieces(limit)])
        elif len(self._body) > limit:
            raise BodyTooLarge(limit)
        return self._body

    async def pieces(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes. Raises BodyTooLarge, ClientGone."""
        if self._length > limit:
            raise BodyTooLarge(limit)
        size = 0
        while not self._read:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                await self._left()
                raise ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(limit)
            if not message.get("more_body", False):
                self._read = True
                self._begin_watching()
            if piece:
                yield piece

    def watch(self, hang_up: Callable[[], None] | None) -> None:
        """Call ``hang_up`` when the client leaves: from a task, once the body has been read."""
        if hang_up is not None and self.gone:
            hang_up()
            return
        self._hang_up = hang_up
        if hang_up is None:
            self._end_watching()
        elif self._read:
            self._begin_watching()

    def whole(self, status: int, headers: Headers, body: bytes, lines: bytes = b"") -> None:
        """Take note of all of it; ``settle`` sends it."""
        self.start(status, [*headers, (b"content-length", b"%d" % len(body))], lines)
        self.finish(body)

    def start(self, status: int, headers: Headers, lines: bytes = b"") -> None:
        """Take note of the head."""
        if self.started:
            raise RuntimeError("the answer has a head already")
        self.started = True
        headers = [field for field in headers if field[0] != b"transfer-encoding"]
        headers += pairs(lines)
        self._unsent.append({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes) -> bool:
        """Take note of a piece of the body; always False: ``drain`` sends it."""
        if not (self.gone or self.finished):
            self._unsent.append({"type": "http.response.body", "body": data, "more_body": True})
        return False

    def finish(self, data: bytes = b"") -> None:
        """Take note of the last piece; ``settle`` sends it."""
        if not (self.gone or self.finished):
            self.finished = True
            self._unsent.append({"type": "http.response.body", "body": data, "more_body": False})
            # The server also reports a disconnect once the answer is complete.
            self._hang_up = None
            self._end_watching()

    async def drain(self) -> None:
        """Send what was noted. Raises ClientGone."""
        try:
            while self._unsent:
                await self._send(self._unsent.pop(0))
        except OSError:  # what ASGI 2.4 lets a server raise for a client that left
            await self._left()
        if self.gone:
            raise ClientGone

    async def settle(self) -> None:
        """Send what is left. Never raises for a client that has left."""
        self._end_watching()
        if not self._cut:
            with contextlib.suppress(ClientGone):
                await self.drain()

    def abort(self) -> None:
        """Leave the answer incomplete."""
        self._cut = self.finished = True
        self._unsent.clear()
        self._hang_up = None
        self._end_watching()

    def asgi(self) -> tuple[dict[str, Any], Receive, Send]:
        """What the server gave."""
        return dict(self._scope), self._receive, self._send

    def _begin_watching(self) -> None:
        if self._hang_up is not None and self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._await_disconnect())

    def _end_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _await_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    async def _left(self) -> None:
        """The client has left, as a task finds out that may be the exchange's own. Then it is about
        to be cancelled, and here: not in what the end of the exchange waits for."""
        self._leave()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    def _leave(self) -> None:
        if self.gone or self.finished:
            return
        self.gone = True
        self._unsent.clear()
        hang_up, self._hang_up = self._hang_up, None
        if hang_up is not None:
            hang_up()


def _content_length(headers: Headers) -> int:
    """What the client announced; -1 if nothing, or nothing sensible."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return -1
