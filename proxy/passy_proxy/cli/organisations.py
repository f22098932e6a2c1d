"""Create, list, show, change and delete organisations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from passy_proxy import json
from passy_proxy.cli._books import on_books, run, tell_all
from passy_proxy.cli._levels import (
    as_dict,
    change_options,
    changes,
    level_options,
    stated,
    tell,
    tell_deleted,
)

BYOK = click.option(
    "--byok",
    type=click.Choice(("own_first", "own_only")),
    help="Whether the operator's credentials serve where it has none of its own.",
)


@click.group()
def command() -> None:
    """Create, list, show, change and delete organisations."""


@command.command()
@on_books
@click.argument("name")
@level_options
@BYOK
def create(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, name: str, **given: Any
) -> None:
    """Enter an organisation and show its id."""
    made = run(lambda store: store.create_organisation(name, **stated(given)), config, data, url)
    click.echo(json.dumps({"id": made, "name": name}).decode() if as_json else made)


@command.command("list")
@on_books
def list_(config: Path | None, data: Path | None, url: str | None, as_json: bool) -> None:
    """List the organisations, oldest first."""
    found = run(lambda store: store.list_organisations(), config, data, url)
    rows = [(each.id, each.name, each.status) for each in found]
    tell_all(
        map(as_dict, found),
        ("ID", "Name", "State"),
        rows,
        "no organisations yet; try: passy organisations create NAME",
        as_json,
    )


@command.command()
@on_books
@click.argument("id", metavar="ID")
def show(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Show what is held on an organisation."""
    found = run(lambda store: store.get_organisation(id), config, data, url)
    tell(found, "organisation", id, as_json)


@command.command()
@on_books
@click.argument("id", metavar="ID")
@change_options
@BYOK
def change(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str, **given: Any
) -> None:
    """Change what is held on an organisation. Gateways follow within seconds."""
    said = changes(given)

    async def work(store: Any) -> Any:
        await store.change_organisation(id, **said)
        return await store.get_organisation(id)

    tell(run(work, config, data, url), "organisation", id, as_json)


@command.command()
@on_books
@click.argument("id", metavar="ID")
def delete(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Delete an organisation with its keys and teams. What was spent stays in the books."""
    deleted = run(lambda store: store.delete_organisation(id), config, data, url)
    tell_deleted(deleted, "organisation", id, as_json)
