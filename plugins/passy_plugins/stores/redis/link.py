"""One connection: commands go out in order, and replies come back in order."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from passy_plugins.stores.redis.place import Place
from passy_plugins.stores.redis.resp import NO_RESP, Refused, pack, reader

Replied = Callable[[Any], None]
"""Takes a reply, which may be a `Refused`."""


class Link(asyncio.Protocol):
    """``lost`` is called once, when the connection is gone; those who wait for replies get none."""

    def __init__(self, place: Place, lost: Callable[[Link], None]) -> None:
        self.place = place
        self.reason = "it closed the connection"
        """Why it is gone, once it is."""
        self.whole = False
        """The script's text has to be sent each time."""
        self._lost = lost
        self._reader = reader()
        self._waiting: deque[Replied] = deque()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def to(
        cls, place: Place, lost: Callable[[Link], None], trusted: ssl.SSLContext | None
    ) -> Link:
        """Connect and say who we are. OSError or `Refused` when that fails."""
        loop = asyncio.get_running_loop()
        link = cls(place, lost)
        if place.path:
            await loop.create_unix_connection(lambda: link, place.path)
        else:
            context = trusted if place.tls else None
            await loop.create_connection(lambda: link, place.host, place.port, ssl=context)
        try:
            for reply in await link.ask(place.greeting()):
                if isinstance(reply, Refused):
                    raise reply
        except BaseException:
            link.close()
            raise
        return link

    async def ask(self, commands: Sequence[tuple[bytes, ...]], packed: bytes = b"") -> list[Any]:
        """The replies to some commands, and to one that is packed already. OSError when the
        connection ends before."""
        count = len(commands) + bool(packed)
        if not count:
            return []
        done = asyncio.get_running_loop().create_future()
        replies: list[Any] = []

        def replied(reply: Any) -> None:
            replies.append(reply)
            if not done.done() and (reply is GONE or len(replies) == count):
                done.set_result(None)

        self.send(b"".join([*map(pack, commands), packed]), *[replied] * count)
        await done
        if GONE in replies:
            raise OSError(self.reason)
        return replies

    def send(self, data: bytes, *replied: Replied) -> None:
        """``data`` is as many commands as there are to be told of a reply; `GONE` to each when
        there will be none."""
        transport = self._transport
        if transport is None:
            for each in replied:
                each(GONE)
            return
        self._waiting.extend(replied)
        transport.write(data)

    def close(self, reason: str = "") -> None:
        """Go, whatever is under way."""
        if self._transport is not None:
            self.reason = reason or self.reason
            self._transport.abort()
            self._gone()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        source = self._reader
        source.feed(data)
        while True:
            try:
                reply = source.gets()
            except NO_RESP:
                return self.close("what it says is no answer")
            if reply is False:
                return None
            if not self._waiting:
                return self.close("it says more than it was asked")
            self._waiting.popleft()(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reason = str(exc)
        self._gone()

    def _gone(self) -> None:
        if self._transport is None:
            return
        self._transport = None
        waiting, self._waiting = self._waiting, deque()
        self._lost(self)
        for replied in waiting:
            replied(GONE)


GONE = object()
"""In place of a reply that never came."""
