"""Usage in JSON that is not kept: found at its depth, wherever it stands and however it is cut."""

from __future__ import annotations

import json
import random

import pytest

from passy_plugins.dialects.passing import LONGEST, Passing

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "details": {"cached": 1}}
DECOY = '"usage":{"prompt_tokens":1}'
FILL = "x" * 3 * LONGEST


def found(text: bytes, size: int, depth: int = 1) -> object:
    passing = Passing(depth)
    for at in range(0, len(text), size):
        passing.feed(text[at : at + size])
    return passing.finish()


BODIES = {
    "first": {"usage": USAGE, "a": FILL, "b": [FILL]},
    "last": {"a": FILL, "b": {"c": [FILL]}, "usage": USAGE},
    "between": {"a": FILL, "usage": USAGE, "b": FILL},
    "beside others": {"a": [{"usage": {"x": 1}}], "usage": USAGE, "b": {"usage": {"x": 2}}},
    "in a text": {"a": DECOY, "usage": USAGE, "b": "{" + DECOY, "c": '\\"' + DECOY},
    "nothing but backslashes": {"a": "\\" * 3 * LONGEST, "usage": USAGE, "b": "\\" * 5 * LONGEST},
    "brackets in texts": {"a": "}}]]{[\\" * LONGEST, "usage": USAGE, "b": "{[" * LONGEST},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("size", [1, 977, LONGEST, 1 << 20])
def test_usage_is_found_wherever_it_stands(body: dict[str, object], size: int) -> None:
    assert USAGE == found(json.dumps(body).encode(), size)
    nested = json.dumps({"type": "x", "response": body, "usage": {"x": 3}}, separators=(",", ":"))
    assert USAGE == found(nested.encode(), size, depth=2)


def test_what_only_looks_like_one_is_none() -> None:
    for body in ({"a": DECOY}, {"a": {"usage": USAGE}}, {"usage": None}, {"usage": [USAGE]}, {}):
        assert found(json.dumps(body).encode(), 10) is None
    assert found(b'{"usage":{"a":1', 3) is None
    assert found(random.Random(3).randbytes(99_999), 1000) is None


@pytest.mark.parametrize("text", [b"y", b"\\", b'\\"', b"\\\\{"])
def test_text_of_any_kind_is_let_go(text: bytes) -> None:
    passing = Passing(1)
    passing.feed(b'{"b":"')
    for _ in range(50):
        passing.feed(text * 10_000)
        assert len(passing._kept) <= LONGEST + 1
    passing.feed(b'","usage":{"a":2}}')
    assert {"a": 2} == passing.finish()
    assert passing.closed()


def test_the_last_one_counts_and_memory_is_bounded() -> None:
    passing = Passing(1)
    passing.feed(b'{"usage":{"a":1},"usage":{"a":2},"b":"')
    for _ in range(1000):
        passing.feed(b"y" * 1000)
        assert len(passing._kept) <= 2 * LONGEST + 1000
    assert {"a": 2} == passing.finish()
    passing.feed(b'"}')
    assert passing.closed()
