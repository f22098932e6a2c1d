"""What budgets count with in one process: so much in a window of time, nothing refilled within it.

What was used is the sum of two numbers: *settled*, known to be spent, and *open*, taken for
exchanges that still go on. An open part lapses after its lease. Should its exchange end later
than that, it is settled with what it really used all the same.

The books are the truth: `Purse.agree` follows them. What is in them was spent, so a counter that
has less is raised at once. What is not in them may be on its way, so a counter that has more is
lowered only when it was left alone for a while.

There is one purse for each budget in use, for as long as the process lives. Where there are several
workers they have them in common, see `shared_purses.py`.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from passy_proxy.stores import Allowance, Room

SECOND = 1_000_000_000


class Purse:
    """One allowance's counter. Times are nanoseconds of the clock of those who call."""

    __slots__ = ("ends", "open", "parts", "serial", "settled", "touched")

    def __init__(self, ends: float, settled: int, now: int) -> None:
        self.ends = ends
        """Of its window, Unix seconds. A purse knows one window."""
        self.settled = settled
        self.open = 0
        self.parts: dict[int, tuple[int, int]] = {}
        """Serial number → when it lapses, and how much it is: in the order they were taken."""
        self.serial = 0
        self.touched = now

    def take(self, limit: Allowance, cost: int, place: int, now: int) -> Part | None:
        """For the claim at ``place``; ``None`` where it does not fit."""
        self.lapse(now)
        if limit.hard and self.settled + self.open + cost > limit.amount:
            return None
        self.serial = serial = self.serial + 1
        self.parts[serial] = (now + round(limit.lease * SECOND), cost)
        self.open += cost
        self.touched = now
        return Part(self, serial, cost, place)

    def lapse(self, now: int) -> None:
        """Give back what was taken longer ago than its lease."""
        parts = self.parts
        while parts:
            serial = next(iter(parts))
            due, cost = parts[serial]
            if due > now:
                return
            del parts[serial]
            self._close(cost)

    def give_back(self, part: Part) -> None:
        """As if it had never been taken."""
        if self.parts.pop(part.serial, None) is not None:
            self._close(part.cost)

    def _close(self, cost: int) -> None:
        """So much is open no longer."""
        self.open -= cost

    def settle(self, part: Part, used: int | None, now: int) -> None:
        self.give_back(part)
        self.settled += part.cost if used is None else max(used, 0)
        self.touched = now

    def agree(self, spent: int, quiet: float, now: int) -> None:
        """The books have ``spent`` of this window."""
        if spent > self.settled or now - self.touched > quiet * SECOND:
            self.settled = spent

    def room(self, limit: Allowance, wanted: int = 0) -> Room:
        """How it looks, and to one who wanted so much more and was refused something."""
        left = limit.amount - self.settled - self.open
        return Room(limit.amount, max(left, 0), 0.0, inf if limit.hard and wanted > left else 0.0)


class Purses(dict[str, Purse]):
    """Purses by their names, of one process."""

    held = True
    """Nobody else comes in between."""

    def begin(self, key: str, ends: float, settled: int, now: int) -> None:
        """Count it in a window that ends then (Unix seconds), in place of an earlier one."""
        self[key] = Purse(ends, settled, now)

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


class Part(NamedTuple):
    """What one claim took."""

    purse: Purse
    serial: int
    cost: int
    place: int
    """Of its claim in the grant."""
