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

from passy_proxy import body_large, body_windows
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
    monkeypatch.setattr(body_large, "WINDOW", 16)


@pytest.fixture
def windows(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And looked through, and never read as a whole."""
    monkeypatch.setattr(body_large, "LONG", 12)
    monkeypatch.setattr(body_large, "SHORT", 0)
    monkeypatch.setattr(body_large, "LARGE", -1)
    monkeypatch.setattr(body_windows, "WINDOW", 7)


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


JSON = st.recursive(
    st.sampled_from([0, -1.5e9, None, True, "", ", ", '"', "]}", "\\", "ä😀", "long enough"]),
    lambda each: st.lists(each, max_size=5) | st.dictionaries(st.sampled_from("abcdef"), each),
    max_leaves=40,
)
FEW = JsonLimits(depth=5, keys=4)


def seen(read: Any, body: bytes, limits: JsonLimits) -> Any:
    """What is read, and what becomes of an edit; nothing of what is refused, but for what is
    refused only where a dozen bytes are a long text."""
    try:
        head = read(body, limits)
    except BadBody as error:
        return error.message if "too long" in error.message else None
    return [getattr(head, field) for field in FIELDS], rewrite(body, head, "b", include_usage=True)


@pytest.mark.usefixtures("windows")
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.sampled_from(["x", "y", "messages"]), JSON), max_size=4),
    st.integers(0, 3),
    st.sampled_from([(",", ":"), (" ,\n", "  :\t"), (", " + " " * 20, ": ")]),
    st.integers(0, 400),
    st.sampled_from(
        [b"", b"", b"", b",", b'"', b"]", b"}", b"{", b":", b"0", b" " * 30, b"\\", b"\xff"]
    ),
)
def test_any_json_is_looked_through_as_a_whole_would_be(
    members: list[tuple[str, Any]], at: int, spaces: tuple[str, str], place: int, more: bytes
) -> None:
    """Also with a byte too many anywhere."""
    members[at:at] = [("model", "m"), ("stream", True)]
    each = (f"{json.dumps(k)}{spaces[1]}{json.dumps(v, separators=spaces)}" for k, v in members)
    body = f"{{{spaces[0].join(each)}}}".encode()
    body = body[:place] + more + body[place:]
    for limits in (LIMITS, FEW):
        assert seen(read_head, body, limits) == seen(in_pieces, body, limits), body


@pytest.mark.usefixtures("windows")
def test_what_is_large_in_other_ways_is_refused_as_a_whole_would_be() -> None:
    bodies = [raw(case["body"]) for case in entries("json-hostile")] + seeds("splice")
    for body in bodies:
        if len(body) <= 20_000:
            found = seen(in_pieces, body, LIMITS)
            assert found in (seen(read_head, body, LIMITS), "'model' is too long."), body[:200]


@pytest.mark.parametrize("first", [True, False])
def test_a_model_is_replaced_where_it_stands(first: bool) -> None:
    said = {"messages": [{"role": "user", "content": IMAGE}], "x": [IMAGE, 'a \\ "' * 9_000]}
    members = {"model": "m", **said} if first else {**said, "model": "m"}
    body = json.dumps(members, ensure_ascii=False).encode()
    head = in_pieces(body)
    assert json.loads(rewrite(body, head, "other", False)) == {**members, "model": "other"}


def body_of(*texts: object) -> bytes:
    said = {"model": "m", "messages": [], "x": texts, "stream": True}
    return json.dumps(said, ensure_ascii=False).encode()


LARGE_BODIES = {
    "texts": body_of(
        IMAGE * 10, "ä€😀" * 300_000, 'line\n\\"' * 200_000, *["x" * 1_100] * 4_000, *["y"] * 9_000
    ),
    "numbers": body_of(*[0.12345] * 1_000_000),
    "lists": body_of(*[[7, 12345]] * 90_000, *range(1_000_000)),
    "short texts": body_of(*["word"] * 1_200_000),
    "blanks": b'{"model":"m","stream":true' + b" " * (9 << 20) + b"}",
    "no JSON": body_of(*range(1_300_000))[:-1],
    "no text": body_of(*["x" * 500] * 20_000)[:-20] + b'\xff"]}',
    "too many": body_of(*[{}] * 3_000_000),
}


@pytest.mark.parametrize("name", LARGE_BODIES)
def test_S9_no_step_takes_long(name: str) -> None:
    body = LARGE_BODIES[name]
    assert len(body) > 1 << 23
    longest = []
    for _ in range(8):
        steps, spent, end = read_large(body, LIMITS), [], False
        while not end:
            began = time.thread_time()
            try:
                end = next(steps, LIMITS) is LIMITS
            except BadBody:
                assert name in ("no JSON", "no text", "too many")
                end = True
            spent.append(time.thread_time() - began)
        longest.append(max(spent))
        if longest[-1] < 0.02:
            break
    assert min(longest) < 0.02
