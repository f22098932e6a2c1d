"""Stretches of time that pages speak of: whole hours or days of UTC, which are added up already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

HOUR, DAY = 3_600_000, 86_400_000
Unit = Literal["hour", "day"]
UNITS: dict[Unit, int] = {"hour": HOUR, "day": DAY}


@dataclass(frozen=True, slots=True)
class Span:
    """From ``since`` to before ``until``, in milliseconds of Unix time, in steps of ``unit``."""

    since: int
    until: int
    unit: Unit

    @classmethod
    def last(cls, count: int, unit: Unit, now: int) -> Span:
        """The last ``count`` of them, the one that ``now`` is in among them."""
        step = UNITS[unit]
        until = now // step * step + step
        return cls(until - count * step, until, unit)

    @property
    def starts(self) -> Sequence[int]:
        return range(self.since, self.until, UNITS[self.unit])

    @property
    def before(self) -> Span:
        """As much time, just before."""
        return Span(2 * self.since - self.until, self.since, self.unit)

    @property
    def labels(self) -> list[str]:
        """``2026-11-26``, or ``11-26 14:00``."""
        form = "%Y-%m-%d" if self.unit == "day" else "%m-%d %H:%M"
        return [datetime.fromtimestamp(at / 1000, UTC).strftime(form) for at in self.starts]

    @property
    def length(self) -> str:
        """``30 days``."""
        count = len(self.starts)
        return f"{count} {self.unit}{'' if count == 1 else 's'}"
