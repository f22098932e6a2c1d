"""What the default client does not speak: HTTP/2, and outbound HTTP and SOCKS proxies.

httpcore's pool loses a slot when a waiting request is cancelled (encode/httpcore#1093) and walks
all its connections at each request. So each connection here is an httpcore pool of exactly one,
ours is the pool around them, and httpcore never has a queue. A connection over which a request did
not end cleanly is given up, over HTTP/2 after its other streams have ended.

Importing this module imports httpcore: do so only where such a transport is built.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore

from passy_proxy.timers import NEVER, Sweep, sweep_of

from . import DEFAULT_LIMITS, Limits, Sink, Timeouts, TransportError, UpstreamRequest, relayed
from .answer import HEAD_COUNT, kept
from .connect import VERIFIED, BadOrigin, Connector, Origin, Tls, parse_origin
from .head import ODD, TOKEN, HeadWriter
from .pool import Pool
from .stream import Backend

Http2Fault: type[Exception] = httpcore.RemoteProtocolError
with suppress(ImportError):  # Without it, HTTP/2 is not spoken.
    from h2.exceptions import ProtocolError as Http2Fault

_STREAMS = 100
"""Requests at a time on one HTTP/2 connection; httpcore would queue beyond."""

_IN_A_ROW = 16
"""Pieces of an answer that are read before others have their turn: those that have arrived already
are read without waiting, and may be many."""

# At DEBUG httpcore logs the credentials of proxies and the headers of answers.
logging.getLogger("httpcore").setLevel(logging.INFO)


class _Slot:
    """One connection: an httpcore pool of one."""

    __slots__ = ("backend", "busy", "deadline", "gone", "keepalive", "owner", "pool", "shared",
                 "spent", "used")  # fmt: skip

    def __init__(
        self, owner: HttpcoreTransport, pool: httpcore.AsyncConnectionPool, backend: Backend
    ) -> None:
        self.owner = owner
        self.pool = pool
        self.backend = backend
        self.busy = 0
        self.deadline = NEVER
        self.gone = False
        self.keepalive = owner.limits.keepalive
        self.shared = False
        """It speaks HTTP/2."""
        self.spent = False
        """No further request may use it."""
        self.used = False

    def expire(self, now: float) -> None:
        self.owner.discard(self)


class _Leg:
    """One answer; see :class:`passy_proxy.transport.Leg`."""

    def __init__(self, slot: _Slot, response: httpcore.Response, request: UpstreamRequest) -> None:
        self.status = response.status
        self.headers = [(name.lower(), value.strip()) for name, value in response.headers]
        self.complete = False
        self._slot: _Slot | None = slot
        self._response = response
        self.body: AsyncIterator[bytes] = response.aiter_stream()
        self._error: TransportError | None = None
        self._idle = request.timeouts.idle
        self._total = NEVER
        self._reads = 0
        self._left = -1 if slot.shared else _length(request.method, self.status, self.headers)

    async def begin(self, total: float) -> None:
        """Settle at once what has no body; ``total`` is a moment."""
        self._total = total
        if self._left == 0:
            await self._finish()

    async def read(self) -> bytes:
        if self.complete:
            return b""
        if self._error is not None:
            raise self._error
        self._reads += 1
        if self._reads % _IN_A_ROW == 0:
            await asyncio.sleep(0)
        try:
            data = await self._next()
            if data is None or self._left == 0:
                await self._finish()
            return data or b""
        except TransportError as error:
            self._fail(error)
            raise

    async def _next(self) -> bytes | None:
        now = asyncio.get_running_loop().time()
        idle = NEVER if self._idle is None else now + self._idle
        deadline = min(idle, self._total)
        try:
            async with asyncio.timeout_at(None if deadline == NEVER else deadline):
                async for data in self.body:
                    if data:
                        self._left -= len(data)
                        return data
            return None
        except TimeoutError as error:
            phase = "idle" if idle <= self._total else "total"
            message = "the upstream did not send the rest in time"
            raise TransportError("timeout", message, phase=phase, sent=True) from error
        except _FAULTS as error:
            raise _fault(error, self._slot, sent=True) from error

    async def _finish(self) -> None:
        try:
            async for _ in self.body:
                raise TransportError("protocol", "the answer is longer than announced", sent=True)
            await self._response.aclose()
        except _FAULTS as error:
            raise _fault(error, self._slot, sent=True) from error
        self.complete = True
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.owner.leave(slot, clean=_nothing_after(slot.pool))

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

    async def relay(self, sink: Sink) -> bool:
        return await relayed(self, sink)

    def _fail(self, error: TransportError) -> None:
        self._error = error
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.owner.leave(slot, clean=False)
            slot.owner.later(self.body, self._response)

    def close(self) -> None:
        if not self.complete:
            self._fail(TransportError("broken", "the answer was closed", sent=True))


class HttpcoreTransport:
    """One origin by way of httpcore; see :class:`passy_proxy.transport.Transport`.

    ``proxy``: ``http://``, ``https://`` or ``socks5://`` with optional credentials. A restricted
    origin cannot have one, since the proxy would resolve the name out of our sight.
    """

    def __init__(
        self,
        origin: Origin,
        connector: Connector,
        limits: Limits = DEFAULT_LIMITS,
        tls: Tls = VERIFIED,
        http2: bool = False,
        proxy: str | None = None,
    ) -> None:
        if proxy is not None and origin.restricted:
            raise BadOrigin("an upstream of a tenant is not reached through a proxy")
        self.origin = origin
        self.limits = limits
        self._connector = connector
        self._tls = tls
        self._http2 = http2
        self._proxy = None if proxy is None else _proxy(proxy)
        self._writer = HeadWriter(origin)
        self._pool: Pool[_Slot] = Pool(limits.max_connections, self._returned)
        self._shared: list[_Slot] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, request: UpstreamRequest) -> _Leg:
        self._writer.check(request.headers)
        url = httpcore.URL(
            scheme=self.origin.scheme,
            host=self.origin.host,
            port=None if self.origin.default_port else self.origin.port,
            target=self._writer.target(request.method, request.target),
        )
        limit = request.timeouts.total
        total = NEVER if limit is None else asyncio.get_running_loop().time() + limit
        slot = await self._slot(request.timeouts, total)
        used = slot.used
        try:
            return await _Try(slot, request, total).run(url, self._headers(request))
        except TransportError as error:
            if not (used and _may_repeat(slot, request, error)):
                raise
            request.lost = error
        try:
            slot = await self._slot(request.timeouts, total, fresh=True)
            return await _Try(slot, request, total).run(url, self._headers(request))
        except TransportError as error:
            error.sent = True
            raise

    def _headers(self, request: UpstreamRequest) -> list[tuple[bytes, bytes]]:
        framing = self._writer.framing(request)
        headers = [(b"host", self.origin.host_header), *request.headers]
        return headers if framing is None else [*headers, framing]

    # Connections.

    async def _slot(self, timeouts: Timeouts, total: float, fresh: bool = False) -> _Slot:
        pool = self._pool
        while not pool.closed:
            slot = None if fresh else self._ready()
            if slot is not None:
                pass
            elif pool.reserve():
                slot = self._new()
            elif fresh and pool.idle:
                self.discard(next(iter(pool.idle)))
                continue
            else:
                slot = await self._queue(timeouts.pool, total)
                if slot is None:
                    slot = self._new()
                elif slot.gone or (fresh and not slot.shared):
                    self.discard(slot)
                    continue
            if not slot.shared:
                slot.busy = 1
            stream = slot.backend.stream
            if stream is not None:
                stream.unasked = None
            slot.deadline = NEVER
            return slot
        raise TransportError("pool", "the transport is closed", phase="pool")

    def _ready(self) -> _Slot | None:
        for slot in self._shared:
            if slot.busy < _STREAMS:
                slot.busy += 1
                self._pool.reused += 1
                return slot
        return self._pool.take()

    async def _queue(self, limit: float | None, total: float) -> _Slot | None:
        now = asyncio.get_running_loop().time()
        deadline = NEVER if limit is None else now + limit
        try:
            return await self._pool.wait(min(deadline, total))
        except TransportError as error:
            if deadline <= total or self._pool.closed:
                raise
            raise TransportError("timeout", str(error), phase="total") from None

    def _new(self) -> _Slot:
        """A slot in a place that was reserved. Nothing is connected yet."""
        alpn = ("http/1.1", "h2") if self._http2 else ("http/1.1",)
        proxy, nearest = None, self.origin
        try:
            context = self._connector.tls_context(self._tls, alpn) if self.origin.tls else None
            if self._proxy is not None:
                proxy, nearest = self._proxy
                if proxy.url.scheme == b"https" and proxy.ssl_context is None:
                    proxy.ssl_context = self._connector.tls_context(VERIFIED, ("http/1.1",))
        except OSError as error:
            self._pool.drop()
            message = "the CA file cannot be read"
            raise TransportError("connect", message, phase="tls") from error
        forwarded = proxy is not None and proxy.url.scheme.startswith(b"http")
        prior = self._http2 and not self.origin.tls and not forwarded
        backend = Backend(self._connector, nearest, self._opened, prior)
        pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            proxy=proxy,
            max_connections=1,
            http1=not prior,
            http2=self._http2,
            network_backend=backend,
        )
        slot = _Slot(self, pool, backend)
        _sweep().add(slot)
        return slot

    def _opened(self) -> None:
        self._pool.opened += 1

    def share(self, slot: _Slot) -> None:
        """``slot`` turned out to speak HTTP/2."""
        if not slot.shared and not slot.spent:
            slot.shared = True
            self._shared.append(slot)
            self._offer(slot)

    def _offer(self, slot: _Slot) -> None:
        while slot.busy < _STREAMS and self._pool.offer(slot):
            slot.busy += 1

    def _returned(self, slot: _Slot) -> None:
        """Someone was handed ``slot`` but has given up."""
        if slot.shared:
            self.leave(slot, clean=True)
        elif not slot.gone:
            self._rest(slot)

    def _rest(self, slot: _Slot) -> None:
        """``slot`` is idle for a while, or somebody else's at once."""
        slot.deadline = asyncio.get_running_loop().time() + slot.keepalive
        if not self._pool.give(slot):
            slot.deadline = NEVER

    def leave(self, slot: _Slot, clean: bool) -> None:
        """A request on ``slot`` has ended; cleanly, if the connection may carry another."""
        stream = slot.backend.stream
        slot.busy -= 1
        slot.used = True
        if not clean or stream is None or stream.closed or slot.keepalive <= 0 or self._pool.closed:
            slot.spent = True
            if slot in self._shared:
                self._shared.remove(slot)
        if slot.busy == 0 and slot.spent:
            self.discard(slot)
        elif slot.shared and slot.busy == 0:
            slot.deadline = asyncio.get_running_loop().time() + slot.keepalive
        elif slot.busy == 0:
            stream.unasked = lambda: self.discard(slot)  # type: ignore[union-attr]
            self._rest(slot)
        if slot.shared and not slot.spent:
            self._offer(slot)

    def discard(self, slot: _Slot) -> None:
        """Close at once and give up the place. Idempotent."""
        if slot.gone:
            return
        slot.gone = slot.spent = True
        self._pool.idle.pop(slot, None)
        if slot in self._shared:
            self._shared.remove(slot)
        _sweep().discard(slot)
        if slot.backend.stream is not None:
            slot.backend.stream.abort()
        self._pool.drop()

    def later(self, body: AsyncIterator[bytes], response: httpcore.Response) -> None:
        """Let httpcore clean up after an answer that was given up."""
        task = asyncio.get_running_loop().create_task(_closed(body, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        self._pool.close()
        for slot in [*self._pool.idle, *(slot for slot in self._shared if slot.busy == 0)]:
            self.discard(slot)
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)

    def stats(self) -> dict[str, int]:
        counts = self._pool.stats()
        counts["idle"] += sum(slot.busy == 0 for slot in self._shared)
        return counts


class _Try:
    """One request on one slot, up to the head of the answer."""

    def __init__(self, slot: _Slot, request: UpstreamRequest, total: float) -> None:
        self._slot = slot
        self._request = request
        self._total = total
        self._sent = False
        self._scope = asyncio.timeout(None)

    async def run(self, url: httpcore.URL, headers: list[tuple[bytes, bytes]]) -> _Leg:
        slot, request = self._slot, self._request
        slot.backend.timeouts = request.timeouts
        stream = slot.backend.stream
        if stream is not None:
            stream.received = 0
        body = request.body
        sent = httpcore.Request(
            method=request.method,
            url=url,
            headers=headers,
            content=body if isinstance(body, bytes) else _measured(body, request.length),
            extensions={"trace": self._trace},
        )
        try:
            async with self._scope:
                self._limit(None if slot.used else _both(request.timeouts))
                response = await slot.pool.handle_async_request(sent)
            return await self._leg(response)
        except TimeoutError as error:
            slot.owner.leave(slot, clean=False)
            raise self._overdue() from error
        except _FAULTS as error:
            slot.owner.leave(slot, clean=False)
            raise _fault(error, slot, self._sent) from error
        except BaseException as error:
            slot.owner.leave(slot, clean=False)
            if isinstance(error, TransportError):
                error.sent = error.sent or self._sent
            elif isinstance(error, ValueError):  # a status that is no number
                raise _fault(error, slot, self._sent) from error
            elif isinstance(error, Exception) and not self._sent:  # a proxy that talks nonsense
                raise _fault(error, slot, False) from error
            raise

    async def _leg(self, response: httpcore.Response) -> _Leg:
        slot = self._slot
        if response.extensions.get("http_version") == b"HTTP/2":
            slot.owner.share(slot)
        leg = _Leg(slot, response, self._request)
        fault = _head_fault(leg.status, leg.headers)
        if fault is not None:
            slot.owner.later(leg.body, response)
            raise TransportError("protocol", f"the upstream's answer has {fault}", sent=True)
        for name, value in leg.headers:
            if name == b"keep-alive":
                slot.keepalive = kept(value, slot.keepalive)
        await leg.begin(self._total)
        return leg

    async def _trace(self, name: str, seen: dict[str, Any]) -> None:
        request = seen.get("request")
        if request is None or request.method == b"CONNECT":
            return
        if name.endswith(".send_request_headers.started"):
            self._sent = True
            self._limit(None)
            if name.startswith("http11.") and self._slot.backend.stream is not None:
                self._slot.backend.stream.expect_head()
        elif name.endswith(".receive_response_headers.started"):
            self._limit(self._request.timeouts.first_byte)

    def _limit(self, seconds: float | None) -> None:
        now = asyncio.get_running_loop().time()
        deadline = min(self._total, NEVER if seconds is None else now + seconds)
        self._scope.reschedule(None if deadline == NEVER else deadline)

    def _overdue(self) -> TransportError:
        if asyncio.get_running_loop().time() >= self._total:
            message = "the upstream did not answer before the time was up"
            return TransportError("timeout", message, phase="total", sent=self._sent)
        if not self._sent:
            return TransportError("connect", "connecting took too long", phase="proxy")
        message = "the upstream sent no complete head in time"
        return TransportError("timeout", message, phase="first byte", sent=True)


_FAULTS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    Http2Fault,
)


def _fault(error: Exception, slot: _Slot | None, sent: bool) -> TransportError:
    """What an exception of httpcore's means to us."""
    stream = None if slot is None else slot.backend.stream
    if isinstance(error, httpcore.WriteTimeout):
        message = "the upstream took no more of the request in time"
        return TransportError("timeout", message, phase="write", sent=sent)
    if isinstance(error, httpcore.ProxyError):
        return TransportError("connect", "the proxy refused", phase="proxy", sent=sent)
    if not sent:
        return TransportError("connect", "no connection came about", phase="proxy")
    if isinstance(error, httpcore.NetworkError) or (stream is not None and stream.ended):
        return TransportError("broken", "the answer broke off", sent=True)
    message = "the upstream's answer is not valid HTTP"
    # Behind a colon h11 quotes what it was sent, and of HTTP/2 the error may be what was sent.
    reason = f"{error}".partition(":")[0]
    if not isinstance(error, Http2Fault) and not reason.startswith("<"):
        message = f"{message}: {reason}"
    return TransportError("protocol", message[:300], sent=sent)


def _may_repeat(slot: _Slot, request: UpstreamRequest, error: TransportError) -> bool:
    """A connection that was used before died without a byte of an answer."""
    stream = slot.backend.stream
    if error.kind != "broken" or not isinstance(request.body, bytes) or stream is None:
        return False
    return not stream.received and (request.replay_safe or stream.cut)


def _head_fault(status: int, headers: list[tuple[bytes, bytes]]) -> str | None:
    names = [name for name, _ in headers]
    if status == 101:
        return "a switch of protocols nobody asked for"
    if not 200 <= status <= 999:
        return "a status that is none"
    if len(headers) > HEAD_COUNT:
        return "too many headers"
    # Over HTTP/2 anything may be in them, and httpcore looks at none of it.
    if not all(map(TOKEN.fullmatch, names)) or ODD(b"".join([value for _, value in headers])):
        return "a header with bytes that none may have"
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        return "more than one framing header"
    return None


def _length(method: str, status: int, headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of body to come over HTTP/1.1; -1 when only the end will tell."""
    if method == "HEAD" or status in (204, 304):
        return 0
    length = dict(headers).get(b"content-length", b"")
    return int(length) if length.isdigit() else -1


def _nothing_after(pool: httpcore.AsyncConnectionPool) -> bool:
    """No byte follows the message which was just read.

    httpcore keeps such bytes for the next answer and shows them nowhere, so this looks inside;
    when the inside has changed, connections are not used again.
    """
    for connection in pool.connections:
        inner: object = connection
        while (deeper := getattr(inner, "_connection", None)) is not None:
            inner = deeper
        if hasattr(inner, "_h2_state"):
            return True
        state = getattr(inner, "_h11_state", None)
        return state is not None and state.trailing_data == (b"", False)
    return False


async def _measured(body: AsyncIterator[bytes], length: int | None) -> AsyncIterator[bytes]:
    size = 0
    async for piece in body:
        size += len(piece)
        if length is not None and size > length:
            break
        if piece:
            yield piece
    if length is not None and size != length:
        message = f"the request body is not of the announced {length} bytes"
        raise TransportError("protocol", message, sent=True)


async def _closed(body: AsyncIterator[bytes], response: httpcore.Response) -> None:
    with suppress(Exception):
        await body.aclose()  # type: ignore[attr-defined]
    with suppress(Exception):
        await response.aclose()


def _both(timeouts: Timeouts) -> float | None:
    """The time to connect to a proxy and, through it, to the upstream."""
    if timeouts.connect is None or timeouts.tls is None:
        return None
    return 2 * (timeouts.connect + timeouts.tls)


def _proxy(url: str) -> tuple[httpcore.Proxy, Origin]:
    """The proxy as httpcore wants it, and where it is. Raises BadOrigin."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "socks5", "socks5h"):
        raise BadOrigin("a proxy's address begins with http://, https:// or socks5://")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise BadOrigin("a proxy's address is a host and a port")
    place = parts.netloc.rpartition("@")[2]
    plain = "https" if parts.scheme == "https" else "http"
    origin = parse_origin(f"{plain}://{place}")
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username), unquote(parts.password or ""))
    return httpcore.Proxy(f"{parts.scheme}://{place}", auth=auth), origin


def _sweep() -> Sweep:
    return sweep_of(asyncio.get_running_loop())
