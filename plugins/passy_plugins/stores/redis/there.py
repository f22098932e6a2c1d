"""What a store of this kind consists of when its counters are on a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from passy_plugins.stores.redis.changes import Channel
from passy_plugins.stores.redis.counters import Decisions
from passy_plugins.stores.redis.line import Line
from passy_plugins.stores.redis.nodes import Nodes
from passy_plugins.stores.redis.place import Place, trust
from passy_plugins.stores.redis.script import Names
from passy_plugins.stores.redis.slices import IDLE, Slices
from passy_proxy.tasks import Tasks

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.stores.redis import RedisSettings
    from passy_plugins.stores.redis.headcount import Headcount


class There:
    """Decisions on a line to the server, renewed while they last, and the channel of changes."""

    def __init__(
        self,
        places: Sequence[Place],
        settings: RedisSettings,
        log: FilteringBoundLogger,
        heads: Headcount,
        clock: Callable[[], int] | None,
    ) -> None:
        trusted = trust(settings.ca) if any(place.tls for place in places) else None
        nodes = Nodes(places, trusted, settings.connect_timeout, settings.timeout)
        self.heads = heads
        self.decisions = Decisions(Names(settings.name, settings.lease), heads, clock)
        self.decisions.line = self._line = Line(nodes, self.decisions, log)
        self.slices = Slices(self.decisions, settings.slices) if settings.slices else None
        self.changes = Channel(places, settings, log)
        self._lease = settings.lease
        self._tasks = Tasks(log)

    async def start(self) -> None:
        self.decisions.arrive()
        await self._line.start()
        self._tasks.start(self._renewed())
        if self.slices is not None:
            self._tasks.start(_swept(self.slices))
        self.changes.start()

    @property
    def up(self) -> bool:
        """Whether decisions are made there now."""
        return self._line.up

    async def stop(self) -> None:
        await self.changes.stop()
        await self._tasks.stop()
        if self.slices is not None:
            self.slices.leave()
        await self.decisions.leave()
        await self._line.stop()

    async def _renewed(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 6)
            self.decisions.renew(self._lease / 3)


async def _swept(slices: Slices) -> None:
    while True:
        await asyncio.sleep(IDLE)
        slices.sweep()
