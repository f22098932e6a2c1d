"""What limits would have refused: against exact arithmetic that knows no counters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import pytest

from passy_portal.replay import Past, replayed
from passy_proxy.periods import window_at
from passy_proxy.records import Budget, Limits
from passy_proxy.units import Rate

BEGAN = 1_790_000_000_000


class Exact:
    """The long way: for each request all that was admitted before it, in fractions."""

    def __init__(self, limits: Limits, budgets: Sequence[Budget], before: dict[str, int]) -> None:
        self.limits = limits
        self.rates = {
            name: rate
            for name, rate in (("requests", limits.requests), ("tokens", limits.tokens))
            if rate
        }
        self.budgets = budgets
        self.before = before
        self.levels = dict.fromkeys(self.rates, Fraction(0))
        self.last = self.first = 0
        self.admitted: list[Past] = []
        self.owing: list[tuple[int, int]] = []
        """When a request that took less than it used ends, and how much more it owes then."""

    def asked(self, past: Past) -> list[str]:
        """What refuses it."""
        if not self.first:
            self.first = self.last = past.at
        self.pass_time(past.at)
        over = self.over(past)
        if over:
            return over
        if over := [each.id for each in self.budgets if self.spent(each, past)]:
            # A budget comes after the rates: the request is counted, and its tokens are given back.
            self.count("requests", 1)
            return over
        self.admitted.append(past)
        self.count("requests", 1)
        if rate := self.rates.get("tokens"):
            taken = min(past.tokens, rate.amount)
            self.count("tokens", taken)
            if past.tokens > taken:
                self.owing.append((past.at + past.duration, past.tokens - taken))
        return []

    def pass_time(self, at: int) -> None:
        for moment in sorted({end for end, _ in self.owing if end <= at} | {at}):
            for name, rate in self.rates.items():
                gone = Fraction(moment - self.last, 1000) * rate.amount / Fraction(rate.seconds)
                self.levels[name] = max(Fraction(0), self.levels[name] - gone)
            self.last = moment
            for end, more in [each for each in self.owing if each[0] <= moment]:
                self.owing.remove((end, more))
                most = Fraction(2 * self.rates["tokens"].amount)
                self.levels["tokens"] = min(self.levels["tokens"] + more, most)

    def over(self, past: Past) -> list[str]:
        wants = {"requests": 1, "tokens": past.tokens}
        found = [
            name
            for name, rate in self.rates.items()
            if self.levels[name] + min(wants[name], rate.amount) > rate.amount
        ]
        running = sum(one.at + one.duration > past.at for one in self.admitted)
        most = self.limits.concurrency
        return [*found, "concurrency"] if most is not None and running + 1 > most else found

    def spent(self, budget: Budget, past: Past) -> bool:
        """Whether a budget has too little left."""

        def cost(one: Past) -> int:
            return one.tokens if budget.unit == "tokens" else one.nanos

        window = window_at(budget.period, past.at / 1000)
        spent = sum(
            cost(one) for one in self.admitted if window.start <= one.at / 1000 < window.end
        )
        if window == window_at(budget.period, self.first / 1000):
            spent += self.before.get(budget.id, 0)
        return bool(cost(past)) and budget.hard and spent + cost(past) > budget.amount

    def count(self, name: str, more: int) -> None:
        if name in self.levels:
            self.levels[name] += more


def traffic(seed: int, count: int = 250) -> list[Past]:
    chance, at, made = random.Random(seed), BEGAN, []
    for _ in range(count):
        at += chance.choice((0, 1, 7, 900, 4_000, 61_000, 3_600_000))
        nanos = chance.choice((0, 1, 10**6, 10**9))
        made.append(Past(at, chance.randrange(0, 900), nanos, chance.randrange(0, 9_000)))
    return made


LIMITS = [
    Limits(Rate(5, 60.0)),
    Limits(tokens=Rate(1_000, 60.0)),
    Limits(tokens=Rate(500, 10.0)),  # Less than some requests use.
    Limits(concurrency=2),
    Limits(Rate(3, 1.0), Rate(2_000, 60.0), 3),
]
BUDGETS = [
    (),
    (Budget("bud_day", "usd", 9 * 10**9, "day"), Budget("bud_total", "tokens", 90_000, "total")),
    (Budget("bud_soft", "usd", 1, "day", False), Budget("bud_week", "tokens", 20_000, "week")),
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("budgets", BUDGETS, ids=len)
def test_a_replay_agrees_with_exact_arithmetic(limits: Limits, budgets: tuple[Budget, ...]) -> None:
    before = {"bud_day": 2 * 10**9, "bud_total": 1_000}
    for seed in range(2):
        requests = traffic(seed)
        exact = Exact(limits, budgets, before)
        wanted = [over for past in requests if (over := exact.asked(past))]
        told = replayed(requests, limits, budgets, before)
        assert (len(requests), len(wanted)) == (told.asked, told.refused)
        assert len(wanted) == sum(told.by.values())
        assert set(told.by) <= {name for each in wanted for name in each}
        if not budgets:
            assert wanted, "nothing was tried"


def test_nothing_is_refused_without_limits_and_all_by_a_budget_of_nothing() -> None:
    requests = [Past(BEGAN + n, 10, 5, 1) for n in range(20)]
    assert 0 == replayed(requests, Limits()).refused
    nothing = Budget("bud_0", "usd", 0, "day")
    assert {"bud_0": 20} == replayed(requests, Limits(), [nothing]).by
    free = [one._replace(nanos=0) for one in requests]
    assert 0 == replayed(free, Limits(), [nothing]).refused
