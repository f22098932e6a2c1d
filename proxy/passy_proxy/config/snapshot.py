"""A snapshot: one whole configuration, compiled, started, and swapped in by one assignment.

The life of a snapshot: *built* from a configuration (``build.py``; nothing has started, and
whatever is wrong was said with its place in the file); *started* (every store and filter, in
order; if one fails, those that had started are stopped and the old snapshot goes on serving);
*live*; *retired* when another takes its place; *stopped* once the last exchange that began on it
has left.

Two rules. An exchange keeps the snapshot it began with, so nothing it uses changes under it. And
what two snapshots have in common (connection pools, stores) belongs to neither: it is held by
its own settings in ``Shared`` and counted, so a reload keeps warm connections warm.

What is ugly: a snapshot counts its exchanges by hand, one addition at each end, because a reference
count would tell us only when the collector gets round to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Sequence
from typing import TYPE_CHECKING

from passy_proxy.filter import Filter
from passy_proxy.models import Models
from passy_proxy.prices import Prices
from passy_proxy.route import RouteTable
from passy_proxy.shared import Shared
from passy_proxy.stores import Store
from passy_proxy.upstream import Upstreams

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.config.model import GatewaySettings
    from passy_proxy.config.problem import Problem
    from passy_proxy.connections import Connections
    from passy_proxy.mount import Mount


class StartFailed(Exception):
    """A store or filter could not be started; ``name`` says which."""

    def __init__(self, name: str, reason: BaseException) -> None:
        super().__init__(f"{name} could not be started: {reason}")
        self.name = name


class Snapshot:
    """One compiled configuration. Immutable once live, but for the count of its exchanges."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        hash: str,
        log: FilteringBoundLogger,
        shared: Shared,
    ) -> None:
        self.settings = settings
        self.hash = hash.encode()
        """Short hash of the configuration's text: ``x-passy-config``."""
        self.log = log
        self.shared = shared
        self.held: list[Hashable] = []
        """Keys of what it holds in ``shared``, to be given back when it stops."""
        self.stores: dict[str, Store] = {}
        self.store_keys: dict[str, Hashable] = {}
        self.upstreams = Upstreams()
        self.models = Models((), {})
        self.prices = Prices({})
        self.connections: Connections
        """To organisations' own upstreams."""
        self.filters: list[Filter] = []
        self.app_keys: dict[str, Hashable] = {}
        """Path → key in ``shared`` of the application there."""
        self.apps_left_out: dict[str, str] = {}
        """Path of an application whose secret is ``off`` → how to give it one."""
        self.routes = RouteTable(())
        """Of the listener of clients."""
        self.admin_routes = RouteTable(())
        """Of the listener of those who run the gateway."""
        self.warnings: Sequence[Problem] = ()
        self.running = 0
        """Exchanges on it now."""
        self.retired: asyncio.Event | None = None
        """There once another has taken its place; set when its last exchange has left."""
        self._started: list[Filter] = []

    @property
    def mounts(self) -> Sequence[Mount]:
        """All applications that are served, each once."""
        every = (*self.routes.mounts, *self.admin_routes.mounts)
        return [one for one in every if one.root == one.path]

    @property
    def administered(self) -> bool:
        """Whether somebody can be answered at the listener of those who run the gateway."""
        table = self.admin_routes
        return bool(table.mounts) or any(not one.chain.terminal.closed for one in table.all)

    async def start(self) -> None:
        """Start stores, filters and applications. On failure stops what had started and raises
        StartFailed."""
        for name, key in self.store_keys.items():
            await self._start(f"the store {name}", self.shared.start(key))
        stores = list(self.stores.values())
        for store in stores:
            store.meet([other for other in stores if other is not store])
        for filter in self.filters:
            self._started.append(filter)
            await self._start(f"the filter {filter.name}", filter.start())
        for path, key in self.app_keys.items():
            await self._start(f"the app at {path}", self.shared.start(key))

    async def _start(self, name: str, starting: Awaitable[None]) -> None:
        try:
            await starting
        except BaseException as exc:
            await self.stop()
            if isinstance(exc, Exception):
                raise StartFailed(name, exc) from exc
            raise

    def dependencies(self) -> dict[str, dict[str, str]]:
        """How the stores are, and what filters do while theirs is away: details, for people."""
        without: dict[str, dict[str, None]] = {}
        for filter in self.filters:
            if filter.when_away:
                without.setdefault(filter.name, {})[filter.when_away] = None
        return {
            "stores": {name: store.state for name, store in self.stores.items()},
            "when_away": {name: "; or ".join(said) for name, said in without.items()},
        }

    def left(self) -> None:
        """An exchange has ended."""
        self.running -= 1
        if self.running == 0 and self.retired is not None:
            self.retired.set()

    async def retire(self, drain: float | None = None) -> None:
        """Wait until its last exchange has left (at most ``drain`` seconds), then stop it."""
        self.retired = asyncio.Event()
        try:
            if self.running:
                async with asyncio.timeout(drain):
                    await self.retired.wait()
        except TimeoutError:
            self.log.warning("snapshot_drain_expired", running=self.running)
        finally:
            await self.stop()  # Also when the wait is cancelled, at the end of the process.

    async def stop(self) -> None:
        """Stop filters in reverse, then give back what was shared. Never raises."""
        for filter in reversed(self._started):
            try:
                await filter.stop()
            except Exception as exc:
                self.log.error("stop_failed", filter=filter.name, exc_info=exc)
        self._started.clear()
        for key in reversed(self.held):
            try:
                await self.shared.give_back(key)
            except Exception as exc:
                self.log.error("close_failed", exc_info=exc)
        self.held.clear()
