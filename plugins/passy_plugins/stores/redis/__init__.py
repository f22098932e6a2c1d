"""Limits that any number of workers and hosts share, in Redis, Valkey or a Cluster of either.

Named in gateway.yaml by ``kind: redis``. Decisions are exact: they are made there, by one script
(`counters.lua`), on that server's clock. Where its URL says ``memory:`` they are made here, as the
store of kind ``memory`` makes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from passy_plugins.stores.buckets import Buckets
from passy_plugins.stores.redis.changes import Changes
from passy_plugins.stores.redis.headcount import Headcount
from passy_plugins.stores.redis.place import places
from passy_plugins.stores.shared_purses import purses_of
from passy_proxy.config.settings import Secret, Settings, setting
from passy_proxy.hookspecs import hookimpl
from passy_proxy.site import Site
from passy_proxy.stores import Allowance, Claim, Counters, Grant, Now, Store, Told
from passy_proxy.units import Count, Duration

if TYPE_CHECKING:
    from passy_plugins.stores.redis.there import There


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
    timeout: Duration = setting(
        "50ms", "How long a decision may take before the server is given up."
    )
    connect_timeout: Duration = setting("1s", "How long connecting may take.")
    lease: Duration = setting(
        "1m", "How long what a worker holds at once stays taken after it was killed.", ge=3
    )
    slices: Count = setting(
        0,
        "Where it is not 0, a worker takes a slice of a rate, one of so many, and decides from it "
        "without asking: limits are then inexact by two slices for each worker.",
        le=10_000,
    )
    ca: str = setting("", "A file of authorities for rediss://; the system's when not given.")


class Redis(Store):
    """Counters and Changes on one server, or one Cluster."""

    kind = "redis"
    Settings = RedisSettings

    def __init__(
        self, settings: RedisSettings, site: Site, clock: Callable[[], int] | None = None
    ) -> None:
        """``clock`` gives nanoseconds in place of the server's time."""
        found = places(settings.url.reveal())
        self._there: There | None = None
        if not found:
            self._counters: Counters = Buckets(clock or time.monotonic_ns, purses_of(site))
            self._changes = Changes()
            return
        from passy_plugins.stores.redis.there import There  # Who counts here does without.

        heads = Headcount(site.data / f"workers-{settings.name}", max(1, len(site.vitals.slots)))
        self._there = there = There(found, settings, site.log.bind(store=self.kind), heads, clock)
        self._counters = there.slices or there.decisions
        self._changes = there.changes

    def take(self, claims: Sequence[Claim]) -> Now[Grant]:
        return self._counters.take(claims)

    def settle(self, grant: Grant, actual: Sequence[int | None]) -> Now[None]:
        return self._counters.settle(grant, actual)

    def prime(self, key: str, limit: Allowance, used: int, quiet: float = inf) -> Now[None]:
        return self._counters.prime(key, limit, used, quiet)

    async def start(self) -> None:
        """A server that cannot be reached is no obstacle: it is looked for until it can."""
        if self._there is not None:
            await self._there.start()

    async def stop(self) -> None:
        """Give back what this worker holds."""
        if self._there is not None:
            await self._there.stop()

    @property
    def alone(self) -> bool:
        """It counts in this process; see `Buckets.alone`."""
        return self._there is None

    @property
    def workers(self) -> int:
        """How many share these counters, as far as is known."""
        return 1 if self._there is None else self._there.heads.count

    @property
    def state(self) -> str:
        return "ok" if self._there is None or self._there.up else "away"

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
