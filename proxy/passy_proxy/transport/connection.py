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

import httptools

from passy_proxy.timers import NEVER, Sweep, sweep_of

from . import DEFAULT_TIMEOUTS, TransportError, UpstreamRequest
from .answer import FRAMING_BYTES, HEAD_BYTES, UNREAD_BYTES, AnswerParser, Leg, reason
from .pool import Pool

_JOINED_BYTES = 65_536
"""Bodies up to this size are copied into one write with the head."""
_SILENCE = {
    "write": "took no more of the request",
    "first byte": "sent no complete head",
    "idle": "sent nothing more",
    "total": "did not finish the answer",
}


class Connection(asyncio.Protocol):
    """One connection, and the answer that is arriving on it (``leg``), if any."""

    __slots__ = (
        "_adopted",
        "_answer",
        "_backlog",
        "_drained",
        "_heard",
        "_loop",
        "_paused",
        "_pool",
        "_since",
        "_timeouts",
        "_total",
        "_transport",
        "_unwritten",
        "deadline",
        "gone",
        "leg",
        "stale",
        "sweep",
        "upload",
        "used",
    )  # fmt: skip

    _transport: asyncio.Transport
    _total: float

    def __init__(self, pool: Pool[Connection], keepalive: float) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._answer = AnswerParser(keepalive)
        self._timeouts = DEFAULT_TIMEOUTS
        self._heard = 0.0  # when the last bytes of the answer came
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
        self, request: UpstreamRequest, head: bytes, total: float, waiter: asyncio.Future[None]
    ) -> Leg:
        """Send; ``waiter`` is done when the leg has its head, or its error.

        ``total`` is a moment on the loop's clock.
        """
        leg = self.leg = Leg(self, waiter)
        self._answer.begin(leg, request.method)
        self._timeouts = request.timeouts
        self._total = total
        body = request.body
        if not isinstance(body, bytes):
            self.deadline = total
            self._transport.write(head)
            self.upload = self._loop.create_task(self._send_later(leg, body, request.length))
            return leg
        self.stale = request.replay_safe and self.used
        self._arm(self.sweep.now, request.timeouts.first_byte)
        if len(body) <= _JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return leg

    async def stop_upload(self) -> None:
        """See to it that the request's iterator is the caller's again."""
        upload, self.upload = self.upload, None
        if upload is not None:
            self._answer.reusable = False
            upload.cancel()
            await asyncio.wait((upload,))

    async def _send_later(self, leg: Leg, body: AsyncIterator[bytes], length: int | None) -> None:
        try:
            await self._send_pieces(leg, body, length)
        except Exception as error:
            if self.leg is leg:
                self.fail(error)
        except asyncio.CancelledError:
            if self.leg is leg and not leg.status:  # it was the iterator that was cancelled
                self.fail(TransportError("broken", "the request body broke off", sent=True))
            raise

    async def _send_pieces(self, leg: Leg, body: AsyncIterator[bytes], length: int | None) -> None:
        size = 0
        async for piece in body:
            if self.leg is not leg:
                return
            size += len(piece)
            if length is not None and size > length:
                break
            if piece:
                whole = piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece)
                self._transport.write(whole)
            await self._drain()
        if self.leg is not leg:
            return
        if length is None:
            self._transport.write(b"0\r\n\r\n")
        elif size != length:
            message = f"the request body is not of the announced {length} bytes"
            raise TransportError("protocol", message, sent=True)
        self.upload = None
        if not self._unwritten:
            self._arm(self.sweep.now, self._timeouts.first_byte)

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
            self.await_more()

    def fail(self, error: Exception) -> None:
        leg = self.leg
        if leg is not None:
            leg.error = error
            leg.wake()
        self.drop()

    def drop(self) -> None:
        """Close at once and give up the slot. Idempotent."""
        if self.gone:
            return
        self.gone = True
        leg, self.leg = self.leg, None
        if leg is not None:
            leg.line = None
        if self._adopted:
            self._pool.idle.pop(self, None)
            self._pool.drop()
            self.sweep.discard(self)
        self._transport.abort()
        self._wake_upload()

    def _finish(self, leg: Leg) -> None:
        leg.line = self.leg = None
        answer, pool = self._answer, self._pool
        if (
            not answer.reusable
            or answer.pieces  # of a body that has no place
            or self._unwritten
            or self.upload is not None
            or answer.keepalive <= 0.0
            or pool.closed
        ):
            self.drop()
            return
        answer.end()
        self.used = True
        self.deadline = self.sweep.now + answer.keepalive
        if not pool.give(self):
            self.deadline = NEVER

    # Deadlines.

    def _arm(self, since: float, limit: float | None) -> None:
        deadline = NEVER if limit is None else since + limit
        self.deadline = deadline if deadline < self._total else self._total

    def await_more(self) -> None:
        """The head is there: from here on silence is bounded.

        What arrives only notes when it did. The deadline follows once it seems to have passed.
        """
        self._heard = self.sweep.now
        if not self._paused:
            self._arm(self._heard, self._timeouts.idle)

    def expire(self, now: float) -> None:
        leg = self.leg
        if leg is None:
            self.drop()
            return
        if now >= self._total:
            phase = "total"
        elif leg.status:
            self._arm(self._heard, self._timeouts.idle)
            if self.deadline > now:
                return
            phase = "idle"
        elif self._unwritten:
            backlog = self._transport.get_write_buffer_size()
            if backlog != self._backlog:
                self._backlog, self._since = backlog, now
            limit = self._timeouts.write
            if limit is None or now - self._since < limit:
                return  # the deadline stays in the past: looked at again by the next sweep
            phase = "write"
        else:
            phase = "first byte"
        message = f"the upstream {_SILENCE[phase]} in time"
        self.stale = False  # It is there, and may be at work on the request.
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
        if self.leg is not None and not self.leg.status:
            self.deadline = 0.0

    def resume_writing(self) -> None:
        self._unwritten = False
        if self.leg is not None and self.leg.status:  # answered before it had the request
            self._answer.reusable = False
        elif self.leg is not None:
            limit = None if self.upload is not None else self._timeouts.first_byte
            self._arm(self.sweep.now, limit)
        self._wake_upload()

    def _wake_upload(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        leg = self.leg
        if leg is None:  # nobody asked
            self.drop()
            return
        answer = self._answer
        size = len(data)
        answer.pending += size
        try:
            answer.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not leg.complete:
                leg.pieces += answer.pieces
                self._refuse(f"is not valid HTTP/1.1: {reason(error)[:200]}")
                return
            answer.reusable = False
        if leg.complete:
            self._finish(leg)
        elif answer.pieces:
            answer.pending = 0
            self._heard = self.sweep.now
            leg.arrive(answer.pieces, size)
            if leg.unread > UNREAD_BYTES:
                self._paused = True
                self._transport.pause_reading()
                self.deadline = self._total
        elif leg.status:
            self._heard = self.sweep.now
            if answer.pending > FRAMING_BYTES:
                self._refuse("has too much chunk framing")
        elif answer.pending > HEAD_BYTES:
            self._refuse("has too large a head")

    def _refuse(self, fault: str) -> None:
        self.stale = False
        self.fail(TransportError("protocol", f"the upstream's answer {fault}", sent=True))

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.leg is not None:
            self._salvage()
        self._lost(exc)

    def _lost(self, exc: Exception | None) -> None:
        leg = self.leg
        if leg is None:
            self.drop()
        elif not leg.status:
            # A write that failed means an incomplete request, which nobody can have served.
            cut = self._unwritten or isinstance(exc, BrokenPipeError)
            again = self.stale or (self.used and cut and self.upload is None)
            self.stale = again and not self._answer.pending
            message = "the upstream closed the connection without an answer"
            self.fail(TransportError("broken", message, sent=True))
        elif self._answer.until_eof and exc is None:
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
            while self.leg is not None and (data := os.read(descriptor, UNREAD_BYTES)):
                self.data_received(data)
        except OSError:
            return
