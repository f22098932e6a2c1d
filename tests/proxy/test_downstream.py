"""The Downstream over plain ASGI: scripted, and under uvicorn's own protocols on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import pytest
import uvicorn

from passy_proxy import Exchange, Filter
from passy_proxy.downstream import AsgiDownstream, BodyTooLarge, ClientGone, Downstream
from passy_proxy.exchange import CLIENT_GONE
from passy_proxy.testing import Bench, prompt

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
Play = Callable[[Downstream], Awaitable[None]]
DISCONNECT = {"type": "http.disconnect"}


def piece(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Server:
    """What an ASGI server is to an application: messages to receive, messages sent."""

    def __init__(self, *incoming: dict[str, Any]) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in incoming:
            self.incoming.put_nowait(message)
        self.sent: list[dict[str, Any]] = []
        self.gone = False

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        if self.gone:
            raise OSError
        self.sent.append(dict(message))

    def downstream(self, *headers: tuple[bytes, bytes]) -> AsgiDownstream:
        return AsgiDownstream({"headers": list(headers)}, self.incoming.get, self.send)


async def test_the_body_is_joined_and_may_be_asked_for_again() -> None:
    downstream = Server(piece(b"ab", more=True), piece(b"", more=True), piece(b"c")).downstream()
    assert b"abc" == await downstream.body(3)
    assert b"abc" == await downstream.body(3)
    with pytest.raises(BodyTooLarge):
        await downstream.body(2)


async def test_the_body_may_be_taken_piece_by_piece() -> None:
    downstream = Server(piece(b"ab", more=True), piece(b"c")).downstream()
    assert [b"ab", b"c"] == [part async for part in downstream.pieces(3)]


async def test_an_announced_length_over_the_limit_is_refused_unread() -> None:
    server = Server()
    downstream = server.downstream((b"content-length", b"4"))
    with pytest.raises(BodyTooLarge) as caught:
        await downstream.body(3)
    assert 3 == caught.value.limit


async def test_an_unannounced_body_over_the_limit_is_refused_as_it_comes() -> None:
    server = Server(piece(b"ab", more=True), piece(b"cd", more=True), piece(b"rest"))
    with pytest.raises(BodyTooLarge):
        await server.downstream().body(3)
    assert 1 == server.incoming.qsize()


async def test_a_client_that_leaves_while_uploading_is_gone() -> None:
    calls: list[str] = []
    downstream = Server(piece(b"ab", more=True), DISCONNECT).downstream()
    downstream.watch(lambda: calls.append("hang-up"))
    with pytest.raises(ClientGone):
        await downstream.body(9)
    assert ["hang-up"] == calls
    assert downstream.gone


async def test_a_watch_is_called_once_when_the_client_leaves() -> None:
    server = Server(piece(b""))
    downstream = server.downstream()
    await downstream.body(9)
    left = asyncio.Event()
    downstream.watch(left.set)
    server.incoming.put_nowait(DISCONNECT)
    async with asyncio.timeout(PATIENCE):
        await left.wait()
    assert downstream.gone
    again: list[str] = []
    downstream.watch(lambda: again.append("at once"))
    assert ["at once"] == again


async def test_a_watch_set_before_the_body_is_read_leaves_the_body_alone() -> None:
    server = Server(piece(b"ab", more=True), piece(b"c"), DISCONNECT)
    downstream = server.downstream()
    left = asyncio.Event()
    downstream.watch(left.set)
    await asyncio.sleep(0)
    assert b"abc" == await downstream.body(9)
    async with asyncio.timeout(PATIENCE):
        await left.wait()


async def test_what_the_server_says_after_the_end_is_not_a_hang_up() -> None:
    before = asyncio.all_tasks()
    server = Server(piece(b""))
    downstream = server.downstream()
    await downstream.body(9)
    calls: list[str] = []
    downstream.watch(lambda: calls.append("hang-up"))
    await asyncio.sleep(0)
    downstream.start(200, [])
    downstream.finish(b"all")
    server.incoming.put_nowait(DISCONNECT)
    await downstream.settle()
    await asyncio.sleep(0)
    assert ([], False) == (calls, downstream.gone)
    assert before == asyncio.all_tasks()


async def test_writes_are_sent_by_drain_and_the_end_by_settle() -> None:
    server = Server()
    downstream = server.downstream()
    downstream.start(200, [(b"a", b"b"), (b"transfer-encoding", b"chunked")])
    assert downstream.started
    assert not downstream.write(b"one")
    assert [] == server.sent
    await downstream.drain()
    downstream.finish(b"two")
    assert 2 == len(server.sent)
    await downstream.settle()
    assert [
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]},
        {"type": "http.response.body", "body": b"one", "more_body": True},
        {"type": "http.response.body", "body": b"two", "more_body": False},
    ] == server.sent


async def test_a_server_that_raises_for_a_client_that_left_is_understood() -> None:
    server = Server()
    downstream = server.downstream()
    downstream.start(200, [])
    downstream.write(b"one")
    server.gone = True
    with pytest.raises(ClientGone):
        await downstream.drain()
    assert not downstream.write(b"two")
    with pytest.raises(ClientGone):
        await downstream.drain()
    downstream.finish()
    await downstream.settle()
    assert [] == server.sent


class Settling(Filter):
    """Has to wait at the end of an exchange, as who gives a place back in a store elsewhere."""

    name = "settling"
    done: ClassVar[list[str]] = []

    async def on_end(self, ex: Exchange) -> None:
        await asyncio.sleep(0)
        self.done.append("end")

    async def on_complete(self, ex: Exchange) -> None:
        await asyncio.sleep(0)
        self.done.append("complete")


@pytest.mark.parametrize("uploading", [True, False])
async def test_the_end_of_who_finds_its_client_gone_is_not_cancelled(uploading: bool) -> None:
    said = b'[{"role": "user", "content": "Hello!"}]'
    body = b'{"model": "echo", "stream": true, "messages": %b}' % said
    server = Server(DISCONNECT if uploading else piece(body))
    server.gone = True
    text = """
    upstreams: {echo: {kind: echo}}
    chains: {default: [settling, alias, fallback]}
    routes: [{match: POST /v1/chat/completions}]
    """
    Settling.done.clear()

    async def serve() -> Exchange:
        ex = bench.exchange()
        downstream = ex.downstream = ex.request.downstream = server.downstream()
        assert downstream.task is asyncio.current_task()
        await ex.route.chain.run(ex)
        return ex

    async with Bench(text, filters=[Settling]) as bench:
        ex = await asyncio.create_task(serve())
    assert CLIENT_GONE == ex.outcome
    assert ["end", "complete"] == Settling.done


async def test_an_aborted_answer_is_left_incomplete() -> None:
    server = Server()
    downstream = server.downstream()
    downstream.start(200, [])
    downstream.write(b"one")
    await downstream.drain()
    downstream.abort()
    downstream.finish(b"two")
    await downstream.settle()
    assert [True] == [message["more_body"] for message in server.sent[1:]]


@contextlib.asynccontextmanager
async def serving(play: Play, http: str) -> AsyncIterator[int]:
    """Stock uvicorn running ``play``; its port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        downstream = AsgiDownstream(scope, receive, send)
        with contextlib.suppress(ClientGone):
            await play(downstream)
        await downstream.settle()

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=http, loop="asyncio", lifespan="off", log_config=None
    )
    async with prompt(config) as server:
        yield server.servers[0].sockets[0].getsockname()[1]


stock = pytest.mark.parametrize("http", ["h11", "httptools"])
UPLOAD = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


async def conversation(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(PATIENCE):
        try:
            return await reader.read()
        finally:
            writer.close()


@stock
async def test_stock_uvicorn_streams_piece_by_piece(http: str) -> None:
    heard = asyncio.Event()

    async def play(downstream: Downstream) -> None:
        body = await downstream.body(100)
        downstream.watch(lambda: None)
        downstream.start(200, [(b"content-type", b"text/event-stream")])
        assert not downstream.write(body)
        await downstream.drain()
        await heard.wait()  # the client has the first piece before the second is written
        downstream.finish(b"bye")

    async with serving(play, http) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPLOAD)
        async with asyncio.timeout(PATIENCE):
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            assert b"5\r\nhello\r\n" == await reader.readexactly(10)
            heard.set()
            assert b"3\r\nbye\r\n0\r\n\r\n" == await reader.read()
        writer.close()


@stock
async def test_stock_uvicorn_sends_a_plain_answer_with_its_length(http: str) -> None:
    async def play(downstream: Downstream) -> None:
        answer = json.dumps({"length": len(await downstream.body(100))}).encode()
        downstream.start(201, [(b"content-length", b"%d" % len(answer))])
        downstream.finish(answer)

    async with serving(play, http) as port:
        answer = await conversation(port, UPLOAD)
        assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
        assert answer.endswith(b'\r\n\r\n{"length": 5}')


@stock
async def test_stock_uvicorn_tells_of_a_hang_up_before_and_while_streaming(http: str) -> None:
    for streaming in (False, True):
        reached, left, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def play(
            downstream: Downstream,
            streaming: bool = streaming,
            reached: asyncio.Event = reached,
            left: asyncio.Event = left,
            ended: asyncio.Event = ended,
        ) -> None:
            await downstream.body(100)
            downstream.watch(left.set)
            if streaming:
                downstream.start(200, [])
                downstream.write(b"one")
                await downstream.drain()
            reached.set()
            await left.wait()
            ended.set()
            downstream.write(b"two")
            await downstream.drain()

        async with serving(play, http) as port, asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(UPLOAD)
            await reached.wait()
            writer.close()
            await ended.wait()


@stock
async def test_stock_uvicorn_closes_after_an_aborted_answer(http: str) -> None:
    async def play(downstream: Downstream) -> None:
        downstream.start(200, [])
        downstream.write(b"one")
        await downstream.drain()
        downstream.abort()

    async with serving(play, http) as port:
        answer = await conversation(port, UPLOAD)
        assert answer.endswith(b"3\r\none\r\n")
