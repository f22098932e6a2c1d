"""Clients that leave, that read slowly, and that stop reading."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from harness.again import spared
from harness.crowd import CHAT, Caller, asking, percentile, queues, resident, until
from harness.gateway import Gateway, Serve
from harness.upstream import Hit, RawUpstream, Step

SLACK = 40
"""How much longer than promised anything may take on a machine that has other things to do."""

CONFIGURATION = """
overload: {{loop_lag: 0s}}
stores: {{books: {{kind: sql, url: "sqlite:///.passy/passy.db"}}}}
upstreams:
  one: {{url: "{url}/v1", credential: a-credential, forward_headers: [x-case]}}
models: {{m: [one/real]}}
edge: {edge}
chains:
  default: [access_log, usage: {{ledger: books}}, alias, fallback]
  through: [access_log, usage: {{ledger: books}}, direct: {{upstream: one}}]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: "* /v1/files*", chain: through, body: stream, root: /v1, body_limit: 512MiB}}
"""

SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = 'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
LARGE = {"repeat": EVENT, "times": 1000}
MIDWAY = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9000000\r\n\r\n"

WINDOWS: dict[str, list[Step]] = {
    "uploading": ["hold"],
    "before the head": ["hold"],
    "before the head of a stream": ["hold"],
    "within a stream": [{"send": SSE}, {"chunk": EVENT}, "hold"],
    # So much of a plain answer is read before any of it is passed on.
    "within a file": [{"send": [MIDWAY, {"repeat": "x", "times": 1_200_000}]}, "hold"],
}
WAYS = ("fin", "reset", "half")


BEFORE = {"within a stream": 2, "within a file": 1}
"""Steps before the client leaves."""

END: list[Step] = [{"chunk": "data: [DONE]\n\n"}, {"send": "0\r\n\r\n"}]

STEPS: dict[str, list[Step]] = {
    **WINDOWS,
    "reading nothing": ["early", {"wait": 60}],
    "ten megabytes": [{"send": SSE}, *[{"chunk": LARGE}] * 160, *END],
    "a gigabyte": [{"send": SSE}, *[{"chunk": LARGE}] * 16_000],
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    def script(hit: Hit) -> list[Step]:
        window, _, mark = (hit.header("x-case") or "").partition("/")
        HITS[mark] = hit
        return STEPS[window]

    with RawUpstream(script=script) as upstream:
        yield upstream


def served(serve: Serve, upstream: RawUpstream, edge: str = "{}") -> Gateway:
    return serve(CONFIGURATION.format(url=upstream.url, edge=edge))


@pytest.fixture(scope="module")
def gateway(serve: Serve, upstream: RawUpstream) -> Gateway:
    return served(serve, upstream)


def request(window: str, mark: str) -> bytes:
    case = f"x-case: {window}/{mark}"
    if window in ("uploading", "reading nothing"):
        return asking("/v1/files", b"half of it", case, length=100_000_000)
    if window == "within a file":
        return asking("/v1/files/f/content", None, case)
    return asking("/v1/chat/completions", {**CHAT, "stream": "head" not in window[-4:]}, case)


HITS: dict[str, Hit] = {}
"""By the mark of its request."""


async def begun(gateway: Gateway, upstream: RawUpstream, window: str, mark: str) -> Caller:
    """A client within that window."""
    caller = await Caller.of(gateway.url)
    await caller.send(request(window, mark))
    await until(lambda: mark in HITS)
    hit = HITS[mark]
    await until(lambda: hit.sent >= BEFORE.get(window, 0))
    if window.startswith("within"):
        await caller.until(b"\r\n\r\n")
    await asyncio.sleep(0.02)
    assert hit.closed is None
    return caller


async def leave(gateway: Gateway, upstream: RawUpstream, window: str, how: str, mark: str) -> float:
    """Seconds from the client's leaving to the end of the upstream's connection."""
    caller = await begun(gateway, upstream, window, mark)
    hit = HITS[mark]
    at = caller.leave(how)
    await until(lambda: hit.closed is not None)
    caller.leave()
    assert hit.closed is not None
    return hit.closed - at


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("window", WINDOWS)
def test_C1_a_client_that_leaves_takes_its_upstream_along(
    gateway: Gateway, upstream: RawUpstream, window: str, how: str
) -> None:
    mark = f"{window}, {how}"
    assert asyncio.run(leave(gateway, upstream, window, how, mark)) < 0.25 * SLACK


@pytest.mark.large
def test_C1_a_thousand_clients_leave(gateway: Gateway, upstream: RawUpstream) -> None:
    async def all_of_them() -> list[float]:
        cases = list(itertools.islice(itertools.cycle(itertools.product(WINDOWS, WAYS)), 1000))
        took = []
        for some in range(0, 1000, 20):
            numbers = range(some, min(some + 20, 1000))
            took += await asyncio.gather(
                *(leave(gateway, upstream, *cases[n], f"n{n}") for n in numbers)
            )
        return took

    took = asyncio.run(all_of_them())
    p99 = percentile(took, 0.99)
    print(f"C1: closed after p50 {percentile(took, 0.5) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
    assert p99 <= 0.25


@pytest.mark.parametrize("how", ["reset", "fin"])
def test_C1_a_client_is_seen_to_leave_while_its_upload_is_held_back(
    gateway: Gateway, upstream: RawUpstream, how: str
) -> None:
    """The upstream takes nothing, so nothing is read from the client either."""
    port = urlsplit(gateway.url).port or 0

    async def held_back() -> Caller:
        caller = await begun(gateway, upstream, "reading nothing", how)
        mine, waits = caller.sock.getsockname()[1], 0
        while waits < 10:  # What the system keeps for the gateway is not taken any more.
            if not waits:
                with suppress(BlockingIOError):
                    caller.sock.send(b"x" * (1 << 18))
            await asyncio.sleep(0.005)
            waits = waits + 1 if queues(port)[mine][1] else 0
        return caller

    caller = asyncio.run(held_back())
    before = len(lines(gateway))
    at = caller.leave(how)
    while not lines(gateway)[before:]:
        assert time.monotonic() - at < 20, "nobody noticed"
        time.sleep(0.02)
    # The line itself may take a fifth of a second.
    assert time.monotonic() - at < 0.45 * SLACK
    assert "client_gone" == lines(gateway)[before]["outcome"]


def lines(gateway: Gateway) -> list[dict[str, Any]]:
    """The access log so far, as far as its lines are whole."""
    whole = (gateway.folder / "out").read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


async def read_slowly(caller: Caller, rate: int, end: float) -> None:
    while time.monotonic() < end and await caller.read(rate // 10):  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def slow_readers(
    gateway: Gateway, upstream: RawUpstream, count: int, seconds: float
) -> tuple[int, int, list[int], int]:
    """Growth of memory in bytes, readers that were cut, what waits at the upstream for each, and
    the most pieces that the upstream could send to one of them."""
    for number in range(5):  # What the first streams of a process cost, once.
        caller = await Caller.of(gateway.url)
        await caller.send(request("ten megabytes", f"warm{number}"))
        await caller.until(b"0\r\n\r\n")
        caller.leave()
    before = resident(gateway.process.pid)
    first = len(upstream.hits)
    callers = [await Caller.of(gateway.url) for _ in range(count)]
    try:
        for number, caller in enumerate(callers):
            await caller.send(request("ten megabytes", f"slow{number}"))
        end = time.monotonic() + seconds
        reading = [asyncio.create_task(read_slowly(c, 20_000, end + 60)) for c in callers]
        most, waiting = 0, [0]
        # A busy machine takes longer to fill what lies between.
        while time.monotonic() < end or (
            piled(waiting) < count * 0.9 and time.monotonic() < end + 50
        ):
            most = max(most, resident(gateway.process.pid) - before)
            await asyncio.sleep(0.1)
            waiting = [out for out, _ in queues(upstream.port).values()]
        for each in reading:
            each.cancel()
        ended = await asyncio.gather(*reading, return_exceptions=True)
        cut = sum(not isinstance(each, asyncio.CancelledError) for each in ended)
        return most, cut, waiting, max(hit.sent for hit in upstream.hits[first:])
    finally:
        for caller in callers:
            caller.leave("reset")


def piled(waiting: list[int]) -> int:
    """Of how many something waits."""
    return sum(size > 0 for size in waiting)


@pytest.mark.parametrize(
    ("count", "seconds"), [(40, 3.0), pytest.param(200, 30.0, marks=pytest.mark.large)]
)
def test_C2_slow_readers_cost_bounded_memory(
    serve: Serve, upstream: RawUpstream, count: int, seconds: float
) -> None:
    gateway = served(serve, upstream)
    assert 404 == gateway.ask("/nothing").status
    growth, cut, waiting, sent = asyncio.run(slow_readers(gateway, upstream, count, seconds))
    print(f"C2: {count} slow readers: {growth / count / 1024:.0f} KiB each, {growth >> 20} MiB")
    assert growth < (64 << 20) * count / 200 + (2 << 20 if count < 200 else 0)
    assert 0 == cut
    # The gateway reads no more than its clients do: what the upstream sends piles up there.
    assert count * 0.9 <= piled(waiting)
    assert sent < len(STEPS["ten megabytes"])


@pytest.fixture(scope="module")
def strict(serve: Serve, upstream: RawUpstream) -> Gateway:
    return served(serve, upstream, "{write_timeout: 1s, write_rate: 100KiB}")


async def until_cut(gateway: Gateway, upstream: RawUpstream, rate: int) -> tuple[str, float]:
    """The request's id, and how long a client may take so little a second."""
    caller = await Caller.of(gateway.url, window=8192)
    began = time.monotonic()
    await caller.send(request("a gigabyte", f"cut{rate}"))
    head = (await caller.until(b"\r\n\r\n")).decode()
    reading = asyncio.create_task(read_slowly(caller, rate, began + 20)) if rate else None
    hit = HITS[f"cut{rate}"]
    await until(lambda: hit.closed is not None)
    assert hit.closed is not None
    assert "reset" == await caller.ended()
    if reading is not None:
        await asyncio.gather(reading, return_exceptions=True)
    caller.leave()
    [request_id] = re.findall("x-request-id: (.*)\r", head)
    return request_id, hit.closed - began


@pytest.mark.parametrize(("rate", "soonest"), [(0, 1.0), (20_000, 1.0)])
def test_C3_a_client_that_stops_reading_is_cut_and_the_record_says_so(
    strict: Gateway, upstream: RawUpstream, rate: int, soonest: float
) -> None:
    request_id, seconds = asyncio.run(until_cut(strict, upstream, rate))
    print(f"C3: cut after {seconds:.2f} s of {rate} B/s")
    assert soonest <= seconds < soonest + 0.25 * SLACK
    line = strict.line(request_id)
    assert (499, "write_timeout") == (line["status"], line["outcome"])
    record = strict.record(request_id)
    assert ("write_timeout", 1) == (record["outcome"], record["estimated"])


def test_C3_a_client_that_reads_is_not_cut(strict: Gateway, upstream: RawUpstream) -> None:
    wanted = 160 * len(EVENT) * 1000

    async def read_all() -> int:
        caller = await Caller.of(strict.url)
        await caller.send(request("ten megabytes", "quick"))
        with suppress(ConnectionError):
            await caller.until(b"0\r\n\r\n")
        caller.leave()
        return caller.taken

    # Who gets no turn for a second does not read: it tries again.
    assert spared(lambda: asyncio.run(read_all()), lambda taken: taken > wanted) > wanted
