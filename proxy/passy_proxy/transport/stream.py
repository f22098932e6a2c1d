"""Our sockets under httpcore: its network interface over asyncio, connected by the Connector."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import httpcore

from . import DEFAULT_TIMEOUTS, Timeouts, TransportError
from .answer import read_little
from .connect import Connector, Origin, Tls, tls_fault
from .strict import HeadCheck
from .upload import SLICE_BYTES, left_behind, let_read, rescuing

_UNREAD_BYTES = 65_536
SMALL_BYTES = 16_384
"""What is smaller is written without looking whether the other side has spoken."""
_INTERIM = (b"HTTP/1.1 1", b"HTTP/1.0 1")
_TICK = 0.1
"""Seconds between two looks at whether a blocked write makes progress."""


class Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection; TLS may be put on top of it, once or twice (a tunnel)."""

    def __init__(self, limits: Callable[[], Timeouts], multiplexed: bool) -> None:
        self._limits = limits
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._over = False
        self._fault: Exception | None = None
        self._full = False
        self._changed = asyncio.Event()
        self._check: HeadCheck | None = None
        self.multiplexed = multiplexed
        """It carries HTTP/2: bytes that arrive while we write are no early answer."""
        self.received = 0
        self.ended = False
        """The reader was told that nothing more comes."""
        self.cut = False
        """A write failed."""
        self.closed = False
        self.unasked: Callable[[], None] | None = None
        """Called when bytes or the end arrive while this is set (an idle connection)."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._use(cast(asyncio.Transport, transport))

    def _use(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=1, low=0)
        read_little(transport)
        rescuing(transport)

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._unread += len(data)
        self.received += len(data)
        if self._unread > _UNREAD_BYTES and not self.closed:
            self._transport.pause_reading()
        self._news()

    def eof_received(self) -> None:
        self._over = True
        self._news()

    def connection_lost(self, exc: Exception | None) -> None:
        salvage = exc is not None and not self.closed
        if not self._over:  # TLS without an end of its own was cut, by whoever could.
            exc = exc or ConnectionResetError()
        self._over = self.closed = True
        if salvage:
            for data in left_behind(self._transport):
                self.data_received(data)
        self._fault = exc
        self._news()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._changed.set()

    def expect_head(self) -> None:
        """What is read next is the head of an HTTP/1.1 answer."""
        self._check = HeadCheck()

    def _news(self) -> None:
        self._changed.set()
        if self.unasked is not None:
            self.unasked()

    # httpcore.AsyncNetworkStream, whose signatures are not ours. Its timeouts are ignored: those
    # of the request are kept here (write, TLS), by the connector, and by the transport.

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        while not self._chunks:
            if self._over:
                self.ended = True
                if self._fault is not None:
                    raise httpcore.ReadError("the connection was reset")
                return b""
            await self._change()
        data = self._chunks.popleft()
        if len(data) > max_bytes:
            self._chunks.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        if self._unread > _UNREAD_BYTES >= self._unread - len(data) and not self.closed:
            self._transport.resume_reading()
        self._unread -= len(data)
        if self._check is not None:
            if fault := self._check.feed(data):
                raise httpcore.RemoteProtocolError(fault)
            if self._check.over:
                self._check = None
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        for start in range(0, len(buffer), SLICE_BYTES):
            if len(buffer) >= SMALL_BYTES:
                await let_read(self._transport)
            self._may_write()
            self._transport.write(buffer[start : start + SLICE_BYTES])
            await self._drain()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        backlog, since = -1, loop.time()
        limit = self._limits().write
        while self._full:
            try:
                async with asyncio.timeout(_TICK):
                    await self._change()
            except TimeoutError:
                left = self._transport.get_write_buffer_size()
                if left != backlog:
                    backlog, since = left, loop.time()
                elif limit is not None and loop.time() - since >= limit:
                    raise httpcore.WriteTimeout("no progress") from None
            self._may_write()

    def _may_write(self) -> None:
        """httpcore turns to reading the answer when a write fails; so an early answer is one."""
        if self.closed or self._over:
            self.cut = True
            raise httpcore.WriteError("the connection was closed")
        if self._chunks and not self.multiplexed and self._answered():
            raise httpcore.WriteError("the upstream has answered already")

    def _answered(self) -> bool:
        """Whether more than interim answers have come, of which the last may be cut."""
        data = b"".join(self._chunks)
        while data.startswith(_INTERIM):
            _, _, data = data.partition(b"\r\n\r\n")
        return bool(data)

    async def aclose(self) -> None:
        self.abort()

    def abort(self) -> None:
        self.closed = True
        self.unasked = None
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        if self._chunks or self._over:
            # Read later, these bytes would pass for what came over TLS; anyone may have sent them.
            self.abort()
            message = f"TLS with {server_hostname}: the other side spoke before it began"
            raise TransportError("connect", message, phase="tls")
        try:
            async with asyncio.timeout(self._limits().tls):
                transport = await loop.start_tls(
                    self._transport, self, ssl_context, server_hostname=server_hostname
                )
            if transport is None:
                raise ConnectionResetError
        except OSError as error:
            self.abort()
            message = tls_fault(server_hostname, error)
            raise TransportError("connect", message, phase="tls") from error
        except BaseException:
            self.abort()
            raise
        self._use(transport)
        chosen = transport.get_extra_info("ssl_object")
        self.multiplexed = chosen is not None and chosen.selected_alpn_protocol() == "h2"
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return bool(self._chunks) or self._over
        return self._transport.get_extra_info(info)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class Backend(httpcore.AsyncNetworkBackend):
    """Dials ``origin`` (the upstream, or the proxy before it) whatever httpcore asks for.

    ``timeouts`` are those of the request for which the connection is made; ``opened`` is called
    for each connection. ``multiplexed``: HTTP/2 is spoken without TLS having agreed on it.
    """

    def __init__(
        self,
        connector: Connector,
        origin: Origin,
        opened: Callable[[], None],
        multiplexed: bool = False,
    ) -> None:
        self._connector = connector
        self._multiplexed = multiplexed
        self._origin = replace(origin, scheme="http")  # httpcore starts TLS itself
        self.timeouts = DEFAULT_TIMEOUTS
        self.stream: Stream | None = None
        self._opened = opened

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        def made() -> Stream:
            return Stream(lambda: self.timeouts, self._multiplexed)

        _, self.stream = await self._connector.connect(made, self._origin, Tls(), self.timeouts)
        self._opened()
        return self.stream

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise TransportError("connect", "unix sockets are not served")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
