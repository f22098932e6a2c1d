"""Slots of one upstream: idle connections, a bound on all of them, and a fair queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from passy_proxy.timers import sweep_of

from . import TransportError

_C = TypeVar("_C")


class _Waiter(Generic[_C]):
    """One place in the queue, watched by the sweep."""

    __slots__ = ("deadline", "expired", "future")

    def __init__(self, deadline: float, future: asyncio.Future[_C | None]) -> None:
        self.deadline = deadline
        self.expired = False
        self.future = future

    def expire(self, now: float) -> None:
        if not self.future.done():
            self.expired = True
            self.future.set_result(None)


class Pool(Generic[_C]):
    """At most ``limit`` slots; those that are idle are taken last in, first out.

    A slot is counted from :meth:`reserve` (or a ``None`` from :meth:`wait`) until :meth:`drop`.
    Everything is O(1).
    """

    __slots__ = ("_returned", "_waiters", "closed", "idle", "limit", "open", "opened", "reused")

    def __init__(self, limit: int, returned: Callable[[_C], object] | None = None) -> None:
        """``returned`` takes back what was handed to someone who had just given up."""
        self._returned = returned or self.give
        self.limit = limit
        self.closed = False
        self.open = 0
        self.opened = 0
        self.reused = 0
        self.idle: dict[_C, None] = {}
        self._waiters: deque[_Waiter[_C]] = deque()

    @property
    def waiting(self) -> int:
        return sum(not waiter.future.done() for waiter in self._waiters)

    def stats(self) -> dict[str, int]:
        """See :meth:`passy_proxy.transport.Transport.stats`."""
        return {
            "open": self.open,
            "idle": len(self.idle),
            "waiting": self.waiting,
            "opened": self.opened,
            "reused": self.reused,
        }

    def take(self) -> _C | None:
        """The item that became idle last, or ``None``."""
        if not self.idle:
            return None
        self.reused += 1
        return self.idle.popitem()[0]

    def reserve(self) -> bool:
        """Count one more slot, if there is room."""
        if self.open >= self.limit:
            return False
        self.open += 1
        return True

    async def wait(self, deadline: float) -> _C | None:
        """Queue for an item; ``None`` is a reserved slot instead.

        ``deadline`` is in seconds of the loop's clock; TransportError ``pool`` when it passes.
        """
        loop = asyncio.get_running_loop()
        waiter: _Waiter[_C] = _Waiter(deadline, loop.create_future())
        sweep = sweep_of(loop)
        sweep.add(waiter)
        self._waiters.append(waiter)
        try:
            item = await waiter.future
        except BaseException:
            if waiter.future.cancelled() or waiter.expired:
                self._forget(waiter)
            elif (given := waiter.future.result()) is None:
                self.drop()
            else:
                self._returned(given)
            raise
        finally:
            sweep.discard(waiter)
        if waiter.expired:
            self._forget(waiter)
            message = f"all {self.limit} connections stayed busy"
            if self.closed:
                message = "the transport is closed"
            raise TransportError("pool", message, phase="pool")
        if item is not None:
            self.reused += 1
        return item

    def give(self, item: _C) -> bool:
        """Hand ``item`` to whoever waits longest (false), else keep it idle (true)."""
        if self._waiters and self._hand(item):
            return False
        self.idle[item] = None
        return True

    def offer(self, item: _C) -> bool:
        """Hand ``item`` to whoever waits longest; false when nobody waits."""
        return self._hand(item)

    def drop(self) -> None:
        """A slot is gone: its place goes to whoever waits longest."""
        if not (self._waiters and self._hand(None)):
            self.open -= 1

    def close(self) -> None:
        """Turn everybody in the queue away."""
        self.closed = True
        for waiter in list(self._waiters):
            waiter.expire(0.0)

    def _hand(self, item: _C | None) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_result(item)
                return True
        return False

    def _forget(self, waiter: _Waiter[_C]) -> None:
        with suppress(ValueError):
            self._waiters.remove(waiter)
