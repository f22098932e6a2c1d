"""Things of which each event loop has one."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


def one_of(kind: type[T], loop: asyncio.AbstractEventLoop) -> T:
    """The one of ``kind`` that ``loop`` has, made of the loop at first use; it lives and dies with
    it."""
    attribute = f"_passy_{kind.__name__}"
    found: T | None = getattr(loop, attribute, None)
    if found is None:
        found = kind(loop)  # type: ignore[call-arg]
        setattr(loop, attribute, found)
    return found
