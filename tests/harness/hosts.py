"""Hosts of a test's own: network namespaces, each with a line to its clients and one to the stores.

Whoever runs the tests as root has them; for others the tests are skipped, and say so. What listens
on loopback here is reached from there through a `Relay`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
_MISSING = "TWO HOSTS WERE NOT TRIED: they need network namespaces (root, and ip of iproute2)"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A namespace. ``front`` and ``back`` are its addresses on the two lines, ``outside`` and
    ``stores`` the addresses of this side of them."""

    def __init__(self, number: int) -> None:
        self.name = f"passy-{os.getpid()}-{number}"
        self._lines = [f"py{kind}{os.getpid() % 100000}{number}" for kind in "fb"]
        nets = [f"10.203.{2 * number}", f"10.203.{2 * number + 1}"]
        self.outside, self.stores = (f"{net}.1" for net in nets)
        self.front, self.back = (f"{net}.2" for net in nets)

    def __enter__(self) -> Host:
        _ip("netns", "add", self.name)
        try:
            here = (self.outside, self.stores)
            there = (self.front, self.back)
            for line, near, far in zip(self._lines, here, there, strict=True):
                peer = f"{line}x"
                _ip("link", "add", line, "type", "veth", "peer", "name", peer)
                _ip("link", "set", peer, "netns", self.name)
                _ip("address", "add", f"{near}/30", "dev", line)
                _ip("-n", self.name, "address", "add", f"{far}/30", "dev", peer)
                _ip("link", "set", line, "up")
                _ip("-n", self.name, "link", "set", peer, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for words in (
            *(("link", "del", line) for line in self._lines),
            ("netns", "del", self.name),
        ):
            with suppress(subprocess.CalledProcessError):
                _ip(*words)

    def enter(self) -> None:
        """For a new process, before it becomes another program: it lives there."""
        descriptor = os.open(Path("/run/netns") / self.name, os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
            os._exit(71)
        os.close(descriptor)

    def cut(self) -> None:
        """Pull the cable to the stores: nothing arrives, and nobody is told."""
        _ip("link", "set", self._lines[1], "down")

    def mend(self) -> None:
        _ip("link", "set", self._lines[1], "up")


class Relay:
    """What connects to an address here reaches a port of loopback."""

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0
        """Pieces that came in: as many as packets or fewer."""

    def __enter__(self) -> Relay:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, self._address, self._port))
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: object) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)  # type: ignore[arg-type]

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(
                self._copy(reader, back, told=True), self._copy(there, writer, told=False)
            )
        except OSError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, told: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                self.sent += told
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two of them."""
    with ExitStack() as stack:
        try:
            made = [stack.enter_context(Host(number)) for number in (1, 2)]
        except (OSError, subprocess.CalledProcessError):
            pytest.skip(_MISSING)
        yield made[0], made[1]
