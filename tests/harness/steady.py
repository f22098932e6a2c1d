"""The deadlines of a loop, on a machine that makes pauses.

To a clock, a process that got no turn for three seconds is one in which nothing happened for three
seconds, and whoever had two for something is late. Tests whose deadlines are of tenths of a second
would be at fault for it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from passy_proxy.timers import sweep_of


class Steady:
    """In place of a sweep's loop: between two of its turns there is never more than an interval,
    however long the loop was held up."""

    def __init__(self, loop: Any, interval: float) -> None:
        self._loop = loop
        self._interval = interval
        self._seen = self._now = loop.time()
        self.call_later = loop.call_later
        self.call_exception_handler = loop.call_exception_handler

    def time(self) -> float:
        seen, self._seen = self._seen, self._loop.time()
        self._now += min(self._seen - seen, self._interval)
        return self._now


def be_steady() -> None:
    """From now on that is how deadlines of this loop are met: none of them early, by any clock."""
    sweep = sweep_of(asyncio.get_running_loop())
    if not isinstance(sweep._loop, Steady):
        sweep._loop = Steady(sweep._loop, sweep.interval)  # type: ignore[assignment]
