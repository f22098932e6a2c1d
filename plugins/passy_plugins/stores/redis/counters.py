"""Decisions in batches: what is asked within one turn of the event loop goes in one call.

A call runs all takes and settles in their order, so it costs the server one look at its clock and
one look at each counter, and the gateway one write and one read.

A slot or a reservation is a lease, named by its grant's token. Those of exchanges that run for long
are renewed; those of a worker that died end by themselves.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from passy_plugins.stores.redis import script
from passy_plugins.stores.redis.batch import NO_LEASE, Batch, Batches, Lease, Owed
from passy_plugins.stores.redis.line import Line
from passy_plugins.stores.redis.script import ALLOWANCE, RATE, Told
from passy_proxy.stores import Allowance, Claim, Grant, StoreUnavailable
from passy_proxy.units import Rate

if TYPE_CHECKING:
    from asyncio import Future

    from passy_plugins.stores.redis.headcount import Headcount

WORKERS = Claim("@workers", 1 << 30, 0)
"""Each worker holds one piece of it; to take none of it is to ask how many do."""
LINGER = 0.002
"""Seconds that a settle waits for a decision that takes it along."""
MOST = 10_000
"""Decisions that may wait; more is refused at once."""
OWED = 20_000
"""Settles that are kept for a server that is away."""


class Decisions:
    """`Counters` on the line to a server. ``clock`` gives nanoseconds in place of its time;
    ``heads`` hears how many workers there are."""

    def __init__(
        self, names: script.Names, heads: Headcount, clock: Callable[[], int] | None
    ) -> None:
        self._heads = heads
        self.linger = LINGER
        self._names = names
        self._clock = clock
        self._batches = Batches(clock, self._done, self._failed)
        self._takes = 0
        """That wait for an answer."""
        self._owed: list[Owed] = []
        self.arrive()
        self._present = (names.of(WORKERS.key, WORKERS.limit), 1, 1, 0)
        self._tokens = 0
        self._leases: dict[Lease, list[Told]] = {}
        """Of the exchanges that run: what they hold."""

    @property
    def line(self) -> Line:
        return self._batches.line

    @line.setter
    def line(self, line: Line) -> None:
        self._batches.line = line

    def take(self, claims: Sequence[Claim]) -> Coroutine[Any, Any, Grant]:
        if not self.line.up:
            raise StoreUnavailable(self.line.reason)
        if self._takes >= MOST:
            raise StoreUnavailable("too many decisions wait for it")
        return self._granted(self._take(claims))

    async def _granted(self, future: Future[Grant]) -> Grant:
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # Its taker left between the answer and hearing of it.
                future.add_done_callback(self._untaken)
            raise

    def _untaken(self, future: Future[Grant]) -> None:
        if future.exception() is None:
            grant = future.result()
            self.settle(grant, [0] * len(grant.claims))

    def attempt(self, claims: Sequence[Claim]) -> Future[Grant]:
        """A take of rates by somebody who does not come back when he is told."""
        return self._take(claims, script.ATTEMPT)

    def give_back(self, key: str, limit: Rate, pieces: int) -> None:
        """Of a rate, what was taken and not used; fewer than none were used beyond it."""
        taken, used = (pieces, 0) if pieces > 0 else (0, -pieces)
        self._settle(Owed(script.NO_TOKEN, [(self._names.of(key, limit), 1, taken, used)]))

    def _take(self, claims: Sequence[Claim], operation: int = script.TAKE) -> Future[Grant]:
        loop = asyncio.get_running_loop()
        batch = self._batches.collected()
        counter_of = self._names.of
        told: list[Told] = []
        leased: list[Told] = []
        for claim in claims:
            counter = counter_of(claim.key, claim.limit)
            told.append((counter, len(told) + 1, claim.cost, 0))
            if counter.kind == ALLOWANCE or (counter.kind != RATE and claim.cost):
                leased.append(told[-1])
        lease = NO_LEASE
        if leased:
            self._tokens += 1
            lease = Lease(self._worker + self._tokens.to_bytes(8, "big"), loop.time())
            self._leases[lease] = leased
        batch.add(operation, lease.name, told)
        future: Future[Grant] = loop.create_future()
        batch.takes.append((future, claims, lease))
        self._takes += 1
        return future

    def settle(self, grant: Grant, actual: Sequence[int | None]) -> None:
        """On its way when this returns: whoever takes next here comes after it."""
        lease = grant.token
        if not isinstance(lease, Lease):
            return
        grant.token = None
        told: list[Told] = []
        known = len(actual)
        for number, claim in enumerate(grant.claims):
            used = actual[number] if number < known else None
            counter = self._names.of(claim.key, claim.limit)
            if used is None:
                if counter.kind == RATE:
                    continue
                used = -1
            elif used < 0:
                used = 0
            told.append((counter, number + 1, claim.cost, used))
        if lease is not NO_LEASE:
            self._leases.pop(lease, None)
        if told:
            self._settle(Owed(lease.name, told))

    def _settle(self, owed: Owed) -> None:
        if self.line.up:
            # Who waits for a slot has not long to wait; else the next decision takes it along.
            batch = self._batches.collected(0.0 if owed.token else self.linger)
            operation = script.SETTLE_AGAIN if owed.again else script.SETTLE
            batch.add(operation, owed.token, owed.claims)
            batch.settles.append(owed)
        else:
            self._owe(owed)

    def _owe(self, owed: Owed) -> None:
        if len(self._owed) < OWED:
            self._owed.append(owed)

    def prime(self, key: str, limit: Allowance, used: int, quiet: float = inf) -> Future[None]:
        if not self.line.up:
            raise StoreUnavailable(self.line.reason)
        batch = self._batches.collected()
        counter = self._names.of(key, limit)
        batch.add(script.PRIME, script.NO_TOKEN, [(counter, 1, quiet * 1e6, used)])
        return batch.awaited()

    def renew(self, age: float) -> None:
        """Say of each lease of which that was not said for ``age`` seconds that its holder is
        there, and that this worker is; and what could not be said before."""
        if not self.line.up:
            return
        now = asyncio.get_running_loop().time()
        for lease, told in self._leases.items():
            if now - lease.at >= age:
                lease.at = now
                self._batches.collected().add(script.RENEW, lease.name, told)
        owed, self._owed = self._owed, []
        for each in owed:
            self._settle(each)
        self._batches.collected().add(script.RENEW, self._presence, [self._present])
        self._take([WORKERS]).add_done_callback(self._counted)

    def _counted(self, future: Future[Grant]) -> None:
        if not future.cancelled() and future.exception() is None:
            room = future.result().rooms[0]
            self._heads.heard(max(1, room.limit - room.remaining))

    def arrive(self) -> None:
        """Become a worker of one's own, also in a process that was forked from another one."""
        self._worker = os.urandom(8)
        self._presence = self._worker.ljust(16, b"@")

    async def leave(self) -> None:
        """This worker is going; until all that it said is known there, or cannot be."""
        if self.line.up:
            self._settle(Owed(self._presence, [self._present]))
            with suppress(StoreUnavailable):
                await self._batches.collected().awaited()

    # What the line asks

    def hello(self) -> tuple[Sequence[bytes], bytes]:
        """A call by which a server shows that it decides: it counts this worker."""
        batch = Batch()
        batch.add(script.RENEW, self._presence, [self._present])
        batch.add(script.TAKE, self._presence, [(*self._present[:2], 0, 0)])
        return batch.said(self._clock)

    def heard(self, reply: bytes) -> bool:
        if len(reply) != script.answer_to(1).size:
            return False
        (room,) = script.rooms([WORKERS], script.answer_to(1).unpack(reply))
        self._heads.heard(max(1, room.limit - room.remaining))
        return True

    def turned(self, up: bool) -> None:
        """The server is away, or reached: then it hears what it missed, and who is there."""
        if up:
            return self.renew(0.0)
        self._batches.drop(self.line.reason)

    # Batches

    def _done(self, batch: Batch, reply: bytes) -> bool:
        shapes = [script.answer_to(len(claims)) for _, claims, _ in batch.takes]
        if len(reply) != sum(shape.size for shape in shapes):
            return False
        at = 0
        for (future, claims, lease), shape in zip(batch.takes, shapes, strict=True):
            numbers = shape.unpack_from(reply, at)
            at += shape.size
            self._decided(future, claims, lease, numbers)
        self._takes -= len(batch.takes)
        for told in batch.told:
            if not told.done():
                told.set_result(None)
        return True

    def _decided(
        self,
        future: Future[Grant],
        claims: Sequence[Claim],
        lease: Lease,
        numbers: tuple[float, ...],
    ) -> None:
        if numbers[0] == 1:
            grant = Grant(True, script.rooms(claims, numbers), claims, lease)
            if future.done():  # Its taker has left.
                self.settle(grant, [0] * len(claims))
                return
        else:
            self._leases.pop(lease, None)
            if numbers[0] == 2:
                known = numbers[1::3]
                unknown = [claim for claim, one in zip(claims, known, strict=True) if not one]
                grant = Grant(False, (), claims, None, unknown)
            else:
                grant = Grant(False, script.rooms(claims, numbers), claims)
        if not future.done():
            future.set_result(grant)

    def _failed(self, batch: Batch, why: str, sent: bool) -> None:
        """Nobody is admitted by it. What was settled is kept until it can be said (again)."""
        self._takes -= len(batch.takes)
        for future, _, lease in batch.takes:
            held = self._leases.pop(lease, None)
            if held is not None and sent:  # It may be taken there all the same.
                self._owe(Owed(lease.name, held, again=True))
            if not future.done():
                future.set_exception(StoreUnavailable(why))
        for owed in batch.settles:
            if not sent or owed.once_more():
                self._owe(owed)
        for told in batch.told:
            if not told.done():
                told.set_exception(StoreUnavailable(why))
