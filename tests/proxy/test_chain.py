"""The core's invariants, one test or more for each, and a hang-up at every await."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from types import FrameType
from typing import Any

import pytest

from passy_proxy import (
    Attempt,
    Dispatch,
    Event,
    Exchange,
    Failure,
    Filter,
    Head,
    Reply,
    Target,
    Terminal,
    TransportError,
    Upstream,
    UpstreamRequest,
    json,
)
from passy_proxy.chain import BadFilter, Chain
from passy_proxy.exchange import Outcome
from passy_proxy.heartbeat import Heartbeat
from passy_proxy.testing import Bench, Recorded, chat_events, completion
from passy_proxy.transport import Sink, relayed

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task outlives its test, and no socket: what is collected unclosed is an error."""
    yield
    left = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert [] == [task for task in left if "coro=<TestRunner." not in task]  # anyio's own
    gc.collect()


HOOKS = ("on_request", "on_attempt", "on_attempt_end", "on_response", "on_event", "on_complete")
Journal = list[tuple[str, str]]


def tracer(name: str, journal: Journal, **hooks: Callable[..., Any]) -> type[Filter]:
    """A filter with all seven hooks, each of which waits a turn and writes itself down."""

    def written(hook: str) -> Callable[..., Any]:
        own = hooks.get(hook)

        def on_event(self: Filter, ex: Exchange, event: Event) -> Any:
            journal.append((name, hook))
            return own(ex, event) if own else None

        async def on_attempt(self: Filter, ex: Exchange, attempt: Attempt) -> Any:
            journal.append((name, hook))
            await asyncio.sleep(0)
            return own(ex, attempt) if own else None

        async def on_response(self: Filter, ex: Exchange, head: Head) -> Any:
            journal.append((name, hook))
            await asyncio.sleep(0)
            return own(ex, head) if own else None

        async def on_other(self: Filter, ex: Exchange) -> Any:
            journal.append((name, hook))
            await asyncio.sleep(0)
            return own(ex) if own else None

        known = {"on_event": on_event, "on_attempt": on_attempt, "on_attempt_end": on_attempt}
        return {**known, "on_response": on_response}.get(hook, on_other)

    return type(name, (Filter,), {"name": name, **{hook: written(hook) for hook in HOOKS}})


class Leg:
    """An answer that waits a turn before each piece."""

    def __init__(self, transport: Fake, status: int, pieces: Sequence[bytes], broken: bool) -> None:
        sse = bool(pieces) and pieces[0].startswith(b"data:")
        kind = b"text/event-stream" if sse else b"application/json"
        self.status = status
        self.headers = [(b"content-type", kind)]
        self.complete = False
        self.closed = 0
        self._pieces = list(pieces)
        self._broken = broken
        self._transport = transport

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self._pieces:
            piece = self._pieces.pop(0)
            self.complete = not (self._pieces or self._broken)
            return piece
        if self._broken:
            raise TransportError("broken", "the connection was cut", sent=True)
        return b""

    async def relay(self, sink: Sink) -> bool:
        return await relayed(self, sink)

    async def read_all(self, limit: int) -> bytes:
        return b"".join([piece async for piece in self._rest()])

    async def _rest(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    def close(self) -> None:
        self.closed += 1
        self._transport.open_legs.discard(self)


class Fake:
    """A transport with its answers written down: (status, pieces, broken), or an error."""

    def __init__(self, *answers: tuple[int, Sequence[bytes], bool] | TransportError) -> None:
        self._answers = list(answers)
        self.open_legs: set[Leg] = set()
        self.requests: list[UpstreamRequest] = []

    async def open(self, request: UpstreamRequest) -> Leg:
        self.requests.append(request)
        answer = self._answers.pop(0)
        await asyncio.sleep(0)
        if isinstance(answer, TransportError):
            raise answer
        leg = Leg(self, *answer)
        self.open_legs.add(leg)
        return leg

    async def aclose(self) -> None: ...

    def stats(self) -> dict[str, int]:
        return {}


PLAIN = (200, [json.dumps(completion("one two three"))], False)
STREAM = (200, chat_events(["one ", "two ", "three"]), False)
BROKEN = (200, chat_events(["one ", "two ", "three"])[:3], True)
BUSY = (503, [b'{"error":{"message":"busy","type":"server_error"}}'], False)


class Slow(Recorded):
    """A client that takes a turn over everything."""

    async def body(self, limit: int) -> bytes:
        await asyncio.sleep(0)
        return await super().body(limit)

    def write(self, data: bytes) -> bool:
        return super().write(data) and False

    async def drain(self) -> None:
        await asyncio.sleep(0)
        await super().drain()

    async def settle(self) -> None:
        await asyncio.sleep(0)


class Rig:
    """A bench whose chain is ``filters``, alias and fallback; two targets on one fake upstream."""

    def __init__(
        self, filters: Sequence[type[Filter]], fallback: str = "fallback", *, timed: bool = False
    ) -> None:
        """``timed``: with a clock around each hook."""
        names = ", ".join(kind.name for kind in filters)
        self._bench = Bench(
            f"""
            time_filters: {int(timed)}
            upstreams: {{echo: {{kind: echo}}}}
            chains: {{default: [{names}{", " if names else ""}alias, {fallback}]}}
            routes: [{{match: POST /v1/chat/completions}}]
            """,
            filters=filters,
        )

    async def __aenter__(self) -> Rig:
        await self._bench.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._bench.__aexit__(*exc)

    def exchange(self, fake: Fake, downstream: Recorded | None = None, **body: object) -> Exchange:
        ex = self._bench.exchange({"model": "m", "messages": [], **body})
        if downstream is not None:
            downstream._body = ex.downstream._body  # type: ignore[attr-defined]
            ex.downstream = ex.request.downstream = downstream
        dialect = self._bench.parts.registry.dialects["openai"]
        upstream = Upstream("fake", fake, dialect)
        ex.targets = (Target.at(upstream, "first"), Target.at(upstream, "second"))
        return ex


async def run(filters: Sequence[type[Filter]], fake: Fake, **body: object) -> Exchange:
    async with Rig(filters) as rig:
        ex = rig.exchange(fake, **body)
        await ex.route.chain.run(ex)
        assert set() == fake.open_legs
        return ex


def recorded(ex: Exchange) -> Recorded:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream


# 1


async def test_none_means_carry_on_in_every_hook() -> None:
    journal: Journal = []
    plain = await run([tracer("watching", journal)], Fake(PLAIN))
    streamed = await run([tracer("watching", journal)], Fake(STREAM), stream=True)

    assert set(HOOKS) == {hook for _, hook in journal}
    assert PLAIN[1][0] == recorded(plain).answer
    bare = await run([], Fake(STREAM), stream=True)
    assert recorded(bare).answer == recorded(streamed).answer
    assert "ok" == plain.outcome.kind == streamed.outcome.kind


# 2


class Faulty(Filter):
    name = "faulty"

    def on_request(self, ex: Exchange) -> None:
        raise LookupError("a secret in a message")


class Refusing(Filter):
    name = "refusing"

    def on_request(self, ex: Exchange) -> Reply:
        return Reply(429, "slow_down", "Not now.")


@pytest.mark.parametrize(
    ("filters", "answers", "stream", "expected"),
    [
        ([], [PLAIN], False, Outcome("ok")),
        ([], [STREAM], True, Outcome("ok")),
        ([], [BUSY, PLAIN], False, Outcome("ok")),
        ([], [(400, [b"{}"], False)], False, Outcome("ok", "upstream_status")),
        ([], [BUSY, BUSY], False, Outcome("replied", "upstream_error")),
        ([Refusing], [], False, Outcome("replied", "slow_down")),
        ([], [BROKEN], True, Outcome("upstream_broken", "upstream_broken")),
        ([], [(*STREAM[:2], True)], True, Outcome("ok")),
        ([Faulty], [], False, Outcome("internal_error", "filter_failed")),
    ],
)
async def test_each_exchange_has_exactly_one_ending(
    filters: list[type[Filter]], answers: list[Any], stream: bool, expected: Outcome
) -> None:
    journal: Journal = []
    first, second = tracer("first", journal), tracer("second", journal)
    ex = await run([first, second, *filters], Fake(*answers), stream=stream)

    assert expected == ex.outcome
    ends = [name for name, hook in journal if hook == "on_complete"]
    assert ["second", "first"] == ends
    assert recorded(ex).finished
    assert ex.status == recorded(ex).status


async def test_a_filters_fault_tells_the_client_the_id_and_nothing_else() -> None:
    ex = await run([Faulty], Fake())
    error = recorded(ex).json["error"]
    assert 500 == ex.status
    assert "internal_error" == error["code"]
    assert f"The gateway made a mistake. Quote {ex.id} when you report it." == error["message"]


async def test_an_internal_error_tells_the_client_its_id_and_nothing_else() -> None:
    class Broken(Fake):
        async def open(self, request: UpstreamRequest) -> Leg:
            raise LookupError("a secret in a message")

    ex = await run([], Broken())
    error = recorded(ex).json["error"]
    assert 500 == ex.status
    assert "internal_error" == error["code"]
    assert ex.id in error["message"]
    assert b"secret" not in recorded(ex).answer


# 3


async def test_what_entered_leaves_in_reverse_and_the_others_are_not_told() -> None:
    journal: Journal = []
    entered = [tracer("first", journal), tracer("second", journal)]
    ex = await run([*entered, Refusing, tracer("never", journal)], Fake())

    assert 3 == ex.depth
    expected = [
        ("first", "on_request"),
        ("second", "on_request"),
        ("second", "on_response"),
        ("first", "on_response"),
        ("second", "on_complete"),
        ("first", "on_complete"),
    ]
    assert expected == journal


async def test_the_hooks_of_an_exchange_come_in_their_order() -> None:
    journal: Journal = []
    await run([tracer("a", journal), tracer("b", journal)], Fake(BUSY, PLAIN))
    steps = [
        ("on_request", "ab"),
        ("on_attempt", "ab"),
        ("on_attempt_end", "ab"),
        ("on_attempt", "ab"),
        ("on_response", "ba"),
        ("on_event", "ba"),
        ("on_attempt_end", "ab"),
        ("on_complete", "ba"),
    ]
    assert [(name, hook) for hook, names in steps for name in names] == journal


@pytest.mark.parametrize("hook", ["on_attempt_end", "on_complete"])
async def test_a_fault_at_the_end_keeps_it_from_nobody(hook: str) -> None:
    journal: Journal = []

    def fault(*_: object) -> None:
        raise LookupError("broken at the end")

    filters = [tracer("a", journal), tracer("b", journal, **{hook: fault}), tracer("c", journal)]
    ex = await run(filters, Fake(PLAIN))

    assert "ok" == ex.outcome.kind
    assert ["c", "b", "a"] == [name for name, told in journal if told == "on_complete"]
    assert ["a", "b", "c"] == [name for name, told in journal if told == "on_attempt_end"]


# 4


async def test_nothing_is_sent_before_the_commit() -> None:
    journal: Journal = []

    def unsent(ex: Exchange, *_: object) -> None:
        assert not ex.downstream.started

    early = ("on_request", "on_attempt", "on_response")
    ex = await run(
        [tracer("watching", journal, **dict.fromkeys(early, unsent))],
        Fake(BUSY, STREAM),
        stream=True,
    )
    assert "ok" == ex.outcome.kind
    assert ["first", "second"] == [attempt.target.model for attempt in ex.attempts]


async def test_nothing_is_retried_after_the_commit() -> None:
    fake = Fake(BROKEN, STREAM)
    ex = await run([], fake, stream=True)
    assert 1 == len(fake.requests)
    assert "upstream_broken" == ex.outcome.kind
    sent = recorded(ex).answer
    assert b"one " in sent
    last = sent.rstrip().rpartition(b"\n\n")[2]
    assert "upstream_broken" == json.loads(last.removeprefix(b"data: "))["error"]["code"]


async def test_a_plain_answer_that_breaks_off_is_asked_of_the_next_target() -> None:
    half = (200, [PLAIN[1][0][:40]], True)
    ex = await run([], Fake(half, PLAIN))
    assert PLAIN[1][0] == recorded(ex).answer
    assert "broken" == ex.attempts[0].failure.kind  # type: ignore[union-attr]


# 5


async def test_each_attempt_starts_from_the_pristine_request() -> None:
    before: list[bytes] = []

    def edit(ex: Exchange, attempt: Attempt) -> None:
        before.append(bytes(attempt.request.body))  # type: ignore[arg-type]
        attempt.request.body = b"spoilt"
        attempt.request.headers.append((b"x-spoilt", b"yes"))

    fake = Fake(BUSY, PLAIN)
    ex = await run([tracer("editing", [], on_attempt=edit)], fake)

    assert [b"spoilt", b"spoilt"] == [request.body for request in fake.requests]
    assert ["first", "second"] == [json.loads(body)["model"] for body in before]
    spoilt = [[n for n, _ in request.headers].count(b"x-spoilt") for request in fake.requests]
    assert [1, 1] == spoilt
    assert {"model": "m", "messages": []} == ex.request.json


# 6


@pytest.mark.parametrize("kind", ["coroutine", "async generator"])
async def test_on_event_has_to_be_a_plain_function(kind: str) -> None:
    class Waiting(Filter):
        name = "waiting"

        async def on_event(self, ex: Exchange, event: Event) -> None:
            await asyncio.sleep(0)

    class Generating(Filter):
        name = "generating"

        async def on_event(self, ex: Exchange, event: Event) -> AsyncIterator[Event]:
            yield event

    class End(Terminal):
        name = "end"

    wrong = Waiting if kind == "coroutine" else Generating
    with pytest.raises(BadFilter, match="plain function"):
        Chain([wrong(None, None), End(None, None)])  # type: ignore[arg-type]


async def test_hooks_may_replace_expand_and_swallow_events() -> None:
    def shout(ex: Exchange, event: Event) -> Event | tuple[Event, ...] | None:
        if event.json and event.json["choices"] and "two " in str(event.json):
            return ()
        if event.json and "three" in str(event.json):
            return (event, event)
        if event.data == b"[DONE]":
            return Event(b": replaced\n\n" + event.raw)
        return None

    ex = await run([tracer("editing", [], on_event=shout)], Fake(STREAM), stream=True)
    sent = recorded(ex).answer
    assert (1, 0, 2) == tuple(sent.count(word) for word in (b"one ", b"two ", b"three"))
    assert sent.endswith(b": replaced\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("answer", [PLAIN, STREAM])
async def test_an_answer_has_exactly_one_final_event(answer: Any) -> None:
    finals: list[bool] = []
    watch = tracer("watching", [], on_event=lambda ex, event: finals.append(event.final))
    await run([watch], Fake(answer), stream=answer is STREAM)
    assert [*[False] * (len(finals) - 1), True] == finals


# 7


async def test_the_hot_path_touches_no_pluggy_yaml_sql_pydantic_or_environment() -> None:
    entered: set[str] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code.co_filename.replace("\\", "/"))

    def no_task(*_: object, **__: object) -> Any:
        raise AssertionError("an exchange made a task")

    async with Rig([]) as rig:
        loop = asyncio.get_running_loop()
        for answer, stream in ((PLAIN, False), (STREAM, True)):
            ex = rig.exchange(Fake(answer), stream=stream)
            loop.set_task_factory(no_task)
            sys.setprofile(profile)
            try:
                await ex.route.chain.run(ex)
            finally:
                sys.setprofile(None)
                loop.set_task_factory(None)
            assert "ok" == ex.outcome.kind

    assert any(path.endswith("passy_proxy/chain.py") for path in entered)
    forbidden = (
        "/pluggy/",
        "/yaml/",
        "/sqlalchemy/",
        "/pydantic/",
        "/os.py",
        "passy_proxy/config/",
    )
    assert [] == [path for path in entered if any(word in path for word in forbidden)]


async def test_a_hook_that_no_filter_implements_is_not_in_the_compiled_chain() -> None:
    async with Rig([Refusing]) as rig:
        chain = rig.exchange(Fake()).route.chain
        assert () == chain.on_event == chain.on_response == chain.on_complete
        assert () == chain.dispatch.before
        assert [1, 1, 2] == [depth for depth, _ in chain.on_request]


# 8 is in test_gateway.py and tests/wire/test_reload.py: what a reload leaves alone.
# 9


async def test_filters_do_not_change_while_exchanges_pass() -> None:
    async with Rig([tracer("watching", [])]) as rig:
        exchanges = [rig.exchange(Fake(BUSY, STREAM), stream=True) for _ in range(3)]
        filters = exchanges[0].route.chain.filters
        before = [dict(vars(filter)) for filter in filters]
        await asyncio.gather(*(ex.route.chain.run(ex) for ex in exchanges))
        after = [dict(vars(filter)) for filter in filters]
    assert [[*one] for one in before] == [[*one] for one in after]
    assert all(a[name] is b[name] for a, b in zip(before, after, strict=True) for name in a)


# 10 is tests/test_layers.py.
# The contract


class End(Terminal):
    name = "end"


async def test_a_misspelt_hook_is_refused_with_the_one_that_was_meant() -> None:
    class Typo(Filter):
        name = "typo"

        def on_requset(self, ex: Exchange) -> None: ...

    with pytest.raises(BadFilter, match="'on_requset'; did you mean 'on_request'"):
        Chain([Typo(None, None), End(None, None)])  # type: ignore[arg-type]


async def test_a_hook_with_other_arguments_is_refused() -> None:
    class Odd(Filter):
        name = "odd"

        def on_request(self, exchange: Exchange) -> None: ...

    with pytest.raises(BadFilter, match="exchange"):
        Chain([Odd(None, None), End(None, None)])  # type: ignore[arg-type]


async def test_pluggy_options_are_refused_since_the_order_is_the_chains() -> None:
    import pluggy

    first = pluggy.HookimplMarker("passy.exchange")(tryfirst=True)

    class Pushy(Filter):
        name = "pushy"

        @first
        def on_request(self, ex: Exchange) -> None: ...

    with pytest.raises(BadFilter, match="order"):
        Chain([Pushy(None, None), End(None, None)])  # type: ignore[arg-type]


async def test_one_filter_may_stand_in_a_chain_twice() -> None:
    journal: Journal = []
    kind = tracer("twice", journal)
    chain = Chain([kind(None, None), kind(None, None), End(None, None)])  # type: ignore[arg-type]
    assert [1, 2] == [depth for depth, _ in chain.on_complete][::-1]


async def test_what_a_plain_hook_returns_beside_the_point_is_overlooked() -> None:
    class Chatty(Filter):
        name = "chatty"

        def on_response(self, ex: Exchange, head: Head) -> Any:
            return head

        def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> Any:
            return attempt

        def on_complete(self, ex: Exchange) -> Any:
            return True

    ex = await run([Chatty], Fake(PLAIN))
    assert Outcome("ok") == ex.outcome


async def test_a_heartbeat_knows_that_a_message_has_begun_before_the_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Beat:
        last = b"\n\n"

        def write(self, data: bytes) -> bool:
            self.last = data
            return True

        def stop(self) -> None: ...

    beat = Beat()
    seen: list[bytes] = []

    class Watching(Fake):
        async def open(self, request: UpstreamRequest) -> Leg:
            leg = await super().open(request)
            read = leg.read

            async def watched() -> bytes:
                seen.append(beat.last[-2:])
                return await read()

            monkeypatch.setattr(leg, "read", watched)
            return leg

    monkeypatch.setattr(Heartbeat, "of", lambda *_: beat)
    # Too long to be held back until it has ended, so no comment may follow what came of it.
    first, second, *rest = chat_events(["x" * 70_000, "two "])
    pieces = [first + second[:69_000], second[69_000:], *rest]
    await run([], Watching((200, pieces, False)), stream=True)
    assert [b"\n\n", b"xx"] == seen[:2]


# Faults behind the commit


async def test_a_fault_in_mid_stream_ends_it_with_an_error_event() -> None:
    def fault(ex: Exchange, event: Event) -> None:
        if b"two" in event.data:
            raise LookupError("a filter broke")

    ex = await run([tracer("faulty", [], on_event=fault)], Fake(STREAM), stream=True)
    assert "internal_error" == ex.outcome.kind
    sent = recorded(ex).answer
    assert b"one " in sent
    last = json.loads(sent.rstrip().rpartition(b"\n\n")[2].removeprefix(b"data: "))
    assert "internal_error" == last["error"]["code"]
    assert "faulty" not in last["error"]["message"]
    assert ex.id in last["error"]["message"]


async def test_a_refusal_that_was_html_is_passed_on_as_json_and_says_so() -> None:
    class Html(Fake):
        async def open(self, request: UpstreamRequest) -> Leg:
            leg = await super().open(request)
            leg.headers = [(b"content-type", b"text/html"), (b"content-encoding", b"br")]
            return leg

    ex = await run([], Html((404, [b"<html>no</html>"], False)))
    assert [b"application/json"] == [v for n, v in recorded(ex).headers if n == b"content-type"]
    assert None is recorded(ex).header(b"content-encoding")
    assert isinstance(recorded(ex).json["error"]["message"], str)


async def test_a_redirect_is_no_answer_of_an_operation() -> None:
    ex = await run([], Fake(*[(307, [b"elsewhere"], False)] * 2))
    assert 502 == ex.status
    assert "307" in recorded(ex).json["error"]["message"]


# Hang-ups and cancellations

FAILING_OVER = (BUSY, STREAM)


class Shut(Terminal):
    """Swallows the cancellation that a hang-up is."""

    name = "shut"

    async def route(self, ex: Exchange, dispatch: Dispatch) -> Reply:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return Reply(200, "too_late", body=b"")


def check_whole(journal: Journal, fake: Fake, names: str) -> None:
    """Nothing is open; every entered filter was told of each end once, last one first."""
    assert set() == fake.open_legs
    entered = [name for name, hook in journal if hook == "on_request"]
    assert entered[::-1] == [name for name, hook in journal if hook == "on_complete"]
    begun = [name for name, hook in journal if hook == "on_attempt"].count(names[0])
    ended = [name for name, hook in journal if hook == "on_attempt_end"]
    assert {name: begun for name in names if begun} == {n: ended.count(n) for n in set(ended)}


async def steps(work: asyncio.Task[None], number: int) -> bool:
    """Let ``work`` take that many steps; false if it ended before."""
    for _ in range(number):
        if work.done():
            return False
        await asyncio.sleep(0)
    return not work.done()


of_each_way = pytest.mark.parametrize(
    ("answers", "stream", "timed"),
    [
        (FAILING_OVER, True, False),
        (FAILING_OVER, True, True),
        ((PLAIN,), False, False),
        ((BUSY, BUSY), False, False),
    ],
)


@of_each_way
async def test_a_hang_up_at_any_await_leaves_nothing_open(
    answers: Any, stream: bool, timed: bool
) -> None:
    journal: Journal = []
    gone = 0
    async with Rig([tracer("a", journal), tracer("b", journal)], timed=timed) as rig:
        for number in range(1000):
            journal.clear()
            fake, client = Fake(*answers), Slow()
            ex = rig.exchange(fake, client, stream=stream)
            task = asyncio.get_running_loop().create_task(ex.route.chain.run(ex))
            reached = await steps(task, number)
            client.leave()
            await task
            check_whole(journal, fake, "ab")
            assert 0 == task.cancelling()
            if not reached:
                break
            # Once its answer is complete, a client that leaves has missed nothing.
            if not client.finished:
                gone += 1
                assert "client_gone" == ex.outcome.kind
            else:
                assert "client_gone" != ex.outcome.kind
    assert number > gone > 8


@of_each_way
async def test_a_cancellation_at_any_await_leaves_nothing_open(
    answers: Any, stream: bool, timed: bool
) -> None:
    journal: Journal = []
    async with Rig([tracer("a", journal), tracer("b", journal)], timed=timed) as rig:
        for number in range(1, 1000):
            journal.clear()
            fake, client = Fake(*answers), Slow()
            ex = rig.exchange(fake, client, stream=stream)
            task = asyncio.get_running_loop().create_task(ex.route.chain.run(ex))
            reached = await steps(task, number)
            task.cancel()
            if not reached:
                await task
                break
            with pytest.raises(asyncio.CancelledError):
                await task
            check_whole(journal, fake, "ab")
            assert "pending" != ex.outcome.kind
    assert number > 12


async def test_a_client_that_left_before_the_start_costs_nothing() -> None:
    journal: Journal = []
    async with Rig([tracer("a", journal)]) as rig:
        fake = Fake(PLAIN)
        ex = rig.exchange(fake)
        recorded(ex).leave()
        await ex.route.chain.run(ex)
        await asyncio.sleep(0)  # where a left-over cancellation would arrive
    assert "client_gone" == ex.outcome.kind
    assert [] == journal == fake.requests


async def test_a_filter_that_swallows_the_hang_up_does_not_hide_it() -> None:
    async with Bench(
        "{chains: {default: [shut]}, routes: [{match: POST /v1/chat/completions}]}", filters=[Shut]
    ) as bench:
        ex = bench.exchange()
        task = asyncio.get_running_loop().create_task(ex.route.chain.run(ex))
        await steps(task, 3)
        recorded(ex).leave()
        await task
        assert "client_gone" == ex.outcome.kind
        assert 0 == task.cancelling()


async def test_a_stream_that_is_cut_short_by_the_client_has_its_tokens_estimated() -> None:
    async with Rig([]) as rig:
        fake, client = Fake(STREAM), Slow()
        ex = rig.exchange(fake, client, stream=True)
        task = asyncio.get_running_loop().create_task(ex.route.chain.run(ex))
        while b"two" not in client.answer:  # noqa: ASYNC110
            await asyncio.sleep(0)
        client.leave()
        await task
    assert ex.usage is not None
    assert ex.usage.estimated
    assert 0 < ex.usage.output < 9


async def test_a_refused_attempt_moves_on_and_contacts_nobody() -> None:
    refusals = [Failure("refused", "not this one"), None]
    filters = [tracer("choosy", [], on_attempt=lambda ex, attempt: refusals.pop(0))]
    fake = Fake(PLAIN)
    ex = await run(filters, fake)
    assert "ok" == ex.outcome.kind
    assert ["refused", None] == [a.failure and a.failure.kind for a in ex.attempts]
    assert 1 == len(fake.requests)
