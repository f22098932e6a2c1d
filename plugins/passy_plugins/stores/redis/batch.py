"""Operations that go to the server in one call, and what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from passy_plugins.stores.redis import script
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

    def __init__(self, token: bytes, claims: list[Told]) -> None:
        self.token = token
        self.claims = claims
        self.again = False
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
