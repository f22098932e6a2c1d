"""The options of what can be held on each level above the keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import click

from passy_proxy import json
from passy_proxy.cli._books import Setting, listed
from passy_proxy.cli._shown import limits_dict, limits_text, moment, told
from passy_proxy.cli._terms import fail
from passy_proxy.issue import Organisation, Team, User
from passy_proxy.units import RateSetting

T = TypeVar("T", bound=Organisation | Team | User)

HELD = ("requests", "tokens", "concurrency", "models")
OPTIONS = (
    click.option("--requests", type=Setting(RateSetting, "600/min"), help="Of all its keys."),
    click.option("--tokens", type=Setting(RateSetting, "1M/min"), help="Of all its keys."),
    click.option("--concurrency", type=click.IntRange(min=1), help="Of all its keys at a time."),
    click.option("--models", help="Models its keys may ask for, with commas; * is anything. [all]"),
)


def level_options(command: Any) -> Any:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def change_options(command: Any) -> Any:
    """Those, and what a level can have no more or be."""
    without = click.option(
        "--no", "without", multiple=True, type=click.Choice(HELD), help="What it shall not hold."
    )
    status = click.option(
        "--status", type=click.Choice(("active", "disabled")), help="Disabled: refuse its keys."
    )
    name = click.option("--name", help="What people call it.")
    return name(status(level_options(without(command))))


def stated(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was said, as fields of a level. Says it if that is nothing."""
    said = {name: value for name, value in given.items() if value is not None and name != "without"}
    if "models" in said:
        said["models"] = listed(said["models"])
    return said | dict.fromkeys(given.get("without", ()))


def changes(given: Mapping[str, Any]) -> dict[str, Any]:
    said = stated(given)
    if not said:
        raise click.UsageError("say what is to be changed; --help tells what can be")
    return said


def as_dict(level: Organisation | Team | User) -> dict[str, Any]:
    """For a program: times in ISO 8601, rates as amount and seconds."""
    names = [name for name in level.__slots__ if name not in ("limits", "created")]
    return {
        **{name: getattr(level, name) for name in names},
        "limits": limits_dict(level.limits),
        "created": moment(level.created),
    }


def tell(level: T | None, kind: str, id: str, as_json: bool) -> None:
    """Show one on its own; exit 1 where there is none."""
    if level is None:
        fail(f"there is no {kind} {id}; try: passy {kind}s list")
    if as_json:
        click.echo(json.dumps(as_dict(level)))
        return
    facts = as_dict(level) | {"limits": limits_text(level.limits) or None}
    for name, value in facts.items():
        if value not in (None, ""):
            click.echo(f"{name:<13} {told(value)}")


def tell_deleted(deleted: bool, kind: str, id: str, as_json: bool) -> None:
    """Say that one is gone; exit 1 where there was none."""
    if not deleted:
        fail(f"there is no {kind} {id}; try: passy {kind}s list")
    click.echo(json.dumps({"id": id, "deleted": True}) if as_json else f"{id} is deleted")
