"""For authors of plugins: run a filter without sockets, script an upstream, serve a gateway.

``pytest_plugins = ["passy_proxy.testing"]`` gives the fixtures ``run``, ``upstream``, ``client``.

    async def test_a_long_prompt_is_refused(run) -> None:
        ex = await run(PromptCap, {"max_chars": 3}, body={"messages": [{"content": "four"}]})
        assert "prompt_too_long" == ex.outcome.code
        assert [] == ex.attempts
"""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import h11
import pytest
import structlog
import uvicorn

from passy_proxy import json
from passy_proxy.app import App
from passy_proxy.config.build import Parts, build
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.config.model import EdgeSettings
from passy_proxy.config.snapshot import Snapshot
from passy_proxy.downstream import BodyTooLarge, ClientGone, Headers, pairs
from passy_proxy.exchange import Exchange, Request
from passy_proxy.filter import Filter, Terminal
from passy_proxy.framing import told
from passy_proxy.gateway import Gateway
from passy_proxy.keyring import Keyring
from passy_proxy.records import Principal
from passy_proxy.registry import Registry
from passy_proxy.server import protocol
from passy_proxy.shared import Shared
from passy_proxy.site import Site

Wire = tuple[tuple[bytes, bytes], ...]
KEYRING = Keyring(["a key for tests only, of 32 bytes or more"])
SSE = (("content-type", "text/event-stream"),)
PATIENCE = 20.0
"""Seconds that something which has to happen may take."""


# An upstream on a real socket


@dataclass(slots=True, eq=False)
class Seen:
    """One request as the upstream saw it, from its head on."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the body has all come."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its connection is gone."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Answer:
    """A scripted answer: ``delay`` seconds, the head, ``pieces`` with ``gap`` seconds before each.

    The body's length is told if it is sent at once; otherwise it is chunked.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    pieces: Sequence[bytes | asyncio.Event] = ()
    """The body; an Event among them is waited for."""
    delay: float = 0.0
    gap: float = 0.0
    cut: bool = False
    """Break the connection off instead of ending the answer."""
    hold: asyncio.Event | None = None
    """Waited for before the end."""


UNSCRIPTED = Answer(500, pieces=[b'{"error":{"message":"nothing is scripted"}}'])


class ScriptedUpstream:
    """A provider that does as it is told: answers in the order given, the last one for ever.

    ``async with ScriptedUpstream() as upstream``; its base URL is ``upstream.url``, what it saw is
    in ``upstream.requests``. Framing by h11, so it is strict about what it is sent: what it did not
    expect (a request without a script, bytes that are not HTTP) is raised at the block's end.
    """

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.connections: set[_Connection] = set()
        """Those open now."""
        self.faults: list[Exception] = []
        self.tasks: set[asyncio.Task[None]] = set()
        """Answers under way."""
        self._script: list[Answer] = []
        self._server: asyncio.Server | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> ScriptedUpstream:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._server is not None
        self._server.close()
        connections = list(self.connections)
        for connection in connections:
            connection.transport.abort()
        await asyncio.gather(*(connection.lost.wait() for connection in connections))
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.faults and error is None:
            raise self.faults[0]

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def then(self, answer: Answer) -> ScriptedUpstream:
        """Add an answer to the script."""
        self._script.append(answer)
        return self

    def json(self, body: object, status: int = 200, **headers: str) -> ScriptedUpstream:
        """Add a JSON answer. ``retry_after="1"`` becomes ``retry-after: 1``."""
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        content = ("content-type", "application/json")
        return self.then(Answer(status, (content, *named), [json.dumps(body)]))

    def chat(self, text: str = "Hello!", model: str = "scripted") -> ScriptedUpstream:
        """Add a plain chat completion."""
        return self.json(completion(text, model))

    def stream(self, *texts: str, usage: bool = True, **more: Any) -> ScriptedUpstream:
        """Add a streamed chat completion of these pieces of text; ``more`` as in Answer.

        With ``cut`` it breaks off after the last text.
        """
        pieces = chat_events(texts, usage=usage)
        if more.get("cut"):
            pieces = pieces[: len(texts) + 1]
        return self.then(Answer(headers=SSE, pieces=pieces, **more))

    async def seen(self, number: int = 1) -> Seen:
        """The request of that number, as soon as its head has come."""
        while len(self.requests) < number:
            self._news.clear()
            await self._news.wait()
        return self.requests[number - 1]

    def begins(self, request: Seen) -> Answer:
        """A request has begun; its answer."""
        self.requests.append(request)
        self._news.set()
        if not self._script:
            self.faults.append(AssertionError(f"no answer is scripted for {request.target}"))
            return UNSCRIPTED
        return self._script[min(len(self.requests), len(self._script)) - 1]


class _Connection(asyncio.Protocol):
    """One client of the scripted upstream."""

    transport: asyncio.Transport

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.lost = asyncio.Event()
        self._upstream = upstream
        self._wire = h11.Connection(h11.SERVER)
        self._seen: Seen | None = None
        self._scripted = UNSCRIPTED
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._upstream.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.connections.discard(self)
        self.lost.set()
        self._writable.set()
        if self._seen is not None:
            self._seen.closed.set()
        if self._answering is not None:
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._wire.receive_data(data)
            self._go_on()
        except h11.RemoteProtocolError as exc:
            self._upstream.faults.append(exc)
            self.transport.abort()

    def _go_on(self) -> None:
        while True:
            event = self._wire.next_event()
            if isinstance(event, h11.Request):
                headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                self._seen = Seen(event.method.decode(), event.target.decode(), headers)
                self._scripted = self._upstream.begins(self._seen)
            elif isinstance(event, h11.Data):
                assert self._seen is not None
                self._seen.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert self._seen is not None
                self._seen.whole.set()
                answering = self._answer(self._scripted)
                self._answering = asyncio.get_running_loop().create_task(answering)
                self._upstream.tasks.add(self._answering)
                self._answering.add_done_callback(self._answered)
            else:
                return

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._upstream.tasks.discard(task)
        if not task.cancelled() and isinstance(fault := task.exception(), Exception):
            self._upstream.faults.append(fault)
            self.transport.abort()

    async def _answer(self, answer: Answer) -> None:
        assert self._seen is not None
        await asyncio.sleep(answer.delay)
        headers = [*answer.headers]
        pieces = [piece for piece in answer.pieces if isinstance(piece, bytes)]
        late = answer.gap or answer.cut or answer.hold or len(pieces) < len(answer.pieces)
        if not late and answer.status not in (204, 304):
            headers.append(("content-length", str(sum(map(len, pieces)))))
        self._send(h11.Response(status_code=answer.status, headers=headers))
        for piece in answer.pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                continue
            if answer.gap:
                await asyncio.sleep(answer.gap)
            await self._writable.wait()
            if self._seen.method != "HEAD":
                self._send(h11.Data(data=piece))
        if answer.hold is not None:
            await answer.hold.wait()
        if answer.cut:
            self.transport.close()
            return
        self._send(h11.EndOfMessage())
        if self._wire.our_state is h11.DONE and self._wire.their_state is h11.DONE:
            self._wire.start_next_cycle()
            self._go_on()
        else:
            self.transport.close()

    def _send(self, event: Any) -> None:
        data = self._wire.send(event)
        if data and not self.transport.is_closing():
            self.transport.write(data)


def completion(text: str = "Hello!", model: str = "scripted") -> dict[str, Any]:
    """A chat completion of 9 tokens in and one out for each word."""
    words = len(text.split())
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": words, "total_tokens": 9 + words},
    }


def chat_events(texts: Sequence[str], *, usage: bool = True) -> list[bytes]:
    """The same as a stream: role, texts, finish reason, usage, ``[DONE]``."""
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": text}, None) for text in texts]
    deltas.append(({}, "stop"))
    frames: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas
    ]
    if usage:
        count = len(texts)
        told = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
        frames.append({"choices": [], "usage": told})
    named = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "model": "scripted"}
    events = [b"data: " + json.dumps({**named, **frame}) + b"\n\n" for frame in frames]
    return [*events, b"data: [DONE]\n\n"]


# An exchange without sockets


class Recorded:
    """A client that is a list: gives one request, keeps what it is sent."""

    def __init__(self, body: bytes = b"") -> None:
        self.started = False
        self.gone = False
        self.peer = "127.0.0.1"
        self.status = 0
        self.headers: Headers = []
        self.sent: list[bytes] = []
        """Each write, as it came."""
        self.finished = False
        """The answer came to its end."""
        self.aborted = False
        """The answer was cut."""
        self._body = body
        self._hang_up: Callable[[], None] | None = None

    @property
    def answer(self) -> bytes:
        """Everything sent, joined."""
        return b"".join(self.sent)

    @property
    def json(self) -> Any:
        return json.loads(self.answer)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header that was sent."""
        return next((value for key, value in self.headers if key == name), None)

    def leave(self) -> None:
        """The client hangs up; nothing happens if it has its answer."""
        if self.gone or self.finished or self.aborted:
            return
        self.gone = True
        hang_up, self._hang_up = self._hang_up, None
        if hang_up is not None:
            hang_up()

    # passy_proxy.downstream.Downstream

    def arrived(self, limit: int) -> bytes | None:
        return None

    async def body(self, limit: int) -> bytes:
        if self.gone:
            raise ClientGone
        if len(self._body) > limit:
            raise BodyTooLarge(limit)
        return self._body

    async def pieces(self, limit: int) -> AsyncIterator[bytes]:
        yield await self.body(limit)

    def watch(self, hang_up: Callable[[], None] | None) -> None:
        if hang_up is not None and self.gone:
            hang_up()
        else:
            self._hang_up = hang_up

    @property
    def stalled(self) -> bool:
        return False

    @property
    def task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    def whole(self, status: int, headers: Headers, body: bytes, lines: bytes = b"") -> None:
        self.start(status, [*headers, (b"content-length", b"%d" % len(body))], lines)
        self.finish(body)

    def start(self, status: int, headers: Headers, lines: bytes = b"") -> None:
        if self.started:
            raise RuntimeError("the answer has a head already")
        self.started, self.status, self.headers = True, status, [*headers, *pairs(lines)]

    def write(self, data: bytes) -> bool:
        if self.gone or self.finished:
            return False
        self.sent.append(data)
        return True

    def finish(self, data: bytes = b"") -> None:
        if not (self.gone or self.finished or self.aborted):
            self.sent.append(data)
            self.finished = True
            self._hang_up = None

    async def drain(self) -> None:
        if self.gone:
            raise ClientGone

    def settle(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True
        self._hang_up = None

    def asgi(self) -> NoReturn:
        raise NotImplementedError("applications are asked over a socket; see `serving`")


MINIMAL = """
upstreams: {echo: {kind: echo}}
models: {m: [echo]}
chains: {default: [alias, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""


class Bench:
    """A snapshot to make exchanges on, while its block lasts.

    ``text`` is a configuration, echo and nothing else without one; ``filters`` can be named in it
    beside those that are installed.
    """

    def __init__(
        self,
        text: str = MINIMAL,
        variables: Mapping[str, str] | None = None,
        filters: Sequence[type[Filter]] = (),
    ) -> None:
        self.log = structlog.get_logger()
        self._text = text
        self._variables = variables or {}
        self._filters = filters
        self.parts: Parts
        self.snapshot: Snapshot

    async def __aenter__(self) -> Bench:
        """Raises ConfigInvalid with all that is wrong, StartFailed."""
        self._folder = tempfile.TemporaryDirectory()
        try:
            registry = Registry()
            registry.filters |= {kind.name: kind for kind in self._filters}
            site = Site(Path(self._folder.name), KEYRING)
            self.parts = Parts(registry, Shared(), site, self.log)
            document = parse(self._text, "test.yaml", self._variables)
            self.snapshot = build(layers(document, self._variables), self.parts, "test")
            await self.snapshot.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.snapshot.stop()
        self._folder.cleanup()

    def exchange(
        self,
        body: object = None,
        *,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        headers: Wire = (),
        principal: Principal | None = None,
    ) -> Exchange:
        """An exchange as the app makes it, to be given to ``ex.route.chain.run``.

        ``body`` is bytes, or the fields of a JSON object whose model is ``echo`` unless it says so.
        Raises LookupError where no route matches.
        """
        raw = body if isinstance(body, bytes) else json.dumps({"model": "echo", **(body or {})})  # type: ignore[dict-item]
        route = self.snapshot.routes.find(method, path)
        if route is None:
            raise LookupError(f"no route matches {method} {path}")
        downstream = Recorded(raw)
        request = Request(told(method, path, b"", list(headers)), downstream)
        ex = Exchange(self.snapshot, route, request, downstream)
        ex.principal = principal
        return ex


class _Given(Filter):
    """Stands for the filters that a filter needs before it."""

    name = "given"
    provides = frozenset({"principal", "targets"})


async def run_filter(
    kind: type[Filter],
    settings: Mapping[str, Any] | None = None,
    *,
    body: object = None,
    headers: Wire = (),
    principal: Principal | None = None,
) -> Exchange:
    """One exchange through ``[kind, alias, fallback]`` to the echo upstream.

    A terminal stands alone, or behind ``alias`` if it needs targets. The settings are read as the
    loader reads them (ConfigInvalid); stores are in memory. A filter that needs a principal gets
    one without limits if none is given. The answer is in ``ex.downstream`` (a Recorded), the ending
    in ``ex.outcome``.
    """
    chain: list[object] = ["given", {kind.name: settings} if settings else kind.name]
    if "targets" in kind.needs:
        chain.insert(1, "alias")
    if not issubclass(kind, Terminal):
        chain += ["fallback"] if "alias" in (*chain, kind.name) else ["alias", "fallback"]
    text = json.dumps(
        {
            "upstreams": {"echo": {"kind": "echo"}},
            "chains": {"default": chain},
            "routes": [{"match": "POST /v1/chat/completions"}],
        }
    ).decode()
    if principal is None and "principal" in kind.needs:
        principal = Principal("key_test")
    async with Bench(text, filters=[_Given, kind]) as bench:
        ex = bench.exchange(body, headers=headers, principal=principal)
        await ex.route.chain.run(ex)
        return ex


# A whole gateway


@dataclass(slots=True, eq=False)
class Serving:
    """A gateway that is running; its address is ``url``."""

    gateway: Gateway
    server: uvicorn.Server
    url: str


class Prompt(uvicorn.Server):
    """uvicorn's server, which ends as soon as it is told to and nobody is left: uvicorn looks
    every tenth of a second, and a test of one request takes a tenth of that."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._told = asyncio.Event()
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        return self._told.is_set()

    @should_exit.setter
    def should_exit(self, told: bool) -> None:
        if told:
            self._told.set()
        else:
            self._told.clear()

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        while state.connections or state.tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.002)  # uvicorn sets no event for it.
        await self.lifespan.shutdown()


@asynccontextmanager
async def prompt(config: uvicorn.Config) -> AsyncIterator[uvicorn.Server]:
    """Such a server while the block lasts; it has started, and signals are none of its business."""
    server = Prompt(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    running = asyncio.get_running_loop().create_task(server.serve())
    try:
        while not server.started and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.002)  # Nor for this.
        yield server
    finally:
        server.should_exit = True
        async with asyncio.timeout(PATIENCE):
            await running


@asynccontextmanager
async def serving(
    configuration: str | Path,
    data: Path,
    variables: Mapping[str, str] | None = None,
    **stock: Any,
) -> AsyncIterator[Serving]:
    """Serve a configuration (its text, or its file) in this event loop, on a port of 127.0.0.1.

    ``data`` is the folder for its files. ``stock`` settings are uvicorn's own and take the place of
    our edge: ``http="h11"``. Raises ConfigInvalid, StartFailed.
    """
    path, text = (configuration, "") if isinstance(configuration, Path) else (None, configuration)
    site = Site(data, KEYRING)
    gateway = Gateway(site, variables or {}, structlog.get_logger(), path=path, text=text)
    settings = {"http": protocol(EdgeSettings()), **stock}
    config = uvicorn.Config(
        App(gateway), "127.0.0.1", 0, lifespan="off", ws="none", log_config=None, access_log=False,
        **settings,
    )  # fmt: skip
    await gateway.start()
    try:
        async with prompt(config) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Serving(gateway, server, f"http://127.0.0.1:{port}")
    finally:
        await gateway.stop()


# A client that shows what went over the wire


class Asked:
    """One request on a connection of its own, and as much of its answer as was waited for.

    Every wait ends after ``PATIENCE`` seconds in TimeoutError.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        """Names in lower case."""
        self.got = b""
        """What has come of the body, framing included."""

    async def head(self) -> Asked:
        """Wait for the head of the answer."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        return self

    async def until(self, text: bytes) -> bytes:
        """Read on until ``text`` has come; EOFError if the answer ends without it."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.got:
                await self._more()
        return self.got

    async def rest(self) -> bytes:
        """The whole body, without its framing; EOFError if it was cut."""
        async with asyncio.timeout(PATIENCE):
            if self.headers.get("transfer-encoding") == "chunked":
                while not (b"\r\n" + self.got).endswith(b"\r\n0\r\n\r\n"):
                    await self._more()
                return _unchunked(self.got)
            while len(self.got) < int(self.headers.get("content-length", 0)):
                await self._more()
            return self.got

    async def json(self) -> Any:
        """The body as JSON."""
        return json.loads(await self.rest())

    async def _more(self) -> None:
        piece = await self.reader.read(65536)
        if not piece:
            raise EOFError(self.got)
        self.got += piece

    def leave(self) -> None:
        """Close the connection."""
        self.writer.close()

    def reset(self) -> None:
        """Close it by RST."""
        held: socket.socket = self.writer.get_extra_info("socket")
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def _unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return body


class Client:
    """Makes requests, each on a connection of its own; ``async with`` closes what is left open."""

    def __init__(self) -> None:
        self._asked: list[Asked] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for asked in self._asked:
            asked.writer.close()
            with suppress(OSError):
                await asked.writer.wait_closed()

    async def send(
        self, url: str, body: object = None, *, method: str = "POST", **headers: str
    ) -> Asked:
        """Send a request. ``body`` is bytes or becomes JSON; an empty header is left out."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
        parts = urlsplit(url)
        asked = Asked(*await asyncio.open_connection(parts.hostname, parts.port))
        self._asked.append(asked)
        named = {"host": parts.netloc, "content-type": "application/json"}
        named["content-length"] = str(len(raw))
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        fields = (f"{name}: {value}" for name, value in named.items() if value)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        lines = [f"{method} {target} HTTP/1.1", *fields, "", ""]
        asked.writer.write("\r\n".join(lines).encode() + raw)
        return asked

    async def ask(self, url: str, body: object = None, **more: Any) -> Asked:
        """Send a request and wait for the head of its answer; ``more`` as for ``send``."""
        return await (await self.send(url, body, **more)).head()


# Fixtures


Run = Callable[..., Awaitable[Exchange]]


@pytest.fixture
def run() -> Run:
    """``run_filter``."""
    return run_filter


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream on a free port of 127.0.0.1."""
    async with ScriptedUpstream() as scripted:
        yield scripted


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A raw HTTP client."""
    async with Client() as made:
        yield made
