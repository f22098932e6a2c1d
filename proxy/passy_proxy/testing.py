"""For authors of plugins: run a filter without sockets, script an upstream on real ones.

``pytest_plugins = ["passy_proxy.testing"]`` gives the fixtures ``run`` and ``upstream``.

    async def test_a_long_prompt_is_refused(run) -> None:
        ex = await run(PromptCap, {"max_chars": 3}, body={"messages": [{"content": "four"}]})
        assert "prompt_too_long" == ex.outcome.code
        assert [] == ex.attempts
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest
import structlog

from passy_proxy import json
from passy_proxy.chain import Chain
from passy_proxy.config.build import Parts, build, settings_of
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.config.settings import read
from passy_proxy.config.snapshot import Snapshot
from passy_proxy.downstream import BodyTooLarge, ClientGone, Headers
from passy_proxy.exchange import Exchange, Request
from passy_proxy.filter import Filter, Terminal
from passy_proxy.keyring import Keyring
from passy_proxy.records import Principal
from passy_proxy.registry import Registry
from passy_proxy.shared import Shared
from passy_proxy.site import Site

Wire = tuple[tuple[bytes, bytes], ...]


# An upstream on a real socket


@dataclass(slots=True)
class Seen:
    """One request as the upstream saw it. ``closed`` is set when its connection is gone."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.body)


@dataclass(slots=True)
class Answer:
    """One scripted answer: ``pieces`` with ``gap`` seconds before each, then the end, or a cut."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    pieces: Sequence[bytes] = ()
    delay: float = 0.0
    gap: float = 0.0
    cut: bool = False
    """Break the connection off instead of ending the answer."""
    hold: asyncio.Event | None = None
    """Waited for before the end."""


class ScriptedUpstream:
    """A provider that does as it is told: answers in the order given, the last one for ever.

    ``async with ScriptedUpstream() as upstream``; its base URL is ``upstream.url``, what it saw is in
    ``upstream.requests``. Framing by h11, so it is strict about what it is sent.
    """

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.connections: set[_Connection] = set()
        """Those open now."""
        self._script: list[Answer] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ScriptedUpstream:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.gather(*(c.lost.wait() for c in list(self.connections)))

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

    def stream(self, *texts: str, usage: bool = True, **more: Any) -> ScriptedUpstream:  # noqa: ANN401
        """Add a streamed chat completion of these pieces of text."""
        pieces = chat_events(texts, usage=usage and not more.get("cut"))
        if more.get("cut"):
            pieces = pieces[: len(texts) + 1]
        return self.then(Answer(headers=(("content-type", "text/event-stream"),), pieces=pieces, **more))

    def next(self) -> Answer:
        """The answer to the request that came last."""
        if not self._script:
            raise AssertionError("the upstream was asked, and nothing is scripted")
        return self._script[min(len(self.requests), len(self._script)) - 1]


class _Connection(asyncio.Protocol):
    """One client of the scripted upstream."""

    transport: asyncio.Transport

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.lost = asyncio.Event()
        self._upstream = upstream
        self._wire = h11.Connection(h11.SERVER)
        self._seen: Seen | None = None
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
        self._wire.receive_data(data)
        self._go_on()

    def _go_on(self) -> None:
        while True:
            try:
                event = self._wire.next_event()
            except h11.RemoteProtocolError:
                self.transport.abort()
                return
            if isinstance(event, h11.Request):
                headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                self._seen = Seen(event.method.decode(), event.target.decode(), headers)
            elif isinstance(event, h11.Data):
                assert self._seen is not None
                self._seen.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert self._seen is not None
                self._upstream.requests.append(self._seen)
                answer = self._upstream.next()
                self._answering = asyncio.get_running_loop().create_task(self._answer(answer))
            else:
                return

    async def _answer(self, answer: Answer) -> None:
        assert self._seen is not None
        await asyncio.sleep(answer.delay)
        headers = [*answer.headers]
        if not (answer.gap or answer.cut or answer.hold):
            headers.append(("content-length", str(sum(map(len, answer.pieces)))))
        self._send(h11.Response(status_code=answer.status, headers=headers))
        for piece in answer.pieces:
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

    def _send(self, event: Any) -> None:  # noqa: ANN401
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
        self.status = 0
        self.headers: Headers = []
        self.sent: list[bytes] = []
        self.finished = False
        self.aborted = False
        self._body = body
        self._hang_up: Callable[[], None] | None = None

    @property
    def answer(self) -> bytes:
        """Everything sent, joined."""
        return b"".join(self.sent)

    async def body(self, limit: int) -> bytes:
        if len(self._body) > limit:
            raise BodyTooLarge(limit)
        return self._body

    async def pieces(self, limit: int) -> AsyncIterator[bytes]:
        yield await self.body(limit)

    def watch(self, hang_up: Callable[[], None] | None) -> None:
        self._hang_up = hang_up

    def leave(self) -> None:
        """The client hangs up."""
        self.gone = True
        if self._hang_up is not None:
            self._hang_up()

    def start(self, status: int, headers: Headers) -> None:
        self.started, self.status, self.headers = True, status, headers

    def write(self, data: bytes) -> bool:
        self.sent.append(data)
        return True

    def finish(self, data: bytes = b"") -> None:
        self.sent.append(data)
        self.finished = True

    async def drain(self) -> None:
        if self.gone:
            raise ClientGone

    async def settle(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


MINIMAL = """
upstreams: {echo: {kind: echo}}
models: {m: [echo]}
chains: {default: [alias, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""


class Bench:
    """A snapshot to make exchanges on: the configuration given, or echo and nothing else."""

    def __init__(self, text: str = MINIMAL, variables: Mapping[str, str] | None = None) -> None:
        variables = variables or {}
        site = Site(Path(tempfile.gettempdir()), Keyring(["a key for tests only, of 32 bytes or more"]))
        self.log = structlog.get_logger()
        self.parts = Parts(Registry(), Shared(), site, self.log)
        file = layers(parse(text, "test.yaml", variables), variables)
        self.snapshot: Snapshot = build(file, self.parts, "test")

    async def __aenter__(self) -> Bench:
        await self.snapshot.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.snapshot.stop()

    def exchange(
        self,
        body: object = None,
        *,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        headers: Wire = (),
        principal: Principal | None = None,
    ) -> Exchange:
        """An exchange as the app makes it. ``body`` is bytes, or becomes JSON with a model."""
        raw = body if isinstance(body, bytes) else json.dumps({"model": "echo", **(body or {})})  # type: ignore[dict-item]
        route = self.snapshot.routes.find(method, path)
        if route is None:
            raise LookupError(f"no route matches {method} {path}")
        downstream = Recorded(raw)
        request = Request(method, path, b"", headers, downstream)
        request.operation, request.limit = route.operation, route.body_limit
        ex = Exchange(self.snapshot, route, request, downstream)
        ex.principal = principal
        return ex

    def filter(self, kind: type[Filter], settings: Mapping[str, Any]) -> Filter:
        """A filter with its settings checked as the loader checks them."""
        text = json.dumps(settings).decode()
        config = read(settings_of(kind), parse(text, "settings", {}).root)
        if isinstance(config, list):
            raise ValueError("; ".join(map(str, config)))
        return kind(config, self.log)


async def run_filter(
    kind: type[Filter],
    settings: Mapping[str, Any] | None = None,
    *,
    body: object = None,
    headers: Wire = (),
    principal: Principal | None = None,
) -> Exchange:
    """One exchange through ``[kind, alias, fallback]`` to the echo upstream, or ``[kind]`` for a terminal.

    The answer is in ``ex.downstream`` (a Recorded), the ending in ``ex.outcome``.
    """
    async with Bench() as bench:
        made = bench.filter(kind, settings or {})
        rest = bench.snapshot.routes.all[0].chain.filters
        await made.start()
        try:
            chain = Chain([made] if isinstance(made, Terminal) else [made, *rest])
            ex = bench.exchange(body, headers=headers, principal=principal)
            await chain.run(ex)
        finally:
            await made.stop()
        return ex


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
