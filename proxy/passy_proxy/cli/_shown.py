"""How commands show what stores keep: to programs and to people."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from passy_proxy.config.problem import printable
from passy_proxy.issue import IssuedKey, StoredBudget
from passy_proxy.records import Limits
from passy_proxy.units import Rate


def as_dict(key: IssuedKey) -> dict[str, Any]:
    """A key for a program: times in ISO 8601, rates as amount and seconds."""
    return {
        "id": key.id,
        "shown": key.shown,
        "digest": key.digest.hex(),
        "name": key.name,
        "email": key.email,
        "description": key.description,
        "organisation": key.organisation,
        "team": key.team,
        "user_id": key.user_id,
        "tags": key.tags,
        "limits": limits_dict(key.limits),
        "models": key.models,
        "networks": key.networks,
        "upstreams": key.upstreams,
        "usage_limit": key.usage_limit,
        "usage_period": key.usage_period,
        "usage_unit": key.usage_unit,
        "is_test": key.is_test,
        "is_trial": key.is_trial,
        "state": state(key, time.time()),
        "expires": moment(key.expires),
        "created": moment(key.created),
        "created_by": key.created_by,
        "old_until": moment(key.old_until),
        "last_used": moment(key.last_used),
    }


def told(value: Any) -> str:
    """One of the facts about something, in one line."""
    return printable(", ".join(value) if isinstance(value, tuple) else str(value))


def limits_dict(limits: Limits) -> dict[str, Any]:
    rates = {"requests": limits.requests, "tokens": limits.tokens}
    return {
        **{name: rate and asdict(rate) for name, rate in rates.items()},
        "concurrency": limits.concurrency,
    }


def budget_dict(stored: StoredBudget) -> dict[str, Any]:
    """Dollars as a number, tokens as one."""
    budget = stored.budget
    amount = budget.amount / 10**9 if budget.unit == "usd" else budget.amount
    return {
        "id": budget.id,
        "kind": stored.kind,
        "subject": stored.subject,
        "unit": budget.unit,
        "amount": amount,
        "period": budget.period,
        "hard": budget.hard,
        "alerts": budget.alerts,
        "created": moment(stored.created),
    }


def state(key: IssuedKey, now: float) -> str:
    """``active``, ``disabled``, ``expired`` or ``deleted``."""
    if key.deleted is not None:
        return "deleted"
    if key.disabled:
        return "disabled"
    return "expired" if key.expires is not None and key.expires <= now else "active"


def moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def rate_text(rate: Rate | None) -> str | None:
    if rate is None:
        return None
    names = {1: "s", 60: "min", 3_600: "h", 86_400: "day"}
    return f"{rate.amount}/{names.get(int(rate.seconds), f'{rate.seconds:g}s')}"


def limits_text(limits: Limits) -> str:
    parts = [
        (rate_text(limits.requests), "requests"),
        (rate_text(limits.tokens), "tokens"),
        (limits.concurrency, "at once"),
    ]
    return ", ".join(f"{what} {unit}" for what, unit in parts if what is not None)
