"""Coarse deadlines: one timer per event loop instead of one per request.

A connection states when it would be overdue by setting a plain attribute, which costs nothing;
every tenth of a second one sweep looks who is. So a deadline is met up to one interval late, never
early, and moving it forward a thousand times a second is free.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from passy_proxy.per_loop import one_of

NEVER = float("inf")
"""A deadline that does not come."""


class Watched(Protocol):
    """Something that can be overdue. Compared and hashed by identity."""

    deadline: float
    """When it is overdue, in seconds of ``loop.time()``; ``NEVER`` while nothing is due."""

    def expire(self, now: float) -> None:
        """Called on each sweep at which ``deadline <= now``; moves ``deadline`` or leaves."""
        ...


class Sweep:
    """Calls ``expire`` on those members whose deadline has passed, every ``interval`` seconds.

    The loop's timer runs only while there are members. ``now`` is ``loop.time()`` at the latest
    sweep, so at most about one interval old while there are members.
    """

    __slots__ = ("_loop", "_members", "_timer", "interval", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop, interval: float = 0.1) -> None:
        self._loop = loop
        self._members: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.interval = interval
        self.now = loop.time()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Watched) -> None:
        """Watch ``member``; nothing if it is watched already."""
        self._members.add(member)
        if self._timer is None:
            self.now = self._loop.time()
            self._timer = self._loop.call_later(self.interval, self._turn)

    def discard(self, member: Watched) -> None:
        """Stop watching ``member``; nothing if it is not watched."""
        self._members.discard(member)

    def _turn(self) -> None:
        self._timer = None
        if not self._members:
            return
        self._timer = self._loop.call_later(self.interval, self._turn)
        self.now = now = self._loop.time()
        for member in [member for member in self._members if member.deadline <= now]:
            if member not in self._members:  # another one's end took it along
                continue
            try:
                member.expire(now)
            except Exception as error:  # one faulty member must not stop the clock of the others
                self._loop.call_exception_handler(
                    {"message": "a deadline could not be handled", "exception": error}
                )


def sweep_of(loop: asyncio.AbstractEventLoop) -> Sweep:
    """The one sweep of ``loop``."""
    return one_of(Sweep, loop)
