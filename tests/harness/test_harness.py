"""The harness itself: what it says it saw is what there was."""

from __future__ import annotations

import base64

import pytest

from harness.again import spared
from harness.canary import Canaries
from harness.catalogue import raw
from harness.client import Told, send
from harness.upstream import Hit, RawUpstream

ASK = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
OK = {"send": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"}


def test_a_kept_connection_and_its_hits() -> None:
    def kept() -> tuple[Told, list[Hit]]:
        with RawUpstream([OK]) as upstream:
            return send(upstream.url, [ASK, ASK], gap=0.05, quiet=0.3), upstream.hits

    told, hits = spared(kept, lambda found: len(found[0].answers()) == 2)
    assert [200, 200] == [answer.status for answer in told.answers()]
    assert "open" == told.end
    assert [(1, b"hi"), (1, b"hi")] == [(hit.connection, hit.body) for hit in hits]
    assert all(hit.closed for hit in hits[1:])


@pytest.mark.parametrize(("step", "end"), [("close", "fin"), ("reset", "reset")])
def test_how_a_connection_ends(step: str, end: str) -> None:
    cut = {"send": "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"}
    with RawUpstream([cut, {"wait": 0.1}, step]) as upstream:
        told = send(upstream.url, ASK, quiet=90, patience=90)
    assert end == told.end
    assert (b"ok", False) == (told.answer().body, told.answer().whole)


def test_an_early_answer_does_not_wait_for_the_body() -> None:
    def answered() -> Told:
        with RawUpstream(["early", OK, "read"]) as upstream:
            told = send(upstream.url, [ASK[:-1]], quiet=0.3)
            assert not any(hit.whole.is_set() for hit in upstream.hits)
            return told

    told = spared(answered, lambda told: bool(told.data))
    assert 200 == told.answer().status


def test_what_is_no_request_is_an_error() -> None:
    with RawUpstream([OK]) as upstream:
        send(upstream.url, b"GET / HTTP/1.1\r\n\r\n", quiet=0.3)
        upstream.until(lambda: upstream.errors)
    assert [] == upstream.hits


def test_bytes_of_a_catalogue() -> None:
    assert b"\xff\x00aaa\xc3\xa9" == raw(["\xff\x00", {"repeat": "a", "times": 3}, {"utf8": "é"}])


def test_a_canary_is_found_in_every_form() -> None:
    canaries = Canaries()
    word = canaries.word("key", "sk-").encode()
    for form in (word, word.hex().encode(), base64.b64encode(b"Basic " + word), word[-22:]):
        with pytest.raises(AssertionError, match="out shows key"):
            canaries.search(b"<" + form + b">", "out")
    canaries.search(b"sk-something else", "out")
