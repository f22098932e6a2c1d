"""Add, list and remove webhooks, which are told when a budget runs out."""

from __future__ import annotations

from pathlib import Path

import click

from passy_proxy import json
from passy_proxy.cli._books import on_books, run, tell_all
from passy_proxy.cli._shown import moment
from passy_proxy.cli._terms import fail
from passy_proxy.issue import Webhook


@click.group()
def command() -> None:
    """Add, list and remove webhooks, which are told when a budget runs out."""


@command.command()
@on_books
@click.argument("address", metavar="URL")
@click.option("--organisation", help="Whose budgets it is told of. [all: it is the operator's]")
def add(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    address: str,
    organisation: str | None,
) -> None:
    """Have somebody told, and show what the messages are signed with, this once."""
    made, secret = run(lambda store: store.add_webhook(organisation, address), config, data, url)
    if as_json:
        click.echo(json.dumps({"secret": secret, **_as_dict(made)}))
        return
    click.secho(secret, fg="green", bold=True)
    click.echo(f"{made.id}: keep the secret, it is not shown again", err=True)


@command.command("list")
@on_books
@click.option("--organisation", help="Only those of this organisation.")
def list_(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, organisation: str | None
) -> None:
    """List the webhooks, oldest first."""
    found = run(lambda store: store.list_webhooks(organisation), config, data, url)
    rows = [(each.id, each.url, each.organisation or "all") for each in found]
    tell_all(
        map(_as_dict, found),
        ("ID", "URL", "Organisation"),
        rows,
        "no webhooks yet; try: passy webhooks add URL",
        as_json,
    )


@command.command()
@on_books
@click.argument("id", metavar="ID")
def remove(config: Path | None, data: Path | None, url: str | None, as_json: bool, id: str) -> None:
    """Take a webhook away."""
    if not run(lambda store: store.remove_webhook(id), config, data, url):
        fail(f"there is no webhook {id}; try: passy webhooks list")
    click.echo(json.dumps({"id": id, "removed": True}) if as_json else f"{id} is removed")


def _as_dict(hook: Webhook) -> dict[str, object]:
    return {
        "id": hook.id,
        "organisation": hook.organisation,
        "url": hook.url,
        "events": hook.events,
        "created": moment(hook.created),
    }
