"""How budgets stand: what is used of each by the books, how fast it goes, and when it is spent.

The pace is the average of the last seven days. It says when a budget is spent if all goes on like
that, and nothing of what comes otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from passy_plugins.stores.sql.reports import Asked, Dimension, Sums
from passy_proxy.issue import Kind, StoredBudget
from passy_proxy.periods import Window, window_at
from passy_proxy.records import Budget

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

HOUR, DAY = 3_600_000, 86_400_000
"""Milliseconds."""
DAYS = 7
"""That the pace is an average of."""
FEW = 4
"""Subjects that are asked for one by one."""
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


async def standings(
    admin: Admin, organisation: str, budgets: Sequence[StoredBudget], now: int
) -> dict[str, Standing]:
    """Budget → how it stands ``now``, in milliseconds. They are all of one organisation."""
    moment, hour = now / 1000, now // HOUR * HOUR
    recent = Window("recent", (hour - DAYS * DAY) / 1000, hour / 1000)
    found: dict[tuple[Kind, Window], Mapping[str, Sums]] = {}
    wanted: dict[tuple[Kind, Window], set[str]] = {}
    for one in budgets:
        for window in (window_at(one.budget.period, moment), recent):
            wanted.setdefault((one.kind, window), set()).add(one.subject)
    for (kind, window), subjects in wanted.items():
        found[kind, window] = await sums_of(admin, organisation, kind, subjects, window, now)
    told = {}
    for one in budgets:
        window = window_at(one.budget.period, moment)
        nothing = Sums()
        used = amount(found[one.kind, window].get(one.subject, nothing), one.budget.unit)
        week = amount(found[one.kind, recent].get(one.subject, nothing), one.budget.unit)
        pace = week // DAYS
        told[one.budget.id] = standing(one.budget, window, used, pace, moment)
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


async def sums_of(
    admin: Admin, organisation: str, kind: Kind, subjects: Iterable[str], window: Window, now: int
) -> Mapping[str, Sums]:
    """Subject → what it came to in a window, until ``now``. A user's is that of all organisations,
    as budgets count it."""
    dimension: Dimension = kind
    wanted = set(subjects)
    begin = round(window.start * 1000)
    end = min(now // DAY * DAY + DAY, now + DAY if window.end == inf else round(window.end * 1000))
    if kind in ("organisation", "user") or len(wanted) <= FEW:
        return {
            subject: await admin.reports.totals(Asked(begin, end, {dimension: subject}))
            for subject in wanted
        }
    asked = Asked(begin, end, {"organisation": organisation})
    found: dict[str, Sums] = {}
    async for groups in admin.reports.all_groups(asked, "total", [dimension], "time"):
        found |= {group.by[0]: group.sums for group in groups if group.by[0] in wanted}
    return found


def amount(sums: Sums, unit: str) -> int:
    """In the unit of a budget."""
    return sums.tokens if unit == "tokens" else sums.cost_nanos
