"""Add, list, change and try what organisations bring: upstreams and credentials of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from passy_proxy import json
from passy_proxy.cli import Exit
from passy_proxy.cli._books import Setting, listed, on_books, print_table, run
from passy_proxy.cli._terms import fail, placed
from passy_proxy.cli._trial import Tried, carried_out, show, try_one
from passy_proxy.config.document import environment
from passy_proxy.config.model import BaseURL
from passy_proxy.config.problem import ConfigInvalid, suggestion
from passy_proxy.issue import NewCredential, NewProvider, Organiser
from passy_proxy.records import Credential, CustomProvider, StoredCredential
from passy_proxy.registry import Registry

Everything = tuple[list[CustomProvider], list[StoredCredential]]

KEY_ENV = click.option(
    "--key-env", metavar="VARIABLE", help="Holds the key. [asked for, or standard input]"
)
DIALECT = click.option("--dialect", help="What it speaks. [openai]")
BASE_URL = click.option("--base-url", type=Setting(BaseURL, "URL"), help="Where it is.")
PROVIDER = "prov_"
"""How ids of upstreams begin; those of credentials do not."""


@click.group()
def command() -> None:
    """Add, list, change and try organisations' own upstreams and credentials."""


@command.command()
@on_books
@click.option("--organisation", required=True, help="The id of the organisation.")
@click.option(
    "--for",
    "upstream",
    metavar="UPSTREAM",
    help="A key for this one: a shared upstream by its name, or one of its own by its id.",
)
@click.option("--name", default="", help="What people call the upstream, or the key.")
@BASE_URL
@DIALECT
@click.option("--models", default="*", help="Models it serves, with commas. [*]")
@click.option("--priority", type=int, default=0, help="Of several, the lowest is first. [0]")
@KEY_ENV
@click.option("--no-key", is_flag=True, help="The upstream needs no key.")
@click.option("--test", "tested", is_flag=True, help="Try it first; what fails is not entered.")
@click.option("--anyway", is_flag=True, help="With --test: enter it all the same.")
def add(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Enter an upstream of an organisation's own, or a key of its own for an upstream.

    The key comes from a variable or by standard input: everybody can read a command's arguments.
    """
    organisation, upstream = given["organisation"], given["upstream"]
    own = given["name"] and given["base_url"]
    if bool(upstream) == bool(own) or (upstream and (given["no_key"] or given["base_url"])):
        raise click.UsageError("give either --for, or --name and --base-url")
    models = listed(given["models"])
    if not models:
        raise click.UsageError("--models names none; leave it out for all")
    dialect = known_dialect(given["dialect"])
    key = None if given["no_key"] else secret(given["key_env"])

    async def work(store: Organiser) -> str:
        name, priority = given["name"], given["priority"]
        if upstream:
            mine = NewCredential(organisation, upstream, name, priority)
            return await store.add_credential(mine, key or "")
        place = given["base_url"]
        new = NewProvider(organisation, name, place, dialect, models, priority=priority)
        return await store.add_provider(new, key)

    if given["tested"]:
        _tested(given, dialect, key, config, data, url)
    made = run(work, config, data, url)
    said = {"organisation": organisation, "id": made} | ({"for": upstream} if upstream else {})
    click.echo(json.dumps(said).decode() if as_json else made)
    if upstream and not upstream.startswith(PROVIDER):
        tell_if_unknown(upstream, config, data)


def tell_if_unknown(upstream: str, config: Path | None, data: Path | None) -> None:
    """Say where the configuration has no such upstream: other gateways at these books may."""
    place, variables = placed(config, data)
    with suppress(ConfigInvalid):
        known = place.file(variables).upstreams
        if upstream not in known:
            meant = suggestion(upstream, known)
            message = f"passy: this configuration has no upstream {upstream!r}{meant}"
            click.secho(message, fg="yellow", err=True)


def _tested(
    given: Mapping[str, Any],
    dialect: str,
    key: str | None,
    config: Path | None,
    data: Path | None,
    url: str | None,
) -> None:
    """Exits 1 where the key cannot be used, unless it is to be entered ``anyway``."""
    upstream, base_url = given["upstream"] or "", given["base_url"]
    own = None
    if base_url:
        own = CustomProvider("new", "new", "new", dialect, base_url, ("*",))
    elif upstream.startswith(PROVIDER):
        own = run(lambda store: known_provider(store, upstream), config, data, url)
    tried = Tried(Credential(key, "new") if key else None, upstream, own)
    place, variables = placed(config, data)
    result = asyncio.run(carried_out(tried, None, place, variables))
    show(result, err=True)
    if not (result.ok or given["anyway"]):
        fail("nothing is entered; with --anyway it is all the same")


async def known_provider(store: Organiser, id: str) -> CustomProvider:
    """Exits 1 where there is none."""
    for one in await store.list_providers():
        if one.id == id:
            return one
    unknown(id)


def known_dialect(name: str | None) -> str:
    """Exits 2 where there is none of that name."""
    if Registry().dialect(name or "openai") is None:
        raise click.BadParameter(f"there is no dialect {name}", param_hint="--dialect")
    return name or "openai"


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
@click.option("--organisation", help="The id of one organisation. [all]")
def list_(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, organisation: str | None
) -> None:
    """List upstreams and keys; of a key its last four characters."""

    async def work(store: Organiser) -> Everything:
        providers = await store.list_providers(organisation)
        return list(providers), list(await store.list_credentials(organisation))

    providers, credentials = run(work, config, data, url)
    if as_json:
        own, keys = [asdict(each) for each in providers], [asdict(each) for each in credentials]
        click.echo(json.dumps({"providers": own, "credentials": keys}))
        return
    rows: list[tuple[object, ...]] = []
    for one in sorted(providers, key=lambda one: (one.organisation, one.priority)):
        models = "all" if one.models == ("*",) else ", ".join(one.models)
        where = f"{one.url}\n{models}"
        rows.append((one.id, one.organisation, one.name, where, one.priority, state(one.active)))
        rows += [_row(key, "  its key") for key in credentials if key.upstream == one.id]
    ids = {one.id for one in providers}
    rows += [_row(key, f"key for {key.upstream}") for key in credentials if key.upstream not in ids]
    if rows:
        titles = ("ID", "Organisation", "Name", "Where", "Priority", "State")
        print_table(titles, [tuple(map(str, row)) for row in rows])
    else:
        click.echo("no providers yet; try: passy providers add --help")


def _row(key: StoredCredential, where: str) -> tuple[object, ...]:
    name = f"{key.name} …{key.shown}".strip() if key.shown else key.name
    return key.id, key.organisation, name, where, key.priority, state(key.active)


def state(active: bool) -> str:
    return "active" if active else "disabled"


@command.command()
@on_books
@click.argument("one", metavar="ID")
@click.option("--name", help="What people call it.")
@click.option("--priority", type=int, help="Of several, the lowest is first.")
@BASE_URL
@DIALECT
@click.option("--models", help="Models an upstream serves, with commas.")
@click.option("--new-key", is_flag=True, help="Replace the key, by standard input.")
@KEY_ENV
def change(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, one: str, **given: Any
) -> None:
    """Change an upstream or a key; what is not named stays as it is."""
    new_key, variable = given.pop("new_key"), given.pop("key_env")
    values = {name: value for name, value in given.items() if value is not None}
    if "dialect" in values:
        known_dialect(values["dialect"])
    if "models" in values:
        values["models"] = listed(values["models"]) or ("*",)
    if "base_url" in values:
        values["url"] = values.pop("base_url")
    if one.startswith(PROVIDER) and (new_key or variable):
        raise click.UsageError("name the key itself; see: passy providers list")
    if not one.startswith(PROVIDER) and not values.keys() <= {"name", "priority"}:
        raise click.UsageError("of a key there is a name, a priority and the key itself")
    if new_key or variable:
        values["secret"] = secret(variable)
    if not values:
        raise click.UsageError("say what to change")
    _change(one, values, config, data, url)
    click.echo(json.dumps({"id": one}).decode() if as_json else f"{one} is changed")


@command.command()
@on_books
@click.argument("one", metavar="ID")
def disable(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, one: str
) -> None:
    """Use an upstream or a key no more."""
    _change(one, {"status": "disabled"}, config, data, url)
    click.echo(json.dumps({"id": one, "active": False}).decode() if as_json else f"{one}: disabled")


@command.command()
@on_books
@click.argument("one", metavar="ID")
def enable(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, one: str
) -> None:
    """Use an upstream or a key again."""
    _change(one, {"status": "active"}, config, data, url)
    click.echo(json.dumps({"id": one, "active": True}).decode() if as_json else f"{one}: active")


@command.command()
@on_books
@click.argument("one", metavar="ID")
def delete(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, one: str
) -> None:
    """Forget a key, or an upstream and its keys."""

    async def work(store: Organiser) -> bool:
        if one.startswith(PROVIDER):
            return await store.remove_provider(one)
        return await store.remove_credential(one)

    if not run(work, config, data, url):
        unknown(one)
    click.echo(json.dumps({"id": one, "deleted": True}) if as_json else f"{one} is deleted")


def _change(
    one: str, values: dict[str, Any], config: Path | None, data: Path | None, url: str | None
) -> None:
    async def work(store: Organiser) -> bool:
        if one.startswith(PROVIDER):
            return await store.change_provider(one, **values)
        return await store.change_credential(one, **values)

    if not run(work, config, data, url):
        unknown(one)


def unknown(one: str) -> NoReturn:
    fail(f"there is no provider and no key {one}; try: passy providers list")


command.add_command(try_one)
