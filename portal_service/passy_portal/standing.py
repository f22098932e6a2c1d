"""How budgets stand: what is used of each by the books, how fast it goes, and when it is spent.

The pace is the average of the last seven whole days. It says when a budget is spent if all goes on
like that, and nothing of what comes otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from passy_plugins.stores.sql.spent import Spent
from passy_proxy.issue import KINDS, StoredBudget
from passy_proxy.periods import Period, Window, window_at
from passy_proxy.records import Budget

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

DAY = 86_400_000
"""Milliseconds."""
DAYS = 7
"""That the pace is an average of."""
LONGEST = 10 * 365 * 86_400
"""Seconds from now: what comes later is not foretold."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A budget now. Amounts are in its unit: billionths of a dollar, or tokens."""

    budget: Budget
    window: Window
    used: int
    pace: int
    """In a day."""
    spent_at: float | None
    """Unix seconds at which it is used up at this pace; ``None`` where that is not in its window,
    or it is already."""
    at_end: int | None
    """What is used when its window ends, at this pace; ``None`` where it never ends."""

    @property
    def share(self) -> float:
        """Used, of 1; of a budget of nothing all is used."""
        return self.used / self.budget.amount if self.budget.amount else 1.0

    @property
    def is_spent(self) -> bool:
        return self.used >= self.budget.amount


async def standings(admin: Admin, budgets: Sequence[StoredBudget], now: int) -> dict[str, Standing]:
    """Budget → how it stands ``now``, in milliseconds."""
    kinds = [[one for one in budgets if one.kind == kind] for kind in KINDS]
    told = await asyncio.gather(*(_standings(admin, theirs, now) for theirs in kinds if theirs))
    return {id: one for part in told for id, one in part.items()}


async def _standings(
    admin: Admin, budgets: Sequence[StoredBudget], now: int
) -> dict[str, Standing]:
    """Of one kind."""
    today = now // DAY * DAY
    periods = list(dict.fromkeys(one.budget.period for one in budgets))
    spans = [*(span_of(period, now) for period in periods), (today - DAYS * DAY, today)]
    subjects = {one.subject for one in budgets}
    found = await admin.reports.spent(budgets[0].kind, subjects, spans)
    told = {}
    for one in budgets:
        budget = one.budget
        sums = found.get(one.subject) or [Spent()] * len(spans)
        used = amount(sums[periods.index(budget.period)], budget.unit)
        pace = amount(sums[-1], budget.unit) // DAYS
        window = window_at(budget.period, now / 1000)
        told[budget.id] = standing(budget, window, used, pace, now / 1000)
    return told


def standing(budget: Budget, window: Window, used: int, pace: int, now: float) -> Standing:
    """``pace`` in a day; ``now`` in Unix seconds."""
    left, at_end, spent_at = budget.amount - used, None, None
    if window.end != inf:
        at_end = used + round(pace * (window.end - now) / 86_400)
    if left > 0 and pace > 0:
        moment = now + left / pace * 86_400
        spent_at = moment if moment < min(window.end, now + LONGEST) else None
    return Standing(budget, window, used, pace, spent_at, at_end)


async def used_in(admin: Admin, keys: Mapping[str, Period], now: int) -> Mapping[str, Spent]:
    """Key → what it has used in the window of its period that ``now`` (milliseconds) is in."""
    periods = list(dict.fromkeys(keys.values()))
    found = await admin.reports.spent("key", keys, [span_of(period, now) for period in periods])
    return {
        key: found[key][periods.index(period)] if key in found else Spent()
        for key, period in keys.items()
    }


def span_of(period: Period, now: int) -> tuple[int, int]:
    """The window of a period as the books are asked for it: nothing is later than today."""
    window, tomorrow = window_at(period, now / 1000), now // DAY * DAY + DAY
    return round(window.start * 1000), min(
        tomorrow, tomorrow if window.end == inf else round(window.end * 1000)
    )


def amount(spent: Spent, unit: str) -> int:
    """In the unit of a budget."""
    return spent.tokens if unit == "tokens" else spent.nanos
