"""Records that cost little to make: msgspec's, or dataclasses without it."""

from __future__ import annotations

try:
    from msgspec import Struct
except ImportError:
    from dataclasses import dataclass
    from typing import dataclass_transform

    @dataclass_transform()
    class Struct:  # type: ignore[no-redef]
        """The part of ``msgspec.Struct`` that is used here; what only saves time is ignored."""

        def __init_subclass__(cls, *, frozen: bool = False, **_: object) -> None:
            dataclass(frozen=frozen)(cls)


__all__ = ["Struct"]
