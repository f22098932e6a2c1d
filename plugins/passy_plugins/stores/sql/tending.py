"""What the books need once in a while, whoever does it: see `Database.tend`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING

from passy_plugins.stores.sql.sums import DAY
from passy_proxy.keyring import KeyringError
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    Tend = Callable[[int, int | None, int | None], Awaitable[int]]

SECONDS = 60.0
"""Between two times; more or less, so that not all workers come at once."""
SOON = 5.0
"""When it could not be done."""
LOG_EVERY = 600.0


class Tending:
    """One task of each process that has the store. Lives on one event loop."""

    def __init__(
        self, tend: Tend, keep: int | None, keep_sums: int | None, log: FilteringBoundLogger
    ) -> None:
        """``tend`` is `Database.tend` of whatever database there is. ``keep``: how many days single
        records are kept, and ``keep_sums`` their sums; ``None`` is for ever."""
        self._tend = tend
        self._keep = keep
        self._keep_sums = keep_sums
        self._log = log
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="passy-books")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        silent_until = -inf
        while True:
            pause = SECONDS
            try:
                await self._tended()
            except (StoreUnavailable, KeyringError, ValueError) as error:
                pause = SOON
                if time.monotonic() >= silent_until:
                    silent_until = time.monotonic() + LOG_EVERY
                    self._log.warning("books_untended", error=str(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))

    async def _tended(self) -> None:
        now = int(time.time() * 1000)
        oldest, oldest_sums = (
            None if keep is None else (now // DAY - keep) * DAY
            for keep in (self._keep, self._keep_sums)
        )
        dropped = await self._tend(now, oldest, oldest_sums)
        if dropped and oldest is not None:
            before = datetime.fromtimestamp(oldest / 1000, UTC)
            self._log.info("usage_dropped", records=dropped, before=f"{before:%Y-%m-%d}")
