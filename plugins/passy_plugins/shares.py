"""Rate limits while the store that counts for all workers cannot be asked.

Each worker then holds a share of its own of every limit: the limit divided by the workers that were
there when the store was last heard of, by this process or the one before, rounded down and at least
one. So what is admitted beyond a limit during an outage is at most that limit once more (or one for
each worker, where a limit is smaller than their number). Shares last as long as the process, so
outages that follow each other do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from passy_plugins.stores.buckets import Buckets
from passy_proxy.stores import Allowance, Claim, Counters, Grant, Shared
from passy_proxy.units import Rate


class Shares:
    """This worker's shares of what ``counters`` hold. As `Counters`, for rates and concurrency."""

    def __init__(self, counters: Counters) -> None:
        self._shared = counters if isinstance(counters, Shared) else None
        self._buckets = Buckets()

    def take(self, claims: Sequence[Claim]) -> Grant:
        workers = 1 if self._shared is None else self._shared.workers
        mine = []
        for claim in claims:
            limit = share(claim.limit, workers)
            # What is dearer than a whole share waits for a whole share.
            most = limit if isinstance(limit, int) else limit.amount
            mine.append(Claim(claim.key, limit, min(claim.cost, most)))
        return self._buckets.take(mine)

    def settle(self, grant: Grant, actual: Sequence[int | None]) -> None:
        self._buckets.settle(grant, actual)


@lru_cache(1_000)
def share(limit: Rate | Allowance | int, workers: int) -> Rate | int:
    """One worker's part. Money is not shared out like that: an `Allowance` is refused."""
    if isinstance(limit, int):
        return max(limit // workers, min(limit, 1))
    if isinstance(limit, Rate):
        return Rate(max(limit.amount // workers, min(limit.amount, 1)), limit.seconds)
    raise TypeError("an allowance has no shares")
