"""The pulse of a loop: what is seen, what is written down, whom it leads to."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from passy_proxy import hookimpl
from passy_proxy.pulse import FRAMES, Pulse, Slot, blamed
from passy_proxy.registry import Registry

pytestmark = pytest.mark.anyio


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot()
    yield slot
    slot.close()


@pytest.fixture
def log() -> Log:
    return Log()


def pulse_of(slot: Slot, log: Any, lag: float = 0.2) -> Pulse:
    return Pulse(slot, Registry(), log, lag, 0.0)


async def test_a_loop_that_turns_beats_and_is_not_logged(slot: Slot, log: Log) -> None:
    pulse = pulse_of(slot, log, lag=5.0)
    pulse.start()
    began = time.monotonic()
    await asyncio.sleep(0.3)
    assert 1 <= slot.beats <= 7 + 10 * (time.monotonic() - began)
    await pulse.stop()
    beats = slot.beats
    await asyncio.sleep(0.1)
    assert beats == slot.beats
    assert [] == log.lines


async def test_a_loop_that_is_held_up_is_logged_with_where_it_was(slot: Slot, log: Log) -> None:
    pulse = pulse_of(slot, log)
    pulse.start()
    here = "in test_a_loop_that_is_held_up"
    for _ in range(8):  # A machine makes pauses of its own, which are seen as well.
        await asyncio.sleep(0.1)
        time.sleep(1.2)  # noqa: ASYNC251
        await asyncio.sleep(0.1)
        if found := [line for line in log.lines if here in "".join(line["stack"][:1])]:
            break
    await pulse.stop()
    line = found[0]
    assert line["seconds"] > 1.0
    assert "loop_blocked" == line["event"]
    assert "test_pulse.py" in line["stack"][0]
    assert pulse.blocked >= 1
    assert pulse.blocked_seconds > 1.0


async def test_short_ones_are_said_now_and_then(slot: Slot, log: Log) -> None:
    pulse = pulse_of(slot, log)
    for late, at in ((0.3, 100.0), (0.3, 101.0), (0.6, 102.0), (0.3, 103.0), (0.3, 108.0)):
        pulse._held_up(late, at)
    assert [(0.3, 0), (0.6, 1), (0.3, 1)] == [(one["seconds"], one["unsaid"]) for one in log.lines]
    assert 5 == pulse.blocked


async def test_one_to_blame_does_not_cover_another(slot: Slot, log: Log, tmp_path: Path) -> None:
    pulse = pulse_of(slot, log)
    pulse._registry.add("mine", plugin(tmp_path, "mine"), "passy-mine", "1")
    pulse._held_up(0.3, 100.0)
    slot.dump.write(
        f'Stack (most recent call first):\n  File "{tmp_path}/mine.py", line 1 in f\n'.encode()
    )
    pulse._held_up(0.3, 101.0)
    assert [None, "mine"] == [line["plugin"] for line in log.lines]


SWITCHING = """
import asyncio, functools, random, re, signal, time
import greenlet
from passy_proxy.pulse import Pulse, Slot
from passy_proxy.registry import Registry

WAYS = (
    lambda left, end: list(map(lambda _: deep(left - 1, end), (1,))),
    lambda left, end: re.sub("a", lambda _: (deep(left - 1, end), "b")[1], "a"),
    lambda left, end: sorted([1], key=lambda _: (deep(left - 1, end), 1)[1]),
    lambda left, end: functools.reduce(lambda a, b: deep(left - 1, end), (1, 2)),
)

def deep(left, end):
    return random.choice(WAYS)(left, end) if left else end()

def beside():
    while True:
        deep(random.randrange(8), main.switch)

async def held_up():
    slot = Slot()
    pulse = Pulse(slot, Registry(), None, 60.0, 0.0)
    pulse.start()
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    others = [greenlet.greenlet(beside) for _ in range(8)]
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        for _ in range(100):
            deep(random.randrange(8), random.choice(others).switch)
    signal.setitimer(signal.ITIMER_REAL, 0)
    slot.stack()  # Forgotten: of so many alarms a part is read, which may end anywhere.
    signal.raise_signal(signal.SIGALRM)
    print(len(slot.stack()))
    await pulse.stop()

main = greenlet.getcurrent()
asyncio.run(held_up())
"""


def test_an_alarm_does_not_end_a_process_that_switches_greenlets() -> None:
    """As SQLAlchemy does: between two of them there is no stack to be looked at."""
    ran = subprocess.run(
        [sys.executable, "-c", SWITCHING], capture_output=True, text=True, timeout=60
    )
    assert 0 == ran.returncode, ran.stderr
    assert int(ran.stdout) > 0


async def test_it_leaves_no_alarm_behind(slot: Slot, log: Log) -> None:
    pulse = pulse_of(slot, log)
    pulse.start()
    await asyncio.sleep(0.1)
    await pulse.stop()
    assert (0.0, 0.0) == signal.getitimer(signal.ITIMER_REAL)


def test_the_last_stack_of_a_dump_is_read_and_the_dump_emptied(slot: Slot) -> None:
    slot.dump.write(b'Stack (most recent call first):\n  File "/a.py", line 1 in old\n')
    slot.dump.write(
        b"Fatal Python error: Segmentation fault\n\n"
        b"Current thread 0x00007f (most recent call first):\n"
        b'  File "/b.py", line 2 in new\n  File "/c \\ud800.py", line ??? in <module>\n'
        b'\nThread 0x00008f (most recent call first):\n  File "/d.py", line 4 in other\n'
    )
    assert ["/b.py:2 in new", "/c \\ud800.py:??? in <module>"] == slot.stack()
    assert [] == slot.stack()


def test_a_real_dump_is_read(slot: Slot) -> None:
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            faulthandler.dump_traceback(slot.dump, all_threads=False)

    deep(50)
    stack = slot.stack()
    assert FRAMES == len(stack)
    assert "in deep" in stack[0]


def test_the_next_stack_is_written_where_the_dump_begins(slot: Slot) -> None:
    for number in range(3):
        slot.dump.write(b'Stack (most recent call first):\n  File "/a.py", line %d in f\n' % number)
        assert [f"/a.py:{number} in f"] == slot.stack()


def test_what_is_published_is_whole_or_nothing(slot: Slot) -> None:
    assert b"" == slot.published()
    slot.publish(b"one" * 1000)
    assert b"one" * 1000 == slot.published()
    slot.publish(b"two")
    assert b"two" == slot.published()
    slot.publish(b"three")
    os.pwrite(slot._published.fileno(), b"X", 9)  # half of another one
    assert b"" == slot.published()


def plugin(folder: Path, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(folder / f"{name}.py")

    @hookimpl
    def passy_filters() -> list[Any]:
        return []

    module.passy_filters = passy_filters  # type: ignore[attr-defined]
    return module


def test_the_innermost_plugin_of_a_stack_is_blamed(tmp_path: Path) -> None:
    registry = Registry()
    registry.add("outer", plugin(tmp_path / "a", "outer"), "passy-outer", "1")
    registry.add("inner", plugin(tmp_path / "b", "inner"), "passy-inner", "2")
    stack = [
        f"{sys.prefix}/re.py:1 in match",
        f"{tmp_path}/b/inner.py:3 in on_request",
        f"{tmp_path}/a/outer.py:4 in on_request",
        "/proxy/chain.py:5 in run",
    ]
    assert {"plugin": "inner", "filters": [], "distribution": "passy-inner 2"} == blamed(
        stack, registry
    )
    assert "outer" == blamed(stack[2:], registry)["plugin"]
    # A module beside the plugin's own is its helper.
    assert "outer" == blamed([f"{tmp_path}/a/aside.py:4 in f"], registry)["plugin"]
    assert {"plugin": None} == blamed(stack[3:], registry)
