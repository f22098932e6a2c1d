"""Answers as they are parsed: heads, chunked bodies, and the legs that callers read. No I/O.

A head is read in one step once it is all there, by a grammar as strict as the one for requests: a
line outside of it refuses the answer, so there is no second reading of it. What a head costs in
Python does not depend on how many headers it has: they are split, checked and lowered in C.

What the peer may make us keep is bounded here: the head, the number of headers, and the bytes
between two pieces of a chunked body.
"""

from __future__ import annotations

import asyncio
import re
from asyncio import get_running_loop
from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from typing import NoReturn, Protocol

from . import Sink, TransportError

with suppress(ImportError):  # httpcore.py, which does without, shares the limits kept here.
    import httptools

Headers = list[tuple[bytes, bytes]]

UNREAD_BYTES = 262_144
"""More than this waiting to be read pauses the connection."""
HEAD_BYTES = 65_536
HEAD_COUNT = 200
FRAMING_BYTES = 16_384
"""Bytes of chunk sizes, extensions and trailers between two pieces of body."""
CHUNKED = -1
"""The length of a body whose end is told by its last chunk."""
UNTIL_EOF = -2
"""The length of a body that ends with its connection."""
_LONGEST_HINT = 300.0
_KEPT = 512
_KEPT_BYTES = 64
"""Names and first lines remembered, at most, and the bytes of one. Values are not remembered."""

_FIRST_LINE = re.compile(rb"HTTP/(1\.1|1\.0|2\.0|0\.9) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_FIELDS = re.compile(rb"\r\n([!#$%&'*+\-.^_`|~0-9A-Za-z]++):([^\r]*+)").findall
_TEXT = bytes(set(range(256)) - set(range(32)) - {127} | {9})
"""The bytes that a line may hold."""
_NAME = itemgetter(0)
_VALUE = itemgetter(1)
_strip = bytes.strip
_BREAKS = b"\r\n" * (HEAD_COUNT + 1)
_BODILESS = (204, 304)
_STEERING = (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding")


class Refused(Exception):
    """An answer that is none; the text says what is wrong with it."""


class _Names(dict[bytes, bytes]):
    """Names of headers as they are spelled, in lower case."""

    __slots__ = ()

    def __missing__(self, spelled: bytes) -> bytes:
        name = spelled.lower()
        if len(self) < _KEPT and len(name) <= _KEPT_BYTES:
            self[spelled] = name
        return name


_names = _Names()
_lowered = _names.__getitem__
_first_lines: dict[bytes, tuple[int, bool]] = {}


def read_head(raw: bytes, method: str) -> tuple[int, Headers, int, bool, bytes | None]:
    """Parse a head, given with the line breaks of all its lines but without the empty one.

    The status, the headers, the body's length in bytes (or ``CHUNKED``, or ``UNTIL_EOF``), whether
    the connection may live on, and what ``keep-alive`` says. ``method`` is the request's. Of an
    informational answer nothing but the status means anything. Raises Refused.
    """
    end = raw.find(b"\r\n")
    line = raw[:end]
    status, current = _first_lines.get(line) or _read_first_line(line)
    found = _FIELDS(raw, end)
    count = len(found)
    # Each break but the last begins a field, and no line holds a control byte.
    if raw.translate(None, _TEXT) != _BREAKS[: 2 * count + 2]:
        raise Refused("too many headers" if count > HEAD_COUNT else "a malformed header line")
    names = map(_lowered, map(_NAME, found))
    headers = list(zip(names, map(_strip, map(_VALUE, found)), strict=True))
    fields = dict(headers)
    if len(fields) != count:
        _join_repeated(headers, fields)
    said = fields.get(b"content-length")
    if said is None:
        length = UNTIL_EOF
    elif said.isdigit() and len(said) < 19:
        length = int(said)
    else:
        raise Refused("a content-length that is no number")
    if fields.keys().isdisjoint(_STEERING):
        if status in _BODILESS or method == "HEAD":
            length = 0
        return status, headers, length, current, None
    if b"transfer-encoding" in fields:
        _check_coding(fields, current)
        length = CHUNKED
    if status in _BODILESS or method == "HEAD":
        length = 0
    return status, headers, length, _lives(fields, current), fields.get(b"keep-alive")


def _check_coding(fields: dict[bytes, bytes], current: bool) -> None:
    if b"content-length" in fields:
        raise Refused("more than one framing header")
    if not current or fields[b"transfer-encoding"].lower() != b"chunked":
        raise Refused("a transfer coding other than chunked")


def _lives(fields: dict[bytes, bytes], current: bool) -> bool:
    """Whether the connection may be used again, given what ``connection`` says of it."""
    said = fields.get(b"connection", b"").lower()
    if b"proxy-connection" in fields:  # some mean the former by it
        said = b"%b,%b" % (said, fields[b"proxy-connection"].lower())
    return said.find(b"close") < 0 and (current or said.find(b"keep-alive") >= 0)


def _read_first_line(line: bytes) -> tuple[int, bool]:
    """The status, and whether the version is HTTP/1.1."""
    match = _FIRST_LINE.fullmatch(line)
    if match is None:
        raise Refused("a malformed first line")
    known = (int(match[2]), match[1] == b"1.1")
    if known[0] == 101:
        raise Refused("a switch of protocols nobody asked for")
    if len(_first_lines) < _KEPT and len(line) <= _KEPT_BYTES:
        _first_lines[line] = known
    return known


def _join_repeated(headers: Headers, fields: dict[bytes, bytes]) -> None:
    """Refuse what may appear once only; of the lists that steer us, see all the lines."""
    names = list(map(_NAME, headers))
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        raise Refused("more than one framing header")
    for name in (b"connection", b"proxy-connection"):
        if name in fields:
            fields[name] = b",".join([value for other, value in headers if other == name])


def check_unfinished(raw: bytes, fresh: int) -> None:
    """Refuse a head before it has ended, if it cannot end well any more.

    ``fresh`` bytes of it are new.
    """
    breaks = raw.translate(None, _TEXT)
    if not (raw.startswith(b"HTTP/"[: len(raw)]) and _BREAKS.startswith(breaks)):
        raise Refused("a malformed line")
    if len(breaks) % 2 and not raw.endswith(b"\r"):
        raise Refused("a malformed line")
    if raw.find(b"\n", max(0, len(raw) - fresh)) < 0:
        return
    first = raw.find(b"\r\n")
    _read_first_line(raw[:first])
    if len(_FIELDS(raw, first, raw.rfind(b"\r\n") + 2)) + 1 != len(breaks) // 2:
        raise Refused("a malformed header line")


class Body(Protocol):
    """Where a body ends."""

    done: bool
    surplus: bool
    """Something else came after its end."""

    def take(self, data: bytes) -> bytes:
        """What of ``data`` is the body's; nothing after its end. Raises Refused."""
        ...


class Counted:
    """A body of announced length."""

    __slots__ = ("_left", "done", "surplus")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = self.surplus = False

    def take(self, data: bytes) -> bytes:
        self._left = left = self._left - len(data)
        if left > 0:
            return data
        self.done = True
        if left == 0:
            return data
        self.surplus = True
        return data[:left]


class UntilEof:
    """A body that ends with its connection."""

    __slots__ = ()

    done = surplus = False

    def take(self, data: bytes) -> bytes:
        return data


class Chunks:
    """Chunked bodies, one after the other on one connection."""

    __slots__ = ("_feed", "_framing", "_last", "done", "on_body", "pieces", "surplus")

    _feed: Callable[[bytes], None]
    _last: bytes

    def __init__(self) -> None:
        self.done = self.surplus = False
        self.pieces: list[bytes] = []
        """Of the body, not taken yet."""
        self.on_body = self.pieces.append  # for httptools: no Python runs for a piece of body
        self._feed = httptools.HttpResponseParser(self).feed_data
        self._framing = 0  # bytes since a piece of body

    def begin(self) -> None:
        """The next bytes are those of a body."""
        self.done = self.surplus = False
        self._framing = 0
        self._feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    def take(self, data: bytes) -> bytes:
        """As in :class:`Body`; what preceded a fault is in ``pieces``."""
        pieces = self.pieces
        try:
            self._feed(data)
        except httptools.HttpParserError as fault:
            if not self.done:
                raise Refused(f"{fault}") from fault
            self.surplus = True
        if self.done:
            if pieces:
                self.surplus = True
            return self._last
        if pieces:
            self._framing = 0
            if len(pieces) == 1:
                return pieces.pop()
            body = b"".join(pieces)
            pieces.clear()
            return body
        self._framing += len(data)
        if self._framing > FRAMING_BYTES:
            raise Refused("too much chunk framing")
        return b""

    # Called by httptools. Without a method for headers, trailers go nowhere.

    def on_message_begin(self) -> None:
        self.surplus = self.done

    def on_message_complete(self) -> None:
        if not self.done:
            self.done = True
            self._last = b"".join(self.pieces)
            self.pieces.clear()


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

    def resume(self) -> None:
        """The unread bytes were taken."""

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
            self.waiter = waiter = get_running_loop().create_future()
            await waiter
        return self._take()

    def _take(self) -> bytes:
        pieces = self.pieces
        if self.unread:
            self._caught_up()
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
                    return False
            if self.error is not None:
                raise self.error
            if self.complete:
                return True
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
            self.sink = None  # What follows is kept, and held back as from any slow reader.
            self.wake()
            return
        mine = self.pieces
        if mine:  # the reader is behind
            self.unread = (self.unread or sum(map(len, mine))) + len(data)
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

    def _caught_up(self) -> None:
        unread, self.unread = self.unread, 0
        if unread > UNREAD_BYTES and self.line is not None:
            self.line.resume()

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
