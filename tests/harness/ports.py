"""Ports of loopback for servers that have to be told theirs before they start.

One that the system hands out may be handed out again, to any connection or server of this machine,
before its server binds it, or while that server is away for a moment. These are not of that range,
and each of the processes in which tests run at once has its own.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from pathlib import Path

FIRST = 10_000
MOST = 16
"""Processes of one run that have ports of their own."""


def _ours() -> range:
    """Those of this process: below what the system hands out."""
    range_of_system = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(range_of_system.read_text().split()[0]) if range_of_system.exists() else 32_768
    width = (lowest - FIRST) // MOST
    if width < 100:  # It hands out nearly all there are; then these may meet.
        return range(FIRST, 60_000)
    number = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0) % MOST
    return range(FIRST + number * width, FIRST + (number + 1) * width)


_OURS = _ours()
# Runs beside this one begin elsewhere.
_numbers = itertools.count(os.getpid() * 131)


def free_port() -> int:
    """One on which nobody listens. Nobody is given it again for a long time."""
    for _ in _OURS:
        port = _OURS[next(_numbers) % len(_OURS)]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
