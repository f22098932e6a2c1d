"""What Usage is asked: the address of its page says all of it, and so is its permalink."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from passy_plugins.api.denied import Denied
from passy_plugins.stores.sql.reports import Asked, Dimension
from passy_portal.accounts import Visitor
from passy_portal.pages.reading import LAST, narrowed
from passy_portal.series import SHOWS
from passy_portal.spans import DAY, UNITS, Span, Unit

GROUPS: dict[str, tuple[Dimension, str]] = {
    "model": ("model", "Model"),
    "provider": ("upstream", "Provider"),
    "upstream_model": ("upstream_model", "Provider's model"),
    "key_id": ("key", "Key"),  # Nothing in an address is called key: it might be one.
    "team": ("team", "Team"),
    "user": ("user", "User"),
    "tag": ("tag", "Tag"),
    "route": ("route", "Route"),
    "outcome": ("outcome", "Outcome"),
    "status": ("status", "Status"),
}
"""What the page calls a dimension → the dimension, and its heading."""
MOST_DAYS: dict[Unit, int] = {"day": 366, "hour": 7}
_EPOCH = date(1970, 1, 1)


class Question:
    """As it stands in an address."""

    def __init__(self, given: Mapping[str, str]) -> None:
        today = datetime.now(UTC).date()
        self.unit: Unit = (
            "hour" if _one(given.get("unit", "day"), UNITS, "unit") == "hour" else "day"
        )
        most = MOST_DAYS[self.unit]
        self.until = _date(given.get("until", ""), today, "until")
        usual = self.until - timedelta(days=min(LAST, most) - 1)
        self.since = _date(given.get("since", ""), usual, "since")
        if not 0 <= (self.until - self.since).days < most:
            days = "a year" if self.unit == "day" else f"{most} days, by the hour"
            raise Denied(
                422, "invalid_value", f"From must be before to, by {days} at most.", "since"
            )
        self.by = _one(given.get("by", "model"), GROUPS, "by")
        self.show = _one(given.get("show", "cost"), SHOWS, "show")
        self.compare = given.get("compare", "") == "on"
        self.filters: dict[str, str] = {
            name: given[name][:200] for name in GROUPS if given.get(name)
        }

    @property
    def dimension(self) -> Dimension:
        return GROUPS[self.by][0]

    @property
    def span(self) -> Span:
        return Span(_milliseconds(self.since), _milliseconds(self.until) + DAY, self.unit)

    def asked(self, visitor: Visitor, span: Span | None = None) -> Asked:
        """In the words of the books, within what who asks may see."""
        span = span or self.span
        values = {GROUPS[name][0]: value for name, value in self.filters.items()}
        return Asked(span.since, span.until, narrowed(visitor, values))

    def link(self, path: str, **changed: str) -> str:
        """The address that asks the same but for what is ``changed``; ``""`` leaves it out."""
        asked = {"since": str(self.since), "until": str(self.until), "unit": self.unit,
                 "by": self.by, "show": self.show, "compare": "on" if self.compare else "",
                 **self.filters, **changed}  # fmt: skip
        return f"{path}?{urlencode({name: value for name, value in asked.items() if value})}"


def _one(text: str, known: Mapping[Any, Any], field: str) -> str:
    if text not in known:
        raise Denied(422, "invalid_value", f"One of {', '.join(known)}.", field)
    return text


def _date(text: str, otherwise: date, field: str) -> date:
    try:
        day = date.fromisoformat(text) if text else otherwise
    except ValueError:
        day = _EPOCH - timedelta(days=1)
    if not _EPOCH <= day <= date(9998, 12, 31):
        raise Denied(422, "invalid_value", "Write a date such as 2027-01-31.", field)
    return day


def _milliseconds(day: date) -> int:
    return (day - _EPOCH).days * DAY
