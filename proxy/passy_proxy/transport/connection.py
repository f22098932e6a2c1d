"""One HTTP/1.1 connection: an asyncio protocol which sends a request and feeds the parser.

A connection and its leg part as soon as the message is complete: the connection is idle again (or
gone) while the leg keeps its bytes. A connection is used again only if the request went out whole,
the message ended where its framing said and nothing followed it.

Deadlines are attributes which one sweep per loop looks at; no request starts a timer or a task
(only an upload from an iterator has one).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import cast

from passy_proxy.timers import NEVER, Sweep, sweep_of

from . import TransportError, UpstreamRequest
from .answer import (
    CHUNKED,
    HEAD_BYTES,
    UNREAD_BYTES,
    UNTIL_EOF,
    Body,
    Chunks,
    Counted,
    Leg,
    Refused,
    UntilEof,
    WholeLeg,
    check_unfinished,
    kept,
    read_head,
)
from .head import JOINED_BYTES
from .pool import Pool

_SILENCE = {
    "write": "took no more of the request",
    "first byte": "sent no complete head",
    "idle": "sent nothing more",
    "total": "did not finish the answer",
}
_NONE = UpstreamRequest("", b"", [])


class Connection(asyncio.Protocol):
    """One connection, and what is awaited on it: a head (``waiter``), then a body (``leg``).

    It is idle when it is neither.
    """

    __slots__ = (
        "_adopted",
        "_backlog",
        "_body",
        "_chunks",
        "_drained",
        "_heard",
        "_keepalive",
        "_loop",
        "_partial",
        "_paused",
        "_pool",
        "_request",
        "_reusable",
        "_since",
        "_skipped",
        "_transport",
        "_unwritten",
        "began",
        "deadline",
        "error",
        "gone",
        "leg",
        "stale",
        "sweep",
        "upload",
        "used",
        "waiter",
    )  # fmt: skip

    _transport: asyncio.Transport
    began: float
    _body: Body
    error: Exception
    """Why no head came."""

    def __init__(self, pool: Pool[Connection], keepalive: float) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._keepalive = keepalive
        self._request = _NONE
        self._heard = 0.0  # when the last bytes of the answer came
        self._partial = b""  # of a head
        self._skipped = 0  # bytes of informational answers
        self._chunks: Chunks | None = None
        self._reusable = True
        self.upload: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._adopted = False
        self._paused = False
        self._unwritten = False
        self._backlog = 0
        self._since = 0.0
        self.sweep: Sweep = sweep_of(self._loop)
        self.deadline = NEVER
        self.gone = False
        self.waiter: asyncio.Future[Leg | WholeLeg | None] | None = None
        self.leg: Leg | None = None
        self.used = False
        self.stale = False
        """It died under a request of which no answer came and which may be sent again."""

    def adopt(self) -> None:
        """From here on the connection owns its slot and its place in the sweep."""
        self._adopted = True
        self.sweep.add(self)

    # The exchange.

    def send(
        self, request: UpstreamRequest, message: bytes, began: float | None = None
    ) -> asyncio.Future[Leg | WholeLeg | None]:
        """Send; the future gives the leg once its head is there, or nothing: see ``error`` then.

        ``message`` is the head, with the body unless that is large or an iterator. ``began`` is
        when the time of the whole request began, on the loop's clock, if that is not now.
        """
        self.waiter = waiter = self._loop.create_future()
        self._request = request
        self.began = now = self.sweep.now
        self.deadline = now + request.timeouts.head
        if began is not None:
            self.began = began
            self._arm(now, request.timeouts.first_byte)
        body = request.body
        if type(body) is not bytes:
            assert not isinstance(body, bytes)
            self.deadline = self._due()
            self._transport.write(message)
            self.upload = self._loop.create_task(self._send_later(body, request.length))
            return waiter
        self._transport.write(message)
        if len(body) > JOINED_BYTES:
            self._transport.write(body)
        return waiter

    def give_up(self, waiter: asyncio.Future[Leg | WholeLeg | None]) -> None:
        """Nobody wants what ``waiter`` stands for any more."""
        if self.waiter is waiter:
            self.drop()
        elif not waiter.cancelled() and (leg := waiter.result()) is not None:
            leg.close()

    async def stop(self, upload: asyncio.Task[None]) -> None:
        """See to it that the request's iterator is the caller's again."""
        if self.upload is upload:
            self.upload = None
            self._reusable = False
        upload.cancel()
        await asyncio.wait((upload,))

    async def _send_later(self, body: AsyncIterator[bytes], length: int | None) -> None:
        try:
            await self._send_pieces(body, length)
        except Exception as error:
            self.fail(error)
        except asyncio.CancelledError:
            if self.waiter is not None:  # it was the iterator that was cancelled
                self.fail(TransportError("broken", "the request body broke off", sent=True))
            raise

    async def _send_pieces(self, body: AsyncIterator[bytes], length: int | None) -> None:
        size = 0
        async for piece in body:
            if self.gone:
                return
            size += len(piece)
            if length is not None and size > length:
                break
            if piece:
                whole = piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece)
                self._transport.write(whole)
            await self._drain()
        if self.gone:
            return
        if length is None:
            self._transport.write(b"0\r\n\r\n")
        elif size != length:
            message = f"the request body is not of the announced {length} bytes"
            raise TransportError("protocol", message, sent=True)
        self.upload = None
        if not self._unwritten and self.waiter is not None:
            self._arm(self.sweep.now, self._request.timeouts.first_byte)

    async def _drain(self) -> None:
        while self._unwritten and not self.gone:
            self._drained = self._loop.create_future()
            await self._drained
        # One turn of the loop, so that an answer which is waiting is read before the next write,
        # whose failure would close the socket.
        await asyncio.sleep(0)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
            self._hear()

    def fail(self, error: Exception) -> None:
        if self.waiter is not None:
            self.error = error
            if not self.waiter.done():
                self.waiter.set_result(None)
        elif self.leg is not None:
            self.leg.error = error
            self.leg.wake()
        self.drop()

    def drop(self) -> None:
        """Close at once and give up the slot. Idempotent."""
        if self.gone:
            return
        self.gone = True
        leg, self.leg, self.waiter = self.leg, None, None
        self._request = _NONE
        if leg is not None:
            leg.line = None
        if self._adopted:
            self._pool.idle.pop(self, None)
            self._pool.drop()
            self.sweep.discard(self)
        self._transport.abort()
        self._wake_upload()

    def _finish(self) -> None:
        """The answer has ended, and is no longer ours."""
        self.leg = None
        pool = self._pool
        if (
            not self._reusable
            or self._unwritten
            or self.upload is not None
            or self._keepalive <= 0.0
            or pool.closed
        ):
            self.drop()
            return
        self.used = True
        self._request = _NONE
        self.deadline = self.sweep.now + self._keepalive
        if not pool.give(self):
            self.deadline = NEVER

    # Deadlines.

    def _due(self) -> float:
        """When the time of the whole request is up."""
        limit = self._request.timeouts.total
        return NEVER if limit is None else self.began + limit

    def _arm(self, since: float, limit: float | None) -> None:
        deadline = NEVER if limit is None else since + limit
        self.deadline = min(deadline, self._due())

    def _hear(self) -> None:
        """Of a body silence is bounded from here on.

        What arrives only notes when it did. The deadline follows once it seems to have passed.
        """
        self._heard = self.sweep.now
        self._arm(self._heard, self._request.timeouts.idle)

    def expire(self, now: float) -> None:
        if self.waiter is None and self.leg is None:
            self.drop()
            return
        if now >= self._due():
            phase = "total"
        elif self.leg is not None:
            self._arm(self._heard, self._request.timeouts.idle)
            if self.deadline > now:
                return
            phase = "idle"
        elif self._unwritten:
            backlog = self._transport.get_write_buffer_size()
            if backlog != self._backlog:
                self._backlog, self._since = backlog, now
            limit = self._request.timeouts.write
            if limit is None or now - self._since < limit:
                return  # the deadline stays in the past: looked at again by the next sweep
            phase = "write"
        else:
            phase = "first byte"
        message = f"the upstream {_SILENCE[phase]} in time"
        self.fail(TransportError("timeout", message, phase=phase, sent=True))

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # 1, not 0: asyncio's TLS transport takes an empty buffer for a full one at 0.
        self._transport.set_write_buffer_limits(high=1, low=0)

    def pause_writing(self) -> None:
        self._unwritten = True
        self._backlog = -1
        self._since = self.sweep.now
        if self.waiter is not None:
            self.deadline = 0.0

    def resume_writing(self) -> None:
        self._unwritten = False
        if self.leg is not None:  # answered before it had the request
            self._reusable = False
        elif self.waiter is not None:
            limit = None if self.upload is not None else self._request.timeouts.first_byte
            self._arm(self.sweep.now, limit)
        self._wake_upload()

    def _wake_upload(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        leg = self.leg
        if leg is None:
            self._begin(data)
            return
        self._heard = self.sweep.now
        body = self._body
        try:
            piece = body.take(data)
        except Refused as fault:
            if self._chunks is not None and self._chunks.pieces:
                leg.arrive(b"".join(self._chunks.pieces))
            self._refuse(fault)
            return
        if body.done:
            self._conclude(leg, piece)
        elif piece:
            leg.arrive(piece)
            if leg.unread > UNREAD_BYTES:
                self._paused = True
                self._transport.pause_reading()
                self.deadline = self._due()

    def _conclude(self, leg: Leg, piece: bytes) -> None:
        """The last ``piece`` of the body is there."""
        leg.complete = True
        leg.line = None
        if piece:
            leg.arrive(piece)
        leg.wake()
        if self._body.surplus:
            self._reusable = False
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._finish()

    def _begin(self, data: bytes) -> None:
        """Bytes of a head, perhaps with some of the body, perhaps all of it."""
        waiter = self.waiter
        if waiter is None or waiter.done():  # nobody asked, or nobody waits any more
            self.drop()
            return
        if self._partial:
            data = self._partial + data
        start = 0
        try:
            while True:
                end = data.find(b"\r\n\r\n", start, start + HEAD_BYTES) + 2
                if end < 2:
                    self._keep(data, start)
                    return
                status, headers, length, self._reusable, hint = read_head(
                    data[start:end], self._request.method
                )
                if status >= 200:
                    break
                if length not in (UNTIL_EOF, 0) or not self._reusable:
                    raise Refused("an informational answer that cannot be followed by another")
                start = end + 2
                if self._skipped + start > HEAD_BYTES:
                    raise Refused("too many informational answers")
        except Refused as fault:
            self._doubt(data, fault)
            return
        if hint is not None:
            self._keepalive = kept(hint, self._keepalive)
        self.waiter = None
        self._partial = b""
        self._skipped = 0
        end += 2
        size = len(data) - end
        if size == length:
            waiter.set_result(WholeLeg(status, headers, data[end:]))
            self._finish()
            return
        self.leg = leg = Leg(status, headers, self)
        self._body = self._bounded(length)
        self._hear()
        waiter.set_result(leg)
        if size:
            self.data_received(data[end:])

    def _bounded(self, length: int) -> Body:
        if length == CHUNKED:
            if self._chunks is None:
                self._chunks = Chunks()
            self._chunks.begin()
            return self._chunks
        return Counted(length) if length >= 0 else UntilEof()

    def _keep(self, data: bytes, start: int) -> None:
        """From ``start`` on, a head that is not all there. Raises Refused."""
        if self._skipped + len(data) > HEAD_BYTES:
            raise Refused("too large a head")
        head = data[start:]
        check_unfinished(head, len(data) - len(self._partial))
        self._skipped += start
        self._partial = head

    def _doubt(self, data: bytes, fault: Refused) -> None:
        """``data`` begins no answer; but empty lines before one are customarily overlooked."""
        if self._skipped or not data.startswith((b"\r", b"\n")):
            self._refuse(fault)
        else:
            self._begin(data.lstrip(b"\r\n"))

    def _refuse(self, fault: Refused) -> None:
        message = f"the upstream's answer is not valid HTTP/1.1: {fault}"
        self.fail(TransportError("protocol", message[:300], sent=True))

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.gone:
            self._salvage()
        self._lost(exc)

    def _lost(self, exc: Exception | None) -> None:
        leg = self.leg
        if self.waiter is not None:
            # A write that failed means an incomplete request, which nobody can have served.
            cut = self._unwritten or isinstance(exc, BrokenPipeError)
            again = self._request.replay_safe and type(self._request.body) is bytes
            again = self.used and (again or (cut and self.upload is None))
            self.stale = again and not self._partial and not self._skipped
            message = "the upstream closed the connection without an answer"
            self.fail(TransportError("broken", message, sent=True))
        elif leg is None:
            self.drop()
        elif type(self._body) is UntilEof and exc is None:
            leg.complete = True
            leg.wake()
            self.drop()
        else:
            self.fail(TransportError("broken", "the answer broke off", sent=True))

    def _salvage(self) -> None:
        """Read what had arrived: a failed write closes the transport without looking.

        Only a plain connection's; over TLS the keys are out of reach.
        """
        if self._transport.get_extra_info("sslcontext") is not None:
            return
        descriptor = self._transport.get_extra_info("socket").fileno()
        try:
            while not self.gone and (data := os.read(descriptor, UNREAD_BYTES)):
                self.data_received(data)
        except OSError:
            return
