"""Check format, style, types, layers and spelling (in a checkout)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.text import Text

from passy_proxy.cli import Exit
from passy_proxy.cli._checkout import checkout, tool


class Check(NamedTuple):
    name: str
    program: str
    arguments: tuple[str, ...]


def checks(root: Path, fix: bool) -> Iterator[Check]:
    """The checks in order. With `fix`, those that can mend what they find do."""
    prose = sorted(page.name for page in root.iterdir() if page.suffix == ".md")
    prose += [folder for folder in ("docs", "config") if (root / folder).is_dir()]
    yield Check(
        "style",
        "ruff",
        ("check", "--quiet", "--output-format=concise", *(["--fix"] if fix else []), "."),
    )
    yield Check("format", "ruff", ("format", *([] if fix else ["--check"]), "."))
    yield Check("types", "mypy", ("--no-error-summary",))
    yield Check("layers", "lint-imports", ("--no-logo",))
    yield Check("spelling", "codespell", (*(["-w"] if fix else []), *prose))


@click.command()
@click.option("--fix", is_flag=True, help="Mend what can be mended.")
def command(fix: bool) -> int:
    """Check format, style, types, layers and spelling: all of them, whatever the first one says."""
    root = checkout()
    console = Console(highlight=False, soft_wrap=True)
    failed = [check for check in checks(root, fix) if not passes(check, root, console)]
    return Exit.failed if failed else Exit.ok


def passes(check: Check, root: Path, console: Console) -> bool:
    """Run one check, with a line for its result and its own words when it fails."""
    argv = [tool(check.program, install="./passy lint"), *check.arguments]
    begun = time.monotonic()
    with console.status(check.name):
        ended = subprocess.run(
            argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    mark = Text("✗", "red") if ended.returncode else Text("✓", "green")
    took = time.monotonic() - begun
    console.print(mark, f"{check.name:<9}", Text(f"{check.program}, {took:.1f} s", "dim"))
    if ended.returncode:
        console.out(ended.stdout.rstrip())
    return ended.returncode == 0
