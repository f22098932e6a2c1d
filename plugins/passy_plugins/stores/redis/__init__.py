"""Limits that any number of workers and hosts share, in Redis, Valkey or a Cluster of either.

Named in gateway.yaml by ``kind: redis``. Decisions are exact: they are made there, by one script
(`counters.lua`), on that server's clock. Where its URL says ``memory:`` they are made here, as the
store of kind ``memory`` makes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from passy_plugins.stores.buckets import Buckets
from passy_plugins.stores.redis.changes import Here, There
from passy_plugins.stores.redis.counters import Decisions
from passy_plugins.stores.redis.line import Line
from passy_plugins.stores.redis.nodes import Nodes
from passy_plugins.stores.redis.place import places, trust
from passy_plugins.stores.redis.script import Names
from passy_proxy.config.settings import Secret, Settings, setting
from passy_proxy.hookspecs import hookimpl
from passy_proxy.site import Site
from passy_proxy.stores import Allowance, Claim, Grant, Now, Store, Told
from passy_proxy.tasks import Tasks
from passy_proxy.units import Duration


def _known(url: Secret) -> Secret:
    places(url.reveal())
    return url


class RedisSettings(Settings):
    url: Annotated[Secret, AfterValidator(_known)] = setting(
        ...,
        "Where the server is: redis://[[user]:password@]host[:6379][/0], rediss:// over TLS, or "
        "unix:///path. Of a Cluster some nodes, separated by commas. `memory:` counts in this "
        "process alone.",
    )
    name: str = setting(
        "passy",
        "What the names of its keys begin with. Gateways that share limits have it in common; it "
        "is their hash tag in a Cluster.",
        pattern=r"^[A-Za-z0-9_.-]{1,40}$",
    )
    timeout: Duration = setting(0.05, "How long a decision may take before the server is given up.")
    connect_timeout: Duration = setting(1.0, "How long connecting may take.")
    lease: Duration = setting(
        60.0, "How long what a worker holds at once stays taken after it was killed.", ge=3
    )
    ca: Path | None = setting(
        None, "A file of authorities for rediss://; the system's when not given."
    )


class Redis(Store):
    """Counters and Changes on one server, or one Cluster."""

    kind = "redis"
    Settings = RedisSettings

    def __init__(
        self, settings: RedisSettings, site: Site, clock: Callable[[], int] | None = None
    ) -> None:
        """``clock`` gives nanoseconds in place of the server's time."""
        self._log = site.log.bind(store=self.kind)
        self._tasks = Tasks(self._log)
        self._lease = settings.lease
        found = places(settings.url.reveal())
        trusted = trust(settings.ca) if any(place.tls for place in found) else None
        self._line: Line | None = None
        if not found:
            self._counters: Buckets | Decisions = Buckets(clock or time.monotonic_ns)
            self._changes: Here | There = Here()
            return
        self._counters = decisions = Decisions(Names(settings.name, settings.lease), clock)
        nodes = Nodes(found, trusted, settings.connect_timeout, settings.timeout)
        self._line = decisions.line = Line(nodes, decisions, self._log)
        self._changes = There(found, settings.name, trusted, settings.connect_timeout, self._log)

    async def start(self) -> None:
        """A server that cannot be reached is no obstacle: it is looked for until it can."""
        if self._line is not None and isinstance(self._counters, Decisions):
            await self._line.start()
            self._tasks.start(self._renewed(self._counters))
        self._changes.start()

    async def stop(self) -> None:
        """Give back what this worker holds."""
        await self._changes.stop()
        await self._tasks.stop()
        if self._line is not None and isinstance(self._counters, Decisions):
            await self._counters.leave()
            await self._line.stop()

    async def _renewed(self, decisions: Decisions) -> None:
        while True:
            await asyncio.sleep(self._lease / 6)
            decisions.renew(self._lease / 3)

    @property
    def workers(self) -> int:
        """How many share these counters, as far as is known."""
        counters = self._counters
        return counters.workers if isinstance(counters, Decisions) else 1

    def take(self, claims: Sequence[Claim]) -> Now[Grant]:
        return self._counters.take(claims)

    def settle(self, grant: Grant, actual: Sequence[int | None]) -> Now[None]:
        return self._counters.settle(grant, actual)

    def prime(self, key: str, limit: Allowance, used: int, quiet: float = inf) -> Now[None]:
        return self._counters.prime(key, limit, used, quiet)

    async def publish(self, kind: str, subject: str) -> None:
        await self._changes.publish(kind, subject)

    def listen(self, told: Told) -> Callable[[], None]:
        return self._changes.listen(told)

    @property
    def hears(self) -> bool:
        return self._changes.hears


@hookimpl
def passy_stores() -> dict[str, type[Store]]:
    return {Redis.kind: Redis}
