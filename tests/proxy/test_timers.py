"""One sweep per loop: deadlines are met, moved for free, and cost nothing while there are none."""

from __future__ import annotations

import asyncio

import pytest

from passy_proxy.timers import NEVER, Sweep, sweep_of

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


class Member:
    """Leaves the sweep when it is overdue."""

    def __init__(self, sweep: Sweep, after: float) -> None:
        self.sweep = sweep
        self.deadline = asyncio.get_running_loop().time() + after
        self.expired = asyncio.Event()
        self.at = 0.0

    def expire(self, now: float) -> None:
        self.at = now
        self.sweep.discard(self)
        self.expired.set()


async def test_a_member_expires_after_its_deadline_and_not_before() -> None:
    sweep = Sweep(asyncio.get_running_loop(), interval=0.02)
    members = [Member(sweep, after) for after in (0.0, 0.1, 0.2)]
    for member in members:
        sweep.add(member)
    async with asyncio.timeout(PATIENCE):
        for member in members:
            await member.expired.wait()
    assert all(member.deadline <= member.at for member in members)
    assert 0 == len(sweep)


async def test_a_moved_deadline_is_the_one_that_counts() -> None:
    sweep = Sweep(asyncio.get_running_loop(), interval=0.01)
    moved, marker = Member(sweep, 0.0), Member(sweep, 0.1)
    sweep.add(moved)
    sweep.add(marker)
    moved.deadline = NEVER
    async with asyncio.timeout(PATIENCE):
        await marker.expired.wait()
    assert not moved.expired.is_set()
    assert 1 == len(sweep)
    sweep.discard(moved)


async def test_a_discarded_member_is_left_alone_even_within_one_turn() -> None:
    sweep = Sweep(asyncio.get_running_loop(), interval=0.01)
    first, second = Member(sweep, 0.0), Member(sweep, 0.0)

    def end_both(now: float) -> None:
        sweep.discard(first)
        sweep.discard(second)
        marker.deadline = now

    first.expire = second.expire = end_both  # type: ignore[method-assign]
    marker = Member(sweep, NEVER)
    for member in (first, second, marker):
        sweep.add(member)
    async with asyncio.timeout(PATIENCE):
        await marker.expired.wait()
    assert 0 == len(sweep)


async def test_a_faulty_member_does_not_stop_the_others() -> None:
    loop = asyncio.get_running_loop()
    reported: list[object] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, report: reported.append(report["exception"]))
    try:
        sweep = Sweep(loop, interval=0.01)
        faulty, sound = Member(sweep, 0.0), Member(sweep, 0.05)

        def fail(now: float) -> None:
            sweep.discard(faulty)
            raise ZeroDivisionError

        faulty.expire = fail  # type: ignore[method-assign]
        sweep.add(faulty)
        sweep.add(sound)
        async with asyncio.timeout(PATIENCE):
            await sound.expired.wait()
    finally:
        loop.set_exception_handler(before)
    assert [ZeroDivisionError] == [type(error) for error in reported]


async def test_an_emptied_sweep_can_be_used_again_and_its_clock_is_fresh() -> None:
    loop = asyncio.get_running_loop()
    sweep = Sweep(loop, interval=0.01)
    for _ in range(2):
        member = Member(sweep, 0.0)
        sweep.add(member)
        assert loop.time() - sweep.now < 5
        async with asyncio.timeout(PATIENCE):
            await member.expired.wait()


async def test_a_loop_has_one_sweep() -> None:
    loop = asyncio.get_running_loop()
    assert sweep_of(loop) is sweep_of(loop)
