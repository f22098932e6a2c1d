"""Create, list, show and disable client keys."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import click
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from passy_proxy import json
from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, fail, place_options, placed
from passy_proxy.config.build import settings_of
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.config.settings import read
from passy_proxy.issue import IssuedKey, Issuing, NewKey
from passy_proxy.keyring import Keyring, KeyringError
from passy_proxy.records import Limits
from passy_proxy.registry import BadPlugin, Registry
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable
from passy_proxy.units import Rate, RateSetting, parse_duration

if TYPE_CHECKING:
    from passy_proxy.place import Place

T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]
"""What is done with an open store: an `Issuer`, and an `Organiser` where it is one."""

URL_STORE = "sql"
"""The kind of store that ``--url`` means."""


def on_books(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where the keys are, and ``--json``."""
    url = click.option("--url", help="The database. [the store of keys in the configuration]")
    as_json = click.option("--json", "as_json", is_flag=True, help="As JSON.")
    return place_options(url(as_json(command)))


Span = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds, as a duration of any length."""


class Setting(click.ParamType[Any]):
    """A value written as in gateway.yaml: a rate, a duration."""

    def __init__(self, kind: Any, name: str) -> None:
        self._adapter = TypeAdapter[Any](kind)
        self.name = name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            self.fail(error.errors()[0]["msg"].removeprefix("Value error, "), param, ctx)


class End(click.ParamType[float]):
    """A moment to come, as Unix seconds: ``30d`` from now, or an ISO date or time, UTC."""

    name = "30d|DATE"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        now = time.time()
        try:
            moment = datetime.fromisoformat(value)
            end = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            end = now + Setting(Span, self.name).convert(value, param, ctx)
        if end <= now:
            self.fail(f"{value} has passed", param, ctx)
        return end


class Limit(click.FloatRange):
    """A number of at least 0, and not one that compares with nothing."""

    def __init__(self) -> None:
        super().__init__(min=0, max=sys.float_info.max)

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if isnan(number):
            self.fail("nan is no limit", param, ctx)
        return number


@click.group()
def command() -> None:
    """Create, list, show and disable client keys."""


@command.command()
@on_books
@click.option("--name", default="", help="Whose it is or what it is for.")
@click.option("--email", help="Whom to ask about it.")
@click.option("--description", default="", help="A sentence about it.")
@click.option("--organisation", help="The id of the organisation it belongs to.")
@click.option("--limit", "usage_limit", type=Limit(), help="Usage limit: kept, not enforced yet.")
@click.option("--requests", type=Setting(RateSetting, "60/min"), help="Requests in a time.")
@click.option("--tokens", type=Setting(RateSetting, "100k/min"), help="Tokens in a time.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at the same time.")
@click.option("--models", help="Models it may ask for, with commas; * stands for anything. [all]")
@click.option("--expires", type=End(), help="When it ends. [never]")
@click.option("--test", "is_test", is_flag=True, help="A test key: no e-mail, “Test Key”.")
@click.option("--trial", "is_trial", is_flag=True, help="A trial key: “Trial Key”.")
def create(
    config: Path | None,
    data: Path | None,
    url: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a key and show it, this once."""
    limits = Limits(given.pop("requests"), given.pop("tokens"), given.pop("concurrency"))
    wanted = NewKey(limits=limits, models=listed(given.pop("models")), **given)
    record, key = run(lambda issuer: issuer.create_key(wanted), config, data, url)
    if as_json:
        click.echo(json.dumps({"key": key, **as_dict(record)}))
        return
    click.secho(key, fg="green", bold=True)
    if record.usage_limit is not None:
        click.secho("the usage limit is kept, not enforced yet", fg="yellow", err=True)
    click.echo(f"{record.id} ({record.description}): keep the key, it is not shown again", err=True)


@command.command("list")
@on_books
def list_(config: Path | None, data: Path | None, url: str | None, as_json: bool) -> None:
    """List the keys, oldest first."""
    keys = run(lambda issuer: issuer.list_keys(), config, data, url)
    if as_json:
        click.echo(json.dumps([as_dict(key) for key in keys]))
    elif keys:
        print_table(("ID", "Key", "Name", "State", "Last used"), map(_row, keys))
    else:
        click.echo("no keys yet; try: passy keys create")


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
def disable(
    config: Path | None, data: Path | None, url: str | None, as_json: bool, key_id: str
) -> None:
    """Disable a key for good. Gateways follow within seconds."""
    _tell(run(lambda issuer: issuer.disable_key(key_id), config, data, url), key_id, as_json)


def run(work: Work[T], config: Path | None, data: Path | None, url: str | None) -> T:
    """What ``work`` gives, with an issuer of the right store; every failure in words and code."""
    place, variables = placed(config, data)
    try:
        site = Site(place.data, Keyring.load(place.folder(), variables.get("PASSY_SECRET_KEYS")))
        kind, settings = _by_url(url) if url else _configured(place, variables)

        async def within() -> T:
            edits: list[tuple[str, str]] = []

            async def edited(kind: str, subject: str) -> None:
                edits.append((kind, subject))

            async with kind.issuer(settings, site, edited) as issuer:
                done = await work(issuer)
            if edits and not url:
                await announced(edits, place, variables, site)
            return done

        return asyncio.run(within())
    except (KeyringError, BadPlugin) as error:
        fail(str(error), Exit.invalid_config)
    except ConfigInvalid as error:
        complain(error)
    except StoreUnavailable as error:
        fail(str(error), Exit.unavailable)
    except ValueError as error:
        fail(str(error))


async def announced(
    edits: Sequence[tuple[str, str]], place: Place, variables: Mapping[str, str], site: Site
) -> None:
    """Tell those who listen through a store of the configuration. Whoever cannot be told that way
    sees it in the books, a little later."""
    registry = Registry()
    for entry in place.file(variables).stores.values():
        kind: Any = registry.store(entry.kind)
        if kind is None or issubclass(kind, Issuing) or not hasattr(kind, "publish"):
            continue
        settings = read(settings_of(kind), entry.settings)
        if not isinstance(settings, list):
            store = kind(settings, site)
            with suppress(StoreUnavailable):
                for edit in edits:
                    await store.publish(*edit)
            await store.stop()


def _by_url(url: str) -> tuple[type[Issuing], Any]:
    kind = Registry().store(URL_STORE)
    if kind is None or not issubclass(kind, Issuing):
        fail("the plugin for databases is not installed", Exit.unavailable)
    try:
        return kind, settings_of(kind).model_validate({"url": url})
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"], param_hint="--url") from None


def _configured(place: Place, variables: Mapping[str, str]) -> tuple[type[Issuing], Any]:
    """The first store in the configuration that can issue keys."""
    registry = Registry()
    for entry in place.file(variables).stores.values():
        kind = registry.store(entry.kind)
        if kind is not None and issubclass(kind, Issuing):
            settings = read(settings_of(kind), entry.settings)
            if isinstance(settings, list):
                raise ConfigInvalid(settings)
            return kind, settings
    fail(
        "no store in the configuration keeps keys; add one of kind sql, or use --url",
        Exit.invalid_config,
    )


def as_dict(key: IssuedKey) -> dict[str, Any]:
    """A key for a program: times in ISO 8601, rates as amount and seconds."""
    limits = {"requests": key.limits.requests, "tokens": key.limits.tokens}
    rates = {name: rate and asdict(rate) for name, rate in limits.items()}
    return {
        "id": key.id,
        "shown": key.shown,
        "digest": key.digest.hex(),
        "name": key.name,
        "email": key.email,
        "description": key.description,
        "organisation": key.organisation,
        "user_id": key.user_id,
        "limits": {**rates, "concurrency": key.limits.concurrency},
        "models": key.models,
        "usage_limit": key.usage_limit,
        "is_test": key.is_test,
        "is_trial": key.is_trial,
        "state": state(key),
        "expires": _moment(key.expires),
        "created": _moment(key.created),
        "last_used": _moment(key.last_used),
    }


def state(key: IssuedKey) -> str:
    """``active``, ``disabled`` or ``expired``."""
    if key.disabled:
        return "disabled"
    return "expired" if key.expires is not None and key.expires <= time.time() else "active"


def listed(models: str | None) -> tuple[str, ...] | None:
    if models is None:
        return None
    return tuple(name for each in models.split(",") if (name := each.strip()))


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _rate(rate: Rate | None) -> str | None:
    if rate is None:
        return None
    names = {1: "s", 60: "min", 3_600: "h", 86_400: "day"}
    return f"{rate.amount}/{names.get(int(rate.seconds), f'{rate.seconds:g}s')}"


def _limits(key: IssuedKey) -> str:
    limits = key.limits
    parts = [
        (_rate(limits.requests), "requests"),
        (_rate(limits.tokens), "tokens"),
        (limits.concurrency, "at once"),
        (key.usage_limit, "usage"),
    ]
    return ", ".join(f"{what} {unit}" for what, unit in parts if what is not None)


def _row(key: IssuedKey) -> tuple[str, ...]:
    used = (_moment(key.last_used) or "never").partition("T")[0]
    return key.id, key.shown, key.name or key.description, state(key), used


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """For people; the first column is never broken."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    first, *others = titles
    table = Table(Column(first, no_wrap=True), *others, box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _tell(key: IssuedKey | None, key_id: str, as_json: bool) -> None:
    """Show one key on its own; exit 1 when there is none."""
    if key is None:
        fail(f"there is no key {key_id}; try: passy keys list")
    if as_json:
        click.echo(json.dumps(as_dict(key)))
        return
    facts = as_dict(key) | {
        "limits": _limits(key) or None,
        "models": key.models and ", ".join(key.models),
    }
    for name, value in facts.items():
        if value not in (None, "", False):
            click.echo(f"{name.replace('_', ' '):<13} {value}")
