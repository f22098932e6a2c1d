"""Look for records of usage that were edited, removed, added or moved, and for wrong sums."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import click

from passy_proxy import json
from passy_proxy.cli import Exit
from passy_proxy.cli._books import on_books, run
from passy_proxy.cli._terms import fail
from passy_proxy.evidence import Verdict

MOST_SHOWN = 100
"""Findings for people."""


Tell = Callable[[int, int], None]
"""Is told how many rows were looked at, and how many there are."""


@runtime_checkable
class Verifying(Protocol):
    """An open store that can look through its books."""

    def verify(self, tell: Tell | None = None, noted: str = "") -> Awaitable[Verdict]: ...


@click.command()
@on_books
@click.option("--noted", default="", metavar="HEAD", help="The head that an earlier check told.")
def command(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, noted: str
) -> None:
    """Look for records of usage that were edited, removed, added or moved.

    It works while gateways are running. Exits 1 when it finds something.
    """
    if as_json:
        verdict: Verdict = run(lambda store: looked(store, None, noted), config, data, url)
        click.echo(json.dumps({"ok": verdict.ok, **_as_dict(verdict)}))
    else:
        verdict = _watched(config, data, url, noted)
        _tell(verdict)
    if not verdict.ok:
        sys.exit(Exit.failed)


def _watched(config: Path | None, data: Path | None, url: str | None, noted: str) -> Verdict:
    """With a bar for people."""
    bar = click.progressbar(length=1, label="Looking through the books", file=sys.stderr)

    def tell(seen: int, size: int) -> None:
        bar.length = size
        bar.update(seen - bar.pos)

    with bar:
        verdict: Verdict = run(lambda store: looked(store, tell, noted), config, data, url)
        bar.finish()
    return verdict


def looked(store: object, tell: Tell | None, noted: str) -> Awaitable[Verdict]:
    """What ``store`` says of its books. Exits 69 where it cannot."""
    if not isinstance(store, Verifying):
        fail("this store keeps no evidence", Exit.unavailable)
    return store.verify(tell, noted)


def _as_dict(verdict: Verdict) -> dict[str, object]:
    return asdict(verdict) | {
        "findings": [each._asdict() for each in verdict.findings],
        "wrong_sums": [each._asdict() for each in verdict.wrong_sums],
    }


def _tell(verdict: Verdict) -> None:
    for each in verdict.findings[:MOST_SHOWN]:
        place = f"chain {each.chain}, {each.seq}" if each.chain else "no chain"
        click.secho(f"{each.kind:<8}", fg="red", bold=True, nl=False)
        click.echo(f" {each.id or '?'} ({place}): {each.why}")
    if (more := len(verdict.findings) - MOST_SHOWN) > 0:
        click.echo(f"… and {more} more; all of them: passy verify --json")
    for wrong in verdict.wrong_sums[:MOST_SHOWN]:
        click.secho("sums    ", fg="red", bold=True, nl=False)
        click.echo(f" {wrong.unit} {wrong.at}, {wrong.of}: {wrong.why}")
    if (more := len(verdict.wrong_sums) - MOST_SHOWN) > 0:
        click.echo(f"… and {more} more sums; all of them: passy verify --json")
    click.echo(f"{verdict.proved} records as they were written, with digests of both bodies")
    click.echo(f"{verdict.bare} records as they were written, without digests")
    click.echo(f"{verdict.before} records from before there was evidence")
    if verdict.dropped:
        day = datetime.fromtimestamp(verdict.dropped_before / 1000, UTC)
        click.echo(f"{verdict.dropped} records from before {day:%Y-%m-%d} dropped for their age")
    right = verdict.sums - len(verdict.wrong_sums)
    click.echo(f"{max(right, 0)} sums by hour and day as the records come to")
    if verdict.head:
        click.echo(f"head {verdict.head}")
