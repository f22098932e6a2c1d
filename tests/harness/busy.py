"""A turn of the loop in which somebody else has sent already: what follows is held to its end."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from passy_proxy.outbox import outbox_of


class _Somebody:
    """A connection of no consequence."""

    held = b""

    def write(self, data: bytes) -> None: ...

    def release(self) -> None:
        self.held = b""


def be_busy() -> None:
    """From now to the end of this turn."""
    somebody = _Somebody()
    outbox_of(asyncio.get_running_loop()).write(somebody, cast(Any, somebody), b"x")
