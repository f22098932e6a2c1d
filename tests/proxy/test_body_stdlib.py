"""The fallback without msgspec reads and edits as the fast way does."""

from __future__ import annotations

import time

import pytest

from passy_proxy import body_msgspec, body_stdlib
from passy_proxy.records import Usage

BODIES = [
    b'{"model":"m"}',
    b' { "stream" : true , "model" : "m\\u00e9\xc3\xa9" , "messages" : [ {"content":"{}"} ] } ',
    b'{"messages":[],"model":"stream","stream":false,"n":3,"max_tokens":7}',
    b'{"\\u006dodel":"m","x":{"model":"inner"},"max_completion_tokens":5,"max_tokens":9}',
    b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
    b'{"model":"m","stream":true,"stream_options":{"include_usage":false}}',
    b'{"model":"m","stream":null,"stream_options":null,"n":null}',
    b'{"model":"m","max_tokens":null,"n":0,"max_output_tokens":9,"x":[{"n":1,"model":"no"}]}',
    b'{"messages":["' + b"x" * 9000 + b'"],"model":"m","max_tokens":5,"tools":[{"model":{}}]}',
    b'{"messages":["' + b"x" * 9000 + b'"],"model":"m","max_tokens":5,"stream":true,"n":2}',
    b'{ "model" : "m", "stream" : true, "x" : "' + b"x" * 2000 + b'" }',
]
REFUSED = [
    b"", b"[]", b"3", b"{", b'{"model"', b'{"model":"m"', b'{"model":"m",}', b'{"model":"m"} x',
    b'{"model":3}', b'{"model":""}', b"{}", b'{"model":"m","model":"m"}', b'{"model":"m","n":true}',
    b'{"model":"m","x":NaN}', b'{"model":"m","stream":1}', b'{"model":"m","\xff":1}',
    b'{"model":"m","stream":true,"stream":false}', b'{"model":"m","stream_options":[]}',
    b'{"model":"m","max_tokens":5,"max_tokens":null}', b'{"model":"m","n":2,"n":2}',
    b'{"model":"m","n":2,"\\u006e":3}', b'{"model":"m","max_tokens":0,"max_tokens":7}',
    b'{"n":2,"x":"' + b"x" * 2000 + b'","model":"m","n":3}',
    b'{"model":"m","x":"' + b"x" * 2000 + b'","model":"m"}',
    b'{"model":"m","x":"' + b"x" * 2000 + b'","stream_options":{},"stream_options":null}',
    b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
]  # fmt: skip


def fields(head: object) -> dict[str, object]:
    names = ("model", "stream", "include_usage", "max_tokens", "n", "has_stream_options")
    return {name: getattr(head, name) for name in names}


@pytest.mark.parametrize("body", BODIES)
def test_heads_are_equal(body: bytes) -> None:
    fast, slow = body_msgspec.read_head(body), body_stdlib.read_head(body)
    assert fields(fast) == fields(slow)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["n", "other/model"])
def test_only_the_model_is_replaced(body: bytes, name: str) -> None:
    fast = body_msgspec.rewrite(body, body_msgspec.read_head(body), name, False)
    slow = body_stdlib.rewrite(body, body_stdlib.read_head(body), name, False)
    assert fast == slow


@pytest.mark.parametrize("body", BODIES)
def test_usage_is_asked_for(body: bytes) -> None:
    edited = body_stdlib.with_include_usage(body, body_stdlib.read_head(body))
    assert body_stdlib.read_head(edited).include_usage
    assert body_msgspec.read_head(edited).include_usage


@pytest.mark.parametrize("body", REFUSED)
def test_what_one_refuses_the_other_refuses(body: bytes) -> None:
    with pytest.raises(body_msgspec.BadBody) as fast:
        body_msgspec.read_head(body)
    with pytest.raises(body_stdlib.BadBody) as slow:
        body_stdlib.read_head(body)
    assert fast.value.param == slow.value.param


def test_both_offer_the_same_names() -> None:
    assert body_msgspec.__all__ == body_stdlib.__all__
    assert body_msgspec.MOST == body_stdlib.MOST
    assert all(hasattr(body_stdlib, name) for name in body_stdlib.__all__)


def test_counts_are_left_to_the_exact_way() -> None:
    body = b'{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'
    assert body_msgspec.read_counts(body) == ("m", Usage(1, 2))
    assert body_stdlib.read_counts(body) is None


def test_an_answer_is_read() -> None:
    body = b'{"model":"m","usage":{"total_tokens":3}}'
    assert {"total_tokens": 3} == body_stdlib.usage_of(body) == body_msgspec.usage_of(body)
    assert None is body_stdlib.usage_of(b"[]")
    assert None is body_stdlib.usage_of(b"{")


@pytest.mark.parametrize("unit", [b'\\"k\\":0,', b'[\\"{', b'"', b'"a'])
def test_strings_without_an_end_take_no_longer_than_others(unit: bytes) -> None:
    body = b'{"model":"m","x":"' + unit * (300_000 // len(unit))
    began = time.process_time()
    with pytest.raises(body_stdlib.BadBody):
        body_stdlib.read_head(body)
    assert time.process_time() - began < 5
