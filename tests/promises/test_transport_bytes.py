"""What an upstream may send as bytes: contained, or passed on exactly, and nothing in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from harness.catalogue import cases, entries, raw
from harness.client import Answer, send
from harness.gateway import Gateway, Serve
from harness.upstream import Hit, RawUpstream, Step

CATALOGUE = "http-desync-responses"
KINDS = ("http1", "httpcore")
CLEAN = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nclean"


def config(url: str) -> str:
    """Both transports to the same upstream, one connection each, so that a poisoned one is met."""
    kinds = "".join(
        f"  {kind}: {{url: '{url}/{kind}', credential: k, transport: {kind}, max_connections: 1,"
        " forward_headers: [x-case],"
        " timeouts: {pool: 60s, first_byte: 60s, idle: 60s}}\n"
        for kind in KINDS
    )
    chains = "".join(f"  {kind}: [access_log, direct: {{upstream: {kind}}}]\n" for kind in KINDS)
    routes = "".join(
        f"  - {{match: '* /{kind}/*', chain: {kind}, root: /{kind}}}\n" for kind in KINDS
    )
    models = ", ".join(f"{kind}: [{kind}/m]" for kind in KINDS)
    return (
        f"upstreams:\n{kinds}models: {{{models}}}\n"
        f"chains:\n  default: [access_log, usage, alias, fallback]\n{chains}"
        f"routes:\n  - {{match: POST /v1/chat/completions}}\n{routes}"
    )


class Stage:
    """The gateway, and an upstream that plays the case which a request names."""

    def __init__(self, gateway: Gateway, upstream: RawUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream

    def ask(self, kind: str, name: str, method: str = "POST") -> Answer:
        """One request on the pass-through route."""
        body = b"" if method in ("GET", "HEAD") else b"{}"
        return self.send(method, f"/{kind}/{name}", body)

    def clean(self, kind: str) -> Answer:
        """One that may be sent again, should the connection be about to end."""
        return self.ask(kind, "clean", "GET")

    def settle(self, case: dict[str, Any]) -> None:
        """What comes too late is to be there before the next request: of what arrives behind that
        one, nobody could say that it is not its answer."""
        if case.get("late"):
            self.upstream.until(lambda: self.upstream.hits[-1].closed)

    def chat(self, kind: str, name: str, stream: bool) -> Answer:
        said = {"model": kind, "messages": [], "stream": stream}
        return self.send("POST", "/v1/chat/completions", json.dumps(said).encode(), name)

    def send(self, method: str, path: str, body: bytes, case: str = "") -> Answer:
        host = urlsplit(self.gateway.url).netloc
        lines = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        if case:
            lines += f"x-case: {case}\r\n"
        if body:
            lines += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        told = send(self.gateway.url, f"{lines}\r\n".encode() + body, quiet=90.0, patience=90.0)
        assert b"EVIL" not in told.data, told.data[-2000:]
        return told.answer(method)


def named(hit: Hit) -> str:
    return hit.header("x-case") or hit.target.rpartition("/")[2]


@pytest.fixture(scope="module")
def stage(serve: Serve) -> Iterator[Stage]:
    steps = {entry["name"]: entry["steps"] for entry in entries(CATALOGUE)}

    def script(hit: Hit) -> list[Step]:
        return steps.get(named(hit), [{"send": CLEAN}])  # type: ignore[no-any-return]

    with RawUpstream(script=script) as upstream:
        yield Stage(serve(config(upstream.url)), upstream)


def expected(case: dict[str, Any], kind: str) -> dict[str, Any]:
    return case | (case.get(kind) or {})


def contained(stage: Stage, case: dict[str, Any], kind: str) -> None:
    """The case's answer is to the client what it should be, and nothing of it to the next one."""
    case = expected(case, kind)
    assert 200 == stage.clean(kind).status
    hits = len(stage.upstream.hits)
    answer = stage.ask(kind, case["name"], case.get("method", "POST"))
    asked = stage.upstream.hits[hits:]
    assert case.get("hits", 1) == len(asked)
    client = case["client"]
    assert client["status"] == answer.status
    assert answer.whole
    if 502 == answer.status:
        assert "upstream_error" == json.loads(answer.body)["error"]["code"]
    elif "body" in client:
        assert raw(client["body"]) == answer.body
    for name, value in client.get("headers", {}).items():
        assert (value if value is None else raw(value).decode("latin-1")) == answer.headers.get(
            name
        )
    stage.settle(case)
    assert b"clean" == stage.clean(kind).body
    if "reuse" in case:
        assert case["reuse"] == (asked[-1].connection == stage.upstream.hits[-1].connection)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases(CATALOGUE))
def test_U2_an_odd_answer_is_contained(stage: Stage, case: dict[str, Any], kind: str) -> None:
    contained(stage, case, kind)


UNUSUAL = (
    "interim-100",
    "interim-102-103-and-others",
    "interim-hundreds",
    "trailers",
    "trailers-about-framing",
    "until-the-end",
    "until-the-end-1.0",
    "length-1.0",
    "chunk-extensions",
    "gzip",
    "coding-of-content-unknown",
    "byte-by-byte-chunked",
)


@pytest.mark.parametrize("kind", KINDS)
def test_U9_what_is_unusual_but_right_arrives_as_it_is(stage: Stage, kind: str) -> None:
    known = {case["name"]: case for case in entries(CATALOGUE)}
    for name in UNUSUAL:
        assert 200 == known[name]["client"]["status"]
        contained(stage, known[name], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_U2_nothing_of_them_is_left_in_the_pool(stage: Stage, kind: str) -> None:
    for case in entries(CATALOGUE):
        if "method" in case:  # what answers HEAD or a condition is something else here
            continue
        for stream in (False, True):  # where an answer is read, and not only passed on
            assert stage.chat(kind, case["name"], stream).whole, case["name"]
            stage.settle(case)
        assert b"clean" == stage.clean(kind).body, case["name"]
    for _ in range(100):
        answer = stage.clean(kind)
        assert (200, b"clean") == (answer.status, answer.body)
