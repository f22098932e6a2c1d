"""Add, list and disable what organisations bring: upstreams and credentials of their own."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from passy_proxy import json
from passy_proxy.cli import Exit
from passy_proxy.cli._terms import fail
from passy_proxy.cli.keys import Setting, listed, on_books, print_table, run
from passy_proxy.config.document import environment
from passy_proxy.config.model import BaseURL
from passy_proxy.issue import NewProvider, Organiser
from passy_proxy.records import CredentialRef, CustomProvider
from passy_proxy.registry import Registry

Everything = tuple[list[CustomProvider], list[CredentialRef]]


@click.group()
def command() -> None:
    """Add, list and disable organisations' own upstreams and credentials."""


@command.command()
@on_books
@click.option("--organisation", required=True, help="The id of the organisation.")
@click.option("--for", "shared", metavar="UPSTREAM", help="A key for this shared upstream.")
@click.option("--name", help="What people call the upstream.")
@click.option("--base-url", type=Setting(BaseURL, "URL"), help="Where it is.")
@click.option("--dialect", default="openai", help="What it speaks. [openai]")
@click.option("--models", default="*", help="Models it serves, with commas. [*]")
@click.option("--key-env", metavar="VARIABLE", help="Holds the key. [asked for, or standard input]")
@click.option("--no-key", is_flag=True, help="The upstream needs no key.")
def add(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Enter an upstream of an organisation's own, or its own key for a shared one.

    The key comes from a variable or by standard input: everybody can read a command's arguments.
    """
    organisation, shared = given["organisation"], given["shared"]
    own = given["name"] and given["base_url"]
    if bool(shared) == bool(own) or (shared and given["no_key"]):
        raise click.UsageError("give either --for, or --name and --base-url")
    if Registry().dialect(given["dialect"]) is None:
        raise click.BadParameter(f"there is no dialect {given['dialect']}", param_hint="--dialect")
    key = None if given["no_key"] else secret(given["key_env"])

    async def work(store: Organiser) -> str:
        if shared:
            await store.set_credential(organisation, shared, key or "")
            return str(shared)
        models = listed(given["models"]) or ("*",)
        new = NewProvider(organisation, given["name"], given["base_url"], given["dialect"], models)
        return await store.add_provider(new, key)

    made = run(work, config, data, url)
    said = {"organisation": organisation, "for" if shared else "id": made}
    click.echo(json.dumps(said).decode() if as_json else made)


def secret(variable: str | None) -> str:
    """The key, from a variable, from a person, or from standard input. Exits 2 without one."""
    if variable:
        key = environment().get(variable, "")
    elif sys.stdin.isatty():
        key = click.prompt("Key", hide_input=True, err=True)
    else:
        key = sys.stdin.readline()
    if not (key := key.strip()):
        fail("the key is empty; give it by --key-env or standard input", Exit.wrong_usage)
    if not (key.isascii() and key.isprintable()):
        fail("the key has characters that no header can carry", Exit.wrong_usage)
    return key


@command.command("list")
@on_books
def list_(config: Path | None, data: Path | None, url: str | None, as_json: bool) -> None:
    """List upstreams, and which shared ones have a key; never a key."""

    async def work(store: Organiser) -> Everything:
        return list(await store.list_providers()), list(await store.list_credentials())

    providers, credentials = run(work, config, data, url)
    if as_json:
        own = [asdict(each) for each in providers]
        shared = [{"organisation": each.organisation, "for": each.upstream} for each in credentials]
        click.echo(json.dumps({"providers": own, "credentials": shared}))
        return
    rows = [
        (one.id, one.organisation, one.name, one.url, "active" if one.active else "inactive")
        for one in providers
    ]
    rows += [("", one.organisation, one.upstream, "(shared)", "active") for one in credentials]
    if rows:
        print_table(("ID", "Organisation", "Name", "URL", "State"), rows)
    else:
        click.echo("no providers yet; try: passy providers add --help")


@command.command()
@on_books
@click.argument("provider", metavar="ID")
def disable(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, provider: str
) -> None:
    """Ask an upstream no more."""

    async def work(store: Organiser) -> bool:
        return await store.set_status(provider, "inactive")

    if not run(work, config, data, url):
        fail(f"there is no provider {provider}; try: passy providers list")
    said = {"id": provider, "active": False}
    click.echo(json.dumps(said).decode() if as_json else f"{provider} is inactive")
