"""Comments in a silent stream, so that no client or load balancer takes it for dead."""

from __future__ import annotations

import asyncio

from passy_proxy.downstream import Downstream
from passy_proxy.timers import Sweep, sweep_of

COMMENT = b": keep-alive\n\n"
TAIL = 4
"""Bytes that tell whether a message has ended."""
LOOKS = 4
"""How often a stream is looked at in one interval."""


class Heartbeat:
    """Watches one stream; sends a comment when nothing was sent for ``interval`` seconds.

    The stream is written through it. The watching is done on a coarse clock, so the comment comes
    up to a quarter of the interval late. It goes only between two messages: bytes in the middle of
    one would damage it.
    """

    __slots__ = ("_downstream", "_seen", "_silent", "_step", "_sweep", "deadline", "last")

    def __init__(self, interval: float, downstream: Downstream, sweep: Sweep) -> None:
        self._step = interval / LOOKS
        self._downstream = downstream
        self._sweep = sweep
        self.last = b"\n\n"
        """What was sent last."""
        self._seen = self.last
        self._silent = 0
        if interval:
            sweep.add(self)  # First: it sets right a clock that stood still.
        self.deadline = sweep.now + self._step

    @classmethod
    def of(cls, interval: float, downstream: Downstream) -> Heartbeat:
        """Of this loop; with an interval of 0 it says nothing."""
        return cls(interval, downstream, sweep_of(asyncio.get_running_loop()))

    def write(self, data: bytes) -> bool:
        """As `Downstream.write`."""
        if data:
            self.last = data
        return self._downstream.write(data)

    def expire(self, now: float) -> None:
        """Called by the sweep each quarter of an interval."""
        self.deadline = now + self._step
        if self.last is not self._seen:
            self._seen = self.last = self.last[-TAIL:]  # The rest may be large, and long sent.
            self._silent = 0
            return
        self._silent += 1
        if self._silent >= LOOKS:
            self._silent = 0
            if self.last.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
                self._downstream.write(COMMENT)

    def stop(self) -> None:
        """The stream is over."""
        self._sweep.discard(self)
