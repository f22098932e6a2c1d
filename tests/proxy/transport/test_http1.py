"""The default client: what it does beyond the contract of all transports."""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop
from harness.busy import be_busy
from harness.steady import be_steady

from passy_proxy.timers import NEVER, sweep_of
from passy_proxy.transport import Limits, Timeouts, TransportError, UpstreamRequest
from passy_proxy.transport import answer as answer_module
from passy_proxy.transport.answer import Leg, WholeLeg, kept
from passy_proxy.transport.connect import Connector, parse_origin
from passy_proxy.transport.connection import Connection
from passy_proxy.transport.head import HeadWriter
from passy_proxy.transport.http1 import Http1Transport
from passy_proxy.transport.pool import Pool

pytestmark = pytest.mark.anyio

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain \t\r\nContent-Length: 2\r\n\r\nok"
POST = UpstreamRequest("POST", b"/v1/x", [(b"a", b"b")], b"{}")


@asynccontextmanager
async def upstream(script: Script, **limits: float) -> AsyncIterator[Http1Transport]:
    be_steady()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(EOFError, ConnectionError, asyncio.CancelledError):
            await script(reader, writer)
        tasks.discard(task)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    origin = parse_origin(f"http://127.0.0.1:{port}")
    transport = Http1Transport(origin, Connector(), Limits(**limits))  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.aclose()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def dropped(transport: Http1Transport) -> None:
    async with asyncio.timeout(60):
        while transport.stats()["open"]:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def asked(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"content-length: 2\r\n" in head:
        await reader.readexactly(2)
    return head


def answering(*answers: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for data in answers:
            await asked(reader)
            writer.write(data)
            await writer.drain()
        await reader.read()

    return script


async def always_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await asked(reader)
        writer.write(OK)


class Steps:
    """Awaits a coroutine and counts how often it gives control to the loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.count = 0
        self.future: Any = None

    def begin(self) -> None:
        """Up to where it first waits."""
        self.future = self.coroutine.send(None)
        self.future._asyncio_future_blocking = False

    def __await__(self) -> Generator[Any, Any, Any]:
        value = None
        if self.future is not None:
            value = yield from self.future
        while True:
            try:
                future = self.coroutine.send(value)
            except StopIteration as end:
                return end.value
            self.count += 1
            value = yield future


# The hot path.


async def test_a_request_on_an_idle_connection_suspends_once() -> None:
    async with upstream(always_ok) as transport:
        (await transport.open(POST)).close()
        steps = Steps(transport.open(POST))
        leg = await steps
        assert leg.complete
        reading = Steps(leg.read())
        assert await reading == b"ok"
        end = Steps(leg.read_all(10))
        assert await end == b""
        assert (steps.count, reading.count, end.count) == (1, 0, 0)


async def test_a_relay_suspends_once_for_any_number_of_pieces() -> None:
    got: list[bytes] = []
    taken = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            taken.clear()
            writer.write(b"2\r\nab\r\n")
            await taken.wait()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    def sink(data: bytes) -> bool:
        got.append(data)
        taken.set()
        return True

    async with upstream(script) as transport:
        relaying = Steps((await transport.open(POST)).relay(sink))
        assert await relaying
        assert got == [b"ab"] * 20
        assert relaying.count == 1


async def test_a_request_starts_neither_timer_nor_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async with upstream(always_ok) as transport:
        (await transport.open(POST)).close()
        loop = asyncio.get_running_loop()
        ours = asyncio.current_task()

        def refuse(*_: object, **__: object) -> None:
            if asyncio.current_task() is ours:
                raise AssertionError("a timer or task was started")

        for name in ("call_later", "call_at", "create_task"):
            monkeypatch.setattr(loop, name, refuse)
        leg = await transport.open(POST)
        assert await leg.read_all(10) == b"ok"
        leg.close()
        monkeypatch.undo()


async def test_a_finished_leg_keeps_its_bytes_while_its_connection_serves_another() -> None:
    async with upstream(always_ok) as transport:
        first = await transport.open(POST)
        second = await transport.open(POST)
        assert transport.stats()["opened"] == 1
        first.close()
        assert await second.read_all(10) == b"ok"
        assert transport.stats()["idle"] == 1


async def test_only_live_connections_are_watched() -> None:
    async with upstream(always_ok) as transport:
        sweep = sweep_of(asyncio.get_running_loop())
        before = len(sweep)
        (await transport.open(POST)).close()
        assert len(sweep) == before + 1
        await transport.aclose()
        assert len(sweep) == before


# Bytes, however they are cut.

SPLIT = [
    OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1;x=y\r\no\r\n1\r\nk\r\n0\r\nT: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" + OK,
]


class Socket(asyncio.Transport):
    """A transport that keeps nothing and goes nowhere."""

    aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


async def parsed(*pieces: bytes, method: str = "POST") -> tuple[Leg | WholeLeg, Connection]:
    """What comes of an answer that arrives in these pieces. Raises TransportError."""
    connection = Connection(Pool(1), 4.0)
    connection.connection_made(Socket())
    waiter = connection.send(UpstreamRequest(method, b"/", []), b"", NEVER)
    for piece in pieces:
        if not connection.gone:
            connection.data_received(piece)
    assert waiter.done()
    leg = waiter.result()
    if leg is None:
        raise connection.error
    return leg, connection


@pytest.mark.parametrize("data", SPLIT)
async def test_an_answer_reads_the_same_at_every_split(data: bytes) -> None:
    cuts = [[data[:cut], data[cut:]] for cut in range(1, len(data))]
    for pieces in [[data], [data[at : at + 1] for at in range(len(data))], *cuts]:
        leg, connection = await parsed(*pieces)
        assert leg.complete
        assert leg.status == 200
        assert await leg.read_all(10) == b"ok"
        assert not connection.gone
        assert b"link" not in dict(leg.headers)
        assert b"t" not in dict(leg.headers)


PROVIDER = (
    b"Date: Tue, 07 Oct 2025 10:11:12 GMT\r\nContent-Type: application/json\r\n"
    b"Connection: keep-alive\r\nopenai-processing-ms: 412\r\nopenai-version: 2020-10-01\r\n"
    b"x-ratelimit-remaining-tokens: 199712\r\nx-request-id: req_0123\r\n"
    b"set-cookie: __cf_bm=a; path=/\r\nset-cookie: _cfuvid=b; path=/\r\n"
    b'alt-svc: h3=":443"; ma=86400\r\n'
)


@pytest.mark.parametrize(
    ("method", "data", "body", "kept_alive"),
    [
        ("POST", b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\nok" % PROVIDER, b"ok", True),
        ("POST", b"HTTP/1.1 200\r\nContent-Length:2\r\n\r\nok", b"ok", True),
        ("POST", b"HTTP/1.1 200 OK\r\ncontent-length: \t02 \r\n\r\nok", b"ok", True),
        ("POST", b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
        ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", True),
        ("POST", b"HTTP/1.1 204 No\r\n\r\n", b"", True),
        ("GET", b"HTTP/1.1 304 Not\r\nContent-Length: 7\r\n\r\n", b"", True),
        ("GET", b"HTTP/1.1 304 Not\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"", True),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b"", True),
        ("POST", b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 E\r\nA: b\r\n\r\n" + OK, b"ok", True),
        ("POST", OK + b"EVIL", b"ok", False),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", b"", False),
        ("GET", b"HTTP/1.1 304 Not\r\nContent-Length: 4\r\n\r\nEVIL", b"", False),
        ("POST", OK.replace(b"1.1", b"1.0"), b"ok", False),
        ("POST", OK.replace(b"1.1", b"1.0").replace(b"\nC", b"\nConnection: Keep-Alive\r\nC", 1),
         b"ok", True),
        ("POST", OK.replace(b"\nC", b"\nConnection: close\r\nC", 1), b"ok", False),
        ("POST", OK.replace(b"\nC", b"\nConnection: x, CLOSE\r\nConnection: y\r\nC", 1),
         b"ok", False),
        ("POST", OK.replace(b"\nC", b"\nProxy-Connection: close\r\nC", 1), b"ok", False),
        ("POST", OK.replace(b"\nC", b"\nKeep-Alive: timeout=0\r\nC", 1), b"ok", False),
        ("POST", OK.replace(b"\nC", b"\nKeep-Alive: timeout=9\r\nC", 1), b"ok", True),
        ("POST", b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % PROVIDER
         + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", b"ok", True),
        ("POST", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + OK,
         b"ok", False),
    ],
)  # fmt: skip
async def test_an_answer_means_the_same_however_it_is_cut(
    method: str, data: bytes, body: bytes, kept_alive: bool
) -> None:
    whole, _ = await parsed(data, method=method)
    cuts = [[data[:cut], data[cut:]] for cut in range(1, len(data))]
    for pieces in [[data], [data[at : at + 1] for at in range(len(data))], *cuts]:
        leg, connection = await parsed(*pieces, method=method)
        assert leg.complete
        assert leg.headers == whole.headers
        assert await leg.read_all(10) == body
        assert connection.gone is not kept_alive


async def test_names_are_lowered_and_values_trimmed() -> None:
    leg, _ = await parsed(OK)
    assert leg.headers == [(b"content-type", b"text/plain"), (b"content-length", b"2")]


async def test_repeated_headers_stay_apart() -> None:
    leg, _ = await parsed(OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"))
    assert leg.headers[-2:] == [(b"set-cookie", b"a"), (b"set-cookie", b"b")]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"\r\n\0HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2_0\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n folded\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\rContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\x7f\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX\xff: a\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/3.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Go\r\nContent-Length: 2\r\n\r\nok" + OK,
        b"HTTP/1.1 100 Go\r\nConnection: close\r\n\r\n" + OK,
    ],
)
async def test_a_doubtful_head_is_refused(head: bytes) -> None:
    for pieces in [[head], [head[at : at + 1] for at in range(len(head))]]:
        with pytest.raises(TransportError) as raised:
            await parsed(*pieces)
        assert raised.value.kind == "protocol"


@pytest.mark.parametrize(
    ("count", "size", "fits"),
    [(199, 8, True), (200, 8, False), (1, 65_400, True), (1, 65_600, False)],
)
async def test_heads_are_bounded(count: int, size: int, fits: bool) -> None:
    lines = b"".join(b"x-%d: %b\r\n" % (number, b"v" * size) for number in range(count))
    data = b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: 2\r\n\r\nok"
    async with upstream(answering(data)) as transport:
        if fits:
            leg = await transport.open(POST)
            assert await leg.read_all(2) == b"ok"
            return
        with pytest.raises(TransportError) as raised:
            await transport.open(POST)
        assert raised.value.kind == "protocol"


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 40_000,
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 1_000_000,
        b"HTTP/1.1 " + b"2" * 1_000_000,
        b"HTTP/1.1 200 " + b"O" * 1_000_000,
    ],
)
async def test_an_endless_head_is_cut(flood: bytes) -> None:
    async with upstream(answering(flood)) as transport:
        with pytest.raises(TransportError) as raised:
            await transport.open(POST)
        assert raised.value.kind == "protocol"
        assert transport.stats()["open"] == 0


@pytest.mark.parametrize("flood", [b"2;" + b"x" * 1_000_000, b"0\r\n" + b"t: v\r\n" * 200_000])
async def test_endless_framing_is_cut(flood: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with upstream(answering(head + flood)) as transport:
        leg = await transport.open(POST)
        with pytest.raises(TransportError) as raised:
            await leg.read_all(100)
        assert raised.value.kind == "protocol"


async def test_many_tiny_chunks_pass() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with upstream(answering(head + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n")) as transport:
        leg = await transport.open(POST)
        assert len(await leg.read_all(200_000)) == 200_000


async def test_a_line_without_an_end_costs_no_time() -> None:
    line = b"x" * 60_000
    for data in (line, line + b":" + b" " * 4000, b":" * 60_000, b"a:b" * 20_000):
        began = time.thread_time()
        with suppress(TransportError):
            await parsed(b"HTTP/1.1 200 OK\r\n" + data + b"\r\nContent-Length: 0\r\n\r\n")
        assert time.thread_time() - began < 0.5


@pytest.mark.parametrize("data", SPLIT)
async def test_an_idle_connection_holds_nothing_of_its_answer(data: bytes) -> None:
    for pieces in ([data], [data[:-1], data[-1:]]):
        leg, connection = await parsed(*pieces)
        assert await leg.read_all(10) == b"ok"
        gc.collect()
        assert not any(leg.headers is held for held in gc.get_referents(connection._answer))
        assert b"ok" not in gc.get_referents(connection._answer)
        assert connection._request.method == ""


async def test_of_answers_no_more_than_some_names_are_remembered() -> None:
    for number in range(2000):
        head = b"HTTP/1.1 200 OK\r\nx-%d: s3cret\r\nContent-Length: 0\r\n\r\n"
        leg, _ = await parsed(head % number)
        assert leg.headers[0] == (b"x-%d" % number, b"s3cret")
    assert len(answer_module._names) <= 512
    assert b"s3cret" not in answer_module._names


# What is read before an error is not lost.


async def test_bytes_that_arrived_are_read_before_the_error() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async with upstream(script) as transport:
        leg = await transport.open(POST)
        await dropped(transport)
        assert await leg.read() == b"half"
        for _ in range(2):
            with pytest.raises(TransportError):
                await leg.read()


async def test_a_closed_leg_reads_nothing_more() -> None:
    async with upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")) as transport:
        leg = await transport.open(POST)
        leg.close()
        with pytest.raises(TransportError):
            await leg.read()
        assert transport.stats()["open"] == 0


async def test_closing_wakes_a_reader() -> None:
    async with upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")) as transport:
        leg = await transport.open(POST)
        reader = asyncio.ensure_future(leg.read())
        await asyncio.sleep(0)
        leg.close()
        with pytest.raises(TransportError):
            await reader


# Idle connections.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"timeout=5", 4.0),
        (b"timeout=5, max=100", 4.0),
        (b"max=100, TIMEOUT=75", 74.0),
        (b"timeout=1", 0.5),
        (b"timeout=0", 0.0),
        (b"timeout=86400", 300.0),
        (b"timeout=-1", 9.0),
        (b"timeout=x", 9.0),
        (b"timeout=" + b"9" * 400, 9.0),
        (b"", 9.0),
    ],
)
def test_an_idle_connection_is_kept_for_less_than_the_hint(value: bytes, expected: float) -> None:
    assert kept(value, 9.0) == expected


async def test_the_hint_of_the_upstream_is_obeyed() -> None:
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=1\r\n\r\n"))
        await reader.read()
        closed.set()

    async with upstream(script, keepalive=60) as transport:
        started = asyncio.get_running_loop().time()
        (await transport.open(POST)).close()
        async with asyncio.timeout(60):
            await closed.wait()
        assert 0.3 <= asyncio.get_running_loop().time() - started <= 15


async def test_a_zero_hint_forbids_reuse() -> None:
    data = OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=0\r\n\r\n")
    async with upstream(answering(data)) as transport:
        (await transport.open(POST)).close()
        assert transport.stats()["open"] == 0


async def test_the_connection_used_last_is_taken_first() -> None:
    served: list[int] = []
    numbers = iter(range(10))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        while True:
            await asked(reader)
            served.append(number)
            writer.write(OK)

    async with upstream(script) as transport:
        await asyncio.gather(*(transport.open(POST) for _ in range(3)))
        assert transport.stats()["idle"] == 3
        last = served[-1]
        served.clear()
        for _ in range(5):
            await transport.open(POST)
        assert served == [last] * 5


async def test_unsolicited_bytes_on_an_idle_connection_end_it() -> None:
    more = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(OK)
        await more.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
        await reader.read()

    async with upstream(script) as transport:
        await transport.open(POST)
        assert transport.stats()["idle"] == 1
        more.set()
        await dropped(transport)


# Retries.


async def test_a_new_connection_may_evict_an_idle_one_for_a_repeated_request() -> None:
    numbers = iter(range(10))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(numbers)
        served = 0
        while True:
            await asked(reader)
            served += 1
            if number < 2 and served == 2:
                return
            writer.write(OK)

    request = UpstreamRequest("POST", b"/", [], b"{}", replay_safe=True)
    async with upstream(script, max_connections=2) as transport:
        await asyncio.gather(transport.open(request), transport.open(request))
        leg = await transport.open(request)
        assert await leg.read_all(10) == b"ok"
        assert transport.stats()["opened"] == 3


async def test_what_the_replacement_cannot_connect_to_may_have_been_sent() -> None:
    server: asyncio.Server

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(OK)
        await asked(reader)
        server.close()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = Http1Transport(parse_origin(f"http://127.0.0.1:{port}"), Connector())
    request = UpstreamRequest("POST", b"/", [], b"{}", replay_safe=True)
    await transport.open(request)
    with pytest.raises(TransportError) as raised:
        await transport.open(request)
    assert raised.value.kind in ("connect", "broken")
    assert raised.value.sent
    await transport.aclose()


async def test_a_partial_answer_is_never_repeated() -> None:
    count = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        await asked(reader)
        writer.write(OK)
        await asked(reader)
        count += 1
        writer.write(b"H")

    request = UpstreamRequest("POST", b"/", [], b"{}", replay_safe=True)
    async with upstream(script) as transport:
        await transport.open(request)
        with pytest.raises(TransportError) as raised:
            await transport.open(request)
        assert raised.value.kind == "broken"
        assert count == 1


# What is held until the end of a turn.


def held(transport: Http1Transport, request: UpstreamRequest) -> tuple[Connection, Steps]:
    """``request`` on its way: its connection holds it."""
    *_, connection = transport._pool.idle
    be_busy()
    asking = Steps(transport.open(request))
    asking.begin()
    assert connection.held.endswith(b"{}")
    return connection, asking


async def test_a_request_may_wait_for_the_end_of_the_turn() -> None:
    async with upstream(always_ok) as transport:
        (await transport.open(POST)).close()
        connection, asking = held(transport, POST)
        await asyncio.sleep(0)
        assert connection.held == b""
        assert await (await asking).read_all(10) == b"ok"
        assert transport.stats()["opened"] == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_request_that_meets_a_reset_goes_to_another_connection(loop: str) -> None:
    """It is held while the reset comes, which the loop has not read when it lets the request go."""
    listening = socket.create_server(("127.0.0.1", 0))
    reset = threading.Event()
    request = UpstreamRequest("POST", b"/v1/x", [], b"{}")

    def serve() -> None:
        for number in range(2):
            with listening.accept()[0] as accepted:
                received = b""
                while b"{}" not in received:
                    received += accepted.recv(1000)
                accepted.sendall(OK)
                if number == 0:
                    reset.wait(60)
                    linger = struct.pack("ii", 1, 0)
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def ask() -> bytes:
        origin = parse_origin(f"http://127.0.0.1:{listening.getsockname()[1]}")
        transport = Http1Transport(origin, Connector(), Limits())
        (await transport.open(request)).close()
        connection, asking = held(transport, request)
        reset.set()
        over = select.poll()
        over.register(connection._transport.get_extra_info("socket").fileno(), select.POLLHUP)
        assert over.poll(60_000)
        answer = await (await asking).read_all(10)
        await transport.aclose()
        return answer

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        assert b"ok" == runner.run(ask())
    serving.join(60)
    listening.close()
    assert request.lost is not None
    assert not request.lost.sent


@pytest.mark.parametrize("end", ["its end", "a reset", "silence"])
async def test_a_request_that_never_went_out_was_not_sent(end: str) -> None:
    async with upstream(always_ok) as transport:
        (await transport.open(POST)).close()
        connection, asking = held(transport, UpstreamRequest("POST", b"/v1/x", [], b"{}"))
        connection.used = False  # as on a new one: it is not repeated
        if end == "silence":
            connection.expire(connection.deadline)
        elif end == "a reset":
            connection.connection_lost(ConnectionResetError())
        else:
            connection.eof_received()
        with pytest.raises(TransportError) as raised:
            await asking
        assert not raised.value.sent


async def test_what_waits_goes_out_before_anything_is_read() -> None:
    async with upstream(always_ok) as transport:
        for leg in await asyncio.gather(transport.open(POST), transport.open(POST)):
            leg.close()
        other, _ = transport._pool.idle
        connection, asking = held(transport, UpstreamRequest("POST", b"/v1/x", [], b"{}"))
        other.data_received(b"unasked")
        assert connection.held == b""
        (await asking).close()


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_request_that_did_not_go_out_is_sent_by_another_connection(
    error: Exception | None,
) -> None:
    request = UpstreamRequest("POST", b"/v1/x", [], b"{}")
    async with upstream(always_ok) as transport:
        (await transport.open(request)).close()
        connection, asking = held(transport, request)
        connection.connection_lost(error)
        assert await (await asking).read_all(10) == b"ok"
        assert request.lost is not None
        assert not request.lost.sent


async def test_a_request_that_nobody_waits_for_any_more_does_not_go_out() -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await asked(reader))
            writer.write(OK)

    async with upstream(script) as transport:
        (await transport.open(POST)).close()
        _, asking = held(transport, POST)
        with pytest.raises(asyncio.CancelledError):
            asking.coroutine.throw(asyncio.CancelledError())
        await transport.open(POST)
        assert len(seen) == 2


# Heads of requests.


def written(writer: HeadWriter, *headers: tuple[bytes, bytes], target: bytes = b"/v1/x") -> bytes:
    return writer.message(UpstreamRequest("POST", target, list(headers), b"{}"))


def test_a_head_is_written_from_a_form_that_holds_no_value() -> None:
    writer = HeadWriter(parse_origin("http://u.test/base"))
    for value in (b"1", b"100%", b"%b", b""):
        head = written(writer, (b"a%b", b"x"), (b"authorization", value), target=b"/a%20b")
        assert head == (
            b"POST /base/a%20b HTTP/1.1\r\nhost: u.test\r\na%b: x\r\nauthorization: "
            + value + b"\r\ncontent-length: 2\r\n\r\n{}"
        )  # fmt: skip
    for value in (b"a\r\nevil: 1", b"a\n", b"a\r", b"\0"):
        with pytest.raises(TransportError):
            written(writer, (b"a%b", b"x"), (b"authorization", value), target=b"/a%20b")
    assert len(writer._forms) == 1


def test_forms_are_bounded_and_no_secret_of_a_query_is_kept() -> None:
    writer = HeadWriter(parse_origin("http://u.test"))
    for number in range(1000):
        written(writer, (b"x-%d" % number, b"y"))
        written(writer, target=b"/v1/%d" % number)
    assert 0 < len(writer._forms) <= 128
    written(writer, target=b"/?API-Key=s3cret")
    assert not any(b"s3cret" in form for form in writer._forms.values())


# Uploads.


async def test_an_early_answer_wins_while_the_client_sends_nothing() -> None:
    never = asyncio.Event()
    ended = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await never.wait()
        finally:
            ended.set()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first")
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
        await reader.read()

    async with upstream(script) as transport:
        async with asyncio.timeout(60):
            leg = await transport.open(UpstreamRequest("POST", b"/", [], body()))
        assert leg.status == 401
        assert ended.is_set()
        assert await leg.read_all(10) == b"no"
        assert transport.stats()["open"] == 0


async def test_cancelling_an_upload_stops_the_iterator_and_closes_the_connection() -> None:
    never = asyncio.Event()
    ended = asyncio.Event()
    began = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            began.set()
            await never.wait()
        finally:
            ended.set()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with upstream(script) as transport:
        task = asyncio.ensure_future(transport.open(UpstreamRequest("POST", b"/", [], body())))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            await ended.wait()
        assert transport.stats()["open"] == 0


async def test_a_slow_upload_is_no_timeout_of_the_upstream() -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(8):
            await asyncio.sleep(0.1)
            yield b"x"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(OK)
        await reader.read()

    limits = Timeouts(first_byte=0.4, write=0.4, idle=0.4)
    async with upstream(script) as transport:
        leg = await transport.open(UpstreamRequest("POST", b"/", [], body(), timeouts=limits))
        assert await leg.read_all(10) == b"ok"


async def test_a_slow_reader_is_no_timeout_of_the_upstream() -> None:
    size = 2_000_000
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    async with upstream(answering(data)) as transport:
        request = UpstreamRequest("POST", b"/", [], b"{}", timeouts=Timeouts(idle=0.3))
        leg = await transport.open(request)
        received = len(await leg.read())
        await asyncio.sleep(0.8)
        received += len(await leg.read_all(size))
        assert received == size


async def test_an_answer_in_the_receive_buffer_survives_a_failed_write() -> None:
    """The upstream answers and resets while our loop is busy; then we write."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    answered = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        peer, _ = listener.accept()
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 413 Large\r\nContent-Length: 3\r\n\r\nbig")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        answered.set()
        yield b"b" * 100_000

    transport = Http1Transport(parse_origin(f"http://127.0.0.1:{port}"), Connector())
    leg = await transport.open(UpstreamRequest("POST", b"/", [], body()))
    assert answered.is_set()
    assert leg.status == 413
    assert await leg.read_all(10) == b"big"
    await transport.aclose()
    listener.close()
