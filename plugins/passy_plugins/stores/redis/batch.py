"""Operations that go to the server in one call, and what comes of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from passy_plugins.stores.redis import script
from passy_plugins.stores.redis.line import Call, Line
from passy_plugins.stores.redis.script import (
    ALLOWANCE,
    CLAIM,
    MOMENT,
    OPERATION,
    RATE,
    Counter,
    Told,
)
from passy_proxy.stores import Claim, Grant

if TYPE_CHECKING:
    from asyncio import Future


CALLS = 4
"""Calls under way at once; while there are so many, more is collected."""
OPERATIONS = 128
"""Most of them in a call: others wait for the server meanwhile."""


class Lease:
    """The token of a grant, and when it was last said that its holder is there."""

    __slots__ = ("at", "name")

    def __init__(self, name: bytes, at: float) -> None:
        self.name = name
        self.at = at


NO_LEASE = Lease(script.NO_TOKEN, 0.0)
"""The token of a grant on rates alone."""


class Owed:
    """A settle that is not known to have been run."""

    __slots__ = ("again", "claims", "token")

    def __init__(self, token: bytes, claims: list[Told], *, again: bool = False) -> None:
        self.token = token
        self.claims = claims
        self.again = again
        """It may have been run before."""

    def once_more(self) -> bool:
        """It may have been run, or not: keep what can be said twice, and tell whether there is
        any. A rate heals by itself, and not from being settled twice."""
        self.again = True
        self.claims = [claim for claim in self.claims if claim[0].kind != RATE]
        return bool(self.claims)


class Batch:
    """Operations of one call, while they are collected and while they are under way."""

    __slots__ = ("keys", "operations", "parts", "settles", "takes", "told")

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}
        self.parts: list[bytes] = []
        self.operations = 0
        self.takes: list[tuple[Future[Grant], Sequence[Claim], Lease]] = []
        self.settles: list[Owed] = []
        self.told: list[Future[None]] = []
        """Of those who wait for its end, whatever it is about."""

    def awaited(self) -> Future[None]:
        future: Future[None] = asyncio.get_running_loop().create_future()
        self.told.append(future)
        return future

    def said(self, clock: Callable[[], int] | None) -> tuple[Sequence[bytes], bytes]:
        """The keys and the input of the script."""
        moment = MOMENT(clock() // 1000 if clock else 0)
        return list(self.keys), b"".join([moment, *self.parts])

    def key(self, counter: Counter) -> int:
        """The number of its key. Behind an allowance's key is that of its leases."""
        found = self.keys.get(counter.key)
        if found is None:
            found = self.keys[counter.key] = len(self.keys) + 1
            if counter.kind == ALLOWANCE:
                self.keys[counter.key + b":leases"] = found + 1
        return found

    def add(self, operation: int, token: bytes, claims: Sequence[Told]) -> None:
        self.operations += 1
        parts = self.parts
        parts.append(OPERATION(operation, token, len(claims)))
        for counter, number, cost, used in claims:
            parts.append(CLAIM(counter.kind, number, self.key(counter), cost, used))
            parts.append(counter.tail)


class Batches:
    """What is collected, what waits for its turn, and what is under way.

    ``done`` is told of a batch and its reply, and says whether that is one; ``failed`` of a batch,
    why, and whether it may have been run for all that.
    """

    def __init__(
        self,
        clock: Callable[[], int] | None,
        done: Callable[[Batch, bytes], bool],
        failed: Callable[[Batch, str, bool], None],
    ) -> None:
        self.line: Line
        self._clock, self._done, self._failed = clock, done, failed
        self._batch: Batch | None = None
        """What is collected now."""
        self._full: deque[Batch] = deque()
        """Those that wait for their turn, oldest first."""
        self._calls = 0
        """Under way."""
        self._flushes = False
        """At the end of this turn of the loop."""
        self._lingers = False
        """A flush will come, should nothing that is urgent come before."""

    def collected(self, within: float = 0.0) -> Batch:
        """What is collected now. It leaves at the end of this turn of the loop, or ``within`` so
        many seconds."""
        batch = self._batch
        if batch is None or batch.operations >= OPERATIONS:
            if batch is not None:
                self._full.append(batch)
            batch = self._batch = Batch()
        if not self._flushes:
            if not within:
                self._flushes = True
                asyncio.get_running_loop().call_soon(self._flush)
            elif not self._lingers:
                self._lingers = True
                asyncio.get_running_loop().call_later(within, self._lingered)
        return batch

    def drop(self, why: str) -> None:
        """Nothing of what was not sent will be."""
        batches = [*self._full, self._batch]
        self._full.clear()
        self._batch = None
        for batch in filter(None, batches):
            self._failed(batch, why, False)

    def _lingered(self) -> None:
        self._lingers = False
        if not self._flushes:
            self._send()

    def _flush(self) -> None:
        self._flushes = False
        self._send()

    def _send(self) -> None:
        while self._calls < CALLS and self.line.up:
            if self._full:
                batch = self._full.popleft()
            elif self._batch is not None and not self._flushes:
                batch, self._batch = self._batch, None
            else:
                return
            self._calls += 1
            ended, lost = partial(self._ended, batch), partial(self._lost, batch)
            self.line.send(Call(*batch.said(self._clock), ended, lost))

    def _ended(self, batch: Batch, reply: bytes) -> bool:
        if not self._done(batch, reply):
            return False
        self._calls -= 1
        self._send()
        return True

    def _lost(self, batch: Batch, why: str, sent: bool) -> None:
        self._calls -= 1
        self._failed(batch, why, sent)
        self._send()
