"""What the counters in memory promise beyond the contract: bounded memory."""

from __future__ import annotations

from passy_plugins.stores.buckets import SECOND, Buckets
from passy_proxy.stores import Claim
from passy_proxy.units import Rate


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def test_a_hundred_thousand_keys_leave_only_those_not_full_again() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    most = 0
    for number in range(100_000):
        clock.now += SECOND // 1_000
        buckets.take([Claim(f"key {number}", Rate(60, 60), 1)])
        most = max(most, len(buckets))
    assert 1_000 <= most <= 2_100  # a thousand keys a second, each full again after a second


def test_refused_claims_of_many_keys_leave_nothing_for_good() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    for number in range(10_000):
        buckets.take([Claim(f"key {number}", Rate(1, 60), 2)])
    assert len(buckets) <= 2


def test_a_counter_in_use_is_not_dropped() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    claim = Claim("used", Rate(10, 3_600), 10)
    assert buckets.take([claim]).admitted
    for number in range(10_000):
        buckets.take([Claim(f"key {number}", Rate(60, 60), 1)])
    assert not buckets.take([Claim("used", claim.limit, 1)]).admitted


def test_slots_given_back_leave_nothing() -> None:
    buckets = Buckets()
    for number in range(100):
        grant = buckets.take([Claim(f"key {number}", 3, 1)])
        buckets.settle(grant, [None])
    assert 0 == len(buckets)


def test_the_queue_of_those_who_never_come_back_ends() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    claim = Claim("key", Rate(1, 1), 1)
    buckets.take([claim])
    told = [buckets.take([claim]).rooms[0].retry for _ in range(10_000)]
    assert 1 == told[0]
    assert 120 == told[-1]
    clock.now += SECOND
    assert buckets.take([claim]).admitted
