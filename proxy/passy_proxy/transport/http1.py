"""The default upstream client: HTTP/1.1 over a keep-alive pool of its own."""

from __future__ import annotations

import asyncio

from passy_proxy.timers import NEVER

from . import DEFAULT_LIMITS, Limits, Timeouts, TransportError, UpstreamRequest
from .answer import Leg, WholeLeg
from .connect import VERIFIED, Connector, Origin, Tls
from .connection import Connection
from .head import HeadWriter
from .pool import Pool


class Http1Transport:
    """HTTP/1.1 to one origin; see :class:`passy_proxy.transport.Transport`."""

    def __init__(
        self,
        origin: Origin,
        connector: Connector,
        limits: Limits = DEFAULT_LIMITS,
        tls: Tls = VERIFIED,
    ) -> None:
        self.origin = origin
        self._connector = connector
        self._limits = limits
        self._tls = tls
        self._writer = HeadWriter(origin)
        self._pool: Pool[Connection] = Pool(limits.max_connections, _returned)

    async def open(self, request: UpstreamRequest) -> Leg | WholeLeg:
        message = self._writer.message(request)
        began = None
        connection = self._pool.take()
        if connection is None:
            began = asyncio.get_running_loop().time()
            connection = await self._connection(request, began)
        while True:
            waiter = connection.send(request, message, began)
            upload = connection.upload
            try:
                leg = await waiter
                if upload is not None and not upload.done():
                    await connection.stop(upload)
            except BaseException:
                connection.give_up(waiter)
                if upload is not None:
                    upload.cancel()
                raise
            if leg is not None:
                return leg
            if not connection.stale:
                raise connection.error
            if began is None:
                began = connection.began
            assert isinstance(connection.error, TransportError)
            request.lost = connection.error
            connection = await self._replacement(request, began, request.lost.sent)

    async def _replacement(self, request: UpstreamRequest, began: float, sent: bool) -> Connection:
        """A new connection for a request that the old one may have carried (``sent``)."""
        try:
            return await self._connection(request, began, fresh=True)
        except TransportError as error:
            error.sent = sent
            raise

    async def _connection(
        self, request: UpstreamRequest, began: float, fresh: bool = False
    ) -> Connection:
        """An idle connection (unless ``fresh``) or a new one, waiting for a slot if need be."""
        pool, timeouts = self._pool, request.timeouts
        clock = asyncio.get_running_loop().time
        total = NEVER if timeouts.total is None else began + timeouts.total
        while not pool.closed:
            if not pool.reserve():
                if fresh and pool.idle:
                    next(iter(pool.idle)).drop()
                    continue
                since = clock()
                try:
                    connection = await self._queue(timeouts.pool, total)
                finally:
                    request.queue_ms += int((clock() - since) * 1000)
                if connection is not None:
                    if not fresh and not connection.gone:
                        return connection
                    connection.drop()
                    continue
            since = clock()
            try:
                return await self._connect(timeouts, total)
            finally:
                request.connect_ms += int((clock() - since) * 1000)
        raise TransportError("pool", "the transport is closed", phase="pool")

    async def _queue(self, limit: float | None, total: float) -> Connection | None:
        now = asyncio.get_running_loop().time()
        deadline = NEVER if limit is None else now + limit
        try:
            return await self._pool.wait(min(deadline, total))
        except TransportError as error:
            if deadline <= total or self._pool.closed:
                raise
            raise TransportError("timeout", str(error), phase="total") from None

    async def _connect(self, timeouts: Timeouts, total: float) -> Connection:
        try:
            async with asyncio.timeout_at(None if total == NEVER else total):
                _, connection = await self._connector.connect(
                    self._new, self.origin, self._tls, timeouts
                )
        except TimeoutError as error:
            self._pool.drop()
            message = "no connection to the upstream before the time was up"
            raise TransportError("timeout", message, phase="total") from error
        except BaseException:
            self._pool.drop()
            raise
        if connection.gone:
            self._pool.drop()
            message = "the upstream closed the connection at once"
            raise TransportError("connect", message, phase="tcp")
        connection.adopt()
        self._pool.opened += 1
        return connection

    def _new(self) -> Connection:
        return Connection(self._pool, self._limits.keepalive)

    async def aclose(self) -> None:
        self._pool.close()
        for connection in list(self._pool.idle):
            connection.drop()
        await asyncio.sleep(0)

    def stats(self) -> dict[str, int]:
        return self._pool.stats()


def _returned(connection: Connection) -> None:
    """Somebody was handed ``connection`` but has given up."""
    if not connection.gone:
        connection.rest()
