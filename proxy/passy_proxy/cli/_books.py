"""What commands share that work on the books: which ones, and every failure in words and code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
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
from passy_proxy.config.problem import ConfigInvalid, printable
from passy_proxy.config.settings import read
from passy_proxy.issue import Issuing
from passy_proxy.keyring import KeyringError
from passy_proxy.registry import BadPlugin, Registry
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable
from passy_proxy.units import parse_duration

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

    def get_metavar(self, param: Any, ctx: Any) -> str:
        return self.name  # As it can be written, and not in capitals.

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            self.fail(error.errors()[0]["msg"].removeprefix("Value error, "), param, ctx)


class End(click.ParamType[float]):
    """A moment to come, as Unix seconds: ``30d`` from now, or an ISO date or time, UTC."""

    name = "30d|DATE"

    def get_metavar(self, param: Any, ctx: Any) -> str:
        return self.name

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        now = time.time()
        try:
            moment = datetime.fromisoformat(value)
            end = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            try:
                end = now + parse_duration(value)
            except ValueError:
                words = f"{value!r} is not understood; write 30d, 12h, or a date like 2030-01-31"
                self.fail(words, param, ctx)
        if end <= now:
            self.fail(f"{value} has passed", param, ctx)
        return end


class Dollars(click.FloatRange):
    """A number of at least 0, and not one that compares with nothing."""

    def __init__(self) -> None:
        super().__init__(min=0, max=9_000_000)

    def get_metavar(self, param: Any, ctx: Any) -> str:
        return "DOLLARS"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if isnan(number):
            self.fail("nan is no limit", param, ctx)
        return number


def run(work: Work[T], config: Path | None, data: Path | None, url: str | None) -> T:
    """What ``work`` gives, with an issuer of the right store; every failure in words and code."""
    place, variables = placed(config, data)
    try:
        site = Site(place.data, place.keyring(variables))
        kind, settings = _by_url(url) if url else configured(place, variables)

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


def configured(place: Place, variables: Mapping[str, str]) -> tuple[type[Issuing], Any]:
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


def listed(models: str | None) -> tuple[str, ...] | None:
    if models is None:
        return None
    return tuple(name for each in models.split(",") if (name := each.strip()))


def tell_all(
    facts: Iterable[dict[str, Any]],
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    nothing: str,
    as_json: bool,
    whole: int = 1,
) -> None:
    """Show a list: to a program the ``facts``, to people a table, or that there is ``nothing``."""
    if as_json:
        click.echo(json.dumps(list(facts)))
    elif rows := list(rows):
        print_table(titles, rows, whole)
    else:
        click.echo(nothing)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], whole: int = 1) -> None:
    """For people; of the columns the first, or ``whole`` of them, are never broken, and nothing of
    the others is left out. A cell may have several lines."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    columns = [Column(t, no_wrap=n < whole, overflow="fold") for n, t in enumerate(titles)]
    table = Table(*columns, box=box.SIMPLE)
    for row in rows:
        table.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    Console().print(table)
