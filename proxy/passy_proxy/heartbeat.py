"""Comments in a silent stream, so that no client or load balancer takes it for dead."""

from __future__ import annotations

import asyncio

from passy_proxy.downstream import Downstream
from passy_proxy.timers import Sweep, sweep_of

COMMENT = b": keep-alive\n\n"


class Heartbeat:
    """Watches one stream; sends a comment whenever it was silent for ``interval`` seconds.

    Only between two messages: bytes in the middle of one would damage it.
    """

    __slots__ = ("_downstream", "_interval", "_last", "_sweep", "deadline")

    def __init__(self, interval: float, downstream: Downstream, sweep: Sweep) -> None:
        self._interval = interval
        self._downstream = downstream
        self._sweep = sweep
        self._last = b"\n\n"
        self.deadline = sweep.now + interval
        sweep.add(self)

    @classmethod
    def of(cls, interval: float, downstream: Downstream) -> Heartbeat | None:
        """A heartbeat, or ``None`` for an interval of 0."""
        if not interval:
            return None
        loop = asyncio.get_running_loop()
        return cls(interval, downstream, sweep_of(loop))

    def sent(self, data: bytes) -> None:
        """``data`` has just gone out."""
        if data:
            self._last = data
            self.deadline = self._sweep.now + self._interval

    def expire(self, now: float) -> None:
        """Called by the sweep when the stream has been silent for too long."""
        self.deadline = now + self._interval
        if self._last.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
            self._downstream.write(COMMENT)

    def stop(self) -> None:
        """The stream is over."""
        self._sweep.discard(self)
