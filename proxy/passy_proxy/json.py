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


__all__ = ["dumps", "loads"]
