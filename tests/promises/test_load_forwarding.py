"""What comes from an upstream goes on at once; an answer may come before its request is whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from harness.again import spared
from harness.crowd import CHAT, Caller, asking, percentile
from harness.gateway import Gateway, Serve
from harness.upstream import RawUpstream, Step

CONFIGURATION = """
overload: {{loop_lag: 0s}}
upstreams: {{one: {{url: "{url}/v1", credential: a-credential}}}}
models: {{m: [one/real]}}
edge: {{body_grace: 1s}}
chains:
  default: [access_log, usage, alias, fallback]
  refused: [static: {{status: 401}}]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: POST /refused, chain: refused}}
"""
SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = 'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
END: list[Step] = [{"chunk": "data: [DONE]\n\n"}, {"send": "0\r\n\r\n"}]
STREAM = asking("/v1/chat/completions", {**CHAT, "stream": True})
STAMPS = 25


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    stamps: list[Step] = [{"stamp": EVENT}, {"wait": 0.04}]
    with RawUpstream([{"send": SSE}, *stamps * STAMPS, *END]) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(serve: Serve, upstream: RawUpstream) -> Gateway:
    return serve(CONFIGURATION.format(url=upstream.url))


async def lateness(url: str) -> list[float]:
    """Of each event of a stream, the time from the upstream's sending to the client's reading."""
    caller = await Caller.of(url)
    await caller.send(STREAM)
    await caller.until(b"\r\n\r\n")
    late = []
    for _ in range(STAMPS):
        event = await caller.until(b"}]}\n\n")
        stamp = float(event.partition(b'"content":"')[2].partition(b'"')[0])
        late.append(time.monotonic() - stamp)
    await caller.until(b"0\r\n\r\n")
    caller.leave()
    return late


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.large)])
def test_F3_each_piece_is_forwarded_as_it_comes(gateway: Gateway, rounds: int) -> None:
    async def fifty() -> list[list[float]]:
        return [
            late
            for _ in range(rounds)
            for late in await asyncio.gather(*(lateness(gateway.url) for _ in range(50)))
        ]

    def measured() -> list[float]:
        streams = asyncio.run(fifty())
        first = [late[0] for late in streams]
        all_of_them = [each for late in streams for each in late]
        return [percentile(v, p) for v in (first, all_of_them) for p in (0.5, 0.99)]

    # The first ones all come in one moment.
    slack = 20 if rounds == 1 else 1
    most = 0.005 * slack, 0.020 * slack
    figures = spared(measured, lambda found: found[2] <= most[0] and found[3] <= most[1])
    print(
        "F3: first event p50 {:.1f} p99 {:.1f}, all p50 {:.1f} p99 {:.1f} ms".format(
            *(figure * 1000 for figure in figures)
        )
    )
    assert figures[2] <= most[0]
    assert figures[3] <= most[1]


async def early(url: str, size: int, sent: int) -> tuple[int, str, float, bool]:
    """Status and `connection` of an answer that came before the body of ``size`` bytes, of which
    ``sent`` follow it; when the connection ended, and whether it served another request."""
    caller = await Caller.of(url)
    try:
        await caller.send(asking("/refused", b"", length=size))
        status, headers, _ = await caller.answer()
        began = time.monotonic()
        try:
            while sent > 0:
                await caller.send(b"x" * min(sent, 8192))
                sent -= 8192
                await asyncio.sleep(0)
            await caller.send(asking("/livez"))
            answer = await caller.until(b'{"status":"ok"}')
            return status, headers.get("connection", ""), 0.0, answer.startswith(b"HTTP/1.1 200")
        except OSError:
            return status, headers.get("connection", ""), time.monotonic() - began, False
    finally:
        caller.leave()


def test_C4_a_small_body_is_thrown_away_after_an_early_answer(gateway: Gateway) -> None:
    size = 64 * 1024
    # It has a second to come; who gets no turn for so long tries again.
    found = spared(
        lambda: asyncio.run(early(gateway.url, size, size)), lambda found: found[3], times=3
    )
    assert (401, "", 0.0, True) == found


def test_C4_a_large_one_ends_the_connection(gateway: Gateway) -> None:
    size = 20 << 20
    status, connection, seconds, goes_on = asyncio.run(early(gateway.url, size, size))
    assert (401, "close", False) == (status, connection, goes_on)
    assert seconds < 15


@pytest.mark.parametrize("size", [1000, 20 << 20])
def test_C4_so_does_one_that_does_not_come(gateway: Gateway, size: int) -> None:
    async def ended() -> float:
        caller = await Caller.of(gateway.url)
        await caller.send(asking("/refused", b"", length=size))
        began = time.monotonic()
        await caller.ended()
        caller.leave()
        return time.monotonic() - began

    seconds = asyncio.run(ended())
    assert seconds < 15
