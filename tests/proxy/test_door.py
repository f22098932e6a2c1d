"""Who lets a connection in, of several workers that could."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from passy_proxy.door import CHANCE, EXHAUSTED, FEW, Door
from passy_proxy.pulse import Slot

pytestmark = pytest.mark.anyio


@pytest.fixture
def slots() -> Iterator[list[Slot]]:
    slots = [Slot(), Slot()]
    for slot in slots:
        slot.ready = True
    yield slots
    for slot in slots:
        slot.close()


class Entrance:
    """A listening socket and who came in by which door."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.came: list[list[socket.socket]] = [[], []]
        self.waiting: list[socket.socket] = []
        self.doors: list[Door] = []

    def door(self, number: int, sock: Any = None) -> Door:
        async def connect(sock: socket.socket) -> None:
            self.came[number].append(sock)

        door = Door(sock or self.sock.dup(), connect, self.slots, number)
        self.doors.append(door)
        return door

    def knock(self, times: int) -> None:
        at = self.sock.getsockname()
        self.waiting += [socket.create_connection(at) for _ in range(times)]

    async def until(self, count: int) -> float:
        """Seconds until so many are in."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(60):
            while sum(map(len, self.came)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return loop.time() - began


@pytest.fixture
async def entrance(slots: list[Slot]) -> AsyncIterator[Entrance]:
    entrance = Entrance(slots)
    yield entrance
    for door in entrance.doors:
        entrance.came[0] += door.close()
    for sock in (entrance.sock, *entrance.waiting, *entrance.came[0], *entrance.came[1]):
        sock.close()


async def test_a_crowd_is_shared(entrance: Entrance) -> None:
    entrance.door(0).open()
    entrance.door(1).open()
    entrance.knock(100)
    await entrance.until(100)
    assert abs(len(entrance.came[0]) - len(entrance.came[1])) <= 2 * FEW + 100 // 8


async def test_who_has_more_lets_the_other_go_first(
    entrance: Entrance, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loop may be held up for longer than the chance that the other is given.
    monkeypatch.setattr("passy_proxy.door.CHANCE", 60.0)
    entrance.slots[0].connections = 50
    entrance.door(0).open()
    entrance.door(1).open()
    entrance.knock(20)
    await entrance.until(20)
    assert 20 == len(entrance.came[1])


async def test_but_not_for_ever(entrance: Entrance) -> None:
    """The other is held up, and nobody has noticed yet."""
    entrance.slots[0].connections = 50
    entrance.door(0).open()
    entrance.knock(3 * FEW)
    took = await entrance.until(3 * FEW)
    assert 2 * CHANCE < took
    assert 3 * FEW == len(entrance.came[0])


async def test_one_that_is_not_there_is_not_waited_for(entrance: Entrance) -> None:
    entrance.slots[0].connections = 50
    entrance.slots[1].ready = False
    entrance.door(0).open()
    entrance.knock(FEW)
    await entrance.until(FEW)


async def test_without_descriptors_it_waits_instead_of_spinning(entrance: Entrance) -> None:
    class Poor(socket.socket):
        asked = 0

        def accept(self) -> Any:
            Poor.asked += 1
            if Poor.asked <= 3:
                raise OSError(errno.EMFILE, "too many")
            return super().accept()

    poor = Poor(fileno=entrance.sock.dup().detach())
    entrance.door(0, poor).open()
    entrance.knock(1)
    assert 3 * EXHAUSTED < await entrance.until(1) + 0.01
    assert Poor.asked <= 6


async def test_who_is_in_the_queue_at_the_end_is_handed_over(entrance: Entrance) -> None:
    door = entrance.door(0)
    entrance.knock(3)
    await asyncio.sleep(0.05)
    late = door.close()
    assert 3 == len(late)
    entrance.came[0] += late
    door.open()  # A pause that ends later opens nothing.
    entrance.doors.clear()
