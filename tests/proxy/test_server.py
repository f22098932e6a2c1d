"""The end of a server, seen from inside."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from passy_proxy.cli.serve import bound
from passy_proxy.config.model import Address
from passy_proxy.place import Place
from passy_proxy.pulse import Slot
from passy_proxy.server import Served, Server, Serving, gateway_at
from passy_proxy.supervisor import DRAIN, HURRY, INTERRUPT
from passy_proxy.vitals import Vitals

pytestmark = pytest.mark.anyio

CONFIGURATION = """
edge: {EDGE}
chains: {default: [static: {body: "hello"}]}
routes: [{match: GET /said}]
"""
ASK = b"GET /said HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass
class Running:
    server: Server
    ended: asyncio.Task[None]
    port: int

    async def asked(self) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(ASK)
        answer = await reader.readuntil(b"hello")
        writer.close()
        return answer

    async def over(self) -> None:
        async with asyncio.timeout(40):
            await self.ended


@asynccontextmanager
async def running(
    tmp_path: Path, edge: str, line: socket.socket | None = None
) -> AsyncIterator[Running]:
    place = Place(None, CONFIGURATION.replace("EDGE", edge), tmp_path)
    file = place.file({})
    # A pulse needs the main thread's signals; who has a supervisor has a slot as well.
    slots = [Slot()] if line is not None else []
    gateway = gateway_at(place, file.settings.log, {}, Vitals(slots))
    at = Address("127.0.0.1", 0)
    config = Serving(Served(gateway), at, file)
    server = Server(config, gateway, line=line)
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    sock = bound(at)
    port = sock.getsockname()[1]
    ended = asyncio.get_running_loop().create_task(server.serve([sock]))
    async with asyncio.timeout(40):
        while not server.started and not ended.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    yield Running(server, ended, port)
    server.drain(interrupted=True)
    server.hurry()
    await ended
    for slot in slots:
        slot.close()


async def test_who_is_in_the_queue_when_it_stops_listening_is_served(tmp_path: Path) -> None:
    async with running(tmp_path, "lame_duck: 0s") as site:
        for one in site.server.servers:
            one.close()  # Nobody accepts any more, and the queue is still there.
        waiting = asyncio.ensure_future(site.asked())
        await asyncio.sleep(0.1)
        site.server.drain()
        assert (await waiting).startswith(b"HTTP/1.1 200")
        await site.over()


async def test_signals_to_a_worker_shorten_nothing_and_its_supervisor_does(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with running(tmp_path, "lame_duck: 60s", theirs) as site:
            ours.send(DRAIN)
            for _ in range(3):
                await asyncio.sleep(0.15)
                site.server.handle_exit(signal.SIGTERM, None)
            assert b"connection: close" in await site.asked()
            assert not site.ended.done()
            ours.send(HURRY)
            await site.over()


async def test_an_interrupt_needs_no_lame_duck(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with running(tmp_path, "lame_duck: 60s", theirs) as site:
            ours.send(DRAIN + INTERRUPT)
            await site.over()


async def test_the_end_of_the_supervisor_is_the_workers_end(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with running(tmp_path, "lame_duck: 0s", theirs) as site:
            ours.close()
            await site.over()


async def test_alone_the_second_signal_ends_the_lame_duck(tmp_path: Path) -> None:
    async with running(tmp_path, "lame_duck: 60s") as site:
        site.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0.3)
        assert b"connection: close" in await site.asked()
        site.server.handle_exit(signal.SIGTERM, None)
        await site.over()
