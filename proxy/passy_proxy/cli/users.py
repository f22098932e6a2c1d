"""Create, list, show, change and delete users, and say where they are members."""

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
from passy_proxy.cli._terms import fail
from passy_proxy.issue import ROLES


@click.group()
def command() -> None:
    """Create, list, show, change and delete users, and say where they are members."""


@command.command()
@on_books
@click.argument("email")
@click.option("--name", default="", help="What people call them.")
@click.option("--id", help="An id that another service gave them.")
@level_options
def create(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    email: str,
    name: str,
    **given: Any,
) -> None:
    """Enter a user and show their id."""

    async def work(store: Any) -> Any:
        return await store.create_user(email, name, **stated(given))

    made = run(work, config, data, url)
    click.echo(json.dumps(as_dict(made)).decode() if as_json else made.id)


@command.command("list")
@on_books
@click.option("--organisation", help="Only its members.")
def list_(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, organisation: str | None
) -> None:
    """List the users, oldest first."""
    found = run(lambda store: store.list_users(organisation), config, data, url)
    rows = [(each.id, each.email or "", each.name, each.status) for each in found]
    tell_all(
        map(as_dict, found),
        ("ID", "E-mail", "Name", "State"),
        rows,
        "no users yet; try: passy users create EMAIL",
        as_json,
    )


@command.command()
@on_books
@click.argument("id", metavar="ID")
def show(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Show what is held on a user."""
    tell(run(lambda store: store.get_user(id), config, data, url), "user", id, as_json)


@command.command()
@on_books
@click.argument("id", metavar="ID")
@click.option("--email", help="Another address.")
@change_options
def change(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str, **given: Any
) -> None:
    """Change what is held on a user. Gateways follow within seconds."""
    said = changes(given)

    async def work(store: Any) -> Any:
        await store.change_user(id, **said)
        return await store.get_user(id)

    tell(run(work, config, data, url), "user", id, as_json)


@command.command()
@on_books
@click.argument("id", metavar="ID")
def delete(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Delete a user with their keys. What was spent stays in the books."""
    deleted = run(lambda store: store.delete_user(id), config, data, url)
    tell_deleted(deleted, "user", id, as_json)


@command.command()
@on_books
@click.argument("id", metavar="ID")
@click.argument("organisation")
@click.argument("role", type=click.Choice((*ROLES, "none")))
def place(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Give a user a role in an organisation; none takes it from them."""
    id, organisation, role = given["id"], given["organisation"], given["role"]

    async def work(store: Any) -> bool:
        if role == "none":
            return bool(await store.remove_member(organisation, id))
        await store.set_member(organisation, id, role)
        return True

    if not run(work, config, data, url):
        fail(f"{id} is no member of {organisation}")
    told = {"organisation": organisation, "user_id": id, "role": role}
    click.echo(json.dumps(told) if as_json else f"{id}: {role} in {organisation}")
