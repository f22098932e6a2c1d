"""What both transports know about sending a large body to someone who may answer before its end.

An early answer (401, 413) is followed by a reset, and a write that fails closes the socket without
looking what had arrived. So a large body goes out in slices, what is waiting to be read is read
before each, and what a failed write left behind is picked up.
"""

from __future__ import annotations

import asyncio
import os
import select
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

SLICE_BYTES = 65_536
_TURNS = 3
"""Turns of the loop in which it reads what had arrived."""


async def sliced(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), SLICE_BYTES):
        yield body[start : start + SLICE_BYTES]


async def let_read(transport: asyncio.Transport) -> None:
    """Give the loop the time to read what has arrived."""
    await asyncio.sleep(0)
    turns = 0
    while turns < _TURNS and not transport.is_closing() and _readable(transport):
        turns += 1
        await asyncio.sleep(0)


def left_behind(transport: asyncio.Transport) -> Iterator[bytes]:
    """What had arrived on a plain connection that was lost by a failed write; over TLS see
    `rescuing`."""
    if transport.get_extra_info("sslcontext") is not None:
        return
    try:
        while data := os.read(transport.get_extra_info("socket").fileno(), SLICE_BYTES):
            yield data
    except OSError:
        return


def rescuing(transport: asyncio.Transport) -> None:
    """See to it that over TLS, too, what has arrived is read when a failed write ends a connection.

    asyncio closes the socket before it tells us. What it tells first is its own TLS protocol, by a
    call that is made to read to the end here.
    """
    found = getattr(transport, "_ssl_protocol", None)
    if not isinstance(found, SSLProtocol) or hasattr(found._transport, "_ssl_protocol"):
        return
    tls: Any = found
    lost, sock = tls.connection_lost, transport.get_extra_info("socket")

    def connection_lost(exc: Exception | None) -> None:
        del tls.connection_lost
        if exc is not None:
            with suppress(OSError):
                while size := os.readv(sock.fileno(), [tls.get_buffer(-1)]):
                    tls.buffer_updated(size)
        lost(exc)

    tls.connection_lost = connection_lost


def _readable(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    descriptor = -1 if sock is None else sock.fileno()
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
