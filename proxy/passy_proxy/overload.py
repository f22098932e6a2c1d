"""Overload: a process that is near the end of what it has refuses more, and finishes what it began.

One timer looks at memory, file descriptors and the lateness of the event loop; what it finds goes
into plain attributes of the edge, so a request costs one comparison. The order is Envoy's: first
connections stop being kept, which gives back what idle ones hold; then new requests get a 503.
Health is told all the while.

Requests at once and connections at once are bounded by the same attributes: there the edge counts
itself, since a second is far too long. So are bodies that are being read into memory, by what the
latest look found free.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from passy_proxy import resources

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.config.model import OverloadSettings

NO_LIMIT: Final = sys.maxsize

LOOK = 0.5
"""Seconds between two looks."""
NEAR = 0.9
"""Share of a limit from which connections are not kept."""
CALM = 5.0
"""Seconds of calm after which an overload is told to be over; requests are let in at once."""
TRIM = 5.0
"""Seconds between two attempts to hand memory back."""
RESERVED = 64
"""File descriptors for everything that is no connection."""
COPIES = 4
"""How often a body is in memory at worst: its pieces, the whole, what is sent, what is unsent."""


class Gate(Protocol):
    """What the edge offers: bounds it keeps, and counts."""

    most_requests: int
    most_connections: int
    most_held: int
    """Bytes of bodies."""
    held: int
    shrinking: bool
    """Keep no connection."""
    draining: bool
    """The same, whatever the load."""
    refused: dict[str, int]

    @property
    def open(self) -> int:
        """Connections there are."""
        ...

    def close_idle(self) -> None:
        """Close connections that have had their answer and wait for a request."""
        ...


class Overload:
    """Watches one process, and says what it finds in two attributes.

    ``pressures``: what is used of each limit, as shares, at the latest look. ``told``: the state
    for people, ``ok``, or ``near: …`` and ``refusing: …`` with what there is too little of.
    """

    def __init__(
        self, gate: Gate, settings: Callable[[], OverloadSettings], log: FilteringBoundLogger
    ) -> None:
        self._gate = gate
        self._settings = settings
        self._log = log
        self._memory = resources.Memory()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._late = 0.0
        self._trimmed = 0.0
        self._near: dict[str, float] = {}  # when it was so, the last time
        self._short: dict[str, float] = {}
        self._refused = 0  # at the latest look
        self._refused_before = 0  # at the latest change
        self.pressures: dict[str, float] = {}
        self.told = "ok"

    def start(self) -> None:
        """Look now, and from now on."""
        loop = asyncio.get_running_loop()
        self._due = loop.time()
        self._turn(loop)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        late, self._late = self._late, now - self._due
        self._due = now + LOOK
        self._timer = loop.call_at(self._due, self._turn, loop)
        # Once may be a hiccup of the machine; twice in a row is more than this process can do.
        self.look(now, min(late, self._late))
        if self.pressures["memory"] >= NEAR and now - self._trimmed >= TRIM:
            self._trimmed = now
            loop.run_in_executor(None, resources.give_back_memory)

    def look(self, now: float, lag: float) -> None:
        """Measure, and set the gate. ``now`` and ``lag`` in seconds."""
        gate, settings = self._gate, self._settings()
        pressures = {
            "memory": self._memory_used(settings),
            "descriptors": self._descriptors_used(settings),
            "loop_lag": lag / settings.loop_lag if settings.loop_lag else 0.0,
        }
        most = max(pressures.values())
        gate.most_requests = 0 if most >= 1.0 else settings.max_requests or NO_LIMIT
        # What follows is the edge's to refuse, and already done where it was too much.
        pressures["connections"] = gate.open / gate.most_connections
        refused = gate.refused.get("overloaded", 0)
        pressures["requests"] = float(most < 1.0 and refused > self._refused)
        self._refused = refused
        gate.shrinking = most >= NEAR or pressures["connections"] >= NEAR
        if max(pressures["connections"], pressures["descriptors"]) >= NEAR:
            gate.close_idle()
        self.pressures = pressures
        self._tell(now)

    def _memory_used(self, settings: OverloadSettings) -> float:
        limit: float = settings.memory
        if limit:
            used = self._memory.own()
        else:
            used, there = self._memory.shared()
            limit = there * settings.memory_share
        if not limit:
            self._gate.most_held = NO_LIMIT
            return 0.0
        # Of what bodies hold already there will be copies, too.
        free = limit - used + self._gate.held
        self._gate.most_held = max(0, int(free)) // COPIES
        return used / limit

    def _descriptors_used(self, settings: OverloadSettings) -> float:
        used, limit = resources.descriptors()
        # Each connection may need another one, to an upstream.
        most = max((limit - RESERVED) // 2, limit // 4, 1) if limit else NO_LIMIT
        self._gate.most_connections = min(most, settings.max_connections or NO_LIMIT)
        return used / (limit * settings.descriptors) if limit else 0.0

    def _tell(self, now: float) -> None:
        """One line for each change."""
        for name, pressure in self.pressures.items():
            if pressure >= NEAR:
                self._near[name] = now
            if pressure >= 1.0:
                self._short[name] = now
        short = [name for name, at in self._short.items() if now - at < CALM]
        near = [n for n, at in self._near.items() if now - at < CALM and n not in short]
        states = (("refusing", short), ("near", near))
        told = "; ".join(f"{state}: {', '.join(names)}" for state, names in states if names) or "ok"
        if told == self.told:
            return
        self.told = told
        refused, self._refused_before = self._refused - self._refused_before, self._refused
        shares = {name: round(pressure, 2) for name, pressure in self.pressures.items()}
        say = self._log.info if told == "ok" else self._log.warning
        say("overload", state=told, refused=refused, used_of_limit=shares)
