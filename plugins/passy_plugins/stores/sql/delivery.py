"""How far each gateway has brought its records into the books, and whose are missing.

Each process of a gateway keeps a mark for its journal: until when all that it recorded is here, and
on which host. The mark goes with the journal, when there is nothing left in it: at an end that was
asked for, or when somebody has taken it over. What stays behind is of who cannot deliver, or is
gone with records on its disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

_PREFIX = "journal:"
LIKE = f"{_PREFIX}%"
FORGET = f"DELETE FROM marks WHERE name LIKE '{LIKE}' AND value < ?"
"""Of who is not waited for any more: ``?`` is `before`."""
WAITED_FOR = 7 * 86_400_000
"""Milliseconds."""


def name_of(journal: str) -> str:
    """Of the mark of a journal."""
    return f"{_PREFIX}{journal}"


def value(milliseconds: int) -> str:
    """Of the mark of a journal on this host; values are in the order of their moments."""
    return f"{before(milliseconds)} {os.uname().nodename[:100]}"


def before(milliseconds: int) -> str:
    """What is less than the values of this moment and of later ones."""
    return f"{milliseconds:013}"


def by_host(values: Iterable[str]) -> dict[str, int]:
    """Host → until when all that its processes recorded is here, in milliseconds."""
    told: dict[str, int] = {}
    for value in values:
        at, _, host = value.partition(" ")
        told[host] = min(int(at), told.get(host, int(at)))
    return told
