"""Create, list, show, change, roll, disable and delete client keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NoReturn

import click

from passy_proxy import json
from passy_proxy import keys as client_keys
from passy_proxy.cli._books import (
    Dollars,
    End,
    Setting,
    Span,
    listed,
    on_books,
    run,
    tell_all,
)
from passy_proxy.cli._shown import as_dict, limits_text, moment, state, told
from passy_proxy.cli._terms import fail
from passy_proxy.issue import IssuedKey, NewKey
from passy_proxy.periods import PERIODS
from passy_proxy.records import Limits
from passy_proxy.units import Count, RateSetting

OPTIONS = (
    click.option("--name", help="Whose it is or what it is for."),
    click.option("--email", help="Whom to ask about it."),
    click.option("--description", help="A sentence about it."),
    click.option("--team", help="The id of a team of its organisation."),
    click.option("--user", "user_id", help="The id of the user it belongs to."),
    click.option("--tags", help="Words for its records in the books, with commas."),
    click.option("--limit", "usage_limit", type=Dollars(), help="Dollars it may spend. [any]"),
    click.option(
        "--token-limit", type=Setting(Count, "10M"), help="Tokens it may use, instead. [any]"
    ),
    click.option(
        "--per", "usage_period", type=click.Choice(PERIODS), help="How often. [once: total]"
    ),
    click.option("--requests", type=Setting(RateSetting, "60/min"), help="Requests in a time."),
    click.option("--tokens", type=Setting(RateSetting, "100k/min"), help="Tokens in a time."),
    click.option("--concurrency", type=click.IntRange(min=1), help="Requests at the same time."),
    click.option("--models", help="Models it may ask for, with commas; * is anything. [all]"),
    click.option("--networks", help="Address ranges it may be used from, with commas. [all]"),
    click.option("--upstreams", help="Upstreams it may reach, with commas. [all; of a test, echo]"),
    click.option("--expires", type=End(), help="When it ends. [never]"),
)
LISTS = ("models", "networks", "upstreams")
CLEARED = (*LISTS, "usage_limit", "requests", "tokens", "concurrency", "expires", "team", "user_id")


def key_options(command: Any) -> Any:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.group()
def command() -> None:
    """Create, list, show, change, roll, disable and delete client keys."""


@command.command()
@on_books
@key_options
@click.option("--organisation", help="The id of the organisation it belongs to.")
@click.option("--test", "is_test", is_flag=True, help="A test key: no e-mail, “Test Key”.")
@click.option("--trial", "is_trial", is_flag=True, help="A trial key: “Trial Key”.")
def create(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, **given: Any
) -> None:
    """Make a key and show it, this once."""
    limits = Limits(given.pop("requests"), given.pop("tokens"), given.pop("concurrency"))
    wanted = NewKey(limits=limits, **stated(given))
    record, key = run(lambda issuer: issuer.create_key(wanted), config, data, url)
    _tell_secret(record, key, as_json)


@command.command("list")
@on_books
@click.option("--organisation", help="Only those of this organisation.")
def list_(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, organisation: str | None
) -> None:
    """List the keys, oldest first."""
    keys = run(lambda issuer: issuer.list_keys(organisation), config, data, url)
    tell_all(
        map(as_dict, keys),
        ("ID", "Key", "Name", "State", "Last used"),
        map(_row, keys),
        "no keys yet; try: passy keys create",
        as_json,
        whole=2,
    )


@command.command()
@on_books
@click.argument("key_id", metavar="ID")
def show(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, key_id: str
) -> None:
    """Show what is known of a key."""
    _tell(run(lambda issuer: issuer.get_key(key_id), config, data, url), key_id, as_json)


@command.command()
@on_books
@click.argument("key_id", metavar="ID")
@key_options
@click.option("--enable", is_flag=True, help="Let it in again, if it was disabled.")
@click.option(
    "--no",
    "without",
    multiple=True,
    type=click.Choice([name.replace("usage_limit", "limit") for name in CLEARED]),
    help="What it shall not have any more.",
)
def change(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    key_id: str,
    **given: Any,
) -> None:
    """Change what is said of a key. Gateways follow within seconds."""
    enable, without = given.pop("enable"), given.pop("without")
    changes = stated(given) | {{"limit": "usage_limit"}.get(name, name): None for name in without}
    if enable:
        changes["disabled"] = False
    if not changes:
        raise click.UsageError("say what is to be changed; see: passy keys change --help")
    _tell(
        run(lambda issuer: issuer.change_key(key_id, **changes), config, data, url), key_id, as_json
    )


@command.command()
@on_books
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    type=Setting(Span, "1h"),
    default="0s",
    help="How long the old secret is good beside the new one. [not at all]",
)
def roll(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    key_id: str,
    grace: float,
) -> None:
    """Give a key a new secret and show it, this once."""
    rolled = run(lambda issuer: issuer.roll_key(key_id, grace), config, data, url)
    if rolled is None:
        unknown(key_id)
    record, key = rolled
    _tell_secret(record, key, as_json)
    if not as_json and record.old_until is not None:
        click.echo(f"the old one is good until {moment(record.old_until)}", err=True)


@command.command()
@on_books
@click.argument("key_id", metavar="ID")
def disable(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, key_id: str
) -> None:
    """Disable a key. Gateways follow within seconds."""
    _tell(run(lambda issuer: issuer.disable_key(key_id), config, data, url), key_id, as_json)


@command.command()
@on_books
@click.argument("key_id", metavar="ID")
def delete(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, key_id: str
) -> None:
    """Delete a key for good. What it has spent stays in the books."""
    if not run(lambda issuer: issuer.delete_key(key_id), config, data, url):
        unknown(key_id)
    click.echo(json.dumps({"id": key_id, "deleted": True}) if as_json else f"{key_id} is deleted")


def unknown(key_id: str) -> NoReturn:
    """Exits 1. A key that was given in place of its id is not said once more."""
    if key_id.startswith(client_keys.PREFIX):
        fail("a key is known by its id, which begins with key_; try: passy keys list")
    fail(f"there is no key {key_id}; try: passy keys list")


def stated(given: dict[str, Any]) -> dict[str, Any]:
    """What was said, with lists as lists."""
    said = {name: value for name, value in given.items() if value is not None}
    if "token_limit" in said:
        if "usage_limit" in said:
            raise click.UsageError("a key has one limit: --limit in dollars, or --token-limit")
        said |= {"usage_limit": float(said.pop("token_limit")), "usage_unit": "tokens"}
    elif "usage_limit" in said:
        said["usage_unit"] = "usd"
    for name in LISTS:
        if name in said:
            said[name] = listed(said[name])
    if "tags" in said:
        said["tags"] = listed(said["tags"])
    return said


def _row(key: IssuedKey) -> tuple[str, ...]:
    used = (moment(key.last_used) or "never").partition("T")[0]
    return key.id, key.shown, key.name or key.description, state(key, time.time()), used


def _tell_secret(record: IssuedKey, key: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"key": key, **as_dict(record)}))
        return
    click.secho(key, fg="green", bold=True)
    click.echo(f"{record.id} ({record.description}): keep the key, it is not shown again", err=True)


def _tell(key: IssuedKey | None, key_id: str, as_json: bool) -> None:
    """Show one key on its own; exit 1 when there is none."""
    if key is None:
        unknown(key_id)
    if as_json:
        click.echo(json.dumps(as_dict(key)))
        return
    facts = as_dict(key) | {"limits": limits_text(key.limits) or None}
    if key.usage_limit is not None:
        dollars = key.usage_unit == "usd"
        amount = f"${key.usage_limit:.12g}" if dollars else f"{key.usage_limit:,.0f} tokens"
        facts["usage_limit"] = f"{amount} ({key.usage_period})"
    del facts["usage_period"], facts["usage_unit"]
    for name, value in facts.items():
        if value not in (None, "", False, ()):
            click.echo(f"{name.replace('_', ' '):<13} {told(value)}")
