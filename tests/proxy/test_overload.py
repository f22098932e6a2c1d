"""Overload: what is short closes the gate, step by step, and says so once."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import pytest

from passy_proxy import resources
from passy_proxy.config.model import OverloadSettings
from passy_proxy.log import configure
from passy_proxy.overload import CALM, COPIES, LOOK, NO_LIMIT, Overload

pytestmark = pytest.mark.anyio

MIB = 1 << 20


class Edge:
    """A gate that only remembers."""

    def __init__(self) -> None:
        self.most_requests = self.most_connections = self.most_held = -1
        self.held = 0
        self.shrinking = False
        self.refused: dict[str, int] = {}
        self.open = 0
        self.idle_closed = 0

    def close_idle(self) -> None:
        self.idle_closed += 1


class Watch:
    """An Overload over a machine that is what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.edge = Edge()
        self.used, self.there = 100 * MIB, 1000 * MIB
        self.files = (20, 1000)
        self.now = 0.0
        self._lines = io.StringIO()
        monkeypatch.setattr(resources.Memory, "own", lambda _: self.used)
        monkeypatch.setattr(resources.Memory, "shared", lambda _: (self.used, self.there))
        monkeypatch.setattr(resources, "descriptors", lambda: self.files)
        self.settings = OverloadSettings.model_validate(settings)
        log = configure("info", "json", self._lines)
        self.overload = Overload(self.edge, lambda: self.settings, log)

    def look(self, lag: float = 0.0, after: float = LOOK) -> tuple[int, bool]:
        """The gate after another look: most requests, and whether it keeps no connection."""
        self.now += after
        self.overload.look(self.now, lag)
        return self.edge.most_requests, self.edge.shrinking

    @property
    def said(self) -> list[tuple[str, int]]:
        lines = [json.loads(line) for line in self._lines.getvalue().splitlines()]
        return [(line["state"], line["refused"]) for line in lines]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch, max_requests=50)


def test_memory_first_ends_connections_and_then_refuses(watch: Watch) -> None:
    assert (50, False) == watch.look()
    watch.used = 860 * MIB  # of 950
    assert (50, True) == watch.look()
    watch.used = 951 * MIB
    assert (0, True) == watch.look()
    watch.edge.refused["overloaded"] = 7
    assert (0, True) == watch.look()
    watch.used = 100 * MIB
    assert (50, False) == watch.look()
    assert "refusing: memory" == watch.overload.told
    assert (50, False) == watch.look(after=CALM)
    assert "ok" == watch.overload.told
    assert [("near: memory", 0), ("refusing: memory", 0), ("ok", 7)] == watch.said
    assert 0 == watch.edge.idle_closed


def test_a_limit_of_its_own_counts_what_the_process_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, memory="99MiB", max_requests=0)
    assert (0, True) == watch.look()
    watch.used = 10 * MIB
    assert (NO_LIMIT, False) == watch.look()


def test_bodies_get_what_is_free_in_as_many_copies_as_are_made(watch: Watch) -> None:
    watch.look()
    assert 850 * MIB // COPIES == watch.edge.most_held
    watch.edge.held, watch.used = 40 * MIB, 140 * MIB
    watch.look()
    assert 850 * MIB // COPIES == watch.edge.most_held
    watch.used = 2000 * MIB
    watch.look()
    assert 0 == watch.edge.most_held
    watch.there = 0  # It is not known.
    assert (50, False) == watch.look()
    assert NO_LIMIT == watch.edge.most_held


def test_descriptors_bound_connections_and_refuse(watch: Watch) -> None:
    assert (50, False) == watch.look()
    assert (1000 - 64) // 2 == watch.edge.most_connections
    watch.files = (850, 1000)
    assert (50, True) == watch.look()
    assert 1 == watch.edge.idle_closed
    watch.files = (900, 1000)
    assert (0, True) == watch.look()
    assert "refusing: descriptors" == watch.overload.told
    watch.files = (0, 0)  # without a limit
    assert (50, False) == watch.look()
    assert NO_LIMIT == watch.edge.most_connections


def test_many_connections_are_not_kept_but_asked_of(watch: Watch) -> None:
    watch.settings = OverloadSettings.model_validate({"max_connections": 10})
    watch.edge.open = 9
    assert (4096, True) == watch.look()
    assert (10, 1) == (watch.edge.most_connections, watch.edge.idle_closed)
    watch.edge.open = 12
    assert (4096, True) == watch.look()
    assert "refusing: connections" == watch.overload.told


def test_lag_refuses_and_0_never_does(watch: Watch) -> None:
    assert (50, True) == watch.look(lag=0.95)
    assert (0, True) == watch.look(lag=1.0)
    watch.settings = OverloadSettings.model_validate({"loop_lag": "0"})
    assert (4096, False) == watch.look(lag=9.0)


def test_refusals_of_the_edge_are_told(watch: Watch) -> None:
    watch.look()
    watch.edge.refused["overloaded"] = 3
    assert (50, False) == watch.look()
    watch.look()
    assert "refusing: requests" == watch.overload.told
    watch.look(after=CALM)
    watch.look()
    assert [("refusing: requests", 3), ("ok", 0)] == watch.said


async def test_a_loop_that_is_late_twice_in_a_row_is_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch(monkeypatch, loop_lag="100ms")
    watch.overload.start()
    assert 4096 == watch.edge.most_requests
    time.sleep(LOOK + 0.2)  # noqa: ASYNC251 - that is the point
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    once = watch.edge.most_requests
    time.sleep(LOOK + 0.2)  # noqa: ASYNC251
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (4096, 0) == (once, watch.edge.most_requests)
    watch.overload.stop()
