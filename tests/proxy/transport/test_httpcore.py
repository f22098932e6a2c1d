"""What only the second transport does: HTTP/2 and proxies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import h2.config
import h2.connection
import h2.events
import pytest

from passy_proxy.transport import Limits, Timeouts, TransportError, UpstreamRequest
from passy_proxy.transport.connect import BadOrigin, Connector, parse_origin
from passy_proxy.transport.httpcore import HttpcoreTransport

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def post(body: bytes = b"{}", **timeouts: float) -> UpstreamRequest:
    limits = Timeouts(**timeouts)
    return UpstreamRequest("POST", b"/v1/x", [(b"a", b"b")], body, timeouts=limits)


class Http2Wire(asyncio.Protocol):
    """A cleartext HTTP/2 upstream; each request is answered when ``release`` is set."""

    def __init__(self, upstream: Http2Upstream) -> None:
        self.upstream = upstream
        config = h2.config.H2Configuration(
            client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.bodies: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.upstream.wires.append(self)
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.wires.remove(self)

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.bodies[event.stream_id] = b""
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.upstream.queue.append((self, event.stream_id))
                if self.upstream.open:
                    self.upstream.answer()
        self.flush()


class Http2Upstream:
    def __init__(self) -> None:
        self.wires: list[Http2Wire] = []
        self.queue: list[tuple[Http2Wire, int]] = []
        self.open = True
        self.served = 0
        self.head: list[tuple[str, str]] = [(":status", "200"), ("content-type", "text/plain")]

    def answer(self) -> None:
        queue, self.queue = self.queue, []
        for wire, stream in queue:
            body = wire.bodies.pop(stream)
            wire.h2.send_headers(stream, self.head)
            wire.h2.send_data(stream, body, end_stream=True)
            self.served += 1
            wire.flush()

    @asynccontextmanager
    async def serve(self, **limits: float) -> AsyncIterator[HttpcoreTransport]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Http2Wire(self), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport = HttpcoreTransport(
            parse_origin(f"http://127.0.0.1:{port}"),
            Connector(),
            Limits(**limits),  # type: ignore[arg-type]
            http2=True,
        )
        try:
            yield transport
        finally:
            await transport.aclose()
            server.close()
            for wire in self.wires:
                wire.transport.abort()
            await until(lambda: not self.wires)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def fetch(transport: HttpcoreTransport, body: bytes = b"{}") -> bytes:
    leg = await transport.open(post(body))
    try:
        assert leg.status == 200
        return await leg.read_all(1_000_000)
    finally:
        leg.close()


# HTTP/2


async def test_requests_share_one_http2_connection() -> None:
    upstream = Http2Upstream()
    async with upstream.serve() as transport:
        assert await fetch(transport, b"first") == b"first"
        bodies = [b"%d" % number for number in range(50)]
        assert await asyncio.gather(*(fetch(transport, body) for body in bodies)) == bodies
        assert len(upstream.wires) == 1
        stats = transport.stats()
        assert stats == {"open": 1, "idle": 1, "waiting": 0, "opened": 1, "reused": 50}


@pytest.mark.parametrize(
    "head",
    [
        [(":status", "200"), ("x-a", "b\r\nset-cookie: EVIL")],
        [(":status", "200"), ("x-a", "b\nEVIL")],
        [(":status", "200"), ("x-a", "EVIL\0")],
        [(":status", "200"), ("x-a\r\nset-cookie", "EVIL")],
        [(":status", "200"), ("x a", "EVIL")],
        [(":status", "200"), ("", "EVIL")],
        [(":status", "EVIL")],
        [(":status", "20")],
        [(":status", "-200")],
        [(":status", "2000")],
        [(":status", "101"), ("upgrade", "EVIL")],
    ],
)
async def test_an_http2_head_that_is_none_is_refused(head: list[tuple[str, str]]) -> None:
    upstream = Http2Upstream()
    upstream.head = head
    async with upstream.serve() as transport:
        with pytest.raises(TransportError) as raised:
            await fetch(transport)
        assert "EVIL" not in str(raised.value)
        assert raised.value.kind == "protocol"
        await until(lambda: transport.stats()["open"] == 0)
        upstream.head = [(":status", "200")]
        assert await fetch(transport, b"clean") == b"clean"


async def test_those_who_wait_for_a_connection_get_a_stream_of_it() -> None:
    upstream = Http2Upstream()
    async with upstream.serve(max_connections=1) as transport:
        bodies = [b"%d" % number for number in range(30)]
        assert await asyncio.gather(*(fetch(transport, body) for body in bodies)) == bodies
        assert transport.stats()["opened"] == 1
        assert transport.stats()["waiting"] == 0


async def test_a_cancelled_stream_leaves_the_others_alone() -> None:
    upstream = Http2Upstream()
    async with upstream.serve() as transport:
        await fetch(transport)
        upstream.open = False
        tasks = [asyncio.ensure_future(fetch(transport, b"%d" % n)) for n in range(20)]
        await until(lambda: len(upstream.queue) == 20)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])
        upstream.open = True
        upstream.answer()
        assert await asyncio.gather(*tasks[1::2]) == [b"%d" % n for n in range(1, 20, 2)]
        await until(lambda: transport.stats()["open"] == 0)  # given up once the last has ended
        assert await fetch(transport, b"again") == b"again"


async def test_an_http2_stream_has_its_own_timeout() -> None:
    upstream = Http2Upstream()
    async with upstream.serve() as transport:
        await fetch(transport)
        upstream.open = False
        with pytest.raises(TransportError) as raised:
            await transport.open(post(first_byte=0.3))
        assert (raised.value.kind, raised.value.phase) == ("timeout", "first byte")
        assert raised.value.sent
        await until(lambda: transport.stats()["open"] == 0)


async def test_an_idle_http2_connection_expires() -> None:
    upstream = Http2Upstream()
    async with upstream.serve(keepalive=0.2) as transport:
        await fetch(transport)
        assert transport.stats()["idle"] == 1
        await until(lambda: not upstream.wires)
        await until(lambda: transport.stats()["open"] == 0)


# Proxies


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[int]:
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
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(OK)


async def test_an_http_proxy_is_asked_for_the_whole_url() -> None:
    heads: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n{}"))
            writer.write(OK)

    async with serving(proxy) as port:
        origin = parse_origin("http://upstream.example/base")
        transport = HttpcoreTransport(
            origin, Connector(), proxy=f"http://us%40er:p%3Aw@127.0.0.1:{port}"
        )
        for _ in range(2):
            assert await fetch(transport) == b"ok"
        assert transport.stats()["opened"] == 1
        await transport.aclose()
    assert heads[0].startswith(b"POST http://upstream.example/base/v1/x HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNAZXI6cDp3\r\n" in heads[0]  # us@er:p:w


async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    version, count = await reader.readexactly(2)
    methods = await reader.readexactly(count)
    assert (version, methods) == (5, b"\x02")
    writer.write(b"\x05\x02")
    assert await reader.readexactly(1 + 1 + 4 + 1 + 4) == b"\x01\x04user\x04pass"
    writer.write(b"\x01\x00")
    assert await reader.readexactly(4) == b"\x05\x01\x00\x03"
    name = await reader.readexactly((await reader.readexactly(1))[0])
    assert name == b"upstream.example"
    await reader.readexactly(2)
    writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
    await ok(reader, writer)


async def test_a_socks_proxy_resolves_the_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(socks) as port:
        transport = HttpcoreTransport(
            parse_origin("http://upstream.example"),
            Connector(),
            proxy=f"socks5://user:pass@127.0.0.1:{port}",
        )
        assert await fetch(transport) == b"ok"
        await transport.aclose()
    assert "pass" not in caplog.text


async def test_a_proxy_that_refuses_is_of_kind_connect() -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT upstream.example:443 ")
        writer.write(b"HTTP/1.1 407 Authenticate\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with serving(proxy) as port:
        transport = HttpcoreTransport(
            parse_origin("https://upstream.example"), Connector(), proxy=f"http://127.0.0.1:{port}"
        )
        with pytest.raises(TransportError) as raised:
            await transport.open(post())
        assert raised.value.kind == "connect"
        assert not raised.value.sent
        assert transport.stats()["open"] == 0
        await transport.aclose()


@pytest.mark.parametrize("greeting", [b"", b"\x05\xff", b"\x04\x02", b"HTTP/1.1 400 No\r\n\r\n"])
async def test_a_socks_proxy_that_talks_nonsense_is_of_kind_connect(greeting: bytes) -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(greeting)

    async with serving(proxy) as port:
        transport = HttpcoreTransport(
            parse_origin("https://upstream.example"),
            Connector(),
            proxy=f"socks5://127.0.0.1:{port}",
        )
        with pytest.raises(TransportError) as raised:
            await transport.open(post())
        assert raised.value.kind == "connect"
        assert not raised.value.sent
        assert transport.stats()["open"] == 0
        await transport.aclose()


async def test_a_silent_proxy_is_given_up() -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(proxy) as port:
        transport = HttpcoreTransport(
            parse_origin("https://upstream.example"), Connector(), proxy=f"http://127.0.0.1:{port}"
        )
        with pytest.raises(TransportError) as raised:
            await transport.open(post(connect=0.1, tls=0.1))
        assert raised.value.kind == "connect"
        assert not raised.value.sent
        assert transport.stats()["open"] == 0
        await transport.aclose()


async def test_tls_in_a_tunnel_is_verified_against_the_upstreams_name() -> None:
    """The proxy answers the tunnelled handshake itself with something that is not TLS."""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        hello = await reader.read(4096)
        assert b"upstream.example" in hello  # server name indication
        writer.write(OK)

    async with serving(proxy) as port:
        transport = HttpcoreTransport(
            parse_origin("https://upstream.example"), Connector(), proxy=f"http://127.0.0.1:{port}"
        )
        with pytest.raises(TransportError) as raised:
            await transport.open(post())
        assert (raised.value.kind, raised.value.phase) == ("connect", "tls")
        assert str(raised.value) == "TLS with upstream.example: wrong version number"
        assert not raised.value.sent
        await transport.aclose()


def test_a_tenants_upstream_has_no_proxy() -> None:
    origin = parse_origin("https://upstream.example", restricted=True)
    with pytest.raises(BadOrigin):
        HttpcoreTransport(origin, Connector(), proxy="http://127.0.0.1:8080")


@pytest.mark.parametrize("proxy", ["ftp://a", "http://", "http://a/path?x", "socks4://a:1", "a:80"])
def test_a_malformed_proxy_is_refused(proxy: str) -> None:
    with pytest.raises(BadOrigin):
        HttpcoreTransport(parse_origin("http://a"), Connector(), proxy=proxy)
