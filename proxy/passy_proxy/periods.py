"""The windows that budgets count in: days, weeks and months of UTC, or for ever.

Weeks begin on Monday, as ISO 8601 has them. Summer time and the gateway's own time zone change
nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import inf
from typing import Literal, NamedTuple

Period = Literal["day", "week", "month", "total"]
PERIODS: tuple[Period, ...] = ("day", "week", "month", "total")

DAY = 86_400


class Window(NamedTuple):
    """One of a period's: from ``start`` on and before ``end``, Unix seconds."""

    name: str
    """``2026-11-26``, ``2026-W48``, ``2026-11`` or ``total``."""
    start: float
    end: float
    """``inf`` for one that never ends."""


TOTAL = Window("total", 0.0, inf)


def window_at(period: Period, at: float) -> Window:
    """The window of ``period`` that ``at`` (Unix seconds) lies in."""
    return TOTAL if period == "total" else _window(period, int(at // DAY))


@lru_cache(100)
def _window(period: Period, day: int) -> Window:
    """Of the day that is so many days after 1970-01-01."""
    first = datetime.fromtimestamp(day * DAY, UTC)
    if period == "day":
        name, end = f"{first:%Y-%m-%d}", first + timedelta(1)
    elif period == "week":
        year, week, weekday = first.isocalendar()
        first -= timedelta(weekday - 1)
        name, end = f"{year:04}-W{week:02}", first + timedelta(7)
    else:
        first = first.replace(day=1)
        name = f"{first:%Y-%m}"
        end = (first + timedelta(31)).replace(day=1)
    return Window(name, first.timestamp(), end.timestamp())
