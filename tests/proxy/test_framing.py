"""The grammar alone, against h11 as the reference: what we accept, it reads the same way."""

from __future__ import annotations

import random
from collections.abc import Callable

import h11
import pytest

from passy_proxy.framing import (
    Alike,
    Chunks,
    HeadLimits,
    HeadReader,
    Refused,
    RequestHead,
    asked_for,
    check_told,
    told,
)

PIECES = [
    *(
        b"GET",
        b"POST",
        b"get",
        b"TRACE",
        b" ",
        b"  ",
        b"/",
        b"/a",
        b"/%2f",
        b"/../",
        b"//",
        b"?",
        b"#",
    ),
    *(
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"\r\n",
        b"\n",
        b"\r",
        b"\t",
        b"\0",
        b":",
        b": ",
        b" :",
    ),
    *(b"Host", b"host", b"h", b"h:80", b"[::1]", b"Content-Length", b"Content_Length", b"3", b"+3"),
    *(
        b"Transfer-Encoding",
        b"chunked",
        b"gzip",
        b",",
        b"Connection",
        b"close",
        b"A",
        b"b",
        b"\x80",
    ),
    *(b"Expect", b"100-continue", b"X-Y", b";", b"\x7f", b"_"),
]
PLAIN = [b"POST /a HTTP/1.1", b"Host: h", b"A: b", b"Content-Length: 3", b"Connection: keep-alive"]


def mutant(choose: random.Random) -> bytes:
    """A good head with a few pieces put in, taken out, or doubled."""
    lines = [PLAIN[0], *choose.sample(PLAIN[1:], k=choose.randint(1, 4))]
    raw = b"\r\n".join([*lines, b"", b""])
    for _ in range(choose.randint(0, 3)):
        at = choose.randrange(len(raw))
        until = at + choose.choice((0, 0, 1, 4))
        raw = raw[:at] + choose.choice(PIECES) + raw[until:]
    return raw


def test_h11_reads_every_head_that_we_accept_in_the_same_way() -> None:
    choose = random.Random(20261123)
    ours = HeadReader(HeadLimits())
    accepted = 0
    for _ in range(30_000):
        raw = mutant(choose)
        end = raw.find(b"\r\n\r\n") + 4
        if end < 4:
            continue
        try:
            head = ours.read(raw[:end])
        except Refused:
            continue
        accepted += 1
        reference = h11.Connection(h11.SERVER)
        reference.receive_data(raw[:end].removeprefix(b"\r\n"))
        event = reference.next_event()
        assert isinstance(event, h11.Request), raw
        assert (event.method.decode(), list(event.headers)) == (head.line.method, head.headers)
        target = head.line.raw_path + (b"?" + head.line.query if head.line.query else b"")
        assert target == event.target.removesuffix(b"?"), raw
        framed = [value for name, value in event.headers if name == b"content-length"]
        assert framed == ([b"%d" % head.length] if head.length else framed), raw
    assert accepted > 3000


def test_a_reader_gives_the_same_verdict_with_and_without_memory() -> None:
    choose = random.Random(7)
    used = HeadReader(HeadLimits())

    def verdict(reader: HeadReader, raw: bytes) -> object:
        try:
            head = reader.read(raw)
        except Refused as refusal:
            return refusal.code
        return (head.line, head.headers, head.length, head.keep_alive, head.expects_continue)

    for _ in range(20_000):
        raw = mutant(choose)
        raw = raw[: raw.find(b"\r\n\r\n") + 4] or b"\r\n\r\n"
        assert verdict(HeadReader(HeadLimits()), raw) == verdict(used, raw), raw


def test_a_head_known_by_the_latest_one_is_read_as_any_other() -> None:
    choose = random.Random(11)
    known = 0
    for _ in range(4_000):
        raw = mutant(choose)
        raw = raw[: raw.find(b"\r\n\r\n") + 4] or b"\r\n\r\n"
        try:
            alike = Alike.of(raw, HeadReader(HeadLimits()).read(raw), HeadLimits().head)
        except Refused:
            continue
        at = raw.lower().find(b"content-length:")
        for _ in range(20):
            place = choose.choice([choose.randrange(len(raw)), at + choose.randrange(12, 24)])
            new = choose.choice([b"", b"5", b"12", b" ", b"\r\n", b"-", b"a", bytes([place % 256])])
            other = raw[:place] + new + raw[place + choose.randrange(2) :]
            found = alike.read(other + b"body") if alike else None
            if found is not None:
                known += 1
                head, size = found
                assert other.find(b"\r\n\r\n") + 4 == size
                expected = HeadReader(HeadLimits()).read(other[:size])
                for name in RequestHead.__slots__:
                    assert getattr(expected, name) == getattr(head, name), (raw, other)
    assert known > 1_000


def test_what_is_expected_depends_on_the_length_at_hand() -> None:
    lines = [b"POST / HTTP/1.1", b"Host: h", b"Expect: 100-continue", b"Content-Length: 5"]
    raw = b"\r\n".join([*lines, b"", b""])
    alike = Alike.of(raw, HeadReader(HeadLimits()).read(raw), HeadLimits().head)
    assert alike is not None
    for length, expected in ((b"5", True), (b"0", False), (b"7", True)):
        found = alike.read(raw.replace(b"5\r\n", length + b"\r\n"))
        assert found is not None
        assert expected is found[0].expects_continue


def test_a_length_that_could_outgrow_the_limit_is_not_known_by_the_latest_one() -> None:
    raw = b"\r\n".join([*PLAIN, b"", b""])
    head = HeadReader(HeadLimits()).read(raw)
    assert Alike.of(raw, head, len(raw) + 17) is None
    assert Alike.of(raw, head, len(raw) + 18) is not None


def test_secrets_are_not_remembered() -> None:
    reader = HeadReader(HeadLimits())
    lines = [
        b"Host: h",
        b"Authorization: Bearer sk-1",
        b"X-Api-Key: sk-2",
        b"Cookie: sk-3",
        b"Helicone-Auth: sk-5",
    ]
    reader.read(b"\r\n".join([b"GET /?after=sk-4 HTTP/1.1", *lines, b"", b""]))
    remembered = repr([getattr(reader, name) for name in HeadReader.__slots__ if name != "limits"])
    assert "Host: h" in remembered
    assert "sk-" not in remembered


def test_the_memory_of_a_reader_is_bounded() -> None:
    reader = HeadReader(HeadLimits())
    for number in range(5000):
        reader.read(b"GET /%d HTTP/1.1\r\nHost: h\r\nX-%d: %d\r\n\r\n" % (number, number, number))
    sizes = [len(getattr(reader, name)) for name in ("_fields", "_lines", "_names")]
    assert max(sizes) <= 1024


@pytest.mark.parametrize("seed", range(20))
def test_a_chunked_body_is_the_same_however_it_is_split(seed: int) -> None:
    choose = random.Random(seed)
    parts = [choose.randbytes(choose.randint(1, 300)) for _ in range(choose.randint(0, 8))]
    raw = b"".join(b"%X;x=y\r\n%b\r\n" % (len(part), part) for part in parts)
    raw += b"0\r\nA: b\r\n\r\nnext"
    chunks, body, at = Chunks(), b"", 0
    while not chunks.done:
        step = choose.randint(1, 40)
        body += b"".join(chunks.feed(raw[at : at + step]))
        at += step
    assert b"".join(parts) == body
    assert b"next" == chunks.rest + raw[at:]


@pytest.mark.parametrize("seed", range(10))
def test_h11_reads_every_chunked_body_that_we_accept_in_the_same_way(seed: int) -> None:
    choose = random.Random(seed)
    head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [
        b"3",
        b"a",
        b"0",
        b"\r\n",
        b"\n",
        b"\r",
        b";x",
        b" ",
        b"abc",
        b"\t",
        b"-",
        b"0x",
        b"A: b",
    ]
    accepted = 0
    for _ in range(3000):
        raw = b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n"
        for _ in range(choose.randint(0, 2)):
            at = choose.randrange(len(raw))
            raw = raw[:at] + choose.choice(pieces) + raw[at + choose.randint(0, 2) :]
        chunks = Chunks()
        try:
            body = b"".join(chunks.feed(raw))
        except Refused:
            continue
        if not chunks.done:
            continue
        accepted += 1
        reference = h11.Connection(h11.SERVER)
        reference.receive_data(head + raw)
        reference.next_event()
        theirs = b""
        while isinstance(event := reference.next_event(), h11.Data):
            theirs += event.data
        assert isinstance(event, h11.EndOfMessage), raw
        assert (theirs, reference.trailing_data[0]) == (body, chunks.rest), raw
    assert accepted > 100


def read(*lines: bytes, target: bytes = b"/a") -> RequestHead:
    head = [b"POST " + target + b" HTTP/1.1", b"Host: h", *lines, b"", b""]
    return HeadReader(HeadLimits()).read(b"\r\n".join(head))


@pytest.mark.parametrize(
    ("lines", "passing"),
    [
        ([b"Connection: keep-alive", b"A: 1"], [b"host", b"connection", b"a"]),
        ([b"Connection: a", b"A: 1", b"B: 2"], [b"host", b"connection", b"b"]),
        ([b"A: 1", b"Connection: B ,a", b"B: 2"], [b"host", b"connection"]),
        (
            [b"Connection: close", b"Connection: a", b"A: 1"],
            [b"host", b"connection", b"connection"],
        ),
    ],
)
def test_what_connection_names_goes_no_further(lines: list[bytes], passing: list[bytes]) -> None:
    head = read(*lines)
    assert passing == [name for name, _ in head.headers]
    assert b"1" == head.fields[b"a"]  # It was meant for us.
    assert passing == [name for name, _ in told("POST", "/a", b"", _pairs(lines)).headers]


def _pairs(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    pairs = [line.partition(b": ") for line in [b"host: h", *lines]]
    return [(name.lower(), value) for name, _, value in pairs]


@pytest.mark.parametrize(
    ("target", "lines", "refused"),
    [
        (b"/a?key=x", [], (401, "invalid_api_key")),
        (b"/a?key=x", [b"Authorization: Bearer y"], (400, "key_in_url")),
        (b"/a?b=1&API%2dKEY=x", [b"X-Api-Key: y"], (400, "key_in_url")),
        (b"/a?b=1;token=x", [b"Api-Key: y"], (400, "key_in_url")),
        (b"/a?b=sk-passy-1", [], (401, "invalid_api_key")),
        (b"/a?b=sk%2Dpassy-1", [], (401, "invalid_api_key")),
        (b"/a?keys=x&monkey=y&after=key", [], None),
        (b"/a", [b"Content-Encoding: br"], (415, "encoding_not_supported")),
        (b"/a", [b"Content-Encoding: Identity"], None),
        (b"/a", [b"Content-Encoding:"], None),
    ],
)
def test_what_no_server_of_ours_lets_in(
    target: bytes, lines: list[bytes], refused: tuple[int, str] | None
) -> None:
    def verdict(act: Callable[[], object]) -> tuple[int, str] | None:
        try:
            act()
        except Refused as refusal:
            return refusal.status, refusal.code
        return None

    query = target.partition(b"?")[2]
    assert refused == verdict(lambda: read(*lines, target=target))
    assert refused == verdict(lambda: check_told(query, _pairs(lines)))


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"GET /a/b?c HTTP/1.1\r\n", "/a/b"),
        (b"\r\nGET /a", "/a"),
        (b"GET http://h/a#b HTTP", "/a"),
        (b"GET", ""),
        (b"\x16\x03\x01", ""),
        (b"", ""),
    ],
)
def test_a_path_is_guessed_of_what_cannot_be_read(raw: bytes, path: str) -> None:
    assert path == asked_for(raw)


def test_who_the_client_is_is_concealed_in_whatever_head_follows() -> None:
    lines = [b"POST / HTTP/1.1", b"Host: h", b"Authorization: Bearer sk-a", b"Content-Length: 5"]
    raw = b"\r\n".join([*lines, b"X-Api-Key: sk-b", b"Cookie: c=d", b"X-Other: e", b"", b""])
    head = HeadReader(HeadLimits()).read(raw)
    alike = Alike.of(raw, head, HeadLimits().head)
    assert alike is not None
    for length in (b"5", b"123", b"123", b"0"):
        found = alike.read(raw.replace(b"5\r\n", length + b"\r\n"))
        assert found is not None
        headers, fields = found[0].public or found[0].concealed()
        expected = ((b"host", b"h"), (b"content-length", length), (b"x-other", b"e"))
        assert expected == headers
        assert dict(expected) == fields
        assert {b"authorization", b"x-api-key", b"cookie"} <= found[0].fields.keys()
