"""Logs that nobody reads."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.crowd import CHAT, Caller, asking, resident
from harness.gateway import Gateway, Serve, until

CONFIGURATION = """
overload: {loop_lag: 0s}
log: {level: debug, format: json}
upstreams: {echo: {kind: echo}}
models: {m: [echo/echo]}
chains:
  default: [access_log, alias, fallback]
  long: [access_log, static: {status: 204}]
routes:
  - {match: POST /v1/chat/completions}
  - {match: GET /long/*, chain: long}
"""


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[int]:
    """A FIFO that is open and read by nobody."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)
    yield end
    os.close(end)


def fill(fifo: int) -> None:
    """Leave no room in it."""
    try:
        os.set_blocking(fifo, False)
        while True:
            os.write(fifo, b"x" * 4096)
    except BlockingIOError:
        # The description is shared with the gateway, which is to find it as it is by default.
        os.set_blocking(fifo, True)


def dropped(gateway: Gateway) -> int:
    return int(gateway.ask("/readyz").json["checks"]["log_lines_dropped"])


def configuration(gateway: Gateway) -> str:
    """What its readiness says of the one in the file."""
    return str(gateway.ask("/readyz").json["checks"].get("configuration"))


def ask_on(gateway: Gateway, count: int) -> float:
    """The longest of so many answers, in seconds."""
    longest = 0.0
    for _ in range(count):
        began = time.monotonic()
        assert 200 == gateway.ask("/v1/chat/completions", CHAT).status
        longest = max(longest, time.monotonic() - began)
    return longest


async def long_lines(gateway: Gateway, count: int) -> float:
    """Requests whose lines have 8 KB each; the longest of their answers, in seconds."""
    caller = await Caller.of(gateway.url)
    longest = 0.0
    for _ in range(count):
        began = time.monotonic()
        await caller.send(asking("/long/" + "x" * 8000))
        assert 204 == (await caller.answer())[0]
        longest = max(longest, time.monotonic() - began)
    caller.leave()
    return longest


@pytest.mark.parametrize("lines", [2_600, pytest.param(100_000, marks=pytest.mark.large)])
def test_D7_standard_output_that_nobody_reads(serve: Serve, unread: int, lines: int) -> None:
    gateway = serve(CONFIGURATION, stdout=unread)
    fill(unread)
    ask_on(gateway, 20)
    before = resident(gateway.process.pid)
    longest = asyncio.run(long_lines(gateway, lines))
    growth = resident(gateway.process.pid) - before
    print(f"D7: {lines} lines, {dropped(gateway)} dropped, {growth >> 20} MiB more")
    assert dropped(gateway) > 0
    assert growth < 48 << 20
    assert longest < 10  # Who waits for a reader waits for ever.
    # Reloading starts nothing anew that would be stuck as well, and waits for nobody.
    text = gateway.file.read_text()
    for number in range(3):
        gateway.file.write_text(f"{text}# {number}\n")
        until_reloaded(gateway, number + 1)
    assert ask_on(gateway, 5) < 10
    threads = os.listdir(f"/proc/{gateway.process.pid}/task")
    assert len(threads) < 20, threads
    assert "were dropped" not in gateway.complaints()
    # It is told of as soon as somebody reads.
    os.set_blocking(unread, False)
    end = time.monotonic() + 90
    while "were dropped" not in gateway.complaints():
        assert time.monotonic() < end, "nothing is said of what was dropped"
        try:
            while os.read(unread, 1 << 16):
                pass
        except BlockingIOError:
            time.sleep(0.02)


def until_reloaded(gateway: Gateway, times: int) -> None:
    end = time.monotonic() + 90
    while gateway.complaints().count('"reloaded"') < times:
        assert time.monotonic() < end, "it does not reload"
        time.sleep(0.02)


def test_D7_standard_error_that_nobody_reads(serve: Serve, unread: int) -> None:
    gateway = serve(CONFIGURATION, stderr=unread)
    fill(unread)
    text = gateway.file.read_text()
    # Each reload that is refused is a long line of the log, and there is room for none.
    for number in range(3):
        gateway.file.write_text(f"{text}wrong{number}: {{}}\n")
        until(lambda: f"wrong{number}" in configuration(gateway) or None)  # noqa: B023
        assert ask_on(gateway, 5) < 10


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full IS NOT HERE")
def test_D7_a_disk_that_is_full(serve: Serve) -> None:
    """Each write fails for want of space, on both outputs."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        gateway = serve(CONFIGURATION, stdout=full, stderr=full)
        assert ask_on(gateway, 50) < 10
        end = time.monotonic() + 90
        while dropped(gateway) < 50:
            assert time.monotonic() < end, "nothing is counted"
            time.sleep(0.02)
        gateway.file.write_text(f"{gateway.file.read_text()}wrong: {{}}\n")
        until(lambda: "wrong" in configuration(gateway) or None)
        assert ask_on(gateway, 5) < 10
    finally:
        os.close(full)
