"""What is held on each level of tenancy: limits and models, as requests and answers have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from passy_plugins.api.words import Body, Models, RateText, Shown, Whole, rate_shown
from passy_proxy.records import Limits

MOST = (1 << 31) - 1


class LimitsSent(Body):
    """What is not named stays as it is; ``null`` is no limit."""

    requests: RateText | None = Field(default=None, description="Requests in a time: 60/min.")
    tokens: RateText | None = Field(default=None, description="Tokens in a time: 100k/min.")
    concurrency: Annotated[Whole, Field(ge=1, le=MOST)] | None = Field(
        default=None, description="Requests at once."
    )


class LimitsShown(Shown):
    requests: str | None
    tokens: str | None
    concurrency: int | None


class Level(Body):
    """What a PATCH of any level may hold."""

    limits: LimitsSent = Field(default=LimitsSent(), description="Those named are set.")
    models: Models | None = Field(
        default=None, description="The models allowed here; * stands for anything, null for all."
    )


def limits_shown(limits: Limits) -> LimitsShown:
    return LimitsShown(
        requests=rate_shown(limits.requests),
        tokens=rate_shown(limits.tokens),
        concurrency=limits.concurrency,
    )


def fields(body: Body) -> dict[str, Any]:
    """What was named, its limits among the rest."""
    named: dict[str, Any] = {name: getattr(body, name) for name in body.model_fields_set}
    limits = named.pop("limits", None)
    if limits is not None:
        named |= {name: getattr(limits, name) for name in limits.model_fields_set}
    return named


def limits_of(limits: LimitsSent) -> Limits:
    return Limits(limits.requests, limits.tokens, limits.concurrency)


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
