"""What the books need once in a while, whoever does it: see `Database.tend`."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from passy_plugins.stores.sql.driver import driver_for
from passy_plugins.stores.sql.sums import DAY
from passy_proxy.keyring import KeyringError
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.keyring import Keyring

SECONDS = 60.0
"""Between two times; more or less, so that not all workers come at once."""


class Tending:
    """One task of each process that has the store. Lives on one event loop."""

    def __init__(
        self, url: str, keep: int | None, keyring: Keyring, log: FilteringBoundLogger
    ) -> None:
        """``keep``: how many days single records are kept; ``None`` is for ever."""
        self._url = url
        self._keep = keep
        self._keyring = keyring
        self._log = log
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="passy-books")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self._tend()
            except (StoreUnavailable, KeyringError, ValueError) as error:
                self._log.warning("books_untended", error=str(error))
            await asyncio.sleep(SECONDS * random.uniform(0.5, 1.5))

    async def _tend(self) -> None:
        now = int(time.time() * 1000)
        oldest = None if self._keep is None else (now // DAY - self._keep) * DAY
        database = driver_for(self._url, "tend")
        try:
            dropped = await database.tend(now, oldest, self._keyring)
        finally:
            await database.close()
        if dropped and oldest is not None:
            before = datetime.fromtimestamp(oldest / 1000, UTC)
            self._log.info("usage_dropped", records=dropped, before=f"{before:%Y-%m-%d}")
