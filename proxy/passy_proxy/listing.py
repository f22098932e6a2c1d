"""What the price list says of a model, in whole numbers, as it travels between two processes."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from passy_proxy.structs import Struct

DAY = 86_400


class Question(NamedTuple):
    """A model at a provider, who is told by base URL, else by name (which may be empty)."""

    url: str
    provider: str
    model: str


class Rates(NamedTuple):
    """Attodollars (1e-18 USD) a request, and a token of each kind."""

    request: int
    input: int
    output: int
    cached: int
    cache_write: int
    reasoning: int
    audio_input: int
    audio_output: int


class Tier(Struct, frozen=True, array_like=True):
    """Rates of all tokens of a request that reads more than ``above`` tokens."""

    above: int
    rates: Rates


class Period(Struct, frozen=True, array_like=True):
    """When prices hold: from a moment on, or for some hours of each day, or (neither) always."""

    tiers: tuple[Tier, ...]
    """By ``above``, smallest (-1) first; empty where nothing is said of tokens."""
    since: float | None = None
    """Unix seconds."""
    daily: tuple[float, float] | None = None
    """Seconds of the UTC day; may run over midnight."""

    def active(self, at: float) -> bool:
        if self.since is not None:
            return at >= self.since
        if self.daily is None:
            return True
        start, end = self.daily
        second = at % DAY
        return start <= second < end if start <= end else second >= start or second < end

    def edges(self, at: float) -> tuple[float, ...]:
        """Unix seconds, around ``at``, at which this period may begin or end."""
        if self.since is not None:
            return (self.since,)
        if self.daily is None:
            return ()
        midnight = at - at % DAY
        days = (midnight - DAY, midnight, midnight + DAY)
        return tuple(day + second for day in days for second in self.daily)


class Listing(Struct, frozen=True, array_like=True):
    """All that is known of one model's prices."""

    name: str
    """``provider/model``, as the list calls them."""
    periods: tuple[Period, ...]
    """The last active one counts, and the first if none is."""
    context: int = 0
    """Tokens that fit into a request and its answer; 0 where the list does not say."""

    def period(self, at: float) -> tuple[Period, float, float]:
        """The prices at the Unix time ``at``, and from when until when they are these."""
        found = next((p for p in reversed(self.periods) if p.active(at)), self.periods[0])
        edges = [edge for period in self.periods for edge in period.edges(at)]
        since = max((edge for edge in edges if edge <= at), default=-inf)
        return found, since, min((edge for edge in edges if edge > at), default=inf)


class Answer(Struct, frozen=True, array_like=True):
    """What a question found: ``None`` for a model that is not listed."""

    listing: Listing | None
    provider: bool = True
    """Whether the list knows the provider at all."""
