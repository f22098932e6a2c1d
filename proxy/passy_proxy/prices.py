"""What tokens cost: the operator's overlay first, then the price list of genai-prices."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from passy_proxy.records import Usage

if TYPE_CHECKING:
    from passy_proxy.config.model import PriceSettings

PICO = 1_000_000_000_000


class Price:
    """What one model's tokens cost, in whole picodollars (1e-12 USD) a token."""

    __slots__ = ("cached", "input", "output", "source")

    def __init__(self, input: int, output: int, cached: int, source: str) -> None:
        self.input = input
        self.output = output
        self.cached = cached
        self.source = source

    def cost(self, usage: Usage) -> int:
        """Billionths of a US dollar, rounded half up."""
        pico = (usage.input - usage.cached) * self.input
        pico += usage.cached * self.cached + usage.output * self.output
        return (pico + 500) // 1000


class Prices:
    """Prices by upstream and model. ``None`` means unknown, which is never shown as free."""

    def __init__(self, overlay: Mapping[str, PriceSettings]) -> None:
        self._overlay = dict(overlay)
        self._known: dict[tuple[str, str], Price | None] = {}

    def price(self, upstream: str, model: str, at: float) -> Price | None:
        """The price of ``model`` at ``upstream`` at the Unix time ``at``."""
        key = (upstream, model)
        if key not in self._known:
            self._known[key] = self._look_up(upstream, model)
        return self._known[key]

    def _look_up(self, upstream: str, model: str) -> Price | None:
        name = f"{upstream}/{model}"
        for pattern, one in self._overlay.items():
            if pattern == name or fnmatchcase(name, pattern):
                per = int(one.per)
                cached = one.input if one.cached_input is None else one.cached_input
                figures = [round(price * PICO / per) for price in (one.input, one.output, cached)]
                return Price(*figures, source=f"prices: {pattern}")
        return None
