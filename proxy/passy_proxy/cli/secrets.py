"""See, rotate and retire the secret keys that sealed what organisations brought."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from passy_proxy import json
from passy_proxy.cli import Exit
from passy_proxy.cli._books import on_books, print_table, run
from passy_proxy.cli._terms import fail, place_options, placed
from passy_proxy.issue import Rotation, Sealing, Seals
from passy_proxy.keyring import FILE, KeyringError

MOST_SHOWN = 20
"""Secrets that could not be opened, for people."""


@click.group()
def command() -> None:
    """See, rotate and retire the secret keys (PASSY_SECRET_KEYS)."""


@command.command()
@on_books
def status(config: Path | None, data: Path | None, url: str | None, as_json: bool) -> None:
    """Show how many secrets are sealed with which key.

    Exits 1 when some cannot be opened, since their key was not given.
    """

    async def work(store: object) -> Sequence[Seals]:
        return await sealing(store).seals()

    found = run(work, config, data, url)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found]))
    elif found:
        rows = [
            (one.key_id or "?", state(one), str(one.current + one.earlier), str(one.earlier or ""))
            for one in found
        ]
        print_table(("Key", "State", "Secrets", "Earlier format"), rows)
    else:
        click.echo("nothing is sealed yet")
    if missing := [one.key_id or "?" for one in found if not one.given]:
        fail(f"not among the secret keys given: {', '.join(missing)}")


@command.command()
@on_books
def rotate(config: Path | None, data: Path | None, url: str | None, as_json: bool) -> None:
    """Put everything under the first secret key, while gateways are running.

    It wraps the data keys anew and opens no secret. Where it is interrupted, run it again. Exits 1
    when something could not be opened: that stays as it is.
    """
    if as_json:
        rotation = run(lambda store: sealing(store).rotate(), config, data, url)
        click.echo(json.dumps(asdict(rotation)))
    else:
        rotation = _watched(config, data, url)
        _tell(rotation)
    if rotation.failed:
        sys.exit(Exit.failed)


def _watched(config: Path | None, data: Path | None, url: str | None) -> Rotation:
    """With a bar for people."""
    bar = click.progressbar(length=1, label="Wrapping", file=sys.stderr)

    def tell(seen: int, size: int) -> None:
        bar.length = size
        bar.update(seen - bar.pos)

    with bar:
        rotation = run(lambda store: sealing(store).rotate(tell), config, data, url)
        bar.finish()
    return rotation


def _tell(rotation: Rotation) -> None:
    for place, why in list(rotation.failed.items())[:MOST_SHOWN]:
        click.secho(f"{place}: {why}", fg="red", err=True)
    if (more := len(rotation.failed) - MOST_SHOWN) > 0:
        click.echo(f"… and {more} more; all of them: passy secrets rotate --json", err=True)
    click.echo(f"{rotation.wrapped} of {rotation.seen} secrets were put under the first key")


@command.command()
@place_options
@click.option("--url", help="The database. [the store of keys in the configuration]")
@click.argument("key_id", metavar="KEY")
def retire(config: Path | None, data: Path | None, url: str | None, key_id: str) -> None:
    """Show what to put in the place of a secret key that shall open nothing any more.

    Digests of client keys and links of evidence hang on what is shown, so it is a secret itself;
    but nothing opens with it. Exits 1 while something is sealed with that key.
    """
    place, variables = placed(config, data)
    try:
        ring = place.keyring(variables)
    except KeyringError as error:
        fail(str(error), Exit.invalid_config)
    if key_id == ring.first:
        fail("the first key seals; put a new one in front of it, and rotate, before it is retired")
    try:
        entry = ring.retired(key_id)
    except KeyError:
        # What was given may be the secret key itself, which no message repeats.
        fail(f"that is the id of no key; KEY is one of {', '.join(ring.ids)}")

    async def work(store: object) -> Sequence[Seals]:
        return await sealing(store).seals()

    for one in run(work, config, data, url):
        if one.key_id == key_id:
            count = one.current + one.earlier
            fail(f"{count} secrets are sealed with {key_id}; run: passy secrets rotate")
    click.echo(entry)
    where = "PASSY_SECRET_KEYS" if "PASSY_SECRET_KEYS" in variables else str(place.data / FILE)
    click.echo(f"put this in {where} in the place of {key_id}, and restart", err=True)


def sealing(store: object) -> Sealing:
    """``store``, if it can do that. Exits 69 where it cannot."""
    if not isinstance(store, Sealing):
        fail("this store seals nothing", Exit.unavailable)
    return store


def state(one: Seals) -> str:
    """For people."""
    if not one.key_id:
        return "damaged"
    if not one.given:
        return "missing"
    return "seals" if one.first else "opens"
