"""Compressed answers, although none was asked for: unpacked within bounds, or not touched."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gateway import Asked, Gateway, Serve
from harness.upstream import Hit, RawUpstream, Step

from passy_proxy.testing import chat_events, completion

KINDS = ("http1", "httpcore")
MIB = 1 << 20
PLAIN = json.dumps(completion("Hello there!")).encode()
STREAM = b"".join(chat_events(["Hello", " there!"]))
BOMB = json.dumps(completion("a" * (8 * MIB))).encode()


def deflated(data: bytes, bits: int) -> bytes:
    packing = zlib.compressobj(9, wbits=bits)
    return packing.compress(data) + packing.flush()


def answer(coding: str, body: bytes, kind: str = "application/json") -> list[Step]:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-encoding: {coding}\r\n"
    text = body.decode("latin-1")
    return [{"send": f"{head}content-length: {len(body)}\r\n\r\n"}, {"send": text}]


SLOW = gzip.compress(b"data: {}\n\n" + b": x\n\n" * 400_000).decode("latin-1")

CASES: dict[str, tuple[list[Step], int, bytes | None]] = {
    "gzip": (answer("gzip", gzip.compress(PLAIN)), 200, PLAIN),
    "x-gzip": (answer("X-GZIP", gzip.compress(PLAIN)), 200, PLAIN),
    "deflate": (answer("deflate", deflated(PLAIN, 15)), 200, PLAIN),
    "deflate-raw": (answer("deflate", deflated(PLAIN, -15)), 200, PLAIN),
    "identity": (answer("identity", PLAIN), 200, PLAIN),
    "gzip-said-but-plain": (answer("gzip", PLAIN), 200, None),
    "gzip-garbage": (answer("gzip", b"\x1f\x8b" + b"EVIL" * 99), 502, None),
    "gzip-cut": (answer("gzip", gzip.compress(PLAIN)[:-9]), 502, None),
    "gzip-of-no-json": (answer("gzip", gzip.compress(b"EVIL")), 502, None),
    "gzip-bomb": (answer("gzip", gzip.compress(BOMB)), 502, None),
    "gzip-bomb-of-bombs": (answer("gzip", gzip.compress(gzip.compress(BOMB))), 502, None),
    "unknown": (answer("x-own", b"\xff\x00\xfe"), 200, b"\xff\x00\xfe"),
    "brotli": (answer("br", b"\x8b\x02\x80ok\x03"), 200, b"\x8b\x02\x80ok\x03"),
    "stream-gzip": (answer("gzip", gzip.compress(STREAM), "text/event-stream"), 200, STREAM),
    "stream-gzip-garbage": (answer("gzip", b"EVIL" * 99, "text/event-stream"), 502, None),
    "stream-gzip-bomb": (answer("gzip", gzip.compress(BOMB), "text/event-stream"), 502, None),
    "stream-gzip-slow-bomb": (
        [
            {"send": "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"},
            {"send": "content-encoding: gzip\r\n\r\n"},
            *[{"send": SLOW[at : at + 1024]} for at in range(0, len(SLOW), 1024)],
            "close",
        ],
        502,
        None,
    ),
    "stream-brotli": (
        answer("br", b"\x8b\x02\x80ok\x03", "text/event-stream"),
        200,
        b"\x8b\x02\x80ok\x03",
    ),
    "stream-deflate": (answer("deflate", deflated(STREAM, 15), "text/event-stream"), 200, STREAM),
}


class Scene:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def ask(self, kind: str, name: str) -> Asked:
        said: dict[str, Any] = {"model": kind, "messages": [], "stream": name.startswith("stream")}
        said["stream_options"] = {"include_usage": True}
        return self.gateway.ask("/v1/chat/completions", said, x_case=name)


@pytest.fixture(scope="module")
def scene(serve: Serve) -> Iterator[Scene]:
    def script(hit: Hit) -> list[Step]:
        return CASES[str(hit.header("x-case"))][0]

    with RawUpstream(script=script) as upstream:
        upstreams = "".join(
            f"  {kind}: {{url: '{upstream.url}', credential: k, transport: {kind},"
            " forward_headers: [x-case]}\n"
            for kind in KINDS
        )
        models = ", ".join(f"{kind}: [{kind}/m]" for kind in KINDS)
        yield Scene(
            serve(
                f"upstreams:\n{upstreams}models: {{{models}}}\n"
                "chains: {default: [access_log, usage, alias, fallback]}\n"
                "routes: [{match: POST /v1/chat/completions}]\n"
            )
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_S12_U9_a_compressed_answer(scene: Scene, name: str, kind: str) -> None:
    _, status, body = CASES[name]
    status_file = Path(f"/proc/{scene.gateway.process.pid}/status")
    asked = scene.ask(kind, name)
    assert status == asked.status, asked.body[:500]
    assert b"EVIL" not in asked.body
    if status == 502:
        assert "upstream_error" == asked.json["error"]["code"]
    elif body is not None:
        assert body == asked.body
    if body in (PLAIN, STREAM):
        assert (asked.headers["content-encoding"] or "identity") == "identity"
        line = scene.gateway.line(str(asked.headers["x-request-id"]))
        assert ("ok", 9, 2, False) == tuple(
            line[name] for name in ("outcome", "input", "output", "estimated")
        )
    most = next(x for x in status_file.read_text().splitlines() if x.startswith("VmHWM:"))
    assert int(most.split()[1]) < 200 * 1024
