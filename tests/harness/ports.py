"""Ports of loopback for servers that have to be told theirs before they start.

One that the system hands out may be handed out again, to any connection or server of this machine,
before its server binds it, or while that server is away for a moment. These are not of that range,
and no two processes that run tests on this machine have the same.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path

FIRST = 10_000


def _range() -> range:
    """Below what the system hands out, where it leaves some."""
    told = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(told.read_text().split()[0]) if told.exists() else 32_768
    return range(FIRST, lowest if lowest > 2 * FIRST else 60_000)


_PORTS = _range()
_numbers = itertools.count(os.getpid() * 131)  # Others begin elsewhere.
_TAKEN = os.open(
    Path(tempfile.gettempdir()) / f"passy-test-ports-{os.getuid()}",
    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
    0o600,
)
"""Each byte of this file is a port; who has locked it has it, until its process ends."""


def free_port() -> int:
    """One on which nobody listens. Nobody is given it again while this process runs."""
    for _ in _PORTS:
        port = _PORTS[next(_numbers) % len(_PORTS)]
        with socket.socket() as probe:
            try:
                fcntl.lockf(_TAKEN, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
