"""Create and list organisations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from passy_proxy import json
from passy_proxy.cli.keys import on_books, print_table, run
from passy_proxy.issue import Organisation, Organiser


@click.group()
def command() -> None:
    """Create and list organisations."""


@command.command()
@on_books
@click.argument("name")
def create(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, name: str
) -> None:
    """Enter an organisation and show its id."""

    async def work(store: Organiser) -> str:
        return await store.create_organisation(name)

    made = run(work, config, data, url)
    click.echo(json.dumps({"id": made, "name": name}).decode() if as_json else made)


@command.command("list")
@on_books
def list_(config: Path | None, data: Path | None, url: str | None, as_json: bool) -> None:
    """List the organisations, oldest first."""

    async def work(store: Organiser) -> list[Organisation]:
        return list(await store.list_organisations())

    found = run(work, config, data, url)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found]))
    elif found:
        print_table(("ID", "Name"), [(each.id, each.name) for each in found])
    else:
        click.echo("no organisations yet; try: passy organisations create NAME")
