"""After any number of cancellations and faults: no socket, task or slot is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from harness.figures import Note
from harness.gateway import Serve
from harness.upstream import Hit, RawUpstream, Step

from passy_proxy.testing import serving
from passy_proxy.timers import sweep_of

KINDS = ("http1", "httpcore")
SLOTS = 10
SOON = 40.0
"""Seconds in which everything has to be as before, on a busy machine: long before any timer of the
gateway's or the upstream's would see to it."""

CALM = 0.3

SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
OK = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
BEHAVIOURS: list[list[Step]] = [
    [{"send": OK}],
    [{"wait": 0.01}, {"send": OK}],
    [{"send": OK}, "close"],
    [{"send": SSE}, *([{"chunk": "data: {}\n\n"}, {"wait": 0.003}] * 8), {"send": "0\r\n\r\n"}],
    [{"send": SSE}, {"chunk": "data: {}\n\n"}, "reset"],
    [{"send": SSE}, {"chunk": "data: {}\n\n"}, "hold"],
    [{"send": "HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nhalf"}, "close"],
    [{"send": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokEVIL"}],
    [{"send": "nonsense\r\n\r\n"}],
    [{"drip": OK, "gap": 0.001}],
    ["early", {"send": "HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno"}, "close"],
    ["early", "reset"],
    ["reset"],
    ["close"],
    ["hold"],
]


def config(url: str) -> str:
    upstreams = "".join(
        f"  {kind}: {{url: '{url}', credential: k, transport: {kind}, max_connections: {SLOTS},"
        " keep_alive: 300ms, timeouts: {pool: 120s, first_byte: 120s, idle: 120s}}\n"
        for kind in KINDS
    )
    models = ", ".join(f"{kind}: [{kind}/m]" for kind in KINDS)
    chains = "".join(f"  {kind}: [usage, direct: {{upstream: {kind}}}]\n" for kind in KINDS)
    routes = "".join(
        f"  - {{match: '* /{kind}/*', chain: {kind}, body: stream}}\n" for kind in KINDS
    )
    return (
        f"upstreams:\n{upstreams}models: {{{models}}}\n"
        f"chains:\n  default: [usage, alias, fallback]\n{chains}"
        f"routes:\n  - {{match: POST /v1/chat/completions}}\n{routes}"
    )


class Churn:
    """Requests of all kinds, of which many are given up, in an order that is drawn once."""

    def __init__(self, seed: int) -> None:
        self.drawn = random.Random(seed)
        self.holding = False
        """From here on every request is kept waiting."""

    def script(self, hit: Hit) -> list[Step]:
        return ["hold"] if self.holding else self.drawn.choice(BEHAVIOURS)

    def message(self) -> tuple[bytes, float, bool]:
        """What is sent, after how many seconds the client leaves, and whether by RST."""
        drawn = self.drawn
        kind = drawn.choice(KINDS)
        leaves = drawn.choice([0.0, drawn.uniform(0, 0.05), drawn.uniform(0.05, 0.2), 0.3])
        if drawn.random() < 0.4:
            size = drawn.choice([10, 100_000])
            sent = drawn.choice([0, size // 2, size])
            head = f"POST /{kind}/x HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n"
            return head.encode() + b"x" * sent, leaves, drawn.random() < 0.5
        return chat(kind, stream=drawn.random() < 0.5), leaves, drawn.random() < 0.5


def chat(kind: str, *, stream: bool = False) -> bytes:
    body = json.dumps({"model": kind, "stream": stream, "messages": []}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def dial(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=90)


def leave(sock: socket.socket, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def churn(url: str, requests: Churn, count: int) -> None:
    planned = [requests.message() for _ in range(count)]

    def one(planned: tuple[bytes, float, bool]) -> None:
        message, seconds, reset = planned
        sock = dial(url)
        with suppress(OSError):
            sock.sendall(message)
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                sock.settimeout(left)
                if not sock.recv(1 << 16):
                    break
        leave(sock, reset)

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(one, planned))


def soon(met: Callable[[], bool], what: Callable[[], object]) -> float:
    """The seconds until ``met``, for good: what clients left behind may still be read."""
    began = since = time.monotonic()
    while (now := time.monotonic()) < since + CALM:
        if not met():
            assert now < began + SOON, what()
            since = now
        time.sleep(0.02)
    return since - began


SIZES = [pytest.param(240, id="fast"), pytest.param(2000, id="large", marks=pytest.mark.large)]


@pytest.mark.parametrize("count", SIZES)
def test_U13_no_socket_and_no_slot_is_left(serve: Serve, figure: Note, count: int) -> None:
    requests = Churn(13)
    with RawUpstream(script=requests.script) as upstream:
        gateway = serve(config(upstream.url))
        descriptors = Path(f"/proc/{gateway.process.pid}/fd")

        def opened() -> int:
            return len(os.listdir(descriptors))

        churn(gateway.url, requests, 60)  # what is opened once stays open: books, executors
        soon(lambda: upstream.open == 0, lambda: f"{upstream.open} connections are open")
        before = opened()
        churn(gateway.url, requests, count)
        seconds = soon(
            lambda: upstream.open == 0 and opened() <= before,
            lambda: f"{upstream.open} connections, {opened()} descriptors, once {before}",
        )
        figure("requests upstream", len(upstream.hits))
        figure("all as before after, s", seconds)
        requests.holding = True
        for kind in KINDS:
            all_slots(gateway.url, upstream, kind)
        soon(lambda: opened() <= before, lambda: f"{opened()} descriptors, once {before}")


def all_slots(url: str, upstream: RawUpstream, kind: str) -> None:
    """As many requests as there are slots are upstream at the same time, and not one more."""
    hits = len(upstream.hits)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(url)) for _ in range(SLOTS + 3)]
        for client in clients:
            client.sendall(chat(kind))
        upstream.until(lambda: len(upstream.hits) >= hits + SLOTS)
        time.sleep(0.1)
        assert SLOTS == upstream.open, [hit.target for hit in upstream.hits[hits:]]
        assert hits + SLOTS == len(upstream.hits)
    soon(lambda: upstream.open == 0, lambda: f"{upstream.open} connections are open")


@pytest.mark.parametrize("count", SIZES)
def test_U13_no_task_is_left(tmp_path: Path, count: int) -> None:
    """The same inside of one process, where tasks can be counted and pools be asked."""
    requests = Churn(31)

    async def main(upstream: RawUpstream) -> None:
        loop = asyncio.get_running_loop()
        async with serving(config(upstream.url), tmp_path) as gateway:
            transports = [one.transport for one in gateway.gateway.snapshot.upstreams.values()]

            def left() -> dict[str, int]:
                counts = {"tasks": len(asyncio.all_tasks()), "watched": len(sweep_of(loop))}
                for kind, transport in zip(KINDS, transports, strict=True):
                    stats = transport.stats()
                    counts |= {f"{kind} {name}": stats[name] for name in ("open", "waiting")}
                return counts

            await loop.run_in_executor(None, churn, gateway.url, requests, 20)
            await settled(lambda: 0 == sum(t.stats()["open"] for t in transports), left)
            before = left()
            for _ in range(20):  # Of a busy machine clients leave before it asks anybody.
                await loop.run_in_executor(None, churn, gateway.url, requests, count)
                if all(transport.stats()["opened"] > SLOTS for transport in transports):
                    break
            await settled(
                lambda: all(now <= before[name] for name, now in left().items()),
                lambda: (before, left(), asyncio.all_tasks()),
            )
            assert all(transport.stats()["opened"] > SLOTS for transport in transports)

    with RawUpstream(script=requests.script) as upstream:
        asyncio.run(main(upstream))


async def settled(met: Callable[[], bool], what: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not met():
        assert time.monotonic() < end, what()
        await asyncio.sleep(0.02)
