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


__all__ = ["dumps", "loads"]
