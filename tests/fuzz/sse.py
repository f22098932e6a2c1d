"""The decoder of event streams, and every tap: how bytes are split never changes what they say, and
who changes nothing passes the very bytes on.

How much text there was and of which model is compared only where every event is JSON; of a
tap that changes something, what it gives is compared as a client reads it. Line ends at the very
end may be half a message, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from passy_plugins.dialects.anthropic import Anthropic
from passy_plugins.dialects.openai import OpenAI
from passy_proxy import json
from passy_proxy.body import Head
from passy_proxy.dialect import Dialect, Tap
from passy_proxy.exchange import Request
from passy_proxy.framing import told
from passy_proxy.sse import Decoder, MalformedStream

WORDS = ("sse", "stream", "upstream", "fault", "response")
CHAT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
SEEDS = (
    b"\0\0" + CHAT + USAGE + b"data: [DONE]\n\n",
    b"\1\3" + CHAT.replace(b"\n", b"\r\n") + USAGE + b": ping\n\ndata: [DONE]\r\n\r\n",
    b'\0\5data: {"error":{"message":"x"}}\n\n',
    b'\2\7event: response.completed\ndata: {"type":"response.completed","response":'
    b'{"usage":{"input_tokens":1,"output_tokens":2}}}\n\n',
    b'\3\1event: message_start\ndata: {"type":"message_start","message":{"model":"m",'
    b'"usage":{"input_tokens":3,"output_tokens":1}}}\n\nevent: content_block_start\ndata: '
    b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
    b'{"type":"text_delta","text":"Hi"}}\n\nevent: message_delta\ndata: {"type":"message_delta",'
    b'"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b"\0\0\xef\xbb\xbfid: 1\nretry: 5\ndata: a\ndata\ndata: b\n\n\n\n: c\r\rdata: \xff\n\n",
)


MIXED = re.compile(rb"\n\r(?!\n)").search
"""A blank line of LF and a lone CR: the decoder knows it, a tap may not."""


def request(operation: str, *, include_usage: bool) -> Request:
    made = Request(told("POST", "/", b"", []), None)  # type: ignore[arg-type]
    made.operation = operation
    made.head = Head("m", True, include_usage, None, 1, 0, include_usage)
    return made


def tap(dialect: Dialect, operation: str, spoken: str, usage: bool = True) -> Callable[[], Tap]:
    asked = request(operation, include_usage=usage)
    return lambda: dialect.tap(asked, True, spoken)


OPENAI, ANTHROPIC = OpenAI(), Anthropic()
TAPS = (
    (tap(OPENAI, "chat", "openai"), True),
    (tap(OPENAI, "chat", "openai", usage=False), False),
    (tap(OPENAI, "responses", "openai"), True),
    (tap(ANTHROPIC, "messages", "anthropic"), True),
    (tap(ANTHROPIC, "chat", "openai"), False),
)
"""Each with whether it passes on what it gets."""


def check(data: bytes) -> None:
    """The first byte chooses the tap, the second how the rest is split."""
    if len(data) < 3:
        return
    make, passes = TAPS[data[0] % len(TAPS)]
    step, data = data[1] or 1, data[2:]
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert decoded([data]) == decoded(pieces)
    counted = all(map(is_json, (message[1] for message in decoded([data]))))
    whole, split = tapped(make(), [data], counted), tapped(make(), pieces, counted)
    if isinstance(whole, str) or isinstance(split, str):
        assert whole == split, f"\nwhole: {whole}\nsplit: {split}"
        return
    heard = bytes_of if passes else said
    read = [(heard(given), *found) for given, *found in (whole, split)]
    assert read[0] == read[1], f"\nwhole: {read[0]}\nsplit: {read[1]}"
    if passes and not MIXED(data):
        check_passed(data, whole[0])


def decoded(pieces: list[bytes]) -> list[tuple[str, bytes, bytes, bool]]:
    decoder = Decoder()

    def messages() -> Iterator[Any]:
        for piece in pieces:
            yield from decoder.feed(piece)
        yield from decoder.finish()

    found = [(m.event, m.data, m.raw, m.terminated) for m in messages()]
    assert b"".join(pieces) == b"".join(raw for _, _, raw, _ in found)
    return found


def check_passed(data: bytes, given: bytes) -> None:
    """A tap that has nothing to change may leave out half a message at the end, and add an end mark
    that is missing."""
    if given.startswith(data):
        assert given[len(data) :].strip() in (b"", b"data: [DONE]"), "something was added"
    else:
        assert data.startswith(given), "something was changed"
        left = decoded([data[len(given) :]])
        assert not any(terminated for *_, terminated in left), "a whole message was left out"


def bytes_of(data: bytes) -> bytes:
    return data.rstrip(b"\r\n")


def said(data: bytes) -> list[tuple[str, bytes]]:
    """What a client hears of a stream."""
    return [(event, text) for event, text, _, _ in decoded([data]) if text]


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return data in (b"", b"[DONE]")
    return True


def tapped(tap: Tap, pieces: list[bytes], counted: bool) -> tuple[Any, ...] | str:
    """What a tap gives and finds; ``counted``: how much text too."""
    try:
        given = b"".join([*(tap.feed(piece) for piece in pieces), tap.finish()])
    except MalformedStream as error:
        return str(error)
    model, text = (tap.model, tap.text_bytes) if counted else ("", 0)
    return given, tap.usage, model, tap.done, tap.error, text, tap.finish_reason
