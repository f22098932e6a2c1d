"""How providers do, as the last exchanges in the books tell it: every attempt at them counts, also
one that another provider made good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import Literal, NamedTuple

from passy_proxy.records import AttemptRecord

MINUTES = 15
MOST = 2_000
"""Exchanges that are looked at."""
SHAKY, FAILING = 0.05, 0.5
State = Literal["good", "shaky", "failing", "left alone"]


class Health(NamedTuple):
    """Of one provider. ``left alone``: the breaker did not let the last attempt through."""

    upstream: str
    state: State
    tries: int
    failed: int
    head_ms: int | None
    """Half of the answers began within so many milliseconds."""
    last_ok: float | None
    """Unix seconds."""
    trouble: str
    """Why the last attempt that failed did."""


def of_attempts(
    tried: Iterable[tuple[int, Sequence[AttemptRecord]]], names: Mapping[str, str]
) -> list[Health]:
    """``tried``: of exchanges, latest first, when each was, in milliseconds, and its attempts.
    ``names``: what people call their own providers."""
    by_upstream: dict[str, list[tuple[int, AttemptRecord]]] = defaultdict(list)
    for at, attempts in tried:
        for attempt in reversed(attempts):
            by_upstream[attempt.upstream].append((at, attempt))
    return sorted(_health(names.get(name, name), tries) for name, tries in by_upstream.items())


def _health(upstream: str, tried: Sequence[tuple[int, AttemptRecord]]) -> Health:
    failures = [attempt.failure for _, attempt in tried if attempt.failure]
    answered = [(at, attempt.head_ms) for at, attempt in tried if not attempt.failure]
    share = len(failures) / len(tried)
    state: State = "good"
    if tried[0][1].failure.startswith("ejected"):
        state = "left alone"
    elif share >= SHAKY:
        state = "failing" if share >= FAILING else "shaky"
    return Health(
        upstream,
        state,
        len(tried),
        len(failures),
        median_low([head_ms for _, head_ms in answered]) if answered else None,
        answered[0][0] / 1000 if answered else None,
        failures[0] if failures else "",
    )
