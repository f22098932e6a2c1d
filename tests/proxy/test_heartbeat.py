"""Comments in a silent stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from passy_proxy.heartbeat import COMMENT, LOOKS, Heartbeat
from passy_proxy.testing import Recorded
from passy_proxy.timers import Sweep

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sweep() -> AsyncIterator[Sweep]:
    """One whose turns the test makes itself."""
    sweep = Sweep(asyncio.get_running_loop(), interval=3600)
    yield sweep
    if sweep._timer is not None:
        sweep._timer.cancel()


def pass_time(beat: Heartbeat, looks: int) -> None:
    for _ in range(looks):
        beat.expire(beat.deadline)


async def test_a_silent_stream_is_kept_alive(sweep: Sweep) -> None:
    client = Recorded()
    sweep.now = 0.0  # As a clock that nobody needed for a while.
    beat = Heartbeat(12, client, sweep)
    begun = sweep.now
    assert 0 < begun
    assert begun + 12 / LOOKS == beat.deadline
    pass_time(beat, LOOKS - 1)
    assert [] == client.sent
    pass_time(beat, LOOKS + 1)
    assert [COMMENT, COMMENT] == client.sent
    assert begun + 2 * 12 + 12 / LOOKS == pytest.approx(beat.deadline)


async def test_what_is_sent_puts_it_off(sweep: Sweep) -> None:
    client = Recorded()
    beat = Heartbeat(12, client, sweep)
    for number in range(3):
        pass_time(beat, LOOKS - 1)
        beat.write(b"data: %d\n\n" % number)
        pass_time(beat, 1)
    assert COMMENT not in client.sent
    pass_time(beat, LOOKS)
    assert COMMENT == client.sent[-1]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (b"data: one\n\n", [COMMENT]),
        (b"data: one\r\n\r\n", [COMMENT]),
        (b"data: one\r\r", [COMMENT]),
        (b"data: on", []),
        (b"data: one\n", []),
    ],
)
async def test_nothing_is_put_into_the_middle_of_a_message(
    sweep: Sweep, last: bytes, expected: list[bytes]
) -> None:
    client = Recorded()
    beat = Heartbeat(12, client, sweep)
    beat.write(last)
    pass_time(beat, LOOKS + 1)
    assert [last, *expected] == client.sent


async def test_it_ends_with_the_stream_and_never_is_no_interval(sweep: Sweep) -> None:
    beat = Heartbeat(15, Recorded(), sweep)
    assert 1 == len(sweep)
    beat.stop()
    assert 0 == len(sweep)
    silent = Heartbeat(0, Recorded(), sweep)
    assert 0 == len(sweep)
    silent.stop()
    Heartbeat.of(15, Recorded()).stop()
