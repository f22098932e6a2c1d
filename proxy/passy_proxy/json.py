"""JSON at the speed there is: orjson, or the standard library where it is missing."""

from __future__ import annotations

from typing import Any

try:
    from orjson import dumps, loads
except ImportError:
    from json import dumps as _dumps
    from json import loads  # type: ignore[assignment]

    def dumps(value: Any) -> bytes:  # type: ignore[misc]
        """Compact UTF-8."""
        return _dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


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
