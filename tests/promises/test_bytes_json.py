"""Hostile JSON: it goes on as it came or is refused in words, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from harness.catalogue import cases, entries, raw
from harness.lag import busy
from harness.upstream import RawUpstream, plainly

if TYPE_CHECKING:
    from harness.gateway import Asked, Gateway, Serve

CONFIGURATION = """
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


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=plainly) as upstream:
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
