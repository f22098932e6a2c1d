"""What every `Counters` promises. A store passes by subclassing `CountersContract`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import count
from math import ceil, floor, inf
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from harness.valkey import Cluster, Valkey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from passy_plugins.stores.memory import Memory, MemorySettings
from passy_plugins.stores.redis import Redis, RedisSettings
from passy_proxy.board import Board
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site
from passy_proxy.stores import Allowance, Claim, Counters, Grant, Now, Store
from passy_proxy.units import LONGEST, Rate

pytestmark = pytest.mark.anyio

T = TypeVar("T")
SECOND = 1_000_000_000
TEN_A_SECOND = Rate(10, 1)


def allowance(amount: int = 100, ends: float = 2e9, **others: Any) -> Allowance:
    return Allowance(amount, f"until {ends}", ends, **{"hard": True, "lease": 60.0} | others)


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 7 * SECOND

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += ceil(seconds * SECOND)


class Asked:
    """A store of which each answer is awaited, whether it is there at once or later."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    async def start(self) -> None:
        if isinstance(self._counters, Store):
            await self._counters.start()

    async def stop(self) -> None:
        if isinstance(self._counters, Store):
            await self._counters.stop()

    async def take(self, claims: Sequence[Claim]) -> Grant:
        return await answered(self._counters.take(claims))

    async def settle(self, grant: Grant, actual: Sequence[int | None]) -> None:
        await answered(self._counters.settle(grant, actual))
        await asyncio.sleep(0)  # A store may say it at the end of this turn of the loop.

    async def prime(self, key: str, limit: Allowance, used: int, quiet: float = inf) -> None:
        await answered(self._counters.prime(key, limit, used, quiet))


async def answered(answer: Now[T]) -> T:
    return await answer if isinstance(answer, Awaitable) else answer


class CountersContract:
    """Override `counters`; the store must take its time from the clock it is given."""

    unit = 1
    """Nanoseconds of the smallest step of time that it sees."""

    def counters(self, clock: Clock) -> Counters:
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    async def store(self, clock: Clock) -> AsyncIterator[Asked]:
        store = Asked(self.counters(clock))
        await store.start()
        yield store
        await store.stop()

    async def test_of_a_thousand_at_once_exactly_the_limit_is_admitted(self, store: Asked) -> None:
        admitted = []

        async def one() -> None:
            grant = await store.take([Claim("key", Rate(100, 60), 1)])
            admitted.append(grant.admitted)

        async with anyio.create_task_group() as group:
            for _ in range(1_000):
                group.start_soon(one)
        assert 1_000 == len(admitted)
        assert 100 == sum(admitted)

    async def test_a_refused_take_takes_from_no_counter(self, store: Asked) -> None:
        wide, narrow, slots = Rate(10, 1), Rate(2, 1), 5
        await store.take([Claim("narrow", narrow, 2)])
        claims = [Claim("wide", wide, 4), Claim("slots", slots, 1), Claim("narrow", narrow, 1)]
        refused = await store.take(claims)
        assert not refused.admitted
        assert [10, 5, 0] == [room.remaining for room in refused.rooms]
        assert [True, True, False] == [room.retry == 0 for room in refused.rooms]
        left = await store.take([Claim("wide", wide, 10), Claim("slots", slots, 5)])
        assert left.admitted

    async def test_one_key_claimed_twice_counts_twice(self, store: Asked) -> None:
        twice = [Claim("key", TEN_A_SECOND, 6)] * 2
        assert not (await store.take(twice)).admitted
        assert (await store.take(twice[:1])).admitted

    async def test_a_rate_refills_continuously(self, store: Asked, clock: Clock) -> None:
        claim = Claim("key", Rate(60, 60), 1)
        assert (await store.take([Claim("key", Rate(60, 60), 60)])).admitted
        clock.advance(0.999)
        assert not (await store.take([claim])).admitted
        clock.advance(0.001)
        assert (await store.take([claim])).admitted
        clock.advance(30)
        assert 29 == (await store.take([claim])).rooms[0].remaining

    async def test_it_never_holds_more_than_its_amount(self, store: Asked, clock: Clock) -> None:
        await store.take([Claim("key", TEN_A_SECOND, 1)])
        clock.advance(1_000_000)
        assert not (await store.take([Claim("key", TEN_A_SECOND, 11)])).admitted
        assert (await store.take([Claim("key", TEN_A_SECOND, 10)])).admitted

    async def test_a_client_that_waits_as_told_is_admitted(
        self, store: Asked, clock: Clock
    ) -> None:
        claims = [Claim("requests", Rate(7, 3), 2), Claim("tokens", Rate(100_000, 60), 30_001)]
        waits = 0
        for _ in range(50):
            grant = await store.take(claims)
            if not grant.admitted:
                waits += 1
                clock.advance(max(room.retry for room in grant.rooms))
                assert (await store.take(claims)).admitted
        assert waits > 10

    async def test_of_a_crowd_that_waits_as_told_everyone_is_admitted(
        self, store: Asked, clock: Clock
    ) -> None:
        claim = Claim("key", Rate(120, 60), 1)
        returns = []
        for client in range(300):
            grant = await store.take([claim])
            if not grant.admitted:
                returns.append((clock.now + ceil(grant.rooms[0].retry * SECOND), client))
        assert 180 == len(returns)
        for due, _ in sorted(returns):
            clock.now = due
            assert (await store.take([claim])).admitted

    async def test_after_reset_seconds_it_is_full(self, store: Asked, clock: Clock) -> None:
        for cost in (3, 1, 5):
            grant = await store.take([Claim("key", TEN_A_SECOND, cost)])
            clock.advance(0.05)
        assert grant.rooms[0].reset > 0
        clock.advance(grant.rooms[0].reset - 0.05)
        assert (await store.take([Claim("key", TEN_A_SECOND, 10)])).admitted

    async def test_what_can_never_fit_is_told_so(self, store: Asked) -> None:
        for limit in (TEN_A_SECOND, 10, Rate(0, 60), 0):
            grant = await store.take([Claim(f"key {limit}", limit, 11)])
            assert not grant.admitted
            assert inf == grant.rooms[0].retry

    async def test_what_was_not_used_is_given_back(self, store: Asked) -> None:
        grant = await store.take([Claim("key", TEN_A_SECOND, 10)])
        await store.settle(grant, [3])
        assert 6 == (await store.take([Claim("key", TEN_A_SECOND, 1)])).rooms[0].remaining

    async def test_what_was_used_beyond_is_owed(self, store: Asked, clock: Clock) -> None:
        grant = await store.take([Claim("key", TEN_A_SECOND, 5)])
        await store.settle(grant, [15])
        refused = await store.take([Claim("key", TEN_A_SECOND, 1)])
        assert (False, 0) == (refused.admitted, refused.rooms[0].remaining)
        assert pytest.approx(0.6) == refused.rooms[0].retry
        clock.advance(0.6)
        assert (await store.take([Claim("key", TEN_A_SECOND, 1)])).admitted

    async def test_a_debt_is_never_deeper_than_one_amount(self, store: Asked, clock: Clock) -> None:
        grant = await store.take([Claim("key", TEN_A_SECOND, 1)])
        await store.settle(grant, [10**15])
        clock.advance(2)
        assert (await store.take([Claim("key", TEN_A_SECOND, 10)])).admitted

    async def test_a_negative_use_gives_back_no_more_than_was_taken(self, store: Asked) -> None:
        await store.take([Claim("key", TEN_A_SECOND, 5)])
        grant = await store.take([Claim("key", TEN_A_SECOND, 1)])
        await store.settle(grant, [-1_000])
        assert 4 == (await store.take([Claim("key", TEN_A_SECOND, 1)])).rooms[0].remaining

    async def test_none_leaves_the_cost_as_it_was_taken(self, store: Asked) -> None:
        grant = await store.take([Claim("key", TEN_A_SECOND, 5)])
        await store.settle(grant, [None])
        assert 4 == (await store.take([Claim("key", TEN_A_SECOND, 1)])).rooms[0].remaining

    async def test_what_is_not_said_of_the_last_claims_stays_as_taken(self, store: Asked) -> None:
        claims = [Claim("key", TEN_A_SECOND, 5), Claim("other", TEN_A_SECOND, 4), Claim("s", 1, 1)]
        await store.settle(await store.take(claims), [2])
        again = await store.take(claims)
        assert [3, 2, 0] == [room.remaining for room in again.rooms]

    async def test_a_late_settle_counts_though_the_counter_was_long_full(
        self, store: Asked, clock: Clock
    ) -> None:
        grant = await store.take([Claim("key", TEN_A_SECOND, 1)])
        clock.advance(3_600)
        for other in range(100):
            await store.take([Claim(f"other {other}", TEN_A_SECOND, 1)])
        await store.settle(grant, [9])
        assert 1 == (await store.take([Claim("key", TEN_A_SECOND, 1)])).rooms[0].remaining

    async def test_a_slot_comes_back_at_settle(self, store: Asked) -> None:
        first = await store.take([Claim("slots", 2, 1)])
        second = await store.take([Claim("slots", 2, 1)])
        refused = await store.take([Claim("slots", 2, 1)])
        assert [1, 0, 0] == [grant.rooms[0].remaining for grant in (first, second, refused)]
        assert not refused.admitted
        assert 0 < refused.rooms[0].retry < inf
        await store.settle(first, [None])
        assert (await store.take([Claim("slots", 2, 1)])).admitted

    async def test_a_grant_is_settled_once(self, store: Asked) -> None:
        claims = [Claim("slots", 2, 1), Claim("rate", TEN_A_SECOND, 4)]
        first = await store.take(claims)
        await store.take(claims)
        for _ in range(3):
            await store.settle(first, [None, 0])
        again = await store.take(claims)
        assert [0, 2] == [room.remaining for room in again.rooms]

    async def test_settling_a_refused_grant_changes_nothing(self, store: Asked) -> None:
        await store.take([Claim("slots", 1, 1)])
        claims = [Claim("rate", TEN_A_SECOND, 4), Claim("slots", 1, 1)]
        refused = await store.take(claims)
        await store.settle(refused, [0, None])
        still = await store.take(claims)
        assert (False, [10, 0]) == (still.admitted, [room.remaining for room in still.rooms])

    async def test_a_changed_limit_keeps_what_was_used(self, store: Asked) -> None:
        await store.take([Claim("key", Rate(10, 60), 8)])
        grant = await store.take([Claim("key", Rate(20, 1), 2)])
        assert (20, 10) == (grant.rooms[0].limit, grant.rooms[0].remaining)
        assert not (await store.take([Claim("key", Rate(5, 1), 1)])).admitted

    async def test_an_allowance_nobody_counted_decides_nothing(self, store: Asked) -> None:
        claims = [
            Claim("rate", TEN_A_SECOND, 4),
            Claim("slots", 1, 1),
            Claim("budget", allowance(), 1),
            Claim("other", allowance(), 1),
        ]
        grant = await store.take(claims)
        assert (False, claims[2:]) == (grant.admitted, list(grant.unknown))
        await store.prime("budget", allowance(), 0)
        assert [claims[3]] == list((await store.take(claims)).unknown)
        await store.prime("other", allowance(), 99)
        grant = await store.take(claims)
        assert (True, []) == (grant.admitted, list(grant.unknown))
        assert [6, 0, 99, 0] == [room.remaining for room in grant.rooms]

    async def test_an_unknown_allowance_is_told_though_another_claim_refuses(
        self, store: Asked
    ) -> None:
        claims = [Claim("slots", 0, 1), Claim("budget", allowance(), 1)]
        assert claims[1:] == list((await store.take(claims)).unknown)
        assert claims[1:] == list((await store.take(claims[::-1])).unknown)

    async def test_L3_of_a_thousand_at_once_exactly_the_allowance_is_admitted(
        self, store: Asked
    ) -> None:
        await store.prime("budget", allowance(100), 50)
        admitted = []

        async def one() -> None:
            grant = await store.take([Claim("budget", allowance(100), 1)])
            admitted.append(grant.admitted)
            if len(admitted) % 2:
                await store.settle(grant, [1])

        async with anyio.create_task_group() as group:
            for _ in range(1_000):
                group.start_soon(one)
        assert (1_000, 50) == (len(admitted), sum(admitted))

    async def test_an_allowance_does_not_refill_within_its_window(
        self, store: Asked, clock: Clock
    ) -> None:
        claim = Claim("budget", allowance(3), 3)
        await store.prime("budget", claim.limit, 0)
        await store.settle(await store.take([claim]), [3])
        clock.advance(40 * 86_400)
        refused = await store.take([Claim("budget", allowance(3), 1)])
        assert (False, 3, 0, inf) == (
            refused.admitted,
            refused.rooms[0].limit,
            refused.rooms[0].remaining,
            refused.rooms[0].retry,
        )

    async def test_L3_what_was_reserved_and_not_spent_comes_back_at_settle(
        self, store: Asked
    ) -> None:
        await store.prime("budget", allowance(), 0)
        grant = await store.take([Claim("budget", allowance(), 90)])
        assert not (await store.take([Claim("budget", allowance(), 11)])).admitted
        await store.settle(grant, [30])
        await store.settle(grant, [30])
        assert 0 == (await store.take([Claim("budget", allowance(), 70)])).rooms[0].remaining

    async def test_what_was_spent_beyond_the_reserve_counts_whole(self, store: Asked) -> None:
        await store.prime("budget", allowance(), 0)
        grant = await store.take([Claim("budget", allowance(), 10)])
        await store.settle(grant, [350])
        raised = allowance(360)
        assert not (await store.take([Claim("budget", raised, 11)])).admitted
        assert (await store.take([Claim("budget", raised, 10)])).admitted

    async def test_none_and_what_is_missing_are_spent_as_reserved(self, store: Asked) -> None:
        claims = [Claim("budget", allowance(), 10), Claim("other", allowance(), 20)]
        for claim in claims:
            await store.prime(claim.key, allowance(), 0)
        await store.settle(await store.take(claims), [None])
        assert [80, 60] == [room.remaining for room in (await store.take(claims)).rooms]

    async def test_L3_a_reserve_that_is_never_settled_comes_back_by_its_lease(
        self, store: Asked, clock: Clock
    ) -> None:
        claim = Claim("budget", allowance(100, lease=60.0), 100)
        await store.prime("budget", claim.limit, 0)
        lost = await store.take([claim])
        clock.advance(59)
        assert not (await store.take([claim])).admitted
        clock.advance(1)
        assert (await store.take([Claim("budget", allowance(), 40)])).admitted
        await store.settle(lost, [25])  # It was only slow: what it spent counts, once.
        assert 0 == (await store.take([Claim("budget", allowance(), 35)])).rooms[0].remaining

    async def test_a_refused_take_opens_nothing(self, store: Asked, clock: Clock) -> None:
        for key in ("budget", "other"):
            await store.prime(key, allowance(), 0)
        wanted = [Claim("budget", allowance(), 60), Claim("other", allowance(), 101)]
        refused = await store.take(wanted)
        assert [(100, 0.0), (100, inf)] == [(room.remaining, room.retry) for room in refused.rooms]
        await store.settle(refused, [60, 101])
        assert 0 == (await store.take([Claim("budget", allowance(), 100)])).rooms[0].remaining

    async def test_a_soft_allowance_counts_and_admits(self, store: Asked) -> None:
        soft = allowance(10, hard=False)
        await store.prime("budget", soft, 0)
        for _ in range(3):
            grant = await store.take([Claim("budget", soft, 6)])
            assert grant.admitted
            await store.settle(grant, [6])
        assert (0, 0.0) == (grant.rooms[0].remaining, grant.rooms[0].retry)
        assert not (await store.take([Claim("budget", allowance(18), 1)])).admitted

    async def test_a_new_window_is_unknown_and_begins_by_itself(self, store: Asked) -> None:
        old, new = allowance(100, ends=2e9), allowance(100, ends=2.1e9)
        await store.prime("budget", old, 0)
        late = await store.take([Claim("budget", old, 90)])
        assert list((await store.take([Claim("budget", new, 1)])).unknown)
        await store.prime("budget", new, 0)
        await store.settle(late, [90])  # It belongs to the window before.
        assert 100 == (await store.take([Claim("budget", new, 0)])).rooms[0].remaining
        await store.prime("budget", old, 100)
        behind = await store.take([Claim("budget", old, 10)])  # By a clock that is late.
        assert (True, 90) == (behind.admitted, behind.rooms[0].remaining)

    async def test_a_window_that_never_ends_is_one(self, store: Asked) -> None:
        total = allowance(100, ends=inf)
        await store.prime("budget", total, 10)
        await store.settle(await store.take([Claim("budget", total, 40)]), [40])
        assert 50 == (await store.take([Claim("budget", total, 0)])).rooms[0].remaining

    async def test_L3_a_counter_follows_the_books(self, store: Asked, clock: Clock) -> None:
        left = allowance(1_000)

        async def remaining() -> int:
            grant = await store.take([Claim("budget", left, 0)])
            return grant.rooms[0].remaining

        await store.prime("budget", left, 100)
        await store.settle(await store.take([Claim("budget", left, 50)]), [50])
        await store.prime("budget", left, 120)  # Fewer: some are on their way.
        assert 850 == await remaining()
        await store.prime("budget", left, 180)  # More: something was never settled.
        assert 820 == await remaining()
        grant = await store.take([Claim("budget", left, 7)])
        await store.prime("budget", left, 200)
        assert 793 == await remaining()  # What is open stays open beside it.
        await store.settle(grant, [0])
        clock.advance(29)
        await store.prime("budget", left, 150, quiet=30)
        assert 800 == await remaining()
        clock.advance(31)
        await store.prime("budget", left, 150, quiet=30)
        assert 850 == await remaining()

    async def test_what_a_take_that_was_cancelled_took_comes_back_at_once(
        self, store: Asked
    ) -> None:
        await store.prime("budget", allowance(), 0)
        claims = [Claim("budget", allowance(), 60), Claim("slots", 1, 1)]
        taking = asyncio.ensure_future(store.take(claims))
        await asyncio.sleep(0)
        taking.cancel()
        with suppress(asyncio.CancelledError):  # Of a store in this process it was quicker.
            await store.settle(await taking, [0])
        for _ in range(500):
            grant = await store.take([Claim("budget", allowance(), 100), Claim("slots", 1, 1)])
            if grant.admitted:
                break
            await asyncio.sleep(0.01)
        assert grant.admitted

    async def test_large_amounts_are_exact(self, store: Asked) -> None:
        """A million dollars, in billionths, to the last one."""
        million = allowance(10**15)
        await store.prime("budget", million, 10**15 - 3)
        grant = await store.take([Claim("budget", million, 2)])
        assert 1 == grant.rooms[0].remaining
        await store.settle(grant, [2])
        assert not (await store.take([Claim("budget", million, 2)])).admitted
        assert (await store.take([Claim("budget", million, 1)])).admitted

    def test_L2_it_agrees_with_exact_arithmetic(self) -> None:
        ours = {"counters": staticmethod(self.counters), "unit": self.unit}
        machine = type("Machine", (Model,), ours)
        run_state_machine_as_test(
            machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
        )


LIMITS: dict[str, Rate | int] = {
    "a": Rate(7, 3),
    "b": Rate(100, 60),
    "c": Rate(3, 86_400),
    "slots": 3,
}
CLAIMS = st.lists(st.tuples(st.sampled_from(sorted(LIMITS)), st.integers(0, 9)), max_size=4)


class Model(RuleBasedStateMachine):
    """The same limits in fractions: how much is there, and since when."""

    counters: Any
    unit: int

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = Asked(self.counters(self.clock))
        self.there = {key: Fraction(_amount(limit)) for key, limit in LIMITS.items()}
        self.open: list[Grant] = []
        self.loop = asyncio.Runner()
        self.loop.run(self.store.start())

    def teardown(self) -> None:
        self.loop.run(self.store.stop())
        self.loop.close()

    @rule(
        nanoseconds=st.one_of(
            st.integers(0, 10_000), st.integers(0, 5 * SECOND), st.integers(0, 90_000 * SECOND)
        )
    )
    def time_passes(self, nanoseconds: int) -> None:
        nanoseconds -= nanoseconds % self.unit
        self.clock.now += nanoseconds
        for key, limit in LIMITS.items():
            if isinstance(limit, Rate):
                more = Fraction(nanoseconds * limit.amount) / Fraction(limit.seconds) / SECOND
                self.there[key] = min(Fraction(limit.amount), self.there[key] + more)

    @rule(wanted=CLAIMS)
    def take(self, wanted: list[tuple[str, int]]) -> None:
        claims = [Claim(key, LIMITS[key], cost) for key, cost in wanted]
        grant = self.loop.run(self.store.take(claims))
        after = dict(self.there)
        for key, cost in wanted:
            after[key] -= cost
        fits = all(after[key] >= 0 for key, _ in wanted)
        assert fits == grant.admitted
        if fits:
            self.there = after
            self.open.append(grant)
        self.compare(claims, grant)

    def compare(self, claims: Sequence[Claim], grant: Grant) -> None:
        last = {claim.key: number for number, claim in enumerate(claims)}
        for number, (claim, room) in enumerate(zip(claims, grant.rooms, strict=True)):
            there, amount = self.there[claim.key], _amount(claim.limit)
            assert amount == room.limit
            if grant.admitted:
                assert 0 == room.retry
                if last[claim.key] != number:
                    continue  # claimed again further on, which this room cannot show
            else:
                assert (there >= claim.cost) == (room.retry == 0)
            assert max(0, floor(there)) == room.remaining
            if isinstance(claim.limit, Rate):
                per_second = Fraction(amount) / Fraction(claim.limit.seconds)
                full = float((amount - there) / per_second)
                assert pytest.approx(full, abs=self.unit / SECOND) == room.reset
                if not grant.admitted:
                    assert room.retry >= float((claim.cost - there) / per_second) * (1 - 1e-12)

    @rule(which=st.integers(0, 9), used=st.lists(st.none() | st.integers(-5, 40), min_size=4))
    def settle(self, which: int, used: list[int | None]) -> None:
        if not self.open:
            return
        grant = self.open.pop(which % len(self.open))
        actual = used[: len(grant.claims)]
        self.loop.run(self.store.settle(grant, actual))
        for claim, now in zip(grant.claims, actual, strict=True):
            amount = _amount(claim.limit)
            if isinstance(claim.limit, int):
                self.there[claim.key] += claim.cost
            elif now is not None:
                there = self.there[claim.key] + claim.cost - max(0, now)
                self.there[claim.key] = min(max(there, Fraction(-amount)), Fraction(amount))


def _amount(limit: Rate | int) -> int:
    return limit if isinstance(limit, int) else limit.amount


SITE = Site(Path("nowhere"), Keyring(["the secret key of these tests: 0123456789"]))
NUMBERS = count()


class TestMemory(CountersContract):
    def counters(self, clock: Clock) -> Counters:
        return Memory(MemorySettings(), SITE, clock)


class TestPursesInCommon(CountersContract):
    """As one of the workers of a host has them."""

    test_L2_it_agrees_with_exact_arithmetic = None  # Nothing in it has to do with budgets.

    @pytest.fixture(autouse=True)
    def board(self) -> Iterator[None]:
        self._board = Board(2, 1 << 20)
        yield
        self._board.close()

    def counters(self, clock: Clock) -> Counters:
        return Memory(MemorySettings(), replace(SITE, board=self._board), clock)


class RedisContract(CountersContract):
    unit = 1_000
    url: str

    def counters(self, clock: Clock) -> Counters:
        # The clock of these tests jumps; a lease that nobody renews must not end by that.
        settings = RedisSettings(
            url=Secret(self.url),
            name=f"test-{next(NUMBERS)}",
            lease=LONGEST,
            timeout=60.0,
            connect_timeout=60.0,
        )
        store = Redis(settings, SITE, clock)
        assert store._there is not None
        store._there.decisions.linger = 0.0  # By that clock it would be late by what was advanced.
        return store


class TestValkey(RedisContract):
    @pytest.fixture(autouse=True)
    def server(self, valkey: Valkey) -> None:
        self.url = valkey.url


class TestCluster(RedisContract):
    """Three nodes, of which the first one is known: most names have their slot on another."""

    @pytest.fixture(autouse=True)
    def server(self, cluster: Cluster) -> None:
        self.url = cluster.url
