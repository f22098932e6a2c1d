"""What commands share: the options that say where, and how to complain."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

import click

from passy_proxy.cli import Exit
from passy_proxy.config.document import environment
from passy_proxy.config.model import GatewayFile
from passy_proxy.config.problem import ConfigInvalid, Problem
from passy_proxy.place import Place

if TYPE_CHECKING:
    from passy_proxy.config.build import Parts

F = TypeVar("F", bound=Callable[..., Any])


def place_options(command: F) -> F:
    """``--config`` and ``--data``."""
    config = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The configuration file. [PASSY_CONFIG, else config/gateway.yaml and the like]",
    )
    data = click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        help="The folder for the gateway's own files. [PASSY_DATA, else .passy]",
    )
    return config(data(command))


def placed(config: Path | None, data: Path | None) -> tuple[Place, Mapping[str, str]]:
    """The place those options mean, and the environment. Exits 78 where there is no such file."""
    variables = environment()
    said_of_the_log(variables)
    try:
        return Place.of(variables, config, data), variables
    except FileNotFoundError as exc:
        fail(f"{exc}; try: passy check PATH", Exit.invalid_config)


def said_of_the_log(variables: Mapping[str, str]) -> None:
    """Exits 78 where the environment wants a log that there is not."""
    from passy_proxy.config.model import LogSettings

    for field, declared in LogSettings.model_fields.items():
        name = f"PASSY_LOG_{field.upper()}"
        allowed = get_args(declared.annotation)
        if (said := variables.get(name)) and said.lower() not in allowed:
            fail(f"{name}={said!r} is none of {', '.join(allowed)}", Exit.invalid_config)


def dry_parts(place: Place, variables: Mapping[str, str]) -> Parts:
    """What a configuration is built with when nothing will run. Writes nothing.

    Exits 78 where the secret keys are there and no good.
    """
    from passy_proxy.config.build import Parts
    from passy_proxy.keyring import FILE, Keyring, KeyringError
    from passy_proxy.log import unconfigured
    from passy_proxy.registry import Registry
    from passy_proxy.shared import Shared
    from passy_proxy.site import Site

    try:
        listed = place.listed(variables)
        if listed is None and not (place.data / FILE).exists():
            listed = secrets.token_urlsafe(48)  # The first start makes one that stays.
        keyring = Keyring.load(place.data, listed)
    except KeyringError as exc:
        fail(str(exc), Exit.invalid_config)
    return Parts(Registry(), Shared(), Site(place.data, keyring), unconfigured())


def fail(message: str, code: Exit = Exit.failed) -> NoReturn:
    """End with a message for people."""
    click.secho(f"passy: {message}", fg="red", err=True)
    sys.exit(code)


def complain(problems: ConfigInvalid | list[Problem]) -> NoReturn:
    """Show every problem with its line, and end with 78."""
    listed = problems.problems if isinstance(problems, ConfigInvalid) else tuple(problems)
    for problem in listed:
        show(problem)
    count = sum(problem.severity == "error" for problem in listed)
    fail(f"{count} problem{'s' * (count != 1)} in the configuration", Exit.invalid_config)


def notice(file: GatewayFile) -> None:
    """What is not wrong but worth knowing: upstreams left out in one line, the rest in full."""
    left_out = [name for name, entry in file.upstreams.items() if entry.left_out]
    if left_out:
        names = ", ".join(left_out)
        click.secho(f"passy: no credential, hence left out: {names}", dim=True, err=True)
    for warning in file.warnings:
        if not (left_out and "left out" in warning.message):
            show(warning)


def show(problem: Problem) -> None:
    """One problem, on standard error."""
    first, *rest = problem.pretty().splitlines()
    colour = "red" if problem.severity == "error" else "yellow"
    click.secho(first, fg=colour, err=True)
    for line in rest:
        click.echo(line, err=True)
