"""Usage on its way into the database: a list, and one task that empties it in batches.

Recording appends to the list and nothing else. A record waits as the JSON text of its row, in one
piece of memory: some hundred tuples and strings a millisecond, each kept for a moment, would make
every request after them slower. The first record of a batch wakes the task, which waits until there
are enough or a moment has passed, and writes everything there is. When nothing happens, nothing
runs. A row is written under the id of its exchange, and the database leaves out a second one of the
same id: writing again after a failure of unknown outcome is always safe.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from passy_proxy.json import dumps
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.records import UsageRow

    Write = Callable[[Sequence[bytes]], Awaitable[None]]

ENOUGH = 500
"""Records that are worth a write before its time has come. More would make a row no cheaper."""
MOST = 5_000
"""Records in one transaction: others write to the same database."""
FLUSH_SECONDS = 0.25
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0
LOG_EVERY = 60.0


class Spool:
    """Holds records until ``write`` has taken them, in batches and in order. Lives on one event
    loop.

    While ``write`` raises `StoreUnavailable` records wait, up to ``capacity``; what comes then is
    lost. A record that ``write`` refuses with `ValueError`, or that no JSON can say, is lost alone.
    Losses are counted and logged, troubles once a minute at most.

    ``write`` is given JSON lists: the columns of a row, its attempts as the JSON text of a list of
    lists.
    """

    def __init__(self, write: Write, log: FilteringBoundLogger, capacity: int = 100_000) -> None:
        self._write = write
        self._log = log
        self._capacity = capacity
        self._waiting: list[bytes] = []
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._pause = FIRST_PAUSE
        self._silent_until = -inf
        self.lost = 0
        """Records given up."""

    def __len__(self) -> int:
        """How many records are not known to be written."""
        return len(self._waiting)

    def record(self, row: UsageRow) -> None:
        waiting = self._waiting
        count = len(waiting)
        if count >= self._capacity:
            self.lost += 1
            return
        try:
            # A copy: what orjson returns holds on to the 4 KiB that it was written into.
            waiting.append(b"%b" % dumps((*row[:-1], dumps(row[-1]).decode())))
        except (ValueError, TypeError) as error:
            self.lost += 1
            self._tell("usage_refused", error)
            return
        if not count:
            self._some.set()
        elif count == ENOUGH - 1:
            self._enough.set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="passy-ledger")

    async def stop(self, seconds: float = 10.0) -> None:
        """Write what waits, for so long at most; what is left then is lost."""
        self._stopping = True
        self._some.set()
        self._enough.set()
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=seconds)
            if not done:
                self._task.cancel()
                await asyncio.wait([self._task])
        self.lost += len(self._waiting)
        self._waiting.clear()
        if self.lost:
            self._log.error("usage_lost", records=self.lost)

    async def _run(self) -> None:
        while True:
            if self._waiting:
                await self._linger(FLUSH_SECONDS)
                await self._flush()
            elif self._stopping:
                return
            else:
                self._some.clear()
                await self._some.wait()

    async def _linger(self, seconds: float) -> None:
        """Let records gather, unless there are enough or the end has come."""
        if len(self._waiting) >= ENOUGH or self._stopping:
            return
        self._enough.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._enough.wait()

    async def _flush(self) -> None:
        batch = self._waiting[:MOST]
        try:
            await self._write(batch)
        except StoreUnavailable as error:
            self._tell("usage_waits", error)
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return
        except ValueError as error:
            batch = await self._one_by_one(batch, error)
        self._pause = FIRST_PAUSE
        del self._waiting[: len(batch)]

    async def _one_by_one(self, batch: list[bytes], error: ValueError) -> list[bytes]:
        """Write a batch that holds a record which cannot be; returns those that are done with."""
        for count, record in enumerate(batch):
            try:
                await self._write([record])
            except StoreUnavailable:
                return batch[:count]
            except ValueError as refused:
                error = refused
                self.lost += 1
        self._tell("usage_refused", error)
        return batch

    def _tell(self, event: str, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + LOG_EVERY
            waiting, lost = len(self._waiting), self.lost
            self._log.warning(event, error=str(error), waiting=waiting, lost=lost)
