"""Run the test suite (in a checkout)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from passy_proxy.cli._checkout import checkout, tool

MOST_CORES = 4


# `-h` stays pytest's: were it ours, `-khost` would be read as `-k -h …`.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option(
    "--fast", is_flag=True, help="Leave out what needs Node.js, a browser or a real model."
)
@click.option("--large", is_flag=True, help="Include the long runs.")
@click.option(
    "--fuzz", type=click.IntRange(min=1), metavar="N", help="Fuzz each target for N seconds."
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def command(fast: bool, large: bool, fuzz: int | None, pytest_args: tuple[str, ...]) -> NoReturn:
    """Run the test suite.

    Everything passy does not know goes to pytest, which has the last line and the exit code:
    passy test -x tests/proxy
    """
    root = checkout()
    pytest = tool("pytest", install="./passy test")
    left_out = ["browser", "node", "model"] if fast else []
    left_out += [] if large else ["large"]
    left_out += [] if fuzz else ["fuzz"]
    marked = ["-m", " and ".join(f"not {marker}" for marker in left_out)] if left_out else []
    if not (large or fuzz or pytest_args):
        # The whole suite, file by file: it often waits for processes and sockets, so two more of
        # it than there are cores. The order is that of tests/conftest.py.
        at_once = min(os.cpu_count() or 1, MOST_CORES) + 2
        marked += ["-n", str(at_once), "--dist", "loadfile", "--no-loadscope-reorder"]
    wish = {} if fuzz is None else {"PASSY_FUZZ": str(fuzz)}
    os.chdir(root)
    sys.stdout.flush()
    os.execve(pytest, [pytest, *marked, *pytest_args], {**os.environ, **wish})
