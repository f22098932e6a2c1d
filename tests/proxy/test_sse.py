"""The SSE decoder: every sample whole, byte by byte and at every pair of split points."""

from __future__ import annotations

import time
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passy_proxy.sse import Decoder, MalformedStream, Message, encode

# input → (event, data, raw, terminated) of each message
SAMPLES: dict[str, tuple[bytes, list[tuple[str, bytes, bytes, bool]]]] = {
    "nothing": (b"", []),
    "one": (b"data: a\n\n", [("", b"a", b"data: a\n\n", True)]),
    "two": (
        b"data: a\n\ndata: [DONE]\n\n",
        [("", b"a", b"data: a\n\n", True), ("", b"[DONE]", b"data: [DONE]\n\n", True)],
    ),
    "named": (
        b"event: ping\ndata: {}\n\n",
        [("ping", b"{}", b"event: ping\ndata: {}\n\n", True)],
    ),
    "name after data": (b"data: 1\nevent: x\n\n", [("x", b"1", b"data: 1\nevent: x\n\n", True)]),
    "a name lasts one message": (
        b"event: x\n\ndata: 1\n\n",
        [("x", b"", b"event: x\n\n", True), ("", b"1", b"data: 1\n\n", True)],
    ),
    "crlf": (
        b"data: a\r\n\r\ndata: b\r\n\r\n",
        [("", b"a", b"data: a\r\n\r\n", True), ("", b"b", b"data: b\r\n\r\n", True)],
    ),
    "cr": (
        b"data: a\r\rdata: b\r\r",
        [("", b"a", b"data: a\r\r", True), ("", b"b", b"data: b\r\r", True)],
    ),
    "mixed ends": (
        b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\ndata: d\n\rdata: e\n\n",
        [
            ("", b"a", b"data: a\r\n\n", True),
            ("", b"b", b"data: b\n\r\n", True),
            ("", b"c", b"data: c\r\r\n", True),
            ("", b"d", b"data: d\n\r", True),
            ("", b"e", b"data: e\n\n", True),
        ],
    ),
    "cr is a line end": (
        b"data: a\rdata: b\n\n",
        [("", b"a\nb", b"data: a\rdata: b\n\n", True)],
    ),
    "several data lines": (
        b"data: a\ndata\ndata:\ndata: b\n\n",
        [("", b"a\n\n\nb", b"data: a\ndata\ndata:\ndata: b\n\n", True)],
    ),
    "one space is removed": (
        b"data:a\n\ndata:  b\n\ndata:\tc\n\n",
        [
            ("", b"a", b"data:a\n\n", True),
            ("", b" b", b"data:  b\n\n", True),
            ("", b"\tc", b"data:\tc\n\n", True),
        ],
    ),
    "comment": (
        b": keep-alive\n\ndata: a\n\n",
        [("", b"", b": keep-alive\n\n", True), ("", b"a", b"data: a\n\n", True)],
    ),
    "comment within": (b":x\ndata: a\n:y\n\n", [("", b"a", b":x\ndata: a\n:y\n\n", True)]),
    "other fields": (
        b"id: 7\nretry: 10\nDATA: no\n data: no\ndata : no\ndata: a\n\n",
        [("", b"a", b"id: 7\nretry: 10\nDATA: no\n data: no\ndata : no\ndata: a\n\n", True)],
    ),
    "bom": (
        b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n",
        [
            ("", b"a", b"\xef\xbb\xbfdata: a\n\n", True),
            ("", b"", b"\xef\xbb\xbfdata: b\n\n", True),
        ],
    ),
    "bom alone": (b"\xef\xbb\xbf", [("", b"", b"\xef\xbb\xbf", False)]),
    "blank lines too many": (
        b"\n\n\ndata: a\n\n\n\n",
        [
            ("", b"", b"\n\n", True),
            ("", b"a", b"\ndata: a\n\n", True),
            ("", b"", b"\n\n", True),
        ],
    ),
    "blank line first": (b"\ndata: a\n\n", [("", b"a", b"\ndata: a\n\n", True)]),
    "unterminated": (
        b"data: a\n\ndata: b\n",
        [("", b"a", b"data: a\n\n", True), ("", b"b", b"data: b\n", False)],
    ),
    "cut within a line": (b'data: {"a":', [("", b'{"a":', b'data: {"a":', False)]),
    "cut one byte into a line": (b"data: a\nd", [("", b"a", b"data: a\nd", False)]),
    "cut within crlf": (
        b"data: a\r\n\r",
        [("", b"a", b"data: a\r\n\r", True)],
    ),
    "cr at the end": (b"data: a\r", [("", b"a", b"data: a\r", False)]),
    "nul and high bytes": (
        b"event: \xff\ndata: \x00\xff\xc3\xa9\n\n",
        [("\ufffd", b"\x00\xff\xc3\xa9", b"event: \xff\ndata: \x00\xff\xc3\xa9\n\n", True)],
    ),
    "unicode line ends are text": (
        "data: a\u2028b\x85\x0b\x0cc\n\n".encode(),
        [("", "a\u2028b\x85\x0b\x0cc".encode(), "data: a\u2028b\x85\x0b\x0cc\n\n".encode(), True)],
    ),
    "colon in the value": (b"data: a: b\n\n", [("", b"a: b", b"data: a: b\n\n", True)]),
}


def decoded(pieces: list[bytes], limit: int = 1 << 20) -> tuple[list[Message], bool]:
    """All messages of a stream, and whether it was found malformed."""
    decoder = Decoder(limit)
    messages = []
    try:
        for piece in pieces:
            messages += decoder.feed(piece)
        messages += decoder.finish()
    except MalformedStream:
        return messages, True
    return messages, False


def pieces_of(stream: bytes, *cuts: int) -> list[bytes]:
    return [stream[start:end] for start, end in pairwise((0, *cuts, len(stream)))]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_has_its_messages_and_their_raws_are_the_input(name: str) -> None:
    stream, expected = SAMPLES[name]
    messages, _ = decoded([stream])
    assert [Message(*fields) for fields in expected] == messages
    assert stream == b"".join(message.raw for message in messages)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_reads_the_same_however_it_is_split(name: str) -> None:
    stream, expected = SAMPLES[name]
    whole = [Message(*fields) for fields in expected]
    assert (whole, False) == decoded([stream[at : at + 1] for at in range(len(stream))])
    for cuts in combinations_with_replacement(range(len(stream) + 1), 2):
        assert (whole, False) == decoded(pieces_of(stream, *cuts)), cuts


def reference(stream: bytes) -> list[tuple[str, bytes]]:
    """The WHATWG algorithm, a line at a time, over the whole stream."""
    dispatched = []
    event, data = "", b""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in text.split(b"\n")[:-1]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                dispatched.append((event, data[:-1]))
            event, data = "", b""
        elif field == b"data":
            data += value + b"\n"
        elif field == b"event":
            event = value.decode("utf-8", "replace")
    return dispatched


PARTS = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"data",
        b"data: ",
        b"event: ",
        b":",
        b" ",
        b"x",
        b"\xef\xbb\xbf",
    ]
)


@given(st.lists(PARTS, max_size=30).map(b"".join), st.data())
def test_any_stream_reads_as_the_standard_says(stream: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    messages, _ = decoded(pieces_of(stream, *cuts))
    assert messages == decoded([stream])[0]
    assert stream == b"".join(message.raw for message in messages)
    seen = [(message.event, message.data) for message in messages if message.terminated]
    expected = [pair for pair in reference(stream) if pair[1]]
    assert expected == [pair for pair in seen if pair[1]]
    assert all(message.terminated for message in messages[:-1])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_bound_is_met_at_the_same_message_however_the_stream_is_split(end: bytes) -> None:
    fits = b"data: " + b"x" * (20 - 6 - 2 * len(end)) + 2 * end
    stream = fits + b"data: 1" + 2 * end + b"data: x" + fits + b"data: 2" + 2 * end
    expected = ([fits, b"data: 1" + 2 * end], True)
    for cuts in combinations_with_replacement(range(len(stream) + 1), 2):
        messages, malformed = decoded(pieces_of(stream, *cuts), limit=20)
        assert expected == ([message.raw for message in messages], malformed), cuts
    messages, malformed = decoded([bytes([byte]) for byte in stream], limit=20)
    assert expected == ([message.raw for message in messages], malformed)


def test_a_malformed_stream_stays_malformed() -> None:
    decoder = Decoder(max_message_bytes=10)
    with pytest.raises(MalformedStream, match="exceeds 10 bytes"):
        decoder.feed(b"data: 12345678")
    with pytest.raises(MalformedStream):
        decoder.feed(b"\n\ndata: 1\n\n")
    with pytest.raises(MalformedStream):
        decoder.finish()


def seconds_to_feed(piece: bytes, times: int) -> float:
    decoder = Decoder(max_message_bytes=1 << 30)
    begun = time.process_time()
    for _ in range(times):
        decoder.feed(piece)
    return time.process_time() - begun


@pytest.mark.parametrize("piece", [b"x", b"\rx", b"data: x\n", b": x\r\n"])
def test_an_endless_message_costs_the_same_per_byte_however_long_it_grows(piece: bytes) -> None:
    seconds_to_feed(piece, 1000)
    once = seconds_to_feed(piece, 20_000)
    assert seconds_to_feed(piece, 200_000) < 60 * max(once, 0.005)  # quadratic would be 100 times


def test_a_hundred_mebibyte_line_takes_seconds_at_most() -> None:
    assert seconds_to_feed(b"x" * 65536, 1600) < 10


def test_many_tiny_messages_in_one_read_take_linear_time() -> None:
    messages, _ = decoded([b"data: 1\r\n\r\n" * 100_000 + b"data: 2\n\n" * 100_000])
    assert 200_000 == len(messages)


@pytest.mark.parametrize(
    ("data", "event", "expected"),
    [
        (b"{}", None, b"data: {}\n\n"),
        (b"{}", "error", b"event: error\ndata: {}\n\n"),
        (b"a\nb\r\nc\rd", None, b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (b"a\n", None, b"data: a\ndata: \n\n"),
        (b"", None, b"data: \n\n"),
    ],
)
def test_encoding_a_message(data: bytes, event: str | None, expected: bytes) -> None:
    assert expected == encode(data, event)


@given(st.binary(), st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\r\n")))
def test_what_is_encoded_decodes_to_the_same(data: bytes, event: str | None) -> None:
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    raw = encode(data, event)
    assert [Message(event or "", lines, raw)] == Decoder().feed(raw)


@pytest.mark.parametrize("event", ["a\nb", "a\rb", "\n"])
def test_an_event_name_with_a_line_end_is_refused(event: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        encode(b"x", event)
