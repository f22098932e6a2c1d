"""Parts are counted on their way, wherever the pieces end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passy_proxy.downstream import BadUpload
from passy_proxy.multipart import counted, is_multipart

pytestmark = pytest.mark.anyio


async def passed(pieces: list[bytes], most: int, kind: bytes = b"multipart/x; boundary=b") -> bytes:
    async def came() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return b"".join([piece async for piece in counted(came(), kind, most)])


def cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(body) + 1) for place in places} | {len(body)})
    return [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]


CUTS = st.lists(st.integers(0, 10_000), max_size=20)


@given(number=st.integers(0, 12), places=CUTS, end=st.sampled_from([b"\r\n", b"\n"]))
async def test_the_count_is_the_same_however_a_body_is_cut(
    number: int, places: list[int], end: bytes
) -> None:
    text = b"a --b --b- -" + end + b"-b" + end + b"- -b"
    body = b"".join(b"--b%b%b%b%b" % (end, end, text, end) for _ in range(number))
    body += b"--b--" + end + b"the end"
    pieces = cut(body, places)
    assert body == await passed(pieces, max(1, number))
    if number > 1:
        with pytest.raises(BadUpload) as refused:
            await passed(pieces, number - 1)
        assert (413, "too_many_parts") == (refused.value.status, refused.value.code)


async def test_what_was_before_the_part_too_many_has_gone_on() -> None:
    with pytest.raises(BadUpload):
        await passed([b"--b\r\n\r\n\r\n", b"--b\r\n\r\n"], 1)


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        (b"multipart/form-data; boundary=b", True),
        (b'Multipart/Form-Data; charset=x; BOUNDARY="b"', True),
        (b"multipart/form-data;boundary=b; charset=x", True),
        (b"multipart/form-data", False),
        (b"multipart/form-data; boundary=", False),
        (b"multipart/form-data; boundary=b; boundary=c", False),
        (b"multipart/form-data; boundary=" + b"b" * 71, False),
    ],
)
async def test_there_is_one_boundary_or_none(kind: bytes, boundary: bool) -> None:
    assert is_multipart(kind)
    if boundary:
        assert b"--b--" == await passed([b"--b--"], 1, kind)
    else:
        with pytest.raises(BadUpload) as refused:
            await passed([], 1, kind)
        assert (400, "invalid_multipart") == (refused.value.status, refused.value.code)


def test_other_types_have_no_parts() -> None:
    assert not is_multipart(b"application/json; boundary=b")
    assert not is_multipart(b"")
