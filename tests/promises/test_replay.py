"""When a request may be sent again: the table, row by row, against the ledgers of two upstreams."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from harness.again import spared
from harness.client import Answer, send
from harness.upstream import Hit, RawUpstream, Step, black_hole, refusing

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

KEY = "sk-of-acme-0123456789"
CONFIGURATION = """
stores:
  books: {{kind: sql, url: "sqlite:///.passy/passy.db"}}
  vault:
    kind: memory
    keys: [{{key: {key}, organisation: acme}}]
    organisations: {{acme: {{credentials: {{a: sk-their-own}}}}}}
upstreams:
  a: {{url: "{a}/v1", keep_alive: 60s, credential: sk-operator-a}}
  hasty: {{url: "{a}/v1", keep_alive: 60s, timeouts: {{first_byte: 500ms}}}}
  stalled: {{url: "{a}/v1", keep_alive: 60s, timeouts: {{idle: 500ms}}}}
  b: {{url: "{b}/v1", keep_alive: 60s, credential: sk-operator-b}}
  refused: {{url: "{refused}/v1"}}
  hole: {{url: "{hole}/v1", {limits}}}
  nameless: {{url: "http://no-such-host.invalid/v1"}}
  plain-for-tls: {{url: "https://localhost:{port}/v1", {limits}}}
models:
  alone: [a/m]
  both: [a/m, b/m]
  never: {{targets: [a/m, b/m], fallback_on: []}}
  all: {{targets: [a/m, b/m], fallback_on: [5xx, timeout, rate_limit]}}
  hasty-both: [hasty/m, b/m]
  stalled-all: {{targets: [stalled/m, b/m], fallback_on: [5xx, timeout, rate_limit]}}
  refused: [refused/m, b/m]
  hole: [hole/m, b/m]
  nameless: [nameless/m, b/m]
  plain-for-tls: [plain-for-tls/m, b/m]
chains:
  default: [usage: {{ledger: books}}, alias, fallback: {{}}]
  fail: [usage: {{ledger: books}}, alias, fallback: {{on_unknown_outcome: fail}}]
  patient: [usage: {{ledger: books}}, alias, fallback: {{retry_after: 500ms}}]
  stubborn: [usage: {{ledger: books}}, alias, fallback: {{retry_on: [5xx]}}]
  stingy:
    - usage: {{ledger: books}}
    - alias
    - fallback: {{retry_on: [5xx], retry_after: 500ms, budget: 0, budget_floor: 0}}
  keyed:
    - usage: {{ledger: books}}
    - auth: {{directory: vault}}
    - byok: {{vault: vault}}
    - alias
    - fallback: {{fallback_on: [5xx, 4xx, timeout, rate_limit]}}
  through: [usage: {{ledger: books}}, direct: {{upstream: a}}]
  hasty-through: [usage: {{ledger: books}}, direct: {{upstream: hasty}}]
routes:
{routes}
  - {{match: "* /v1/files*", chain: through, body: stream, root: /v1}}
  - {{match: "* /hasty/files*", chain: hasty-through, body: stream, root: /hasty}}
"""
PATIENCE = 90.0
"""Seconds that an answer may take; only a hang takes so long."""
CHAINS = ("default", "fail", "patient", "stubborn", "stingy", "keyed")
OPERATIONS = ("chat/completions", "embeddings", "responses", "completions")

BODY = (
    '{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)


def head(status: int, body: str, *more: str) -> Step:
    lines = [
        f"HTTP/1.1 {status} X",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *more,
    ]
    return {"send": "\r\n".join(lines) + "\r\n\r\n" + body}


OK: Sequence[Step] = [head(200, BODY)]
REFUSAL = '{"error":{"message":"theirs","type":"t","code":"c"}}'


def refusal(status: int, *more: str) -> Sequence[Step]:
    return [head(status, REFUSAL, *more)]


@dataclass
class Asked:
    answer: Answer
    hits: list[Hit]
    """On the first upstream, in order."""
    others: list[Hit]
    """On the second."""

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.hits), len(self.others)


class Pair:
    """A gateway in front of two upstreams. The first does as it is told; the second is well."""

    def __init__(self, serve: Serve, stack: ExitStack) -> None:
        self.steps: list[Sequence[Step]] = []
        self.expected: dict[str, list[tuple[str, str, bool]]] = {}
        self.first = stack.enter_context(RawUpstream(script=self.script))
        self.second = stack.enter_context(RawUpstream(OK))
        prefixed = {"default": "", **{name: f"/{name}" for name in CHAINS[1:]}}
        routes = [
            f"  - {{match: POST {prefix}/v1/{operation}, chain: {name}}}"
            for name, prefix in prefixed.items()
            for operation in OPERATIONS
        ]
        self.gateway: Gateway = serve(
            CONFIGURATION.format(
                key=KEY,
                a=self.first.url,
                b=self.second.url,
                port=self.second.port,
                refused=stack.enter_context(refusing()),
                hole=stack.enter_context(black_hole()),
                limits="timeouts: {connect: 300ms, tls: 300ms}",
                routes="\n".join(routes),
            )
        )

    def script(self, hit: Hit) -> Sequence[Step]:
        """The steps that were written for this request, then those of one that is well."""
        return self.steps.pop(0) if self.steps else OK

    def ask(
        self,
        *steps: Sequence[Step],
        model: str = "both",
        chain: str = "default",
        operation: str = "chat/completions",
        headers: str = "",
        more: str = "",
        path: str = "",
    ) -> Asked:
        """Ask once while the first upstream does ``steps``, one list for each time it is asked."""
        self.steps[:] = steps
        silent = bool(steps) and steps[0][-1] == "hold" and "shut" not in steps[0]
        if silent:  # Only where time is to run out there is little of it, and of no other time.
            model = f"{'hasty' if len(steps[0]) == 1 else 'stalled'}-{model}"
        before = len(self.first.hits), len(self.second.hits)
        prefix = "" if chain == "default" else f"/{chain}"
        body = f'{{"model":"{model}","messages":[],"input":"x"{more}}}'
        told = send(
            f"{self.gateway.url}/",
            (
                f"POST {path or f'{prefix}/v1/{operation}'} HTTP/1.1\r\nhost: x\r\n"
                f"connection: close\r\nauthorization: Bearer {KEY}\r\n{headers}"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
            ).encode(),
            quiet=PATIENCE,
            patience=PATIENCE,
        )
        if silent:  # It is given up whether it has read its request by now or not.
            self.first.until(lambda: not self.steps)
        return Asked(
            told.answer("POST"), self.first.hits[before[0] :], self.second.hits[before[1] :]
        )

    def reuse(self, *steps: Sequence[Step], **more: Any) -> Asked:
        """The same on a connection that was used before."""
        warm = self.ask(OK, model="alone")
        assert ((1, 0), 200) == (warm.counts, warm.answer.status)
        asked = self.ask(*steps, **more)
        assert warm.hits[0].connection == asked.hits[0].connection
        return asked

    def fresh(self, *steps: Sequence[Step], **more: Any) -> Asked:
        """The same on a connection that nobody has used."""
        self.ask([*OK, "close"], model="alone")
        self.first.until(lambda: self.first.hits[-1].closed)
        connections = self.first.connections
        asked = self.ask(*steps, **more)
        assert connections < asked.hits[0].connection
        return asked

    def expect(self, asked: Asked, *attempts: tuple[str, str, bool]) -> None:
        """What the books are to say: who was asked, the kind of failure, whether it may be
        billed. They are looked into once, at the end."""
        assert str(len(attempts)) == asked.answer.headers["x-passy-attempts"]
        self.expected[asked.answer.headers["x-request-id"]] = list(attempts)

    def recorded(self) -> dict[str, list[tuple[str, str, bool]]]:
        """What the books do say, once they have all."""
        end = time.monotonic() + 90
        while True:
            with closing(sqlite3.connect(self.gateway.folder / ".passy/passy.db")) as books:
                found = dict(books.execute("SELECT id, attempts FROM usage").fetchall())
            if found.keys() >= self.expected.keys():
                break
            assert time.monotonic() < end, "a record is missing"
            time.sleep(0.02)
        return {
            id: [(one[0], one[3].partition(":")[0], one[6]) for one in json.loads(found[id])]
            for id in self.expected
        }


@pytest.fixture(scope="module")
def pair(serve: Serve) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(serve, stack)


IDEMPOTENT = "idempotency-key: once\r\n"
UNSAFE: list[dict[str, str]] = [
    {"headers": IDEMPOTENT},
    {"operation": "responses", "more": ',"store":true'},
    {"operation": "responses", "more": ',"background":true'},
    {"operation": "responses", "more": ',"conversation":"conv_1"'},
]
ENDS: list[Sequence[Step]] = [["close"], ["reset"], ["shut", "hold"]]


# Not connected (name, refusal, TLS, connect timeout): same within the budget, other yes.


@pytest.mark.parametrize("model", ["refused", "hole", "nameless", "plain-for-tls"])
@pytest.mark.parametrize("headers", ["", IDEMPOTENT])
def test_U4_not_connected_same_within_the_budget_then_the_other(
    pair: Pair, model: str, headers: str
) -> None:
    asked = pair.ask(model=model, headers=headers)
    assert (200, (0, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, *[(model, "connect", False)] * 2 + [("b", "", False)])


def test_U4_not_connected_without_a_budget_the_other_at_once(pair: Pair) -> None:
    asked = pair.ask(model="refused", chain="stingy")
    assert (200, (0, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, ("refused", "connect", False), ("b", "", False))


# Reused connection, write failed, no byte of an answer: once on a fresh one, then the other.

LARGE = ',"padding":"' + "a" * (20 << 20) + '"'


@pytest.mark.parametrize("headers", ["", IDEMPOTENT])
def test_U4_reused_and_not_written_once_on_a_fresh_connection(pair: Pair, headers: str) -> None:
    asked = pair.reuse(["early", "reset"], OK, more=LARGE, headers=headers)
    assert (200, (2, 0)) == (asked.answer.status, asked.counts)
    first, second = asked.hits
    assert not first.whole.is_set()
    assert second.whole.is_set()
    assert first.connection < second.connection
    pair.expect(asked, ("a", "broken", False), ("a", "", False))


def test_U4_reused_and_not_written_twice_then_the_other(pair: Pair) -> None:
    asked = pair.reuse(["early", "reset"], ["early", "reset"], more=LARGE)
    assert (200, (2, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, ("a", "broken", False), ("a", "broken", True), ("b", "", False))


# Reused connection, written, end of it without a byte: once if replay-safe; other if replay-safe.


@pytest.mark.parametrize("end", ENDS)
def test_U4_reused_and_answerless_once_more_if_replay_safe(pair: Pair, end: Sequence[Step]) -> None:
    asked = pair.reuse(end, OK)
    assert (200, (2, 0)) == (asked.answer.status, asked.counts)
    assert asked.hits[0].connection < asked.hits[1].connection
    assert asked.hits[0].body == asked.hits[1].body
    pair.expect(asked, ("a", "broken", True), ("a", "", False))


@pytest.mark.parametrize("end", ENDS)
def test_U4_reused_and_answerless_twice_then_the_other(pair: Pair, end: Sequence[Step]) -> None:
    asked = pair.reuse(end, end)
    assert (200, (2, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, *[("a", "broken", True)] * 2 + [("b", "", False)])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("unsafe", UNSAFE)
def test_U4_reused_and_answerless_never_if_not_replay_safe(
    pair: Pair, end: Sequence[Step], unsafe: dict[str, str]
) -> None:
    asked = pair.reuse(end, **unsafe)
    assert (502, (1, 0)) == (asked.answer.status, asked.counts)
    assert "false" == asked.answer.headers["x-should-retry"]
    pair.expect(asked, ("a", "broken", True))


@pytest.mark.parametrize("said", ["H", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_U4_reused_and_one_byte_came_the_other_only(pair: Pair, said: str) -> None:
    asked = pair.reuse([{"send": said}, "close"])
    assert (200, (1, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, ("a", "broken", True), ("b", "", False))


def test_U4_reused_and_silent_the_other_only(pair: Pair) -> None:
    asked = pair.reuse(["hold"])
    assert (200, (1, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, ("hasty", "timeout", True), ("b", "", False))


# Fresh connection, written, end or time without a byte: never; other if replay-safe and by policy.

UNKNOWN: list[Sequence[Step]] = [*ENDS, ["hold"]]


def unknown(end: Sequence[Step]) -> tuple[str, str, bool]:
    return ("hasty", "timeout", True) if end == ["hold"] else ("a", "broken", True)


@pytest.mark.parametrize(
    ("end", "operation"),
    [(end, operation) for end in ENDS for operation in OPERATIONS] + [(["hold"], OPERATIONS[0])],
)
def test_U4_fresh_and_answerless_the_other_if_replay_safe(
    pair: Pair, end: Sequence[Step], operation: str
) -> None:
    asked = pair.fresh(end, operation=operation)
    assert (200, (1, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, unknown(end), ("b", "", False))


@pytest.mark.parametrize(
    ("end", "more"),
    [(end, more) for end in ENDS for more in [*UNSAFE, {"chain": "fail"}, {"model": "alone"}]]
    + [(["hold"], more) for more in (UNSAFE[0], {"chain": "fail"})],
)
def test_U4_fresh_and_answerless_nobody_else(
    pair: Pair, end: Sequence[Step], more: dict[str, str]
) -> None:
    asked = pair.fresh(end, **more)
    assert (504 if end == ["hold"] else 502, (1, 0)) == (asked.answer.status, asked.counts)
    assert "false" == asked.answer.headers["x-should-retry"]
    pair.expect(asked, unknown(end))


# Complete 429, 503, 529: same only after a Retry-After that is short enough; other yes.


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("headers", ["", IDEMPOTENT])
def test_U4_busy_the_other(pair: Pair, status: int, headers: str) -> None:
    asked = pair.ask(refusal(status, "retry-after: 0"), chain="patient", headers=headers)
    assert (200, (1, 1)) == (asked.answer.status, asked.counts)
    pair.expect(asked, ("a", "status", False), ("b", "", False))


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("said", ["retry-after: 0.3", "retry-after-ms: 300"])
def test_U4_busy_the_same_after_its_retry_after(pair: Pair, status: int, said: str) -> None:
    asked = pair.ask(refusal(status, said), OK, chain="patient", model="alone")
    assert (200, (2, 0)) == (asked.answer.status, asked.counts)
    assert asked.hits[1].at - asked.hits[0].at >= 0.28
    pair.expect(asked, ("a", "status", False), ("a", "", False))


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("patient", "retry-after: 1"),
        ("patient", "retry-after: Thu, 01 Jan 2099 00:00:00 GMT"),
        ("patient", "x-none: 1"),
        ("default", "retry-after: 0"),
        ("stubborn", "retry-after: 0"),
        ("stingy", "retry-after: 0"),
    ],
)
def test_U4_busy_never_the_same_otherwise(pair: Pair, status: int, chain: str, said: str) -> None:
    asked = pair.ask(refusal(status, said), chain=chain, model="alone")
    assert (status, (1, 0)) == (asked.answer.status, asked.counts)
    name, _, value = said.partition(": ")
    assert value == asked.answer.headers[name]
    pair.expect(asked, ("a", "status", False))


def test_U4_a_busy_upstream_is_asked_no_third_time(pair: Pair) -> None:
    busy = refusal(429, "retry-after: 0")
    asked = pair.ask(busy, busy, chain="patient", model="alone")
    assert (429, (2, 0)) == (asked.answer.status, asked.counts)
    assert "false" == asked.answer.headers["x-should-retry"]


# Complete 500, 502, 504: same by policy and budget; other by policy.


@pytest.mark.parametrize("status", [500, 502, 504])
@pytest.mark.parametrize(
    ("chain", "more", "counts"),
    [
        ("default", {"model": "alone"}, (1, 0)),
        ("default", {"model": "never"}, (1, 0)),
        ("default", {"model": "both"}, (1, 1)),
        ("default", {"model": "all"}, (1, 1)),
        ("stubborn", {"model": "alone"}, (2, 0)),
        ("stubborn", {"model": "never"}, (2, 0)),
        ("stubborn", {"model": "both"}, (2, 0)),
        ("stubborn", {"model": "alone", "headers": IDEMPOTENT}, (1, 0)),
        ("stingy", {"model": "alone"}, (1, 0)),
        ("stingy", {"model": "both"}, (1, 1)),
    ],
)
def test_U4_failed_as_the_policy_says(
    pair: Pair, status: int, chain: str, more: dict[str, str], counts: tuple[int, int]
) -> None:
    asked = pair.ask(refusal(status), OK, chain=chain, **more)
    assert (200 if sum(counts) == 2 else status, counts) == (asked.answer.status, asked.counts)
    said = [("a", "status", False)] + [("b" if counts[1] else "a", "", False)] * (sum(counts) - 1)
    pair.expect(asked, *said)


# 400, 401, 403, 404, 409, 413, 422: never, nobody.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
@pytest.mark.parametrize("chain", ["default", "patient", "stubborn"])
@pytest.mark.parametrize("model", ["both", "all"])
def test_U4_refused_is_refused(pair: Pair, status: int, chain: str, model: str) -> None:
    asked = pair.ask(refusal(status, "retry-after: 0"), chain=chain, model=model)
    assert (status, (1, 0)) == (asked.answer.status, asked.counts)
    pair.expect(asked, ("a", "status", False))


@pytest.mark.parametrize("status", [401, 402, 403])
def test_U4_an_own_key_that_is_refused_is_replaced_by_nobody_s(pair: Pair, status: int) -> None:
    asked = pair.ask(refusal(status), chain="keyed")
    assert (status, (1, 0)) == (asked.answer.status, asked.counts)
    assert "Bearer sk-their-own" == asked.hits[0].header("authorization")


# Any byte of the body forwarded: never, nobody.

CHUNK = 'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
STREAM: Step = {
    "send": "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    "transfer-encoding: chunked\r\n\r\n"
}
LONG = '{"choices":[{"index":0,"message":{"role":"assistant","content":"'


@pytest.mark.parametrize("end", [*ENDS, ["hold"], [{"send": "zz\r\n"}, "close"]])
@pytest.mark.parametrize("chain", ["default", "stubborn"])
def test_U4_begun_is_begun(pair: Pair, end: Sequence[Step], chain: str) -> None:
    for steps, more in [
        ([STREAM, {"chunk": CHUNK}, {"wait": 0.05}, *end], ',"stream":true'),
        (
            [
                {"send": "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"},
                {"send": "transfer-encoding: chunked\r\n\r\n"},
                {"chunk": LONG},
                {"chunk": {"repeat": "a", "times": 3 << 20}},
                {"wait": 0.05},
                *end,
            ],
            "",
        ),
    ]:

        def ask(steps: Sequence[Step] = steps, more: str = more) -> Asked:
            return pair.ask(steps, chain=chain, more=more, model="all")

        # Held up before the first byte of the body, it is silent and not begun.
        asked = spared(ask, lambda asked: asked.counts == (1, 0))
        assert (200, (1, 0)) == (asked.answer.status, asked.counts)
        assert b"[DONE]" not in asked.answer.body
        assert asked.answer.whole == bool(more)
        assert (b'"error":' in asked.answer.body) == bool(more)


# What is passed through is never sent twice.


@pytest.mark.parametrize("end", UNKNOWN)
@pytest.mark.parametrize("kept", [False, True])
def test_U4_an_upload_is_sent_once(pair: Pair, end: Sequence[Step], kept: bool) -> None:
    ask = pair.reuse if kept else pair.fresh
    asked = ask(end, path="/hasty/files" if end == ["hold"] else "/v1/files")
    assert (504 if end == ["hold"] else 502, (1, 0)) == (asked.answer.status, asked.counts)
    assert "false" == asked.answer.headers["x-should-retry"]


def test_M8_the_books_hold_every_attempt_of_the_tests_above(pair: Pair) -> None:
    assert pair.expected == pair.recorded()
