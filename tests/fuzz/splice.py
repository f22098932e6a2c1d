"""The request's body, read and edited in place, with orjson as the judge: JSON before and after is
equal but for the model, and bytes are equal but for its span. The two readers we have agree, except
on half a surrogate pair (``"\\ud83d"``), which only one of them takes.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from passy_proxy import body_msgspec, body_stdlib

WORDS = ("json", "body", "splice")
SEEDS = (
    b'{"model":"gpt","messages":[{"role":"user","content":"hi"}]}',
    b' {"messages":[{"model":"no"}],"stream":true,"mod\\u0065l" : "a/b" ,"n":2}\n',
    b'{"stream_options":{"include_usage":false,"x":1},"stream":true,"model":"m","max_tokens":5}',
    b'{"model":"m","model":"n"}',
    b'{"model":"\\ud83d\\ude00","a":"\\"model\\":\\"x\\"","stream_options":null}',
    b'{"model":"m","max_tokens":1e400}',
    b'{"model":"m","messages":7,"tools":{},"n":-1e999}',
    b'{"model":"m","x":[[[[{"model":1}]]]],"y":1e5,"z":-0,"n":1.0}',
)
NAME = 'other/"name"\\\n\N{GRINNING FACE}'
FIELDS = ("model", "stream", "include_usage", "max_tokens", "n")


def head(reader: Any, body: bytes) -> Any:
    try:
        return reader.read_head(body)
    except reader.BadBody:
        return None


def check(body: bytes) -> None:
    """``body`` is one."""
    heads = [head(reader, body) for reader in (body_msgspec, body_stdlib)]
    told = [one and [getattr(one, field) for field in FIELDS] for one in heads]
    if told[0] is None and re.search(rb"\\u[dD][89a-fA-F]", body):
        return
    assert told[0] == told[1], f"two readings: {told}"
    if told[0] is None:
        return
    for reader, found in zip((body_msgspec, body_stdlib), heads, strict=True):
        spliced = reader.splice_model(body, found, NAME)
        span = reader.member_span(body, "model")
        assert span is not None
        start, end = span
        assert json.loads(body[start:end]) == found.model
        assert spliced[:start] == body[:start]
        assert spliced[len(spliced) - (len(body) - end) :] == body[end:]
        both = reader.rewrite(body, found, NAME, True)
        again = head(reader, both)
        assert (NAME, True) == (again.model, again.include_usage)
        try:
            before = orjson.loads(body)
        except orjson.JSONDecodeError:
            continue  # stricter than we have to be
        assert orjson.loads(spliced) == {**before, "model": NAME}
        options = {**(before.get("stream_options") or {}), "include_usage": True}
        assert orjson.loads(both) == {**before, "model": NAME, "stream_options": options}
