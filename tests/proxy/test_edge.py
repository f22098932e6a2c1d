"""The edge on real sockets, under uvicorn: framing, limits, deadlines, hang-ups, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from harness.busy import be_busy
from harness.steady import be_steady

from passy_proxy.downstream import BodyTimeout, BodyTooLarge, ClientGone, Downstream
from passy_proxy.edge import EXTENSION, Connection, Edge, EdgeLimits, _network, edge
from passy_proxy.framing import RequestHead
from passy_proxy.testing import prompt

pytestmark = pytest.mark.anyio


@pytest.fixture(
    scope="session",
    params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: their transports differ in when they write, pause and end."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


Scope = dict[str, Any]
App = Callable[..., Awaitable[None]]
PATIENCE = 60.0  # seconds a test waits for what has to happen


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        code: str = json.loads(self.body)["error"]["code"]
        return code


class Client:
    """A raw HTTP client: sends bytes, reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head_only: bool = False) -> Answer:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            pairs = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in pairs}
            assert len(pairs) == len(headers), "a header was sent twice"
            status = int(first.split(" ")[1])
            body = b"" if head_only else await self._body(status, headers)
            return Answer(status, headers, body)

    async def _body(self, status: int, headers: dict[str, str]) -> bytes:
        if status in (100, 204, 304):
            return b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                assert b"\r\n" == await self.reader.readexactly(2)
            assert b"\r\n" == await self.reader.readexactly(2)
            return body
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read()

    async def rest(self) -> bytes:
        """All that comes until the server closes; a reset counts as closed."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):  # Or EPIPE, for who was still sending.
                return await self.reader.read()
            return b""

    def reset(self) -> None:
        """Leave by RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()


@dataclass
class Site:
    """A running server."""

    server: uvicorn.Server
    edge: Edge | None
    clients: list[Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return port

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def ask(self, request: bytes) -> Answer:
        client = await self.client()
        client.send(request)
        return await client.answer()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  # nobody sets an event for what a test looks at
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(
    app: App,
    limits: EdgeLimits | None = None,
    **settings: Any,  # uvicorn's own
) -> AsyncIterator[Site]:
    """uvicorn with our edge in this loop; or with the ``http`` that ``settings`` name."""
    be_steady()
    door = None if "http" in settings else edge(limits)
    settings = {"http": door, "lifespan": "off", "log_config": None, "access_log": False} | settings
    config = uvicorn.Config(app, host="127.0.0.1", port=0, **settings)
    async with prompt(config) as server:
        site = Site(server, door)
        try:
            yield site
        finally:
            for client in site.clients:
                client.writer.close()


async def read_all(receive: Callable[[], Awaitable[Any]]) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message["body"]
        if not message["more_body"]:
            return body


def report(scope: Scope, body: bytes) -> bytes:
    return json.dumps(
        {
            "method": scope["method"],
            "path": scope["path"],
            "raw_path": scope["raw_path"].decode(),
            "query": scope["query_string"].decode(),
            "headers": [
                [name.decode(), value.decode("latin-1")] for name, value in scope["headers"]
            ],
            "version": scope["http_version"],
            "length": len(body),
            "sum": sum(body),
        }
    ).encode()


async def direct_app(scope: Scope, receive: Any, send: Any) -> None:
    """Tells what was asked, over the Downstream of the edge."""
    downstream: Downstream = scope["extensions"][EXTENSION]
    answer = report(scope, await downstream.body(1 << 30))
    downstream.start(200, [(b"content-length", b"%d" % len(answer))])
    downstream.finish(answer)


async def plain_app(scope: Scope, receive: Any, send: Any) -> None:
    """The same over nothing but ASGI, chunked."""
    answer = report(scope, await read_all(receive))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": answer[:10], "more_body": True})
    await send({"type": "http.response.body", "body": answer[10:]})


@pytest.fixture(scope="module", params=[direct_app, plain_app], ids=["direct", "asgi"])
async def site(request: pytest.FixtureRequest, anyio_backend: object) -> AsyncIterator[Site]:
    async with serving(request.param) as running:
        yield running


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/x") -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: passy.test", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def chunked(*pieces: bytes) -> bytes:
    head = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


GET = b"GET /v1/x HTTP/1.1\r\nHost: passy.test\r\n\r\n"


async def test_a_request_is_told_to_the_application_as_it_was_sent(site: Site) -> None:
    answer = await site.ask(post(b"\x01\x02", b"X-One: a", b"x-one:b  ", path=b"/a%20b/c?d=%2e&e"))
    told = json.loads(answer.body)
    assert 200 == answer.status
    assert ("POST", "/a b/c", "/a%20b/c", "d=%2e&e") == (
        told["method"],
        told["path"],
        told["raw_path"],
        told["query"],
    )
    assert [["host", "passy.test"], ["x-one", "a"], ["x-one", "b"], ["content-length", "2"]] == (
        told["headers"]
    )
    assert (2, 3) == (told["length"], told["sum"])


async def test_the_default_headers_are_sent_once(site: Site) -> None:
    answer = await site.ask(GET)
    assert "uvicorn" == answer.headers["server"]
    assert answer.headers["date"].endswith("GMT")


async def test_a_connection_serves_one_request_after_another(site: Site) -> None:
    client = await site.client()
    for length in (0, 1, 70_000, 5):
        client.send(post(b"\x01" * length))
        answer = await client.answer()
        assert (length, length) == (
            json.loads(answer.body)["length"],
            json.loads(answer.body)["sum"],
        )
        assert "connection" not in answer.headers


async def test_one_task_serves_a_connection_unless_something_is_left_in_it() -> None:
    """What a request leaves in its task (a context variable here) the next one does not find."""
    left: ContextVar[str] = ContextVar("left", default="")
    tasks: list[object] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        tasks.append(asyncio.current_task())
        found = left.get()
        if scope["path"] == "/litter":
            left.set("litter")
        downstream: Downstream = scope["extensions"][EXTENSION]
        downstream.whole(200, [(b"x-found", found.encode())], b"")

    async with serving(app) as site:
        client = await site.client()
        for path in (b"/", b"/", b"/litter", b"/", b"/"):
            client.send(post(b"x", path=path))
            assert "" == (await client.answer()).headers["x-found"]
        one, two, litter, *rest = tasks
        assert one is two is litter
        assert rest[0] is rest[1] is not litter


async def test_a_request_does_not_wait_for_what_the_previous_one_does_after_its_answer() -> None:
    go = asyncio.Event()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        downstream: Downstream = scope["extensions"][EXTENSION]
        downstream.whole(200, [], scope["path"].encode())
        if scope["path"] == "/slow":
            await go.wait()

    async with serving(app) as site:
        client = await site.client()
        for path in (b"/slow", b"/a", b"/b"):
            client.send(post(b"x", path=path))
            assert path == (await client.answer()).body
        assert 1 == len(site.server.server_state.tasks)
        go.set()
        await until(lambda: not site.server.server_state.tasks)
        client.send(post(b"x", path=b"/c"))
        assert b"/c" == (await client.answer()).body


async def test_an_application_that_can_answer_directly_is_spared_the_scope() -> None:
    class Direct:
        async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
            raise AssertionError("asked by a scope")

        async def answer(self, head: RequestHead, downstream: Downstream) -> None:
            body = await downstream.body(10)
            told = f"{head.line.method} {head.line.path} {head.fields[b'host'].decode()}"
            downstream.whole(200, [], told.encode() + b" " + body)

    async with serving(Direct(), proxy_headers=False) as site:
        client = await site.client()
        for body in (b"one", b"two!", b""):
            client.send(post(body))
            assert b"POST /v1/x passy.test " + body == (await client.answer()).body


async def test_pipelined_requests_are_answered_in_their_order(site: Site) -> None:
    client = await site.client()
    paths = [b"/%d" % number for number in range(300)]
    requests = [
        post(b"x" * 999, path=path) if number % 2 else chunked(b"abc", b"d").replace(b"/v1/x", path)
        for number, path in enumerate(paths)
    ]
    client.send(b"".join(requests))
    for path in paths:
        assert path.decode() == json.loads((await client.answer()).body)["path"]


async def test_a_request_may_come_byte_by_byte(site: Site) -> None:
    for request in (post(b"\x01\x02\x03"), chunked(b"\x01\x02", b"\x03")):
        client = await site.client()
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert 6 == json.loads((await client.answer()).body)["sum"]


async def test_a_chunked_body_is_joined_and_its_extensions_and_trailers_dropped(site: Site) -> None:
    head = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
    body = b"3;a=b\r\n\x01\x02\x03\r\n00A\r\n" + b"\x01" * 10 + b"\r\n0\r\nX-Sum: 16\r\n\r\n"
    client = await site.client()
    client.send(head + body + GET)
    told = json.loads((await client.answer()).body)
    assert (13, 16) == (told["length"], told["sum"])
    assert "x-sum" not in [name for name, _ in told["headers"]]
    assert "GET" == json.loads((await client.answer()).body)["method"]


async def test_http_1_0_is_answered_without_chunks_and_closed(site: Site) -> None:
    client = await site.client()
    client.send(b"GET /v1/x HTTP/1.0\r\n\r\n")
    answer = await client.answer()
    assert "1.0" == json.loads(answer.body)["version"]
    assert "close" == answer.headers["connection"]
    assert "transfer-encoding" not in answer.headers
    assert b"" == await client.rest()


async def test_connection_close_is_honoured(site: Site) -> None:
    client = await site.client()
    client.send(post(b"", b"Connection: Close"))
    assert "close" == (await client.answer()).headers["connection"]
    assert b"" == await client.rest()


async def test_head_is_answered_without_a_body(site: Site) -> None:
    client = await site.client()
    client.send(GET.replace(b"GET", b"HEAD") + GET)
    first = await client.answer(head_only=True)
    assert 200 == first.status
    assert "GET" == json.loads((await client.answer()).body)["method"]


async def test_100_continue_is_sent_when_the_body_is_read(site: Site) -> None:
    client = await site.client()
    head, body = post(b"\x05", b"Expect: 100-continue")[:-1], b"\x05"
    client.send(head)
    assert 100 == (await client.answer()).status
    client.send(body)
    assert 5 == json.loads((await client.answer()).body)["sum"]


def head(*lines: bytes, first: bytes = b"POST /v1/x HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"\r\n".join([first, *([host] if host else []), *lines, b"", b""])


def path(raw: bytes) -> bytes:
    return head(first=b"GET " + raw + b" HTTP/1.1")


LENGTH = b"Content-Length: 3"
CODING = b"Transfer-Encoding: chunked"
REFUSED = {
    "length-with-coding": (400, "invalid_framing", head(LENGTH, CODING)),
    "coding-with-length": (400, "invalid_framing", head(CODING, LENGTH)),
    "coding-gzip": (400, "invalid_framing", head(b"Transfer-Encoding: gzip, chunked")),
    "coding-identity": (400, "invalid_framing", head(b"Transfer-Encoding: identity")),
    "coding-obscured": (400, "invalid_request", head(b"Transfer-Encoding: \x0bchunked")),
    "coding-space": (400, "invalid_request", head(b"Transfer-Encoding : chunked")),
    "coding-1.0": (400, "invalid_framing", head(CODING, first=b"POST / HTTP/1.0")),
    "coding-twice": (400, "invalid_framing", head(CODING, CODING)),
    "length-twice": (400, "invalid_framing", head(LENGTH, LENGTH)),
    "length-list": (400, "invalid_framing", head(b"Content-Length: 3, 3")),
    "length-plus": (400, "invalid_framing", head(b"Content-Length: +3")),
    "length-minus": (400, "invalid_framing", head(b"Content-Length: -3")),
    "length-hex": (400, "invalid_framing", head(b"Content-Length: 0x3")),
    "length-empty": (400, "invalid_framing", head(b"Content-Length:")),
    "length-endless": (400, "invalid_framing", head(b"Content-Length: " + b"9" * 30)),
    "host-missing": (400, "invalid_host", head(host=b"")),
    "host-twice": (400, "invalid_host", head(b"Host: h")),
    "host-empty": (400, "invalid_host", head(host=b"Host:")),
    "host-path": (400, "invalid_host", head(host=b"Host: h/x")),
    "host-user": (400, "invalid_host", head(host=b"Host: u@h")),
    "host-space": (400, "invalid_host", head(host=b"Host: h i")),
    "host-port": (400, "invalid_host", head(host=b"Host: h:x")),
    "host-v6": (400, "invalid_host", head(host=b"Host: [::1::2]")),
    "absolute": (400, "invalid_host", head(first=b"GET http://other/v1 HTTP/1.1")),
    "absolute-port": (400, "invalid_host", head(first=b"GET http://h:81/v1 HTTP/1.1")),
    "connect": (400, "method_not_supported", head(first=b"CONNECT h:443 HTTP/1.1")),
    "trace": (400, "method_not_supported", head(first=b"TRACE / HTTP/1.1")),
    "method-small": (501, "method_not_supported", head(first=b"get / HTTP/1.1")),
    "method-broken": (400, "invalid_request", head(first=b"G(T / HTTP/1.1")),
    "upgrade": (
        400,
        "upgrade_not_supported",
        head(b"Connection: Upgrade", b"Upgrade: websocket", first=b"GET / HTTP/1.1"),
    ),
    "version-2": (505, "version_not_supported", b"PRI * HTTP/2.0\r\n\r\n"),
    "version-1.2": (505, "version_not_supported", head(first=b"GET / HTTP/1.2")),
    "version-none": (400, "invalid_request", b"GET /\r\n\r\n"),
    "version-small": (400, "invalid_request", head(first=b"GET / http/1.1")),
    "lf-after-line": (400, "invalid_request", b"GET / HTTP/1.1\nHost: h\r\n\r\n"),
    "lf-after-header": (400, "invalid_request", b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n"),
    "lf-only": (400, "invalid_request", b"GET / HTTP/1.1\nHost: h\n\n"),
    "cr-in-value": (400, "invalid_request", head(b"A: b\rc")),
    "nul-in-value": (400, "invalid_request", head(b"A: b\0c")),
    "fold": (400, "invalid_request", head(b"A: b", b" c")),
    "fold-tab": (400, "invalid_request", head(b"A: b", b"\tc")),
    "no-colon": (400, "invalid_request", head(b"abc")),
    "no-name": (400, "invalid_request", head(b": abc")),
    "two-spaces": (400, "invalid_request", head(first=b"GET  / HTTP/1.1")),
    "tab": (400, "invalid_request", head(first=b"GET\t/ HTTP/1.1")),
    "tls-hello": (400, "invalid_request", b"\x16\x03\x01\x02\0"),
    "empty-lines": (400, "invalid_request", b"\r\n\r\n" + GET),
    "underscore": (400, "ambiguous_header", head(b"X_Real-Ip: 1", b"x-real_ip: 2")),
    "underscore-twin": (400, "ambiguous_header", head(b"content_length: 3", LENGTH)),
    "expect": (417, "expectation_not_supported", head(LENGTH, b"Expect: more")),
    "path-slash": (400, "invalid_path", path(b"/a%2Fb")),
    "path-slash-small": (400, "invalid_path", path(b"/a%2fb")),
    "path-slash-twice": (400, "invalid_path", path(b"/a%252fb")),
    "path-backslash": (400, "invalid_path", path(b"/a\\b")),
    "path-backslash-hidden": (400, "invalid_path", path(b"/a%5Cb")),
    "path-nul": (400, "invalid_path", path(b"/a%00")),
    "path-control": (400, "invalid_path", path(b"/a%0d%0ab")),
    "path-dot": (400, "invalid_path", path(b"/a/./b")),
    "path-dots": (400, "invalid_path", path(b"/a/..")),
    "path-dots-hidden": (400, "invalid_path", path(b"/a/%2e%2E/b")),
    "path-dots-twice": (400, "invalid_path", path(b"/a/%252e%252e/b")),
    "path-dots-parameter": (400, "invalid_path", path(b"/a/..;x/b")),
    "path-empty": (400, "invalid_path", path(b"/a//b")),
    "path-empty-first": (400, "invalid_path", path(b"//h/a")),
    "path-fragment": (400, "invalid_path", path(b"/a#b")),
    "path-escape": (400, "invalid_path", path(b"/a%zz")),
    "path-escape-cut": (400, "invalid_path", path(b"/a%2")),
    "path-bytes": (400, "invalid_path", path(b"/a%ff")),
    "path-raw-bytes": (400, "invalid_request", path(b"/\xc3\xa4")),
    "path-asterisk": (400, "invalid_path", head(first=b"OPTIONS * HTTP/1.1")),
    "path-relative": (400, "invalid_path", path(b"a")),
    "chunk-size": (400, "invalid_framing", head(CODING) + b"g\r\n"),
    "chunk-size-signed": (400, "invalid_framing", head(CODING) + b"+3\r\nabc\r\n"),
    "chunk-size-0x": (400, "invalid_framing", head(CODING) + b"0x3\r\nabc\r\n"),
    "chunk-size-huge": (400, "invalid_framing", head(CODING) + b"f" * 17 + b"\r\n"),
    "chunk-size-lf": (400, "invalid_framing", head(CODING) + b"3\nabc\r\n0\r\n\r\n"),
    "chunk-too-long": (400, "invalid_framing", head(CODING) + b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk-end-lf": (400, "invalid_framing", head(CODING) + b"3\r\nabc\n0\r\n\r\n"),
    "chunk-extension-endless": (400, "invalid_framing", head(CODING) + b"3;" + b"x" * 300),
    "chunk-trailer": (400, "invalid_framing", head(CODING) + b"0\r\nbad trailer\r\n\r\n"),
    "chunk-trailer-endless": (400, "invalid_framing", head(CODING) + b"0\r\n" + b"a: b\r\n" * 2000),
}


@pytest.mark.parametrize(("status", "code", "request_"), REFUSED.values(), ids=list(REFUSED))
async def test_what_is_outside_the_grammar_is_refused(
    site: Site, status: int, code: str, request_: bytes
) -> None:
    assert site.edge is not None
    before = site.edge.refused.get(code, 0)
    client = await site.client()
    client.send(request_)
    answer = await client.answer()
    assert (status, code) == (answer.status, answer.code)
    assert "application/json" == answer.headers["content-type"]
    assert "close" == answer.headers["connection"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert {"message", "type", "param", "code", "request_id"} == set(
        json.loads(answer.body)["error"]
    )
    assert site.edge.refused[code] > before
    client.send(GET)
    assert b"" == await client.rest()


ACCEPTED = {
    "absolute": head(first=b"GET http://H/v1/x HTTP/1.1"),
    "host-port": head(host=b"Host: passy.test:8080", first=b"GET /v1/x HTTP/1.1"),
    "host-v6": head(host=b"Host: [::1]:8080", first=b"GET /v1/x HTTP/1.1"),
    "path-plain": path(b"/v1/x"),
    "path-escaped": path(b"/v1/%78"),
    "empty-line": b"\r\n" + GET,
    "underscore": head(b"a_b: c", first=b"GET /v1/x HTTP/1.1"),
    "obs-text": head(b"A: \xc3\xa4", first=b"GET /v1/x HTTP/1.1"),
    "query": path(b"/v1/x?a=//../%2f%00"),
}


@pytest.mark.parametrize("request_", ACCEPTED.values(), ids=list(ACCEPTED))
async def test_what_is_unusual_but_right_is_served(site: Site, request_: bytes) -> None:
    for _ in range(2):  # the second time the lines are remembered
        answer = await site.ask(request_)
        assert (200, "/v1/x") == (answer.status, json.loads(answer.body)["path"])


async def test_a_line_refused_once_is_refused_again(site: Site) -> None:
    for _ in range(3):
        assert 400 == (await site.ask(REFUSED["upgrade"][2])).status
        assert 400 == (await site.ask(REFUSED["host-path"][2])).status
        assert 200 == (await site.ask(GET)).status


def limit_of(limits: EdgeLimits, name: str) -> int:
    return {"url": limits.head.target, "headers": limits.head.fields, "head": limits.head.head}[
        name
    ]


def sized(name: str, size: int) -> bytes:
    """A request whose ``name`` measures exactly ``size``."""
    if name == "url":
        return path(b"/".ljust(size, b"a"))
    if name == "headers":
        return head(*[b"A: b"] * (size - 1), first=b"GET / HTTP/1.1")
    empty = head(b"A: ", first=b"GET / HTTP/1.1")
    return head(b"A: " + b"b" * (size - len(empty)), first=b"GET / HTTP/1.1")


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("url", 414, "url_too_long"),
        ("headers", 431, "too_many_headers"),
        ("head", 431, "headers_too_large"),
    ],
)
async def test_the_caps_of_a_head_hold_to_the_byte(
    site: Site, name: str, status: int, code: str
) -> None:
    cap = limit_of(EdgeLimits(), name)
    assert 200 == (await site.ask(sized(name, cap - 1))).status
    assert 200 == (await site.ask(sized(name, cap))).status
    answer = await site.ask(sized(name, cap + 1))
    assert (status, code) == (answer.status, answer.code)


async def test_a_head_without_end_is_refused_before_it_ends(site: Site) -> None:
    assert 414 == (await site.ask(b"GET /" + b"a" * 9000)).status
    assert 431 == (await site.ask(b"GET / HTTP/1.1\r\nA: " + b"a" * 33_000)).status


async def test_the_cap_of_the_body_holds_to_the_byte_for_both_framings() -> None:
    async with serving(direct_app, EdgeLimits(body_bytes=1000)) as site:
        for wrap in (post, chunked):
            assert 200 == (await site.ask(wrap(b"x" * 999))).status
            assert 200 == (await site.ask(wrap(b"x" * 1000))).status
            answer = await site.ask(wrap(b"x" * 1001))
            assert (413, "request_too_large") == (answer.status, answer.code)


async def capped_app(scope: Scope, receive: Any, send: Any) -> None:
    downstream: Downstream = scope["extensions"][EXTENSION]
    try:
        if scope["path"] == "/pieces":
            length = len(b"".join([piece async for piece in downstream.pieces(1000)]))
        else:
            length = len(await downstream.body(1000))
        status, answer = 200, b"%d" % length
    except BodyTooLarge as error:
        status, answer = 413, b"%d" % error.limit
    except BodyTimeout:
        status, answer = 408, b"slow"
    downstream.start(status, [(b"content-length", b"%d" % len(answer))])
    downstream.finish(answer)


@pytest.mark.parametrize("where", [b"/body", b"/pieces"])
async def test_the_cap_of_the_application_holds_to_the_byte_for_both_framings(where: bytes) -> None:
    async with serving(capped_app) as site:
        for wrap in (post, chunked):
            for size, status in ((999, 200), (1000, 200), (1001, 413), (5_000_000, 413)):
                answer = await site.ask(wrap(b"x" * size).replace(b"/v1/x", where))
                assert (status, b"%d" % min(size, 1000)) == (answer.status, answer.body)


async def test_a_body_announced_too_long_is_refused_without_asking_for_it() -> None:
    async with serving(capped_app) as site:
        client = await site.client()
        client.send(head(b"Content-Length: 1001", b"Expect: 100-continue"))
        answer = await client.answer()
        assert (413, "close") == (answer.status, answer.headers["connection"])
        assert b"" == await client.rest()


class Script:
    """An application made of one function over a Downstream, which tells what happened to it."""

    def __init__(self, play: Callable[[Downstream, Script], Awaitable[None]]) -> None:
        self.play = play
        self.happened: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        downstream: Downstream = scope["extensions"][EXTENSION]
        try:
            await self.play(downstream, self)
        except ClientGone:
            self.tell("client gone")

    def tell(self, what: str) -> None:
        self.happened.put_nowait(what)

    async def told(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return await self.happened.get()


async def upload(downstream: Downstream, script: Script) -> None:
    downstream.watch(lambda: script.tell("hang-up"))
    script.tell("reading")
    await downstream.body(1 << 30)


async def think(downstream: Downstream, script: Script) -> None:
    await downstream.body(1 << 30)
    left = asyncio.Event()
    downstream.watch(lambda: (script.tell("hang-up"), left.set())[1])
    script.tell("thinking")
    await left.wait()
    assert downstream.gone
    assert not downstream.write(b"to nobody")
    await downstream.drain()


async def stream(downstream: Downstream, script: Script) -> None:
    left = asyncio.Event()
    downstream.watch(lambda: (script.tell("hang-up"), left.set())[1])
    downstream.start(200, [])
    downstream.write(b"data: 1\n\n")
    script.tell("streaming")
    await left.wait()
    await downstream.drain()


@pytest.mark.parametrize("way", ["fin", "rst", "half"])
@pytest.mark.parametrize(
    ("play", "request_", "reached"),
    [
        (upload, post(b"x" * 10)[:-5], "reading"),
        (upload, chunked(b"x" * 10)[:-8], "reading"),
        (think, GET, "thinking"),
        (think, post(b"x" * 10), "thinking"),
        (stream, GET, "streaming"),
    ],
    ids=["uploading", "uploading-chunks", "before-head", "before-head-post", "streaming"],
)
async def test_a_hang_up_is_told_once_in_every_window(
    play: Callable[[Downstream, Script], Awaitable[None]], request_: bytes, reached: str, way: str
) -> None:
    script = Script(play)
    async with serving(script) as site:
        client = await site.client()
        client.send(request_)
        assert reached == await script.told()
        if way == "fin":
            client.writer.close()
        elif way == "rst":
            client.reset()
        else:
            client.writer.write_eof()
        assert "hang-up" == await script.told()
        assert "client gone" == await script.told()
        assert script.happened.empty()
    assert not site.server.server_state.tasks
    assert not site.server.server_state.connections


async def test_a_watch_set_after_the_client_left_is_called_at_once() -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        script.tell("running")
        await until(lambda: downstream.gone)
        downstream.watch(None)
        downstream.watch(lambda: script.tell("hang-up"))

    script = Script(play)
    async with serving(script) as site:
        client = await site.client()
        client.send(GET)
        assert "running" == await script.told()
        client.writer.close()
        assert "hang-up" == await script.told()


async def test_asgi_receive_tells_of_a_hang_up() -> None:
    script = Script(upload)

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await read_all(receive)
        script.tell("read")
        script.tell((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"to nobody"})

    async with serving(app) as site:
        client = await site.client()
        client.send(post(b"x"))
        assert "read" == await script.told()
        client.reset()
        assert "http.disconnect" == await script.told()


async def endless(downstream: Downstream, script: Script) -> None:
    """Streams for ever, with the rule of `drain` kept; tells the sum when held up."""
    downstream.start(200, [])
    sent = 0
    while sent < 1 << 30:
        sent += 10_000
        if not downstream.write(b"x" * 10_000):
            script.tell(f"{sent}")
            await downstream.drain()


async def test_a_client_that_does_not_read_holds_up_the_application_and_is_cut() -> None:
    script = Script(endless)
    async with serving(script, EdgeLimits(write_timeout=0.4)) as site:
        client = await site.client()
        client.writer.transport.pause_reading()
        client.send(GET)
        held_at = int(await script.told())
        assert held_at < 32 << 20  # sockets of the loopback device buffer some megabytes
        while "client gone" != await script.told():
            pass
        client.writer.transport.resume_reading()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()


async def test_a_client_that_does_not_read_is_cut_although_the_rest_of_its_body_comes() -> None:
    script = Script(endless)
    async with serving(script, EdgeLimits(write_timeout=0.4)) as site:
        client = await site.client()
        client.writer.transport.pause_reading()
        client.send(post(b"xx")[:-1])
        assert int(await script.told()) < 32 << 20
        client.send(b"x")
        while "client gone" != await script.told():
            pass


async def test_no_request_begins_before_the_client_has_taken_the_answer_before() -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        script.tell("begun")
        downstream.start(200, [(b"content-length", b"%d" % (32 << 20))])
        downstream.finish(bytes(32 << 20))

    script = Script(play)
    async with serving(script, EdgeLimits(write_timeout=0.4)) as site:
        for first in (post(b"xx")[:-1], post(b"xx")):
            client = await site.client()
            client.writer.transport.pause_reading()
            client.send(first)
            assert "begun" == await script.told()
            client.send((b"x" if first[-2:] != b"xx" else b"") + GET)
            await until(lambda: site.edge is not None and site.edge.open == 0)
            assert script.happened.empty()


# What is held until the end of a turn.


def the_one(site: Site) -> Connection:
    assert site.edge is not None
    (connection,) = site.edge._connections
    return connection


def in_a_busy_turn(then: Callable[[Connection], None]) -> Script:
    """Answers with the body it is sent while others were answered in the same turn; ``then`` is
    called with the connection, which holds the answer."""

    async def play(downstream: Downstream, script: Script) -> None:
        body = await downstream.body(1 << 30)
        connection: Connection = downstream._connection  # type: ignore[attr-defined]
        be_busy()
        downstream.whole(200, [], body)
        script.tell(connection.held[-2:].decode())
        then(connection)
        script.tell("holds" if connection.held else "holds nothing")

    return Script(play)


async def test_an_answer_may_wait_for_the_end_of_the_turn() -> None:
    script = in_a_busy_turn(lambda connection: None)
    async with serving(script) as site:
        client = await site.client()
        for body in (b"12", b"34"):
            client.send(post(body))
            assert body == (await client.answer()).body
            assert [body.decode(), "holds"] == [await script.told() for _ in range(2)]
        assert the_one(site).held == b""


@pytest.mark.parametrize("close", [Connection.close, Connection.shutdown, Connection.eof_received])
async def test_an_answer_that_waits_goes_out_before_the_connection_closes(
    close: Callable[[Connection], None],
) -> None:
    def then(connection: Connection) -> None:
        close(connection)
        connection.transport.close()

    script = in_a_busy_turn(then)
    async with serving(script) as site:
        client = await site.client()
        client.send(post(b"12"))
        assert b"12" == (await client.answer()).body
        assert b"" == await client.rest()
        assert ["12", "holds nothing"] == [await script.told() for _ in range(2)]


async def test_the_next_request_lets_the_answer_before_it_go_first() -> None:
    left = [b"34"]

    def then(connection: Connection) -> None:
        if left:
            connection.data_received(post(left.pop()))

    script = in_a_busy_turn(then)
    async with serving(script) as site:
        client = await site.client()
        client.send(post(b"12"))
        assert [b"12", b"34"] == [(await client.answer()).body for _ in range(2)]
        assert ["12", "holds nothing"] == [await script.told() for _ in range(2)]


async def test_a_refusal_lets_the_answer_before_it_go_first() -> None:
    script = in_a_busy_turn(lambda connection: connection.data_received(b"what is this\r\n\r\n"))
    async with serving(script) as site:
        client = await site.client()
        client.send(post(b"12"))
        assert b"12" == (await client.answer()).body
        assert 400 == (await client.answer()).status


async def test_a_client_that_does_not_take_what_was_held_gets_no_further() -> None:
    script = in_a_busy_turn(lambda connection: None)
    body = b"x" * 16_000
    async with serving(script) as site:
        client = await site.client()
        client.writer.transport.pause_reading()
        client.send(post(body))
        assert "xx" == await script.told()
        assert "holds" == await script.told()
        connection, asked = the_one(site), 1
        while not connection.paused_writing:
            client.send(post(body))
            asked += 1
            assert ["xx", "holds"] == [await script.told() for _ in range(2)]
            await asyncio.sleep(0)  # the end of that turn
        client.send(post(b"12") + post(b"34"))
        await asyncio.sleep(0.05)
        assert script.happened.empty()
        client.writer.transport.resume_reading()
        for _ in range(asked):
            assert body == (await client.answer()).body
        assert [b"12", b"34"] == [(await client.answer()).body for _ in range(2)]


async def test_a_client_that_leaves_is_sent_nothing_of_what_was_held() -> None:
    script = in_a_busy_turn(lambda connection: connection.transport.abort())
    async with serving(script) as site:
        client = await site.client()
        client.send(post(b"12"))
        await script.told()
        assert b"" == await client.rest()
        assert site.edge is not None
        await until(lambda: site.edge is not None and site.edge.open == 0)


async def test_a_slow_client_that_reads_on_is_not_cut() -> None:
    size = 24 << 20

    async def play(downstream: Downstream, script: Script) -> None:
        downstream.start(200, [(b"content-length", b"%d" % size)])
        for _ in range(23):
            if not downstream.write(b"x" * (1 << 20)):
                await downstream.drain()
        downstream.finish(b"x" * (1 << 20))
        script.tell("sent")

    script = Script(play)
    async with serving(script, EdgeLimits(write_timeout=0.5)) as site:
        client = await site.client()
        client.send(GET + GET)
        await client.reader.readuntil(b"\r\n\r\n")
        received = 0
        async with asyncio.timeout(PATIENCE):
            while received < size:
                received += len(await client.reader.read(min(1 << 20, size - received)))
                await asyncio.sleep(0.02)
        assert "sent" == await script.told()
        assert size == len((await client.answer()).body)


async def test_a_head_that_drips_is_refused_in_time() -> None:
    async with serving(direct_app, EdgeLimits(header_timeout=0.4)) as site:
        client = await site.client()
        drip = asyncio.create_task(dripping(client, b"GET / HTTP/1.1\r\nA: " + b"b" * 100_000))
        answer = await client.answer()
        drip.cancel()
        assert (408, "request_timeout") == (answer.status, answer.code)


async def dripping(client: Client, data: bytes) -> None:
    for byte in data:
        client.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with serving(direct_app, EdgeLimits(header_timeout=0.3, keep_alive=0.3)) as site:
        silent, idle = await site.client(), await site.client()
        idle.send(GET)
        await idle.answer()
        assert b"" == await silent.rest()
        assert b"" == await idle.rest()


@pytest.mark.crossed("anyio_backend", "where")
@pytest.mark.parametrize("where", [b"/body", b"/pieces"])
async def test_a_body_that_comes_too_slowly_is_a_timeout(where: bytes) -> None:
    async with serving(capped_app, EdgeLimits(body_grace=0.3)) as site:
        client = await site.client()
        client.send(post(b"x" * 900, path=where)[:-1])
        answer = await client.answer()
        assert (408, b"slow", "close") == (
            answer.status,
            answer.body,
            answer.headers["connection"],
        )


async def test_a_body_that_keeps_the_rate_may_take_long() -> None:
    async with serving(capped_app, EdgeLimits(body_grace=0.2, body_rate=10.0)) as site:
        client = await site.client()
        request = post(b"x" * 100)
        client.send(request[:-100])
        for _ in range(10):
            client.send(b"x" * 10)
            await asyncio.sleep(0.1)
        assert (200, b"100") == ((answer := await client.answer()).status, answer.body)


async def test_a_slow_body_ends_a_plain_asgi_application_with_408() -> None:
    async def app(scope: Scope, receive: Any, send: Any) -> None:
        with contextlib.suppress(ClientGone):
            await read_all(receive)

    async with serving(app, EdgeLimits(body_grace=0.3)) as site:
        answer = await site.ask(post(b"xx")[:-1])
        assert (408, "request_body_timeout") == (answer.status, answer.code)


async def early(downstream: Downstream, script: Script) -> None:
    """Answers without looking at the body."""
    downstream.start(401, [(b"content-length", b"2")])
    downstream.finish(b"no")


async def test_after_an_early_answer_a_short_body_is_dropped_and_the_connection_kept() -> None:
    async with serving(Script(early)) as site:
        client = await site.client()
        request = post(b"GET /evil HTTP/1.1\r\nHost: h\r\n\r\n")
        client.send(request[:-20])
        answer = await client.answer()
        assert (401, None) == (answer.status, answer.headers.get("connection"))
        client.send(request[-20:] + GET)
        assert 401 == (await client.answer()).status


@pytest.mark.parametrize("request_", [post(b"x" * 20_000_000), chunked(b"x" * 20_000_000)])
async def test_after_an_early_answer_a_long_body_is_not_awaited(request_: bytes) -> None:
    async with serving(Script(early)) as site:
        for _ in range(5):
            client = await site.client()
            client.send(request_[:1000])
            answer = await client.answer()
            assert (401, b"no", "close") == (
                answer.status,
                answer.body,
                answer.headers["connection"],
            )
            client.send(request_[1000:])
            assert b"" == await client.rest()


async def test_after_an_early_answer_a_body_that_never_ends_is_given_up() -> None:
    async with serving(Script(early), EdgeLimits(rest_timeout=0.3)) as site:
        client = await site.client()
        client.send(post(b"xx")[:-1])
        assert 401 == (await client.answer()).status
        assert b"" == await client.rest()


async def test_early_answers_to_awaited_100_continue_end_the_connection() -> None:
    async with serving(Script(early)) as site:
        client = await site.client()
        client.send(head(b"Content-Length: 5", b"Expect: 100-continue"))
        answer = await client.answer()
        assert (401, "close") == (answer.status, answer.headers["connection"])


async def test_an_upload_nobody_reads_is_not_buffered() -> None:
    go = asyncio.Event()

    async def play(downstream: Downstream, script: Script) -> None:
        script.tell("waiting")
        await go.wait()
        total = 0
        async for piece in downstream.pieces(1 << 30):
            total += len(piece)
        script.tell(f"{total}")
        downstream.start(204, [])
        downstream.finish()

    script = Script(play)
    async with serving(script) as site:
        client = await site.client()
        client.send(post(b"x" * (64 << 20)))
        assert "waiting" == await script.told()
        (connection,) = site.server.server_state.connections
        assert isinstance(connection, Connection)
        await until(lambda: connection.paused_reading)
        assert connection.cycle is not None
        assert connection.cycle.buffered < 1 << 20
        go.set()
        assert f"{64 << 20}" == await script.told()
        assert 204 == (await client.answer()).status


async def test_pipelined_requests_wait_in_a_bounded_buffer() -> None:
    go = asyncio.Event()

    async def play(downstream: Downstream, script: Script) -> None:
        await go.wait()
        await early(downstream, script)

    async with serving(Script(play)) as site:
        client = await site.client()
        client.send(GET * 20_000)
        await until(lambda: bool(site.server.server_state.connections))
        (connection,) = site.server.server_state.connections
        assert isinstance(connection, Connection)
        await until(lambda: connection.paused_reading)
        assert len(connection.buffer) < 1 << 20
        go.set()
        for _ in range(2000):
            assert 401 == (await client.answer()).status


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_gets_none(status: int) -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        downstream.start(status, [])
        downstream.finish(b"body")

    async with serving(Script(play)) as site:
        client = await site.client()
        client.send(GET + GET)
        for _ in range(2):
            answer = await client.answer()
            assert status == answer.status
            assert not {"content-length", "transfer-encoding"} & set(answer.headers)


@pytest.mark.parametrize("status", [204, 304])
async def test_a_whole_answer_without_a_body_tells_no_length(status: int) -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        downstream.whole(status, [(b"etag", b"x")], b"")

    async with serving(Script(play)) as site:
        client = await site.client()
        client.send(GET + GET)
        for _ in range(2):
            answer = await client.answer()
            assert (status, "x") == (answer.status, answer.headers["etag"])
            assert "content-length" not in answer.headers


async def test_large_pieces_and_empty_ones_are_framed_alike() -> None:
    pieces = [b"", b"a", b"", b"b" * 100_000, b"c" * 300_000]

    async def play(downstream: Downstream, script: Script) -> None:
        downstream.start(200, [(b"transfer-encoding", b"chunked"), (b"x-a", b"b")])
        for piece in pieces[:-1]:
            if not downstream.write(piece):
                await downstream.drain()
        downstream.finish(pieces[-1])
        assert downstream.settle() is None

    async with serving(Script(play)) as site:
        answer = await site.ask(GET)
        assert (b"".join(pieces), "b") == (answer.body, answer.headers["x-a"])


@pytest.mark.parametrize(
    "header", [(b"x", b"a\r\nb: c"), (b"x", b"a\nb"), (b"x\r", b""), (b"x", b"\0")]
)
async def test_a_header_cannot_be_smuggled_into_an_answer(header: tuple[bytes, bytes]) -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        downstream.start(200, [header])

    async with serving(Script(play)) as site:
        answer = await site.ask(GET)
        assert (500, "internal_error") == (answer.status, answer.code)


async def test_a_failure_before_the_head_is_a_500_and_after_it_a_cut() -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        downstream.start(200, [])
        if script.happened.empty():
            script.tell("first")
        else:
            downstream.write(b"partial")
            await asyncio.sleep(0)
        raise ZeroDivisionError

    async with serving(Script(play)) as site:
        first = await site.ask(GET)
        assert (500, "internal_error") == (first.status, first.code)
        assert b"Zero" not in first.body
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await site.ask(GET)


async def test_an_aborted_answer_does_not_look_complete() -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        downstream.start(200, [])
        downstream.write(b"partial")
        downstream.abort()

    async with serving(Script(play)) as site:
        for request in (GET, GET.replace(b"1.1", b"1.0")):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await site.ask(request)


async def test_at_shutdown_idle_connections_close_and_busy_ones_finish() -> None:
    go = asyncio.Event()

    async def play(downstream: Downstream, script: Script) -> None:
        script.tell("running")
        await go.wait()
        await early(downstream, script)

    script = Script(play)
    async with serving(script) as site:
        idle, busy = await site.client(), await site.client()
        busy.send(GET)
        assert "running" == await script.told()
        site.server.should_exit = True
        assert b"" == await idle.rest()
        go.set()
        answer = await busy.answer()
        assert (401, "close") == (answer.status, answer.headers["connection"])
        assert b"" == await busy.rest()


async def test_while_draining_every_answer_asks_to_close() -> None:
    async with serving(Script(early)) as site:
        assert site.edge is not None
        client = await site.client()
        client.send(GET)
        assert "connection" not in (await client.answer()).headers
        site.edge.draining = True
        client.send(GET)
        assert "close" == (await client.answer()).headers["connection"]
        assert b"" == await client.rest()


async def test_connections_of_one_address_are_capped() -> None:
    async with serving(Script(early), EdgeLimits(connections_per_ip=2)) as site:
        first, second = await site.client(), await site.client()
        first.send(GET)
        second.send(GET)
        assert [401, 401] == [(await first.answer()).status, (await second.answer()).status]
        answer = await (await site.client()).answer()
        assert (503, "too_many_connections", "1") == (
            answer.status,
            answer.code,
            answer.headers["retry-after"],
        )
        first.writer.close()
        await until(lambda: len(site.server.server_state.connections) < 3)
        assert 401 == (await site.ask(GET)).status


async def test_the_limit_of_concurrent_requests_holds() -> None:
    go = asyncio.Event()

    async def play(downstream: Downstream, script: Script) -> None:
        script.tell("running")
        await go.wait()
        await early(downstream, script)

    script = Script(play)
    async with serving(script) as site:
        assert site.edge is not None
        site.edge.most_requests = 1
        client = await site.client()
        client.send(GET)
        assert "running" == await script.told()
        answer = await site.ask(GET)
        assert (503, "overloaded") == (answer.status, answer.code)
        go.set()
        assert 401 == (await client.answer()).status


async def test_requests_are_counted_for_uvicorn(site: Site) -> None:
    before = site.server.server_state.total_requests
    await site.ask(GET)
    assert before + 1 == site.server.server_state.total_requests


async def test_reading_on_after_the_client_left_says_so() -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        async for _ in downstream.pieces(1 << 20):
            script.tell("piece")
            await until(lambda: downstream.gone)

    script = Script(play)
    async with serving(script) as site:
        client = await site.client()
        client.send(post(b"x" * 10)[:-5])
        assert "piece" == await script.told()
        client.writer.close()
        assert "client gone" == await script.told()


async def test_a_client_that_was_not_asked_for_its_body_is_not_slow() -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        await asyncio.sleep(0.6)  # three times the grace
        await capped_app({"path": "/", "extensions": {EXTENSION: downstream}}, None, None)

    async with serving(Script(play), EdgeLimits(body_grace=0.2)) as site:
        client = await site.client()
        client.send(head(b"Content-Length: 2", b"Expect: 100-continue"))
        assert 100 == (await client.answer()).status
        client.send(b"ok")
        answer = await client.answer()
        assert (200, b"2") == (answer.status, answer.body)


async def test_a_shutdown_waits_for_a_client_that_still_reads() -> None:
    size = 16 << 20

    async def play(downstream: Downstream, script: Script) -> None:
        downstream.start(200, [(b"content-length", b"%d" % size)])
        downstream.finish(b"x" * size)
        script.tell("sent")

    script = Script(play)
    async with serving(script) as site:
        client = await site.client()
        client.send(GET)
        assert "sent" == await script.told()
        site.server.should_exit = True
        await until(lambda: not site.server.servers[0].is_serving())
        assert size == len((await client.answer()).body)
        assert b"" == await client.rest()


async def test_tls_is_served_alike(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    settings = {"ssl_certfile": certificate, "ssl_keyfile": certificate}
    trust = ssl.create_default_context(cafile=str(certificate))
    script = Script(think)

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        assert "https" == scope["scheme"]
        await (script if scope["path"] == "/think" else direct_app)(scope, receive, send)

    async with serving(app, **settings) as site:
        client = Client(
            *await asyncio.open_connection(
                "127.0.0.1", site.port, ssl=trust, server_hostname="localhost"
            )
        )
        client.send(post(b"\x01" * 100_000) + chunked(b"\x01" * 3))
        assert 100_000 == json.loads((await client.answer()).body)["sum"]
        assert 3 == json.loads((await client.answer()).body)["sum"]
        client.send(GET.replace(b"/v1/x", b"/think"))
        assert "thinking" == await script.told()
        client.writer.close()
        assert "hang-up" == await script.told()
        assert "client gone" == await script.told()


def self_signed(folder: Path) -> Path:
    """A key and a certificate for localhost, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "localhost.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    return path


async def refusing(site: Site) -> None:
    assert site.edge is not None
    site.edge.most_requests = 0


async def test_a_refusal_for_want_of_room_keeps_the_connection_of_who_sent_all() -> None:
    async with serving(Script(early)) as site:
        await refusing(site)
        client = await site.client()
        for _ in range(3):
            client.send(post(b"body"))
            answer = await client.answer()
            assert (503, "overloaded") == (answer.status, answer.code)
            assert ("1", "keep-alive") == (
                answer.headers["retry-after"],
                answer.headers["connection"],
            )
        assert site.edge is not None
        site.edge.most_requests = 10
        client.send(GET)
        assert 401 == (await client.answer()).status
        assert {"overloaded": 3} == site.edge.refused


@pytest.mark.parametrize(
    "request_",
    [
        post(b"body")[:-1],
        b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.0\r\nhost: x\r\n\r\n",
        GET + GET,
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["part", "HEAD", "1.0", "pipelined", "chunked"],
)
async def test_it_ends_the_connection_of_others(request_: bytes) -> None:
    async with serving(Script(early)) as site:
        await refusing(site)
        client = await site.client()
        client.send(request_)
        told = await client.rest()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close\r\n" in told


async def test_health_is_told_whatever_the_load() -> None:
    async with serving(Script(early)) as site:
        await refusing(site)
        assert site.edge is not None
        site.edge.spared = frozenset(("/livez",))
        assert 401 == (await site.ask(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")).status
        posted = await site.ask(post(b"x", path=b"/livez"))
        assert 503 == posted.status
        site.edge.most_requests, site.edge.most_connections = 10, 1
        first = await site.client()
        first.send(GET)
        await first.answer()
        # One connection too many: it has a moment to ask for health.
        assert 401 == (await site.ask(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")).status
        assert (503, "overloaded") == ((answer := await site.ask(GET)).status, answer.code)
        began = asyncio.get_running_loop().time()
        assert b"" == await (await site.client()).rest()
        assert asyncio.get_running_loop().time() - began < 20


async def test_far_too_many_connections_are_cut_and_idle_ones_closed() -> None:
    async with serving(Script(early)) as site:
        assert site.edge is not None
        kept = await site.client()
        kept.send(GET)
        await kept.answer()
        site.edge.most_connections = 0
        clients = [await site.client() for _ in range(40)]
        await until(lambda: site.edge is not None and site.edge.open <= 33)
        for client in clients:
            client.writer.close()
        site.edge.close_idle()
        assert b"" == await kept.rest()


async def test_a_body_there_is_no_room_for_is_refused_and_what_it_held_is_free() -> None:
    async def play(downstream: Downstream, script: Script) -> None:
        await downstream.body(1 << 30)
        await early(downstream, script)

    async with serving(Script(play)) as site:
        edge_ = site.edge
        assert edge_ is not None
        edge_.most_held = 300_000
        answer = await site.ask(post(b"x" * 2_000_000))
        assert (503, "overloaded") == (answer.status, answer.code)
        await until(lambda: edge_.held == 0)
        assert 401 == (await site.ask(post(b"x" * 200_000))).status
        assert 0 == edge_.held


async def test_what_a_body_held_is_free_also_if_it_was_refused_with_its_head() -> None:
    async with serving(Script(early)) as site:
        assert site.edge is not None
        for bad, status in ((b"ffffffffff\r\n", 413), (b"x\r\n", 400)):
            request = chunked(b"x" * 50_000).removesuffix(b"0\r\n\r\n") + bad
            client = await site.client()
            client.send(request)
            assert status == (await client.answer()).status
            assert 0 == site.edge.held


def test_who_has_one_address_of_ipv6_has_them_all() -> None:
    assert _network("2001:db8::1") == _network("2001:db8::ffff:2")
    assert _network("2001:db8::1") != _network("2001:db8:0:1::1")
    assert "::ffff:1.2.3.4" == _network("::ffff:1.2.3.4")
    assert _network("fe80::1%eth0") == _network("fe80::2")
