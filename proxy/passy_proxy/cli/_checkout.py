"""What the commands for contributors need: the source tree and the tools of an extra."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from passy_proxy.cli import Exit

ROOT = Path(__file__).resolve().parents[3]


class Unavailable(click.ClickException):
    """Something that the command runs on is not here."""

    exit_code = Exit.unavailable


def checkout() -> Path:
    """The root of the source tree. Raises Unavailable where passy was installed without it."""
    if not (ROOT / "tests").is_dir() or not (ROOT / "pyproject.toml").is_file():
        raise Unavailable("this command works in a checkout of passy; try: git clone, then ./passy")
    return ROOT


def tool(name: str, *, install: str) -> str:
    """The path of a program in this environment. `install` is the command that brings it."""
    program = Path(sys.executable).with_name(name)
    if not program.is_file():
        raise Unavailable(f"{name} is not installed; try: {install}")
    return str(program)
