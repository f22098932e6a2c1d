"""The edge's parser, with h11 as a second opinion.

Whatever the edge lets through, h11 must read from the same bytes too: method, target, headers,
body, and as many requests. What the edge refuses is its own business, but it must refuse with a
whole answer. Where the two differ on purpose:

- one empty line before a request is overlooked here, and refused by h11;
- an absolute target is taken apart here (its authority equals Host), and an empty query dropped;
- h11 writes the value of Transfer-Encoding in lower case;
- what Connection names may be left out here;
- repeated Connection lines and HTTP/1.0 bodies mean the same to both, or are refused here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

import h11

from passy_proxy.cycle import Cycle
from passy_proxy.downstream import BodyTimeout, BodyTooLarge, ClientGone
from passy_proxy.edge import Edge
from passy_proxy.framing import RequestHead

WORDS = ("http", "desync", "request", "head", "auth", "size", "path")
SEEDS = (
    b"\0GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
    b"\0POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 2\r\n\r\n{}"
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"\3POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\1POST http://a/x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx",
    b"\0POST / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc",
    b"\0\r\nOPTIONS * HTTP/1.1\r\nhost: [::1]\r\nx_y: 1\r\nx-y: 2\r\n\r\n",
    b"\0POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
)
LIMIT = 1 << 20


class Seen(NamedTuple):
    """One request, as one of the two read it."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.told = bytearray()
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 5) if name in ("peername", "sockname") else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: Any) -> None:
        self.told += data

    def writelines(self, parts: Any) -> None:
        self.told += b"".join(parts)

    def close(self) -> None:
        self.closing = True

    abort = close

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def can_write_eof(self) -> bool:
        return False


class App:
    """Reads every request to its end, and says so."""

    def __init__(self) -> None:
        self.seen: list[tuple[RequestHead, bytes]] = []

    async def answer(self, head: RequestHead, cycle: Cycle) -> None:
        try:
            body = await cycle.body(LIMIT)
        except (ClientGone, BodyTooLarge, BodyTimeout):
            return
        self.seen.append((head, body))
        cycle.whole(200, [], b"ok")


class Config:
    loaded = True
    limit_concurrency = None
    root_path = ""

    def __init__(self, app: App) -> None:
        self.loaded_app = app


class State:
    def __init__(self) -> None:
        self.tasks: set[Any] = set()
        self.connections: set[Any] = set()
        self.total_requests = 0
        self.default_headers: list[tuple[bytes, bytes]] = []


_loop = asyncio.new_event_loop()
logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def turns(number: int) -> None:
    """Let the loop run that often."""
    for _ in range(number):
        _loop.call_soon(_loop.stop)
        _loop.run_forever()


def check(data: bytes) -> None:
    """The first byte says how the rest arrives: 0 in one piece, else in pieces of that many."""
    if len(data) < 2:
        return
    step, data = data[0] or len(data), data[1:]
    app, wire, state = App(), Wire(), State()
    connection = Edge()(Config(app), state, {}, _loop)  # type: ignore[arg-type]
    connection.connection_made(wire)
    for at in range(0, len(data), step):
        if wire.closing:
            break
        connection.data_received(data[at : at + step])
        turns(2)
    left = -1
    while left != len(app.seen):
        left = len(app.seen)
        turns(3)
    connection.connection_lost(None)
    turns(3)
    assert not state.tasks, "a request is left in the air"
    seen = [as_seen(head, body) for head, body in app.seen]
    theirs = read(data, len(seen))
    assert [*map(unnamed, seen)] == [*map(unnamed, theirs)], f"\nedge: {seen}\nh11:  {theirs}"
    check_answers(bytes(wire.told), [one.method for one in seen])


def as_seen(head: RequestHead, body: bytes) -> Seen:
    line = head.line
    target = line.raw_path + (b"?" + line.query if line.query else b"")
    headers = [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in head.headers]
    return Seen(line.method.encode(), target, headers, body)


def unnamed(one: Seen) -> Seen:
    """Without the headers that Connection names."""
    told = b",".join(value for name, value in one.headers if name == b"connection").lower()
    named = {name.strip(b" \t") for name in told.split(b",")}
    return one._replace(headers=[pair for pair in one.headers if pair[0] not in named])


def read(data: bytes, number: int) -> list[Seen]:
    """The first so many requests in ``data``, as h11 reads them."""
    found: list[Seen] = []
    while len(found) < number:
        data = data.removeprefix(b"\r\n")
        wire = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT)
        wire.receive_data(data)
        request, body = None, b""
        while True:
            event = wire.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
        assert request is not None, f"h11 sees no request in {data!r}"
        assert isinstance(event, h11.EndOfMessage), f"h11 waits for more after {data!r}"
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        found.append(Seen(request.method, plain(request.target), headers, body))
        data = wire.trailing_data[0]
    return found


def plain(target: bytes) -> bytes:
    """A target as the edge has it: a path, and a query that says something."""
    for scheme in (b"http://", b"https://"):
        if target[: len(scheme)].lower() == scheme:
            rest = target[len(scheme) :]
            at = min((rest.find(c) for c in (b"/", b"?") if c in rest), default=len(rest))
            target = rest[at:] if rest[at : at + 1] == b"/" else b"/" + rest[at:]
    path, _, query = target.partition(b"?")
    return path + b"?" + query if query else path


def check_answers(told: bytes, methods: list[bytes]) -> None:
    """All that was written is one answer for each request, and at most one refusal."""
    for number in range(len(methods) + 1):
        wire = h11.Connection(h11.CLIENT)
        method = methods[number] if number < len(methods) else b"GET"
        wire.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        wire.send(h11.EndOfMessage())
        if not told:
            assert number == len(methods), "a request was not answered"
            return
        wire.receive_data(told)
        while isinstance(event := wire.next_event(), h11.InformationalResponse):
            pass
        if event is h11.NEED_DATA and number == len(methods):
            return  # 100 Continue to one who left
        assert isinstance(event, h11.Response), f"no answer: {told!r}"
        if number < len(methods):
            assert 200 == event.status_code, f"{event.status_code} for what was let through"
        while isinstance(event := wire.next_event(), h11.Data):
            pass
        assert isinstance(event, h11.EndOfMessage), f"half an answer: {told!r}"
        told = wire.trailing_data[0]
    assert not told, f"more than was asked for: {told!r}"
