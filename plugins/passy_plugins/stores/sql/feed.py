"""What was edited, for workers that nobody tells: the table `changes`, looked at every two seconds.

Whoever edits writes a row in the same transaction. Numbers are given out before transactions end,
so a lower one may come to be seen after a higher one: rows are looked at again for a while, and
those that were told of are remembered for as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Protocol

from passy_proxy.stores import ANYTHING, StoreUnavailable, Told
from passy_proxy.tasks import Tasks

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

EVERY = 2.0
"""Seconds between two looks."""
LATE = 10.0
"""Seconds in which a transaction that has its number may still end."""
BEHIND = 100
"""Numbers that may be out at once."""
LONG = 600.0
"""Seconds without a look, after which nobody knows what was missed."""
PAGE = 1_000

_LAST = "SELECT coalesce(max(seq), 0) FROM changes"
_SINCE = "SELECT seq, kind, subject FROM changes WHERE seq > ? ORDER BY seq LIMIT ?"
_TELL = "INSERT INTO changes (kind, subject, at) VALUES (?, ?, ?) RETURNING seq"


class Fetch(Protocol):
    def __call__(self, statement: str, *values: Any) -> Awaitable[Sequence[Any]]: ...


class Feed:
    """Tells who listens of each row once. `passy_proxy.stores.Changes`, but for its life."""

    def __init__(self, fetch: Fetch, log: FilteringBoundLogger) -> None:
        self._fetch = fetch
        self._tasks = Tasks(log)
        self._listeners: list[Told] = []
        self._looking: asyncio.Task[None] | None = None
        self._now = asyncio.Event()
        self._low = -1
        """All up to this number were told of; -1 before the first look."""
        self._seen: dict[int, float] = {}
        """Those above, and when they were seen."""
        self._looked = -inf
        self.hears: bool | None = None
        """Whether the latest look was one; ``None`` before the first."""

    async def publish(self, kind: str, subject: str) -> None:
        await self._fetch(_TELL, kind, subject, int(time() * 1000))
        self._now.set()

    def listen(self, told: Told) -> Callable[[], None]:
        self._listeners.append(told)
        if self._looking is None:
            self._looking = self._tasks.start(self._run())
        elif self.hears:
            told(ANYTHING, ANYTHING)
        return lambda: self._listeners.remove(told)

    def look(self) -> None:
        """Now, and not when it is time."""
        self._now.set()

    async def stop(self) -> None:
        await self._tasks.stop()
        self._looking = None

    async def _run(self) -> None:
        while True:
            self._now.clear()
            try:
                await self._told()
                self.hears = True
            except StoreUnavailable:
                self.hears = False
            try:
                async with asyncio.timeout(EVERY):
                    await self._now.wait()
            except TimeoutError:
                pass

    async def _told(self) -> None:
        """Look, and tell of what is new."""
        now = monotonic()
        begin = self._low < 0 or now - self._looked > LONG
        if begin:
            [(last,)] = await self._fetch(_LAST)
            self._low, self._seen = max(0, last - BEHIND), {}
        after = self._low
        while True:
            rows = await self._fetch(_SINCE, after, PAGE)
            for seq, kind, subject in rows:
                if seq not in self._seen:
                    self._seen[seq] = now
                    if not begin:
                        self._tell(kind, subject)
            if len(rows) < PAGE:
                break
            after = rows[-1][0]
        self._looked = now
        if begin:
            self._tell(ANYTHING, ANYTHING)
        for seq in [seq for seq, seen in self._seen.items() if seen < now - LATE]:
            del self._seen[seq]
            self._low = max(self._low, seq)

    def _tell(self, kind: str, subject: str) -> None:
        for told in list(self._listeners):
            told(kind, subject)
