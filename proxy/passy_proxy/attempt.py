"""One try at one target, and the function that makes it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from operator import itemgetter
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from passy_proxy.dialect import Dialect, Tap, Untranslatable
from passy_proxy.downstream import ClientGone
from passy_proxy.event import Failure
from passy_proxy.faults import FilterFailed
from passy_proxy.records import Credential
from passy_proxy.transport import Leg, TransportError, UpstreamRequest
from passy_proxy.unpacking import INFLATED, OpaqueTap, UnpackingTap, inflated
from passy_proxy.veil import veiled

if TYPE_CHECKING:
    from passy_proxy.chain import Compiled
    from passy_proxy.exchange import Exchange
    from passy_proxy.faults import Faults
    from passy_proxy.upstream import Target

WHOLE = 1 << 20
"""A plain answer up to this size is read to its end before the commit: until then another target
can still take over, and its usage is read exactly. A larger one is relayed as it arrives."""

LONGEST_FIRST = 1 << 16
"""Bytes of a stream read in search of its first event; one that is longer is taken for good."""
DATA = re.compile(rb"(?:^|[\r\n])data:")
BLANK = re.compile(rb"\n\n|\r\n\r\n|\r\r")


class Attempt:
    """One try. It owns its connection: ``close`` gives it back."""

    __slots__ = (
        "_client",
        "_spoken",
        "answer",
        "built",
        "credential",
        "dialect",
        "dropped",
        "failure",
        "fields",
        "head_at",
        "leg",
        "secrets",
        "spare",
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
        self.spare = False
        """Another key of the same owner would be shown, should this one be refused."""
        self.dialect: Dialect = target.upstream.dialect or self._spoken
        self.dropped: tuple[str, ...] = ()
        """Parameters the translation could not carry."""
        self.built: UpstreamRequest | None = None
        """``request``, once somebody has asked for it."""
        self.secrets: Sequence[bytes] = ()
        """What was shown to the upstream and is nobody else's, as far as it may be repeated; known
        with the head."""
        self.leg: Leg | None = None
        self.fields: Mapping[bytes, bytes] = NO_FIELDS
        """The answer's headers by name; of repeated ones the last."""
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
        if self.built is None:
            self.built = self.dialect.request(
                self._client, self.target, self.credential, self._spoken.name
            )
        return self.built

    def opened(self, leg: Leg) -> bool:
        """The head is there. Whether what follows is the whole of a plain answer, to be taken at
        once."""
        self.leg = leg
        self.fields = fields = dict(leg.headers)
        upstream, credential = self.target.upstream, self.credential
        own = credential is upstream.credential
        self.secrets = upstream.shown if own else upstream.shown_with(credential)
        client = self._client
        status = leg.status
        if 200 <= status < 300:
            spoken = self._spoken.name
            self.streamed = streamed = is_sse(fields)
            self.tap = self.dialect.tap(client, streamed, spoken)
            if streamed and b"content-encoding" in fields:
                self._take_packed(leg)
            if self.dialect.name == spoken:
                return leg.complete and not streamed and not client.head.stream
            self.dropped = self.dialect.dropped(client, spoken)
        elif 300 <= status < 400 and client.operation:
            # An address is nothing a client of an operation could use: its own would lose the key.
            self.failure = Failure("status", f"a redirect ({status})", 502, sent=True)
        else:
            self.failure = Failure("status", f"status {status}", status, sent=True)
        return False

    def take(self, data: bytes) -> None:
        """``data`` is the whole of a plain answer."""
        # What HEAD is told goes on with its own length: nothing here could be counted.
        if not data and self._client.method == "HEAD":
            return
        leg, tap = self.leg, self.tap
        assert leg is not None
        assert tap is not None
        self.answer = veiled(tap.whole(data), self.secrets)
        self.whole = True
        leg.close()
        if tap.error:
            self._look_again(leg, tap, data)

    async def ready(self, first_event: bool) -> bool:
        """Wait for what a commitment can rest on; false (and ``failure``) when this try is no
        answer.

        Of a plain answer that is the body, up to ``WHOLE`` bytes; of a stream its first event, if
        asked for. Nothing is waited for after a failure.
        """
        if self.failure is not None or self.whole:
            return self.failure is None
        try:
            if self.streamed:
                if first_event:
                    await self._read_first()
                return self.failure is None
            leg, tap = self.leg, self.tap
            assert leg is not None
            assert tap is not None
            data = await leg.read()
            client = self._client
            while client.head.stream and not leg.complete and data in BEGINNINGS:
                data += await leg.read()
            if client.head.stream and data.startswith(EVENTS):
                return await self._take_for_stream(leg, data)
            if isinstance(tap, OpaqueTap):
                self.answer = tap.feed(data)
                return True
            if not leg.complete:
                data = await self._read_more(leg, data)
            if leg.complete and len(data) <= WHOLE:
                self.take(data)
            else:
                if client.operation and encoding_of(leg.headers) in INFLATED:
                    self.tap = tap = UnpackingTap.around(tap)
                    leg.headers = undescribed(leg.headers)
                self.answer = tap.feed(data)
            if self.dialect.name != self._spoken.name:
                leg.headers = undescribed(leg.headers)
        except TransportError as exc:
            self.failure = Failure(exc.kind, str(exc), sent=True)
        return self.failure is None

    def _take_packed(self, leg: Leg) -> None:
        """A stream that may be compressed, although that was not asked for."""
        encoding = encoding_of(leg.headers)
        if encoding in INFLATED:
            assert self.tap is not None
            self.tap = UnpackingTap.around(self.tap)
            leg.headers = undescribed(leg.headers)
        elif encoding and self.dialect.name == self._spoken.name:
            self.streamed = False  # Nothing may be put between what cannot be read.
            self.tap = cast(Tap, OpaqueTap())
        elif encoding:
            self.failure = Failure("stream", "an answer in an unknown encoding", sent=True)

    def _look_again(self, leg: Leg, tap: Tap, data: bytes) -> None:
        """An answer that says nothing may be compressed, although that was not asked for."""
        encoding = encoding_of(leg.headers)
        if encoding in INFLATED:
            if plain := inflated(data):
                self.tap = tap = self.dialect.tap(self._client, False, self._spoken.name)
                self.answer = veiled(tap.whole(plain), self.secrets)
                leg.headers = undescribed(leg.headers)
        elif encoding and self.dialect.name == self._spoken.name:
            tap.error = ""  # The client may be able to read it: we cannot.
            tap.text_bytes = len(data)
        if tap.error:
            self.answer = b""
            self.whole = False
            self.failure = Failure(
                "stream", veiled(tap.error.encode(), self.secrets).decode(), sent=True
            )

    async def _take_for_stream(self, leg: Leg, data: bytes) -> bool:
        """Events under the name of something else, for a client that asked for events."""
        self.streamed = True
        leg.headers = [
            *(pair for pair in undescribed(leg.headers) if pair[0] != b"content-type"),
            (b"content-type", SSE),
        ]
        self.tap = self.dialect.tap(self._client, True, self._spoken.name)
        self.answer = self.tap.feed(data)
        await self._read_first()
        return self.failure is None

    async def _read_more(self, leg: Leg, data: bytes) -> bytes:
        """The rest of a plain body, as far as ``WHOLE`` bytes."""
        pieces = [data]
        size = len(data)
        while size < WHOLE and (piece := await leg.read()):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def _told(self, tap: Tap) -> Failure:
        """The error that an answer of 200 told of."""
        said = veiled(tap.error.encode(), self.secrets).decode("utf-8", "replace")
        return Failure("stream", said, sent=True)

    async def _read_first(self) -> None:
        leg, tap = self.leg, self.tap
        assert leg is not None
        assert tap is not None
        # Comments are no event: what keeps a connection alive commits to nothing.
        while not has_event(self.answer) and len(self.answer) < LONGEST_FIRST:
            raw = await leg.read()
            if not raw:
                self.answer += tap.finish()
                if not tap.done:
                    message = "the stream ended before its first event"
                    self.failure = Failure("broken", message, sent=True)
                break
            self.answer += tap.feed(raw)
        if tap.error and not tap.text_bytes:
            self.failure = Failure(
                "stream", veiled(tap.error.encode(), self.secrets).decode(), sent=True
            )

    async def problem(self) -> bytes:
        """The body of an error status, in the client's shape (at most ``WHOLE`` bytes of it)."""
        leg, failure = self.leg, self.failure
        assert leg is not None
        assert failure is not None
        try:
            # The refusal is known. What its upstream says of it is not waited for byte by byte.
            async with asyncio.timeout(self.target.timeouts.idle):
                body = await leg.read_all(WHOLE)
        except (TransportError, TimeoutError):
            body = b""
        self.close()
        status = failure.status or 502
        if status < 400:
            return veiled(body, self.secrets)
        if leg.status < 400:
            body = f"The upstream gave no answer: {failure.message}.".encode()
        elif encoding_of(leg.headers):
            body = b""
        return veiled(self.dialect.problem(status, body, self._spoken.name), self.secrets)

    def veiled(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """``headers`` without the secrets, should the upstream have repeated one."""
        secrets = self.secrets
        values = b"\n".join(map(VALUE, headers))
        if veiled(values, secrets) is values:
            return headers
        return [(name, veiled(value, secrets)) for name, value in headers]

    def close(self) -> None:
        """Give the connection back, or drop it when its answer was not read to the end."""
        if self.leg is not None:
            self.leg.close()


NO_FIELDS: Mapping[bytes, bytes] = MappingProxyType({})
VALUE = itemgetter(1)
SSE = b"text/event-stream"
EVENTS = (b"data:", b"event:", b":")
BEGINNINGS = frozenset(name[:size] for name in EVENTS for size in range(1, len(name)))
"""What may still become one of them."""
OF_BYTES = frozenset((b"content-encoding", b"content-md5", b"digest", b"etag"))


def undescribed(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """``headers`` without what is true of the upstream's very bytes only."""
    return [pair for pair in headers if pair[0] not in OF_BYTES]


def encoding_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """How an answer is compressed; empty where it is not."""
    for name, value in headers:
        if name == b"content-encoding":
            return b"" if value.lower() == b"identity" else value.lower()
    return b""


def has_event(data: bytes) -> bool:
    """Whether a whole event with data is in it. Two searches: one that ties them together would
    look for the end again from every line."""
    begun = DATA.search(data)
    return begun is not None and BLANK.search(data, begun.end()) is not None


def is_sse(fields: Mapping[bytes, bytes]) -> bool:
    """Whether an answer is a stream of server-sent events."""
    return fields.get(b"content-type", b"")[:17].lower() == SSE


class Dispatch:
    """Performs exactly one attempt: hooks, the dialect's request, the transport."""

    __slots__ = ("after", "before", "faults")

    def __init__(self, before: Compiled, after: Compiled, faults: Faults) -> None:
        self.before = before
        self.after = after
        self.faults = faults

    async def __call__(self, ex: Exchange, target: Target) -> Attempt:
        """Returns once the head is known, or the failure is. Ends the attempt before it.

        Raises FilterFailed, and ClientGone when nobody is there any more to be answered.
        """
        if ex.attempts:
            await self.end_last(ex)
        attempt = Attempt(ex, target)
        ex.attempts.append(attempt)
        for depth, hook in self.before:
            try:
                refusal = hook(ex, attempt)
                if refusal is None:
                    continue
                if not isinstance(refusal, Failure):
                    refusal = await self.judged(ex, depth, refusal)
            except BaseException as exc:
                refusal = self.failed(ex, attempt, depth, exc)
            if refusal is not None:
                attempt.failure = refusal
                attempt.head_at = monotonic()
                return attempt
        try:
            leg = await target.upstream.transport.open(attempt.request)
        except Untranslatable as exc:
            attempt.failure = Failure("untranslatable", str(exc), param=exc.param)
            return attempt
        except TransportError as exc:
            attempt.failure = Failure(exc.kind, str(exc), sent=exc.sent)
            return attempt
        finally:
            attempt.head_at = monotonic()
            if (built := attempt.built) is not None and built.lost is not None:
                self.enter_lost(ex, attempt, built.lost)
        leg = leg if ex.seal is None else ex.seal.leg(leg)
        if attempt.opened(leg):
            attempt.take(await leg.read())
        return attempt

    async def end_last(self, ex: Exchange) -> None:
        """The end of an attempt that another one follows. Raises ClientGone."""
        if (waited := self.end(ex, ex.attempts[-1])) is not None:
            await waited
        if ex.gone:  # Somebody has swallowed the cancellation, or it goes on to hear the price.
            raise ClientGone

    async def judged(self, ex: Exchange, depth: int, awaited: object) -> Failure | None:
        """``on_attempt`` of a filter that has to wait."""
        refusal = await self.faults.waited(ex, depth, awaited)
        if refusal is not None and not isinstance(refusal, Failure):
            raise TypeError(f"on_attempt returned {type(refusal).__name__}, which is no Failure")
        return refusal

    def failed(
        self, ex: Exchange, attempt: Attempt, depth: int, exc: BaseException
    ) -> Failure | None:
        """What a hook's exception means for the attempt. Raises FilterFailed."""
        if isinstance(exc, Untranslatable):  # It asked for ``attempt.request``.
            return Failure("untranslatable", str(exc), param=exc.param)
        try:
            reply = self.faults.failed(ex, depth, "on_attempt", exc)
        except BaseException:  # The client has left, or the process ends: nothing was sent.
            attempt.failure = Failure("refused", "the exchange ended before it was sent")
            attempt.head_at = monotonic()
            raise
        if reply is None:
            return None
        attempt.failure = Failure("refused", reply.message)
        attempt.head_at = monotonic()
        raise FilterFailed(reply) from exc

    def enter_lost(self, ex: Exchange, attempt: Attempt, lost: TransportError) -> None:
        """What went out twice is two attempts, although nobody but the transport made the first:
        on a kept connection that was at its end. It says nothing of the upstream, so no filter
        hears of it."""
        first = Attempt(ex, attempt.target)
        first.started = first.head_at = attempt.started
        first.told = len(self.after)
        first.failure = Failure(lost.kind, str(lost), sent=lost.sent)
        ex.attempts.insert(-1, first)

    def end(self, ex: Exchange, attempt: Attempt) -> Awaitable[None] | None:
        """``on_attempt_end``, once per attempt and filter; its connection is given back. When one
        of them has to wait, the rest is done by who awaits what this returns.

        A filter that fails keeps it from nobody. When one is cancelled, the next call goes on
        behind it.
        """
        attempt.close()
        after = self.after
        while attempt.told < len(after):
            depth, hook = after[attempt.told]
            attempt.told += 1
            try:
                done = hook(ex, attempt)
            except BaseException as exc:
                self.faults.ended(ex, depth, "on_attempt_end", exc)
            else:
                if done is not None and done is not attempt:
                    return self.end_waiting(ex, attempt, depth, done)
        return None

    async def end_waiting(
        self, ex: Exchange, attempt: Attempt, depth: int, awaited: object
    ) -> None:
        """``on_attempt_end`` of a filter that has to wait, and of those behind it."""
        try:
            await self.faults.waited_at_end(depth, awaited)
        except BaseException as exc:
            self.faults.ended(ex, depth, "on_attempt_end", exc)
        if (rest := self.end(ex, attempt)) is not None:
            await rest
