"""The heart: how a request passes through its filters.

A chain is an ordered tuple of filters, the last one terminal. It is compiled once per route and
snapshot: a pluggy manager checks every hook's name and arguments, then its implementations become
tuples ``(depth, bound method)``, one tuple a phase, holding only the filters that implement the
hook. At run time there is no pluggy, no lookup by name, and no allocation per filter. A hook may be
a coroutine function, or a plain one that returns its result or something to await: what seldom
waits need not pay for it.

An exchange goes through three phases. *Descend*: ``on_request`` of each filter in order, then the
terminal filter's ``route``, which makes attempts until it commits to one. *Ascend*: ``on_response``
in reverse, then the answer, event by event, and ``on_end`` just before its last bytes are released.
*Complete*: ``on_complete`` in reverse, exactly once for each filter the exchange entered, whatever
happened before.

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
from passy_proxy.dialect import Tap
from passy_proxy.downstream import BadUpload, BodyTimeout, BodyTooLarge, ClientGone, Downstream
from passy_proxy.edits import legal_events, legal_reply, watched, watched_attempt
from passy_proxy.estimate import METERED, estimated
from passy_proxy.event import Event, Head, Reply
from passy_proxy.exchange import (
    CLIENT_GONE,
    CLIENT_STALLED,
    FILTER_FAILED,
    INTERNAL_ERROR,
    OK,
    SHUTDOWN,
    UPSTREAM_BROKEN,
    Exchange,
    Outcome,
)
from passy_proxy.faults import Excuse, Faults, FilterFailed
from passy_proxy.filter import ExchangeHooks, Filter, Terminal
from passy_proxy.heartbeat import Heartbeat
from passy_proxy.log import Alarms
from passy_proxy.request_body import body_refused, read_body
from passy_proxy.sse import Decoder, MalformedStream
from passy_proxy.transport import TransportError
from passy_proxy.veil import Veil, veiled

Compiled = tuple[tuple[int, Callable[..., Any]], ...]

HOOKS = (
    "on_request",
    "on_attempt",
    "on_attempt_end",
    "on_response",
    "on_event",
    "on_end",
    "on_complete",
)


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
        if name.startswith("on_") and name not in HOOKS and callable(getattr(filter, name)):
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


def entered(steps: Compiled, depth: int) -> Compiled:
    """Of the steps of a hook that runs backward, those of the first ``depth`` filters."""
    return tuple([step for step in steps if step[0] <= depth])


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
        self.alarms = Alarms()
        self.on_request = self._with_body(compiled(registry, filters, "on_request"))
        self.faults = Faults(filters)
        self.on_response = tuple(
            (depth, hook if self.filters[depth - 1].vouches else watched(hook))
            for depth, hook in compiled(registry, filters, "on_response")[::-1]
        )
        self.on_event = compiled(registry, filters, "on_event")[::-1]
        self.on_end = compiled(registry, filters, "on_end")[::-1]
        self.on_complete = compiled(registry, filters, "on_complete")[::-1]
        self.dispatch = Dispatch(
            tuple(
                (depth, hook if self.filters[depth - 1].vouches else watched_attempt(hook))
                for depth, hook in compiled(registry, filters, "on_attempt")
            ),
            compiled(registry, filters, "on_attempt_end"),
            self.faults,
        )
        # It refers to itself; the filters in it shall go when they are let go, unlooked for.
        vars(registry.hook).clear()

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
                ex.conclude(SHUTDOWN)
                message = "The gateway is stopping and could not finish this. Please ask again."
                await self.excuse(ex, Reply(503, "draining", message, [(b"retry-after", b"1")]))
                raise
        except ClientGone:
            ex.conclude(left(ex))
        except Exception as exc:
            await self.fail(ex, exc)
        finally:
            if ex.gone:
                # Here and not where the cancellation arrives: a filter may have swallowed it.
                ex.conclude(left(ex))
                if ex.task is not None and not ex.drains:
                    ex.task.uncancel()
            ex.task = None
            try:
                if not ex.ended:
                    await self.end_unsaid(ex)
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
            try:
                reply: Reply | None = hook(ex)
                if reply is None:
                    continue
                if not isinstance(reply, Reply):
                    reply = await self.replied(ex, depth, hook, reply)
            except BaseException as exc:
                ex.depth = depth
                if hook is read_body:
                    raise
                reply = self.faults.failed(ex, depth, "on_request", exc)
            if reply is not None:
                ex.depth = depth
                return reply
        ex.depth = self.full
        try:
            return await self.terminal.route(ex, self.dispatch)
        except (BodyTooLarge, BodyTimeout, BadUpload) as exc:
            return body_refused(ex, exc)  # An upload that was being passed on as it came.
        except FilterFailed as exc:
            return exc.reply

    async def replied(
        self, ex: Exchange, depth: int, hook: Callable[..., Any], awaited: Any
    ) -> Reply | None:
        """``on_request`` of a filter that has to wait; how long a body may take is the edge's."""
        if hook is read_body:
            return await awaited  # type: ignore[no-any-return]
        reply = await self.faults.waited(ex, depth, awaited)
        if reply is not None and not isinstance(reply, Reply):
            raise TypeError(f"on_request returned {type(reply).__name__}, which is no Reply")
        return reply

    async def ascend(
        self, ex: Exchange, answer: Attempt | Reply, outermost: int | None = None
    ) -> None:
        """Back through the filters with the head, last one first; then the answer.

        After the failure of one of them, only the ``outermost`` so many are still to see the head.
        """
        streamed = False
        body = b""
        outcome = OK
        if isinstance(answer, Reply):
            answer, head, body = self.told(ex, answer)
            ex.reply = answer
            failed = isinstance(answer, Excuse)
            outcome = FILTER_FAILED if failed else Outcome.replied(answer.code)
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
        depth = ex.depth if outermost is None else outermost
        steps = self.on_response if depth == self.full else entered(self.on_response, depth)
        for depth, hook in steps:
            try:
                edited = hook(ex, head)
                if edited is not None and edited is not head:
                    await self.edited(ex, depth, edited, head)
            except BaseException as exc:
                if (reply := self.turned(ex, depth, exc)) is not None:
                    return await self.ascend(ex, reply, depth - 1)
        if streamed:
            assert isinstance(answer, Attempt)
            await self.stream(ex, answer, head)
            return
        if self.on_event and outcome is OK:
            events = self.through(ex, [Event(body, final=True)])
            body = b"".join([event.raw for event in events])
        ex.outcome = outcome
        ex.status = head.status
        ex.written_at = monotonic()
        if (waited := self.end(ex, body)) is not None:
            await waited
        ex.head = head  # Not before: nobody may edit what has been looked at.
        ex.downstream.whole(head.status, head.headers, body, head.lines)

    def turned(self, ex: Exchange, depth: int, exc: BaseException) -> Reply | None:
        """What takes the place of an answer after a failure in ``on_response``, if anything."""
        reply = self.faults.failed(ex, depth, "on_response", exc)
        if reply is not None:
            for attempt in ex.attempts:
                attempt.close()
        return reply

    def told(self, ex: Exchange, reply: Reply) -> tuple[Reply, Head, bytes]:
        """A reply as it is sent; another one in its place where it cannot be."""
        try:
            legal_reply(reply)
            return reply, *replied_head(ex, reply)
        except Exception as exc:
            instead = self.faults.refused(ex, ex.depth, exc)
            return instead, *replied_head(ex, instead)

    async def edited(self, ex: Exchange, depth: int, awaited: Any, head: Head) -> None:
        """``on_response`` of a filter that has to wait."""
        result = await self.faults.waited(ex, depth, awaited)
        if result is not None and result is not head:
            raise TypeError(f"on_response returned {type(result).__name__}; it edits the head")

    def end(self, ex: Exchange, last: bytes) -> Awaitable[None] | None:
        """``on_end`` of every entered filter, last one first. The outcome is known; the ``last``
        bytes for the client may follow when what this returns has been awaited.

        Raises FilterFailed, once all have been told.
        """
        ex.ended = True
        if ex.seal is not None:
            ex.seal.client.update(last)
        if ex.gone:  # which a filter may have swallowed
            ex.outcome = left(ex)
        if ex.attempts and (tap := ex.attempts[-1].tap) is not None:
            self.reckon(ex, ex.attempts[-1], tap)
        waits: list[tuple[int, Any]] | None = None
        refused = None
        steps = self.on_end
        for depth, hook in steps if ex.depth == self.full else entered(steps, ex.depth):
            try:
                done = hook(ex)
                if done is not None:
                    waits = [*(waits or ()), (depth, done)]
            except BaseException as exc:
                if (reply := self.faults.ended(ex, depth, "on_end", exc)) is not None:
                    refused = refuse(ex, reply)
        if waits is not None:
            return self.in_turn(ex, waits, refused)
        if refused is not None:
            raise FilterFailed(refused)
        return None

    async def in_turn(
        self, ex: Exchange, waits: Sequence[tuple[int, Any]], refused: Reply | None
    ) -> None:
        """Await what ``on_end`` of some filters gave. Raises FilterFailed."""
        cancelled = None
        for depth, awaited in waits:
            try:
                await self.faults.waited_at_end(depth, awaited)
            except BaseException as exc:
                try:
                    if (reply := self.faults.ended(ex, depth, "on_end", exc)) is not None:
                        refused = refuse(ex, reply)
                except asyncio.CancelledError as own:
                    cancelled = own
        if cancelled is not None:
            raise cancelled
        if refused is not None:
            raise FilterFailed(refused)

    async def end_unsaid(self, ex: Exchange, last: bytes = b"") -> None:
        """``on_end`` of an exchange that is past being refused; ``last`` may still be sent."""
        try:
            if (waited := self.end(ex, last)) is not None:
                await waited
        except FilterFailed:
            pass  # It was told already.

    async def stream(self, ex: Exchange, attempt: Attempt, head: Head) -> None:
        """Relay pieces as they come off the upstream's socket."""
        tap, downstream = attempt.tap, ex.downstream
        assert tap is not None
        pieces = downstream if ex.seal is None else ex.seal.over(downstream)
        ex.status = head.status
        downstream.start(head.status, head.headers, head.lines)
        ex.head = head
        beat = Heartbeat.of(self.heartbeat if attempt.streamed else 0.0, pieces)
        try:
            await self.pump(ex, attempt, pieces, beat)
            if not ex.ended:
                raise TransportError("broken", "the stream ended before its end marker", sent=True)
        except (TransportError, MalformedStream) as exc:
            if attempt.streamed and ex.ended and isinstance(exc, TransportError):
                # All was said that the client waits for; only the end of the connection was rude.
                downstream.finish()
            else:
                await self.break_off(ex, attempt, str(exc))
        finally:
            beat.stop()
            if not ex.ended:
                ex.usage = tap.usage

    async def said(self, ex: Exchange, tap: Tap, last: bytes) -> None:
        """The upstream's answer is at its end: the outcome is known before its ``last`` piece is
        passed on."""
        if ex.ended:
            return
        ex.outcome = Outcome("ok", "stream_error") if tap.error else OK
        ex.usage = tap.usage
        if (waited := self.end(ex, last)) is not None:
            await waited

    async def pump(
        self, ex: Exchange, attempt: Attempt, pieces: Downstream, beat: Heartbeat
    ) -> None:
        """Pass the answer on, piece by piece, until the upstream's end; the client's end goes out
        with the last piece. What holds the end mark is released after ``on_end``."""
        leg, tap, downstream = attempt.leg, attempt.tap, ex.downstream
        assert leg is not None
        assert tap is not None
        feed = tap.feed
        splitter = Splitter(self, ex, attempt.streamed) if self.on_event else None
        veil = Veil(attempt.secrets)
        secret = veil.only
        send, write = pieces.write, beat.write
        last: list[bytes] = []

        def sink(raw: bytes) -> bool:
            # Called from where the upstream's socket is read: a piece wakes up no task.
            data = feed(raw)
            if data.find(secret) >= 0 or veil.held or data[-1:] != b"\n":
                data = veil(data)
            if splitter is not None:
                data = splitter.feed(data)
            if leg.complete or (tap.done and not ex.ended):
                last.append(data)
                return leg.complete
            if not data:
                return True
            beat.last = data  # As ``beat.write`` does, with one call less for each piece.
            return send(data)

        ex.written_at = monotonic()
        data = shown(attempt.answer, veil, splitter)
        attempt.answer = b""  # Nobody else needs it, and the stream may be a long one.
        if tap.done:
            await self.said(ex, tap, data)
        taken = write(data)
        data = b""
        if not taken:
            await self.drain(ex)
        while not await leg.relay(sink):
            if last:
                await self.said(ex, tap, last[0])
                write(last.pop())
            await self.drain(ex)
        data = shown(ended(attempt, tap), veil, splitter, end=True)
        data = b"".join((*last, data))
        if tap.done or not attempt.streamed:
            await self.said(ex, tap, data)
            downstream.finish(data)
        elif data and not write(data):
            await self.drain(ex)

    async def drain(self, ex: Exchange) -> None:
        """Wait until the client has read enough. Raises ClientGone."""
        try:
            await ex.downstream.drain()
        except ClientGone:
            ex.gone = True
            if not ex.drains:
                raise

    async def break_off(self, ex: Exchange, attempt: Attempt, reason: str) -> None:
        """The upstream broke after the commit: say so in the stream, or cut what cannot be said."""
        said = b""
        if attempt.streamed:
            message = f"{attempt.target.label} broke off its answer: {reason}"
            said = ex.route.dialect.broken(message, "upstream_broken", ex.id)
            # Half of a long message is with the client already: what follows is another one.
            said = b"\n\n" + said if getattr(attempt.tap, "midway", False) else said
        if not ex.ended:
            assert attempt.tap is not None
            ex.outcome = Outcome(UPSTREAM_BROKEN.kind, "upstream_broken")
            ex.usage = attempt.tap.usage
            if (waited := self.end(ex, said)) is not None:
                await waited
        if attempt.streamed:
            ex.downstream.finish(said)
        else:
            ex.downstream.abort()

    def through(self, ex: Exchange, events: Sequence[Event]) -> list[Event]:
        """``on_event`` of every entered filter, last one first, over ``events``."""
        current = list(events)
        if ex.seal is not None:
            ex.seal.enter(events)
        for depth, hook in self.on_event:
            if depth > ex.depth:
                continue
            following: list[Event] = []
            before = None if ex.seal is None else [event.raw for event in current]
            for event in current:
                raw = event.raw
                try:
                    changed = hook(ex, event)
                    if changed is None:
                        if event.raw is not raw:
                            legal_events((event,))
                        following.append(event)
                    elif isinstance(changed, Event):
                        legal_events((changed,))
                        following.append(changed)
                    else:
                        following.extend(legal_events(changed))
                except BaseException as exc:
                    reply = self.faults.failed(ex, depth, "on_event", exc)
                    if reply is not None:
                        raise FilterFailed(reply) from exc
                    event.raw = raw
                    following.append(event)
            if before is not None:
                assert ex.seal is not None
                ex.seal.compare(self.filters[depth - 1].name, before, following)
            current = following
        return current

    async def fail(self, ex: Exchange, exc: Exception) -> None:
        """Our own fault: log it whole, tell the client nothing but the request's id. A filter's
        was told already."""
        if isinstance(exc, FilterFailed):
            ex.outcome, reply = FILTER_FAILED, exc.reply
        else:
            ex.outcome = INTERNAL_ERROR
            ex.snapshot.log.error("internal_error", request_id=ex.id, depth=ex.depth, exc_info=exc)
            message = f"The gateway made a mistake. Quote {ex.id} when you report it."
            reply = Reply(500, "internal_error", message)
        await self.excuse(ex, reply)

    async def excuse(self, ex: Exchange, reply: Reply) -> None:
        """End an answer that will not come: as a reply, as the last event of its stream, or by
        cutting what cannot be said any more."""
        for attempt in ex.attempts:
            attempt.close()
        downstream = ex.downstream
        head, body = None, b""
        if not downstream.started:
            ex.reply, ex.status, ex.written_at = reply, reply.status, monotonic()
            head, body = replied_head(ex, reply)
        elif ex.attempts and ex.attempts[-1].streamed:
            body = ex.route.dialect.broken(reply.message, reply.code, ex.id)
        if not ex.ended:
            await self.end_unsaid(ex, body)
        if head is not None:
            ex.head = head
            downstream.whole(head.status, head.headers, body, head.lines)
        elif body:
            downstream.finish(body)
        else:
            downstream.abort()

    async def complete(self, ex: Exchange) -> None:
        """The end of the last attempt, then of every entered filter, last one first.

        Neither a fault nor a cancellation in one filter keeps the end from the others.
        """
        cancelled = None
        if ex.attempts:
            last = ex.attempts[-1]
            try:
                waited = self.dispatch.end(ex, last)
            except asyncio.CancelledError as exc:
                cancelled = await self.end_rest(ex, last, None) or exc
            else:
                if waited is not None:
                    cancelled = await self.end_rest(ex, last, waited)
        steps = self.on_complete
        for depth, hook in steps if ex.depth == self.full else entered(steps, ex.depth):
            try:
                done = hook(ex)
                if done is not None:
                    await self.faults.waited_at_end(depth, done)
            except BaseException as exc:
                try:
                    self.faults.ended(ex, depth, "on_complete", exc)
                except asyncio.CancelledError as own:
                    cancelled = own
        if cancelled is not None:
            raise cancelled

    def reckon(self, ex: Exchange, attempt: Attempt, tap: Tap) -> None:
        """The usage of an answer, and an alarm for one that cannot be true."""
        if ex.usage is None and ex.request.operation in METERED:
            ex.usage = tap.usage
            if ex.usage is None and attempt.failure is None:
                # An upstream that answered and told no usage: what is recorded is a marked guess.
                ex.usage = estimated(ex.request.body, tap.text_bytes)
        if not getattr(tap, "doubt", None):
            return
        kept_back = self.alarms.due(attempt.target.upstream.name)
        if kept_back is not None:
            told = veiled(tap.doubt, attempt.secrets).decode("utf-8", "replace")
            ex.snapshot.log.warning(
                "usage_doubtful",
                request_id=ex.id,
                upstream=attempt.target.label,
                told=told,
                kept_back=kept_back,
            )

    async def end_rest(
        self, ex: Exchange, attempt: Attempt, waited: Awaitable[None] | None
    ) -> asyncio.CancelledError | None:
        """The end of the last attempt for filters that are still to hear of it; a cancellation is
        handed back."""
        cancelled = None
        while True:
            try:
                if waited is not None:
                    await waited
                waited = self.dispatch.end(ex, attempt)
            except asyncio.CancelledError as exc:
                cancelled, waited = exc, None
            else:
                if waited is None:
                    return cancelled


def refuse(ex: Exchange, reply: Reply) -> Reply:
    """A filter's ``on_end`` keeps back the last bytes; the others shall know."""
    ex.outcome = FILTER_FAILED
    if ex.seal is not None:
        ex.seal.refused = True
    return reply


def ended(attempt: Attempt, tap: Tap) -> bytes:
    """What the tap still has when the answer is over. Raises TransportError when it was none: too
    long to be held until its end was known, and cut although its framing was not."""
    data = tap.finish()
    if tap.error and not attempt.streamed:
        raise TransportError("broken", tap.error, sent=True)
    return data


def shown(data: bytes, veil: Veil, splitter: Splitter | None, *, end: bool = False) -> bytes:
    """What the client gets of ``data``, which is not passed on where the socket is read."""
    data = veil(data, end)
    if splitter is None:
        return data
    return splitter.feed(data) + splitter.finish() if end else splitter.feed(data)


def left(ex: Exchange) -> Outcome:
    """How it ends when the client is gone: by itself, or because we had to cut it."""
    return CLIENT_STALLED if ex.downstream.stalled else CLIENT_GONE


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
