"""A snapshot starts whole or not at all, and stops when its last exchange has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_proxy.config.model import GatewayFile
from passy_proxy.config.snapshot import Snapshot, StartFailed
from passy_proxy.filter import Filter
from passy_proxy.shared import Shared

pytestmark = pytest.mark.anyio


class Part(Filter):
    """A filter, or a store, that writes down what it is told."""

    def __init__(self, name: str, told: list[str], fault: BaseException | None = None) -> None:
        self.name = name  # type: ignore[misc]
        self._told = told
        self._fault = fault

    async def start(self) -> None:
        self._told.append(f"start {self.name}")
        await asyncio.sleep(0)
        if self._fault is not None:
            raise self._fault

    async def stop(self) -> None:
        self._told.append(f"stop {self.name}")
        if self.name == "stubborn":
            raise OSError("it does not stop")


Make = Callable[..., Snapshot]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, told: list[str]) -> Make:
    def snapshot(*filters: str, fault: BaseException | None = None, at: str = "") -> Snapshot:
        log: Any = structlog.get_logger()
        made = Snapshot(GatewayFile().settings, hash="hash", log=log, shared=Shared())
        made.store_keys["books"] = "key"
        made.shared.take(
            "key", lambda: Part("books", told, fault if at == "books" else None), "stop"
        )
        made.held.append("key")
        made.filters = [Part(name, told, fault if at == name else None) for name in filters]
        return made

    return snapshot


async def test_stores_start_before_filters_and_all_stop_in_reverse(
    make: Make, told: list[str]
) -> None:
    snapshot = make("a", "b")
    await snapshot.start()
    await snapshot.stop()
    expected = ["start books", "start a", "start b", "stop b", "stop a", "stop books"]
    assert expected == told
    assert 0 == len(snapshot.shared)


@pytest.mark.parametrize("at", ["books", "a", "b"])
async def test_a_start_that_fails_stops_what_had_begun(
    make: Make, told: list[str], at: str
) -> None:
    snapshot = make("a", "b", fault=OSError("no such disk"), at=at)
    with pytest.raises(StartFailed, match=rf"{at} could not be started: no such disk"):
        await snapshot.start()
    begun = [entry.removeprefix("start ") for entry in told if entry.startswith("start")]
    stopped = [entry.removeprefix("stop ") for entry in told if entry.startswith("stop")]
    assert begun == stopped[::-1]
    assert 0 == len(snapshot.shared)


async def test_a_start_that_is_cancelled_stops_what_had_begun(make: Make, told: list[str]) -> None:
    snapshot = make("a", "b")
    task = asyncio.get_running_loop().create_task(snapshot.start())
    while "start a" not in told:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ["start books", "start a", "stop a", "stop books"] == told


async def test_a_part_that_does_not_stop_keeps_no_other_from_it(
    make: Make, told: list[str]
) -> None:
    snapshot = make("a", "stubborn")
    await snapshot.start()
    await snapshot.stop()
    assert ["stop stubborn", "stop a", "stop books"] == told[3:]


async def test_a_retired_snapshot_stops_with_its_last_exchange(make: Make, told: list[str]) -> None:
    snapshot = make("a")
    await snapshot.start()
    snapshot.running = 2
    task = asyncio.get_running_loop().create_task(snapshot.retire())
    for _ in range(2):
        await asyncio.sleep(0)
        assert "stop a" not in told
        snapshot.left()
    await task
    assert ["stop a", "stop books"] == told[2:]


@pytest.mark.parametrize("how", ["time", "cancel"])
async def test_a_wait_that_is_cut_short_ends_in_a_stop_all_the_same(
    make: Make, told: list[str], how: str
) -> None:
    snapshot = make("a")
    await snapshot.start()
    snapshot.running = 1
    limit = 0.01 if how == "time" else None
    task = asyncio.get_running_loop().create_task(snapshot.retire(limit))
    if how == "cancel":
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    assert ["stop a", "stop books"] == told[2:]
