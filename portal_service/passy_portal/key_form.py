"""The form of a key: what is typed there, and what is told before it is taken.

A name that another key has, and a limit that is used up already, are no mistakes: they are told,
and taken when the form is sent once more.
"""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any

from passy_plugins.api.denied import Denied
from passy_portal import fields as read
from passy_portal import owned
from passy_portal.door import Form
from passy_portal.pages.reading import now
from passy_portal.standing import amount, used_in
from passy_portal.tree import amount_told
from passy_proxy.issue import IssuedKey
from passy_proxy.periods import PERIODS, Period, window_at
from passy_proxy.records import Limits

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.accounts import Visitor

UNITS = ("usd", "tokens")
NANOS = 1_000_000_000


class Doubt(Denied):
    """Something that somebody may not have meant. It is taken when they say it again."""

    def __init__(self, code: str, message: str, param: str, sure: frozenset[str]) -> None:
        super().__init__(409, code, message, param)
        self.sure = " ".join(sorted(sure | {param}))
        """What the form says when it is sent again."""


def sure_of(form: Form) -> frozenset[str]:
    """Fields of which it was told, and which are meant as they are."""
    return frozenset(form.text("sure").split())


async def doubt(
    admin: Admin,
    visitor: Visitor,
    fields: dict[str, Any],
    sure: frozenset[str],
    key: IssuedKey | None = None,
) -> None:
    """Raises `Doubt` for a name that another key has, and for a limit that is below what ``key``
    has spent."""
    if "name" not in sure:
        name = fields["name"].lower()
        for other in await admin.keys_within(visitor.organisation):
            mine = key is not None and other.id == key.id
            if other.name.lower() == name and owned.sees(visitor, other) and not mine:
                message = f"{other.shown} is called so, too. Send it again to have two of them."
                raise Doubt("exists_already", message, "name", sure)
    limit, unit = fields["usage_limit"], fields["usage_unit"]
    if key is None or limit is None or "usage_limit" in sure:
        return
    period: Period = fields["usage_period"]
    used = await used_of(admin, key, period, unit, now())
    if used >= (limit * NANOS if unit == "usd" else limit):
        message = (
            f"{amount_told(used, unit)} are used {WHEN[period]}: with this limit it refuses at"
            " once. Send it again to set it."
        )
        raise Doubt("limit_is_used_up", message, "usage_limit", sure)


async def used_of(admin: Admin, key: IssuedKey, period: Period, unit: str, at: int) -> int:
    """In the window of a period that ``at`` (milliseconds) is in."""
    return amount((await used_in(admin, {key.id: period}, at))[key.id], unit)


WHEN = {"day": "today", "week": "this week", "month": "this month", "total": "in all"}


def resets(period: Period, at: int) -> float | None:
    """When a window ends, in Unix seconds; ``None`` for one that never does."""
    end = window_at(period, at / 1000).end
    return None if end == inf else end


def values_of(key: IssuedKey) -> dict[str, str]:
    """A key as the fields of its form."""
    limit = key.usage_limit
    return {
        "name": key.name,
        "email": key.email or "",
        "description": key.description,
        "team": key.team or "",
        "tags": ", ".join(key.tags),
        "models": ", ".join(key.models or ()),
        "networks": ", ".join(key.networks or ()),
        "requests": read.rate_typed(key.limits.requests),
        "tokens": read.rate_typed(key.limits.tokens),
        "concurrency": str(key.limits.concurrency or ""),
        "usage_limit": "" if limit is None else f"{limit:.9f}".rstrip("0").rstrip("."),
        "usage_period": key.usage_period or "month",
        "usage_unit": key.usage_unit or "usd",
        "expires": datetime.fromtimestamp(key.expires, UTC).strftime("%Y-%m-%d")
        if key.expires else "",
    }  # fmt: skip


def fields_of(form: Form, *, new: bool) -> dict[str, Any]:
    """What a form says of a key. `Denied` names the field that is wrong."""
    period = read.one_of(form, "usage_period", PERIODS)
    unit = form.text("usage_unit") or "usd"
    if unit not in UNITS:
        raise read.wrong("There is no such unit.", "usage_unit")
    amount = read.tokens if unit == "tokens" else read.dollars
    name = form.text("name")
    if not name:
        raise read.wrong("Give the key a name.", "name")
    fields: dict[str, Any] = {
        "name": name,
        "email": read.email(form),
        "description": form.text("description"),
        "team": form.text("team") or None,
        "tags": tuple(form.lines("tags")),
        "models": tuple(form.lines("models")) or None,
        "networks": tuple(form.lines("networks")) or None,
        "limits": Limits(
            read.rate(form, "requests"), read.rate(form, "tokens"),
            read.whole(form, "concurrency"),
        ),
        "usage_limit": amount(form, "usage_limit"),
        "usage_period": period,
        "usage_unit": unit,
        "expires": read.day(form, "expires"),
    }  # fmt: skip
    if new:
        kind = form.text("kind")
        if kind not in ("", "test", "trial"):
            raise read.wrong("There is no such kind.", "kind")
        fields |= {"is_test": kind == "test", "is_trial": kind == "trial"}
    return fields
