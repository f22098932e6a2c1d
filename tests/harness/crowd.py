"""Many clients at once, in one event loop: those who leave, who dawdle, and who behave."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 60.0
"""Seconds that anything here may take; only a hang takes so long."""

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def asking(path: str, body: object = None, *lines: str, length: int | None = None) -> bytes:
    """A request as bytes; ``length`` announces more of a body than is there."""
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    method = "GET" if body is None else "POST"
    size = len(content) if length is None else length
    head = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {size}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + content


class Caller:
    """One connection. ``taken`` counts the bytes it has read; it reads no more than it is asked."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.taken = 0
        self._data = b""

    @classmethod
    async def of(cls, url: str, *, source: str = "", window: int = 0) -> Caller:
        """Connect, from address ``source``, with a receive buffer of ``window`` bytes."""
        address = urlsplit(url)
        sock = socket.socket()
        sock.setblocking(False)
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        if source:
            sock.bind((source, 0))
        try:
            async with asyncio.timeout(PATIENCE):
                to = (address.hostname, address.port)
                await asyncio.get_running_loop().sock_connect(sock, to)
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock)

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, most: int = 1 << 16) -> bytes:
        """What comes next; nothing at the end. Raises OSError for a reset."""
        async with asyncio.timeout(PATIENCE):
            data = await asyncio.get_running_loop().sock_recv(self.sock, most)
        self.taken += len(data)
        return data

    async def until(self, mark: bytes) -> bytes:
        """All that came as far as ``mark``, what follows it stays for the next call."""
        while mark not in self._data:
            data = await self.read()
            if not data:
                raise ConnectionError(f"it ended after {self._data[-500:]!r}")
            self._data += data
        found, mark, self._data = self._data.partition(mark)
        return found + mark

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer; its length must be told."""
        head = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = [line.partition(": ") for line in head[1:] if line]
        headers = {name.lower(): value for name, _, value in fields}
        if "chunked" in headers.get("transfer-encoding", ""):
            return int(head[0].split()[1]), headers, await self.until(b"0\r\n\r\n")
        size = int(headers.get("content-length", 0))
        while len(self._data) < size:
            data = await self.read()
            if not data:
                raise ConnectionError("it ended within a body")
            self._data += data
        body, self._data = self._data[:size], self._data[size:]
        return int(head[0].split()[1]), headers, body

    async def ended(self) -> str:
        """How the other side ends it, ``fin`` or ``reset``, whatever it says before."""
        try:
            while await self.read():
                pass
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            return "reset"
        return "fin"

    def leave(self, how: str = "fin") -> float:
        """Go: ``fin``, ``reset``, or ``half`` (no more is sent, answers are awaited). When."""
        at = time.monotonic()
        with suppress(OSError):
            if how == "half":
                self.sock.shutdown(socket.SHUT_WR)
                return at
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.sock.close()
        return at


@dataclass
class Seen:
    """What well-behaved clients saw: seconds for each answer, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


async def normal(url: str, request: bytes, until: float, seen: Seen, pause: float = 0.02) -> None:
    """One client that asks again and again on a kept connection, until a moment."""
    caller = await Caller.of(url)
    try:
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                await caller.send(request)
                status, headers, _ = await caller.answer()
                if status != 200:
                    seen.faults.append(f"status {status}")
            except OSError as error:
                seen.faults.append(repr(error))
                caller.leave()
                caller = await Caller.of(url)
                continue
            seen.seconds.append(time.monotonic() - began)
            if "close" in headers.get("connection", ""):
                caller.leave()
                caller = await Caller.of(url)
            await asyncio.sleep(pause)
    finally:
        caller.leave()


async def normals(url: str, request: bytes, seconds: float, count: int = 20) -> Seen:
    """What ``count`` well-behaved clients see in that time."""
    seen = Seen()
    end = time.monotonic() + seconds
    await asyncio.gather(*(normal(url, request, end, seen) for _ in range(count)))
    assert seen.seconds, "nobody was answered"
    return seen


async def until(met: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(patience):
        while not met():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def queues(port: int) -> dict[int, tuple[int, int]]:
    """Of each connection at ``port`` of this machine, by the port of its other side: bytes that
    wait in the system to be sent, and to be read."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = {}
    for _, here, there, state, sizes, *_ in lines:
        if state == "01" and int(here.partition(":")[2], 16) == port:
            out, _, into = sizes.partition(":")
            found[int(there.partition(":")[2], 16)] = int(out, 16), int(into, 16)
    return found
