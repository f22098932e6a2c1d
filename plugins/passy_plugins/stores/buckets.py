"""Counters in one process: exact, O(1), and nothing running beside them.

A rate is a bucket that holds ``amount`` and refills continuously, ``amount`` in ``seconds``. What
is kept is the *debt*, how far it is from full, in a unit so small that both a nanosecond of
refilling and one piece are whole numbers of it. Nothing is ever rounded: of a limit of N exactly N
are admitted, however the clock ticks between them.

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

from passy_proxy.stores import Claim, Grant, Room
from passy_proxy.units import Rate

SECOND = 1_000_000_000
LONGEST_QUEUE = 120 * SECOND
SLOT_RETRY = 1.0
"""When a concurrency slot comes free is known to nobody; a second is a fair time to ask again."""

_new = tuple.__new__  # what NamedTuple's own constructor calls, a third of the price


class Bucket:
    """One rate's counter. ``stamp`` is when ``debt`` was true; ``promised`` when the queue ends."""

    __slots__ = ("debt", "full", "limit", "pace", "price", "promised", "rate", "stamp")

    def __init__(self, limit: Rate, now: int) -> None:
        self.debt = 0
        self.stamp = now
        self.promised = 0
        self._follow(limit)

    def _follow(self, limit: Rate) -> None:
        span = round(limit.seconds * SECOND)
        shared = gcd(limit.amount, span)
        self.limit = limit
        self.rate = limit.amount // shared
        """Units refilled in a nanosecond."""
        self.price = span // shared
        """Units that one piece costs."""
        self.full = limit.amount * self.price
        """Units that it holds."""
        self.pace = 1 / self.rate / SECOND if self.rate else 0.0
        """Seconds in which one unit is refilled; 0 where nothing ever is."""

    def fits(self, limit: Rate) -> None:
        """Take over another rate than the one so far; what was used stays used."""
        old = self.price
        self._follow(limit)
        if self.price != old:
            self.debt, self.promised = -(-self.debt * self.price // old), 0

    def refill(self, now: int) -> int:
        """The debt as of ``now``, in nanoseconds of the clock."""
        debt = self.debt - (now - self.stamp) * self.rate
        self.debt = debt = debt if debt > 0 else 0
        self.stamp = now
        return debt

    def room(self, retry: float) -> Room:
        """What is left, right after ``refill``."""
        remaining = max(0, (self.full - self.debt) // self.price)
        return Room(self.limit.amount, remaining, self.debt * self.pace, retry)

    def wait(self, cost: int, now: int) -> float:
        """Seconds until ``cost`` is admitted, after those who wait already; joins their queue."""
        price, rate = cost * self.price, self.rate
        if price > self.full or not rate:
            return inf
        due = now - (self.full - self.debt - price) // rate
        if self.promised > now:
            behind = self.promised - -price // rate
            due = max(due, min(behind, now + LONGEST_QUEUE))
        self.promised = due
        return (due - now) / SECOND


class Buckets:
    """`Counters` over buckets in memory. ``clock`` gives nanoseconds that never go back."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._ages: deque[str] = deque()
        self._slots: dict[str, int] = {}

    def __len__(self) -> int:
        """How many counters are kept right now."""
        return len(self._buckets) + len(self._slots)

    async def take(self, claims: Sequence[Claim]) -> Grant:
        """All claims or none. There is no await inside: nobody comes in between."""
        now = self._clock()
        buckets = self._buckets
        rooms: list[Room] = []
        for key, limit, cost in claims:
            if isinstance(limit, int):
                used = self._slots.get(key, 0) + cost
                if used > limit:
                    return self._refused(claims, len(rooms), now)
                self._slots[key] = used
                rooms.append(_new(Room, (limit, limit - used, 0.0, 0.0)))
                continue
            bucket = buckets.get(key)
            if bucket is None:
                bucket = self._made(key, limit, now)
            elif bucket.limit is not limit:
                bucket.refill(now)
                bucket.fits(limit)
            price = bucket.price
            debt = cost * price
            before = bucket.debt - (now - bucket.stamp) * bucket.rate
            if before > 0:
                debt += before
            left = bucket.full - debt
            if left < 0:
                return self._refused(claims, len(rooms), now)
            bucket.debt = debt
            bucket.stamp = now
            rooms.append(_new(Room, (limit.amount, left // price, debt * bucket.pace, 0.0)))
        return _new(Grant, (True, tuple(rooms), claims, [True]))

    async def settle(self, grant: Grant, actual: Sequence[int | None]) -> None:
        """Once per grant: a second settle, or one of a refused grant, changes nothing."""
        open_ = grant.token
        if not open_ or not isinstance(open_, list):
            return
        open_.clear()
        for (key, limit, cost), used in zip(grant.claims, actual, strict=True):
            if isinstance(limit, int):
                self._give_back(key, cost)
            elif used is not None and used != cost:
                self._correct(key, limit, used - cost if used > 0 else -cost)

    def _made(self, key: str, limit: Rate, now: int) -> Bucket:
        """A full bucket; two of the oldest are looked at, and dropped if they are full again."""
        ages, buckets = self._ages, self._buckets
        for _ in range(min(2, len(ages))):
            old = ages.popleft()
            bucket = buckets[old]
            if bucket.refill(now) or bucket.promised > now:
                ages.append(old)
            else:
                del buckets[old]
        ages.append(key)
        bucket = buckets[key] = Bucket(limit, now)
        return bucket

    def _refused(self, claims: Sequence[Claim], taken: int, now: int) -> Grant:
        """Give back what the first ``taken`` claims took, then say of each how it stands."""
        for key, limit, cost in claims[:taken]:
            if isinstance(limit, int):
                self._give_back(key, cost)
            elif (bucket := self._buckets.get(key)) is not None:
                bucket.debt -= cost * bucket.price
        rooms = tuple(self._standing(claim, now) for claim in claims)
        return Grant(False, rooms, claims, None)

    def _standing(self, claim: Claim, now: int) -> Room:
        key, limit, cost = claim
        if isinstance(limit, int):
            used = self._slots.get(key, 0)
            retry = 0.0 if used + cost <= limit else SLOT_RETRY if cost <= limit else inf
            return Room(limit, max(limit - used, 0), 0.0, retry)
        bucket = self._buckets.get(key) or self._made(key, limit, now)
        bucket.refill(now)
        bucket.fits(limit)
        fits = bucket.debt + cost * bucket.price <= bucket.full
        return bucket.room(0.0 if fits else bucket.wait(cost, now))

    def _correct(self, key: str, limit: Rate, more: int) -> None:
        """``more`` was used than was taken; less, if it is negative."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            if more < 0:
                return  # dropped since, hence full: there is nothing to give back to
            bucket = self._made(key, limit, now)
        price, most = more * bucket.price, 2 * bucket.full
        debt = bucket.refill(now) + price
        bucket.debt = 0 if debt < 0 else most if debt > most else debt
        if price < 0 and bucket.promised > now:
            bucket.promised += price // bucket.rate

    def _give_back(self, key: str, cost: int) -> None:
        used = self._slots.get(key, 0) - cost
        if used > 0:
            self._slots[key] = used
        else:
            self._slots.pop(key, None)
