"""Say all that is wrong with a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from passy_proxy.cli import Exit
from passy_proxy.cli._terms import complain, dry_parts, place_options, placed, show
from passy_proxy.config.problem import ConfigInvalid, Problem, to_json
from passy_proxy.place import Place


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="The problems as a JSON array.")
@place_options
def command(file: Path | None, as_json: bool, config: Path | None, data: Path | None) -> None:
    """Say all that is wrong with a configuration: FILE, or the one that would run.

    Exits 0 when it can run, 78 when it cannot.
    """
    place, variables = placed(file or config, data)
    verdict(place, variables, as_json=as_json)


def verdict(place: Place, variables: Mapping[str, str], *, as_json: bool) -> None:
    """Build the configuration without starting anything, and say how it went."""
    problems = list(found(place, variables))
    bad = any(problem.severity == "error" for problem in problems)
    if as_json:
        click.echo(to_json(problems))
        raise SystemExit(Exit.invalid_config if bad else Exit.ok)
    if bad:
        complain(problems)
    for problem in problems:
        show(problem)
    click.secho(f"✓ {place.path or 'the built-in configuration'} can run", fg="green")


def found(place: Place, variables: Mapping[str, str]) -> tuple[Problem, ...]:
    """Every problem: of the file, of the environment's layers, of how it all fits together."""
    from passy_proxy.config.build import also_wrong, build

    try:
        file = place.file(variables)
    except ConfigInvalid as exc:
        return also_wrong(exc, dry_parts(place, variables)).problems
    try:
        return tuple(build(file, dry_parts(place, variables), "check").warnings)
    except ConfigInvalid as exc:
        return exc.problems
