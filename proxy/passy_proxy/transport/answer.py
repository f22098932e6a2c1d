"""Answers as they are parsed: the leg a caller reads, and the parser that fills it. No I/O.

The parser object lives as long as its connection and serves one leg after the other. What the
peer may make us keep is bounded here: the head, the number of headers, and the bytes between two
pieces of body.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from . import TransportError

with suppress(ImportError):  # httpcore.py, which does without, shares the limits kept here.
    import httptools

UNREAD_BYTES = 262_144
"""More than this waiting to be read pauses the connection."""
HEAD_BYTES = 65_536
HEAD_COUNT = 200
FRAMING_BYTES = 16_384
"""Bytes of chunk sizes, extensions and trailers between two pieces of body."""
_LONGEST_HINT = 300.0
_WATCHED = frozenset((b"content-length", b"transfer-encoding", b"keep-alive"))


class Refused(Exception):
    """Raised inside a parser callback; its text says what is wrong with the answer."""


class Line(Protocol):
    """What a leg asks of its connection."""

    def resume(self) -> None:
        """The unread bytes were taken."""

    def fail(self, error: Exception) -> None:
        """End the answer with ``error`` and drop the connection."""


class Leg:
    """One HTTP/1.1 answer; see :class:`passy_proxy.transport.Leg`."""

    __slots__ = (
        "complete", "error", "headers", "line", "pieces", "status", "unread", "waiter",
    )  # fmt: skip

    def __init__(self, line: Line, waiter: asyncio.Future[None]) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.line: Line | None = line
        self.error: Exception | None = None
        self.pieces: list[bytes] = []
        self.unread = 0  # bytes, counted only while a reader lags behind by more than one read
        self.waiter: asyncio.Future[None] | None = waiter

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
            self.waiter = waiter = get_running_loop().create_future()
            await waiter
        if self.unread:
            self._caught_up()
        if len(pieces) == 1:
            return pieces.pop()
        data = b"".join(pieces)
        pieces.clear()
        return data

    def arrive(self, pieces: list[bytes], size: int) -> None:
        """Take over the ``pieces`` of one read of ``size`` bytes."""
        mine = self.pieces
        if mine:  # the reader is behind
            self.unread = (self.unread or sum(map(len, mine))) + size
        mine += pieces
        pieces.clear()
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
                message = f"the answer is larger than {limit} bytes"
                raise TransportError("protocol", message, sent=True)
            pieces.append(data)
        return b"".join(pieces)

    def _caught_up(self) -> None:
        unread, self.unread = self.unread, 0
        if unread > UNREAD_BYTES and self.line is not None:
            self.line.resume()

    def close(self) -> None:
        if self.line is not None:
            self.line.fail(TransportError("broken", "the answer was closed", sent=True))
        self.pieces.clear()


class AnswerParser:
    """Fills one leg after the other from the bytes given to ``feed``.

    ``feed`` raises ``httptools.HttpParserError`` or ``HttpParserUpgrade``; :func:`reason` says why.
    """

    __slots__ = (
        "_head", "_head_only", "_leg", "_parser", "feed", "keepalive", "on_body", "pending",
        "pieces", "reusable", "until_eof",
    )  # fmt: skip

    feed: Callable[[bytes], None]
    pending: int
    """Bytes since the request, the end of the head or the last piece of body; the owner adds."""
    until_eof: bool
    """Nothing but the end of the connection ends this message."""

    def __init__(self, keepalive: float) -> None:
        self.keepalive = keepalive
        """Seconds the connection may stay idle after this message."""
        self.reusable = True
        """Nothing was seen that forbids another request on this connection."""
        self.pieces: list[bytes] = []
        """Of the body, parsed and not yet given to the leg."""
        self.on_body = self.pieces.append  # for httptools: no Python runs for a piece of body
        self._renew()

    def begin(self, leg: Leg, method: str) -> None:
        """The next message answers a request of this method and goes into ``leg``."""
        self._leg = leg
        self._head = leg.headers
        self._head_only = method == "HEAD"
        self.pending = 0
        self.until_eof = True

    def _renew(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.feed = self._parser.feed_data

    # Called by httptools.

    def on_message_begin(self) -> None:
        if self._leg.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        value = value.strip()
        if name in _WATCHED:
            self._watch(name, value)
        self._head.append((name, value))

    def _watch(self, name: bytes, value: bytes) -> None:
        if name == b"keep-alive":
            self.keepalive = kept(value, self.keepalive)
            return
        if not self.until_eof:
            raise Refused("more than one framing header")
        self.until_eof = False
        if name == b"transfer-encoding" and (
            value.lower() != b"chunked" or self._parser.get_http_version() != "1.1"
        ):
            raise Refused("a transfer coding other than chunked")

    def on_headers_complete(self) -> None:
        leg = self._leg
        if leg.complete:
            return
        if self.pending > HEAD_BYTES:
            size = sum(len(name) + len(value) + 4 for name, value in self._head)
            if size > HEAD_BYTES:
                raise Refused("too large a head")
        if len(self._head) > HEAD_COUNT:
            raise Refused("too many headers")
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                raise Refused("a switch of protocols nobody asked for")
            self._head.clear()
            self.until_eof = True
            return
        leg.status = status
        self._head = []  # trailers go nowhere
        self.pending = 0
        if self._head_only:
            self._end_without_body(leg)
        leg.wake()

    def _end_without_body(self, leg: Leg) -> None:
        """An answer to HEAD: the announced length says nothing about this message."""
        named = b",".join(value for name, value in leg.headers if name == b"connection").lower()
        if self._parser.get_http_version() != "1.1" or b"close" in named:
            self.reusable = False
        leg.complete = True

    def on_message_complete(self) -> None:
        leg = self._leg
        if leg.status and not leg.complete:
            leg.complete = True
            if not self._parser.should_keep_alive():
                self.reusable = False
            leg.pieces += self.pieces
            self.pieces.clear()
            if leg.waiter is not None:
                leg.wake()

    def end(self) -> None:
        """The message is over and the connection will be used again."""
        if self._head_only:  # httptools still waits for the body that was announced
            self._renew()


def reason(error: Exception) -> str:
    """Why ``feed`` raised."""
    cause = error.__context__
    return str(cause) if isinstance(cause, Refused) else f"{error}"


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
