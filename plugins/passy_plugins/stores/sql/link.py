"""The way to the database: when it may be asked, and what happens until then.

A database has to be brought to the newest revision, and its keys have to be ours, before anybody
asks it anything. At a first start that is waited for, and without it there is no start: a wrong URL
is said at once. Where it was reached before, it need not be there: what it said is remembered, what
it is to be told waits in the journal, and it is used as soon as it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from passy_proxy.keyring import KeyringError
from passy_proxy.stores import StoreRefuses, StoreUnavailable
from passy_proxy.tasks import Tasks

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

PAUSE = 0.5
"""Seconds between two tries."""
LOG_EVERY = 60.0


class Link:
    """``prepare`` makes the database one that may be asked; ``StoreUnavailable`` when it cannot
    now, `StoreRefuses` or `KeyringError` when it never will by itself."""

    def __init__(self, prepare: Callable[[], Awaitable[None]], log: FilteringBoundLogger) -> None:
        self._prepare = prepare
        self._log = log
        self._tasks = Tasks(log)
        self.state = "not reached yet"
        self.up = False

    async def start(self, patience: float | None) -> None:
        """Prepare it: within so many seconds, or (``None``) whenever that will be possible."""
        end = monotonic() + (patience or 0.0)
        said = False
        while not await self._tried(raises=patience is not None and monotonic() >= end):
            if patience is None:
                self._log.warning("store_away", error=self.state, serving="what is known of it")
                self._tasks.start(self._again())
                return
            if not said:
                self._log.warning("waiting_for_store", error=self.state, seconds=patience)
                said = True
            await asyncio.sleep(PAUSE)

    async def stop(self) -> None:
        await self._tasks.stop()

    def check(self) -> None:
        """`StoreUnavailable` while it may not be asked."""
        if not self.up:
            raise StoreUnavailable(self.state)

    async def _tried(self, *, raises: bool) -> bool:
        try:
            await self._prepare()
        except StoreRefuses:
            raise
        except StoreUnavailable as error:
            self.state = str(error)
            if raises:
                raise
            return False
        self.state, self.up = "ok", True
        return True

    async def _again(self) -> None:
        silent_until = -inf
        while not self.up:
            await asyncio.sleep(PAUSE)
            try:
                await self._tried(raises=False)
            except (StoreRefuses, KeyringError) as error:
                self.state = str(error)
                if monotonic() >= silent_until:
                    silent_until = monotonic() + LOG_EVERY
                    self._log.error("store_refuses", error=self.state)
        self._log.info("store_back")
