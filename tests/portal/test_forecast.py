"""What a month will have cost, how providers do, and what each kind of token did cost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from passy_plugins.stores.sql.kinds import Kinds, kinds_of, rates_of
from passy_plugins.stores.sql.reports import Group, Pace, Sums
from passy_plugins.stores.sql.sums import BOUNDS
from passy_portal.forecast import Forecast, forecast
from passy_portal.health import Health, of_attempts
from passy_proxy.listing import Rates, Tier
from passy_proxy.prices import Price
from passy_proxy.records import AttemptRecord, Usage

DAY = 86_400_000
NOON = int(datetime(2026, 11, 10, 12, tzinfo=UTC).timestamp() * 1000)
TODAY = NOON // DAY * DAY


@pytest.mark.parametrize(
    ("by_day", "told"),
    [
        ({}, Forecast(0, 0, None, 0, None)),
        ({TODAY: 50}, Forecast(50, 50, None, 0, None)),
        # One whole day of 100: today is short of it by 50, and 20 days follow.
        ({TODAY - DAY: 100, TODAY: 50}, Forecast(50, 150, 100, 1, 150 + 50 + 2_000)),
        # A day on which nothing was asked is one of them; today has more than the mean already.
        (
            {TODAY - 3 * DAY: 300, TODAY - DAY: 0, TODAY: 500},
            Forecast(500, 800, 100, 3, 800 + 2_000),
        ),
        # Days of the month before are for the mean alone.
        ({TODAY - 12 * DAY: 10**6, TODAY: 1}, Forecast(1, 1, None, 0, None)),
    ],
)
def test_a_forecast_goes_on_as_the_last_whole_days_did(
    by_day: dict[int, int], told: Forecast
) -> None:
    assert told == forecast(by_day, NOON)


def tried(failure: str, upstream: str = "a", ms: int = 10) -> AttemptRecord:
    return AttemptRecord(upstream, "m", 503 if failure else 200, failure, 0, ms, False)


@pytest.mark.parametrize(
    ("failures", "state"),
    [
        ([""], "good"),
        ([""] * 20 + ["status: 500"], "good"),
        ([""] * 18 + ["status: 500"], "shaky"),
        (["status: 500", ""], "failing"),
        (["ejected: it failed too often", "", "", ""], "left alone"),
        (["", "ejected: it failed too often", ""], "shaky"),
    ],
)
def test_a_providers_health_is_that_of_its_last_attempts(failures: list[str], state: str) -> None:
    [health] = of_attempts([(1000, [tried(failure)]) for failure in failures], {"a": "ours"})
    assert ("ours", state) == (health.upstream, health.state)
    assert (len(failures), sum(map(bool, failures))) == (health.tries, health.failed)


def test_an_attempt_that_another_made_good_is_one_that_failed() -> None:
    told = of_attempts([(9000, [tried("status: 503"), tried("", "b", 20)])], {})
    assert told == [
        Health("a", "failing", 1, 1, None, None, "status: 503"),
        Health("b", "good", 1, 0, 20, 9.0, ""),
    ]


RATES = Rates(0, 2_500 * 10**9, 10_000 * 10**9, 1_250 * 10**9, 3_000 * 10**9, 12_345 * 10**9,
              40_000 * 10**9, 80_000 * 10**9)  # fmt: skip


def booked(price: Price, usages: list[Usage]) -> Group:
    """The sums of what they are booked with."""
    names = Usage._fields[:-1]
    told = {name: sum(getattr(usage, name) for usage in usages) for name in names}
    cost = sum(price.cost(usage) for usage in usages)
    return Group(None, (price.text,), Sums(requests=len(usages), cost_nanos=cost, **told))


def test_kinds_of_tokens_are_told_exactly_and_come_to_the_whole() -> None:
    price = Price([Tier(-1, RATES)], "a list")
    usages = [Usage(100 + n, 50 + n, n, n % 7, n % 5, n % 3, n % 2) for n in range(40)]
    group = booked(price, usages)
    kinds = kinds_of([group])
    assert kinds.unknown == 0
    assert group.sums.cost_nanos == sum(kinds)
    assert sum(usage.cached for usage in usages) * 1250 == kinds.cached
    assert sum(usage.reasoning for usage in usages) * 12_345 == kinds.reasoning


def test_what_is_not_exact_is_not_told() -> None:
    dear = RATES._replace(input=9_000 * 10**9)
    price = Price([Tier(-1, RATES), Tier(1_000, dear)], "a list")
    group = booked(price, [Usage(10, 10), Usage(5_000, 10)])
    assert Kinds(unknown=group.sums.cost_nanos) == kinds_of([group])
    twice = Price([Tier(-1, RATES)], "a list")  # Heard, and cached.
    assert kinds_of([booked(twice, [Usage(10, 1, 10, 0, 0, 10)])]).unknown
    for text in ("", "free", "late", "x in, 2 out per 1M (a list)"):
        assert Kinds(unknown=7) == kinds_of([Group(None, (text,), Sums(requests=1, cost_nanos=7))])
        assert rates_of(text) is None


def test_a_fee_for_each_request_is_a_kind_of_its_own() -> None:
    price = Price([Tier(-1, RATES._replace(request=10**16))], "a list")
    assert "0.01 a request" in price.text
    kinds = kinds_of([booked(price, [Usage(3, 4), Usage(5, 6)])])
    assert (2 * 10**7, 8 * 2500, 10 * 10_000) == (kinds.requests, kinds.input, kinds.output)


def test_a_percentile_lies_between_the_bounds_that_were_counted() -> None:
    within = [0] * len(BOUNDS)
    assert Pace(0, within).percentile(0.5) is None
    for place, bound in enumerate(BOUNDS):
        within[place] = 10 if bound >= 250 else 0
    assert 200 == Pace(10, within).percentile(0.5)
    assert BOUNDS[-1] == Pace(10, [0] * len(BOUNDS)).percentile(0.5)
