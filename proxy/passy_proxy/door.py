"""Where connections come in when several workers accept from one socket.

Whoever wakes up first takes what is there, and that is not fair: a hundred connections at once are
all accepted by one worker before the next has opened its eyes. So a worker takes few at a time, and
none for a moment while another has clearly fewer. But only for a moment: the other may be held up
or dying, and who waits here has been waiting already.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from passy_proxy.pulse import Slot

FEW = 4
"""Connections taken at once, and how many more than another a worker may have."""
CHANCE = 0.01
"""Seconds that another is given."""
EXHAUSTED = 0.1
"""Seconds without accepting, when the process has no descriptor left."""


class Door:
    """Accepts for one worker, from `open` to `close`. ``connect`` serves a socket; ``slots`` are
    those of all workers, ``number`` is ours."""

    def __init__(
        self,
        sock: socket.socket,
        connect: Callable[[socket.socket], Coroutine[Any, Any, object]],
        slots: Sequence[Slot],
        number: int,
    ) -> None:
        self.sock = sock
        self._connect = connect
        self._own = slots[number]
        self._others = [slot for at, slot in enumerate(slots) if at != number]
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[object]] = set()
        self._waited = False
        self._closed = False
        sock.setblocking(False)

    def open(self) -> None:
        if not self._closed:
            self._loop.add_reader(self.sock, self._accept)

    def close(self) -> list[socket.socket]:
        """Let nobody in any more, except those returned: they were in the queue."""
        self._closed = True
        self._loop.remove_reader(self.sock)
        late = []
        with contextlib.suppress(OSError):
            while True:
                late.append(self.sock.accept()[0])
        self.sock.close()
        return late

    def _accept(self) -> None:
        if self._ahead() and not self._waited:
            self._waited = True
            self._pause(CHANCE)
            return
        self._waited = False
        try:
            for _ in range(FEW):
                self._serve(self.sock.accept()[0])
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # EMFILE and its like: to try again at once would be all there is to do.
            self._pause(EXHAUSTED)

    def _ahead(self) -> bool:
        """Whether another worker has clearly fewer connections."""
        fewest = min((s.connections for s in self._others if s.ready), default=1 << 60)
        return self._own.connections > fewest + FEW + fewest // 8

    def _serve(self, sock: socket.socket) -> None:
        self._own.connections += 1  # Counted anew with the next beat.
        task = self._loop.create_task(self._connect(sock))
        self._tasks.add(task)
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # One that is gone again is nobody's trouble.

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self.sock)
        self._loop.call_later(seconds, self.open)
