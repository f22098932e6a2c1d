"""Take pictures of every page of the portal (in a checkout)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from passy_proxy.cli._checkout import checkout


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
@click.argument("given", nargs=-1, type=click.UNPROCESSED)
def command(given: tuple[str, ...]) -> NoReturn:
    """Take pictures of every page of the portal.

    Light and dark, on a phone and on a desk, in use and at its beginning, with a page that shows
    all of them. It takes a folder, --days, and --only with a part of a path.
    """
    root = checkout()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(root / "tools/screenshots.py"), *given])
