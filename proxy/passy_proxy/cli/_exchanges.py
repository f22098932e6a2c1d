"""What `tail` and `request` share: how they ask the books, and records for programs and people."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

import click

from passy_proxy import retold
from passy_proxy.cli import Exit
from passy_proxy.cli._terms import fail
from passy_proxy.config.problem import printable
from passy_proxy.issue import IssuedKey
from passy_proxy.records import UsageRecord
from passy_proxy.units import dollars

COLOURS = {"ok": "green", "refused": "yellow", "failed": "red", "left": "magenta"}
"""How it ended → its colour."""


class Arrived(Protocol):
    """Some records, and where to go on."""

    @property
    def records(self) -> Collection[UsageRecord]: ...
    @property
    def place(self) -> str: ...
    @property
    def more(self) -> bool: ...
    @property
    def lost(self) -> bool: ...


class Arrivals(Protocol):
    """What is entered in the books, as it comes."""

    def place(self) -> Awaitable[str]: ...
    def after(self, place: str, organisations: Collection[str] | None) -> Awaitable[Arrived]: ...
    def close(self) -> Awaitable[None]: ...


class Exchanges(Protocol):
    def exchange(self, id: str) -> Awaitable[UsageRecord | None]: ...


@runtime_checkable
class Books(Protocol):
    """An open store whose books can be read."""

    @property
    def exchanges(self) -> Exchanges: ...
    def arrivals(self) -> Arrivals: ...
    def get_key(self, key_id: str) -> Awaitable[IssuedKey | None]: ...


def books_of(store: object) -> Books:
    """Exits 69 where it keeps none."""
    if not isinstance(store, Books):
        fail("this store keeps no books that could be read", Exit.unavailable)
    return store


async def key_name(books: Books, id: str, known: dict[str, str]) -> str:
    """What people call a key; remembered."""
    if id not in known:
        key = await books.get_key(id) if id else None
        known[id] = (key.name or key.description or key.shown) if key else id
    return known[id]


def exchange_dict(record: UsageRecord) -> dict[str, Any]:
    """For programs, as the admin API tells it."""
    told = record._asdict()
    nanos = told.pop("cost_nanos")
    at = datetime.fromtimestamp(record.at, UTC).isoformat(timespec="milliseconds")
    told["at"] = at.replace("+00:00", "Z")
    told["user"] = told.pop("user_id")
    told["tags"] = [tag for tag in record.tags.split(",") if tag]
    told["cost_usd"] = None if nanos is None else dollars(nanos)
    told["attempts"] = [each._asdict() for each in retold.attempts_of(record)]
    told["filters"] = [each._asdict() for each in retold.filters_of(record)]
    return told


def money(nanos: int | None) -> str:
    return "" if nanos is None else f"${dollars(round(nanos, min(0, 3 - len(str(nanos)))))}"


def status(record: UsageRecord) -> str:
    """In its colour, three wide."""
    found = retold.ending(record)
    number = "499" if found == "left" else str(record.status or "-")
    return click.style(f"{number:>3}", fg=COLOURS[found])


def tries(record: UsageRecord) -> str:
    """``openai✗429 → anthropic✓``, coloured."""
    return " → ".join(
        printable(attempt.upstream)
        + click.style(retold.mark(attempt), fg="red" if attempt.failure else "green")
        for attempt in record.attempts
    )


def tokens(record: UsageRecord) -> str:
    about = "~" if record.estimated else ""
    return f"{about}{record.input:,}→{record.output:,}" if record.input or record.output else ""
