"""Streams of absurd shape: every byte arrives, in bounded memory, and nobody else waits for it."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from harness.calm import Calm
from harness.catalogue import raw
from harness.figures import Note
from harness.gateway import Gateway, Serve
from harness.upstream import Hit, RawUpstream, Step

KINDS = ("http1", "httpcore")
MIB = 1 << 20
SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = {"chunk": {"repeat": "a", "times": MIB}}
EVENT = "data: {}\n\n"
TINY = {"send": {"repeat": f"{len(EVENT):x}\r\n{EVENT}\r\n", "times": 1000}}
DONE = {"chunk": "data: [DONE]\n\n"}
STOP = {"chunk": 'event: message_stop\ndata: {"type":"message_stop"}\n\n'}
LAST = {"send": "0\r\n\r\n"}
GROWTH = 16 * MIB


def shapes(size: int) -> dict[str, list[Step]]:
    """``size``: MiB of a line, 10,000 tiny events for each."""
    line: list[Step] = [{"chunk": "data: "}, *([CHUNK] * size)]
    return {
        "one-line": [*line, {"chunk": "\n\n"}],
        "no-line-end": line,
        "no-blank-line": [{"chunk": "data: x\n"}, *([{"chunk": "data: x\n" * 8192}] * 16 * size)],
        "comments": [{"chunk": ": x\n\n" * 16384}] * (12 * size),
        "tiny-events": [TINY] * (10 * size),
        "carriage-returns": [{"chunk": "\r" * MIB}] * (size // 4),
        "half-blank-lines": [{"chunk": "data: x\r\n\r" * 8192}] * (size * 4),
    }


NAMES = tuple(shapes(1))
WHERE = ("chat", "messages", "through")


def digest_of(steps: list[Step]) -> tuple[int, str]:
    """Size and sha256 of a body that is sent in chunks."""
    size, sum = 0, hashlib.sha256()
    for step in steps:
        assert isinstance(step, dict)
        data = raw(step["chunk"]) if "chunk" in step else EVENT.encode() * 1000
        size += len(data)
        sum.update(data)
    return size, sum.hexdigest()


class Memory:
    """The most that a process held, looked at many times a second."""

    def __init__(self, gateway: Gateway) -> None:
        self._status = Path(f"/proc/{gateway.process.pid}/status")
        self.most = 0
        self.first = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self.first = self.most = self._now()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.most - self.first

    def _now(self) -> int:
        line = next(x for x in self._status.read_text().splitlines() if x.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, self._now())


class Scene:
    def __init__(self, gateway: Gateway, upstream: RawUpstream, calm: Calm) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.calm = calm
        self.steps: list[Step] = []

    def open(self, where: str, kind: str) -> http.client.HTTPResponse:
        address = urlsplit(self.gateway.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
        said: dict[str, Any] = {"model": f"{where}-{kind}", "stream": True, "messages": []}
        paths = {"messages": "/v1/messages", "through": f"/through-{kind}/x"}
        connection.request(
            "POST",
            paths.get(where, "/v1/chat/completions"),
            json.dumps(said).encode(),
            {"content-type": "application/json", "connection": "close"},
        )
        return connection.getresponse()


def config(absurd: str, calm: str) -> str:
    upstreams = {f"{where}-{kind}": (absurd, where, kind) for where in WHERE for kind in KINDS} | {
        "calm-http1": (calm, "calm", "http1")
    }
    lines = "".join(
        f"  {name}: {{url: '{url}', credential: k, transport: {kind},"
        f" dialect: {'anthropic' if where == 'messages' else 'openai'}}}\n"
        for name, (url, where, kind) in upstreams.items()
    )
    models = ", ".join(f"{name}: [{name}/m]" for name in upstreams)
    through = "".join(
        f"  through-{kind}: [usage, direct: {{upstream: through-{kind}}}]\n" for kind in KINDS
    )
    routes = "".join(f"  - {{match: '* /through-{k}/*', chain: through-{k}}}\n" for k in KINDS)
    return (
        f"upstreams:\n{lines}models: {{{models}}}\n"
        f"chains:\n  default: [access_log, usage, alias, fallback]\n{through}"
        "routes:\n  - {match: POST /v1/chat/completions}\n"
        f"  - {{match: POST /v1/messages, dialect: anthropic}}\n{routes}"
    )


@pytest.fixture(scope="module")
def scene(serve: Serve) -> Iterator[Scene]:
    scenes: list[Scene] = []

    def script(hit: Hit) -> list[Step]:
        return scenes[0].steps

    with RawUpstream(script=script) as upstream, Calm() as calm:
        scenes.append(Scene(serve(config(upstream.url, calm.url)), upstream, calm))
        yield scenes[0]


class Gaps:
    """The silences of a calm stream while a block lasts."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._found: list[float] = []

    def __enter__(self) -> Gaps:
        said: dict[str, object] = {"model": "calm-http1", "stream": True, "messages": []}
        self._scene.calm.begin(f"{self._scene.gateway.url}/v1/chat/completions", said)
        return self

    def __exit__(self, *exc: object) -> None:
        self._found = sorted(self._scene.calm.silences())

    @property
    def p99(self) -> float:
        return self._found[int(len(self._found) * 0.99)]


@pytest.mark.parametrize(
    ("size", "allowed"),
    [
        pytest.param(16, 5.0, id="fast"),
        pytest.param(100, 0.05, id="large", marks=pytest.mark.large),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", WHERE)
def test_U10_absurd_streams_arrive_exactly(
    scene: Scene, figure: Note, where: str, kind: str, size: int, allowed: float
) -> None:
    end = STOP if where == "messages" else DONE
    scene.steps = [{"send": SSE}, {"chunk": EVENT}, end, LAST]
    scene.open(where, kind).read()  # what the first one of a kind costs is no growth
    with Gaps(scene) as quiet:
        time.sleep(2.0 if size > 16 else 0.3)
    with Gaps(scene) as calm:
        # h11 takes some 50 µs for a chunk.
        for name, shape in shapes(size if kind == "http1" else size // 4).items():
            if size == 16 and (where, kind) != ("chat", "http1") and name not in NAMES[:2]:
                continue  # in short: all of them once, the worst of them everywhere
            steps = [*shape, end]
            scene.steps = [{"send": SSE}, *steps, LAST]
            began = time.monotonic()
            with Memory(scene.gateway) as memory:
                got, sum = read(scene.open(where, kind), *digest_of(steps))
            if size > 16:
                figure(f"{name}, MiB/s", got / MIB / (time.monotonic() - began))
                figure(f"{name}, growth of memory, MiB", memory.growth / MIB)
            assert sum, name
            assert memory.growth < GROWTH, name
    figure("gap p99 of another stream, ms", calm.p99 * 1000)
    figure("the same without the absurd one, ms", quiet.p99 * 1000)
    assert calm.p99 < allowed + quiet.p99


def read(answer: http.client.HTTPResponse, length: int, expected: str) -> tuple[int, bool]:
    """Bytes read, and whether the first ``length`` of them are those expected."""
    assert 200 == answer.status
    got, sum = 0, hashlib.sha256()
    with closing(answer):
        while piece := answer.read1(1 << 18):
            sum.update(piece[: max(length - got, 0)])
            got += len(piece)
    return got, expected == sum.hexdigest()
