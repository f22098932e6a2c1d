"""Counters in one process: exact, O(1), and nothing running beside them. Of budgets the workers of
a host may have the counters in common.

A rate is a bucket that holds ``amount`` and refills continuously, ``amount`` in ``seconds``. What
is kept is one number, *ends*: when it will be full again, on the clock of this bucket. That clock
has a unit so small that both a nanosecond of refilling and one piece are whole numbers of it.
Nothing is ever rounded: of a limit of N exactly N are admitted, however the clock ticks between
them. What is owed now, the *debt*, is how far ``ends`` lies ahead; behind, the bucket is full.

Three numbers may surprise:

- *retry* counts those who were refused before. Two hundred clients that wait as they are told come
  back one after the other and are all admitted, not all at once and refused again. Clients who
  never come back would make the queue endless, so beyond ``LONGEST_QUEUE`` its tail is shared.
- *debt* may exceed the bucket after a settle: an answer can be dearer than was reserved. It goes
  down to one whole bucket below zero, not deeper.
- A bucket that is full again says nothing an absent one would not, and is dropped: each new counter
  looks at two old ones.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from math import gcd, inf
from typing import TYPE_CHECKING

from passy_plugins.stores.purse import Part, Purses
from passy_proxy.stores import Allowance, Claim, Grant, Room
from passy_proxy.units import Rate

if TYPE_CHECKING:
    from passy_plugins.stores.shared_purses import SharedPurses

SECOND = 1_000_000_000
LONGEST_QUEUE = 120 * SECOND
SLOT_RETRY = 1.0
"""When a concurrency slot comes free is known to nobody; a second is a fair time to ask again."""


class Bucket:
    """One rate's counter: ``ends`` as above; ``promised`` is when the queue of the refused ends, in
    nanoseconds."""

    __slots__ = ("amount", "ends", "full", "limit", "pace", "price", "promised", "rate")

    def __init__(self, limit: Rate) -> None:
        self.ends = 0
        self.promised = 0
        self._follow(limit)

    def _follow(self, limit: Rate) -> None:
        span = round(limit.seconds * SECOND)
        shared = gcd(limit.amount, span)
        self.limit = limit
        self.amount = limit.amount
        self.rate = limit.amount // shared
        """Units refilled in a nanosecond."""
        self.price = span // shared
        """Units that one piece costs."""
        self.full = limit.amount * self.price
        """Units that it holds."""
        self.pace = 1 / self.rate / SECOND if self.rate else 0.0
        """Seconds in which one unit is refilled; 0 where nothing ever is."""

    def fit(self, limit: Rate, now: int) -> None:
        """Take over another rate than the one so far; what was used stays used."""
        debt, price = self.debt(now), self.price
        self._follow(limit)
        if self.price != price:
            debt, self.promised = -(-debt * self.price // price), 0
        self.ends = now * self.rate + debt

    def debt(self, now: int) -> int:
        """Units to be refilled as of ``now``, in nanoseconds of the clock."""
        debt = self.ends - now * self.rate
        return debt if debt > 0 else 0

    def wait(self, cost: int, now: int) -> float:
        """Seconds until ``cost`` is admitted, after those who wait already; joins their queue."""
        price, rate = cost * self.price, self.rate
        if price > self.full or not rate:
            return inf
        due = now - (self.full - self.debt(now) - price) // rate
        if self.promised > now:
            behind = self.promised - -price // rate
            due = max(due, min(behind, now + LONGEST_QUEUE))
        self.promised = due
        return (due - now) / SECOND


class Buckets:
    """`Counters` over buckets in memory. ``clock`` gives nanoseconds that never go back; ``purses``
    are what budgets count with, its own when not given."""

    alone = True
    """Rates and slots are this process's alone."""

    def __init__(
        self,
        clock: Callable[[], int] = time.monotonic_ns,
        purses: Purses | SharedPurses | None = None,
    ) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._ages: deque[str] = deque()
        self._slots: dict[str, int] = {}
        self._purses = Purses() if purses is None else purses

    def __len__(self) -> int:
        """How many counters are kept right now."""
        return len(self._buckets) + len(self._slots) + len(self._purses)

    def take(self, claims: Sequence[Claim]) -> Grant:
        """All claims or none: nobody comes in between. Raises StoreUnavailable where purses are in
        common, and another worker does not let go of them."""
        now = self._clock()
        get = self._buckets.get
        rooms: list[Room] = []
        held: tuple[Claim | Part, ...] = ()
        for claim in claims:
            bucket = get(claim.key)
            if bucket is None or bucket.limit is not claim.limit:
                limit = claim.limit
                if isinstance(limit, int):
                    used = self._slots.get(claim.key, 0) + claim.cost
                    if used > limit:
                        return self._refused(claims, len(rooms), held, now)
                    self._slots[claim.key] = used
                    held = (*held, claim)
                    rooms.append(Room(limit, limit - used, 0.0, 0.0))
                    continue
                if isinstance(limit, Allowance):
                    if not self._purses.held:
                        self._undo(claims, len(rooms), held)
                        with self._purses:
                            return self.take(claims)
                    purse = self._purses.get(claim.key)
                    part = None
                    if purse is not None and purse.ends >= limit.ends:
                        part = purse.take(limit, claim.cost, len(rooms), now)
                    if purse is None or part is None:
                        return self._refused(claims, len(rooms), held, now)
                    held = (*held, part)
                    rooms.append(purse.room(limit))
                    continue
                bucket = self._bucket(claim.key, limit, now)
            start = now * bucket.rate
            ends = bucket.ends
            if ends < start:
                ends = start
            ends += claim.cost * bucket.price
            debt = ends - start
            left = bucket.full - debt
            if left < 0:
                return self._refused(claims, len(rooms), held, now)
            bucket.ends = ends
            rooms.append(Room(bucket.amount, left // bucket.price, debt * bucket.pace, 0.0))
        return Grant(True, rooms, claims, held)

    def settle(self, grant: Grant, actual: Sequence[int | None]) -> None:
        held: tuple[Claim | Part, ...] | None = grant.token  # type: ignore[assignment]
        if held is None:
            return
        grant.token = None
        for one in held:
            if isinstance(one, Claim):
                self._give_back(one)
            else:
                used = actual[one.place] if one.place < len(actual) else None
                one.purse.settle(one, used, self._clock())
        for claim, used in zip(grant.claims, actual, strict=False):
            if used is None or not isinstance(claim.limit, Rate):
                continue
            unused = claim.cost - used if used > 0 else claim.cost
            if unused < 0:
                self._owe(claim.key, claim.limit, -unused)
            elif (bucket := self._buckets.get(claim.key)) is not None:  # Else full, and dropped.
                units = unused * bucket.price
                bucket.ends -= units
                if bucket.promised:
                    bucket.promised -= -(-units // bucket.rate)

    def prime(self, key: str, limit: Allowance, used: int, quiet: float = inf) -> None:
        now = self._clock()
        with self._purses:
            purse = self._purses.get(key)
            if purse is None or purse.ends < limit.ends:
                self._purses.begin(key, limit.ends, used, now)
            elif purse.ends == limit.ends:
                purse.agree(used, quiet, now)

    def _bucket(self, key: str, limit: Rate, now: int) -> Bucket:
        """The bucket of ``key`` with this limit.

        When it is made, two of the oldest are looked at, and dropped if they are full again.
        """
        ages, buckets = self._ages, self._buckets
        bucket = buckets.get(key)
        if bucket is not None:
            if bucket.limit is not limit:
                bucket.fit(limit, now)
            return bucket
        for _ in range(min(2, len(ages))):
            old = ages.popleft()
            bucket = buckets[old]
            if bucket.debt(now) or bucket.promised > now:
                ages.append(old)
            else:
                del buckets[old]
        ages.append(key)
        bucket = buckets[key] = Bucket(limit)
        return bucket

    def _refused(
        self, claims: Sequence[Claim], taken: int, held: Sequence[Claim | Part], now: int
    ) -> Grant:
        """Give back what the first ``taken`` claims took, then say of each how it stands."""
        self._undo(claims, taken, held)
        if unknown := [claim for claim in claims if self._unknown(claim)]:
            return Grant(False, (), claims, None, unknown)
        return Grant(False, [self._standing(claim, now) for claim in claims], claims)

    def _unknown(self, claim: Claim) -> bool:
        """Whether it is on an allowance that nobody has counted in this window."""
        if not isinstance(claim.limit, Allowance):
            return False
        purse = self._purses.get(claim.key)
        return purse is None or purse.ends < claim.limit.ends

    def _undo(self, claims: Sequence[Claim], taken: int, held: Sequence[Claim | Part]) -> None:
        for one in held:
            if isinstance(one, Claim):
                self._give_back(one)
            else:
                one.purse.give_back(one)
        for claim in claims[:taken]:
            bucket = self._buckets.get(claim.key)
            if bucket is not None and isinstance(claim.limit, Rate):
                bucket.ends -= claim.cost * bucket.price

    def _standing(self, claim: Claim, now: int) -> Room:
        limit, cost = claim.limit, claim.cost
        if isinstance(limit, int):
            used = self._slots.get(claim.key, 0)
            retry = 0.0 if used + cost <= limit else SLOT_RETRY if cost <= limit else inf
            return Room(limit, max(limit - used, 0), 0.0, retry)
        if isinstance(limit, Allowance):
            purse = self._purses[claim.key]
            purse.lapse(now)
            return purse.room(limit, cost)
        bucket = self._bucket(claim.key, limit, now)
        debt = bucket.debt(now)
        left = bucket.full - debt
        retry = 0.0 if cost * bucket.price <= left else bucket.wait(cost, now)
        return Room(limit.amount, max(left // bucket.price, 0), debt * bucket.pace, retry)

    def _owe(self, key: str, limit: Rate, more: int) -> None:
        """More was used than was taken: owed down to one whole bucket below zero."""
        now = self._clock()
        bucket = self._buckets.get(key) or self._bucket(key, limit, now)
        debt = bucket.debt(now) + more * bucket.price
        bucket.ends = now * bucket.rate + min(debt, 2 * bucket.full)

    def _give_back(self, claim: Claim) -> None:
        used = self._slots.get(claim.key, 0) - claim.cost
        if used > 0:
            self._slots[claim.key] = used
        else:
            self._slots.pop(claim.key, None)
