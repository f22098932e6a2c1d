"""Questions to a store that may be away: one for each subject at a time, whoever waits for it, and
while the store is away one a second, which finds out whether it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy import Tasks

K = TypeVar("K")
A = TypeVar("A")

PAUSE = 1.0
"""Seconds between two questions to a store that is away."""


class Questions(Generic[K, A]):
    """``answer`` asks the store, and says by `failed` or `answered` how that went."""

    def __init__(
        self,
        store: str,
        answer: Callable[[K], Coroutine[Any, Any, A | None]],
        tasks: Tasks,
        log: FilteringBoundLogger,
    ) -> None:
        """``store``: what the log calls it."""
        self._store = store
        self._answer = answer
        self._tasks = tasks
        self._log = log
        self._asking: dict[K, asyncio.Task[A | None]] = {}
        self._away_until = 0.0
        """When a store that is away is asked again; 0 while it answers."""

    @property
    def away(self) -> bool:
        """The latest question had no answer."""
        return self._away_until > 0

    @property
    def running(self) -> list[asyncio.Task[A | None]]:
        return list(self._asking.values())

    def may_ask(self, now: float) -> bool:
        """Whether the store answers. While it is away one at a time finds out."""
        return not self._away_until or (self._away_until <= now and not self._asking)

    def ask(self, subject: K) -> asyncio.Task[A | None]:
        """All who ask for one subject at once share an answer; ``None``: there was none."""
        asking = self._asking.get(subject)
        if asking is None:
            asking = self._asking[subject] = self._tasks.start(self._answer(subject))
            asking.add_done_callback(lambda _: self._asking.pop(subject, None))
        return asking

    def failed(self, error: Exception, now: float) -> None:
        """The store is away."""
        if not self._away_until:
            self._log.warning(f"{self._store}_away", error=str(error) or "it does not answer")
        self._away_until = now + PAUSE

    def answered(self) -> None:
        if self._away_until:
            self._away_until = 0.0
            self._log.info(f"{self._store}_back")
