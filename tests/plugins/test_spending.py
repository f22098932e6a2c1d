"""L3, by a model: whatever is killed, lost or late, counters count what was spent at most once, and
agree with the books as soon as nothing is under way."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from passy_plugins.spending import Account, Accounts
from passy_plugins.stores.buckets import SECOND, Buckets
from passy_proxy import Claim, Grant, Principal
from passy_proxy.records import Budget

AMOUNT = 1_000
LEASE = 60.0
INTERVAL = 10.0
WHICH = st.integers(0, 9)
SHARE = st.sampled_from((0, 50, 100))
"""Of what was reserved, in percent."""


class Books:
    """What was shipped."""

    total = 0

    async def spent(self, *_: Any) -> int:
        return self.total


class Nobody:
    """Is told of alerts."""

    async def tell(self, alert: object) -> None:
        pass


class Model(RuleBasedStateMachine):
    """One budget, a counter, a journal that is shipped now and then, and processes that die."""

    def __init__(self) -> None:
        super().__init__()
        self.now = SECOND
        self.counters = Buckets(lambda: self.now)
        self.books = Books()
        self.journal = 0
        self.running: list[tuple[Grant, int]] = []
        self.slow: list[tuple[Grant, int, int]] = []
        """Recorded and not settled yet: by whom, how much, and since how many rounds."""
        self.lost = False
        self.waited = 0.0
        """Seconds since nothing was under way or unshipped."""
        self.loop = asyncio.Runner()
        log = structlog.get_logger()
        self.accounts = Accounts(
            self.counters,
            self.books,
            Nobody(),  # type: ignore[arg-type]
            LEASE,
            INTERVAL,
            log,
        )
        budget = Budget("bud_1", "tokens", AMOUNT, "total")
        principal = Principal("key_1", budgets=(budget,))
        [self.account] = self.accounts.charge(principal, principal.budgets, 0).accounts

    def teardown(self) -> None:
        self.settle_all()
        self.ship()
        self.pass_time(LEASE + 1)
        self.compare()
        self.pass_time(2 * INTERVAL + 1)
        self.compare()
        self.compare()
        assert self.books.total == self.settled
        assert AMOUNT - self.books.total == self.rest()
        self.loop.close()

    @property
    def truth(self) -> int:
        return self.books.total + self.journal

    @property
    def settled(self) -> int:
        purse = self.counters._purses.get(self.account.key)
        return self.books.total if purse is None else purse.settled

    def take(self, cost: int) -> Grant:
        account: Account = self.account
        claims = [Claim(account.key, account.limit, cost)]
        grant = self.counters.take(claims)
        if grant.unknown:
            self.loop.run(self.accounts.prime([account]))
            grant = self.counters.take(claims)
        assert not grant.unknown
        return grant

    def rest(self) -> int:
        """What is left, or owed."""
        return AMOUNT - self.settled if self.take(0).admitted else min(0, AMOUNT - self.settled)

    @rule(costs=st.lists(st.integers(1, 200), min_size=1, max_size=4))
    def begin(self, costs: list[int]) -> None:
        for cost in costs:
            grant = self.take(cost)
            if grant.admitted:
                self.running.append((grant, cost))
            elif not self.lost:
                purse = self.counters._purses[self.account.key]
                assert self.truth + purse.open + cost > AMOUNT

    @precondition(lambda self: self.running)
    @rule(which=WHICH, share=SHARE)
    def ends(self, which: int, share: int) -> None:
        grant, cost = self.running.pop(which % len(self.running))
        used = cost * share // 100
        self.journal += used
        self.counters.settle(grant, [used])

    @precondition(lambda self: self.running)
    @rule(which=WHICH, share=SHARE)
    def ends_and_is_settled_later(self, which: int, share: int) -> None:
        grant, cost = self.running.pop(which % len(self.running))
        self.journal += cost * share // 100
        self.slow.append((grant, cost * share // 100, 0))

    @precondition(lambda self: self.running)
    @rule(which=WHICH, share=SHARE)
    def is_killed(self, which: int, share: int) -> None:
        """Its journal tells what it had spent; nobody settles."""
        _, cost = self.running.pop(which % len(self.running))
        self.journal += cost * share // 100
        self.lost = True

    @precondition(lambda self: self.slow)
    @rule()
    def settle_all(self) -> None:
        for grant, used, _ in self.slow:
            self.counters.settle(grant, [used])
        self.slow = []

    @precondition(lambda self: self.journal)
    @rule()
    def ship(self) -> None:
        self.books.total += self.journal
        self.journal = 0

    @precondition(lambda self: len(self.running) > 3)
    @rule()
    def the_counter_forgets(self) -> None:
        """A Redis that was emptied, or a process with counters of its own that starts anew. What
        was granted before is settled nowhere."""
        self.settle_all()
        self.counters._purses.clear()
        for _, cost in self.running:
            self.journal += cost
        self.running = []
        self.lost = True

    @rule(seconds=st.floats(0, 90))
    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        busy = self.running or self.slow or self.journal
        self.waited = self.waited + seconds if busy else 0.0
        # What is not told of for a whole lease is given up by all who count.
        self.lost = self.lost or max(self.waited, seconds) >= LEASE

    @rule()
    def compare(self) -> None:
        # A settlement that is on its way arrives within an interval.
        waiting = []
        for grant, used, rounds in self.slow:
            if rounds:
                self.counters.settle(grant, [used])
            else:
                waiting.append((grant, used, 1))
        self.slow = waiting
        before = self.account.read
        self.loop.run(self.accounts.round())
        assert before is None or before <= self.settled

    @invariant()
    def nothing_is_counted_twice(self) -> None:
        assert self.settled <= self.truth

    @invariant()
    def without_a_loss_nothing_is_overspent(self) -> None:
        late = sum(used for _, used, _ in self.slow)
        assert self.lost or self.settled + late == self.truth <= AMOUNT


def test_L3_counters_and_books_agree_whatever_happens() -> None:
    run_state_machine_as_test(
        Model, settings=settings(max_examples=200, stateful_step_count=50, deadline=None)
    )
