"""Which requests are asked for, in an address: of the page, of its twin in JSON, of files and of
the live tail the same."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import urlencode

from pydantic import Field, ValidationError

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import words_of
from passy_plugins.api.usage import Filters
from passy_plugins.stores.sql.exchanges import Ended, Wanted
from passy_portal.accounts import Visitor
from passy_portal.pages.reading import narrowed

Last = Literal["1h", "24h", "7d", "30d"]
SPANS: dict[Last, tuple[timedelta, str]] = {
    "1h": (timedelta(hours=1), "Last hour"),
    "24h": (timedelta(hours=24), "Last 24 hours"),
    "7d": (timedelta(days=7), "Last 7 days"),
    "30d": (timedelta(days=30), "Last 30 days"),
}
ENDINGS: dict[Ended, str] = {
    "ok": "Answered well",
    "errors": "Errors",
    "refused": "Refused (4xx)",
    "failed": "Failed",
    "left": "The client left",
}
NAMES = {
    "search": "Search",
    "ended": "Ended",
    "key_id": "Key",
    "model": "Model",
    "upstream": "Provider",
    "upstream_model": "Model there",
    "team": "Team",
    "user": "User",
    "tag": "Tag",
    "outcome": "Outcome",
    "route": "Route",
    "slower_ms": "Slower than",
    "retried": "Tries",
    "last": "Time",
    "since": "From",
    "until": "To",
}
"""What an address may have, and what people call it."""


class Sought(Filters):
    """Which requests are meant."""

    last: Last | None = Field(default=None, description="The time before now; instead of `since`.")
    ended: Ended | None = Field(
        default=None,
        description="How they ended: `refused` with 4xx, `left` by the client, `failed` in any "
        "other way but `ok`; `errors` are those refused and those failed.",
    )
    slower_ms: int = Field(default=0, ge=0, le=86_400_000, description="They took this or longer.")
    retried: bool = Field(default=False, description="More than one attempt was made.")

    def wanted(self, visitor: Visitor) -> Wanted:
        """In the words of the books, within what who asks may see: what is another organisation's,
        or somebody else's, is nothing."""
        whole = self
        if self.last is not None and self.since is None:
            until = self.until or datetime.now(UTC)
            whole = self.model_copy(update={"since": until - SPANS[self.last][0]})
        asked, mine = whole.asked(), narrowed(visitor)
        theirs = any(asked.values.get(name, value) != value for name, value in mine.items())
        return Wanted(
            asked.since, asked.since if theirs else asked.until, {**asked.values, **mine},
            asked.search, self.ended, self.slower_ms, self.retried,
        )  # fmt: skip

    @property
    def filters(self) -> dict[str, str]:
        """Those in force, as they stand in an address."""
        told: dict[str, str] = {}
        for name in NAMES:
            value = getattr(self, name)
            if isinstance(value, datetime):
                told[name] = value.strftime("%Y-%m-%dT%H:%M:%S").removesuffix(":00")
            elif value not in (None, "", False, 0):
                told[name] = "1" if value is True else str(value)
        return told

    def query(self, **changed: str) -> str:
        """As it stands in an address but for what is ``changed``; ``""`` leaves it out."""
        return urlencode({k: v for k, v in {**self.filters, **changed}.items() if v})


def sought(given: Mapping[str, str]) -> Sought:
    """What an address asks; empty fields ask nothing. `Denied` for what cannot be."""
    said = {name: given[name].strip() for name in NAMES if given.get(name, "").strip()}
    try:
        return Sought.model_validate(said)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        raise Denied(422, "invalid_value", f"{NAMES[name]}: {words_of(wrong)}.", name) from None
