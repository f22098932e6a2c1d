"""What a gateway keeps of what has passed through it: nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from statistics import linear_regression
from typing import Any

import pytest
from harness.again import spared
from harness.figures import Note
from harness.gateway import Gateway, Serve

from passy_plugins.stores.sql import Sql
from passy_proxy.testing import ScriptedUpstream, chat_events, completion, serving

CHAT = "/v1/chat/completions"
WHOLE = json.dumps(completion("hello " * 20)).encode()
EVENTS = b"".join(chat_events(["one ", "two ", "three "]))


class Fast(asyncio.Protocol):
    """An upstream that costs as little as one can; ``broken`` answers 500, ``stream`` streams."""

    HEAD = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    PLAIN = HEAD % (200, b"application/json", len(WHOLE)) + WHOLE
    STREAM = HEAD % (200, b"text/event-stream", len(EVENTS)) + EVENTS
    BROKEN = HEAD % (500, b"application/json", 2) + b"{}"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n") + 4) >= 4:
            found = re.search(rb"content-length: (\d+)", self.buffer[:end])
            size = end + int(found[1] if found else 0)
            if len(self.buffer) < size:
                return
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            if request.startswith(b"POST /broken"):
                self.transport.write(self.BROKEN)
            else:
                streamed = b'"stream":true' in request
                self.transport.write(self.STREAM if streamed else self.PLAIN)


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> asyncio.Server:
        return await loop.create_server(Fast, "127.0.0.1", 0)

    server = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


LIMITED = """
    - auth: {directory: books}
    - rate_limit: {counters: state, per: [key], requests: 100M/min}"""


def configuration(upstream: str, limited: str = LIMITED) -> str:
    return f"""
overload: {{loop_lag: 0s}}
stores:
  books: {{kind: sql, url: "sqlite:///books.db"}}
  state: {{kind: memory}}
upstreams:
  good: {{url: {upstream}/good/v1, credential: secret}}
  broken: {{url: {upstream}/broken/v1, credential: secret}}
models: {{good: [good/real], broken: [broken/real, broken/other], mended: [broken/real, good/real]}}
chains:
  default:
    - access_log
    - metrics
    - usage: {{ledger: books}}{limited}
    - alias
    - fallback: {{retries: 0, fallback_on: [5xx]}}
routes: [{{match: POST /v1/chat/completions}}]
"""


def asked(gateway: Gateway, key: str, bodies: list[bytes], count: int) -> None:
    """``count`` requests, on connections that are kept for a while, several at once on each."""
    host, port = gateway.url[7:].split(":")
    batch = b"".join(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
        for body in bodies
    )
    left = count
    while left > 0:
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=60) as sock:
                sock.sendall(batch * 5)
                seen = 0
                tail = b""
                while seen < 5 * len(bodies):
                    data = sock.recv(1 << 18)
                    assert data, "it hung up"
                    seen += (tail + data).count(b"HTTP/1.1 ") - tail.count(b"HTTP/1.1 ")
                    tail = data[-8:]
            left -= seen
            if left <= 0:
                return


def body(model: str, stream: bool) -> bytes:
    sent = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi" * 50}]}
    return json.dumps(sent, separators=(",", ":")).encode()


BODIES = {
    "answers": [body("good", False), body("good", True), body("mended", False)],
    "failures": [body("broken", False), body("broken", True), body("nobody", False)],
}


def memory(gateway: Gateway) -> dict[str, int]:
    """KiB: all, and what belongs to no file."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return {name: int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "RssAnon")}


BODIES["both"] = [*BODIES["answers"], *BODIES["failures"]]

SIZES = [
    pytest.param(("both", 1_200, 4_800), id="small"),
    pytest.param(("answers", 40_000, 200_000), id="large", marks=pytest.mark.large),
    pytest.param(("failures", 40_000, 200_000), id="large-failures", marks=pytest.mark.large),
]


@pytest.mark.parametrize("load", SIZES)
def test_O5_memory_does_not_grow_with_requests(
    load: tuple[str, int, int], serve: Serve, upstream: str, figure: Note
) -> None:
    path, warm, count = load
    gateway = serve(configuration(upstream), start=False)
    key = gateway.new_key()
    gateway.start()
    bodies = BODIES[path]
    asked(gateway, key, bodies, warm)

    def measured() -> list[tuple[int, dict[str, int]]]:
        samples = [(0, memory(gateway))]
        for step in range(10):
            asked(gateway, key, bodies, count // 10)
            samples.append(((step + 1) * count // 10, memory(gateway)))
        return samples

    def growth(samples: list[tuple[int, dict[str, int]]]) -> int:
        return samples[-1][1]["RssAnon"] - samples[0][1]["RssAnon"]

    # What an allocator takes in advance it takes once, a leak grows each time.
    times = 1 if count > 100_000 else 4
    samples = spared(measured, lambda samples: growth(samples) < 6 * 1024, times)
    slopes = {}
    for name in ("VmRSS", "RssAnon"):
        points = [(at, kib[name]) for at, kib in samples]
        slope = linear_regression(*zip(*points, strict=True)).slope
        slopes[name] = round(slope * 100_000 / 1024, 2)
    figure("requests; MiB grown per 100k, all and without files", f"{count}; {slopes}")
    if count < 100_000:
        assert growth(samples) < 6 * 1024
    else:
        assert slopes["RssAnon"] < 1.0
    assert 0 == gateway.stop()


@pytest.mark.anyio
async def test_O5_what_is_allocated_per_request_is_freed(tmp_path: Path) -> None:
    """The top ten of what has grown are no more than caches that fill: none by a part of each
    request."""
    count = 200
    async with ScriptedUpstream() as upstream:
        upstream.json(completion())
        text = configuration(upstream.url, "").replace(
            "sqlite:///books.db", f"sqlite:///{tmp_path}/b"
        )
        async with serving(text, tmp_path) as site:
            host, port = site.url[7:].split(":")
            reader, writer = await asyncio.open_connection(host, int(port))

            async def ask(times: int) -> None:
                sent = BODIES["answers"][0]
                head = (
                    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
                )
                for _ in range(times):
                    writer.write(head % len(sent) + sent)
                    answer = await reader.readuntil(b"\r\n\r\n")
                    assert answer.startswith(b"HTTP/1.1 200")
                    size = re.search(rb"content-length: (\d+)", answer)
                    assert size is not None
                    await reader.readexactly(int(size[1]))
                upstream.requests.clear()
                books = site.gateway.snapshot.stores["books"]
                assert isinstance(books, Sql)
                # Records on their way are no leak, nor those of a batch that has just arrived.
                while books.waiting or not books._shipper.asleep:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

            await ask(200)
            tracemalloc.start(5)
            try:
                await ask(100)
                gc.collect()
                before = tracemalloc.take_snapshot()
                await ask(count)
                gc.collect()
                after = tracemalloc.take_snapshot()
            finally:
                tracemalloc.stop()
            writer.close()
    own = [tracemalloc.Filter(True, "*/passy_*/*"), tracemalloc.Filter(True, "*/uvicorn/*")]
    grown = after.filter_traces(own).compare_to(before.filter_traces(own), "lineno")[:10]
    for one in grown:
        assert one.count_diff < count / 4, f"{one}"
        assert one.size_diff < 64 * 1024, f"{one}"
