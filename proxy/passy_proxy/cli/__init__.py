"""The command line. A command is one file here, `cli/<name>.py`, with a click command `command`.

The file's first docstring line is its line in `passy --help`. It is read without importing the
file, so that help and version stay quick whatever the commands themselves need.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from enum import IntEnum
from pathlib import Path

import click


class Exit(IntEnum):
    """The exit codes of every command."""

    ok = 0
    failed = 1
    wrong_usage = 2
    unavailable = 69
    invalid_config = 78
    interrupted = 130


SAME = {"orgs": "organisations", "organizations": "organisations"}
"""Other names of commands."""


class Commands(click.Group):
    """The commands found in this folder, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = (module.name for module in pkgutil.iter_modules(__path__))
        return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = SAME.get(cmd_name, cmd_name)
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
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
        rows = [(name, summary(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def summary(name: str) -> str:
    """The first docstring line of a command's file."""
    source = Path(__path__[0], f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="passy-gateway", message="%(prog)s %(version)s")
def cli() -> None:
    """An LLM gateway that speaks OpenAI's API."""


def main() -> None:
    """Run the command line and exit with one of `Exit`."""
    try:
        code = cli.main(prog_name="passy", standalone_mode=False)
    except click.exceptions.Abort:
        code = Exit.interrupted
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else Exit.ok)
