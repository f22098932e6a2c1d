"""M6: usage is what the provider said, else a marked estimate; F1: and the bytes are its own."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from harness.catalogue import cases, entries, raw
from harness.client import Answer, send
from harness.gateway import until
from harness.people import People
from harness.splits import WAYS, pairs, split
from harness.upstream import Hit, RawUpstream, Step

from passy_plugins.dialects.anthropic import Anthropic
from passy_plugins.dialects.openai import OpenAI
from passy_plugins.dialects.openai_answer import usage_of
from passy_plugins.dialects.watch import loads_object
from passy_proxy.body import read_head
from passy_proxy.exchange import Request
from passy_proxy.framing import told
from passy_proxy.sse import Decoder

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}
GATEWAY = """
log: {level: debug, format: json}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai: {dialect: openai, url: "%(url)s/v1", credential: sk-of-the-operator}
  anthropic: {dialect: anthropic, url: "%(url)s", credential: sk-ant-of-the-operator}
models: {gpt-*: ["openai/*"], claude-*: ["anthropic/*"]}
chains:
  default: [access_log, {usage: {ledger: books}}, {auth: {directory: books}}, alias, fallback]
routes:
  - {match: POST /v1/chat/completions}
  - {match: POST /v1/completions}
  - {match: POST /v1/embeddings}
  - {match: POST /v1/responses}
  - {match: POST /v1/messages, dialect: anthropic}
prices: {"*": {input: 1, output: 2, cached_input: 0.5, per: 1M}}
"""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n%b\r\n"
CHEAP = 1_500
"""Bytes that are sent one by one in the normal run; longer ones only in the large one."""


def model_of(case: dict[str, Any], way: str) -> str:
    family = "claude" if case.get("api") == "messages" else "gpt"
    return f"{family}-{case['name']}-{way}"


def asked(case: dict[str, Any], way: str) -> bytes:
    """The client's request."""
    api = case.get("api", "chat")
    body: dict[str, Any] = {"model": model_of(case, way), "stream": not case.get("plain")}
    if api in ("chat", "completions") and case.get("asks", True) and not case.get("plain"):
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body).encode()


def packed(case: dict[str, Any], body: bytes) -> bytes:
    match case.get("packed"):
        case "gzip":
            # In two members, and flushed in between, as servers do that compress a stream.
            half = len(body) // 2
            return gzip.compress(body[:half]) + gzip.compress(body[half:])
        case "deflate":
            return zlib.compress(body)
    return body  # A packing that nobody here can open is any bytes.


def script(case: dict[str, Any], way: str) -> list[Step]:
    """What the upstream does."""
    body = packed(case, raw(case["stream"]))
    usual = "application/json" if case.get("plain") else "text/event-stream"
    kind = case.get("content_type", usual).encode()
    encoding = case.get("packed") or case.get("content_encoding")
    more = f"content-encoding: {encoding}\r\n".encode() if encoding else b""
    head = (HEAD % (kind, more)).decode("latin-1")
    pieces = [{"chunk": piece.decode("latin-1")} for piece in split(body, way) if piece]
    end: Step = "close" if case.get("end") == "close" else {"send": "0\r\n\r\n"}
    return [{"send": head}, *pieces, end]


class Played(NamedTuple):
    answer: Answer
    record: dict[str, Any]


Plays = dict[str, Played]


def play(gateway: Gateway, key: str, runs: Sequence[tuple[dict[str, Any], str]]) -> Plays:
    """All the requests, some at a time, and what the books say of them."""

    def one(run: tuple[dict[str, Any], str]) -> tuple[str, Answer]:
        case, way = run
        body = asked(case, way)
        request = (
            f"POST {PATHS[case.get('api', 'chat')]} HTTP/1.1\r\nhost: x\r\n"
            f"authorization: Bearer {key}\r\nconnection: close\r\n"
            f"user-agent: {model_of(case, way)}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        told = send(gateway.url, request.encode() + body, quiet=90.0, patience=90.0)
        return model_of(case, way), told.answer("POST")

    with ThreadPoolExecutor(6) as pool:
        answers = dict(pool.map(one, runs))
    records = until(lambda: books(gateway, answers.keys()))
    return {model: Played(answer, records[model]) for model, answer in answers.items()}


def books(gateway: Gateway, models: Any) -> dict[str, dict[str, Any]] | None:
    found = {row["model"]: row for row in gateway.records()}
    return found if found.keys() >= set(models) else None


def runs_of(name: str, longest: float) -> list[tuple[dict[str, Any], str]]:
    return [
        (case, way)
        for case in entries(name)
        for way in WAYS
        if way != "bytes" or len(raw(case["stream"])) <= longest
    ]


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    known = {case["name"]: case for name in ("sse", "usage") for case in entries(name)}

    def steps(hit: Hit) -> list[Step]:
        # By a header that passes: what to do is decided before the body is read.
        name, _, way = (hit.header("user-agent") or "").partition("-")[2].rpartition("-")
        return script(known[name], way)

    with RawUpstream(script=steps) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: RawUpstream, serve: Serve) -> Gateway:
    return serve(GATEWAY % {"url": upstream.url})


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return People(gateway).key()


@pytest.fixture(scope="module")
def played(gateway: Gateway, key: str) -> Plays:
    return play(gateway, key, [*runs_of("sse", CHEAP), *runs_of("usage", CHEAP)])


def check(case: dict[str, Any], played: Played, body: bytes) -> None:
    answer, record = played
    assert case.get("status", 200) == answer.status
    if answer.status == 200 and "packed" not in case:
        check_body(case, answer)
    elif answer.status == 200:
        sent = packed(case, raw(case["stream"]))
        opened = case["packed"] in ("gzip", "deflate")
        assert answer.body == (raw(case.get("gets", case["stream"])) if opened else sent)
        assert opened != ("content-encoding" in answer.headers)
    assert case.get("outcome", "ok") == record["outcome"]
    check_usage(case, record, body)


def check_body(case: dict[str, Any], answer: Answer) -> None:
    """The same bytes, but for what the catalogue says."""
    gets = raw(case.get("gets", case["stream"]))
    if "broken" in case:
        assert gets == answer.body[: len(gets)]
        between = raw(case["broken"]) if isinstance(case["broken"], str) else b""
        event = answer.body[len(gets) :].removeprefix(between)
        assert event.startswith((b"data: {", b"event: error\ndata: {"))
        assert event.endswith(b"}\n\n")
        assert b"upstream_broken" in event
        assert b"[DONE]" not in event
    else:
        assert sha256(gets).digest() == sha256(answer.body).digest()
        assert answer.whole


def check_usage(case: dict[str, Any], record: dict[str, Any], body: bytes) -> None:
    usage = case["usage"]
    assert (usage is None) == bool(record["estimated"])
    if usage is None:
        assert len(body) // 4 - 20 <= record["input"] <= len(body) // 4 + 1
        return
    for name in ("input", "output", "cached", "cache_write", "reasoning"):
        assert usage.get(name, 0) == record[name], name
    if record["status"] == 200:
        cached = usage.get("cached", 0)
        nanos = (usage["input"] - cached) * 1000 + cached * 500 + usage["output"] * 2000
        assert nanos == record["cost_nanos"]


@pytest.mark.parametrize("case", cases("sse"))
def test_M6_F1_a_stream_and_its_usage(case: dict[str, Any], played: Plays) -> None:
    for way in WAYS:
        if (found := played.get(model_of(case, way))) is not None:
            check(case, found, asked(case, way))


@pytest.mark.parametrize("case", cases("usage"))
def test_M6_a_plain_answer_and_its_usage(case: dict[str, Any], played: Plays) -> None:
    for way in WAYS:
        if (found := played.get(model_of(case, way))) is not None:
            check(case, found, asked(case, way))


@pytest.mark.usefixtures("played")
def test_M6_usage_that_cannot_be_true_raises_an_alarm(gateway: Gateway) -> None:
    lines = [json.loads(line) for line in gateway.complaints().splitlines() if line[:1] == "{"]
    alarms = [line for line in lines if line["event"] == "usage_doubtful"]
    assert {"openai", "anthropic"} == {line["upstream"].partition("/")[0] for line in alarms}
    assert all(line["level"] == "warning" and "tokens" in line["told"] for line in alarms)
    assert len(alarms) <= 8, "one in a while is enough"


@pytest.mark.large
def test_M6_F1_every_stream_byte_by_byte(gateway: Gateway, key: str) -> None:
    for name in ("sse", "usage"):
        rest = [
            (case, way)
            for case, way in runs_of(name, 60_000)
            if way == "bytes" and len(raw(case["stream"])) > CHEAP
        ]
        found = play(gateway, key, rest)
        for case, way in rest:
            check(case, found[model_of(case, way)], asked(case, way))


# The same without a socket in between, where every cut is exactly where it is meant to be.

DIALECTS = {"openai": OpenAI(), "anthropic": Anthropic()}


def tap_of(case: dict[str, Any]) -> Any:
    body = asked(case, "whole")
    request = Request(told("POST", "/", b"", []), None)  # type: ignore[arg-type]
    request.operation = case.get("api", "chat")
    request.body, request.head = body, read_head(body)
    spoken = "anthropic" if request.operation == "messages" else "openai"
    return DIALECTS[spoken].tap(request, not case.get("plain"), spoken)


def fed(case: dict[str, Any], pieces: Sequence[bytes]) -> tuple[Any, ...]:
    tap = tap_of(case)
    out = b"".join(map(tap.feed, pieces)) + tap.finish()
    # Of a message too long to be held, the text is measured with what is around it.
    text = tap.text_bytes if len(out) < 64_000 else 0
    return out, tap.usage, tap.done, tap.error, text, tap.finish_reason, tap.doubt


UNPACKED = [case for case in entries("sse") if not {"packed", "content_type", "end"} & case.keys()]


@pytest.mark.parametrize("case", UNPACKED, ids=lambda case: case["name"])
def test_M6_F1_no_split_changes_what_is_found(case: dict[str, Any]) -> None:
    stream = raw(case["stream"])
    expected = fed(case, [stream])
    for way in WAYS[1:]:
        assert expected == fed(case, split(stream, way)), way
    assert bool(case.get("alarm")) == bool(expected[-1])
    if (usage := case["usage"]) is not None and "status" not in case:
        assert {**dict.fromkeys(("cached", "cache_write", "reasoning"), 0), **usage} == {
            name: getattr(expected[1], name)
            for name in ("input", "output", "cached", "cache_write", "reasoning")
        }


SHORT = [
    b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\ndata: [DONE]\n\n',
    b'\xef\xbb\xbfdata:{"choices":[],\r\ndata:"usage":{"prompt_tokens":9,"completion_tokens":3}}'
    b"\r\n\r\n: \xc3\xa9\r\n\r\ndata: [DONE]\r\n\r\n",
    b'data: {"usage":{"prompt_tokens":9,"completion_tokens":3}}\r\r\r\rdata: {"error":"x"}\r\r',
]


@pytest.mark.parametrize("stream", SHORT)
def test_M6_F1_all_pairs_of_cuts_of_a_short_stream(stream: bytes) -> None:
    case = {"name": "short"}
    expected = fed(case, [stream])
    assert stream == expected[0]
    assert (9, 3) == expected[1][:2]
    for pieces in pairs(stream):
        assert expected == fed(case, pieces), pieces


def packed_embeddings(size: int) -> bytes:
    dice = random.Random(size)
    numbers = b",".join(b"%.9f" % dice.uniform(-1, 1) for _ in range(size))
    return b'{"data":[{"embedding":[%b]}],"usage":{"prompt_tokens":8,"total_tokens":8}}' % numbers


def test_M6_what_is_compressed_unasked(serve: Serve) -> None:
    answers = {"small": packed_embeddings(1 << 10), "large": packed_embeddings(1 << 17)}
    bomb = gzip.compress(b"data: {}\n\n" * 2_000_000)

    def steps(hit: Hit) -> list[Step]:
        name = hit.header("user-agent") or ""
        kind = b"text/event-stream" if name == "bomb" else b"application/json"
        sent = bomb if name == "bomb" else gzip.compress(answers[name])
        head = (HEAD % (kind, b"content-encoding: gzip\r\n")).decode()
        chunks = [{"chunk": piece.decode("latin-1")} for piece in split(sent, "random")]
        return [{"send": head}, *chunks, {"send": "0\r\n\r\n"}]

    with RawUpstream(script=steps) as upstream:
        gateway = serve(GATEWAY % {"url": upstream.url})
        shown = {"x_api_key": People(gateway).key()}
        for name, body in answers.items():
            told = gateway.ask("/v1/embeddings", {"model": "gpt-e"}, user_agent=name, **shown)
            assert (200, body) == (told.status, told.body)
            assert "content-encoding" not in told.headers
            record = gateway.record(told.headers["x-request-id"])
            assert (8, 0, 0) == (record["input"], record["output"], record["estimated"])
        # What grows beyond measure is broken off, and was never kept whole.
        asked = {"model": "gpt-x", "stream": True}
        told = gateway.ask("/v1/chat/completions", asked, user_agent="bomb", **shown)
        assert len(told.body) < 100 * len(bomb) + (1 << 17)
        assert b"upstream_broken" in told.body if told.status == 200 else told.status == 502


# Streams that nobody wrote down: messages of the catalogue in any order, with any line ends.


def fragments() -> list[bytes]:
    found = {}
    for case in UNPACKED:
        stream = raw(case["stream"])
        if case.get("api", "chat") == "chat" and len(stream) < 60_000:
            for message in Decoder().feed(stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")):
                found[message.raw.strip(b"\n")] = None
    return [*filter(None, found)]


def read_slowly(stream: bytes) -> tuple[Any, bool, bool]:
    """Usage, end and error, by the rules of the format and a JSON parser, with no short cut."""
    decoder = Decoder()
    usage, done, error = None, False, False
    for message in decoder.feed(stream) + decoder.finish():
        done = done or message.data.startswith(b"[DONE]")
        if done:
            break
        said = loads_object(message.data)
        usage = usage_of(said.get("usage")) or usage
        error = error or bool(said.get("error")) or message.event == "error"
    return usage, done, error


def check_any_stream(seed: int, known: list[bytes]) -> None:
    dice = random.Random(seed)
    chosen = dice.choices(known, k=dice.randint(1, 9))
    ends = dice.choices((b"\n", b"\r\n", b"\r"), weights=(6, 2, 1), k=len(chosen))
    stream = b"".join(
        one.replace(b"\n", end) + end * 2 for one, end in zip(chosen, ends, strict=True)
    )
    usage, done, error = read_slowly(stream)
    first = fed({"name": "any"}, [stream])
    assert (usage, error) == (first[1], bool(first[3])), stream
    assert done or error or first[5] or not first[2], stream
    assert first[0].startswith(stream), stream
    for way in WAYS[1:]:
        assert first == fed({"name": "any"}, split(stream, way)), (way, stream)


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.large)])
def test_M6_no_stream_is_read_otherwise_than_slowly(count: int) -> None:
    known = fragments()
    assert len(known) > 50
    for seed in range(count):
        check_any_stream(seed, known)
