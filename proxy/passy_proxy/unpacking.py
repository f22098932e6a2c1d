"""Answers that are compressed, although ``identity`` was asked for."""

from __future__ import annotations

import zlib
from typing import cast

from passy_proxy.dialect import Tap
from passy_proxy.transport import TransportError

INFLATED = (b"gzip", b"x-gzip", b"deflate")
MOST_INFLATED = 32 << 20
"""Bytes of an answer unpacked in one piece, at most."""
MOST_MEMBERS = 256
"""Each costs a copy of all that follows it, and one may be two bytes long."""
MOST_RATIO = 100
SLACK = 1 << 16
"""A stream may have grown by this much before its ratio is looked at."""
STEP = 1 << 16
"""Bytes unpacked at a time."""


def inflated(body: bytes) -> bytes:
    """``body`` unpacked; empty when it is cut, no gzip or deflate, or beyond the bounds above."""
    most = min(len(body) * MOST_RATIO, MOST_INFLATED)
    for bits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        members: list[bytes] = []
        left = body
        try:
            while left and most > 0 and len(members) < MOST_MEMBERS:
                unpacking = zlib.decompressobj(bits)
                members.append(unpacking.decompress(left, most))
                if not unpacking.eof:
                    return b""
                most -= len(members[-1])
                left = unpacking.unused_data
        except zlib.error:
            if not members:
                continue
        return b"" if left else b"".join(members)
    return b""


class UnpackingTap:
    """Unpacks an answer on its way to another tap: what that one cannot read, nobody can count.

    Raises TransportError for what cannot be unpacked, or grows beyond ``MOST_RATIO``.
    """

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._unpacking: zlib._Decompress | None = None
        self._first = b""
        self._packed = self._plain = 0

    @classmethod
    def around(cls, tap: Tap) -> Tap:
        return cast(Tap, cls(tap))

    def __getattr__(self, name: str) -> object:
        return getattr(self._tap, name)

    def whole(self, data: bytes) -> bytes:
        return self.feed(data) + self.finish()

    def feed(self, data: bytes) -> bytes:
        self._packed += len(data)
        if self._unpacking is None:
            data = self._first = self._first + data
            if len(data) < 2:
                return b""
            self._unpacking, self._first = zlib.decompressobj(bits_of(data)), b""
        return b"".join([self._tap.feed(piece) for piece in self._unpacked(data) if piece])

    def finish(self) -> bytes:
        return self._tap.finish()

    def _unpacked(self, data: bytes) -> list[bytes]:
        pieces = []
        while data:
            assert self._unpacking is not None
            if self._unpacking.eof:  # another member
                self._unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
            try:
                piece = self._unpacking.decompress(data, STEP)
            except zlib.error as error:
                message = "the compressed answer cannot be unpacked"
                raise TransportError("protocol", message, sent=True) from error
            self._plain += len(piece)
            if self._plain > SLACK + MOST_RATIO * self._packed:
                message = f"the compressed answer grows by more than {MOST_RATIO} times"
                raise TransportError("protocol", message, sent=True)
            pieces.append(piece)
            data = self._unpacking.unconsumed_tail or self._unpacking.unused_data
        return pieces


def bits_of(data: bytes) -> int:
    """What zlib has to be told of data that begins so: some send deflate without its envelope."""
    enveloped = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return zlib.MAX_WBITS | 32 if enveloped or data[:2] == b"\x1f\x8b" else -zlib.MAX_WBITS


class OpaqueTap:
    """An answer that cannot be read here: it is passed on as it is, and its size is its measure."""

    usage = None
    model = finish_reason = error = ""
    doubt = b""
    midway = False

    def __init__(self) -> None:
        self.text_bytes = 0
        self.done = False

    def whole(self, data: bytes) -> bytes:
        return self.feed(data) + self.finish()

    def feed(self, data: bytes) -> bytes:
        self.text_bytes += len(data)
        return data

    def finish(self) -> bytes:
        self.done = True
        return b""
