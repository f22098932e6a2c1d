"""What each kind of token has cost, by sums by price; told where it comes to what was booked.

A price as the books hold it says what a million tokens of each kind cost. Where the sums of a
price, reckoned by it, are not the sum of its costs but for the rounding of each request, nothing is
said of those: some requests reached a dearer tier, some counted a token as two kinds, or the price
became known later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from passy_plugins.stores.sql.reports import Group, Sums

NANO = 10**9
_RATE = re.compile(r"([0-9.e+-]+) (in|out|cached|cache_write|audio_input|reasoning|audio_output)")
_FEE = re.compile(r", ([0-9.e+-]+) a request")


class Kinds(NamedTuple):
    """Billionths of a dollar for tokens of each kind; together they are all that was spent."""

    input: int = 0
    """Read, and neither cached, nor written into a cache, nor heard."""
    cached: int = 0
    cache_write: int = 0
    audio_input: int = 0
    output: int = 0
    """Written, and neither thought nor spoken."""
    reasoning: int = 0
    audio_output: int = 0
    requests: int = 0
    """For being asked at all."""
    unknown: int = 0
    """What cannot be told apart exactly."""

    def plus(self, other: Kinds) -> Kinds:
        return Kinds(*map(sum, zip(self, other, strict=True)))


def kinds_of(groups: Iterable[Group]) -> Kinds:
    """Of groups by ``price`` alone."""
    found = Kinds()
    for group in groups:
        found = found.plus(_kinds(group.by[0], group.sums))
    return found


def _kinds(price: str, sums: Sums) -> Kinds:
    if not sums.cost_nanos:
        return Kinds()
    rates = rates_of(price)
    if rates is None:
        return Kinds(unknown=sums.cost_nanos)
    tokens = {
        "input": sums.input - sums.cached - sums.cache_write - sums.audio_input,
        "cached": sums.cached,
        "cache_write": sums.cache_write,
        "audio_input": sums.audio_input,
        "output": sums.output - sums.reasoning - sums.audio_output,
        "reasoning": sums.reasoning,
        "audio_output": sums.audio_output,
    }
    # Requests without a cost are none of this price, and cost nothing by it.
    exact = {kind: rates[kind] * count for kind, count in tokens.items()}
    exact["requests"] = sums.requests * rates["requests"]
    off = sum(exact.values(), Fraction(0)) - sums.cost_nanos
    if max(off, -off) * 2 > sums.requests or min(tokens.values()) < 0:
        return Kinds(unknown=sums.cost_nanos)
    rounded = {kind: int(nanos + Fraction(1, 2)) for kind, nanos in exact.items()}
    largest = max(rounded, key=lambda kind: rounded[kind])
    rounded[largest] += sums.cost_nanos - sum(rounded.values())
    return Kinds(**rounded)


def rates_of(price: str) -> dict[str, Fraction] | None:
    """Nanodollars a token of each kind, and a request, as the lowest tier of a price has them;
    ``None`` where the text is no price."""
    told, per, rest = price.partition(" per 1M")
    if not per:
        return None
    try:
        said = {kind: Fraction(rate) * NANO / 10**6 for rate, kind in _RATE.findall(told)}
        fee = _FEE.match(rest)
        a_request = Fraction(fee[1]) * NANO if fee else Fraction(0)
        read, written = said["in"], said["out"]
    except (ValueError, KeyError):
        return None
    return {
        "input": read,
        "output": written,
        "requests": a_request,
        **{kind: said.get(kind, read) for kind in ("cached", "cache_write", "audio_input")},
        **{kind: said.get(kind, written) for kind in ("reasoning", "audio_output")},
    }
