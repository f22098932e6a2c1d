"""Create, list, show, change and delete teams."""

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


@click.group()
def command() -> None:
    """Create, list, show, change and delete teams."""


@command.command()
@on_books
@click.argument("organisation")
@click.argument("name")
@level_options
def create(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    organisation: str,
    name: str,
    **given: Any,
) -> None:
    """Enter a team of an organisation and show its id."""

    async def work(store: Any) -> Any:
        return await store.create_team(organisation, name, **stated(given))

    made = run(work, config, data, url)
    click.echo(json.dumps(as_dict(made)).decode() if as_json else made.id)


@command.command("list")
@on_books
@click.option("--organisation", help="Only those of this organisation.")
def list_(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, organisation: str | None
) -> None:
    """List the teams, oldest first."""
    found = run(lambda store: store.list_teams(organisation), config, data, url)
    rows = [(each.id, each.name, each.organisation, each.status) for each in found]
    tell_all(
        map(as_dict, found),
        ("ID", "Name", "Organisation", "State"),
        rows,
        "no teams yet; try: passy teams create ORGANISATION NAME",
        as_json,
    )


@command.command()
@on_books
@click.argument("id", metavar="ID")
def show(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Show what is held on a team."""
    tell(run(lambda store: store.get_team(id), config, data, url), "team", id, as_json)


@command.command()
@on_books
@click.argument("id", metavar="ID")
@change_options
def change(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str, **given: Any
) -> None:
    """Change what is held on a team. Gateways follow within seconds."""
    said = changes(given)

    async def work(store: Any) -> Any:
        await store.change_team(id, **said)
        return await store.get_team(id)

    tell(run(work, config, data, url), "team", id, as_json)


@command.command()
@on_books
@click.argument("id", metavar="ID")
def delete(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Delete a team with its keys. What was spent stays in the books."""
    deleted = run(lambda store: store.delete_team(id), config, data, url)
    tell_deleted(deleted, "team", id, as_json)
