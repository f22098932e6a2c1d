"""Sizes: each cap holds to the byte, costs no memory, and an upload is nobody's file here."""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from harness.client import Answer, Told, send
from harness.lag import busy
from harness.upstream import Hit, RawUpstream, Step, whole

from passy_proxy.testing import completion

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

MEBIBYTE = 1 << 20
CONFIGURATION = """
overload: {loop_lag: 0s}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams: {openai: {dialect: openai, url: "URL/v1", credential: sk-operator}}
models: {m: [openai/m]}
chains:
  default: [auth: {directory: books}, alias, fallback]
  through: [auth: {directory: books}, direct: {upstream: openai}]
routes:
  - {match: POST /v1/chat/completions, chain: default}
  - {match: "* /v1/files*", chain: through, body: stream, root: /v1, body_limit: 512MiB}
"""


def script(hit: Hit) -> list[Step]:
    if "files" in hit.target:
        hit.body = b""  # There is no room for all of them.
        return whole("{}")
    return whole(json.dumps(completion()))


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=script) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(serve: Serve, upstream: RawUpstream) -> Gateway:
    return serve(CONFIGURATION.replace("URL", upstream.url))


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.new_key("--name", "bytes")


def head(key: str, *lines: str, line: str = "POST /v1/chat/completions HTTP/1.1") -> bytes:
    shown = f"Authorization: Bearer {key}"
    return "\r\n".join([line, "Host: h", shown, "Connection: close", *lines, "", ""]).encode()


def code(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


HEADS = {"head": (431, "headers_too_large"), "headers": (431, "too_many_headers"), "url": (414, "")}
CAPS = {"head": 32 * 1024, "headers": 100, "url": 8 * 1024}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_C6_the_caps_of_a_head(name: str, more: int, gateway: Gateway, key: str) -> None:
    size = CAPS[name] + more
    line = "GET /v1/files HTTP/1.1"
    if name == "url":
        message = head(key, line=f"GET {'/v1/files/'.ljust(size, 'a')} HTTP/1.1")
    elif name == "headers":
        message = head(key, *["A: b"] * (size - 3), line=line)
    else:
        message = head(key, "A: ", line=line)
        message = message.replace(b"A: ", b"A: " + b"a" * (size - len(message)))
        assert size == len(message)
    answer = send(gateway.url, message).answer()
    status, refusal = HEADS[name]
    if more <= 0:
        assert 200 == answer.status
    else:
        assert (status, refusal or "url_too_long") == (answer.status, code(answer))
        assert answer.headers["x-request-id"].startswith("req_")


def filled(size: int) -> bytes:
    body = b'{"model":"m","x":"'
    return body + b"a" * (size - len(body) - 2) + b'"}'


def upload(url: str, key: str, body: bytes, *lines: str, line: str = "", chunked: bool) -> Told:
    line = line or "POST /v1/chat/completions HTTP/1.1"
    if not chunked:
        whole = [head(key, f"Content-Length: {len(body)}", *lines, line=line), body]
    else:
        whole = [head(key, "Transfer-Encoding: chunked", *lines, line=line)]
        for at in range(0, len(body), MEBIBYTE):
            piece = body[at : at + MEBIBYTE]
            whole.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        whole.append(b"0\r\n\r\n")
    return send(url, whole, quiet=20.0, patience=60.0)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_C6_the_cap_of_a_json_body(more: int, chunked: bool, gateway: Gateway, key: str) -> None:
    told = upload(gateway.url, key, filled(32 * MEBIBYTE + more), chunked=chunked)
    if more <= 0:
        assert 200 == told.answer().status
    elif told.data:  # A client that never looks may miss it, for the reset that follows.
        assert (413, "request_too_large") == (told.answer().status, code(told.answer()))
    else:
        assert "reset" == told.end


def announced(url: str, key: str, *lines: str, line: str = "POST /v1/files HTTP/1.1") -> Answer:
    """The answer to a head alone."""
    return send(url, head(key, *lines, line=line), quiet=30.0).answer()


def test_C6_the_cap_of_an_upload_is_the_route_s(gateway: Gateway, key: str) -> None:
    most = 512 * MEBIBYTE
    answer = announced(gateway.url, key, f"Content-Length: {most + 1}")
    assert (413, "request_too_large") == (answer.status, code(answer))
    for size in (most - 1, most):
        with socket.create_connection(address(gateway), 10) as sock:
            # At the cap and below nothing is said against it: its body is waited for.
            sock.sendall(head(key, f"Content-Length: {size}", line="POST /v1/files HTTP/1.1"))
            sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                sock.recv(1)


def address(gateway: Gateway) -> tuple[str, int]:
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@pytest.mark.large
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_C6_the_cap_of_an_upload_to_the_byte(more: int, gateway: Gateway, key: str) -> None:
    line = "POST /v1/files HTTP/1.1"

    def pieces() -> Iterator[bytes]:
        yield head(key, "Transfer-Encoding: chunked", line=line)
        for size in (*[MEBIBYTE] * 511, MEBIBYTE + more):
            yield b"%x\r\n%b\r\n" % (size, bytes(size))
        yield b"0\r\n\r\n"

    before = resident(gateway)
    told = send(gateway.url, pieces(), quiet=60.0, patience=120.0)
    assert resident(gateway) - before < 16 * MEBIBYTE
    if more <= 0:
        assert 200 == told.answer().status
    else:
        assert not told.data or 413 == told.answer().status


def resident(gateway: Gateway) -> int:
    """Bytes of memory that the process has now."""
    pages = Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("key_is_good", [True, False], ids=["known", "unknown"])
def test_C6_a_refused_body_of_100_mib_costs_no_memory(
    key_is_good: bool, gateway: Gateway, key: str
) -> None:
    length = f"Content-Length: {100 * MEBIBYTE}"
    shown = key if key_is_good else "sk-passy-nobody"
    announced(gateway.url, shown, length, line="POST /v1/chat/completions HTTP/1.1")
    before, most = resident(gateway), 0
    for _ in range(5):
        with socket.create_connection(address(gateway), 10) as sock:
            try:
                sock.sendall(head(shown, length))
                for _ in range(100):
                    sock.sendall(bytes(MEBIBYTE))
                    most = max(most, resident(gateway))
            except OSError:
                pass
            else:
                raise AssertionError("it took all of it")
    assert max(most, resident(gateway)) - before < 16 * MEBIBYTE


def test_C6_a_chunk_that_would_be_too_large_is_refused_before_it_comes(
    gateway: Gateway, key: str
) -> None:
    before = resident(gateway)
    for size in (32 * MEBIBYTE + 1, 100 * MEBIBYTE):
        message = head(key, "Transfer-Encoding: chunked") + b"%x\r\nabc" % size
        told = send(gateway.url, message, quiet=9.0)
        assert (413, "request_too_large") == (told.answer().status, code(told.answer()))
        assert told.seconds < 9  # Of the ten that a body may be late.
    assert resident(gateway) - before < 16 * MEBIBYTE


@pytest.mark.parametrize("chunk", [b"2\r\nxy\r\n", b"1\r\nx\r\n"])
def test_C6_a_body_in_crumbs_takes_no_more_than_its_size(
    chunk: bytes, gateway: Gateway, key: str
) -> None:
    before = resident(gateway)
    begun = busy(gateway)
    with socket.create_connection(address(gateway), 30) as sock:
        sock.sendall(
            head(key, "Transfer-Encoding: chunked") + b"11\r\n" + filled(40)[:17] + b"\r\n"
        )
        for _ in range(40):
            sock.sendall(chunk * 10_000)
        sock.sendall(b"0\r\n\r\n")
        sock.settimeout(30)
        assert b"HTTP/1.1 400" == sock.recv(12)  # It is no JSON.
        assert resident(gateway) - before < 16 * MEBIBYTE
    assert busy(gateway) - begun < 3  # a microsecond or two for each


# Multipart


def parts(number: int, boundary: str = "xyz", name: str = "f", end: str = "\r\n") -> bytes:
    part = f'--{boundary}{end}Content-Disposition: form-data; name="file"; filename="{name}"{end}'
    part += f"{end}hello{end}"
    return (part * number + f"--{boundary}--{end}").encode()


TYPE = "Content-Type: multipart/form-data; boundary="
FILES = "POST /v1/files HTTP/1.1"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("end", ["\r\n", "\n"], ids=["crlf", "lf"])
@pytest.mark.parametrize("number", [99, 100, 101])
def test_C6_the_cap_of_parts(
    number: int, end: str, chunked: bool, gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    body = parts(number, end=end)
    told = upload(gateway.url, key, body, TYPE + "xyz", line=FILES, chunked=chunked)
    answer = told.answer()
    if number <= 100:
        assert 200 == answer.status
        assert upstream.hits[-1].whole.is_set()
    else:
        assert (413, "too_many_parts") == (answer.status, code(answer))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_C6_parts_are_counted_however_they_come(size: int, gateway: Gateway, key: str) -> None:
    for number, status in ((100, 200), (101, 413)):
        body = parts(number, "b" * 70, name="")
        pieces = [body[at : at + size] for at in range(0, len(body), size)][: 30_000 // size]
        rest = body[len(b"".join(pieces)) :]
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, rest] if piece]
        message = head(key, "Transfer-Encoding: chunked", TYPE + "b" * 70, line=FILES)
        told = send(gateway.url, message + b"".join(chunks) + b"0\r\n\r\n")
        assert status == told.answer().status


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=a; boundary=b",
        "multipart/form-data; boundary=" + "a" * 71,
        "Multipart/Mixed",
    ],
)
def test_C6_parts_that_nobody_can_count_are_refused(
    kind: str, gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    line = "POST /v1/files/uncountable HTTP/1.1"
    told = upload(gateway.url, key, parts(1), f"Content-Type: {kind}", line=line, chunked=False)
    assert (400, "invalid_multipart") == (told.answer().status, code(told.answer()))
    assert [] == [hit for hit in upstream.hits if "uncountable" in hit.target]


NAMES = {
    "up": "../../../../tmp/passy-evil",
    "up-windows": "..\\..\\passy-evil",
    "root": "/tmp/passy-evil",
    "device": "con",
    "nul": "a\0passy-evil",
    "crlf": "a\r\nX-Evil: 1",
    "10k": "a" * 10_000,
    "dot": ".",
    "stream": "passy-evil::$DATA",
    "url": "file:///tmp/passy-evil",
    "empty": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_S11_an_upload_is_never_written_by_its_name(
    name: str, gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    before, opened = files_of(gateway), opened_by(gateway)
    body = parts(1, name=NAMES[name])
    told = upload(gateway.url, key, body, TYPE + "xyz", line=FILES, chunked=False)
    assert 200 == told.answer().status
    hit = upstream.hits[-1]
    assert "multipart/form-data; boundary=xyz" == hit.header("content-type")
    assert str(len(body)) == hit.header("content-length")
    assert before == files_of(gateway)
    assert not Path("/tmp/passy-evil").exists()
    assert opened == opened_by(gateway)


OURS = ("passy.db", "known.db")
"""What SQLite has there, and whatever it needs besides, at any moment."""


def files_of(gateway: Gateway) -> set[str]:
    return {str(path) for path in gateway.folder.rglob("*") if not path.name.startswith(OURS)}


def opened_by(gateway: Gateway) -> set[str]:
    """The files it has open, named or not; without those in which it looks what it has itself."""
    found = set()
    for link in Path(f"/proc/{gateway.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # It was closed meanwhile.
            path = Path(os.readlink(link))
            if not (
                str(path).startswith(("socket:", "/proc/", "/sys/")) or path.name.startswith(OURS)
            ):
                found.add(str(path))
    return found


def test_S11_an_upload_is_streamed(gateway: Gateway, key: str, upstream: RawUpstream) -> None:
    before, seen = resident(gateway), len(upstream.hits)
    with socket.create_connection(address(gateway), 10) as sock:
        length = f"Content-Length: {64 * MEBIBYTE}"
        sock.sendall(head(key, length, TYPE + "xyz", line=FILES))
        for _ in range(32):
            sock.sendall(bytes(MEBIBYTE))
        upstream.until(lambda: len(upstream.hits) > seen)
        assert not upstream.hits[-1].whole.is_set()  # It is there before its end is here.
        for _ in range(32):
            sock.sendall(bytes(MEBIBYTE))
        sock.settimeout(30)
        assert sock.recv(12) == b"HTTP/1.1 200"
    assert resident(gateway) - before < 16 * MEBIBYTE


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
def test_S12_a_bomb_in_a_request_is_never_unpacked(
    path: str, gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    bomb = gzip.compress(filled(64 * MEBIBYTE))
    before, seen = resident(gateway), len(upstream.hits)
    line = f"POST {path} HTTP/1.1"
    told = upload(gateway.url, key, bomb, "Content-Encoding: gzip", line=line, chunked=False)
    assert (415, "encoding_not_supported") == (told.answer().status, code(told.answer()))
    # Without the label it is bytes like any other.
    told = upload(gateway.url, key, bomb, line=line, chunked=False)
    expected = (400, 0) if "chat" in path else (200, 1)
    assert expected == (told.answer().status, len(upstream.hits) - seen)
    time.sleep(0.05)
    assert resident(gateway) - before < 16 * MEBIBYTE
