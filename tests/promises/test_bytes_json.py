"""Hostile JSON: it goes on as it came or is refused in words, and nobody waits for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from harness.catalogue import cases, entries, raw
from harness.lag import busy
from harness.upstream import Hit, RawUpstream, Step, plainly, whole

if TYPE_CHECKING:
    from harness.gateway import Asked, Gateway, Serve

CONFIGURATION = """
overload: {loop_lag: 0s}
stores: {state: {kind: memory}, books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai: {dialect: openai, url: "URL/v1", credential: sk-operator}
  anthropic: {dialect: anthropic, url: "URL", credential: sk-operator}
models: {m: [openai/real], t: [anthropic/real], "a": [anthropic/real]}
chains:
  default:
    - access_log
    - usage: {ledger: books}
    - auth: {directory: books}
    - rate_limit: {counters: state, per: [key], requests: 1M/min, tokens: 1000000M/min}
    - alias
    - fallback
routes:
  - {match: POST /v1/chat/completions, chain: default}
  - {match: POST /v1/messages, dialect: anthropic, chain: default}
"""


DEEP = '{"a":' * 400 + "0" + "}" * 400
CALL = f'"type":"tool_use","id":"c","name":"f","input":{DEEP}'
START = '{"type":"message_start","message":{"id":"i","model":"real"}}'
NESTED: dict[str, tuple[int, str] | list[str]] = {
    "answer": (200, f'{{"type":"message","content":[{{{CALL}}}]}}'),
    "id": (200, f'{{"type":"message","id":{DEEP},"content":[]}}'),
    "error": (400, f'{{"error":{{"message":{DEEP},"type":"x"}}}}'),
    "code": (400, f'{{"error":{{"message":"no","code":{DEEP}}}}}'),
    "stream": [
        START,
        '{"type":"content_block_delta","delta":{"type":"text_delta","text":"hi"}}',
        f'{{"type":"content_block_start","content_block":{{{CALL}}}}}',
        '{"type":"content_block_stop"}',
        '{"type":"message_stop"}',
    ],
    "stream-id": [START.replace('"i"', DEEP), '{"type":"message_stop"}'],
}
"""Ways of an upstream to nest something more deeply than JSON is written here."""


def nesting(hit: Hit) -> Iterator[Step]:
    """A script: the case that the question's ``user`` names, else a plain answer."""
    yield "read"
    asked = re.search(rb'"user(?:_id)?": ?"([a-z-]+)"', hit.body)
    case = NESTED.get(asked[1].decode()) if asked else None
    if case is None:
        yield from plainly(hit)
    elif isinstance(case, tuple):
        yield from whole(case[1], case[0])
    else:
        yield from whole("".join(f"data: {one}\n\n" for one in case), kind="text/event-stream")


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=nesting) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(serve: Serve, upstream: RawUpstream) -> Gateway:
    return serve(CONFIGURATION.replace("URL", upstream.url))


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.new_key("--name", "bytes")


def ask(gateway: Gateway, key: str, path: str, body: bytes) -> Asked:
    said = {"authorization": f"Bearer {key}", "content_type": "application/json"}
    return gateway.ask(path, body, method="POST", **said)


def check_openai(asked: Asked, code: str) -> None:
    error = asked.json["error"]
    assert "application/json" == asked.headers["content-type"]
    assert asked.headers["x-request-id"] == error["request_id"]
    assert isinstance(error["message"], str)
    assert code in ("any", error["code"])


def check_anthropic(asked: Asked, code: str) -> None:
    said = asked.json
    assert "application/json" == asked.headers["content-type"]
    assert "error" == said["type"]
    assert said["request_id"] == asked.headers["request-id"] == asked.headers["x-request-id"]
    assert code in ("any", said["error"]["details"]["error_code"])


@pytest.mark.parametrize("case", cases("json-hostile"))
def test_S9_a_hostile_body_passes_as_it_is_or_is_refused(
    case: dict[str, Any], gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    body, before = raw(case["body"]), len(upstream.hits)
    asked = ask(gateway, key, "/v1/chat/completions", body)
    hits = upstream.hits[before:]
    if "refuse" in case:
        status, code = case["refuse"]
        assert (status, []) == (asked.status, hits)
        check_openai(asked, code)
    elif case["pass"] == "any" and asked.status != 200:
        assert (400, []) == (asked.status, hits)
        check_openai(asked, "invalid_json")
    else:
        assert 200 == asked.status, asked.body
        sent = raw(case["sent"]) if "sent" in case else body.replace(b'"m"', b'"real"', 1)
        assert [sent] == [hit.body for hit in hits]


@pytest.mark.parametrize("case", cases("json-hostile"))
def test_S9_a_hostile_body_is_never_a_fault_where_it_is_translated(
    case: dict[str, Any], gateway: Gateway, key: str
) -> None:
    body = raw(case["body"]).replace(b'"m"', b'"t"').replace(b'\\u006d"', b't"')
    asked = ask(gateway, key, "/v1/chat/completions", body)
    assert 200 <= asked.status < 500, asked.body
    if asked.status != 200:
        check_openai(asked, "any")


@pytest.mark.parametrize("name", NESTED)
def test_U2_an_answer_nested_without_end_is_contained_where_it_is_translated(
    name: str, gateway: Gateway, key: str
) -> None:
    streamed = name.startswith("stream")
    said = {"messages": [{"role": "user", "content": "hi"}], "user": name, "stream": streamed}
    for model in ("t", "m") if name in ("error", "code") else ("t",):
        body = json.dumps({"model": model, **said}).encode()
        asked = ask(gateway, key, "/v1/chat/completions", body)
        if name == "stream":
            events = asked.body.decode().split("\n\n")
            assert 200 == asked.status
            assert '"content":"hi"' in events[1]
            assert "error" in json.loads(events[-2].removeprefix("data: "))
        else:
            assert (400 if name in ("error", "code") else 502) == asked.status, asked.body
            assert isinstance(asked.json["error"]["message"], str)


def test_S9_arguments_nested_without_end_are_refused_where_they_are_translated(
    gateway: Gateway, key: str
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": DEEP}}
    said = {"model": "t", "messages": [{"role": "assistant", "tool_calls": [call]}]}
    asked = ask(gateway, key, "/v1/chat/completions", json.dumps(said).encode())
    assert 400 == asked.status, asked.body
    assert "nested too deeply" in asked.json["error"]["message"]


@pytest.mark.parametrize("case", cases("json-hostile"))
def test_C7_a_hostile_body_of_a_message_is_refused_in_anthropics_envelope(
    case: dict[str, Any], gateway: Gateway, key: str, upstream: RawUpstream
) -> None:
    body, before = raw(case["body"]).replace(b'"m"', b'"a"'), len(upstream.hits)
    asked = ask(gateway, key, "/v1/messages", body)
    if "refuse" in case:
        assert (case["refuse"][0], before) == (asked.status, len(upstream.hits))
        check_anthropic(asked, case["refuse"][1])
    elif case["pass"] is True and "sent" not in case:
        assert 200 == asked.status, asked.body
        assert body.replace(b'"a"', b'"real"', 1) == upstream.hits[-1].body
    else:
        assert asked.status in (200, 400, 404)


@pytest.mark.parametrize(
    ("rounds", "most"),
    [(2, 0.2), pytest.param(7, 0.05, marks=pytest.mark.large)],
    ids=["F", "large"],
)
def test_S9_nobody_waits_for_a_hostile_body(
    rounds: int, most: float, gateway: Gateway, key: str
) -> None:
    waits = {}
    for case in entries("json-hostile"):
        body, spent = raw(case["body"]), []
        for _ in range(rounds):
            before = busy(gateway)
            ask(gateway, key, "/v1/chat/completions", body)
            spent.append(busy(gateway) - before)
        waits[case["name"]] = min(spent)
    worst = max(waits, key=lambda name: waits[name])
    print(f"longest wait: {waits[worst] * 1000:.1f} ms ({worst})")
    assert waits[worst] < most, worst
