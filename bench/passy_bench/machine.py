"""The machine: CPU time and memory of processes, pinning, free ports, a description.

Linux only where a process is looked at; everything reads `/proc` or a kernel clock.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROC = Path("/proc")
_PORTS = range(5_000, 10_000)
_SCHEDULER_CLOCK = 2  # CPUCLOCK_SCHED: the scheduler's run time, not tick counting


def cpu_ns(pids: Iterable[int]) -> int:
    """Scheduler run time of these processes in ns, threads that have ended included.

    It is the sum of what `/proc/PID/task/*/schedstat` shows for living threads, read from the
    process clock of the kernel because that one also remembers the threads that are gone.
    Raises OSError when a process is gone, for then no difference of two readings means anything.
    """
    return sum(time.clock_gettime_ns((~pid << 3) | _SCHEDULER_CLOCK) for pid in pids)


def waited_ns(pids: Iterable[int]) -> int:
    """How long, in ns, the living threads of these processes were ready to run and did not."""
    waited = 0
    for pid in pids:
        for task in (_PROC / str(pid) / "task").glob("*/schedstat"):
            with suppress(OSError):  # a thread that ended since the listing
                waited += int(task.read_text().split()[1])
    return waited


def session_pids(leader: int) -> list[int]:
    """The living processes of the session that `leader` started: itself and its descendants."""
    return [pid for pid, session in _sessions() if session == leader]


def _sessions() -> Iterator[tuple[int, int]]:
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:  # ended since the listing
            continue
        state, _parent, _group, session = stat.rpartition(")")[2].split()[:4]
        if state != "Z":
            yield int(folder.name), int(session)


def rss_mb(pids: Iterable[int]) -> float:
    """Resident memory of these processes in MB (10^6 bytes); shared pages count in each."""
    return sum(_rss_kib(pid) for pid in pids) * 1024 / 1e6


def _rss_kib(pid: int) -> int:
    status = (_PROC / str(pid) / "status").read_text()
    return int(status.partition("VmRSS:")[2].split(maxsplit=1)[0])


def two_cores() -> tuple[int, int] | None:
    """One core for the target and one for mock and load, or None where there are not two."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) >= 2 else None


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Run the block on `core`; processes started inside stay there."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A loopback port nobody listens on now, below those that the system hands out by itself: one
    of these might be somebody else's before its program binds it."""
    for _ in range(1_000):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def description() -> dict[str, str | int]:
    """What a reader needs to judge the figures: CPU, cores, memory, kernel, load before the run."""
    return {
        "cpu": _first("cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory": _first("meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _first(file: str, field: str) -> str:
    try:
        lines = (_PROC / file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
