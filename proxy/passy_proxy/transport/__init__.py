"""The upstream side of the wire: one small protocol, chosen per upstream.

A :class:`Transport` sends one request to one upstream and returns a :class:`Leg` once the
head of the answer is known. The leg owns its connection; closing it gives the connection back
when the answer was read to its end, and drops it otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; ``None`` means no limit. ``total`` counts from the call of ``open``.

    ``head`` is the shorter one of ``first_byte`` and ``total``, infinite if neither is limited.
    """

    connect: float | None = 5.0
    tls: float | None = 5.0
    write: float | None = 30.0
    first_byte: float | None = 60.0
    idle: float | None = 60.0
    total: float | None = 590.0
    pool: float | None = 5.0
    head: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.first_byte, self.total) if limit is not None]
        object.__setattr__(self, "head", min(limits, default=float("inf")))


DEFAULT_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one upstream's connections.

    ``keepalive``: seconds an idle connection is kept when the upstream does not say how long it
    keeps it (``Keep-Alive: timeout=N``); with a hint, somewhat less than the hint.
    """

    max_connections: int = 1000
    keepalive: float = 4.0


DEFAULT_LIMITS = Limits()


@dataclass(slots=True)
class UpstreamRequest:
    """A request as it goes upstream: built from parsed parts only, one framing.

    ``body`` is the whole body, or an iterator of pieces with ``length`` known (content-length)
    or ``None`` (chunked). ``headers`` hold neither host nor framing nor hop-by-hop headers:
    the transport writes those itself. ``replay_safe`` says whether an answerless request on a
    reused connection may be sent again; ``lost`` is how that connection ended, once it has been.
    ``queue_ms`` and ``connect_ms`` are what it waited for a connection of its turn, and for a new
    one; 0 where one was at hand, and from transports that cannot tell.
    """

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterator[bytes] = b""
    length: int | None = None
    replay_safe: bool = False
    timeouts: Timeouts = field(default=DEFAULT_TIMEOUTS)
    lost: TransportError | None = None
    queue_ms: int = 0
    connect_ms: int = 0


class TransportError(Exception):
    """A try that did not become an answer, or an answer that broke off.

    ``kind``: ``connect`` (DNS, refused, TLS, forbidden address), ``pool`` (no free connection in
    time), ``timeout`` (write, first byte, idle or total; ``phase`` says which), ``broken`` (EOF or
    reset), ``protocol`` (bytes that are not HTTP, a cap exceeded). ``sent`` is true when any byte
    of the request may have reached the upstream.
    """

    def __init__(self, kind: str, message: str, *, phase: str = "", sent: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.phase = phase
        self.sent = sent


Sink = Callable[[bytes], bool]
"""Takes a piece of body, never an empty one; false when it has all that it can take for now."""


class Leg(Protocol):
    """One answer, and the connection it arrives on."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """Lower-case names, trimmed values, hop-by-hop and framing headers still in."""

    complete: bool
    """The whole body has arrived (it may still wait to be read)."""

    async def read(self) -> bytes:
        """All body bytes that have arrived, waiting for the first; ``b""`` once at the end.

        Raises :class:`TransportError` when the answer breaks off. Calling again after the end
        gives ``b""``.
        """
        ...

    async def read_all(self, limit: int) -> bytes:
        """The whole rest of the body; a ``protocol`` error beyond ``limit`` bytes."""
        ...

    async def relay(self, sink: Sink) -> bool:
        """Give all of the rest to ``sink``, each piece as it arrives; true once it has the last.

        What has arrived before is given at once. From then on ``sink`` is called by whatever
        reads the socket, so nobody has to wake up for a piece; it must not block, and may find in
        ``complete`` that it was given the last one. False as soon as ``sink`` is full, unless
        ``complete``: call again when it can take more. In between, the upstream is held back as
        it is from a slow reader.

        Raises TransportError like :meth:`read`, after all that arrived was given. What ``sink``
        raises is raised here, and ends the answer. After a cancellation nothing is given any
        more; what arrives is kept for ``read`` or another ``relay``.
        """
        ...

    def close(self) -> None:
        """Give the connection back (complete answers) or drop it. Idempotent, never blocks."""
        ...


class Transport(Protocol):
    """Opens legs to one origin."""

    async def open(self, request: UpstreamRequest) -> Leg:
        """Send ``request``; return when the answer's head is there. Raises TransportError.

        Cancelling it leaves nothing behind: no socket, no task, no pool slot.
        """
        ...

    async def aclose(self) -> None:
        """Close idle connections now, busy ones when their legs end."""
        ...

    def stats(self) -> dict[str, int]:
        """Counts: ``open``, ``idle``, ``waiting``, ``opened`` (ever), ``reused`` (ever)."""
        ...


async def relayed(leg: Leg, sink: Sink) -> bool:
    """:meth:`Leg.relay`, for legs that have nothing better than to read."""
    while data := await leg.read():
        try:
            taken = sink(data)
        except Exception:
            leg.close()
            raise
        if not (taken or leg.complete):
            return False
    return True
