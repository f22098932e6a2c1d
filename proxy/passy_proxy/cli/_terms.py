"""What commands share: the options that say where, and how to complain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from passy_proxy.cli import Exit
from passy_proxy.config.document import environment
from passy_proxy.config.problem import ConfigInvalid, Problem
from passy_proxy.place import Place

F = TypeVar("F", bound=Callable[..., Any])


def place_options(command: F) -> F:
    """``--config`` and ``--data``."""
    config = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The configuration file. [PASSY_CONFIG, else config/gateway.yaml and the usual places]",
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
    try:
        return Place.of(variables, config, data), variables
    except FileNotFoundError as exc:
        fail(f"{exc}; try: passy check PATH", Exit.invalid_config)


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


def show(problem: Problem) -> None:
    """One problem, on standard error."""
    first, *rest = problem.pretty().splitlines()
    colour = "red" if problem.severity == "error" else "yellow"
    click.secho(first, fg=colour, err=True)
    for line in rest:
        click.echo(line, err=True)
