"""The command line. A command is one file here, `cli/<name>.py`, with a click command `command`.

What is installed beside us brings more of them: each is a module of the same shape, named by an
entry point of the group ``passy.commands``. A file's first docstring line is its line in
`passy --help`. It is read without importing the file, so that help and version stay quick whatever
the commands themselves need.
"""

from __future__ import annotations

import ast
import gc
import importlib
import pkgutil
import sys
from enum import IntEnum
from importlib.metadata import entry_points
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any

import click


class Exit(IntEnum):
    """The exit codes of every command."""

    ok = 0
    failed = 1
    wrong_usage = 2
    unavailable = 69
    invalid_config = 78
    interrupted = 130


LOADED = 100_000
"""Objects between two looks of the collector: what is imported stays, and to look through it again
and again was a fifth of a start."""

GROUP = "passy.commands"
SAME = {"orgs": "organisations", "organizations": "organisations"}
"""Other names of commands."""


def own() -> dict[str, str]:
    """The commands of this folder: name → module."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return {n.replace("_", "-"): f"{__name__}.{n}" for n in names if not n.startswith("_")}


def all_of_them() -> dict[str, str]:
    """Those and what others bring, who cannot replace one of ours."""
    return {point.name: point.value for point in entry_points(group=GROUP)} | own()


class Commands(click.Group):
    """Each command is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(all_of_them())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = SAME.get(cmd_name, cmd_name)
        found = own().get(cmd_name) or all_of_them().get(cmd_name)
        if found is None:
            return None
        command: click.Command = importlib.import_module(found).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, summary(module)) for name, module in sorted(all_of_them().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def summary(module: str) -> str:
    """The first docstring line of a command's file."""
    spec = find_spec(module)
    loader: Any = spec.loader if spec else None
    source = loader.get_source(module) if loader else ""
    return (ast.get_docstring(ast.parse(source or "")) or "").partition("\n")[0]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="passy-gateway", message="%(prog)s %(version)s")
def cli() -> None:
    """An LLM gateway that speaks OpenAI's API."""


def main() -> None:
    """Run the command line and exit with one of `Exit`."""
    gc.set_threshold(LOADED)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no arrows is no reason to fail.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(prog_name="passy", standalone_mode=False)
    except click.exceptions.Abort:
        code = Exit.interrupted
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        click.secho(f"passy: {error.filename}: {error.strerror}", fg="red", err=True)
        code = Exit.failed
    sys.exit(code if isinstance(code, int) else Exit.ok)
