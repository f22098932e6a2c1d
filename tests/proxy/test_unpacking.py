"""Compressed answers: unpacked for a tap, in whatever pieces they come, and within bounds."""

from __future__ import annotations

import gzip
import random
import time
import zlib
from typing import cast

import pytest

from passy_proxy.dialect import Tap
from passy_proxy.transport import TransportError
from passy_proxy.unpacking import OpaqueTap, UnpackingTap, inflated

TEXT = b" ".join(b"%d" % random.Random(1).getrandbits(30) for _ in range(9)) * 40
RAW = zlib.compressobj(wbits=-zlib.MAX_WBITS)
PACKED = {
    "gzip": gzip.compress(TEXT),
    "two members": gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]),
    "zlib": zlib.compress(TEXT),
    "deflate without its envelope": RAW.compress(TEXT) + RAW.flush(),
}


def tap() -> Tap:
    return UnpackingTap.around(cast(Tap, OpaqueTap()))


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_what_is_packed_is_unpacked_in_any_pieces(packed: bytes, size: int) -> None:
    unpacking = tap()
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert TEXT == b"".join(map(unpacking.feed, pieces)) + unpacking.finish()
    assert (len(TEXT), True) == (unpacking.text_bytes, unpacking.done)
    assert TEXT == inflated(packed)


def test_what_cannot_be_unpacked_is_said() -> None:
    unpacking = tap()
    with pytest.raises(TransportError, match="cannot be unpacked"):
        unpacking.feed(b"no gzip at all")
    assert b"" == inflated(b"no gzip at all")
    assert b"" == inflated(gzip.compress(TEXT)[:-9])
    assert b"" == inflated(b"")


def test_members_without_end_are_not_followed() -> None:
    assert b"x" * 200 == inflated(gzip.compress(b"x") * 200)
    began = time.process_time()
    assert b"" == inflated(gzip.compress(b"") * 50_000)
    assert b"" == inflated(b"\x03\0" * 500_000)
    assert time.process_time() - began < 1


def test_what_grows_beyond_measure_is_refused() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert b"" == inflated(bomb)
    with pytest.raises(TransportError, match="100 times"):
        tap().feed(bomb)
    with pytest.raises(TransportError, match="100 times"):
        fed_slowly(bomb)


def fed_slowly(packed: bytes) -> None:
    seen, unpacking = 0, tap()
    for at in range(0, len(packed), 100):
        seen += len(unpacking.feed(packed[at : at + 100]))
        assert seen < 100 * len(packed)
