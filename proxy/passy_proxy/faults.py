"""What becomes of a filter that fails: its chain is closed to the exchange, or goes on without it.

A filter fails when a hook raises, waits longer than it may, returns what its contract does not
know, or leaves a head that cannot be sent. What is no failure of its own passes through here: the
client's leaving, and a cancellation that somebody asked for.

A hook that returns at once pays for none of this. One that gives something to await is driven from
here: its first step runs as it would have anyway, and only if that does not end it, one of the
coarse clocks of `timers.py` is set. Who does not heed the cancellation that follows is abandoned:
closed, and never driven again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Coroutine, Generator, Mapping, Sequence
from time import monotonic
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from passy_proxy.config.settings import Settings, setting
from passy_proxy.downstream import ClientGone
from passy_proxy.event import Reply
from passy_proxy.timers import NEVER, sweep_of
from passy_proxy.units import Duration

if TYPE_CHECKING:
    from passy_proxy.exchange import Exchange
    from passy_proxy.filter import Filter

GRACE = 1.0
"""Seconds that a cancelled hook has to clean up in."""
TOLD_EVERY = 10.0
"""Seconds between two log lines on the same hook of the same filter."""
HOOK_TIMEOUT = 5.0
"""Seconds a hook may wait in a chain that was not made from a file."""


class LinkSettings(Settings):
    """What can be set of every filter in a chain, beside its own settings."""

    on_error: Literal["closed", "open"] = setting(
        "closed",
        "What its failure means. closed: the exchange is answered with an error; open: it goes on "
        "without this filter.",
    )
    hook_timeout: Duration = setting(
        "5s", "Longest one of its hooks may wait, which is a failure too; 0s is no limit.", ge=0
    )


class OutOfTime(Exception):
    """A hook waited longer than it may."""


class FilterFailed(Exception):
    """A filter that is closed has failed where nothing can be returned; ``reply`` is the answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.message)
        self.reply = reply


class Link:
    """One filter of a chain: whether its failures are the exchange's, and how long it may wait."""

    __slots__ = ("closed", "limit", "name")

    def __init__(self, filter: Filter) -> None:
        config = filter.config
        self.name = filter.name
        self.closed = getattr(config, "on_error", filter.on_error) == "closed"
        self.limit: float = getattr(config, "hook_timeout", HOOK_TIMEOUT)
        """Seconds; 0 is no limit."""


class Faults:
    """Failures of one chain's filters: counted, told now and then, and turned into answers."""

    counts: ClassVar[Counter[tuple[str, str]]] = Counter()
    """Filter and hook → failures since the process began, in all chains."""
    _told: ClassVar[dict[tuple[str, str], tuple[float, int]]] = {}

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.links = tuple(map(Link, filters))

    @classmethod
    def by_filter(cls) -> Mapping[tuple[str, ...], float]:
        """How often each filter has failed."""
        sums: Counter[tuple[str, ...]] = Counter()
        for (name, _), count in cls.counts.items():
            sums[name,] += count
        return sums

    def failed(self, ex: Exchange, depth: int, hook: str, exc: BaseException) -> Reply | None:
        """What a hook's exception means: a reply, or ``None`` to go on as if it had said nothing.

        Raises ``exc`` again if it is no failure of the filter at ``depth``.
        """
        if isinstance(exc, ClientGone | FilterFailed):
            raise exc
        if isinstance(exc, asyncio.CancelledError) and _cancelling():
            raise exc
        if ex.gone:  # Whatever it says, nobody hears it.
            raise ClientGone from exc
        link = self.links[depth - 1]
        self.tell(ex, link, hook, exc)
        return refusal(ex.id, late=isinstance(exc, OutOfTime)) if link.closed else None

    def refused(self, ex: Exchange, depth: int, exc: Exception) -> Reply:
        """The answer in place of a filter's own that cannot be sent: it gave one, open or not."""
        link = self.links[depth - 1]
        self.tell(ex, link, "reply", exc)
        return refusal(ex.id)

    def ended(self, ex: Exchange, depth: int, hook: str, exc: BaseException) -> Reply | None:
        """The same for a hook at an end, which keeps the end from nobody: to be called for each.

        Raises a cancellation that somebody asked for.
        """
        if isinstance(exc, asyncio.CancelledError) and _cancelling():
            raise exc
        link = self.links[depth - 1]
        self.tell(ex, link, hook, exc)
        return refusal(ex.id, late=isinstance(exc, OutOfTime)) if link.closed else None

    def tell(self, ex: Exchange, link: Link, hook: str, exc: BaseException) -> None:
        """Count a failure; log it, unless the same has just been logged."""
        key = (link.name, hook)
        self.counts[key] += 1
        now, count = monotonic(), self.counts[key]
        last, known = self._told.get(key, (-TOLD_EVERY, 0))
        if now - last < TOLD_EVERY:
            return
        self._told[key] = now, count
        ex.snapshot.log.error(
            "filter_failed",
            filter=link.name,
            hook=hook,
            on_error="closed" if link.closed else "open",
            failures=count - known,
            request_id=ex.id,
            exc_info=exc,
        )

    async def waited(self, ex: Exchange, depth: int, awaited: Any) -> Any:
        """What a hook gave to be awaited. Raises OutOfTime, TypeError, ClientGone."""
        if not isinstance(awaited, Awaitable):
            raise TypeError(f"a hook returned {type(awaited).__name__}, which is no answer here")
        result = await within(awaited, self.links[depth - 1].limit)
        if ex.gone:  # The cancellation was swallowed; nothing may follow all the same.
            raise ClientGone
        return result

    async def waited_at_end(self, depth: int, awaited: Any) -> None:
        """The same where the exchange is over."""
        if isinstance(awaited, Awaitable):
            awaited = await within(awaited, self.links[depth - 1].limit)
        if awaited is not None:
            raise TypeError(f"a hook returned {type(awaited).__name__}, which nobody asked for")


class Excuse(Reply):
    """The answer in place of what a closed filter would have said. Which one it was and what went
    wrong stands in the log: a client hears no more than the id of its request."""


def refusal(id: str, *, late: bool = False) -> Excuse:
    """What a client is told of a filter that failed, or that was too ``late``."""
    if late:
        message = f"The gateway took too long. Try again, or quote {id} when you report it."
        return Excuse(503, "internal_error", message, [(b"retry-after", b"1")])
    message = f"The gateway made a mistake. Quote {id} when you report it."
    return Excuse(500, "internal_error", message)


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Wait:
    """A hook that waits: cancelled when its time is up, and again when its grace is."""

    __slots__ = ("_task", "cancels", "deadline")

    def __init__(self, task: asyncio.Task[Any], deadline: float) -> None:
        self._task = task
        self.deadline = deadline
        self.cancels = 0

    def expire(self, now: float) -> None:
        self.cancels += 1
        self.deadline = now + GRACE
        self._task.cancel()


async def _awaiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


@coroutine
def within(awaitable: Awaitable[Any], limit: float) -> Generator[Any, Any, Any]:
    """The result of ``awaitable``. Raises OutOfTime when it takes more than ``limit`` seconds; 0 is
    no limit.

    A cancellation from elsewhere is given on, and shortens the time to ``GRACE``.
    """
    hook = awaitable if type(awaitable) is CoroutineType else _awaiting(awaitable)
    try:
        waits_for = hook.send(None)
    except StopIteration as done:
        return done.value
    task, sweep = asyncio.current_task(), sweep_of(asyncio.get_running_loop())
    assert task is not None
    wait = _Wait(task, NEVER)
    sweep.add(wait)  # First: it sets right a clock that stood still.
    if limit:
        wait.deadline = sweep.now + limit
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as exc:
                if wait.cancels > 1 or isinstance(exc, GeneratorExit):
                    _abandon(hook)
                    raise
                wait.deadline = min(wait.deadline, sweep.now + GRACE)
                waits_for = hook.throw(exc)
            else:
                waits_for = hook.send(sent)
    except StopIteration as done:
        if not wait.cancels:
            return done.value
        raise OutOfTime(f"it waited longer than {limit:g} s") from None
    except asyncio.CancelledError:
        if wait.cancels and task.cancelling() <= wait.cancels:
            raise OutOfTime(f"it waited longer than {limit:g} s") from None
        raise
    finally:
        sweep.discard(wait)
        for _ in range(wait.cancels):
            task.uncancel()


def _abandon(hook: Coroutine[Any, Any, Any]) -> None:
    """End a hook that does not heed its cancellation."""
    with contextlib.suppress(BaseException):
        hook.close()
