"""Answers as they are parsed: the legs a caller reads, and the parser that feeds them. No I/O.

The parser object lives as long as its connection and parses one answer after the other. What the
peer may make us keep is bounded here: the head, the number of headers, and the bytes between two
pieces of body.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from typing import NoReturn, Protocol

from . import Sink, TransportError

with suppress(ImportError):  # httpcore.py, which does without, shares the limits kept here.
    import httptools

Headers = list[tuple[bytes, bytes]]

UNREAD_BYTES = 65_536
"""More than this waiting to be read pauses the connection."""
READ_BYTES = 65_536
HEAD_BYTES = 65_536
HEAD_COUNT = 200
FRAMING_BYTES = 16_384
"""Bytes of chunk sizes, extensions and trailers between two pieces of body."""
VERSION = b"HTTP/1."
"""What an answer begins with."""
_LONGEST_HINT = 300.0
_WATCHED = (b"keep-alive", b"transfer-encoding")
_KEPT = 512
_KEPT_BYTES = 64
"""Names remembered, at most, and the bytes of one. Values are not remembered."""

_names: dict[bytes, bytes] = {}  # as spelled -> lower case; never those that are watched
_lowered = _names.get
_NAME = itemgetter(0)
_nowhere = deque[tuple[bytes, bytes]](maxlen=0).append


class Refused(Exception):
    """Raised inside a parser callback; its text says what is wrong with the answer."""


class AnswerParser:
    """Parses one answer after the other from the bytes given to ``feed``.

    ``feed`` raises ``httptools.HttpParserError`` or ``HttpParserUpgrade``; :func:`reason` says why.
    """

    __slots__ = (
        "_add",
        "_method",
        "_parser",
        "_watched",
        "done",
        "feed",
        "headers",
        "keepalive",
        "last",
        "on_body",
        "pending",
        "pieces",
        "reusable",
        "status",
    )  # fmt: skip

    feed: Callable[[bytes], None]
    last: bytes
    """What was in ``pieces`` at the end of the body."""
    _add: Callable[[tuple[bytes, bytes]], None]

    def __init__(self, keepalive: float) -> None:
        self.keepalive = keepalive
        """Seconds the connection may stay idle after this answer."""
        self.reusable = True
        """Nothing was seen that forbids another request on this connection."""
        self._method = ""
        self.headers: Headers = []
        """Lower-case names, trimmed values: those of the head once ``status`` is set. The owner
        takes them, and ``last``, before the next answer."""
        self.status = 0
        """Set once the head is complete."""
        self.done = False
        """The answer is complete."""
        self._watched: list[int] = []
        """Where in this head those headers are that steer us."""
        self.pending = 0
        """Bytes since the request or since the last piece of body; the owner counts."""
        self.pieces: list[bytes] = []
        """Of the body, not taken yet."""
        self.on_body = self.pieces.append  # for httptools: no Python runs for a piece of body
        self._renew()

    def begin(self, method: str) -> None:
        """The next answer is one to this method."""
        if self._watched:  # those of trailers
            self._watched.clear()
        if self._method == "HEAD":  # httptools still waits for the body that was announced
            self._renew()
        self.status = self.pending = 0
        self.done = False
        self._add = self.headers.append
        self._method = method

    def until_eof(self) -> bool:
        """Nothing but the end of the connection ends this body."""
        return {b"content-length", b"transfer-encoding"}.isdisjoint(map(_NAME, self.headers))

    def _renew(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.feed = self._parser.feed_data

    # Called by httptools. What is called for each header does as little as it can.

    def on_message_begin(self) -> None:
        if self.done:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._add((_lowered(name) or self._read_name(name, value), value.strip()))

    def _read_name(self, spelled: bytes, value: bytes) -> bytes:
        name = spelled.lower()
        if name in _WATCHED:
            self._watched.append(len(self.headers))
            if value.endswith(b"\t") and name == b"transfer-encoding" and not self.status:
                raise Refused("a tab behind its transfer coding")  # httptools reads another name
        elif len(_names) < _KEPT and len(name) <= _KEPT_BYTES:
            _names[spelled] = name
        return name

    def on_headers_complete(self) -> None:
        if self.done:
            return
        headers = self.headers
        if self.pending > HEAD_BYTES or len(headers) > HEAD_COUNT:
            _check_size(headers)
        status = self._parser.get_status_code()
        if self._watched:
            self._watch(headers, status)
        if status < 200:
            if status == 101:
                raise Refused("a switch of protocols nobody asked for")
            headers.clear()
            return
        self.status = status
        self._add = _nowhere  # Trailers are not passed on.
        if self._method == "HEAD":
            self._end_without_body(headers)

    def _watch(self, headers: Headers, status: int) -> None:
        """httptools itself refuses more than one length, and a length beside a coding."""
        coded = False
        for at in self._watched:
            name, value = headers[at]
            if name == b"keep-alive":
                if status >= 200:
                    self.keepalive = kept(value, self.keepalive)
                continue
            if coded or value.lower() != b"chunked" or self._parser.get_http_version() != "1.1":
                raise Refused("a transfer coding other than chunked")
            coded = True
        self._watched.clear()

    def _end_without_body(self, headers: Headers) -> None:
        """An answer to HEAD: the announced length says nothing about this message."""
        named = b",".join([value for name, value in headers if name == b"connection"]).lower()
        if self._parser.get_http_version() != "1.1" or b"close" in named:
            self.reusable = False
        self.done = True
        self.last = b""

    def on_message_complete(self) -> None:
        if self.status and not self.done:
            self.done = True
            pieces = self.pieces
            self.last = b"".join(pieces)
            pieces.clear()
            if not self._parser.should_keep_alive():
                self.reusable = False


def read_little(transport: asyncio.Transport) -> None:
    """Let one read bring no more than `READ_BYTES`: what a read brings is worked through in one go,
    and may be thousands of events. asyncio's own 256 KiB are four times the wait for all others."""
    with suppress(AttributeError):  # Not every event loop's transport can be told.
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]


def _check_size(headers: Headers) -> None:
    if len(headers) > HEAD_COUNT:
        raise Refused("too many headers")
    if sum(len(name) + len(value) + 4 for name, value in headers) > HEAD_BYTES:
        raise Refused("too large a head")


def may_begin(data: bytes) -> bool:
    """Whether an answer may begin like this: with some of what it has to, or line ends before."""
    start = data.lstrip(b"\r\n")
    return start.startswith(VERSION) or VERSION.startswith(start)


def reason(error: Exception) -> str:
    """Why ``feed`` raised."""
    cause = error.__context__
    return str(cause) if isinstance(cause, Refused) else f"{error}"


class WholeLeg:
    """An answer that has arrived whole, and has left its connection."""

    __slots__ = ("_body", "headers", "status")

    complete = True

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    async def read(self) -> bytes:
        body = self._body
        self._body = b""
        return body

    async def read_all(self, limit: int) -> bytes:
        body = self._body
        self._body = b""
        if len(body) > limit:
            _refuse_length(limit)
        return body

    async def relay(self, sink: Sink) -> bool:
        body = self._body
        self._body = b""
        if body:
            sink(body)
        return True

    def close(self) -> None:
        self._body = b""


class Line(Protocol):
    """What a leg asks of its connection."""

    def hold(self) -> None:
        """Read no more for now."""

    def resume(self) -> None:
        """Read on; nothing if it was not held."""

    def fail(self, error: Exception) -> None:
        """End the answer with ``error`` and drop the connection."""


class Leg:
    """An answer that is arriving; see :class:`passy_proxy.transport.Leg`."""

    __slots__ = (
        "complete", "error", "headers", "line", "pieces", "sink", "status", "unread", "waiter",
    )  # fmt: skip

    def __init__(self, status: int, headers: Headers, line: Line) -> None:
        self.status = status
        self.headers = headers
        self.complete = False
        self.line: Line | None = line
        self.error: Exception | None = None
        self.pieces: list[bytes] = []
        self.unread = 0  # bytes, counted only while a reader lags behind by more than one read
        self.waiter: asyncio.Future[None] | None = None
        self.sink: Sink | None = None  # set while ``relay`` waits

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def read(self) -> bytes:
        pieces = self.pieces
        while not pieces:
            if self.complete:
                return b""
            if self.error is not None:
                raise self.error
            if self.line is not None:
                self.line.resume()
            self.waiter = waiter = get_running_loop().create_future()
            await waiter
        return self._take()

    def _take(self) -> bytes:
        pieces = self.pieces
        self.unread = 0  # The connection reads on when more is waited for.
        if len(pieces) == 1:
            return pieces.pop()
        data = b"".join(pieces)
        pieces.clear()
        return data

    async def relay(self, sink: Sink) -> bool:
        while True:
            if self.pieces:
                try:
                    taken = sink(self._take())
                except Exception as error:
                    self.fail(error)
                    raise
                if not (taken or self.complete):
                    if self.line is not None:
                        self.line.hold()
                    return False
            if self.error is not None:
                raise self.error
            if self.complete:
                return True
            if self.line is not None:
                self.line.resume()
            self.waiter = waiter = get_running_loop().create_future()
            self.sink = sink
            try:
                await waiter
                if self.sink is None and not self.complete and self.error is None:
                    return False
            finally:
                self.sink = None

    def arrive(self, data: bytes) -> None:
        """Take over what one read brought."""
        sink = self.sink
        if sink is not None:
            try:
                if sink(data):
                    return
            except Exception as error:
                self.fail(error)
                return
            self.sink = None
            if self.line is not None:
                self.line.hold()  # A single read may bring as much as all that is bounded here.
            self.wake()
            return
        mine = self.pieces
        if mine:  # the reader is behind
            self.unread = (self.unread or sum(map(len, mine))) + len(data)
        elif len(data) > UNREAD_BYTES:
            self.unread = len(data)
        mine.append(data)
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def read_all(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                self.close()
                _refuse_length(limit)
            pieces.append(data)
        return b"".join(pieces)

    def fail(self, error: Exception) -> None:
        """The one who takes the pieces cannot."""
        self.error = error
        if self.line is not None:
            self.line.fail(error)

    def close(self) -> None:
        if self.line is not None:
            self.line.fail(TransportError("broken", "the answer was closed", sent=True))
        self.pieces.clear()


def _refuse_length(limit: int) -> NoReturn:
    raise TransportError("protocol", f"the answer is larger than {limit} bytes", sent=True)


def kept(value: bytes, default: float) -> float:
    """How long to keep a connection idle, given the upstream's ``keep-alive`` header.

    Below the ``timeout`` it names by a second (by half, if it names less than two).
    """
    for part in value.lower().split(b","):
        key, _, seconds = part.strip().partition(b"=")
        if key == b"timeout" and seconds.isdigit() and len(seconds) < 10:
            hint = float(seconds)
            return min(max(hint - 1.0, hint / 2), _LONGEST_HINT)
    return default
