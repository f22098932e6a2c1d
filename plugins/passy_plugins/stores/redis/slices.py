"""Rates decided here, from slices of them that were taken on the server beforehand.

A decision then costs no round trip, and a limit is inexact by what the workers hold: each at most
two slices of it. No more is ever given out than the server gave; but what one worker holds another
one cannot have, and what was taken in one moment may be used in a later one. So of a limit of N
with W workers, each with slices of S, between N - 2·W·S and N + 2·W·S are admitted.

Near its end, where no whole slice is to be had, each decision is made on the server again. A slice
that was not used for ``IDLE`` seconds goes back. Concurrency and allowances are always exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from passy_plugins.stores.redis.counters import Decisions
from passy_proxy.stores import Allowance, Claim, Grant, Now, Room, StoreUnavailable
from passy_proxy.units import Rate

if TYPE_CHECKING:
    from asyncio import Future

IDLE = 1.0
DRY = 0.05
"""Seconds without another attempt at a slice after one that was not to be had."""
SLICED = object()
"""The token of a grant that was made of slices."""


class Slice:
    """What this worker holds of one rate."""

    __slots__ = ("dry", "filling", "key", "left", "limit", "room", "size", "used")

    def __init__(self, key: str, limit: Rate, size: int) -> None:
        self.key = key
        self.limit = limit
        self.size = size
        self.left = 0
        self.used = True
        """Since it was last looked at."""
        self.dry = 0.0
        """Until when, by the loop's clock, there are none to be had."""
        self.filling: Future[Grant] | None = None
        self.room = Room(limit.amount, 0, 0.0, 0.0)
        """What the server said last."""


class Slices:
    """`Counters` over exact ones. ``count``: how many slices a limit has."""

    def __init__(self, exact: Decisions, count: int) -> None:
        self._exact = exact
        self._count = count
        self._slices: dict[str, Slice] = {}

    def take(self, claims: Sequence[Claim]) -> Now[Grant]:
        grant = self._mine(claims)
        if grant is not None:
            return grant
        if not all(isinstance(claim.limit, Rate) for claim in claims):
            return self._exact.take(claims)
        return self._short(claims)

    def _mine(self, claims: Sequence[Claim]) -> Grant | None:
        """All claims from slices, or none."""
        rooms: list[Room] = []
        for claim in claims:
            one = self._slices.get(claim.key)
            if one is None or one.limit is not claim.limit or one.left < claim.cost:
                for before in claims[: len(rooms)]:
                    self._slices[before.key].left += before.cost
                return None
            one.left -= claim.cost
            one.used = True
            room = one.room
            rooms.append(Room(room.limit, room.remaining + one.left, room.reset, 0.0))
            if one.left * 2 < one.size:
                self._fill(one, one.size)
        return Grant(True, rooms, claims, SLICED)

    def _short(self, claims: Sequence[Claim]) -> Coroutine[Any, Any, Grant]:
        if not self._exact.line.up:
            raise StoreUnavailable(self._exact.line.reason)
        return self._filled(claims)

    async def _filled(self, claims: Sequence[Claim]) -> Grant:
        """From new slices, and where there are none from the server itself."""
        filling = []
        for claim in claims:
            one = self._slice(claim)
            if one.left < claim.cost <= one.size and (future := self._fill(one, one.size)):
                filling.append(future)
        if filling:
            await asyncio.wait(filling)
            if (grant := self._mine(claims)) is not None:
                return grant
        return await self._exact.take(claims)

    def _slice(self, claim: Claim) -> Slice:
        one = self._slices.get(claim.key)
        assert isinstance(claim.limit, Rate)
        if one is None or one.limit is not claim.limit:
            if one is not None:
                self._give_back(one)
            size = max(1, claim.limit.amount // self._count)
            one = self._slices[claim.key] = Slice(claim.key, claim.limit, size)
        return one

    def _fill(self, one: Slice, size: int) -> Future[Grant] | None:
        """What will tell that there is another slice, if that can be hoped for."""
        loop = asyncio.get_running_loop()
        if one.filling is None and self._exact.line.up and loop.time() >= one.dry:
            one.filling = self._exact.attempt([Claim(one.key, one.limit, size)])
            one.filling.add_done_callback(lambda future: self._came(one, future))
        return one.filling

    def _came(self, one: Slice, future: Future[Grant]) -> None:
        one.filling = None
        grant = None if future.cancelled() or future.exception() else future.result()
        if grant is None or not grant.admitted:
            one.dry = asyncio.get_running_loop().time() + DRY
            return
        one.room = grant.rooms[0]
        one.left += grant.claims[0].cost
        if self._slices.get(one.key) is not one:
            self._give_back(one)

    def settle(self, grant: Grant, actual: Sequence[int | None]) -> None:
        if grant.token is not SLICED:
            return self._exact.settle(grant, actual)
        grant.token = None
        for claim, used in zip(grant.claims, actual, strict=False):
            if used is None:
                continue
            one = self._slice(claim)
            one.left += claim.cost - max(used, 0)
            if one.left < 0:
                self._exact.give_back(one.key, one.limit, one.left)
                one.left = 0
            elif one.left > 2 * one.size:
                self._exact.give_back(one.key, one.limit, one.left - one.size)
                one.left = one.size
        return None

    def prime(self, key: str, limit: Allowance, used: int, quiet: float = inf) -> Now[None]:
        return self._exact.prime(key, limit, used, quiet)

    def sweep(self) -> None:
        """Give back what was not used since the last time."""
        for one in list(self._slices.values()):
            if not one.used and one.filling is None:
                del self._slices[one.key]
                self._give_back(one)
            one.used = False

    def leave(self) -> None:
        """Give back all."""
        for one in self._slices.values():
            self._give_back(one)
        self._slices.clear()

    def _give_back(self, one: Slice) -> None:
        if one.left:
            self._exact.give_back(one.key, one.limit, one.left)
            one.left = 0
