"""One try at one target: what it rests on, and that it is told of once."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from passy_proxy import Attempt, Exchange, Failure, Filter, Target, TransportError, Upstream, json
from passy_proxy.answer import problem_head, relayed_head
from passy_proxy.attempt import WHOLE, has_event, is_sse
from passy_proxy.body import read_head
from passy_proxy.dialect import Untranslatable
from passy_proxy.records import Credential
from passy_proxy.testing import Bench, chat_events, completion
from passy_proxy.transport import Sink, relayed

pytestmark = pytest.mark.anyio
PLAIN = json.dumps(completion("one two"))


class Leg:
    """Pieces, then an error if there is one; ``complete`` once nothing is left."""

    def __init__(
        self, status: int, kind: bytes, pieces: Sequence[bytes], error: TransportError | None
    ) -> None:
        self.status = status
        self.headers = [(b"content-type", kind)]
        self.closed = 0
        self._pieces = list(pieces)
        self._error = error

    @property
    def complete(self) -> bool:
        return not self._pieces and self._error is None

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self._pieces:
            return self._pieces.pop(0)
        if self._error is not None:
            raise self._error
        return b""

    async def relay(self, sink: Sink) -> bool:
        return await relayed(self, sink)

    async def read_all(self, limit: int) -> bytes:
        if self._error is not None:
            raise self._error
        return b"".join(self._pieces)

    def close(self) -> None:
        self.closed += 1


class Transport:
    def __init__(self, leg: Leg | TransportError) -> None:
        self._leg = leg

    async def open(self, request: object) -> Leg:
        await asyncio.sleep(0)
        if isinstance(self._leg, TransportError):
            raise self._leg
        return self._leg


class Watching(Filter):
    name = "watching"
    told: Sequence[str] = ()

    async def start(self) -> None:
        self.seen: list[str] = []

    async def on_attempt(self, ex: Exchange, attempt: Attempt) -> Failure | None:
        self.seen.append("begin")
        return None

    async def on_attempt_end(self, ex: Exchange, attempt: Attempt) -> None:
        self.seen.append("end")
        await asyncio.sleep(0)
        self.seen.append("ended")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    text = """
    chains: {default: [watching, static]}
    routes: [{match: POST /v1/chat/completions}]
    """
    async with Bench(text, filters=[Watching]) as bench:
        yield bench


def target(bench: Bench, leg: Leg | TransportError) -> Target:
    dialect = bench.parts.registry.dialects["openai"]
    transport: Any = Transport(leg)
    return Target.at(Upstream("fake", transport, dialect), "there")


async def exchange(bench: Bench, stream: bool) -> Exchange:
    """One whose filters have all been entered."""
    ex = bench.exchange({"model": "m", "messages": [], "stream": stream})
    ex.depth = 2
    ex.request.body = await ex.downstream.body(1 << 20)
    ex.request.head = read_head(ex.request.body)
    return ex


async def attempted(
    bench: Bench, leg: Leg | TransportError, *, stream: bool = False, first_event: bool = True
) -> Attempt:
    """An attempt, as far as a commitment can rest on it."""
    ex = await exchange(bench, stream)
    attempt = await ex.route.chain.dispatch(ex, target(bench, leg))
    await attempt.ready(first_event)
    return attempt


def plain(*pieces: bytes, status: int = 200, error: TransportError | None = None) -> Leg:
    return Leg(status, b"application/json", pieces, error)


def streamed(*pieces: bytes, error: TransportError | None = None) -> Leg:
    return Leg(200, b"text/event-stream; charset=utf-8", pieces, error)


CUT = TransportError("broken", "the connection was cut", sent=True)


async def test_a_plain_answer_is_read_whole_and_gives_its_connection_back(bench: Bench) -> None:
    leg = plain(PLAIN[:20], PLAIN[20:])
    attempt = await attempted(bench, leg)
    assert (None, True, PLAIN) == (attempt.failure, attempt.whole, attempt.answer)
    assert attempt.tap is not None
    assert attempt.tap.usage is not None
    assert (9, 2) == attempt.tap.usage[:2]
    assert 1 == leg.closed


async def test_a_large_answer_is_not_held_in_memory(bench: Bench) -> None:
    leg = plain(*[b"x" * (WHOLE // 2)] * 4)
    attempt = await attempted(bench, leg)
    assert (None, False, WHOLE) == (attempt.failure, attempt.whole, len(attempt.answer))
    assert 0 == leg.closed


async def test_an_answer_of_just_the_size_that_is_held_is_whole(bench: Bench) -> None:
    attempt = await attempted(bench, plain(b" " * (WHOLE - len(PLAIN)) + PLAIN))
    assert attempt.whole


@pytest.mark.parametrize("pieces", [(), (PLAIN[:20],)])
async def test_a_plain_answer_that_breaks_off_is_none(bench: Bench, pieces: tuple[bytes]) -> None:
    attempt = await attempted(bench, plain(*pieces, error=CUT))
    assert Failure("broken", "the connection was cut", sent=True) == attempt.failure


async def test_a_stream_is_settled_on_at_its_first_event(bench: Bench) -> None:
    first, *rest = chat_events(["one"])
    attempt = await attempted(bench, streamed(first[:9], first[9:], *rest), stream=True)
    assert (None, True, first) == (attempt.failure, attempt.streamed, attempt.answer)


async def test_a_stream_can_be_settled_on_at_its_head(bench: Bench) -> None:
    attempt = await attempted(bench, streamed(error=CUT), stream=True, first_event=False)
    assert (None, b"") == (attempt.failure, attempt.answer)


@pytest.mark.parametrize(
    ("leg", "kind"),
    [
        (streamed(error=CUT), "broken"),
        (streamed(b'data: {"error":{"message":"overloaded"}}\n\n'), "stream"),
        (plain(b"{}", status=503), "status"),
        (plain(b"{}", status=302), "status"),
        (TransportError("connect", "refused"), "connect"),
        (TransportError("timeout", "silence", phase="first byte", sent=True), "timeout"),
    ],
)
async def test_what_is_no_answer_has_a_kind_of_failure(bench: Bench, leg: Any, kind: str) -> None:
    attempt = await attempted(bench, leg, stream=True)
    assert attempt.failure is not None
    assert kind == attempt.failure.kind
    assert attempt.head_at >= attempt.started


async def test_a_refusals_body_that_cannot_be_read_is_an_empty_one(bench: Bench) -> None:
    attempt = await attempted(bench, plain(b"half", status=500, error=CUT))
    assert "500" in json.loads(await attempt.problem())["error"]["message"]


async def test_an_attempt_is_ended_once_and_by_the_next_one_at_the_latest(bench: Bench) -> None:
    leg = plain(b"{}", status=503)
    ex = await exchange(bench, stream=False)
    dispatch = ex.route.chain.dispatch
    attempt = await dispatch(ex, target(bench, leg))
    [watching, _] = ex.route.chain.filters
    assert isinstance(watching, Watching)
    await dispatch(ex, target(bench, plain(PLAIN)))
    assert ["begin", "end", "ended", "begin"] == watching.seen
    assert leg.closed
    assert dispatch.end(ex, attempt) is None
    assert 4 == len(watching.seen)


async def test_a_parameter_that_cannot_be_said_is_a_failure_whoever_asks_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untranslatable(*_: object) -> None:
        raise Untranslatable("audio cannot be said", "messages[0]")

    dialect = bench.parts.registry.dialects["openai"]
    monkeypatch.setattr(dialect, "request", untranslatable)
    expected = Failure("untranslatable", "audio cannot be said", param="messages[0]")
    assert expected == (await attempted(bench, plain(PLAIN))).failure

    async def reading(self: Filter, ex: Exchange, attempt: Attempt) -> None:
        assert attempt.request

    async with Bench(
        "{chains: {default: [watching, static]}, routes: [{match: POST /v1/chat/completions}]}",
        filters=[type("Reading", (Watching,), {"on_attempt": reading})],
    ) as reader:
        monkeypatch.setattr(reader.parts.registry.dialects["openai"], "request", untranslatable)
        assert expected == (await attempted(reader, plain(PLAIN))).failure


async def test_a_stranger_sees_no_secret_in_an_attempt(bench: Bench) -> None:
    attempt = await attempted(bench, plain(PLAIN))
    assert "Attempt(fake/there, 200)" == repr(attempt)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"application/json", False),
        (b"text/plain", False),
    ],
)
def test_a_stream_is_known_by_its_type(kind: bytes, expected: bool) -> None:
    assert expected is is_sse({b"x": b"y", b"content-type": kind})
    assert not is_sse({})


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", PLAIN[:-9], b'{"error":{"message":"no"}}', b"null"],
)
async def test_what_says_nothing_is_no_answer_though_its_status_is_200(
    bench: Bench, body: bytes
) -> None:
    attempt = await attempted(bench, plain(body))
    assert attempt.failure is not None
    assert ("stream", False, b"") == (attempt.failure.kind, attempt.whole, attempt.answer)


@pytest.mark.parametrize("body", [b'{"unheard":1}', b'{"choices":[],"error":{"code":1}}'])
async def test_an_answer_of_an_unheard_shape_is_one(bench: Bench, body: bytes) -> None:
    attempt = await attempted(bench, plain(body))
    assert (None, body) == (attempt.failure, attempt.answer)


@pytest.mark.parametrize("operation", ["", "audio"])
async def test_what_is_only_passed_through_may_be_anything(bench: Bench, operation: str) -> None:
    ex = await exchange(bench, stream=False)
    ex.request.operation = operation
    attempt = await ex.route.chain.dispatch(ex, target(bench, plain(b"<html>")))
    assert await attempt.ready(first_event=True)
    assert b"<html>" == attempt.answer


def compressed(encoding: bytes, body: bytes, status: int = 200) -> Leg:
    leg = plain(body, status=status)
    leg.headers += [(b"content-encoding", encoding), (b"etag", b"1")]
    return leg


RAW_DEFLATE = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", gzip.compress(PLAIN)),
        (b"deflate", zlib.compress(PLAIN)),
        (b"deflate", RAW_DEFLATE.compress(PLAIN) + RAW_DEFLATE.flush()),
    ],
)
async def test_an_answer_compressed_unasked_is_unpacked(
    bench: Bench, encoding: bytes, body: bytes
) -> None:
    leg = compressed(encoding, body)
    attempt = await attempted(bench, leg)
    assert (None, PLAIN) == (attempt.failure, attempt.answer)
    assert attempt.tap is not None
    assert attempt.tap.usage is not None
    assert [(b"content-type", b"application/json")] == leg.headers


async def test_a_bomb_is_not_unpacked(bench: Bench) -> None:
    attempt = await attempted(bench, compressed(b"gzip", gzip.compress(b" " * 10_000_000)))
    assert attempt.failure is not None
    assert "stream" == attempt.failure.kind


async def test_a_compression_unknown_here_is_left_to_the_client(bench: Bench) -> None:
    leg = compressed(b"br", b"\x0b\x02\x80{}\x03")
    attempt = await attempted(bench, leg)
    assert (None, b"\x0b\x02\x80{}\x03") == (attempt.failure, attempt.answer)
    assert (b"content-encoding", b"br") in leg.headers
    assert attempt.tap is not None
    assert attempt.tap.text_bytes


async def test_a_compressed_refusal_is_told_without_its_words(bench: Bench) -> None:
    body = gzip.compress(b'{"error":{"message":"no","type":"t"}}')
    attempt = await attempted(bench, compressed(b"gzip", body, 400))
    said = json.loads(await attempt.problem())["error"]["message"]
    assert "The upstream answered 400." == said


async def test_a_key_that_the_upstream_repeats_never_reaches_the_client(bench: Bench) -> None:
    key = "sk-of-the-operator"
    said = json.dumps({"error": {"message": f"Bearer {key} is wrong", "type": "t"}})
    for body, status in ((said, 401), (PLAIN, 200), (said, 200)):
        leg = plain(body, status=status)
        leg.headers.append((b"x-debug", f"Bearer {key}".encode()))
        ex = await exchange(bench, stream=False)
        towards = target(bench, leg)
        towards = Target.at(replace(towards.upstream, credential=Credential(key)), "there")
        attempt = await ex.route.chain.dispatch(ex, towards)
        await attempt.ready(first_event=True)
        assert key not in str(attempt.failure)
        if status == 401:
            assert b"Bearer [redacted] is wrong" in await attempt.problem()
        head = problem_head(ex, attempt) if attempt.failure else relayed_head(ex, attempt)
        assert b"Bearer [redacted]" == dict(head.headers)[b"x-debug"]


async def test_a_head_without_a_body_keeps_its_length(bench: Bench) -> None:
    ex = await exchange(bench, stream=False)
    ex.request.operation, ex.request.method = "", "HEAD"
    leg = plain()
    leg.headers.append((b"content-length", b"1234"))
    attempt = await ex.route.chain.dispatch(ex, target(bench, leg))
    assert await attempt.ready(first_event=True)
    assert not attempt.whole
    assert b"1234" == dict(relayed_head(ex, attempt).headers)[b"content-length"]


async def test_events_under_another_type_are_a_stream_where_one_was_asked_for(
    bench: Bench,
) -> None:
    events = chat_events(["one"])
    attempt = await attempted(bench, plain(*events), stream=True)
    assert (None, True, events[0]) == (attempt.failure, attempt.streamed, attempt.answer)
    assert attempt.leg is not None
    assert is_sse(dict(attempt.leg.headers))


def test_looking_for_the_first_event_takes_linear_time() -> None:
    began = time.process_time()
    assert not has_event(b"data: x\n" * 8192)
    assert has_event(b": a\n\n" + b"data: x\r\n" * 8192 + b"\r\n")
    assert time.process_time() - began < 1.0
