"""Watch requests as they end, one line each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from passy_proxy import json, retold
from passy_proxy.cli._books import on_books, run
from passy_proxy.cli._exchanges import (
    Arrivals,
    Books,
    books_of,
    exchange_dict,
    key_name,
    money,
    status,
    tokens,
    tries,
)
from passy_proxy.config.problem import printable
from passy_proxy.records import UsageRecord
from passy_proxy.stores import StoreUnavailable

EVERY = 0.4
"""Seconds between two looks."""
AWAY = 2.0
"""The same while the books cannot be asked."""


@click.command()
@on_books
@click.option("--errors", is_flag=True, help="Only what was refused or failed.")
@click.option("--key", help="Only of this key: its id or its name.")
@click.option("--model", help="Only of this model, as asked; * is anything.")
@click.option("--organisation", help="Only of this organisation, by its id.")
def command(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, **wanted: Any
) -> None:
    """Watch requests as they end, one line each.

    They come from the books, a moment after they have ended: of all gateways that share them, in
    the order in which they are entered. With --json a line is an object. Ends with Ctrl-C.
    """
    run(lambda store: Watch(books_of(store), as_json, **wanted).go_on(), config, data, url)


@dataclass
class Watch:
    """What is shown, and of whose books."""

    books: Books
    as_json: bool
    errors: bool
    key: str | None
    model: str | None
    organisation: str | None
    known: dict[str, str] = field(default_factory=dict)
    """Keys' ids → what people call them."""

    async def go_on(self) -> None:
        """Until somebody interrupts it."""
        arrivals = self.books.arrivals()
        try:
            place = await arrivals.place()
            if not self.as_json:
                click.secho("waiting for requests; Ctrl-C ends it", dim=True, err=True)
            while True:
                place = await self._look(arrivals, place)
        finally:
            await arrivals.close()

    async def _look(self, arrivals: Arrivals, place: str) -> str:
        """Show what came since, and tell where to go on."""
        only = None if self.organisation is None else [self.organisation]
        try:
            found = await arrivals.after(place, only)
            lines = [line for record in found.records if (line := await self._line(record))]
        except StoreUnavailable as error:
            click.secho(f"passy: {error}; trying again", fg="yellow", err=True)
            await asyncio.sleep(AWAY)
            return place
        for line in lines:
            click.echo(line)
        if found.lost:
            click.secho("passy: some requests may be missing here", fg="yellow", err=True)
        if not found.more:
            await asyncio.sleep(EVERY)
        return found.place

    async def _line(self, record: UsageRecord) -> str:
        """Empty for one that is not wanted."""
        if self.errors and retold.ending(record) not in ("refused", "failed"):
            return ""
        if self.model is not None and not fnmatchcase(record.model, self.model):
            return ""
        name = await key_name(self.books, record.key_id, self.known)
        if self.key is not None and self.key not in (record.key_id, name):
            return ""
        return json.dumps(exchange_dict(record)).decode() if self.as_json else line(record, name)


def line(record: UsageRecord, key: str) -> str:
    """For people. What has a width of its own comes first."""
    at = datetime.fromtimestamp(record.at).astimezone()
    model = printable(record.model)[:40] or "-"
    facts = f"{record.duration_ms:>7,} ms {tokens(record):>13} {money(record.cost_nanos):>11}"
    flags = " ".join(retold.flags(record))
    why = "" if record.attempts else click.style(printable(record.outcome), fg="yellow")
    return (
        f"{click.style(f'{at:%H:%M:%S}', dim=True)} {status(record)} {facts}  {model:<20} "
        f"{click.style(printable(key)[:24], dim=True)}  {tries(record) or why}"
        + (f"  {click.style(flags, dim=True)}" if flags else "")
    )
