"""A large body read in pieces is what it is as a whole, and takes nobody's time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from harness.catalogue import entries, raw
from harness.fuzzing import seeds
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from passy_proxy import body_large
from passy_proxy.body import BadBody, Head, JsonLimits, read_head, rewrite
from passy_proxy.body_large import read_large

LIMITS = JsonLimits()
FIELDS = ("model", "stream", "include_usage", "max_tokens", "n", "has_stream_options")
IMAGE = "QUJD" * 100_000


def in_pieces(body: bytes, limits: JsonLimits = LIMITS) -> Head:
    steps = read_large(body, limits)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            head: Head = done.value
            return head


def told(read: Any, body: bytes) -> Any:
    """What is read of it, and what becomes of an edit; or why it is refused."""
    try:
        head = read(body, LIMITS)
    except BadBody as error:
        return error.message, error.param
    edited = rewrite(body, head, 'a "name"', include_usage=True)
    return [getattr(head, field) for field in FIELDS], edited


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large."""
    monkeypatch.setattr(body_large, "LONG", 4)
    monkeypatch.setattr(body_large, "PIECE", 9)


@pytest.mark.usefixtures("small")
def test_it_is_read_as_a_whole_would_be() -> None:
    bodies = [raw(case["body"]) for case in entries("json-hostile")] + seeds("splice")
    for body in bodies:
        if len(body) <= 200_000:
            assert told(read_head, body) == told(in_pieces, body), body[:200]


PARTS = st.sampled_from(
    [
        *(
            b'"',
            b"\\",
            b'\\"',
            b"\\\\",
            b"\\u00e4",
            b"\\ud83d",
            b"\\ude00",
            b"\\ud83d\\ude00",
            b"\\u",
        ),
        *("ä€😀"[at].encode() for at in range(3)),
        *(
            b"\xff",
            b"\xe2\x82",
            b"\n",
            b"\0",
            b"abcdefghijkl",
            b" ",
            b":",
            b",",
            b"}",
            b"]",
            b"[",
            b"{",
        ),
        *(b'"model":', b'"m"', b'"stream":true', b'{"model":"m","x":"', b'"}', b'","', b'"x":"'),
    ]
)


@pytest.mark.usefixtures("small")
@settings(
    max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PARTS, max_size=14).map(b"".join), st.booleans())
@example(b"\\ud83d\\ude00" * 9, True)
@example(b"\\\\ud83dxxxxxxxxxxx", True)
@example(("😀" * 20).encode(), True)
def test_any_text_is_read_as_a_whole_would_be(text: bytes, within: bool) -> None:
    for start in (b'{"model":"m","x":"', b'{"x":["ab', b'{"model":"'):
        body = start + text + b'"],"model":"z"}' if b"[" in start else start + text + b'"}'
        body = body if within else text
        assert told(read_head, body) == told(in_pieces, body)


@pytest.mark.parametrize("first", [True, False])
def test_a_model_is_replaced_where_it_stands(first: bool) -> None:
    said = {"messages": [{"role": "user", "content": IMAGE}], "x": [IMAGE, 'a \\ "' * 9_000]}
    members = {"model": "m", **said} if first else {**said, "model": "m"}
    body = json.dumps(members, ensure_ascii=False).encode()
    head = in_pieces(body)
    assert json.loads(rewrite(body, head, "other", False)) == {**members, "model": "other"}


def test_S9_no_step_takes_long() -> None:
    texts = [
        IMAGE * 10,
        "ä€😀" * 300_000,
        'line\n\\"' * 200_000,
        *["x" * 1_100] * 4_000,
        *["y"] * 9_000,
    ]
    body = json.dumps({"model": "m", "messages": [], "x": texts}, ensure_ascii=False).encode()
    assert len(body) > 1 << 23
    longest = []
    for _ in range(3):
        steps, spent, end = read_large(body, LIMITS), [], False
        while not end:
            began = time.thread_time()
            end = next(steps, LIMITS) is LIMITS
            spent.append(time.thread_time() - began)
        longest.append(max(spent))
    assert min(longest) < 0.02
