"""Hooks that wait: how long, and what ends them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

import pytest

from passy_proxy.faults import OutOfTime, within
from passy_proxy.timers import sweep_of

pytestmark = pytest.mark.anyio


async def at_once() -> str:
    return "done"


async def soon() -> str:
    await asyncio.sleep(0)
    return "done"


async def failing() -> None:
    await asyncio.sleep(0)
    raise LookupError("its own")


async def deaf() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


class Wanted:
    def __await__(self) -> Any:
        return soon().__await__()


@pytest.mark.parametrize("limit", [0, 5.0])
@pytest.mark.parametrize("make", [at_once, soon, Wanted, lambda: asyncio.ensure_future(soon())])
async def test_a_result_comes_through(make: Any, limit: float) -> None:
    assert "done" == await within(make(), limit)
    assert 0 == len(sweep_of(asyncio.get_running_loop()))


async def test_what_does_not_wait_sets_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("passy_proxy.faults.sweep_of", None)
    assert "done" == await within(at_once(), 5.0)


async def test_its_own_exceptions_come_through() -> None:
    with pytest.raises(LookupError, match="its own"):
        await within(failing(), 5.0)


@pytest.mark.parametrize("make", [lambda: asyncio.sleep(3600), deaf])
async def test_a_wait_ends_when_its_time_is_up(make: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(OutOfTime):
        await within(make(), 0.05)
    assert 0 == task.cancelling()
    await asyncio.sleep(0)  # where a cancellation left over would come


async def test_who_returns_after_its_time_is_late_all_the_same() -> None:
    async def late() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return "too late"

    with pytest.raises(OutOfTime):
        await within(late(), 0.05)


async def test_a_timeout_inside_is_the_hooks_own() -> None:
    async def patient() -> str:
        try:
            async with asyncio.timeout(0.05):
                await asyncio.sleep(3600)
        except TimeoutError:
            return "enough"
        return ""

    assert "enough" == await within(patient(), 5.0)


@pytest.mark.parametrize("limit", [0, 0.3, 60.0])
@pytest.mark.parametrize("make", [lambda: asyncio.sleep(3600), deaf])
async def test_a_cancellation_from_elsewhere_comes_through(make: Any, limit: float) -> None:
    async def work(awaitable: Awaitable[Any]) -> None:
        await within(awaitable, limit)

    task = asyncio.ensure_future(work(make()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert 1 == task.cancelling()
