"""One try at one target, and the function that makes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from passy_proxy.dialect import Dialect, Tap, Untranslatable
from passy_proxy.event import Failure
from passy_proxy.records import Credential
from passy_proxy.transport import Leg, TransportError, UpstreamRequest

if TYPE_CHECKING:
    from passy_proxy.chain import Compiled
    from passy_proxy.exchange import Exchange
    from passy_proxy.upstream import Target

WHOLE = 1 << 20
"""A plain answer up to this size is read to its end before the commit: until then another target can
still take over, and its usage is read exactly. A larger one is relayed as it arrives."""

LONGEST_FIRST = 1 << 16
"""Bytes of a stream read in search of its first event; one that is longer is taken for good."""
FIRST = re.compile(rb"(?:^|[\r\n])data:.*?(?:\n\n|\r\n\r\n|\r\r)", re.DOTALL)


class Attempt:
    """One try. It owns its connection: ``close`` gives it back."""

    __slots__ = (
        "_client",
        "_request",
        "_spoken",
        "answer",
        "credential",
        "dialect",
        "dropped",
        "failure",
        "head_at",
        "leg",
        "started",
        "streamed",
        "tap",
        "target",
        "told",
        "whole",
    )

    def __init__(self, ex: Exchange, target: Target) -> None:
        # The client's request and dialect, not the exchange: a reference back to it would make a
        # cycle of each request, and those are freed by nobody but the garbage collector.
        self._client = ex.request
        self._spoken = ex.route.dialect
        self.target = target
        self.credential: Credential | None = target.upstream.credential
        """Whose key is shown upstream; ``on_attempt`` may replace it."""
        self.dialect: Dialect = target.upstream.dialect or self._spoken
        self.dropped: tuple[str, ...] = ()
        """Parameters the translation could not carry."""
        self._request: UpstreamRequest | None = None
        self.leg: Leg | None = None
        self.tap: Tap | None = None
        self.failure: Failure | None = None
        """Why this is no answer; ``None`` while it may become one."""
        self.streamed = False
        """The answer is SSE."""
        self.answer = b""
        """Bytes for the client that were read before the commit."""
        self.whole = False
        """``answer`` is the complete answer."""
        self.started = monotonic()
        self.head_at = 0.0
        self.told = 0
        """How many filters know that it is over."""

    def __repr__(self) -> str:
        return f"Attempt({self.target.label}, {self.failure or self.status})"

    @property
    def status(self) -> int:
        """The upstream's status; 0 while no head is known."""
        return 0 if self.leg is None else self.leg.status

    @property
    def request(self) -> UpstreamRequest:
        """What goes upstream: built by the dialect on first use, from the pristine request and the
        credential of that moment. ``on_attempt`` may edit it."""
        if self._request is None:
            self._request = self.dialect.request(
                self._client, self.target, self.credential, self._spoken.name
            )
        return self._request

    async def open(self) -> None:
        """Send the request and wait for the head; the result is in ``leg`` or ``failure``."""
        try:
            leg = await self.target.upstream.transport.open(self.request)
        except Untranslatable as exc:
            self.failure = Failure("untranslatable", str(exc))
            return
        except TransportError as exc:
            self.failure = Failure(exc.kind, str(exc), sent=exc.sent)
            return
        finally:
            self.head_at = monotonic()
        self.leg = leg
        if 200 <= leg.status < 300:
            self.streamed = is_sse(leg.headers)
            spoken = self._spoken.name
            self.tap = self.dialect.tap(self._client, self.streamed, spoken)
            if self.dialect.name != spoken:
                self.dropped = self.dialect.dropped(self._client, spoken)
        else:
            self.failure = Failure("status", f"status {leg.status}", leg.status, sent=True)

    async def ready(self, first_event: bool) -> bool:
        """Wait for what a commitment can rest on; false (and ``failure``) when this try is no answer.

        Of a plain answer that is the body, up to ``WHOLE`` bytes; of a stream its first event, if
        asked for. Nothing is waited for after a failure.
        """
        if self.failure is not None:
            return False
        try:
            if self.streamed:
                if first_event:
                    await self._read_first()
                return self.failure is None
            leg, tap = self.leg, self.tap
            assert leg is not None
            assert tap is not None
            data = await leg.read()
            if not leg.complete:
                data = await self._read_more(leg, data)
            if leg.complete and len(data) <= WHOLE:
                self.answer = tap.feed(data) + tap.finish()
                self.whole = True
                leg.close()
            else:
                self.answer = tap.feed(data)
        except TransportError as exc:
            self.failure = Failure(exc.kind, str(exc), sent=True)
        return self.failure is None

    async def _read_more(self, leg: Leg, data: bytes) -> bytes:
        """The rest of a plain body, as far as ``WHOLE`` bytes."""
        pieces = [data]
        size = len(data)
        while size < WHOLE and (piece := await leg.read()):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    async def _read_first(self) -> None:
        leg, tap = self.leg, self.tap
        assert leg is not None
        assert tap is not None
        # Comments are no event: what keeps a connection alive commits to nothing.
        while not FIRST.search(self.answer) and len(self.answer) < LONGEST_FIRST:
            raw = await leg.read()
            if not raw:
                self.answer += tap.finish()
                break
            self.answer += tap.feed(raw)
        if tap.error and not tap.text_bytes:
            self.failure = Failure("stream", tap.error, sent=True)

    async def problem(self) -> bytes:
        """The body of an error status, in the client's shape (at most ``WHOLE`` bytes of it)."""
        assert self.leg is not None
        try:
            body = await self.leg.read_all(WHOLE)
        except TransportError:
            body = b""
        self.close()
        if self.leg.status < 400:
            return body
        return self.dialect.problem(self.leg.status, body, self._spoken.name)

    def close(self) -> None:
        """Give the connection back, or drop it when its answer was not read to the end."""
        if self.leg is not None:
            self.leg.close()


SSE = b"text/event-stream"


def is_sse(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether an answer is a stream of server-sent events."""
    for name, value in headers:
        if name == b"content-type":
            return value[:17].lower() == SSE
    return False


class Dispatch:
    """Performs exactly one attempt: hooks, the dialect's request, the transport."""

    __slots__ = ("after", "before")

    def __init__(self, before: Compiled, after: Compiled) -> None:
        self.before = before
        self.after = after

    async def __call__(self, ex: Exchange, target: Target) -> Attempt:
        """Returns once the head is known, or the failure is. Ends the attempt before it."""
        if ex.attempts:
            await self.end(ex, ex.attempts[-1])
        attempt = Attempt(ex, target)
        ex.attempts.append(attempt)
        for depth, hook, waits in self.before:
            if depth > ex.depth:
                break
            try:
                refusal = hook(ex, attempt)
                if waits:
                    refusal = await refusal
            except Untranslatable as exc:  # It asked for ``attempt.request``.
                refusal = Failure("untranslatable", str(exc))
            if refusal is not None:
                attempt.failure = refusal
                attempt.head_at = monotonic()
                return attempt
        await attempt.open()
        return attempt

    async def end(self, ex: Exchange, attempt: Attempt) -> None:
        """``on_attempt_end``, once per attempt and filter; its connection is given back.

        When a filter fails or is cancelled, the next call goes on behind it.
        """
        attempt.close()
        after = self.after
        while attempt.told < len(after):
            _, hook, waits = after[attempt.told]
            attempt.told += 1
            done = hook(ex, attempt)
            if waits:
                await done
