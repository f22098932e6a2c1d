"""One request at the edge and its answer: what the application holds of a connection.

A Cycle is a Downstream as it stands, and has the ``receive`` and ``send`` of ASGI. It decides how
the answer is framed and hands the head over together with the first bytes of the body, in one
write. Sockets, deadlines and the requests that follow are the connection's, in `edge.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from passy_proxy.downstream import (
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    Headers,
    Message,
    Receive,
    Send,
)
from passy_proxy.framing import Refused, RequestHead

if TYPE_CHECKING:
    from passy_proxy.edge import Connection

STATUS_LINES = {
    int(status): f"HTTP/1.1 {int(status)} {status.phrase}".encode() for status in HTTPStatus
}

# How the end of an answer's body is told.
_BY_LENGTH: Final = 0
_BY_CHUNKS: Final = 1
_NO_BODY: Final = 2
_UNTIL_CLOSE: Final = 3
_NOT_TOLD: Final = 4  # there is no head yet, or nothing more is sent

_NAME = itemgetter(0)
_LINE = b": ".join
_BODYLESS = (204, 304)
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_SMALL = 16 * 1024  # bytes; below this, joining is cheaper than handing over pieces
_LARGE = 4 << 20  # bytes; above this, joining holds others up
_CRUMB = 1024  # bytes; a piece of a body that is hardly worth an object of its own
_CRUMBS = 256
_FORGETFUL = (3, 12) <= sys.version_info[:3] < (3, 12, 9) or (
    (3, 13) <= sys.version_info[:3] < (3, 13, 2)
)
"""Python's own loop asks nobody to pause who writes several pieces at once there (CVE-2024-12254):
all of an answer would be held for a client that reads nothing, and its time never be up."""


def _write_all(transport: asyncio.WriteTransport, pieces: Sequence[bytes]) -> None:
    """``pieces`` in one call of the system, where that can be done."""
    if _FORGETFUL:
        for piece in pieces:
            transport.write(piece)
    else:
        transport.writelines(pieces)


class Cycle:
    """One request and its answer: a Downstream, and an ASGI ``receive`` and ``send``."""

    __slots__ = (
        "_connection",
        "_crumbs",
        "_event",
        "_framing",
        "_handed",
        "_hang_up",
        "_left",
        "_lines",
        "_pieces",
        "buffered",
        "complete",
        "expects_continue",
        "finished",
        "gone",
        "head",
        "held",
        "keep_alive",
        "size",
        "slow",
        "started",
        "task",
        "wants_all",
    )

    def __init__(self, connection: Connection, head: RequestHead, body: bytes | None) -> None:
        """``body`` is the whole body if it came with the head."""
        self._connection = connection
        self.head = head
        self.keep_alive = head.keep_alive
        self.complete = body is not None  # the body has all come
        self.expects_continue = head.expects_continue and body is None
        self._pieces: list[bytes] = [body] if body else []
        self.task: asyncio.Task[Any] | None = None
        self._crumbs = 0  # small pieces since some were joined
        self.size = self.buffered = len(body) if body else 0  # so far; not yet taken
        self.held = 0  # of `buffered`, what the edge counts
        self._event: asyncio.Event | None = None  # set when something happened to the request
        self._hang_up: Callable[[], None] | None = None
        self.wants_all = False  # the application waits for the whole body
        self.slow = False
        self._handed = False  # the application has received the end of the body
        self._lines = b""  # rendered, not yet written
        self._framing = _NOT_TOLD
        self._left = 0  # bytes that the answer still lacks
        self.started = False
        self.finished = False
        self.gone = False

    @property
    def peer(self) -> str:
        """The address at the other end; a Unix socket has none."""
        client = self._connection.client
        return "" if client is None else client[0]

    @property
    def stalled(self) -> bool:
        """Whether it was we who ended the connection, because the client took too little."""
        return self._connection.stalled

    def arrived(self, limit: int) -> bytes | None:
        """The whole body, if it is here in one piece and within ``limit``."""
        pieces = self._pieces
        if self.complete and len(pieces) == 1 and self.size <= limit:
            return pieces[0]
        return None

    async def body(self, limit: int) -> bytes:
        """The whole body; at once if it is here. Raises BodyTooLarge, BodyTimeout, ClientGone."""
        if self.head.length > limit or self.size > limit:
            raise BodyTooLarge(limit)
        if not self.complete:
            await self._all(limit)
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces[0]
        if self.size > _LARGE:  # in a thread, which does not hold up Python meanwhile
            whole = await asyncio.to_thread(b"".join, pieces)
        else:
            whole = b"".join(pieces)
        self._pieces = [whole]
        return whole

    async def pieces(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes. Raises BodyTooLarge, BodyTimeout, ClientGone."""
        if self.head.length > limit:
            raise BodyTooLarge(limit)
        total = 0
        while True:
            for piece in self._take():
                total += len(piece)
                if total > limit:
                    raise BodyTooLarge(limit)
                yield piece
            if self._pieces:
                continue
            if self.complete:
                return
            self._check()
            self._connection.want_body(self)
            await self._happening()

    def watch(self, hang_up: Callable[[], None] | None) -> None:
        """Call ``hang_up`` when the client leaves; at once if it has."""
        if hang_up is not None and self.gone:
            hang_up()
        else:
            self._hang_up = hang_up

    def whole(self, status: int, headers: Headers, body: bytes, lines: bytes = b"") -> None:
        """A whole answer, in one write. Raises ValueError for a header that would end early."""
        if self.started:
            raise RuntimeError("the answer has a head already")
        if status in _BODYLESS:
            self.start(status, headers, lines)
            self.finish()
            return
        if (
            status < 200
            or self.head.line.method == "HEAD"
            or not _FRAMING.isdisjoint(map(_NAME, headers))
        ):
            self.start(status, [*headers, (b"content-length", b"%d" % len(body))], lines)
            self.finish(body)
            return
        if self.gone or self.finished:
            return
        connection = self._connection
        self.keep_alive = self.keep_alive and connection.stays(self)
        head = self._joined(status, headers, b"%bcontent-length: %d\r\n" % (lines, len(body)))
        self.started = self.finished = True
        self._hang_up = None
        if len(body) > _SMALL:
            self._write(head, body)
        else:
            connection.send_whole(head + body, self)
        if self._event is not None:
            self._event.set()
        connection.answered(self)

    def start(self, status: int, headers: Headers, lines: bytes = b"") -> None:
        """Render the head. Raises ValueError for a header that would end early."""
        if self.started:
            raise RuntimeError("the answer has a head already")
        keep_alive = self.keep_alive and self._connection.stays(self)
        length = None
        if not _FRAMING.isdisjoint(map(_NAME, headers)):
            lengths = [value for name, value in headers if name == b"content-length"]
            length = lengths[0] if lengths else None
            for name, value in headers:
                if name == b"connection" and value.lower().find(b"close") >= 0:
                    keep_alive = False
            headers = [header for header in headers if header[0] not in _FRAMING]
        if status < 200 or status in _BODYLESS or self.head.line.method == "HEAD":
            self._framing = _NO_BODY
        elif length is not None:
            self._framing = _BY_LENGTH
            self._left = int(length)
        elif self.head.line.minor:
            self._framing = _BY_CHUNKS
            lines += b"transfer-encoding: chunked\r\n"
        else:
            self._framing = _UNTIL_CLOSE
            keep_alive = False
        if length is not None and status != 204:
            headers = [*headers, (b"content-length", length)]
        self.keep_alive = keep_alive
        self._lines = self._joined(status, headers, lines)
        self.started = True
        if self.gone:  # and the answer goes on without its client
            self._framing = _NOT_TOLD

    def _joined(self, status: int, headers: Headers, lines: bytes) -> bytes:
        """The whole head. Raises ValueError for a header that holds more than one line."""
        connection = self._connection
        told = b"\r\n".join(
            [STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, *map(_LINE, headers)]
        )
        ends = len(headers)
        if told.count(b"\n") != ends or told.count(b"\r") != ends or 0 in told:
            raise ValueError("a header of the answer holds CR, LF or NUL")
        default = connection.edge.default_lines(connection.server_state.default_headers)
        if self.keep_alive:
            return b"%b\r\n%b%b" % (told, lines, default)
        return b"%b\r\n%bconnection: close\r\n%b" % (told, lines, default)

    def write(self, data: bytes) -> bool:
        """A piece of the body. False: ``await drain()`` before more."""
        connection = self._connection
        framing = self._framing
        if framing == _BY_CHUNKS and data:
            head = self._lines
            if head:
                self._lines = b""
            size = len(data)
            if size > _SMALL:
                _write_all(connection.transport, (b"%b%x\r\n" % (head, size), data, b"\r\n"))
            else:
                connection.transport.write(b"%b%x\r\n%b\r\n" % (head, size, data))
            return not connection.paused_writing
        if self.gone or self.finished:
            return False
        if not self.started:
            raise RuntimeError("the answer has no head yet")
        head = self._lines
        self._lines = b""
        if framing == _BY_LENGTH:
            self._left -= len(data)
            if self._left < 0:
                raise RuntimeError("the answer is longer than its content-length")
        elif framing == _NO_BODY:
            data = b""
        self._write(head, data)
        return not connection.paused_writing

    def finish(self, data: bytes = b"") -> None:
        """The last piece. An answer that lacks a part of its content-length is cut instead."""
        if self.gone or self.finished:
            return
        if not self.started:
            raise RuntimeError("the answer has no head yet")
        head = self._lines
        self._lines = b""
        framing = self._framing
        if framing == _BY_LENGTH and self._left != len(data):
            self.abort()
            raise RuntimeError("the answer is not as long as its content-length")
        self.finished = True
        self._framing = _NOT_TOLD
        self._hang_up = None
        if framing == _BY_CHUNKS:
            size = b"%x\r\n" % len(data) if data else b""
            self._write(head + size, data + (b"\r\n0\r\n\r\n" if data else b"0\r\n\r\n"))
        else:
            self._write(head, b"" if framing == _NO_BODY else data)
        if self._event is not None:
            self._event.set()
        self._connection.answered(self)

    async def drain(self) -> None:
        """Wait until the client has read enough. Raises ClientGone."""
        connection = self._connection
        while connection.paused_writing and not (self.gone or self.finished):
            if connection.writable is None:
                connection.writable = asyncio.Event()
            connection.writable.clear()
            await connection.writable.wait()
        if self.gone:
            raise ClientGone

    def abort(self) -> None:
        """End the connection before the end of the answer; what was written still goes out.

        Unless only the end of the connection tells the end of the answer: then by a reset.
        """
        if self.gone or self.finished:
            return
        framing, self._framing = self._framing, _NOT_TOLD
        self.finished = True
        self._hang_up = None
        self._connection.cycle = None
        if framing == _UNTIL_CLOSE:
            self._connection.cut()
        else:
            self._connection.close()

    def settle(self) -> None:
        """Nothing: ``finish`` has handed everything over."""

    def asgi(self) -> tuple[dict[str, Any], Receive, Send]:
        """For an application that is mounted beside the routes."""
        return self._connection.scope_of(self), self.receive, self.send

    async def receive(self) -> Message:
        """ASGI: a piece of the body, then the client's leaving."""
        while not (self.gone or self.finished or self.slow):
            if self._pieces or (self.complete and not self._handed):
                self._handed = self.complete
                return {
                    "type": "http.request",
                    "body": b"".join(self._take()),
                    "more_body": not self.complete,
                }
            if not self.complete:
                self._connection.want_body(self)
            await self._happening()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: the head, then pieces of the body. To a client that left: nothing."""
        kind = message["type"]
        if kind == "http.response.start":
            headers = message.get("headers", ())
            self.start(message["status"], [(name.lower(), value) for name, value in headers])
        elif kind != "http.response.body":
            raise RuntimeError(f"unexpected ASGI message {kind!r}")
        elif not message.get("more_body", False):
            self.finish(bytes(message.get("body", b"")))
        elif not self.write(bytes(message.get("body", b""))):
            with contextlib.suppress(ClientGone):
                await self.drain()

    def arrive(self, piece: bytes) -> None:
        """A piece of the body has come."""
        pieces = self._pieces
        pieces.append(piece)
        if len(piece) < _CRUMB:
            # Kept as they come, bodies sent in crumbs would take many times their size.
            self._crumbs += 1
            if self._crumbs == _CRUMBS:
                self._crumbs = 0
                pieces[-_CRUMBS:] = [b"".join(pieces[-_CRUMBS:])]
        self.size += len(piece)
        self.buffered += len(piece)
        self.held += len(piece)
        self._connection.edge.held += len(piece)
        if self._event is not None:
            self._event.set()

    def end_body(self) -> None:
        """The body has all come."""
        self.complete = True
        self.expects_continue = False
        if self._event is not None:
            self._event.set()

    def body_is_slow(self) -> None:
        """The client sends too slowly: who waits for the body is told."""
        self.slow = True
        if self._event is not None:
            self._event.set()

    def leave(self) -> None:
        """The client has left."""
        if self.gone or self.finished:
            return
        self.gone = True
        self._framing = _NOT_TOLD
        if self._event is not None:
            self._event.set()
        hang_up, self._hang_up = self._hang_up, None
        if hang_up is not None:
            hang_up()

    async def _all(self, limit: int) -> None:
        self.wants_all = True
        try:
            while not self.complete:
                self._check()
                if self.size + self._connection.announced > limit:
                    raise BodyTooLarge(limit)
                self._connection.want_body(self)
                await self._happening()
            if self.size > limit:
                raise BodyTooLarge(limit)
        finally:
            self.wants_all = False

    async def _happening(self) -> None:
        if self._event is None:
            self._event = asyncio.Event()
        self._event.clear()
        await self._event.wait()

    def _check(self) -> None:
        if self.gone:
            raise ClientGone
        if self.slow:
            raise BodyTimeout

    def _take(self) -> list[bytes]:
        pieces = self._pieces
        self._pieces = []
        self.buffered = 0
        if self.held:
            self._connection.edge.held -= self.held
            self.held = 0
        return pieces

    def _write(self, head: bytes, data: bytes) -> None:
        if not head:
            if data:
                self._connection.transport.write(data)
        elif len(data) > _SMALL:
            _write_all(self._connection.transport, (head, data))
        else:
            self._connection.transport.write(head + data)

    def give_up(self) -> None:
        """The application has ended, the answer has not."""
        if self.started and not self._lines:
            self.abort()
            return
        self.started = False
        self._hang_up = None
        if self.slow:
            refusal = Refused(
                408, "request_body_timeout", "The body of the request came too slowly."
            )
        else:
            refusal = Refused(500, "internal_error", "The gateway failed to answer.")
        self._connection.refuse(refusal)
