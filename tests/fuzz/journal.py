"""The reader of the journal: of a damaged segment it gives lines that were written, in their order,
all that the damage did not touch, and nothing else."""

from __future__ import annotations

from passy_proxy.journal import CLOSE, PRICE, line
from passy_proxy.recovery import read

WORDS = ("journal",)
BODIES = [
    (PRICE if number % 5 == 4 else CLOSE) + b'["req_%d",%d,"%b"]' % (number, number, b"x" * number)
    for number in range(24)
]
LINES = [line(body[:1], body[1:]) for body in BODIES]
SEGMENT = b"".join(LINES) + bytes(64)
SEEDS = (b"", b"\0\5\0\x0a", b"\0\x2b\0\xff\1\0\1\0", b"\0\x14\0\0", LINES[0] + LINES[1], SEGMENT)


def check(data: bytes) -> None:
    """``data`` is a segment of its own, and the damage done to a good one: each four bytes are a
    place, what happens there (a byte changed, or all from there on never written), and the byte."""
    read(data)
    spoilt, touched = bytearray(SEGMENT), set()
    for at in range(0, len(data) - 3, 4):
        place = int.from_bytes(data[at : at + 2], "big") % len(SEGMENT)
        cut = len(SEGMENT) if data[at + 2] & 1 else place + 1
        for each in range(place, cut):
            byte = data[at + 3] if cut == place + 1 else 0
            if spoilt[each] != byte:
                spoilt[each] = byte
                touched.add(each)
    touched = {each for each in touched if spoilt[each] != SEGMENT[each]}
    found = read(bytes(spoilt))
    bodies = [body for _, body in found.lines]
    assert all(body in BODIES for body in bodies), "a line that nobody wrote"
    assert sorted(map(BODIES.index, bodies)) == [*map(BODIES.index, bodies)], "another order"
    begin = 0
    for body, written in zip(BODIES, LINES, strict=True):
        end = begin + len(written)
        if touched.isdisjoint(range(begin - 1, end)):
            assert body in bodies, "a line is lost that nothing happened to"
        begin = end
    if touched and min(touched) < len(SEGMENT) - 64:
        assert found.damaged or found.torn or len(bodies) < len(BODIES), "damage that nobody saw"
