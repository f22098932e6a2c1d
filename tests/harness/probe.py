"""One client in a process of its own: how long it waits for answers, whatever its test is doing."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

PAUSE = 0.01
"""Seconds between an answer and the next request."""
LEAST = 10
"""Answers that are waited for, also by one that begins late."""


class Probe:
    """Sends ``request`` again and again on one connection, until ``ended``."""

    def __init__(self, url: str, request: bytes) -> None:
        address = urlsplit(url)
        command = [sys.executable, "-P", __file__, str(address.hostname), str(address.port)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*command, request.hex()], stdin=pipe, stdout=pipe)

    def ended(self) -> list[tuple[float, int]]:
        """Seconds and status of each answer."""
        said, _ = self._process.communicate(b"\n")
        return [(seconds, status) for seconds, status in json.loads(said)]


def main(host: str, port: str, request: bytes) -> None:
    found = []
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while not select.select([sys.stdin], [], [], PAUSE)[0] or len(found) < LEAST:
        began = time.perf_counter()
        connection.sendall(request)
        said = connection.recv(1 << 16)
        found.append((time.perf_counter() - began, int(said[9:12])))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:3], bytes.fromhex(sys.argv[3]))
