"""What is read of JSON that is too long to be kept: its usage, wherever that stands."""

from __future__ import annotations

import re
from typing import Any

from passy_proxy import json

USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*(?=\{)')
FLAT = re.compile(rb"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")

LONGEST = 8 * 1024
"""Bytes of a usage that may still be read; also how much is looked at at a time."""


class Passing:
    """Reads the last object called ``usage`` at one depth of JSON that goes by in pieces.

    Depth is counted, not guessed, so what a client or a model wrote deeper inside is not taken for
    the provider's word. What has gone by is forgotten, but for the last ``LONGEST`` bytes.
    """

    __slots__ = ("_depth", "_inside", "_kept", "_new", "_wanted", "usage")

    def __init__(self, depth: int) -> None:
        self._wanted = depth
        self._kept = bytearray()
        self._new = 0  # bytes at the end of what is kept that were not looked at
        self._depth = 0  # where what is kept begins
        self._inside = 0  # 1: it begins within a string
        self.usage: Any = None

    def feed(self, data: bytes) -> None:
        self._kept += data
        self._new += len(data)
        if self._new >= LONGEST:
            self._look()

    def finish(self) -> Any:
        """The usage, ``None`` without one."""
        self._look()
        return self.usage

    def closed(self) -> bool:
        """Whether what has gone by was whole."""
        self._look()
        self._pass(bytes(self._kept))
        self._kept.clear()
        return not self._depth and not self._inside

    def _look(self) -> None:
        kept = bytes(self._kept)
        at = 0
        for found in USAGE.finditer(kept):
            flat = FLAT.match(kept, found.end())
            if flat is None:
                continue  # Not whole yet, or none: it is looked at again as long as it is kept.
            self._pass(kept[at : found.start()])
            at = found.start()
            if self._depth == self._wanted and not self._inside:
                self._read(flat[0])
        cut = max(len(kept) - LONGEST, at)
        front = kept[at:cut]
        # An escape stays whole; of a run of backslashes, which may be all there is, each other one
        # begins one.
        cut -= (len(front) - len(front.rstrip(b"\\"))) & 1
        self._pass(kept[at:cut])
        del self._kept[:cut]
        self._new = 0

    def _read(self, told: bytes) -> None:
        try:
            self.usage = json.loads(told)
        except ValueError:
            return

    def _pass(self, text: bytes) -> None:
        """Count the brackets in ``text``, those in strings left out."""
        if b"\\" in text:
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = text.split(b'"')
        outside = b"".join(parts[self._inside :: 2])
        self._depth += sum(map(outside.count, (b"{", b"["))) - sum(map(outside.count, (b"}", b"]")))
        self._inside ^= (len(parts) - 1) & 1
