"""What a supervisor outlives. How it looks after real workers is tried among the promises."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import Any, cast

import pytest

from passy_proxy.pulse import Slot
from passy_proxy.supervisor import LONGEST_WAIT, Supervisor, Times


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})


def nothing(number: int, line: socket.socket) -> None:
    """Work that is done at once."""


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def supervisor(log: Log) -> Iterator[Supervisor]:
    slots = [Slot(), Slot()]
    with socket.create_server(("127.0.0.1", 0)) as sock:
        supervisor = Supervisor(
            nothing, slots, [sock], lambda _: {}, cast(Any, log), Times(0, 0, 1)
        )
        yield supervisor
    lines = [worker.line for worker in supervisor.workers]
    for end in (supervisor._woken, supervisor._wake, *lines):
        if end is not None:
            end.close()
    for slot in slots:
        slot.close()


def test_a_worker_may_die_quickly_for_days(supervisor: Supervisor, log: Log) -> None:
    worker, _ = supervisor.workers
    worker.quick, worker.born = 100_000, monotonic()
    supervisor._plan(worker, 1, 1)
    assert LONGEST_WAIT == log.lines[0]["restart_in"]


def test_where_there_is_no_room_for_a_worker_it_is_tried_again(
    supervisor: Supervisor, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    worker, other = supervisor.workers
    other.due = inf
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", full)
        supervisor._start_who_is_due()
        supervisor._start_who_is_due()  # Not at once.
    assert ["worker_not_started"] == [line["event"] for line in log.lines]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not worker.pid
    assert worker.line is None
    worker.due = 0.0
    supervisor._start_who_is_due()
    assert worker.pid
    os.waitpid(worker.pid, 0)


def test_nobody_reckons_with_a_worker_that_is_gone(supervisor: Supervisor, log: Log) -> None:
    worker, _ = supervisor.workers
    supervisor._fork(worker)
    worker.slot.ready = True
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    supervisor._bury()
    assert ["worker_died"] == [line["event"] for line in log.lines]
    assert not worker.slot.ready


def test_O4_one_that_dies_before_it_serves_ends_nobody_who_does(
    supervisor: Supervisor, log: Log
) -> None:
    dying, serving = supervisor.workers
    serving.slot.ready = True  # Just now: nobody has looked yet.
    supervisor._fork(dying)
    os.waitid(os.P_PID, dying.pid, os.WEXITED | os.WNOWAIT)
    supervisor._bury()
    assert supervisor._end is None
    assert ["worker_died"] == [line["event"] for line in log.lines]
