"""What a month will have cost by its end, if its days go on as the last ones did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from passy_proxy.periods import window_at

DAY = 86_400_000
DAYS = 7
"""Whole days whose mean stands for those to come."""


class Forecast(NamedTuple):
    """Billionths of a dollar."""

    today: int
    month: int
    """So far."""
    mean: int | None
    """A day, of the whole days before today; ``None`` when nothing was asked on one."""
    days: int
    """How many those were."""
    end: int | None
    """By the end of the month."""


def forecast(by_day: Mapping[int, int], now: int) -> Forecast:
    """``by_day``: where a day begins → its cost, at least of this month and of the last `DAYS`.
    Days before the first one with a request are not counted among the last."""
    today = now // DAY * DAY
    window = window_at("month", now / 1000)
    begin, end = int(window.start * 1000), int(window.end * 1000)
    month = sum(cost for day, cost in by_day.items() if begin <= day < end)
    whole = [day for day in range(today - DAYS * DAY, today, DAY)]
    first = min((day for day in whole if day in by_day), default=None)
    whole = [day for day in whole if first is not None and day >= first]
    spent = by_day.get(today, 0)
    if not whole:
        return Forecast(spent, month, None, 0, None)
    mean = sum(by_day.get(day, 0) for day in whole) // len(whole)
    # Of today what is usual, or what it has come to already.
    rest = max(mean - spent, 0) + mean * ((end - today) // DAY - 1)
    return Forecast(spent, month, mean, len(whole), month + rest)
