"""One HTTP/1.1 connection: an asyncio protocol which sends a request and feeds the parser.

A connection and its leg part as soon as the message is complete: the connection is idle again (or
gone) while the leg keeps its bytes. A connection is used again only if the request went out whole,
the message ended where its framing said and nothing followed it.

Deadlines are attributes which one sweep per loop looks at; no request starts a timer or a task
(only an upload from an iterator has one).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import httptools

from passy_proxy.outbox import outbox_of
from passy_proxy.timers import NEVER, Sweep, sweep_of

from . import TransportError, UpstreamRequest
from .answer import (
    FRAMING_BYTES,
    HEAD_BYTES,
    UNREAD_BYTES,
    VERSION,
    AnswerParser,
    Leg,
    WholeLeg,
    may_begin,
    read_little,
    reason,
)
from .head import JOINED_BYTES
from .pool import Pool
from .upload import SLICE_BYTES, left_behind, let_read, rescuing, sliced

_SILENCE = {
    "write": "took no more of the request",
    "first byte": "sent no complete head",
    "idle": "sent nothing more",
    "total": "did not finish the answer",
}
BURST_BYTES = 65_536
"""A read of this size and more is followed by everybody else's turn."""
_NONE = UpstreamRequest("", b"", [])
_FAULTS = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class Connection(asyncio.Protocol):
    """One connection, and what is awaited on it: a head (``waiter``), then a body (``leg``).

    It is idle when it is neither.
    """

    __slots__ = (
        "_adopted",
        "_answer",
        "_backlog",
        "_drained",
        "_heard",
        "_loop",
        "_outbox",
        "_paused",
        "_pool",
        "_request",
        "_since",
        "_transport",
        "_until_eof",
        "_unwritten",
        "began",
        "deadline",
        "error",
        "gone",
        "held",
        "leg",
        "stale",
        "sweep",
        "upload",
        "used",
        "waiter",
    )  # fmt: skip

    _transport: asyncio.Transport
    began: float
    error: Exception
    """Why no head came."""

    def __init__(self, pool: Pool[Connection], keepalive: float) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._answer = AnswerParser(keepalive)
        self._request = _NONE
        self._heard = 0.0  # when the last bytes of the answer came
        self.upload: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._adopted = False
        self._paused = False
        self._unwritten = False
        self._until_eof = False
        self._backlog = 0
        self._since = 0.0
        self.held = b""
        """A whole request, while it waits for the end of the turn."""
        self._outbox = outbox_of(self._loop)
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
        self._answer.begin(request.method)
        self.began = now = self.sweep.now
        self.deadline = now + request.timeouts.head
        if began is not None:
            self.began = began
            self._arm(now, request.timeouts.first_byte)
        body = request.body
        if type(body) is bytes and len(body) <= JOINED_BYTES:
            self._outbox.write(self, self._transport, message)
            return waiter
        self._transport.write(message)
        if type(body) is not bytes:
            assert not isinstance(body, bytes)
            self._begin_upload(body, request.length)
        elif len(body) > UNREAD_BYTES and self._transport.get_extra_info("sslcontext") is not None:
            # Encrypting all of it would hold up the loop, and nothing could be salvaged.
            self._begin_upload(sliced(body), len(body))
        else:
            self._transport.write(body)
            if self._transport.is_closing():  # reset between the two writes
                self._unwritten = True
        return waiter

    def release(self) -> None:
        """Send what is held."""
        if message := self.held:
            self.held = b""
            self._transport.write(message)
            if self._transport.is_closing():  # reset meanwhile
                self._unwritten = True

    def _begin_upload(self, body: AsyncIterator[bytes], length: int | None) -> None:
        self.deadline = self._due()
        self.upload = self._loop.create_task(self._send_later(body, length))

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
            self._answer.reusable = False
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
            size += len(piece)
            if length is not None and size > length:
                break
            if piece:
                whole = piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece)
                await self._write(whole)
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

    async def _write(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE_BYTES):
            await let_read(self._transport)
            if self.gone:
                return
            self._transport.write(data[start : start + SLICE_BYTES])
            while self._unwritten and not self.gone:
                self._drained = self._loop.create_future()
                await self._drained

    def hold(self) -> None:
        if not (self._paused or self.gone):
            self._paused = True
            self._transport.pause_reading()
            self.deadline = self._due()

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
        self.held = b""
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
        self.waiter = self.leg = None
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
        self.used = True
        self._request = _NONE  # Nothing of an exchange is kept while idle.
        answer.headers = []
        answer.last = b""
        self.rest()

    def rest(self) -> None:
        """Be idle for a while, or somebody else's at once."""
        self.deadline = self.sweep.now + self._answer.keepalive
        if not self._pool.give(self):
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
        self.fail(TransportError("timeout", message, phase=phase, sent=not self.held))

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # 1, not 0: asyncio's TLS transport takes an empty buffer for a full one at 0.
        self._transport.set_write_buffer_limits(high=1, low=0)
        read_little(self._transport)
        rescuing(self._transport)

    def pause_writing(self) -> None:
        self._unwritten = True
        self._backlog = -1
        self._since = self.sweep.now
        if self.waiter is not None:
            self.deadline = 0.0

    def resume_writing(self) -> None:
        self._unwritten = False
        if self.leg is not None:  # answered before it had the request
            self._answer.reusable = False
        elif self.waiter is not None:
            limit = None if self.upload is not None else self._request.timeouts.first_byte
            self._arm(self.sweep.now, limit)
        self._wake_upload()

    def _wake_upload(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._outbox.waiting:  # Much may be there to be read, and they have waited enough.
            self._outbox.send()
        leg = self.leg
        if leg is None:
            self._begin(data)
            return
        self._heard = self.sweep.now
        answer = self._answer
        try:
            answer.feed(data)
        except _FAULTS as error:
            self._doubt(error)
            return
        if answer.done:
            self._conclude(leg)
            return
        pieces = answer.pieces
        if pieces:
            answer.pending = 0
            if len(pieces) == 1:
                leg.arrive(pieces.pop())
            else:
                leg.arrive(b"".join(pieces))
                pieces.clear()
            if leg.unread > UNREAD_BYTES:
                self.hold()
            elif len(data) >= BURST_BYTES:
                self._let_others()
        else:
            answer.pending += len(data)
            if answer.pending > FRAMING_BYTES:
                self._refuse("has too much chunk framing")

    def _let_others(self) -> None:
        """Read on in the next turn of the loop, which would read a long answer in one go."""
        self._transport.pause_reading()
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not (self.gone or self._paused):
            self._transport.resume_reading()

    def _begin(self, data: bytes) -> None:
        """Bytes of a head, perhaps with some of the body, perhaps all of it."""
        waiter = self.waiter
        if waiter is None or waiter.done():  # nobody asked, or nobody waits any more
            self.drop()
            return
        answer = self._answer
        if not (data.startswith(VERSION) or answer.pending or may_begin(data)):
            self._refuse("is no HTTP/1.1: another version or none")  # httptools knows more of them
            return
        answer.pending += len(data)
        try:
            answer.feed(data)
        except _FAULTS as error:
            self._doubt(error)
            return
        if answer.done:
            waiter.set_result(WholeLeg(answer.status, answer.headers, answer.last))
            self._finish()
        elif answer.status:
            leg = self._lead(waiter)
            if answer.pieces:
                leg.arrive(b"".join(answer.pieces))
                answer.pieces.clear()
                if leg.unread > UNREAD_BYTES:
                    self.hold()
        elif answer.pending > HEAD_BYTES:
            self._refuse("has too large a head")

    def _lead(self, waiter: asyncio.Future[Leg | WholeLeg | None]) -> Leg:
        """The head is there."""
        answer = self._answer
        answer.pending = 0
        self._until_eof = answer.until_eof()
        self.waiter = None
        self.leg = leg = Leg(answer.status, answer.headers, self)
        self._hear()
        waiter.set_result(leg)
        return leg

    def _conclude(self, leg: Leg) -> None:
        """The body is there to its end."""
        leg.complete = True
        leg.line = None
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._answer.last:
            leg.arrive(self._answer.last)
        leg.wake()
        self._finish()

    def _doubt(self, error: Exception) -> None:
        """What was just read is no HTTP, at least towards its end."""
        answer, waiter, leg = self._answer, self.waiter, self.leg
        if answer.done:  # What follows the answer does not matter to it.
            answer.reusable = False
            if leg is not None:
                self._conclude(leg)
            elif waiter is not None:
                waiter.set_result(WholeLeg(answer.status, answer.headers, answer.last))
                self._finish()
            return
        if waiter is not None and answer.status:
            leg = self._lead(waiter)
        if leg is not None and answer.pieces:
            leg.arrive(b"".join(answer.pieces))
        self._refuse(f"is not valid HTTP/1.1: {reason(error)[:200]}")

    def _refuse(self, fault: str) -> None:
        self.fail(TransportError("protocol", f"the upstream's answer {fault}", sent=True))

    def eof_received(self) -> None:
        leg = self.leg
        if leg is not None and self._until_eof:
            leg.complete = True
            leg.wake()
            self.drop()
        else:
            self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.gone:
            for data in left_behind(self._transport):
                self.data_received(data)
                if self.gone:
                    break
        self._lost(exc)

    def _lost(self, exc: Exception | None) -> None:
        leg = self.leg
        if self.waiter is not None:
            # A write that failed means an incomplete request, which nobody can have served.
            held = self.held != b""
            cut = self._unwritten or self.upload is not None or isinstance(exc, BrokenPipeError)
            again = self.used and type(self._request.body) is bytes and not self._answer.pending
            self.stale = again and (held or cut or self._request.replay_safe)
            message = "the upstream closed the connection without an answer"
            sent = not (held or (cut and self.stale))
            self.fail(TransportError("broken", message, sent=sent))
        elif leg is None:
            self.drop()
        else:  # Without an end of its own TLS was cut, by whoever could.
            self.fail(TransportError("broken", "the answer broke off", sent=True))
