"""What is written in one turn of the event loop goes out together, at its end.

To send is dear mostly because it wakes whoever waits for it; who is being woken already costs
nothing more. A loop that has much to do sends in each turn to the same few neighbours: a proxy in
front, a provider. So the first message of a turn goes out at once, which is all there is when
little happens, and those behind it wait until everybody who is ready has been served, until enough
are together, or until something is read again.

Only whole messages are held, of which nothing follows until something was heard in return: a
request, a plain answer. Who holds one lets it go (``release``) before anything else is done with
the connection.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Protocol

from passy_proxy.per_loop import one_of

MOST = 16
"""So many are held: more save little, and the first of them would wait for the work of all."""


class Writer(Protocol):
    """A connection."""

    held: bytes
    """What waits for the end of the turn; empty when nothing does."""

    def release(self) -> None:
        """Send what is held; nothing if nothing is."""
        ...


class Outbox:
    """The messages of one loop's turn. See `outbox_of`."""

    __slots__ = ("_context", "_loop", "_open", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open = False
        """Something was sent in this turn."""
        self._context = Context()
        """Nobody's: what a transport remembers of a write is not to be another one's request."""
        self.waiting: list[Writer] = []

    def write(self, writer: Writer, transport: asyncio.Transport, message: bytes) -> None:
        """Send ``message`` by ``transport``, now or at the end of this turn.

        ``writer`` holds nothing, and is to write nothing else before it has released this.
        """
        if self._open:
            writer.held = message
            waiting = self.waiting
            waiting.append(writer)
            if len(waiting) >= MOST:
                self.send()
        else:
            self._open = True
            self._loop.call_soon(self._end)
            transport.write(message)

    def send(self) -> None:
        """Send what is waiting."""
        self._context.run(self._send)

    def _end(self) -> None:
        self._open = False
        if self.waiting:
            self.send()

    def _send(self) -> None:
        waiting, self.waiting = self.waiting, []
        for writer in waiting:
            try:
                writer.release()
            except Exception as error:  # the others' messages must go out
                self._loop.call_exception_handler(
                    {"message": "a message could not be sent", "exception": error}
                )


def outbox_of(loop: asyncio.AbstractEventLoop) -> Outbox:
    """The one outbox of ``loop``."""
    return one_of(Outbox, loop)
