"""Evidence: what the upstream said and what the client was told, as digests in the books.

A `Seal` watches one exchange, where the `usage` filter puts one on it. Both digests are SHA-256 of
body bytes: those that came off the upstream's connection, before anything was unpacked, translated
or veiled; and those that were given to the client's connection, comments of the heartbeat among
them, behind the last filter. Both go as far as the answer has come when its record is written: of a
stream to its end mark.

How the books keep a proof, and how they are looked through, is the store's affair; what is said of
it is a `Verdict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from passy_proxy.downstream import Downstream
from passy_proxy.transport import Leg, Sink

if TYPE_CHECKING:
    from hashlib import _Hash as HASH

    from passy_proxy.event import Event
    from passy_proxy.exchange import Exchange

GATEWAY = "gateway"
"""Among the names of filters: the gateway itself, which translates, redacts and asks for usage."""


BODYLESS = (204, 304)
"""Their answers have no body, whatever we have for one; nor have those to HEAD."""
NOTHING = sha256().hexdigest()


class Proof(NamedTuple):
    """What a record says of the bytes."""

    upstream: str
    """SHA-256, in hex digits, of the body of the attempt that was committed to; empty where there
    was none."""
    client: str
    """The same of what the client was sent; empty where a filter refused the answer in its
    `on_end`."""
    modified_by: tuple[str, ...]
    """Filters whose `on_event` changed a byte, in the order in which they first did, and `GATEWAY`
    where it did."""


class Seal:
    """Watches the bytes of one exchange."""

    __slots__ = ("_entered", "_modified_by", "client", "refused")

    def __init__(self) -> None:
        self.client = sha256()
        """Of what the client was sent, and of what is about to be."""
        self._entered: HASH | None = None
        """Of what went into the filters, where there are some that look at events."""
        self._modified_by: list[str] = []
        self.refused = False
        """The last bytes were kept back by a filter after all; what is said in their place is not
        known yet."""

    def leg(self, leg: Leg) -> Leg:
        """``leg``, watched."""
        return cast(Leg, SealedLeg(leg))

    def over(self, downstream: Downstream) -> Downstream:
        """``downstream``, for writing pieces."""
        return cast(Downstream, SealedDownstream(downstream, self))

    def enter(self, events: Sequence[Event]) -> None:
        """These go into the filters."""
        if self._entered is None:
            self._entered = sha256()
        self._entered.update(b"".join([event.raw for event in events]))

    def compare(self, name: str, before: Sequence[bytes], after: Sequence[Event]) -> None:
        """What filter ``name`` made of some events."""
        if name not in self._modified_by and b"".join(before) != b"".join(
            [event.raw for event in after]
        ):
            self._modified_by.append(name)

    def proof(self, ex: Exchange) -> Proof:
        """For the record of ``ex``."""
        upstream, client = "", self.client.hexdigest()
        if ex.request.method == "HEAD" or ex.status in BODYLESS:
            client = NOTHING
        entered = "" if self._entered is None else self._entered.hexdigest()
        names = tuple(self._modified_by)
        if ex.attempts and ex.reply is None:
            leg = ex.attempts[-1].leg
            if isinstance(leg, SealedLeg):
                upstream = leg.digest.hexdigest()
        if (names and upstream != entered) or (not names and upstream != client):
            names = (*names, GATEWAY)
        return Proof(upstream, "" if self.refused else client, names)


class SealedLeg:
    """A leg whose bytes are watched as they come off it."""

    __slots__ = ("_leg", "digest", "headers", "status")

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self.digest = sha256()
        self.status = leg.status
        self.headers = leg.headers

    @property
    def complete(self) -> bool:
        return self._leg.complete

    async def read(self) -> bytes:
        data = await self._leg.read()
        self.digest.update(data)
        return data

    async def read_all(self, limit: int) -> bytes:
        data = await self._leg.read_all(limit)
        self.digest.update(data)
        return data

    async def relay(self, sink: Sink) -> bool:
        update = self.digest.update

        def watched(data: bytes) -> bool:
            update(data)
            return sink(data)

        return await self._leg.relay(watched)

    def close(self) -> None:
        self._leg.close()


class SealedDownstream:
    """Pieces for a client, watched as they are sent."""

    __slots__ = ("_update", "_write")

    def __init__(self, downstream: Downstream, seal: Seal) -> None:
        self._update = seal.client.update
        self._write = downstream.write

    def write(self, data: bytes) -> bool:
        self._update(data)
        return self._write(data)


class Finding(NamedTuple):
    """Something in the books that is not as it was written."""

    kind: str
    """``edited`` (or moved), ``removed``, ``added``, or ``unknown``: sealed with a key that is not
    among ours."""
    id: str
    """Of the exchange; empty where that is not known."""
    chain: int
    """0 where it is in none, as is ``seq``."""
    seq: int
    why: str


class WrongSum(NamedTuple):
    """An hour or a day whose sums are not those of its records."""

    unit: str
    at: str
    """Where it begins, UTC."""
    of: str
    """Key, model and so on."""
    why: str


@dataclass(slots=True)
class Verdict:
    """What a look through the books has found."""

    proved: int = 0
    """Records that are as they were written, with digests of both bodies."""
    bare: int = 0
    """Records that are as they were written, and tell nothing of bodies."""
    before: int = 0
    """Records from before there was evidence: nothing can be said of them."""
    dropped: int = 0
    """Records that were dropped for their age, since there is evidence."""
    dropped_before: int = 0
    """Unix milliseconds: none of those was of that moment, or later."""
    entries: int = 0
    head: str = ""
    """The end of the last chain: who notes it elsewhere can ask later for what it covered."""
    findings: list[Finding] = field(default_factory=list)
    sums: int = 0
    """Sums by hour and by day that were compared with the records."""
    wrong_sums: list[WrongSum] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings and not self.wrong_sums

    def found(self, kind: str, id: Any, chain: int, seq: int, why: str) -> None:
        """Enter a finding. ``id`` is whatever stands there now."""
        text = id.encode(errors="replace").decode() if isinstance(id, str) else ""
        self.findings.append(Finding(kind, text, chain, seq, why))
