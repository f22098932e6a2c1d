"""JSON at the speed there is: orjson, or the standard library where it is missing.

``loads`` raises ValueError for what it cannot read, ``dumps`` TypeError for what it cannot write:
values may be read that are nested more deeply than any that is written.
"""

from __future__ import annotations

from typing import Any

try:
    from orjson import dumps, loads
except ImportError:
    from json import dumps as _dumps
    from json import loads as _loads

    def dumps(value: Any) -> bytes:  # type: ignore[misc]
        """Compact UTF-8."""
        try:
            return _dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        except (RecursionError, ValueError) as exc:
            raise TypeError(str(exc)) from None

    def loads(text: bytes | str) -> Any:  # type: ignore[misc]
        """The value of one JSON text."""
        try:
            return _loads(text)
        except RecursionError as exc:
            raise ValueError(str(exc)) from None


MOST = 2**63 - 1
"""What a column of a database holds."""


def said(row: tuple[Any, ...]) -> bytes:
    """``row`` as JSON, whatever clients and upstreams wrote into it."""
    try:
        return dumps(row)
    except (TypeError, ValueError):
        return dumps(_sayable(row))


def _sayable(value: Any) -> Any:
    """Without halves of characters, and no number beyond what a column holds."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return max(-MOST, min(value, MOST))
    return [_sayable(each) for each in value] if isinstance(value, tuple | list) else value


__all__ = ["MOST", "dumps", "loads", "said"]
