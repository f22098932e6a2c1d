"""One suite for every transport: what a leg promises whatever carries it."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import random
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from passy_proxy.transport import (
    Leg,
    Limits,
    Sink,
    Timeouts,
    Transport,
    TransportError,
    UpstreamRequest,
)
from passy_proxy.transport.connect import VERIFIED, Connector, Tls, parse_origin
from passy_proxy.transport.http1 import Http1Transport
from passy_proxy.transport.httpcore import HttpcoreTransport
from passy_proxy.transport.pool import Pool

pytestmark = [pytest.mark.anyio, pytest.mark.crossed("anyio_backend", "kind")]

Script = Callable[["Wire"], Awaitable[None]]
MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED_OK = CHUNKED + b"2\r\n{}\r\n0\r\n\r\n"


@dataclass
class Wire:
    """The upstream's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    served: int = 0

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request; raises EOFError when there is none."""
        head = await self.head()
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            return head, await self.chunked()
        if b"content-length:" not in lowered:
            return head, b""
        length = int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return head, await self.reader.readexactly(length)

    async def head(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.served += 1
        return head

    async def chunked(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")
        return body

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            if self.writer.is_closing():
                raise ConnectionResetError
            self.writer.write(piece)
            await self.writer.drain()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> bool:
        """Wait until the other side closed."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        return True


@dataclass
class Upstream:
    """A scripted server on 127.0.0.1."""

    port: int = 0
    wires: list[Wire] = field(default_factory=list)
    live: int = 0

    @asynccontextmanager
    async def serve(self, script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            wire = Wire(reader, writer, len(self.wires))
            self.wires.append(wire)
            self.live += 1
            try:
                await script(wire)
            except (EOFError, ConnectionError, asyncio.CancelledError):
                pass
            finally:
                self.live -= 1
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, limit=MIB)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


Build = Callable[..., Transport]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(params=["httpcore", "http1"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def build(kind: str) -> AsyncIterator[Build]:
    made: list[Transport] = []

    def make(url: str, limits: Limits | None = None, tls: Tls = VERIFIED) -> Transport:
        maker = Http1Transport if kind == "http1" else HttpcoreTransport
        transport = maker(parse_origin(url), Connector(), limits or Limits(), tls)
        made.append(transport)
        return transport

    yield make
    for transport in made:
        await transport.aclose()


def post(body: bytes | AsyncIterator[bytes] = b"{}", **more: object) -> UpstreamRequest:
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer k")]
    request = UpstreamRequest("POST", b"/v1/chat/completions", headers, body)
    return replace(request, **more)  # type: ignore[arg-type]


async def answer(wire: Wire, data: bytes = OK) -> None:
    while True:
        await wire.request()
        await wire.send(data)


def answering(data: bytes) -> Script:
    return lambda wire: answer(wire, data)


async def settled(transport: Transport, **expected: int) -> None:
    """Wait, at most a minute, for these counts."""

    def seen() -> dict[str, int]:
        return {name: count for name, count in transport.stats().items() if name in expected}

    with suppress(TimeoutError):
        await until(lambda: expected == seen())
    assert expected == seen()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


class Clock:
    """Measures a wait, and by how much the busy machine made this loop late meanwhile."""

    elapsed = 0.0
    lag = 0.0

    async def __aenter__(self) -> Clock:
        self._began = self._slept = time.monotonic()
        self._ticking = asyncio.ensure_future(self._tick())
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.elapsed = time.monotonic() - self._began
        self._late()
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            self._slept = time.monotonic()
            await asyncio.sleep(0.01)
            self._late()

    def _late(self) -> None:
        self.lag += max(0.0, time.monotonic() - self._slept - 0.01)

    def assert_about(self, seconds: float, more: float = 0.25) -> None:
        """Within 250 ms of ``seconds``."""
        assert seconds - 0.25 <= self.elapsed <= seconds + more + self.lag


async def all_gone(upstream: Upstream) -> None:
    await until(lambda: upstream.live == 0)


async def fetch(transport: Transport, request: UpstreamRequest, limit: int = 1000) -> bytes:
    leg = await transport.open(request)
    try:
        return await leg.read_all(limit)
    finally:
        leg.close()


# Plain answers.


async def test_a_plain_answer_arrives_whole(build: Build) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append(await wire.request())
            await wire.send(OK)

    async with Upstream().serve(script) as url:
        transport = build(url + "/base")
        leg = await transport.open(post(b'{"a":1}'))
        assert leg.status == 200
        assert (b"content-type", b"application/json") in leg.headers
        assert await leg.read_all(100) == b"{}"
        assert leg.complete
        assert await leg.read() == b""
        leg.close()
        leg.close()
        await settled(transport, open=1, idle=1, waiting=0, opened=1, reused=0)
    head, body = seen[0]
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /base/v1/chat/completions HTTP/1.1"
    assert {line.lower() for line in lines[1:-2]} == {
        b"host: " + url.removeprefix("http://").encode(),
        b"content-type: application/json",
        b"authorization: bearer k",
        b"content-length: 7",
    }
    assert body == b'{"a":1}'


async def test_chunked_pieces_are_passed_on_as_they_arrive(build: Build) -> None:
    go = asyncio.Queue[bytes]()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        while piece := await go.get():
            await wire.send(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
        await wire.send(b"0\r\nx-trailer: 1\r\n\r\n")
        await wire.gone()

    async with Upstream().serve(script) as url:
        leg = await build(url).open(post())
        assert not leg.complete
        for piece in (b"data: a\n\n", b"data: b\n\n", b"data: [DONE]\n\n"):
            go.put_nowait(piece)
            assert await leg.read() == piece
        go.put_nowait(b"")
        assert await leg.read() == b""
        assert leg.complete
        assert b"x-trailer" not in dict(leg.headers)
        leg.close()


async def test_an_answer_may_end_with_the_connection(build: Build) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nall", b" of it")

    async with Upstream().serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        assert await leg.read_all(100) == b"all of it"
        assert leg.complete
        leg.close()
        await settled(transport, open=0, idle=0)


@pytest.mark.parametrize(
    ("method", "data", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304),
        ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
    ],
)
async def test_answers_without_a_body_leave_the_connection_in_use(
    build: Build, method: str, data: bytes, status: int
) -> None:
    async with Upstream().serve(answering(data)) as url:
        transport = build(url)
        for _ in range(3):
            leg = await transport.open(UpstreamRequest(method, b"/", []))
            assert leg.status == status
            assert await leg.read() == b""
            assert leg.complete
            leg.close()
        assert transport.stats()["opened"] == 1
        assert transport.stats()["reused"] == 2


async def test_informational_answers_are_skipped(build: Build) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK
    async with Upstream().serve(answering(data)) as url:
        transport = build(url)
        for _ in range(2):
            leg = await transport.open(post())
            assert leg.status == 200
            assert b"link" not in dict(leg.headers)
            assert await leg.read_all(10) == b"{}"
            leg.close()
        assert transport.stats()["opened"] == 1


async def test_an_http_1_0_answer_closes_its_connection(build: Build) -> None:
    data = b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    async with Upstream().serve(answering(data)) as url:
        transport = build(url)
        leg = await transport.open(post())
        assert await leg.read_all(10) == b"{}"
        leg.close()
        await settled(transport, open=0)


async def test_connection_close_is_obeyed(build: Build) -> None:
    data = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with Upstream().serve(answering(data)) as url:
        transport = build(url)
        for _ in range(2):
            leg = await transport.open(post())
            assert await leg.read_all(10) == b"{}"
            leg.close()
        await settled(transport, open=0, opened=2)


# Relaying.


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def relay_on(leg: Leg, sink: Sink) -> None:
    while not await leg.relay(sink):
        pass


async def test_each_piece_is_relayed_as_it_arrives(build: Build) -> None:
    go = asyncio.Queue[bytes]()
    got: list[bytes] = []

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(CHUNKED)
        while piece := await go.get():
            await wire.send(chunk(piece))
        await wire.send(b"0\r\n\r\n")
        await wire.gone()

    async with Upstream().serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        go.put_nowait(b"first,")
        go.put_nowait(b"second,")
        await asyncio.sleep(0.1)  # they arrive while nobody reads

        def sink(data: bytes) -> bool:
            got.append(data)
            return True

        relaying = asyncio.ensure_future(leg.relay(sink))
        await until(lambda: b"".join(got) == b"first,second,")
        for number in range(50):
            go.put_nowait(b"%d," % number)
            await until(lambda: got[-1] == b"%d," % number)  # noqa: B023 - awaited at once
            assert not relaying.done()
        go.put_nowait(b"")
        assert await relaying
        assert leg.complete
        assert await leg.relay(sink)
        assert await leg.read() == b""
        leg.close()
        await settled(transport, open=1, idle=1)
    assert b"".join(got) == b"first,second," + b"".join(b"%d," % number for number in range(50))


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("data", [OK, CHUNKED_OK])
async def test_what_arrived_whole_is_relayed_once(build: Build, data: bytes, taken: bool) -> None:
    got: list[bytes] = []

    def sink(data: bytes) -> bool:
        got.append(data)
        return taken

    async with Upstream().serve(answering(data)) as url:
        transport = build(url)
        leg = await transport.open(post())
        while not await leg.relay(sink):
            assert not leg.complete
        assert await leg.relay(sink)
        assert got == [b"{}"]
        leg.close()
        await settled(transport, idle=1)


async def test_a_full_sink_holds_the_upstream_back(build: Build) -> None:
    size, sent = 32 * MIB, 0
    received = longest = 0
    full = True

    async def script(wire: Wire) -> None:
        nonlocal sent
        await wire.request()
        sent = 0
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            await wire.send(b"x" * 65536)
            sent += 65536
        await wire.gone()

    def sink(data: bytes) -> bool:
        nonlocal received, longest
        received += len(data)
        longest = max(longest, len(data))
        return not full

    async def held_back(transport: Transport) -> None:
        nonlocal received, full
        received, full = 0, True
        leg = await transport.open(post(timeouts=Timeouts(idle=0.5)))
        try:
            for _ in range(3):
                assert not await leg.relay(sink)
                before = -1
                while before != sent:  # until the upstream cannot send any more
                    before = sent
                    await asyncio.sleep(0.1)
            assert sent < size / 2
            full = False
            assert await leg.relay(sink)
        finally:
            leg.close()

    async with Upstream().serve(script) as url:
        transport = build(url)
        for left in reversed(range(5)):
            try:
                await held_back(transport)
                break
            except TransportError:  # A machine that holds up all of this process is silent as well.
                if not left:
                    raise
        assert received == size
        assert longest <= MIB


async def test_what_arrived_is_relayed_before_the_error(build: Build) -> None:
    pieces = [b"%d," % number for number in range(100)]
    got: list[bytes] = []

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(CHUNKED)
        for piece in pieces:
            await wire.send(chunk(piece))
            await asyncio.sleep(0)

    def sink(data: bytes) -> bool:
        got.append(data)
        return len(got) % 3 != 0

    async with Upstream().serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        with pytest.raises(TransportError) as raised:
            await relay_on(leg, sink)
        assert raised.value.kind == "broken"
        assert b"".join(got) == b"".join(pieces)
        leg.close()
        await settled(transport, open=0)


async def test_closing_ends_the_relay(build: Build) -> None:
    upstream = Upstream()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(HEAD, b"123")
        await wire.gone()

    async with upstream.serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        got: list[bytes] = []

        def sink(data: bytes) -> bool:
            got.append(data)
            leg.close()
            return True

        with pytest.raises(TransportError):
            await leg.relay(sink)
        assert got == [b"123"]
        await settled(transport, open=0)
        await all_gone(upstream)


@pytest.mark.parametrize("late", [False, True])
async def test_what_the_sink_raises_ends_the_answer(build: Build, late: bool) -> None:
    upstream = Upstream()
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(HEAD)
        if late:
            await go.wait()
        await wire.send(b"123")
        await wire.gone()

    def sink(data: bytes) -> bool:
        raise LookupError("no place for it")

    async with upstream.serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        relaying = asyncio.ensure_future(leg.relay(sink))
        await asyncio.sleep(0.1)
        go.set()
        with pytest.raises(LookupError):
            await relaying
        with pytest.raises((LookupError, TransportError)):
            await leg.relay(lambda data: True)
        await settled(transport, open=0)
        await all_gone(upstream)


async def test_silence_ends_a_relay(build: Build) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(HEAD)
        for byte in b"1234":
            await asyncio.sleep(0.2)
            await wire.send(bytes([byte]))
        await wire.gone()

    async with Upstream().serve(script) as url:
        transport = build(url)
        for _ in range(20):  # A machine that holds up all of this process is silent as well.
            got: list[bytes] = []
            async with Clock() as clock:
                leg = await transport.open(post(timeouts=Timeouts(idle=0.5)))
                with pytest.raises(TransportError) as raised:
                    await leg.relay(lambda data, got=got: not got.append(data))  # type: ignore[misc]
            if b"".join(got) == b"1234":
                break
        clock.assert_about(0.8 + 0.5)
        assert (raised.value.kind, raised.value.phase) == ("timeout", "idle")
        assert b"".join(got) == b"1234"
        await settled(transport, open=0)


async def test_a_cancelled_relay_gives_nothing_more() -> None:
    go = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(HEAD, b"12345")
        await go.wait()
        await wire.send(b"67890")
        await wire.gone()

    async with Upstream().serve(script) as url:
        transport = Http1Transport(parse_origin(url), Connector())
        leg = await transport.open(post())
        got: list[bytes] = []
        relaying = asyncio.ensure_future(leg.relay(lambda data: not got.append(data)))
        await until(lambda: got == [b"12345"])
        relaying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await relaying
        go.set()
        assert await leg.read_all(100) == b"67890"
        assert got == [b"12345"]
        leg.close()
        await transport.aclose()


# Large bodies.


async def test_a_slow_reader_holds_the_upstream_back(build: Build) -> None:
    size, sent = 64 * MIB, 0

    async def script(wire: Wire) -> None:
        nonlocal sent
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            await wire.send(b"x" * 65536)
            sent += 65536
        await wire.gone()

    async with Upstream().serve(script) as url:
        leg = await build(url).open(post())
        before = -1
        while before != sent:  # until the upstream cannot send any more
            before = sent
            await asyncio.sleep(0.1)
        assert sent < size / 2
        received = longest = 0
        while data := await leg.read():
            received += len(data)
            longest = max(longest, len(data))
        assert received == size
        assert longest <= MIB
        assert leg.complete
        leg.close()


async def test_an_answer_beyond_the_limit_is_refused(build: Build) -> None:
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 100
    async with Upstream().serve(answering(data)) as url:
        transport = build(url)
        leg = await transport.open(post())
        with pytest.raises(TransportError) as raised:
            await leg.read_all(99)
        assert raised.value.kind == "protocol"
        leg.close()
        leg = await transport.open(post())
        assert await leg.read_all(100) == b"x" * 100
        leg.close()


async def test_a_large_request_body_arrives_whole(build: Build) -> None:
    lengths: list[int] = []

    async def script(wire: Wire) -> None:
        while True:
            lengths.append(len((await wire.request())[1]))
            await wire.send(OK)

    async with Upstream().serve(script) as url:
        transport = build(url)
        for size in (0, 1, 65536, 65537, 8 * MIB):
            leg = await transport.open(post(b"x" * size))
            assert await leg.read_all(10) == b"{}"
            leg.close()
        assert transport.stats()["opened"] == 1
    assert lengths == [0, 1, 65536, 65537, 8 * MIB]


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


@pytest.mark.parametrize("length", [None, 3 * MIB + 2])
async def test_an_upload_is_streamed_from_an_iterator(build: Build, length: int | None) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append(await wire.request())
            await wire.send(OK)

    async with Upstream().serve(script) as url:
        transport = build(url)
        for _ in range(2):
            body = pieces_of(b"a" * MIB, b"", b"bb", b"c" * (2 * MIB))
            leg = await transport.open(post(body, length=length))
            assert await leg.read_all(10) == b"{}"
            leg.close()
        assert transport.stats()["opened"] == 1
    framing = b"chunked" if length is None else b"%d" % (3 * MIB + 2)
    for head, body in seen:
        assert framing in head
        assert body == b"a" * MIB + b"bb" + b"c" * (2 * MIB)


@pytest.mark.parametrize("length", [1, 5])
async def test_an_upload_of_another_length_than_announced_is_cut(build: Build, length: int) -> None:
    whole: list[bytes] = []

    async def script(wire: Wire) -> None:
        await wire.head()
        whole.append(await wire.reader.readexactly(length))
        await wire.gone()

    async with Upstream().serve(script) as url:
        transport = build(url)
        with pytest.raises(TransportError) as raised:
            await transport.open(post(pieces_of(b"ab", b"c"), length=length))
        assert raised.value.kind == "protocol"
        assert raised.value.sent
        await settled(transport, open=0)
    assert whole in ([], [b"a"])


async def test_a_failing_upload_leaves_nothing_behind(build: Build) -> None:
    class Gone(Exception):
        pass

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        raise Gone

    upstream = Upstream()
    async with upstream.serve(answer) as url:
        transport = build(url)
        with pytest.raises(Gone):
            await transport.open(post(body()))
        await settled(transport, open=0)
        await all_gone(upstream)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_early_answer_wins_over_the_broken_pipe(build: Build, streamed: bool) -> None:
    early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbig!"

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(early)  # and close, with the body unread

    async def body() -> AsyncIterator[bytes]:
        for _ in range(320):
            yield b"x" * 65536

    async with Upstream().serve(script) as url:
        transport = build(url)
        for _ in range(20):
            leg = await transport.open(post(body() if streamed else b"x" * (20 * MIB)))
            assert leg.status == 413
            assert await leg.read_all(10) == b"big!"
            leg.close()
        await settled(transport, open=0, opened=20)


async def test_an_early_answer_wins_while_the_upstream_reads_no_further(build: Build) -> None:
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 401 No\r\ncontent-length: 2\r\n\r\nno")
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    async with Upstream().serve(script) as url:
        transport = build(url)
        async with asyncio.timeout(30):
            leg = await transport.open(post(b"x" * (20 * MIB)))
            assert leg.status == 401
            assert await leg.read_all(10) == b"no"
        leg.close()
        await settled(transport, open=0)


# The pool.


async def test_a_connection_is_used_again(build: Build) -> None:
    upstream = Upstream()
    async with upstream.serve(answer) as url:
        transport = build(url)
        for _ in range(10):
            leg = await transport.open(post())
            await leg.read_all(10)
            leg.close()
        stats = {"open": 1, "idle": 1, "waiting": 0, "opened": 1, "reused": 9}
        assert transport.stats() == stats
    assert [wire.served for wire in upstream.wires] == [10]


async def test_requests_beyond_the_bound_wait_in_turn(build: Build) -> None:
    order: list[bytes] = []
    upstream = Upstream()

    async def script(wire: Wire) -> None:
        while True:
            order.append((await wire.request())[1])
            await wire.send(OK)

    async with upstream.serve(script) as url:
        transport = build(url, Limits(max_connections=1))

        async def one(number: int) -> None:
            leg = await transport.open(post(b"%02d" % number))
            await leg.read_all(10)
            await asyncio.sleep(0)
            leg.close()

        await asyncio.gather(*(one(number) for number in range(20)))
        await settled(transport, open=1, idle=1, waiting=0)
    assert len(upstream.wires) == 1
    assert order == [b"%02d" % number for number in range(20)]


async def test_the_wait_for_a_connection_is_bounded(build: Build) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await wire.gone()

    async with Upstream().serve(script) as url:
        transport = build(url, Limits(max_connections=1))
        leg = await transport.open(post())
        async with Clock() as clock:
            request = post(timeouts=Timeouts(pool=0.5))
            waiting = asyncio.ensure_future(transport.open(request))
            await until(lambda: transport.stats()["waiting"] == 1 or waiting.done())
            with pytest.raises(TransportError) as raised:
                await waiting
        assert raised.value.kind == "pool"
        assert not raised.value.sent
        clock.assert_about(0.5)
        if isinstance(transport, Http1Transport):
            assert (True, 0) == (request.queue_ms >= 450, request.connect_ms)
        assert transport.stats()["waiting"] == 0
        leg.close()
        await settled(transport, open=0)


async def test_an_idle_connection_expires(build: Build) -> None:
    upstream = Upstream()
    async with upstream.serve(answer) as url:
        transport = build(url, Limits(keepalive=0.3))
        for _ in range(5):  # Of a machine that is held up it may have expired by now.
            await fetch(transport, post())
            await asyncio.sleep(0.02)
            if (stats := transport.stats())["idle"]:
                break
        assert (1, 1) == (stats["open"], stats["idle"])
        await all_gone(upstream)
        await settled(transport, open=0, idle=0)


async def test_a_connection_handed_to_one_who_has_just_left_expires_as_well(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream()
    give = Pool.give
    go = asyncio.Event()

    async def patient(wire: Wire) -> None:
        await go.wait()
        await answer(wire)

    async with upstream.serve(patient) as url:
        transport = build(url, Limits(max_connections=1, keepalive=0.3))
        first = asyncio.ensure_future(transport.open(post()))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(transport.open(post()))
        await settled(transport, waiting=1)

        def handed(pool: Pool[Any], item: Any) -> bool:
            idle = give(pool, item)
            waiting.cancel()
            return idle

        monkeypatch.setattr(Pool, "give", handed)
        go.set()
        await (await first).read_all(10)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await settled(transport, waiting=0)
        await all_gone(upstream)
        await settled(transport, open=0, idle=0)


async def test_a_closed_transport_opens_nothing(build: Build) -> None:
    upstream = Upstream()
    async with upstream.serve(answer) as url:
        transport = build(url)
        leg = await transport.open(post())
        await leg.read_all(10)
        leg.close()
        await transport.aclose()
        with pytest.raises(TransportError) as raised:
            await transport.open(post())
        assert raised.value.kind == "pool"
        await all_gone(upstream)
        await settled(transport, open=0, idle=0)


# Timeouts.

STUCK = {
    "write": Timeouts(write=0.5),
    "first byte": Timeouts(first_byte=0.5),
    "drip": Timeouts(first_byte=0.5),
    "idle": Timeouts(idle=0.5),
    "total": Timeouts(total=0.5),
    "total in body": Timeouts(total=0.5),
}


@pytest.mark.parametrize("case", STUCK)
async def test_each_timeout_fires_at_its_value(build: Build, case: str) -> None:
    body = b"x" * (16 * MIB) if case == "write" else b"{}"

    async def script(wire: Wire) -> None:
        if case == "write":
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(60)
        await wire.request()
        if case == "drip":
            for byte in b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 1000:
                await wire.send(bytes([byte]))
                await asyncio.sleep(0.05)
        if case in ("idle", "total in body"):
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
        while case == "total in body":
            await wire.send(b"x")
            await asyncio.sleep(0.05)
        await wire.gone()

    async with Upstream().serve(script) as url:
        transport = build(url)
        for _ in range(5):  # Held up before it is sent, it is out of time as well.
            async with Clock() as clock:
                with pytest.raises(TransportError) as raised:
                    await fetch(transport, post(body, timeouts=STUCK[case]))
            if raised.value.sent:
                break
        assert raised.value.kind == "timeout"
        assert raised.value.phase == {"drip": "first byte", "total in body": "total"}.get(
            case, case
        )
        assert raised.value.sent
        clock.assert_about(0.5, more=1.0 if case == "write" else 0.25)  # the kernel takes some
        await settled(transport, open=0)


async def test_a_black_hole_ends_with_the_connect_timeout(build: Build) -> None:
    with socket.socket() as listener:  # its backlog is full: further SYNs go unanswered
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.socket() as first, socket.socket() as second:
            for filler in (first, second):
                filler.setblocking(False)
                with suppress(BlockingIOError):
                    filler.connect(listener.getsockname())
            transport = build(f"http://127.0.0.1:{listener.getsockname()[1]}")
            async with Clock() as clock:
                with pytest.raises(TransportError) as raised:
                    await transport.open(post(timeouts=Timeouts(connect=0.5)))
            clock.assert_about(0.5)
    assert raised.value.kind == "connect"
    assert not raised.value.sent
    assert transport.stats()["open"] == 0


async def test_a_refused_connection_is_of_kind_connect(build: Build) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        transport = build(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(TransportError) as raised:
            await transport.open(post())
    assert raised.value.kind == "connect"
    assert not raised.value.sent
    assert transport.stats()["open"] == 0


# Answers that break off, or are none.


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200", HEAD, HEAD + b"12345", CHUNKED, CHUNKED + b"5\r\n12345\r\n"]
)
async def test_an_answer_that_breaks_off_is_never_a_success(
    build: Build, data: bytes, reset: bool
) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(data)
        if reset:
            wire.reset()

    async with Upstream().serve(script) as url:
        transport = build(url)
        with pytest.raises(TransportError) as raised:
            await fetch(transport, post(replay_safe=True))
        assert raised.value.kind == "broken"
        assert raised.value.sent
        await settled(transport, open=0)
        assert transport.stats()["opened"] == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x01\x00\x02\x02\x46" * 10,
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nab",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nEVIL",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 201 + b"content-length: 0\r\n\r\n",
    ],
    ids=range(10),
)
async def test_what_is_no_answer_is_a_protocol_error(build: Build, data: bytes) -> None:
    async with Upstream().serve(answering(data)) as url:
        transport = build(url)
        with pytest.raises(TransportError) as raised:
            await transport.open(post(timeouts=Timeouts(first_byte=50)))
        assert raised.value.kind == "protocol"
        assert raised.value.sent
        await settled(transport, open=0)


@pytest.mark.parametrize("data", [b"5\r\nabcdeX", b"zz\r\nabc", b"-1\r\n", b"5;" + b"x" * 999_999])
async def test_malformed_chunks_end_the_answer(build: Build, data: bytes) -> None:
    async with Upstream().serve(answering(CHUNKED + data)) as url:
        transport = build(url)
        with pytest.raises(TransportError) as raised:
            await fetch(transport, post(timeouts=Timeouts(idle=50)))
        assert raised.value.kind == "protocol"
        await settled(transport, open=0)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "more", [b"EVIL", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nEVIL", b"H"]
)
async def test_bytes_after_the_message_reach_nobody(build: Build, more: bytes, late: bool) -> None:
    upstream = Upstream()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(*((OK, more) if late else (OK + more,)))
        await wire.gone()

    async with upstream.serve(script) as url:
        transport = build(url)
        for turn in range(5):
            leg = await transport.open(post())
            assert await leg.read_all(10) == b"{}"
            leg.close()
            await settled(transport, open=0)
            assert len(upstream.wires) == turn + 1


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"b\r\nevil: 1"),
        (b"x-a", b"b\nevil"),
        (b"x-a", b"b\0"),
        (b"x\r\nevil", b"b"),
        (b"x: evil", b"b"),
        (b"", b"b"),
        (b"Content-Length", b"5"),
        (b"transfer-encoding", b"chunked"),
        (b"host", b"evil"),
    ],
)
async def test_headers_that_would_change_the_framing_are_refused(
    build: Build, header: tuple[bytes, bytes]
) -> None:
    upstream = Upstream()
    async with upstream.serve(answer) as url:
        transport = build(url)
        with pytest.raises(TransportError) as raised:
            await transport.open(post(headers=[(b"a", b"b"), header]))
        assert raised.value.kind == "protocol"
        assert not raised.value.sent
    assert upstream.wires == []


@pytest.mark.parametrize("target", [b"", b"v1", b"/a b", b"/a\r\nx: y", b"http://evil/", b"/\xff"])
async def test_malformed_targets_are_refused(build: Build, target: bytes) -> None:
    upstream = Upstream()
    async with upstream.serve(answer) as url:
        with pytest.raises(TransportError) as raised:
            await build(url).open(post(target=target))
        assert raised.value.kind == "protocol"
    assert upstream.wires == []


# Stale connections.


async def test_a_stale_connection_never_reaches_the_caller(build: Build) -> None:
    async def script(wire: Wire) -> None:
        head = await wire.head()  # The first one may take its time on a busy machine.
        while True:
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await wire.reader.readexactly(length)
            await wire.send(OK)
            async with asyncio.timeout(0.2):
                head = await wire.head()

    async def quiet(wire: Wire) -> None:
        with suppress(TimeoutError):
            await script(wire)

    async with Upstream().serve(quiet) as url:
        transport = build(url)

        async def spaced(pause: float) -> None:
            for _ in range(5):
                leg = await transport.open(post(replay_safe=True))
                assert await leg.read_all(10) == b"{}"
                leg.close()
                await asyncio.sleep(pause)

        await asyncio.gather(*(spaced(0.19 + 0.001 * step) for step in range(20)))


@pytest.mark.parametrize("reset", [False, True])
async def test_a_dead_reused_connection_is_replaced_once_if_replay_safe(
    build: Build, reset: bool
) -> None:
    upstream = Upstream()

    async def script(wire: Wire) -> None:
        if wire.number == 0:
            await wire.request()
            await wire.send(OK)
        await wire.request()
        if reset:
            wire.reset()

    async with upstream.serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        await leg.read_all(10)
        leg.close()
        request = post(replay_safe=True)
        with pytest.raises(TransportError) as raised:
            await transport.open(request)
        assert raised.value.kind == "broken"
        assert raised.value.sent
        assert request.lost is not None
        assert ("broken", True) == (request.lost.kind, request.lost.sent)
        assert [wire.served for wire in upstream.wires] == [2, 1]
        await settled(transport, open=0)


async def test_a_request_which_is_not_replay_safe_is_sent_once(build: Build) -> None:
    upstream = Upstream()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()

    async with upstream.serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        await leg.read_all(10)
        leg.close()
        with pytest.raises(TransportError) as raised:
            await transport.open(post())
        assert raised.value.kind == "broken"
        assert raised.value.sent
    assert [wire.served for wire in upstream.wires] == [2]


# Cancellation.


async def test_closing_a_leg_early_closes_its_connection(build: Build) -> None:
    upstream = Upstream()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(HEAD, b"123")
        await wire.gone()

    async with upstream.serve(script) as url:
        transport = build(url)
        leg = await transport.open(post())
        assert await leg.read()
        leg.close()
        await settled(transport, open=0)
        await all_gone(upstream)


async def test_cancellation_at_random_moments_leaves_nothing_behind(build: Build) -> None:
    chance = random.Random(13)
    upstream = Upstream()

    async def script(wire: Wire) -> None:
        while True:
            await wire.request()
            await asyncio.sleep(chance.random() * 0.01)
            await wire.send(CHUNKED + b"2\r\n{}\r\n")
            await asyncio.sleep(chance.random() * 0.005)
            await wire.send(b"0\r\n\r\n")

    async with upstream.serve(script) as url:
        transport = build(url, Limits(max_connections=10))
        tasks = len(asyncio.all_tasks())

        async def one() -> None:
            leg = await transport.open(post(timeouts=Timeouts(pool=30)))
            try:
                assert await leg.read_all(100) == b"{}"
            finally:
                leg.close()

        async def cancelled() -> None:
            task = asyncio.ensure_future(one())
            await asyncio.sleep(chance.random() * 0.05)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        for _ in range(20):
            await asyncio.gather(*(cancelled() for _ in range(50)))
        await settled(transport, waiting=0)
        await until(lambda: (stats := transport.stats())["open"] == stats["idle"])
        assert transport.stats()["open"] <= 10
        await until(lambda: upstream.live == transport.stats()["open"])
        await until(lambda: len(asyncio.all_tasks()) - upstream.live <= tasks)
        await asyncio.gather(*(one() for _ in range(100)))
        assert transport.stats()["open"] <= 10


async def test_a_cancelled_wait_takes_no_slot(build: Build) -> None:
    release = asyncio.Event()

    async def script(wire: Wire) -> None:
        while True:
            await wire.request()
            await release.wait()
            await wire.send(OK)

    async with Upstream().serve(script) as url:
        transport = build(url, Limits(max_connections=1))
        first = asyncio.ensure_future(transport.open(post()))
        await settled(transport, open=1)
        queue = [asyncio.ensure_future(transport.open(post())) for _ in range(5)]
        await settled(transport, waiting=5)
        for task in queue[:4]:
            task.cancel()
        await settled(transport, waiting=1)
        release.set()
        for task in (first, queue[4]):
            leg = await task
            assert await leg.read_all(10) == b"{}"
            leg.close()
        await settled(transport, open=1, idle=1, waiting=0)


# TLS.


@dataclass(frozen=True)
class Authority:
    """A certificate authority made for the test."""

    ca_file: str
    server: ssl.SSLContext


def authority(folder: Path, *names: str) -> Authority:
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "passy test CA")])

    def certificate(
        subject: x509.Name, public: ec.EllipticCurvePublicKey, ca: bool
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
            )
        )
        if ca:
            usage = x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=True,
                content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, encipher_only=False, decipher_only=False,
            )  # fmt: skip
            builder = builder.add_extension(usage, critical=True)
        else:
            places: list[x509.GeneralName] = []
            for name in names:
                try:
                    places.append(x509.IPAddress(ipaddress.ip_address(name)))
                except ValueError:
                    places.append(x509.DNSName(name))
            builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
        return builder.sign(ca_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    leaf = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "passy test upstream")])
    ca_file, chain = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(certificate(issuer, ca_key.public_key(), True).public_bytes(pem))
    chain.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate(leaf, key.public_key(), False).public_bytes(pem)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    return Authority(str(ca_file), server)


async def test_tls_is_verified_against_a_custom_authority(build: Build, tmp_path: Path) -> None:
    trusted = authority(tmp_path, "127.0.0.1")
    async with Upstream().serve(answer, trusted.server) as url:
        transport = build(url, tls=Tls(ca_file=trusted.ca_file))
        for _ in range(3):
            leg = await transport.open(post())
            assert await leg.read_all(10) == b"{}"
            leg.close()
        assert transport.stats()["opened"] == 1


async def test_large_bodies_pass_over_tls(build: Build, tmp_path: Path) -> None:
    trusted = authority(tmp_path, "127.0.0.1")

    async def script(wire: Wire) -> None:
        while True:
            _, body = await wire.request()
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async with Upstream().serve(script, trusted.server) as url:
        transport = build(url, tls=Tls(ca_file=trusted.ca_file))
        for _ in range(2):
            leg = await transport.open(post(b"x" * (4 * MIB)))
            assert await leg.read_all(4 * MIB) == b"x" * (4 * MIB)
            leg.close()
        assert transport.stats()["opened"] == 1


@pytest.mark.parametrize("fault", ["unknown authority", "another name"])
async def test_tls_that_cannot_be_verified_is_refused(
    build: Build, tmp_path: Path, fault: str
) -> None:
    named = authority(tmp_path, "127.0.0.1" if fault == "unknown authority" else "other.test")
    trust = VERIFIED if fault == "unknown authority" else Tls(ca_file=named.ca_file)
    async with Upstream().serve(answer, named.server) as url:
        transport = build(url, tls=trust)
        with pytest.raises(TransportError) as raised:
            await transport.open(post())
        assert raised.value.kind == "connect"
        assert raised.value.phase == "tls"
        assert not raised.value.sent
        assert transport.stats()["open"] == 0
        leg = await build(url, tls=Tls(verify=False)).open(post())
        assert json.loads(await leg.read_all(10)) == {}
        leg.close()


async def test_a_server_that_never_shakes_hands_ends_with_the_tls_timeout(build: Build) -> None:
    async def script(wire: Wire) -> None:
        await wire.gone()

    upstream = Upstream()
    async with upstream.serve(script) as url:
        transport = build(url.replace("http:", "https:"))
        async with Clock() as clock:
            with pytest.raises(TransportError) as raised:
                await transport.open(post(timeouts=Timeouts(tls=0.5)))
        clock.assert_about(0.5)
        assert (raised.value.kind, raised.value.phase) == ("connect", "tls")
        await all_gone(upstream)
        assert transport.stats()["open"] == 0
