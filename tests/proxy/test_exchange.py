"""The nouns: request, exchange, outcome."""

from __future__ import annotations

import asyncio
import re

import pytest

from passy_proxy import Outcome
from passy_proxy.exchange import OK, below
from passy_proxy.testing import Bench, Recorded

pytestmark = pytest.mark.anyio


async def test_ids_are_unique_and_sort_by_time() -> None:
    async with Bench() as bench:
        exchanges = [bench.exchange() for _ in range(50)]
    ids = [ex.id for ex in exchanges]
    assert 50 == len(set(ids))
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", one) for one in ids)
    assert [one[:16] for one in ids] == sorted(one[:16] for one in ids)


async def test_a_body_is_parsed_once_and_a_header_found_by_its_first_value() -> None:
    async with Bench() as bench:
        request = bench.exchange(headers=((b"x", b"1"), (b"x", b"2"))).request
        request.body = b'{"a":[1]}'
        assert request.json is request.json
        assert {"a": [1]} == request.json
        assert b"1" == request.header(b"x")
        assert None is request.header(b"y")


async def test_the_hang_up_cancels_the_task_of_the_chain_and_nothing_else() -> None:
    async with Bench() as bench:
        ex = bench.exchange()
        ex.hang_up()
        assert ex.gone
        other = bench.exchange()
        other.task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        other.hang_up()
        with pytest.raises(asyncio.CancelledError):
            await other.task


async def test_a_streamed_upload_is_read_piece_by_piece() -> None:
    async with Bench() as bench:
        ex = bench.exchange(b"piece")
        assert isinstance(ex.downstream, Recorded)
        assert [b"piece"] == [piece async for piece in ex.request.pieces()]


def test_outcomes_are_values() -> None:
    assert Outcome.replied("x") == Outcome("replied", "x") != Outcome("replied", "y")
    assert 1 == len({OK, Outcome("ok")})
    assert "Outcome(replied:x)" == repr(Outcome.replied("x"))
    assert "Outcome(ok)" == repr(OK)


@pytest.mark.parametrize(
    ("raw", "path", "expected"),
    [
        (b"/v1/files/100%25", "/v1/files/100%", "/files/100%25"),
        (b"/v1/files/%C3%A9%2541", "/v1/files/\u00e9%41", "/files/%C3%A9%2541"),
        (b"", "/v1/files/100% \u00e9", "/files/100%25%20%C3%A9"),
        (b"/%761/files/a%25", "/v1/files/a%", "/files/a%25"),
    ],
)
def test_a_path_goes_on_quoted_as_it_came(raw: bytes, path: str, expected: str) -> None:
    assert expected == below(raw, path, 3)
