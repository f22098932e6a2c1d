"""Take pictures of every page of the portal (in a checkout)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from passy_proxy.cli._checkout import checkout


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--days", type=click.IntRange(1, 366), default=30, help="Days of traffic. [30]")
@click.option("--only", default="", metavar="PART", help="Pages with this in their path.")
@click.option("--readme", is_flag=True, help="Only the two of the README, into docs/images.")
def command(folder: Path | None, days: int, only: str, readme: bool) -> NoReturn:
    """Take pictures of every page of the portal.

    Light and dark, on a phone and on a desk, in use and at its beginning. They are all shown on one
    page: index.html in FOLDER, which is .passy/screenshots where nobody says otherwise.
    """
    root = checkout()
    where = [] if folder is None else [str(folder)]
    given = [*where, "--days", str(days), "--only", only, *(["--readme"] if readme else [])]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(root / "tools/screenshots.py"), *given])
