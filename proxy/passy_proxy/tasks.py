"""Background tasks with somebody who remembers them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

T = TypeVar("T")


class Tasks:
    """Keeps a reference to each task, logs how one failed, and ends them all."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._log.error("background_task_failed", exc_info=exc)

    async def stop(self) -> None:
        """Cancel what runs and wait for it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


TURN = 0.005
"""Seconds after which others have theirs."""


async def in_turns(steps: Generator[object, None, T]) -> T:
    """Take many small steps in turns with all that there is to do on the event loop; what they come
    to."""
    with closing(steps):
        end = monotonic() + TURN
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            if monotonic() > end:
                await asyncio.sleep(0)
                end = monotonic() + TURN
