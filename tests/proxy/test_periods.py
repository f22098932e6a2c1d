"""The windows of budgets: of UTC, without a gap between them, whatever a clock shows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passy_proxy.periods import PERIODS, Period, Window, window_at

MOMENTS = st.floats(0, 4_102_444_800, allow_nan=False)
"""From 1970 to 2100."""
WINDOWS = st.sampled_from([period for period in PERIODS if period != "total"])


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "moment", "name", "start", "end"),
    [
        ("day", "2026-11-26T23:59:59.999", "2026-11-26", "2026-11-26", "2026-11-27"),
        ("day", "2028-02-29T00:00:00", "2028-02-29", "2028-02-29", "2028-03-01"),
        ("day", "2026-12-31T12:00:00", "2026-12-31", "2026-12-31", "2027-01-01"),
        ("week", "2026-11-26T12:00:00", "2026-W48", "2026-11-23", "2026-11-30"),
        ("week", "2027-01-03T23:59:59", "2026-W53", "2026-12-28", "2027-01-04"),
        ("week", "2024-12-30T00:00:00", "2025-W01", "2024-12-30", "2025-01-06"),
        ("month", "2026-01-31T23:59:59", "2026-01", "2026-01-01", "2026-02-01"),
        ("month", "2028-02-29T12:00:00", "2028-02", "2028-02-01", "2028-03-01"),
        ("month", "2026-12-31T23:59:59", "2026-12", "2026-12-01", "2027-01-01"),
        # Europe and America set their clocks on these days; UTC does not.
        ("day", "2026-03-29T01:30:00", "2026-03-29", "2026-03-29", "2026-03-30"),
        ("day", "2026-11-01T06:30:00", "2026-11-01", "2026-11-01", "2026-11-02"),
        # Where 32 bits of seconds end.
        ("month", "2038-01-19T03:14:08", "2038-01", "2038-01-01", "2038-02-01"),
    ],
)
def test_O8_a_window_is_of_utc(
    period: Period, moment: str, name: str, start: str, end: str
) -> None:
    assert Window(name, at(start), at(end)) == window_at(period, at(moment))


def test_O8_the_total_has_one_window() -> None:
    assert {Window("total", 0.0, inf)} == {window_at("total", moment) for moment in (0, 1e9, 9e9)}


@given(WINDOWS, MOMENTS)
def test_O8_every_moment_lies_in_its_window(period: Period, moment: float) -> None:
    window = window_at(period, moment)
    assert window.start <= moment < window.end
    assert window == window_at(period, window.start)


@given(WINDOWS, MOMENTS)
def test_O8_windows_follow_each_other_without_a_gap(period: Period, moment: float) -> None:
    window = window_at(period, moment)
    following = window_at(period, window.end)
    assert window.end == following.start
    assert window.name != following.name
    before = window_at(period, window.start - 0.001) if window.start else None
    assert before is None or before.end == window.start


@given(WINDOWS, MOMENTS, MOMENTS)
def test_O8_a_later_moment_is_never_in_an_earlier_window(
    period: Period, one: float, other: float
) -> None:
    first, second = sorted((one, other))
    assert window_at(period, first).end <= window_at(period, second).end
    same = window_at(period, first).name == window_at(period, second).name
    assert same == (window_at(period, first) == window_at(period, second))


@given(MOMENTS, st.lists(st.tuples(MOMENTS, st.integers(0, 1000)), max_size=30))
def test_O8_the_sums_of_days_are_the_sum_of_their_month(
    moment: float, spent: list[tuple[float, int]]
) -> None:
    month = window_at("month", moment)
    inside = [(when, cost) for when, cost in spent if month.start <= when < month.end]
    days: dict[str, int] = {}
    for when, cost in inside:
        day = window_at("day", when)
        assert month.start <= day.start < day.end <= month.end
        days[day.name] = days.get(day.name, 0) + cost
    assert sum(cost for _, cost in inside) == sum(days.values())


@given(MOMENTS)
def test_O8_weeks_begin_on_monday(moment: float) -> None:
    window = window_at("week", moment)
    assert 0 == datetime.fromtimestamp(window.start, UTC).weekday()
    assert 7 * 86_400 == window.end - window.start


@pytest.fixture(params=["America/New_York", "Pacific/Kiritimati", "Europe/Berlin"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield request.param
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_O8_the_gateways_own_time_zone_changes_nothing(zone: str) -> None:
    # Others than above: what was asked for before is remembered.
    for day in range(1, 28):
        moment = at(f"2031-03-{day:02}T23:30:00")
        assert f"2031-03-{day:02}" == window_at("day", moment).name
