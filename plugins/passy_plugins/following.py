"""What people decided while gateways run, kept in a store, and how each worker goes by it.

It is read when a filter starts, when an edit is told of, and now and then. While the store cannot
be asked the latest word holds, and a gateway that starts meanwhile finds it on disk: a target that
somebody disabled is not asked, and what somebody priced costs no less, because a database is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from passy_proxy import Changes, StoreUnavailable, Tasks, json
from passy_proxy.remembered import Said
from passy_proxy.stores import ANYTHING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy import Remembered

PATIENCE = 2.0
"""Seconds that the store has to say it."""
AGAIN = 30.0
"""Seconds between two questions, where no edit was told of."""
PAUSE = 1.0
"""The same while the store is away."""
BELIEVED = 30 * 86_400.0
"""Seconds for which the disk is believed."""
WRITTEN = 3_600.0
"""Seconds between two writes of the same."""
KEY = b"all"

T = TypeVar("T", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Decided(Generic[T]):
    """What is followed: few things, each a tuple that JSON can hold."""

    kind: str
    """Of the changes that it is told as."""
    store: object
    ask: Callable[[], Awaitable[Sequence[T]]]
    entry: Callable[..., T]
    """Makes one of what JSON held."""
    hold: Callable[[Sequence[T]], None]
    """Called with all of them, at once where there are any and at each change."""


class Following(Generic[T]):
    def __init__(
        self, decided: Decided[T], remembered: Remembered, log: FilteringBoundLogger
    ) -> None:
        self._decided = decided
        self._remembered = remembered
        self._log = log
        self._tasks = Tasks(log)
        place = getattr(decided.store, "place", "")
        self._kind = f"{decided.kind} {place}" if place else ""
        """Whose entry on disk is ours; empty where there is none."""
        self._known: list[T] = []
        self._due = asyncio.Event()
        self._up = True
        self._written = 0.0
        self._unlisten: Callable[[], None] | None = None

    async def start(self) -> None:
        if not await self._ask():
            await self._recall()
        if isinstance(store := self._decided.store, Changes):
            self._unlisten = store.listen(self.told)
        self._tasks.start(self._follow())

    async def stop(self) -> None:
        if self._unlisten is not None:
            self._unlisten()
        await self._tasks.stop()

    def told(self, kind: str, subject: str) -> None:
        """Something was edited, or may have been."""
        if kind in (self._decided.kind, ANYTHING):
            self._due.set()

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN if self._up else PAUSE):
                    await self._due.wait()
            self._due.clear()
            await self._ask()

    async def _ask(self) -> bool:
        """Whether the store said it."""
        at = time()
        try:
            async with asyncio.timeout(PATIENCE):
                found = list(await self._decided.ask())
        except (StoreUnavailable, TimeoutError) as error:
            if self._up:
                reason = str(error) or "it does not answer"
                self._log.warning("decisions_away", of=self._decided.kind, error=reason)
            self._up = False
            return False
        self._up = True
        changed = found != self._known
        self._take(found)
        if self._kind and (changed or monotonic() >= self._written + WRITTEN):
            self._written = monotonic()
            said = Said(json.dumps([tuple(one) for one in found]), at, BELIEVED)
            self._remembered.put(self._kind, KEY, said, only_known=not found)
        return True

    async def _recall(self) -> None:
        """What the disk knows, from before a start."""
        if not self._kind:
            return
        found = await self._remembered.find(self._kind, KEY)
        if found is not None:
            self._take([self._decided.entry(*each) for each in json.loads(found.value)])

    def _take(self, found: list[T]) -> None:
        if found != self._known:
            self._known = found
            self._decided.hold(found)
