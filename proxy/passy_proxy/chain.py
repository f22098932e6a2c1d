"""The heart: how a request passes through its filters.

A chain is an ordered tuple of filters, the last one terminal. It is compiled once per route and
snapshot: a pluggy manager checks every hook's name and arguments, then its implementations become
tuples ``(depth, bound method)``, one tuple a phase, holding only the filters that implement the
hook. At run time there is no pluggy, no lookup by name, and no allocation per filter. A hook may be
a coroutine function, or a plain one that returns its result or something to await: what seldom
waits need not pay for it.

An exchange goes through three phases. *Descend*: ``on_request`` of each filter in order, then the
terminal filter's ``route``, which makes attempts until it commits to one. *Ascend*: ``on_response``
in reverse, then the answer, event by event. *Complete*: ``on_complete`` in reverse, exactly once
for each filter the exchange entered, whatever happened before.

Two rules hold it together.

1. Nothing is sent before ``route`` has returned, and no attempt is made after it has. So an
   exchange can be answered by somebody else only while the client has seen nothing.
2. The client's hang-up cancels the task at whatever it waits for, and is turned into an outcome
   here, in ``run``, with ``uncancel``. The completion phase then runs in a task that nobody is
   cancelling. The edge calls back directly, so no watcher task exists.

What is ugly: a plain answer and a stream are one thing to filters but two paths here, because a
plain answer that is all there goes out with its head in a single write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from inspect import isasyncgenfunction, iscoroutinefunction
from time import monotonic
from typing import Any

import pluggy

from passy_proxy.answer import problem_head, relayed_head, replied_head
from passy_proxy.attempt import Attempt, Dispatch
from passy_proxy.config.problem import nearest
from passy_proxy.downstream import BodyTimeout, BodyTooLarge, ClientGone
from passy_proxy.estimate import METERED, estimated
from passy_proxy.event import Event, Head, Reply
from passy_proxy.exchange import (
    CLIENT_GONE,
    CLIENT_STALLED,
    INTERNAL_ERROR,
    OK,
    UPSTREAM_BROKEN,
    Exchange,
    Outcome,
)
from passy_proxy.filter import ExchangeHooks, Filter, Terminal
from passy_proxy.heartbeat import Heartbeat
from passy_proxy.request_body import body_refused, read_body
from passy_proxy.sse import Decoder, MalformedStream
from passy_proxy.transport import TransportError

Compiled = tuple[tuple[int, Callable[..., Any]], ...]

HOOKS = ("on_request", "on_attempt", "on_attempt_end", "on_response", "on_event", "on_complete")


class BadFilter(Exception):
    """A filter whose hooks do not fit the contract; ``filter`` is the offender."""

    def __init__(self, filter: Filter, message: str) -> None:
        super().__init__(message)
        self.filter = filter


class FilterRegistry(pluggy.PluginManager):
    """A pluggy manager that takes every ``on_*`` method of a filter as an implementation."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        # What a class merely inherits from Filter does not count, and neither do attributes.
        if not name.startswith("on_") or not callable(getattr(type(plugin), name, None)):
            return None
        if getattr(getattr(plugin, name), "passy.exchange_impl", None):
            assert isinstance(plugin, Filter)
            raise BadFilter(plugin, f"{name} has pluggy options; the order is the chain's alone")
        options = super().parse_hookimpl_opts(plugin, name)
        return options or pluggy.HookimplOpts(
            wrapper=False,
            hookwrapper=False,
            optionalhook=False,
            tryfirst=False,
            trylast=False,
            specname=None,
        )


def contract(filters: Sequence[Filter]) -> FilterRegistry:
    """A validated manager of ``filters``. Raises BadFilter naming a hook that does not exist."""
    registry = FilterRegistry("passy.exchange")
    registry.add_hookspecs(ExchangeHooks)
    for position, filter in enumerate(filters):
        try:
            registry.register(filter, f"{position}:{filter.name}")
            registry.check_pending()
        except pluggy.PluginValidationError as exc:
            raise BadFilter(filter, _plain(filter, str(exc))) from exc
        on_event = getattr(filter, "on_event", None)
        if iscoroutinefunction(on_event) or isasyncgenfunction(on_event):
            raise BadFilter(filter, "on_event must be a plain function: no I/O between two tokens")
    return registry


def _plain(filter: Filter, message: str) -> str:
    for name in dir(filter):
        if name.startswith("on_") and name not in HOOKS:
            meant = nearest(name, HOOKS)
            hint = f"did you mean {meant!r}?" if meant else f"the hooks are {', '.join(HOOKS)}"
            return f"{filter.name}: there is no hook {name!r}; {hint}"
    return f"{filter.name}: {message}".replace("\n", " ")


def compiled(registry: FilterRegistry, filters: Sequence[Filter], hook: str) -> Compiled:
    """``(depth, bound method)`` of each filter that implements ``hook``, in chain order."""
    depth_of = {id(filter): depth for depth, filter in enumerate(filters, start=1)}
    found = [
        (depth_of[id(impl.plugin)], impl.function)
        for impl in getattr(registry.hook, hook).get_hookimpls()
    ]
    return tuple(sorted(found, key=lambda step: step[0]))


class Chain:
    """An ordered tuple of filters, compiled."""

    def __init__(self, filters: Sequence[Filter], *, heartbeat: float = 0.0) -> None:
        terminal = filters[-1]
        assert isinstance(terminal, Terminal)
        registry = contract(filters)
        self.filters = tuple(filters)
        self.terminal = terminal
        self.full = len(filters)
        self.heartbeat = heartbeat
        """Seconds of silence in a stream before a comment is sent; 0 is never."""
        self.on_request = self._with_body(compiled(registry, filters, "on_request"))
        self.on_response = compiled(registry, filters, "on_response")[::-1]
        self.on_event = compiled(registry, filters, "on_event")[::-1]
        self.on_complete = compiled(registry, filters, "on_complete")[::-1]
        self.dispatch = Dispatch(
            compiled(registry, filters, "on_attempt"), compiled(registry, filters, "on_attempt_end")
        )

    def _with_body(self, steps: Compiled) -> Compiled:
        # The body is read just before the first filter that needs it, so that a request which is
        # refused for its key never costs us the memory of its body.
        needing = [d for d, f in enumerate(self.filters, start=1) if "body" in f.needs]
        if not needing:
            return steps
        first = needing[0]
        before = tuple(step for step in steps if step[0] < first)
        after = tuple(step for step in steps if step[0] >= first)
        return (*before, (first - 1, read_body), *after)

    async def run(self, ex: Exchange) -> None:
        """Answer the exchange. Never raises, but for a cancellation that is not the client's."""
        downstream, snapshot = ex.downstream, ex.snapshot
        snapshot.running += 1
        try:
            downstream.watch(ex.hang_up)
            if ex.gone:  # before we began
                raise ClientGone
            ex.task = downstream.task
            try:
                await self.ascend(ex, await self.descend(ex))
            finally:
                downstream.watch(None)
        except asyncio.CancelledError:
            if not ex.gone:
                ex.outcome = Outcome("upstream_broken", "shutdown")
                raise
        except ClientGone:
            ex.outcome = CLIENT_GONE
        except Exception as exc:
            await self.fail(ex, exc)
        finally:
            if ex.gone:
                # Here and not where the cancellation arrives: a filter may have swallowed it.
                ex.outcome = CLIENT_STALLED if downstream.stalled else CLIENT_GONE
                if ex.task is not None:
                    ex.task.uncancel()
            ex.task = None
            try:
                await self.complete(ex)
            finally:
                if snapshot.retired is None:  # nobody waits for its last exchange
                    snapshot.running -= 1
                else:
                    snapshot.left()
        if (unsent := downstream.settle()) is not None:
            await unsent

    async def descend(self, ex: Exchange) -> Attempt | Reply:
        """Forward through the filters, then the terminal one."""
        for depth, hook in self.on_request:
            ex.depth = depth
            reply = hook(ex)
            if reply is not None and not isinstance(reply, Reply):
                reply = await reply
            if reply is not None:
                return reply  # type: ignore[no-any-return]
        ex.depth = self.full
        try:
            return await self.terminal.route(ex, self.dispatch)
        except (BodyTooLarge, BodyTimeout) as exc:
            return body_refused(ex, exc)  # An upload that was being passed on as it came.

    async def ascend(self, ex: Exchange, answer: Attempt | Reply) -> None:
        """Back through the filters with the head, last one first; then the answer."""
        streamed = False
        body = b""
        outcome = OK
        if isinstance(answer, Reply):
            ex.reply = answer
            head, body = replied_head(ex, answer)
            outcome = Outcome.replied(answer.code)
        elif answer.whole:
            assert answer.tap is not None
            ex.usage = answer.tap.usage
            head, body = relayed_head(ex, answer), answer.answer
        elif answer.failure is None:
            head, streamed = relayed_head(ex, answer), True
        else:
            # An upstream's refusal that is nobody else's to mend: its own words, its own status.
            body = await answer.problem()
            head = problem_head(ex, answer)
            outcome = Outcome("ok", "upstream_status")
        ex.head = head
        for depth, hook in self.on_response:
            if depth <= ex.depth:
                edited = hook(ex, head)
                if edited is not None and isinstance(edited, Awaitable):
                    await edited
        if streamed:
            assert isinstance(answer, Attempt)
            await self.stream(ex, answer, head)
            return
        if self.on_event and outcome is OK:
            events = self.through(ex, [Event(body, final=True)])
            body = b"".join([event.raw for event in events])
        ex.outcome = outcome
        self.send_whole(ex, head, body)

    def send_whole(self, ex: Exchange, head: Head, body: bytes) -> None:
        """Head and body in one write."""
        ex.status = head.status
        ex.written_at = monotonic()
        ex.downstream.whole(head.status, head.headers, body, head.lines)

    async def stream(self, ex: Exchange, attempt: Attempt, head: Head) -> None:
        """Relay pieces as they come off the upstream's socket."""
        tap, downstream = attempt.tap, ex.downstream
        assert tap is not None
        ex.status = head.status
        downstream.start(head.status, head.headers, head.lines)
        beat = Heartbeat.of(self.heartbeat, downstream) if attempt.streamed else None
        try:
            await self.pump(ex, attempt, beat)
            if attempt.streamed and not tap.done:
                raise TransportError("broken", "the stream ended before its end marker", sent=True)
            ex.outcome = Outcome("ok", "stream_error") if tap.error else OK
        except (TransportError, MalformedStream) as exc:
            if attempt.streamed and tap.done and isinstance(exc, TransportError):
                # All was said that the client waits for; only the end of the connection was rude.
                ex.outcome = Outcome("ok", "stream_error") if tap.error else OK
                downstream.finish()
            else:
                self.break_off(ex, attempt, str(exc))
        finally:
            if beat is not None:
                beat.stop()
            ex.usage = tap.usage

    async def pump(self, ex: Exchange, attempt: Attempt, beat: Heartbeat | None) -> None:
        """Pass the answer on, piece by piece, until the upstream's end; the client's end goes out
        with the last piece."""
        leg, tap, downstream = attempt.leg, attempt.tap, ex.downstream
        assert leg is not None
        assert tap is not None
        feed, write = tap.feed, downstream.write
        splitter = Splitter(self, ex, attempt.streamed) if self.on_event else None
        last: list[bytes] = []

        def sink(raw: bytes) -> bool:
            # Called from where the upstream's socket is read: a piece wakes up no task.
            data = feed(raw)
            if splitter is not None:
                data = splitter.feed(data)
            if leg.complete:
                last.append(data)
                return True
            if data and beat is not None:
                beat.last = data
            return not data or write(data)

        ex.written_at = monotonic()
        data = attempt.answer
        attempt.answer = b""  # Nobody else needs it, and the stream may be a long one.
        if splitter is not None:
            data = splitter.feed(data)
        if data and beat is not None:
            beat.last = data
        taken = write(data)
        data = b""
        if not taken:
            await downstream.drain()
        while not await leg.relay(sink):
            await downstream.drain()
        data = tap.finish()
        if splitter is not None:
            data = splitter.feed(data) + splitter.finish()
        data = b"".join((*last, data))
        if tap.done or not attempt.streamed:
            downstream.finish(data)
        elif data and not write(data):
            await downstream.drain()

    def break_off(self, ex: Exchange, attempt: Attempt, reason: str) -> None:
        """The upstream broke after the commit: say so in the stream, or cut what cannot be said."""
        ex.outcome = Outcome(UPSTREAM_BROKEN.kind, "upstream_broken")
        if attempt.streamed:
            message = f"{attempt.target.label} broke off its answer: {reason}"
            ex.downstream.finish(ex.route.dialect.broken(message, "upstream_broken", ex.id))
        else:
            ex.downstream.abort()

    def through(self, ex: Exchange, events: Sequence[Event]) -> list[Event]:
        """``on_event`` of every entered filter, last one first, over ``events``."""
        current = list(events)
        for depth, hook in self.on_event:
            if depth > ex.depth:
                continue
            following: list[Event] = []
            for event in current:
                changed = hook(ex, event)
                if changed is None:
                    following.append(event)
                elif isinstance(changed, Event):
                    following.append(changed)
                else:
                    following.extend(changed)
            current = following
        return current

    async def fail(self, ex: Exchange, exc: Exception) -> None:
        """Our own fault: log it whole, tell the client nothing but the request's id."""
        ex.outcome = INTERNAL_ERROR
        ex.snapshot.log.error("internal_error", request_id=ex.id, depth=ex.depth, exc_info=exc)
        for attempt in ex.attempts:
            attempt.close()
        message = f"The gateway made a mistake. Quote {ex.id} when you report it."
        if ex.downstream.started:
            if ex.attempts and ex.attempts[-1].streamed:
                ex.downstream.finish(ex.route.dialect.broken(message, "internal_error", ex.id))
            else:
                ex.downstream.abort()
            return
        head, body = replied_head(ex, Reply(500, "internal_error", message))
        self.send_whole(ex, head, body)

    async def complete(self, ex: Exchange) -> None:
        """The end of the last attempt, then of every entered filter, last one first.

        Neither a fault nor a cancellation in one filter keeps the end from the others.
        """
        cancelled = None
        if ex.attempts:
            last = ex.attempts[-1]
            if ex.usage is None and last.tap is not None and ex.request.operation in METERED:
                # An upstream that answered and told no usage: what is recorded is a marked guess.
                ex.usage = last.tap.usage or estimated(ex.request.body, last.tap.text_bytes)
            if self.dispatch.after:
                cancelled = await self.end_last(ex, last)
            elif not last.whole:
                last.close()
        for depth, hook in self.on_complete:
            if depth > ex.depth:
                continue
            try:
                done = hook(ex)
                if done is not None and isinstance(done, Awaitable):
                    await done
            except asyncio.CancelledError as exc:
                cancelled = exc
            except Exception as exc:
                ex.snapshot.log.error("on_complete_failed", request_id=ex.id, exc_info=exc)
        if cancelled is not None:
            raise cancelled

    async def end_last(self, ex: Exchange, attempt: Attempt) -> asyncio.CancelledError | None:
        """The end of the last attempt, for each filter; a cancellation is handed back."""
        cancelled = None
        while True:
            try:
                await self.dispatch.end(ex, attempt)
            except asyncio.CancelledError as exc:
                cancelled = exc
            except Exception as exc:
                ex.snapshot.log.error("on_attempt_end_failed", request_id=ex.id, exc_info=exc)
            else:
                return cancelled


class Splitter:
    """Cuts an answer into events for chains whose filters look at them."""

    def __init__(self, chain: Chain, ex: Exchange, streamed: bool) -> None:
        self._chain = chain
        self._ex = ex
        self._decoder = Decoder() if streamed else None

    def feed(self, data: bytes) -> bytes:
        """Bytes for the client out of ``data``, after every filter has seen its events."""
        if self._decoder is None:
            return self._joined([Event(data)]) if data else b""
        return self._joined([Event(m.raw, m.data) for m in self._decoder.feed(data)])

    def finish(self) -> bytes:
        """The rest, and the one final event (empty for a stream, whose end was said already)."""
        rest = [] if self._decoder is None else self._decoder.finish()
        return self._joined([*(Event(m.raw, m.data) for m in rest), Event(b"", final=True)])

    def _joined(self, events: Sequence[Event]) -> bytes:
        return b"".join([event.raw for event in self._chain.through(self._ex, events)])
