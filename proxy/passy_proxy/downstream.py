"""The client side of an exchange, behind one protocol.

Our own edge hands the app a :class:`Downstream` in ``scope["extensions"]["passy.edge"]`` and it is
used as it is: no task, queue or copy between the core and the socket. Under any other ASGI server
:class:`AsgiDownstream` gives the same over ``receive`` and ``send``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client hung up before the answer was complete."""


class BodyTooLarge(Exception):
    """The body exceeds the cap; ``limit`` in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")
        self.limit = limit


class BodyTimeout(Exception):
    """The client sends its body too slowly."""


class Downstream(Protocol):
    """What the core needs of the client's connection, for one request."""

    started: bool
    """The head of the answer was given to ``start``."""

    gone: bool
    """The client hung up."""

    async def body(self, limit: int) -> bytes:
        """The whole request body. Raises BodyTooLarge, BodyTimeout, ClientGone."""
        ...

    def pieces(self, limit: int) -> AsyncIterator[bytes]:
        """The request body as it arrives, for streamed uploads. Raises like ``body``."""
        ...

    def watch(self, hang_up: Callable[[], None] | None) -> None:
        """Call ``hang_up`` once, from the loop, when the client leaves; ``None`` stops watching.

        If the client is already gone, ``hang_up`` is called at once.
        """
        ...

    def start(self, status: int, headers: Headers) -> None:
        """The head. With ``content-length`` in ``headers`` the body is sent as it is, else
        chunked (closed at the end for HTTP/1.0). Nothing is written yet: the head goes out with
        the first bytes of the body, in one write."""
        ...

    def write(self, data: bytes) -> bool:
        """Send a piece of the body (``b""``: just the head). False: ``await drain()`` before more.

        The rule is not advice: under a stock server ``drain`` is what sends. Writing to a client
        that left is silently nothing; it returns False, and ``drain`` then raises.
        """
        ...

    def finish(self, data: bytes = b"") -> None:
        """Send the last piece and end the answer."""
        ...

    async def drain(self) -> None:
        """Wait until the client has read enough. Raises ClientGone (also for one that stopped reading)."""
        ...

    async def settle(self) -> None:
        """Awaited once, at the very end: send what ``finish`` could not send by itself."""
        ...

    def abort(self) -> None:
        """Cut the connection: the answer cannot be completed honestly any other way."""
        ...
