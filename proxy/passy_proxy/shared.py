"""Things two configurations can have in common: connection pools, stores.

Each is known by its own settings and counted, so an edit to a rate limit does not close a thousand
warm connections, and what nobody uses any more is closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class _Held:
    __slots__ = ("close", "started", "thing", "uses")

    def __init__(self, thing: object, close: Callable[[], Awaitable[None]]) -> None:
        self.thing: Any = thing
        self.close = close
        self.started = False
        self.uses = 0


class Shared:
    """Live objects by their settings, with a use count."""

    def __init__(self) -> None:
        self._held: dict[Hashable, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: Hashable, make: Callable[[], T], close: str) -> T:
        """The object of ``key``, made now if there is none; ``close`` names its closing method."""
        held = self._held.get(key)
        if held is None:
            thing: Any = make()
            held = self._held[key] = _Held(thing, getattr(thing, close))
        held.uses += 1
        return held.thing  # type: ignore[no-any-return]

    async def start(self, key: Hashable) -> None:
        """Start the object of ``key``, unless an earlier user did."""
        held = self._held[key]
        if not held.started:
            held.started = True
            await held.thing.start()

    async def give_back(self, key: Hashable) -> None:
        """One user less; the last one closes the object."""
        held = self._held[key]
        held.uses -= 1
        if held.uses == 0:
            del self._held[key]
            await held.close()

    def forget(self, keys: list[Hashable]) -> None:
        """Undo ``take`` for objects of a build that failed; those nobody else has were never
        started."""
        for key in keys:
            held = self._held[key]
            held.uses -= 1
            if held.uses == 0:
                del self._held[key]
        keys.clear()
