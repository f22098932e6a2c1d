"""Lists in pages. A cursor is where the last page ended, as its own last row says it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Select, func, or_

from passy_proxy.json import dumps, loads

MOST = 1_000
"""Rows in a page."""


class Page(NamedTuple):
    """Some rows, and where the next ones begin; ``None`` where there are none."""

    rows: Sequence[Any]
    cursor: str | None


def paged(found: Sequence[Any], limit: int, position: Callable[[Any], Sequence[Any]]) -> Page:
    """A page of ``found``, which has one row more than the limit where more follow; ``position`` is
    what tells where a row is."""
    rows = found[:limit]
    return Page(rows, cursor_of(position(rows[-1])) if len(found) > limit else None)


def cursor_of(position: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(dumps(list(position))).decode().rstrip("=")


def position_of(cursor: str, kinds: Sequence[type]) -> tuple[Any, ...]:
    """What is in it, which somebody else may have written: ValueError unless it is of ``kinds``."""
    try:
        values = loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        values = None
    if not isinstance(values, list) or len(values) != len(kinds):
        raise ValueError("this is no cursor of such a list")
    for value, kind in zip(values, kinds, strict=True):
        fits = type(value) is kind
        if isinstance(value, int):
            fits = fits and abs(value) < 1 << 63
        elif isinstance(value, str):
            fits = fits and "\0" not in value
        if not fits:
            raise ValueError("this is no cursor of such a list")
    return tuple(values)


def searched(wanted: Select[Any], search: str, *columns: Column[Any]) -> Select[Any]:
    """Rows with ``search`` in one of the columns, whatever its case; no character is a wildcard."""
    if not search:
        return wanted
    return wanted.where(or_(*(_holds(column, search) for column in columns)))


def _holds(column: Column[Any], text: str) -> ColumnElement[bool]:
    small = func.lower(column)
    return func.replace(small, func.lower(text), "") != small
