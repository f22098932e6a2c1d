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
from harness.catalogue import raw
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
CALM = 0.01
"""Seconds between two pieces of the other stream."""
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
    def __init__(self, gateway: Gateway, upstream: RawUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
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

    def calm(hit: Hit) -> list[Step]:
        steps: list[Step] = [{"send": SSE}]
        return [*steps, *([{"chunk": EVENT}, {"wait": CALM}] * 20_000)]

    with RawUpstream(script=script) as upstream, RawUpstream(script=calm) as other:
        scenes.append(Scene(serve(config(upstream.url, other.url)), upstream))
        yield scenes[0]


class Calm:
    """The silences between the pieces of a stream that has nothing to do with the absurd one."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._over = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.silences: list[float] = []

    def __enter__(self) -> Calm:
        self._thread.start()
        assert self._begun.wait(30)
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def p99(self) -> float:
        return sorted(self.silences)[int(len(self.silences) * 0.99)]

    def _listen(self) -> None:
        with closing(self._scene.open("calm", "http1")) as answer:
            last = 0.0
            while not self._over.is_set():
                if not answer.read1(1 << 16):
                    self.silences.append(float("inf"))  # it was not to end
                    return
                now = time.monotonic()
                if last:
                    self.silences.append(now - last)
                last = now
                self._begun.set()


@pytest.mark.parametrize(
    ("size", "allowed"),
    [
        pytest.param(16, 1.5, id="fast"),
        pytest.param(100, 0.05, id="large", marks=pytest.mark.large),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", WHERE)
def test_U10_absurd_streams_arrive_exactly(
    scene: Scene, where: str, kind: str, size: int, allowed: float
) -> None:
    end = STOP if where == "messages" else DONE
    scene.steps = [{"send": SSE}, {"chunk": EVENT}, end, LAST]
    scene.open(where, kind).read()  # what the first one of a kind costs is no growth
    with Calm(scene) as calm:
        for name, shape in shapes(size).items():
            if size == 16 and (where, kind) != ("chat", "http1") and name not in NAMES[:2]:
                continue  # in short: all of them once, the worst of them everywhere
            steps = [*shape, end]
            scene.steps = [{"send": SSE}, *steps, LAST]
            began = time.monotonic()
            with Memory(scene.gateway) as memory:
                got, sum = read(scene.open(where, kind), *digest_of(steps))
            print(
                f"U10 {where} {kind} {name}: {got / MIB:.0f} MiB in"
                f" {time.monotonic() - began:.2f} s, memory +{memory.growth / MIB:.1f} MiB"
            )
            assert sum, name
            assert memory.growth < GROWTH, name
    print(f"U10 {where} {kind}: {len(calm.silences)} gaps, p99 {calm.p99 * 1000:.0f} ms")
    assert calm.p99 < allowed


def read(answer: http.client.HTTPResponse, length: int, expected: str) -> tuple[int, bool]:
    """Bytes read, and whether the first ``length`` of them are those expected."""
    assert 200 == answer.status
    got, sum = 0, hashlib.sha256()
    with closing(answer):
        while piece := answer.read1(1 << 18):
            sum.update(piece[: max(length - got, 0)])
            got += len(piece)
    return got, expected == sum.hexdigest()
