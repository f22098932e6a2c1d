"""What `counters.lua` is told and what it answers, as bytes.

Every key of an installation has one hash tag, its name in braces: the claims of one decision may be
of a key, its organisation, a model and a budget, and a script in a Cluster may touch one slot only.

A rate's numbers are chosen so that a double holds them exactly: one piece costs ``price`` units,
``speed`` units are refilled in a tick, and a tick is a microsecond, or a millisecond or a second
where the numbers of a long period would not fit otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b, sha1
from importlib.resources import files
from math import gcd
from struct import Struct
from typing import NamedTuple

from passy_proxy.stores import Allowance, Claim, Room
from passy_proxy.units import Rate

SOURCE = files(__package__).joinpath("counters.lua").read_bytes()
DIGEST = sha1(SOURCE, usedforsecurity=False).hexdigest().encode()

TAKE, SETTLE, SETTLE_AGAIN, PRIME, RENEW, ATTEMPT = 1, 2, 3, 4, 5, 6
RATE, SLOTS, ALLOWANCE = 1, 2, 3
EXACT = 2.0**51
"""Units that a full bucket may have: twice as many, and a little, are still whole numbers."""
LONGEST_NAME = 200
"""Of a counter's name that is kept as it is, and remembered."""
MOST_NAMES = 10_000

MOMENT = Struct("<d").pack
OPERATION = Struct("<B16sB").pack
CLAIM = Struct("<BBHdd").pack
LIMIT = Struct("<dddd").pack
NO_TOKEN = b""


Told = tuple["Counter", int, float, int]
"""A claim as the script is told of it: its counter, its number in the grant, the cost, and at the
end what was used; -1 leaves it as it was taken. A prime has microseconds of quiet for a cost."""


class Counter(NamedTuple):
    """How the script is told of a counter: the same for each claim on it."""

    limit: Rate | Allowance | int
    kind: int
    key: bytes
    tail: bytes


class Names:
    """Names of counters → what the script is told of them. ``lease``: seconds of a slot's."""

    def __init__(self, name: str, lease: float) -> None:
        self._tag = b"{%b}" % name.encode()
        self._lease = lease * 1e6
        self._known: dict[str, Counter] = {}

    def of(self, name: str, limit: Rate | Allowance | int) -> Counter:
        known = self._known.get(name)
        if known is None or known.limit is not limit:
            known = self._counter(name, limit)
            if len(name) > LONGEST_NAME:
                return known
            if len(self._known) >= MOST_NAMES:
                self._known.clear()
            self._known[name] = known
        return known

    def _counter(self, name: str, limit: Rate | Allowance | int) -> Counter:
        if isinstance(limit, Rate):
            return Counter(limit, RATE, self._key(b"r:", name), LIMIT(*pace(limit)))
        if isinstance(limit, Allowance):
            numbers = LIMIT(limit.amount, limit.hard, limit.lease * 1e6, limit.ends * 1e6)
            return Counter(limit, ALLOWANCE, self._key(b"a:", name), numbers)
        return Counter(limit, SLOTS, self._key(b"s:", name), LIMIT(limit, self._lease, 0, 0))

    def _key(self, kind: bytes, name: str) -> bytes:
        written = name.encode("utf-8", "surrogatepass")
        if len(written) > LONGEST_NAME:
            written = blake2b(written, digest_size=24).hexdigest().encode()
        return self._tag + kind + written


@lru_cache(1_000)
def pace(limit: Rate) -> tuple[int, int, int, int]:
    """``price`` and ``speed`` in units, microseconds of a ``tick``, and units of a full bucket."""
    microseconds = max(round(limit.seconds * 1e6), 1)
    for tick in (1, 1_000, 1_000_000):
        span, rest = divmod(microseconds, tick)
        if rest:
            break
        shared = gcd(limit.amount, span)
        price, speed = span // shared, limit.amount // shared
        fitting = price, speed, tick, limit.amount * price
        if fitting[3] <= EXACT:
            break
    return fitting


@lru_cache(256)
def answer_to(claims: int) -> Struct:
    """What comes of a take of so many claims."""
    return Struct("<" + "d" * (1 + 3 * claims))


def rooms(claims: Sequence[Claim], numbers: Sequence[float]) -> list[Room]:
    """``numbers``: those of the answer to a take, behind the first."""
    found = []
    at = 1
    for claim in claims:
        limit = claim.limit
        amount = limit if isinstance(limit, int) else limit.amount
        remains = int(numbers[at])
        found.append(Room(amount, remains, numbers[at + 1] / 1e6, numbers[at + 2] / 1e6))
        at += 3
    return found
