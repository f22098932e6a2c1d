"""How a stream of bytes may be cut into reads."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from itertools import combinations, pairwise

WAYS = ("whole", "bytes", "lines", "random")
"""As one, byte by byte, behind every CR and LF, and at random places (always the same ones)."""


def split(data: bytes, way: str) -> list[bytes]:
    """``data`` cut in one of the ``WAYS``."""
    if way == "whole" or not data:
        return [data]
    if way == "bytes":
        return [data[at : at + 1] for at in range(len(data))]
    if way == "lines":
        return cut(data, [at + 1 for at, byte in enumerate(data) if byte in b"\r\n"])
    dice = random.Random(zlib.crc32(data))
    return cut(data, dice.sample(range(len(data)), min(len(data), dice.randint(3, 40))))


def pairs(data: bytes) -> Iterator[list[bytes]]:
    """``data`` cut at all pairs of places."""
    for places in combinations(range(1, len(data)), 2):
        yield cut(data, places)


def cut(data: bytes, places: list[int] | tuple[int, ...]) -> list[bytes]:
    bounds = sorted({0, len(data), *places})
    return [data[start:end] for start, end in pairwise(bounds)]
