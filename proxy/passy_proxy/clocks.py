"""What each filter took, of every so many-th exchange.

Clocks around each hook would slow every request, so they are in a chain of their own, compiled
beside the one without, and only where ``time_filters`` asks for it: otherwise there is no
second chain, and a request meets nothing of this.

A filter's time is that of its hooks until the answer ended, with whatever they waited for. The
terminal filter's ``route`` is not among them, since the tries are in it, and what comes with and
after the last bytes is not known by then. It goes into the books behind what ran:
``default@4f2a91c0 auth=0.312 alias=0.018``, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from inspect import isawaitable
from time import perf_counter
from typing import Any

from passy_proxy.attempt import Dispatch
from passy_proxy.chain import Chain, Compiled
from passy_proxy.exchange import Exchange
from passy_proxy.filter import Filter
from passy_proxy.request_body import read_body
from passy_proxy.stash import StashKey

SPENT: StashKey[list[float]] = StashKey("clocks.spent")
"""Seconds, by the place of the filter in its chain."""


class SampledChain(Chain):
    """A chain that times its first exchange and each ``every``-th one after it."""

    def __init__(self, filters: Sequence[Filter], *, heartbeat: float, every: int) -> None:
        super().__init__(filters, heartbeat=heartbeat)
        self._every = every
        self._left = 1
        self._timed = TimedChain(self)

    def run(self, ex: Exchange) -> Coroutine[Any, Any, None]:
        """See `Chain`."""
        self._left -= 1
        if self._left:
            return super().run(ex)
        self._left = self._every
        return self._timed.run(ex)


class TimedChain(Chain):
    """Another one's filters, with a clock around each hook."""

    def __init__(self, chain: Chain) -> None:
        vars(self).update(vars(chain))
        self.on_request = _timed(chain.on_request)
        self.on_response = _timed(chain.on_response)
        self.on_event = _timed(chain.on_event)
        before, after = _timed(chain.dispatch.before), _timed(chain.dispatch.after)
        self.dispatch = Dispatch(before, after, chain.faults)

    async def run(self, ex: Exchange) -> None:
        """See `Chain`."""
        ex.stash[SPENT] = [0.0] * self.full
        await super().run(ex)

    def end(self, ex: Exchange, last: bytes) -> Awaitable[None] | None:
        """See `Chain`. Who enters the exchange in the books does it here, and asks what ran."""
        route, spent = ex.route, ex.stash[SPENT]
        pairs = zip(self.filters, spent, strict=True)
        times = "".join(f" {filter.name}={1000 * took:.3f}" for filter, took in pairs if took)
        ex.route = replace(route, ran=route.ran + times)
        try:
            return super().end(ex, last)
        finally:
            ex.route = route


def _timed(steps: Compiled) -> Compiled:
    # The body is read between two filters, and waits for the client.
    return tuple([(d, hook if hook is read_body else _clocked(d - 1, hook)) for d, hook in steps])


def _clocked(place: int, hook: Callable[..., Any]) -> Callable[..., Any]:
    def clocked(ex: Exchange, *given: Any) -> Any:
        began = perf_counter()
        try:
            done = hook(ex, *given)
        finally:
            ex.stash[SPENT][place] += perf_counter() - began
        return waited(ex, done) if isawaitable(done) else done

    async def waited(ex: Exchange, awaited: Awaitable[Any]) -> Any:
        began = perf_counter()
        try:
            return await awaited
        finally:
            ex.stash[SPENT][place] += perf_counter() - began

    return clocked
