"""Records that cost little to make: msgspec's, or dataclasses without it."""

from __future__ import annotations

try:
    from msgspec import Struct
    from msgspec.json import Encoder

    dumped = Encoder().encode
except ImportError:
    from dataclasses import dataclass
    from typing import dataclass_transform

    from passy_proxy.json import dumps

    @dataclass_transform()
    class Struct:  # type: ignore[no-redef]
        """The part of ``msgspec.Struct`` that is used here; what only saves time is ignored."""

        def __init_subclass__(cls, *, frozen: bool = False, **_: object) -> None:
            dataclass(frozen=frozen)(cls)

    def dumped(struct: Struct) -> bytes:
        """As a JSON object, of a struct with ``omit_defaults``."""
        kind = type(struct)
        fields = vars(struct).items()
        return dumps({name: each for name, each in fields if each != getattr(kind, name, kind)})


__all__ = ["Struct", "dumped"]
