"""Limits, models and budgets of keys and of what is above them, as gateway.yaml writes them."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from passy_proxy.config.settings import Settings, setting
from passy_proxy.issue import DEFAULT_ALERTS
from passy_proxy.periods import Period
from passy_proxy.records import Budget, Level, Limits
from passy_proxy.units import Count, RateSetting

NANOS = 10**9
"""In a dollar."""
MOST_DOLLARS = 9_000_000


def tags_of(tags: tuple[str, ...]) -> tuple[str, ...]:
    for tag in tags:
        if not tag.strip() or "," in tag or not tag.isprintable():
            raise ValueError(f"{tag!r} is no tag: printable characters without a comma")
    return tags


Tags = Annotated[tuple[str, ...], AfterValidator(tags_of)]


class BudgetSettings(Settings):
    """Either ``usd`` or ``tokens``."""

    usd: float | None = setting(None, "US dollars.", ge=0, le=MOST_DOLLARS)
    tokens: Count | None = setting(None, "Tokens in and out, such as 10M.", ge=0)
    per: Period = setting("month", "day, week (from Monday on) or month, of UTC; total: for ever.")
    hard: bool = setting(True, "Refuse what is beyond it; else only tell.")
    alerts: tuple[int, ...] = setting(DEFAULT_ALERTS, "Percentages at which somebody is told.")

    @model_validator(mode="after")
    def _either(self) -> BudgetSettings:
        if (self.usd is None) == (self.tokens is None):
            raise ValueError("give either 'usd' or 'tokens'")
        if any(not 1 <= percent <= 1_000 for percent in self.alerts):
            raise ValueError("an alert is at 1 to 1000 percent of the budget")
        return self

    def budget(self, whose: str) -> Budget:
        """``whose`` is what it is told from others by, beside its unit and period."""
        unit: Literal["usd", "tokens"] = "tokens" if self.usd is None else "usd"
        amount = self.tokens or 0
        if self.usd is not None:
            amount = round(Fraction(repr(self.usd)) * NANOS)
        alerts = tuple(sorted(set(self.alerts)))
        return Budget(f"{whose}:{unit}:{self.per}", unit, amount, self.per, self.hard, alerts)


class LevelSettings(Settings):
    """What is held on a level above the keys, beside their own."""

    requests: RateSetting | None = setting(None, "Requests of all its keys, such as 600/min.")
    tokens: RateSetting | None = setting(None, "Tokens of all its keys, such as 1M/min.")
    concurrency: int | None = setting(None, "Requests of all its keys at the same time.", ge=1)
    models: tuple[str, ...] | None = setting(
        None, "The models its keys may ask for, exact or with *; all when not given."
    )
    budgets: tuple[BudgetSettings, ...] = setting((), "How much its keys may spend.")
    disabled: bool = setting(False, "Refuse its keys.")

    def level(self, kind: Literal["organisation", "team", "user"], id: str) -> Level:
        return Level(
            kind,
            id,
            Limits(self.requests, self.tokens, self.concurrency),
            self.models,
            budgets_of(self.budgets, f"{kind}:{id}"),
        )


def budgets_of(settings: tuple[BudgetSettings, ...], whose: str) -> tuple[Budget, ...]:
    return tuple([each.budget(whose) for each in settings])
