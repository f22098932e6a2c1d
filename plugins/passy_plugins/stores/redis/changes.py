"""What was edited, told to every worker of every host through a channel of the server's.

By redis-py: this is no hot path, and it knows servers of all makes. It is imported in a thread when
the first one listens or publishes, because that takes half a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from passy_plugins.stores.redis.place import Place
from passy_proxy import json
from passy_proxy.stores import ANYTHING, StoreUnavailable, Told
from passy_proxy.tasks import Tasks

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.stores.redis import RedisSettings

PULSE = 1.0
"""Seconds without a word after which the server is asked whether it is still there."""
KNOCK = 0.25
"""Seconds between two attempts to listen."""


class Changes:
    """`stores.Changes` within this process: other processes hear nothing."""

    hears = False

    def __init__(self) -> None:
        self._listeners: list[Told] = []

    async def publish(self, kind: str, subject: str) -> None:
        self._tell(kind, subject)

    def listen(self, told: Told) -> Callable[[], None]:
        self._listeners.append(told)
        return lambda: self._listeners.remove(told) if told in self._listeners else None

    def _tell(self, kind: str, subject: str) -> None:
        for told in list(self._listeners):
            told(kind, subject)


class Channel(Changes):
    """`stores.Changes` of all who listen to one channel of a server."""

    def __init__(
        self, places: Sequence[Place], settings: RedisSettings, log: FilteringBoundLogger
    ) -> None:
        super().__init__()
        self._places = list(places)
        self._name = f"{settings.name}:changes"
        self._ca = settings.ca
        self._connecting = settings.connect_timeout
        self._tasks = Tasks(log)
        self._client: Redis | None = None
        """To publish with."""
        self._running = False
        self._listening = False

    def start(self) -> None:
        self._running = True
        self._begin()

    async def stop(self) -> None:
        self._running = False
        await self._tasks.stop()
        if self._client is not None:
            await self._client.aclose()

    def listen(self, told: Told) -> Callable[[], None]:
        ended = super().listen(told)
        self._begin()
        if self.hears:
            told(ANYTHING, ANYTHING)
        return ended

    def _begin(self) -> None:
        """Listen, once somebody wants to know."""
        if self._running and self._listeners and not self._listening:
            self._listening = True
            self._tasks.start(self._listen())

    async def publish(self, kind: str, subject: str) -> None:
        from redis.exceptions import RedisError

        message = json.dumps([kind, subject])
        why = ""
        for client in self._clients():
            try:
                await client.publish(self._name, message)
            except (RedisError, OSError) as error:
                why = str(error)
                self._client = None
                await client.aclose()
            else:
                self._client = client
                return
        raise StoreUnavailable(why)

    def _clients(self) -> Iterator[Redis]:
        if self._client is not None:
            yield self._client  # The server may have closed it meanwhile.
        yield from map(self._to, self._places)

    async def _listen(self) -> None:
        await asyncio.to_thread(_imported)
        from redis.exceptions import RedisError

        number = 0
        while True:
            client = self._to(self._places[number % len(self._places)])
            try:
                async with client.pubsub(ignore_subscribe_messages=False) as subscription:
                    await subscription.subscribe(self._name)
                    await self._hear(subscription)
            except (RedisError, OSError):
                number += 1
            finally:
                self.hears = False
                await client.aclose()
            await asyncio.sleep(KNOCK)

    async def _hear(self, subscription: Any) -> None:
        """Until the server says nothing any more, not even when it is asked."""
        asked = False
        while True:
            message = await subscription.get_message(timeout=PULSE)
            if message is None:
                if asked:
                    return
                asked = True
                await subscription.ping()
            else:
                asked = False
                self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self.hears = True
            self._tell(ANYTHING, ANYTHING)
        elif message["type"] == "message":
            try:
                kind, subject = json.loads(message["data"])
            except ValueError:
                kind = subject = ANYTHING
            self._tell(str(kind), str(subject))

    def _to(self, place: Place) -> Redis:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        where: dict[str, Any] = {"host": place.host, "port": place.port}
        if place.path:
            where = {"unix_socket_path": place.path}
        elif place.tls:
            where |= {"ssl": True, "ssl_ca_certs": self._ca or None}
        return Redis(
            **where,
            db=place.database,
            username=place.user or None,
            password=place.password or None,
            socket_connect_timeout=self._connecting,
            socket_timeout=self._connecting,
            retry=Retry(NoBackoff(), 0),
        )


def _imported() -> None:
    import redis.asyncio  # noqa: F401
