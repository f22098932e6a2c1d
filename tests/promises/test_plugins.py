"""X2 and X3: a plugin that goes wrong in every hook, in every way, costs only what it may."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.again import TIMES
from harness.client import Answer, send
from harness.gateway import Gateway, Serve, until
from harness.upstream import RawUpstream

from passy_proxy.chain import HOOKS

PLUGINS = Path(__file__).with_name("plugins")
FAULTS = ("raise", "exit", "stray", "hog", "wrong", "hang", "swallow", "late")
EDITS = ("line_break", "pseudo", "text", "length", "none", "replaced")
WAITS = ("hang", "swallow")
AT_AN_END = ("on_attempt_end", "on_complete")

COMPLETION = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "whole"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
)
EVENTS = (
    'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":'
    '{"content":"whole"}}]}\n\n'
    "data: [DONE]\n\n"
)


def answered(kind: str, body: str) -> dict[str, str]:
    return {
        "send": f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        f"x-theirs: 1\r\n\r\n{body}"
    }


class Case(NamedTuple):
    hook: str
    fault: str
    on_error: str
    stream: bool

    @property
    def path(self) -> str:
        return "-".join((self.hook, self.fault, self.on_error))

    @property
    def word(self) -> str:
        return f"{self.path}-{'stream' if self.stream else 'plain'}"

    @property
    def fails(self) -> bool:
        """An edit comes too late, where the head has gone already."""
        late = self.hook in AT_AN_END or (self.stream and self.hook in ("on_event", "on_end"))
        return not (self.fault in EDITS and late)

    @property
    def refused(self) -> bool:
        """The client is told. A reply of the filter's own that cannot be sent is no matter of
        ``open``: it did answer."""
        own = self.hook == "on_request" and self.fault in EDITS and self.fault != "replaced"
        deciding = self.hook not in AT_AN_END
        return self.fails and deciding and (self.on_error == "closed" or own)

    @property
    def status(self) -> int:
        return 503 if self.fault in WAITS and self.hook != "on_event" else 500


CASES = [
    Case(hook, fault, on_error, stream)
    for hook in HOOKS
    for fault in FAULTS + EDITS
    for on_error in ("closed", "open")
    for stream in (False, True)
]


def configuration(plain: str, stream: str) -> str:
    routes = []
    for case in (case for case in CASES if not case.stream):
        hostile = {
            "hook": case.hook,
            "fault": case.fault,
            "on_error": case.on_error,
            "hook_timeout": "300ms",
        }
        nothing = {"hook": "none", "fault": "none"}
        chain = [{"onlooker": nothing}, {"hostile": hostile}, "alias", "fallback"]
        routes.append({"match": f"POST /{case.path}", "operation": "chat", "chain": chain})
    whole = [{"hostile": {"hook": "none", "fault": "none"}}, "alias", "fallback"]
    routes.append({"match": "POST /well", "operation": "chat", "chain": whole})
    for hook in HOOKS:
        for fault in ("look", "poison"):
            chain = [{"hostile": {"hook": hook, "fault": fault}}, "alias", "fallback"]
            routes.append({"match": f"POST /{fault}/{hook}", "operation": "chat", "chain": chain})
    routes.append({"match": "GET /livez", "chain": [{"static": {"body": "{}"}}]})
    return json.dumps(
        {
            "upstreams": {
                "plain": {"url": plain, "credential": "${PROVIDER_KEY}"},
                "stream": {"url": stream, "headers": {"x-secret": "${PROVIDER_KEY}"}},
            },
            "models": {"plain": ["plain/m"], "stream": ["stream/m"]},
            "routes": routes,
        }
    )


def ask(gateway: Gateway, path: str, stream: bool) -> Answer:
    model = "stream" if stream else "plain"
    body = json.dumps({"model": model, "stream": stream, "messages": []})
    raw = (
        f"POST /{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-canary-of-the-client\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        f"x-case: {path}-{model}\r\n\r\n{body}"
    )
    told = send(gateway.url, raw.encode(), quiet=15.0)
    assert b"x-evil" not in told.data.lower()
    return told.answer("POST")


class Ran(NamedTuple):
    gateway: Gateway
    answers: dict[Case, Answer]
    upstreams: tuple[RawUpstream, RawUpstream]

    def seen(self, word: str) -> list[str]:
        """What the onlooker saw of an exchange, as soon as it saw the end."""

        def look() -> list[str] | None:
            lines = re.findall(rf"^seen {word} (.*)$", self.gateway.complaints(), re.MULTILINE)
            return lines if any(line.startswith("on_complete") for line in lines) else None

        return until(look)


@pytest.fixture(scope="module")
def ran(serve: Serve) -> Iterator[Ran]:
    """All cases, at once, in one gateway."""
    path = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        RawUpstream([answered("application/json", COMPLETION)]) as plain,
        RawUpstream([answered("text/event-stream", EVENTS)]) as stream,
    ):
        text = configuration(plain.url, stream.url)
        gateway = serve(
            text, faulty=True, PYTHONPATH=path, PROVIDER_KEY="sk-canary-of-the-provider"
        )
        with ThreadPoolExecutor(24) as pool:
            answers = pool.map(lambda case: ask(gateway, case.path, case.stream), CASES)
            yield Ran(gateway, dict(zip(CASES, answers, strict=True)), (plain, stream))


@pytest.mark.parametrize("fault", FAULTS + EDITS)
@pytest.mark.parametrize("hook", HOOKS)
def test_X2_a_plugins_fault_is_isolated_as_configured(ran: Ran, hook: str, fault: str) -> None:
    for case in (case for case in CASES if (case.hook, case.fault) == (hook, fault)):
        answer = ran.answers[case]
        assert b"canary" not in answer.body, case
        assert b"Traceback" not in answer.body, case
        whole = (EVENTS if case.stream else COMPLETION).encode()
        if not case.refused:
            assert (200, whole, True) == (answer.status, answer.body, answer.whole), case
            assert "1" == answer.headers["x-theirs"], case
        elif case.stream and case.hook in ("on_event", "on_end"):
            assert 200 == answer.status, case
            assert b"[DONE]" not in answer.body, case
            last = answer.body.rstrip().rpartition(b"\n\n")[2].removeprefix(b"data: ")
            check_error(json.loads(last), answer)
        else:
            assert case.status == answer.status, (case, answer)
            assert "application/json" == answer.headers["content-type"], case
            assert answer.headers["x-request-id"] in check_error(json.loads(answer.body), answer)
        asked = case.hook != "on_request" or not case.refused
        ends = ["on_attempt_end"] * asked + ["on_complete", "on_end"]
        seen = ran.seen(case.word)
        assert ends == sorted(line.split()[0] for line in seen), case
        failed = any("filter_failed" in line for line in seen)
        assert failed is case.refused, (case, seen)


def check_error(told: dict[str, dict[str, str]], answer: Answer) -> str:
    error = told["error"]
    assert "internal_error" == error["code"]
    assert error["type"] in ("server_error", "service_unavailable_error")
    assert "hostile" not in error["message"], error
    return error["message"]


def test_X2_the_gateway_is_as_it_was_and_told_each_fault_once_in_a_while(ran: Ran) -> None:
    for stream, whole in ((False, COMPLETION), (True, EVENTS)):
        answer = ask(ran.gateway, "well", stream)
        assert (200, whole.encode()) == (answer.status, answer.body)
    for upstream in ran.upstreams:
        assert [] == upstream.errors
        names = {name for hit in upstream.hits for name, _ in hit.headers}
        assert set() == names & {"x-a", "x a", ":status", "x-evil"}
    lines = [line for line in ran.gateway.complaints().splitlines() if "filter_failed" in line]
    for hook in HOOKS:
        told = [line for line in lines if f'"hook": "{hook}"' in line or f'"hook":"{hook}"' in line]
        assert 1 <= len(told) <= 6, (hook, len(told))
        assert all('"hostile"' in line for line in told)
    assert ran.gateway.process.poll() is None


@pytest.mark.parametrize("hook", ["on_request", "on_attempt", "on_response"])
def test_X2_a_swallowed_cancellation_does_not_keep_the_exchange(ran: Ran, hook: str) -> None:
    """The client leaves at once; the filter is abandoned, and nobody is asked after that."""
    case = Case(hook, "swallow", "open", False)
    word = case.word
    body = b'{"model":"plain","messages":[]}'
    head = f"POST /{case.path} HTTP/1.1\r\nhost: x\r\nx-case: {word}\r\n".encode()
    head += b"content-length: %d\r\n\r\n" % len(body)
    for _ in range(TIMES):
        before = len(ran.seen(word)), len(ran.upstreams[0].hits)
        began = time.monotonic()
        if not send(ran.gateway.url, head + body, quiet=0.05).data:
            break  # Else it left too late: who gets no turn for a second is answered.
    seen = until(lambda: found if len(found := ran.seen(word)) > before[0] else None)
    until(lambda: True if any("client_gone" in line for line in ran.seen(word)) else None)
    assert time.monotonic() - began < 15
    assert seen
    hits = len(ran.upstreams[0].hits) - before[1]
    assert (1 if hook == "on_response" else 0) == hits


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
def test_X3_a_plugin_is_not_shown_keys(ran: Ran, hook: str, stream: bool) -> None:
    """Not the client's, which it would have to declare, and not the provider's."""
    before = ran.gateway.complaints().count("shown [")
    answer = ask(ran.gateway, f"look/{hook}", stream)
    assert 200 == answer.status
    until(lambda: True if ran.gateway.complaints().count("shown [") > before else None)
    shown = [line for line in ran.gateway.complaints().splitlines() if line.startswith("shown [")]
    assert any("content-type" in line for line in shown)
    assert [] == [line for line in shown if "canary" in line]


@pytest.mark.parametrize("hook", HOOKS)
def test_X3_a_plugin_does_not_change_the_clients_request(ran: Ran, hook: str) -> None:
    ask(ran.gateway, f"poison/{hook}", False)
    assert 200 == ask(ran.gateway, "well", False).status
    assert "poisoned" not in ran.gateway.complaints()
    values = {value for hit in ran.upstreams[0].hits for _, value in hit.headers}
    assert "Bearer sk-canary-of-the-provider" in values
    assert set() == {value for value in values if "planted" in value or "of-the-client" in value}
