"""An answer that came compressed although nobody asked for it, unpacked as it arrives.

What a few bytes can unpack to is bounded twice: by a ratio over all of it, and in one piece.
"""

from __future__ import annotations

import zlib

from . import Leg, Sink, TransportError

INFLATED = (b"gzip", b"x-gzip", b"deflate")
MOST_RATIO = 100
_FREE = 1 << 20
"""Bytes that any answer may unpack to."""
_PIECE = 8 << 20


class InflatedLeg:
    """A leg around another; see :class:`passy_proxy.transport.Leg`.

    ``headers`` are the inner leg's, for the owner to edit. Besides what the inner one raises it
    raises TransportError: ``protocol`` for what cannot be unpacked or unpacks to too much,
    ``broken`` when it is cut.
    """

    def __init__(self, leg: Leg, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = leg.status
        self.headers = headers
        self.complete = leg.complete
        self._leg = leg
        self._unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._taken = 0
        self._given = 0

    async def read(self) -> bytes:
        while raw := await self._leg.read():
            if data := self._unpacked(raw):
                return data
        self.complete = self._leg.complete
        return b""

    async def read_all(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                self.close()
                message = f"the answer is larger than {limit} bytes"
                raise TransportError("protocol", message, sent=True)
            pieces.append(data)
        return b"".join(pieces)

    async def relay(self, sink: Sink) -> bool:
        def unpacked(raw: bytes) -> bool:
            data = self._unpacked(raw)
            return sink(data) if data else True

        done = await self._leg.relay(unpacked)
        self.complete = self._leg.complete
        return done

    def close(self) -> None:
        self._leg.close()

    def _unpacked(self, raw: bytes) -> bytes:
        self.complete = self._leg.complete
        self._taken += len(raw)
        room = min(max(self._taken * MOST_RATIO, _FREE) - self._given, _PIECE)
        try:
            data = self._unpacking.decompress(raw, max(room, 1))
        except zlib.error as error:
            self.close()
            raise TransportError("protocol", "the answer cannot be unpacked", sent=True) from error
        self._given += len(data)
        if self._unpacking.unconsumed_tail:
            self.close()
            message = f"the answer unpacks to more than {MOST_RATIO} times its size"
            raise TransportError("protocol", message, sent=True)
        if self.complete and not self._unpacking.eof:
            raise TransportError("broken", "the answer broke off", sent=True)
        return data
