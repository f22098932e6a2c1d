"""What other limits would have refused: the requests of a while, taken from the books and put
through the counters that a gateway holds limits with, one by one, on the clock of that time.

What the books cannot tell makes the bound of it. Each request is counted with the tokens and the
cost that it came to, while a gateway reserves a guess first and gives back the rest: close to its
limit it may refuse a few more. Nobody asks again after a refusal. And only limits of the one level
are tried, whatever those above and below it had done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import or_, select

from passy_plugins.stores.buckets import Buckets
from passy_plugins.stores.sql.counted import column_of
from passy_plugins.stores.sql.reports import Asked, Dimension
from passy_plugins.stores.sql.schema import usage
from passy_proxy.periods import Window, window_at
from passy_proxy.records import Budget, Limits
from passy_proxy.stores import Allowance, Claim, Grant

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

WEEK = 7 * 86_400_000
"""Milliseconds that are looked at."""
MOST = 10_000
"""Requests that are replayed; of more, the latest."""
REFUSED = ("rate_limit_exceeded", "insufficient_quota")
"""Outcomes of requests that a limit refused when they came: they are asked again."""
MILLI = 1_000_000
"""Nanoseconds."""
LEASE = 1e9
"""Seconds: nobody is killed here."""


class Past(NamedTuple):
    """One request. What was refused when it came has used nothing."""

    at: int
    """Milliseconds of Unix time."""
    tokens: int
    nanos: int
    """Billionths of a dollar; 0 without a known price."""
    duration: int
    """Milliseconds."""


@dataclass(slots=True)
class Refusals:
    """What came of a replay."""

    asked: int = 0
    refused: int = 0
    by: dict[str, int] = field(default_factory=dict)
    """``requests``, ``tokens``, ``concurrency`` or a budget's id → how many it refused, of those
    that it was the first to refuse."""


@dataclass(frozen=True, slots=True)
class History:
    """The requests of one level, first to last."""

    requests: Sequence[Past]
    since: int
    """Milliseconds: where it begins."""
    whole: bool
    """All that came since then are there; else only the latest `MOST`."""


async def history(admin: Admin, dimension: Dimension, subject: str, now: int) -> History:
    """Of the last `WEEK` before ``now`` (milliseconds)."""
    column = usage.c[column_of(dimension)]
    used = usage.c.input + usage.c.output
    reached = or_(usage.c.upstream != "", usage.c.outcome.in_(REFUSED))
    wanted = (
        select(usage.c.at, used, usage.c.cost_nanos, usage.c.duration_ms)
        .where(column == subject, column != "", usage.c.at >= now - WEEK, usage.c.at < now, reached)
        .order_by(usage.c.at.desc(), usage.c.id.desc())
        .limit(MOST + 1)
    )
    async with admin.connected() as connection:
        rows = (await connection.execute(wanted)).all()
    found = [Past(at, tokens, nanos or 0, took) for at, tokens, nanos, took in rows[:MOST]]
    found.reverse()
    whole = len(rows) <= MOST
    return History(found, now - WEEK if whole else found[0].at, whole)


async def spent_before(
    admin: Admin, dimension: Dimension, subject: str, budgets: Iterable[Budget], since: int
) -> Mapping[str, int]:
    """Budget → what was spent in its window when the replay begins, as the books have it."""
    found: dict[Window, tuple[int, int]] = {}
    spent = {}
    for budget in budgets:
        window = window_at(budget.period, since / 1000)
        if window not in found:
            asked = Asked(round(window.start * 1000), since, {dimension: subject})
            sums = await admin.reports.totals(asked)
            found[window] = (sums.cost_nanos, sums.tokens)
        spent[budget.id] = found[window][budget.unit == "tokens"]
    return spent


def replayed(
    requests: Sequence[Past],
    limits: Limits,
    budgets: Sequence[Budget] = (),
    before: Mapping[str, int] | None = None,
) -> Refusals:
    """``before``: what was spent of each budget when the first of ``requests`` came."""
    clock = [0]
    counters = Buckets(lambda: clock[0])
    rates = {"tokens": limits.tokens, "requests": limits.requests}
    held = {name: limit for name, limit in rates.items() if limit is not None}
    hard = [budget for budget in budgets if budget.hard]
    windows: dict[str, tuple[Window, Allowance]] = {}
    running: list[tuple[int, int, Grant, list[int]]] = []
    serial, told = count(), Refusals()
    spent = dict(before or {})
    for past in requests:
        while running and running[0][0] <= past.at:
            ended, _, grant, actual = heappop(running)
            clock[0] = ended * MILLI
            counters.settle(grant, actual)
        clock[0] = past.at * MILLI
        told.asked += 1
        claims = [
            Claim(name, rate, min(past.tokens, rate.amount) if name == "tokens" else 1)
            for name, rate in held.items()
        ]
        if limits.concurrency is not None:
            claims.append(Claim("concurrency", limits.concurrency, 1))
        grant = counters.take(claims)
        if not grant.admitted:
            refused(told, claims, grant)
            continue
        taken = []
        for budget in hard:
            if cost := past.tokens if budget.unit == "tokens" else past.nanos:
                limit = allowance(budget, past.at, windows, spent, counters)
                taken.append(Claim(budget.id, limit, cost))
        paid = counters.take(taken)
        if not paid.admitted:
            refused(told, taken, paid)
            counters.settle(grant, [0] if "tokens" in held else [])
            continue
        end = past.at + past.duration
        heappush(running, (end, next(serial), grant, [past.tokens] if "tokens" in held else []))
        heappush(running, (end, next(serial), paid, [claim.cost for claim in taken]))
    return told


def allowance(
    budget: Budget,
    at: int,
    windows: dict[str, tuple[Window, Allowance]],
    spent: dict[str, int],
    counters: Buckets,
) -> Allowance:
    """Of the window that ``at`` is in; its counter is told what was spent there before."""
    known = windows.get(budget.id)
    if known is None or not known[0].start <= at / 1000 < known[0].end:
        window = window_at(budget.period, at / 1000)
        limit = Allowance(budget.amount, window.name, window.end, True, LEASE)
        counters.prime(budget.id, limit, spent.pop(budget.id, 0))
        known = windows[budget.id] = (window, limit)
    return known[1]


def refused(told: Refusals, claims: Sequence[Claim], grant: Grant) -> None:
    """By the claim that has to wait longest, which is the one that a client is told of."""
    told.refused += 1
    pairs = [(room.retry, claim.key) for claim, room in zip(claims, grant.rooms, strict=True)]
    longest = max((retry for retry, _ in pairs), default=inf)
    name = next(name for retry, name in pairs if retry == longest)
    told.by[name] = told.by.get(name, 0) + 1
