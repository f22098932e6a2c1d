"""How providers behave: how fast they are, how often they fail, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple


class Failed(NamedTuple):
    """Of one try, in the words that the gateway has for it."""

    condition: str
    """What an alias's ``fallback_on`` calls it; empty where the next target is asked anyway."""
    status: int
    """0 when no head came."""
    why: str
    fastest: int
    slowest: int
    """Milliseconds until it is known."""
    maybe_billed: bool = False


LIMITED = Failed("rate_limit", 429, "status: status 429", 60, 300)
SERVER = Failed("5xx", 500, "status: status 500", 200, 2_500)
OVERLOADED = Failed("5xx", 503, "status: status 503", 40, 900)
SILENT = Failed(
    "timeout", 0, "timeout: the upstream sent no complete head in time", 30_000, 30_001, True
)
BROKEN = Failed(
    "5xx", 0, "broken: the upstream closed the connection without an answer", 900, 9_000, True
)
UNREACHED = Failed("", 0, "connect: no connection: timed out", 5_000, 5_001)
LEFT_ALONE = Failed("", 0, "ejected: it failed too often and is left alone for 21 s more", 0, 1)
TOO_LONG = Failed("4xx", 400, "status: status 400", 60, 250)
ALWAYS = Failed("5xx", 500, "status: status 500", 0, 2)
"""What `echo:500` does."""


@dataclass(frozen=True, slots=True)
class Provider:
    """``first``: the median of milliseconds to the head of an answer; ``speed``: tokens a second.
    ``faults``: how probable each failure is on a usual day."""

    first: float
    speed: float
    faults: Mapping[Failed, float]


PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(
        410, 85, {LIMITED: 0.003, SERVER: 0.003, SILENT: 0.0006, BROKEN: 0.0004, TOO_LONG: 0.001}
    ),
    "azure": Provider(360, 70, {LIMITED: 0.03, OVERLOADED: 0.004, SILENT: 0.002, UNREACHED: 0.003}),
    "anthropic": Provider(820, 65, {OVERLOADED: 0.012, LIMITED: 0.004, TOO_LONG: 0.003}),
    "groq": Provider(110, 420, {LIMITED: 0.02}),
    "deepinfra": Provider(540, 45, {SERVER: 0.008, SILENT: 0.003, LIMITED: 0.006}),
    "nebius": Provider(480, 50, {SERVER: 0.004}),
    "echo": Provider(2, 9_000, {}),
    "own": Provider(190, 38, {UNREACHED: 0.008, BROKEN: 0.004}),
}
BAD: Mapping[str, Mapping[Failed, float]] = {
    "openai": {OVERLOADED: 0.38, SILENT: 0.04, LEFT_ALONE: 0.24},
    "azure": {LIMITED: 0.42},
}
"""What they do in a bad hour."""


def fault_of(random: Random, upstream: str, bad: bool) -> Failed | None:
    """What goes wrong at one try; ``None`` where nothing does."""
    faults = PROVIDERS[upstream].faults
    if bad and upstream in BAD:
        faults = BAD[upstream]
    drawn = random.random()
    for failed, probable in faults.items():
        drawn -= probable
        if drawn < 0:
            return failed
    return None


def spread(random: Random, median: float, sigma: float = 0.45) -> float:
    """Around a median, with a long tail, as times and sizes are."""
    return median * random.lognormvariate(0.0, sigma)


def among(random: Random, counts: Sequence[float]) -> int:
    """A place in ``counts``, each as probable as it is large."""
    return random.choices(range(len(counts)), counts)[0]
