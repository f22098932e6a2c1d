"""Anthropic's dialect. The translations are pairs of files: what goes in, and what comes out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from passy_plugins.dialects.anthropic import Anthropic
from passy_plugins.dialects.anthropic_answer import ChatPlainTap, usage_of
from passy_plugins.dialects.anthropic_request import version_of
from passy_plugins.dialects.anthropic_stream import ChatStreamTap
from passy_proxy.dialect import Tap, Untranslatable
from passy_proxy.downstream import pairs
from passy_proxy.event import Reply
from passy_proxy.exchange import Request
from passy_proxy.records import Credential, Usage
from passy_proxy.sse import Decoder, encode
from passy_proxy.stores import Room
from passy_proxy.transport import Transport
from passy_proxy.upstream import Target, Upstream

Asked = Callable[..., Request]
Json = Any

ANTHROPIC = Anthropic()
KEY = Credential("sk-ant")
PAIRS = Path(__file__).with_name("anthropic")
NOW = 1_800_000_000


def cases(kind: str) -> list[str]:
    found = sorted(p.name.removesuffix(".in.json") for p in PAIRS.glob(f"{kind}_*.in.json"))
    assert found
    return found


def pair(case: str) -> tuple[Json, Json]:
    given, wanted = (PAIRS / f"{case}.{side}.json" for side in ("in", "out"))
    return json.loads(given.read_bytes()), json.loads(wanted.read_bytes())


def target(model: str = "claude-3-5-haiku", **more: object) -> Target:
    upstream = Upstream("up", cast(Transport, None), ANTHROPIC)
    upstream.auth_header, upstream.auth_prefix = ANTHROPIC.auth_header, ANTHROPIC.auth_prefix
    for name, value in more.items():
        setattr(upstream, name, value)
    return Target.at(upstream, model)


def clock() -> float:
    return float(NOW)


def stream_of(events: list[Json]) -> bytes:
    return b"".join(encode(json.dumps(event).encode(), event["type"]) for event in events)


def messages_of(stream: bytes) -> list[Json]:
    decoder = Decoder()
    found = decoder.feed(stream) + decoder.finish()
    return [m.data.decode() if m.data == b"[DONE]" else json.loads(m.data) for m in found]


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The ways a stream may come off a socket."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    dice = random.Random(len(data))
    for _ in range(30):
        places = sorted(dice.sample(range(1, len(data)), dice.randint(1, 12)))
        yield [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def told(tap: Tap) -> tuple[Json, ...]:
    return tap.usage, tap.model, tap.finish_reason, tap.done, tap.error, tap.text_bytes


def every_way(make: Callable[[], Tap], data: bytes) -> tuple[bytes, Tap]:
    """The result of feeding ``data``, having checked that it is the same in all ways."""
    results = []
    for pieces in cuts(data):
        tap = make()
        results.append((b"".join(map(tap.feed, pieces)) + tap.finish(), tap))
    out, tap = results[0]
    for other, fed in results:
        assert (out, told(tap)) == (other, told(fed))
    return out, tap


@pytest.mark.parametrize("case", cases("request"))
def test_a_chat_completion_becomes_a_message(asked: Asked, case: str) -> None:
    said, wanted = pair(case)
    request = asked(json.dumps(said).encode())
    sent = ANTHROPIC.request(request, target(said["model"]), KEY, "openai")
    assert isinstance(sent.body, bytes)
    assert wanted["body"] == json.loads(sent.body)
    dropped = ANTHROPIC.dropped(request, "openai", target(said["model"]))
    assert wanted["dropped"] == list(dropped)
    assert said == request.json, "the client's request is never changed"


@pytest.mark.parametrize("case", cases("answer"))
def test_an_answer_becomes_a_chat_completion(case: str) -> None:
    said, wanted = pair(case)
    out, tap = every_way(lambda: ChatPlainTap(clock), json.dumps(said).encode())
    assert wanted == json.loads(out)
    assert "error" in wanted or ChatCompletion.model_validate(wanted)
    assert tap.done
    used = wanted.get("usage")
    if used:
        assert tap.usage is not None
        counted = (tap.usage.input, tap.usage.output)
        assert (used["prompt_tokens"], used["completion_tokens"]) == counted


@pytest.mark.parametrize("case", cases("stream"))
def test_a_stream_becomes_chunks(case: str) -> None:
    said, wanted = pair(case)
    stream = stream_of(said["events"])
    out, tap = every_way(lambda: ChatStreamTap(said["include_usage"], clock), stream)
    assert wanted["chunks"] == messages_of(out)
    for chunk in wanted["chunks"]:
        assert chunk == "[DONE]" or "error" in chunk or ChatCompletionChunk.model_validate(chunk)
    assert wanted["done"] == tap.done
    assert wanted["finish_reason"] == tap.finish_reason
    assert wanted["error"] == tap.error
    assert wanted["usage"] == (tap.usage and [tap.usage.input, tap.usage.output])


@pytest.mark.parametrize("case", cases("problem"))
def test_a_problem_becomes_openais(case: str) -> None:
    said, wanted = pair(case)
    body = json.dumps(said["said"]).encode()
    assert wanted == json.loads(ANTHROPIC.problem(said["status"], body, "openai"))


@pytest.mark.parametrize("body", [b"<html>no</html>", b"", b"[1]", b'{"error":null}'])
def test_a_problem_that_is_no_json_gets_words_of_its_status(body: bytes) -> None:
    said = json.loads(ANTHROPIC.problem(502, body, "openai"))["error"]
    assert ("server_error", "The upstream answered 502.") == (said["type"], said["message"])
    said = json.loads(ANTHROPIC.problem(502, body, "anthropic"))
    assert ("error", "api_error") == (said["type"], said["error"]["type"])


def test_a_proper_problem_passes_byte_for_byte_where_both_speak_anthropic() -> None:
    body = b'{ "type":"error", "error":{"type":"x","message":"y"}, "more":1}'
    assert ANTHROPIC.problem(400, body, "anthropic") is body


HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
FILE = {"type": "file", "file": {"file_id": "f"}}
IMAGE = {"type": "image_url", "image_url": "x"}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x":'}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [AUDIO]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "r"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": [FILE]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": 1}, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_place(
    asked: Asked, more: dict[str, Json], param: str
) -> None:
    body = json.dumps({"model": "claude", "messages": HI, **more}).encode()
    with pytest.raises(Untranslatable) as caught:
        ANTHROPIC.request(asked(body), target(), KEY, "openai")
    assert param == caught.value.param


def test_other_operations_than_chat_are_refused(asked: Asked) -> None:
    with pytest.raises(Untranslatable):
        ANTHROPIC.request(asked(b'{"model":"m"}', "embeddings"), target(), KEY, "openai")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.floats(-2, 2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "function", "name", "url", "mode"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
MEMBERS = (
    "messages",
    "tools",
    "tool_choice",
    "response_format",
    "stop",
    "temperature",
    "top_p",
    "reasoning_effort",
    "thinking",
    "service_tier",
    "user",
    "n_",
    "parallel_tool_calls",
    "metadata",
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(MEMBERS), JSON_VALUES, max_size=5), st.booleans())
def test_nothing_a_client_sends_is_more_than_refused(
    asked: Asked, more: dict[str, Json], old: bool
) -> None:
    body = json.dumps({"model": "m", "messages": HI, "tools": TOOLS, **more}).encode()
    model = "claude-3-7-sonnet" if old else "claude-opus-4-7"
    try:
        sent = ANTHROPIC.request(asked(body), target(model), KEY, "openai")
    except Untranslatable:
        return
    assert isinstance(sent.body, bytes)
    assert model == json.loads(sent.body)["model"]


EVENTS = (
    "content_block_delta",
    "content_block_start",
    "content_block_stop",
    "error",
    "message_delta",
    "message_start",
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["message", "delta", "usage", "content_block", "error", "index"]),
            JSON_VALUES,
            max_size=3,
        ),
        max_size=6,
    ),
    st.data(),
)
def test_nothing_an_upstream_sends_breaks_the_tap(events: list[Json], data: st.DataObject) -> None:
    typed = [{**event, "type": data.draw(st.sampled_from(EVENTS))} for event in events]
    tap = ChatStreamTap(True, clock)
    out = tap.feed(stream_of(typed)) + tap.finish()
    for message in messages_of(out):
        assert message == "[DONE]" or {"choices", "error"} & set(message)


def sent_headers(asked: Asked, spoken: str, *headers: tuple[bytes, bytes]) -> list[Json]:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    operation = "chat" if spoken == "openai" else "messages"
    return ANTHROPIC.request(asked(body, operation, headers), target(), KEY, spoken).headers


def test_the_version_is_pinned_for_translations(asked: Asked) -> None:
    headers = sent_headers(
        asked,
        "openai",
        (b"anthropic-version", b"2026-10-21"),
        (b"anthropic-beta", b"x"),
        (b"authorization", b"Bearer sk-passy"),
        (b"openai-beta", b"y"),
    )
    assert {
        (b"accept-encoding", b"identity"),
        (b"x-passy-hops", b"1"),
        (b"x-api-key", b"sk-ant"),
        (b"content-type", b"application/json"),
        (b"anthropic-version", b"2023-06-01"),
    } == set(headers)


def test_a_native_clients_version_and_betas_pass(asked: Asked) -> None:
    betas = ((b"anthropic-beta", b"a"), (b"anthropic-beta", b"b"))
    own = ((b"anthropic-version", b"2026-10-21"), *betas)
    headers = sent_headers(asked, "anthropic", *own)
    assert set(own) < set(headers)
    assert 1 == len([name for name, _ in headers if name == b"anthropic-version"])
    assert (b"anthropic-version", b"2023-06-01") in sent_headers(asked, "anthropic")


def test_a_native_body_changes_in_its_model_only(asked: Asked) -> None:
    body = b'{ "model" : "fast", "max_tokens":1e3, "x": [ ] }'
    request = asked(body, "messages", query=b"beta=true")
    sent = ANTHROPIC.request(request, target("claude-x"), KEY, "anthropic")
    assert body.replace(b'"fast"', b'"claude-x"') == sent.body
    assert b"/v1/messages?beta=true" == sent.target
    assert sent.replay_safe
    same = ANTHROPIC.request(asked(body, "messages"), target("fast"), KEY, "anthropic")
    assert body == same.body
    assert () == ANTHROPIC.dropped(request, "anthropic")


def test_counting_tokens_and_other_paths_are_passed_through(asked: Asked) -> None:
    count = asked(b'{"model":"m"}', "count_tokens")
    sent = ANTHROPIC.request(count, target(path=b"/proxy"), KEY, "anthropic")
    assert b"/proxy/v1/messages/count_tokens" == sent.target
    batch = asked(b"", "", method="GET", rest="/messages/batches")
    sent = ANTHROPIC.request(batch, target(""), KEY, "anthropic")
    assert (b"/v1/messages/batches", b"", True) == (sent.target, sent.body, sent.replay_safe)
    assert b"content-type" not in [name for name, _ in sent.headers]


def native(asked: Asked, streamed: bool) -> Tap:
    request = asked(b'{"model":"m"}', "messages")
    return ANTHROPIC.tap(request, streamed, "anthropic")


@pytest.mark.parametrize("case", cases("stream"))
def test_a_native_stream_is_watched_and_not_changed(asked: Asked, case: str) -> None:
    said, wanted = pair(case)
    stream = b": hello\n\n" + stream_of(said["events"])
    out, tap = every_way(lambda: native(asked, True), stream)
    assert stream == out
    assert wanted["usage"] == (tap.usage and [tap.usage.input, tap.usage.output])
    assert wanted["error"] == tap.error
    ended = said["events"][-1]["type"] in ("message_stop", "error")
    assert ended == tap.done


def test_text_of_a_native_stream_is_counted(asked: Asked) -> None:
    said, _ = pair("stream_tool_calls")
    _, tap = every_way(lambda: native(asked, True), stream_of(said["events"]))
    written = 'Let me see.{\\"city\\": \\"Rome\\"}{\\"city\\":\\"Oslo\\"}'
    assert ("tool_use", len(written)) == (tap.finish_reason, tap.text_bytes)


@pytest.mark.parametrize("case", cases("answer"))
def test_a_native_answer_is_watched_and_not_changed(asked: Asked, case: str) -> None:
    said, wanted = pair(case)
    body = json.dumps(said).encode()
    tap = native(asked, False)
    assert tap.feed(body) is body
    assert b"" == tap.finish()
    used = wanted.get("usage")
    told = tap.usage and (tap.usage.input, tap.usage.output)
    assert told == (used and (used["prompt_tokens"], used["completion_tokens"]))
    assert (said.get("stop_reason") or "") == tap.finish_reason


@pytest.mark.parametrize("case", cases("answer"))
def test_a_whole_answer_is_read_as_one_in_pieces(asked: Asked, case: str) -> None:
    body = json.dumps(pair(case)[0]).encode()
    for make in (lambda: native(asked, False), lambda: ChatPlainTap(lambda: 0.0)):
        at_once, slowly = make(), make()
        pieces = b"".join(map(slowly.feed, (body[:9], body[9:]))) + slowly.finish()
        assert pieces == at_once.whole(body)
        assert told(slowly) == told(at_once)


def test_the_client_decides_which_tap_it_gets(asked: Asked) -> None:
    request = asked(b'{"model":"m"}')
    assert isinstance(ANTHROPIC.tap(request, True, "openai"), ChatStreamTap)
    assert isinstance(ANTHROPIC.tap(request, False, "openai"), ChatPlainTap)


def test_a_stream_without_bounds_ends_with_an_error() -> None:
    tap = ChatStreamTap(False, clock)
    out = b"".join(tap.feed(b"x" * (1 << 20)) for _ in range(10)) + tap.finish()
    (event,) = messages_of(out)
    assert "exceeds" in event["error"]["message"]
    assert tap.error


@pytest.mark.parametrize(
    ("status", "code", "answered", "kind"),
    [
        (400, "invalid_json", 400, "invalid_request_error"),
        (401, "invalid_api_key", 401, "authentication_error"),
        (403, "model_not_allowed", 403, "permission_error"),
        (404, "model_not_found", 404, "not_found_error"),
        (413, "request_too_large", 413, "request_too_large"),
        (429, "rate_limit_exceeded", 429, "rate_limit_error"),
        (429, "insufficient_quota", 402, "billing_error"),
        (500, "internal_error", 500, "api_error"),
        (502, "upstream_error", 502, "api_error"),
        (503, "no_healthy_target", 529, "overloaded_error"),
        (504, "upstream_timeout", 504, "gateway_timeout_error"),
    ],
)
def test_a_reply_has_anthropics_shape(status: int, code: str, answered: int, kind: str) -> None:
    got, body = ANTHROPIC.reply(Reply(status, code, "words", attempts=[]), "req_1")
    error = {"type": kind, "message": "words", "details": {"error_code": code, "attempts": []}}
    assert (answered, {"type": "error", "error": error, "request_id": "req_1"}) == (
        got,
        json.loads(body),
    )


def test_a_broken_stream_ends_with_a_named_error_event() -> None:
    event = ANTHROPIC.broken("it broke", "upstream_broken", "req_1")
    assert event.startswith(b"event: error\ndata: ")
    (said,) = messages_of(event)
    assert ("error", "it broke", "req_1") == (
        said["type"],
        said["error"]["message"],
        said["request_id"],
    )


def test_every_answer_carries_the_request_id_under_both_names() -> None:
    expected = [(b"x-request-id", b"req_1"), (b"request-id", b"req_1")]
    assert expected == pairs(ANTHROPIC.head("req_1", 5))


def test_limits_are_told_with_the_time_they_are_full_again() -> None:
    rooms = [("requests", Room(10, 4, 1.5, 0)), ("tokens", Room(70, 6, 86_400.0, 0))]
    assert [
        (b"anthropic-ratelimit-requests-limit", b"10"),
        (b"anthropic-ratelimit-requests-remaining", b"4"),
        (b"anthropic-ratelimit-requests-reset", b"2027-01-15T08:00:02Z"),
        (b"anthropic-ratelimit-tokens-limit", b"70"),
        (b"anthropic-ratelimit-tokens-remaining", b"6"),
        (b"anthropic-ratelimit-tokens-reset", b"2027-01-16T08:00:00Z"),
    ] == pairs(ANTHROPIC.limit_lines(rooms, clock()))


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-3-5-sonnet-20241022", (3, 5)),
        ("claude-3-opus-latest", (3, 0)),
        ("claude-opus-4-20250514", (4, 0)),
        ("claude-sonnet-4-5-20250929", (4, 5)),
        ("anthropic/claude-opus-4.7", (4, 7)),
        ("claude-haiku-4-5@20251001", (4, 5)),
        ("claude-instant-1.2", (1, 2)),
        ("claude-sonnet-5", (5, 0)),
        ("something-else", (99, 0)),
    ],
)
def test_the_version_is_in_the_name(model: str, version: tuple[int, int]) -> None:
    assert version == version_of(model)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (None, None),
        ({}, None),
        ({"input_tokens": None, "output_tokens": 2.5}, None),
        ({"input_tokens": -1, "output_tokens": 10**30}, Usage(0, 1 << 40)),
        ({"output_tokens": 3}, Usage(0, 3)),
        (
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 20,
                "cache_creation_input_tokens": 30,
                "output_tokens": 4,
                "output_tokens_details": {"thinking_tokens": 9},
            },
            Usage(60, 4, 20, 30, 4),
        ),
    ],
)
def test_usage_counts_what_came_from_the_cache_as_input(said: Json, usage: Usage | None) -> None:
    assert usage == usage_of(said)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"error":{"message":"no"}}', b"\x1f\x8b", b"[]", b'{"type":"message"}']
)
def test_what_is_no_message_is_not_translated_into_an_empty_one(body: bytes) -> None:
    tap = ChatPlainTap()
    assert b"" == tap.feed(body) + tap.finish()
    assert tap.error


@pytest.mark.parametrize(
    "more",
    [
        b'"messages":[{"role":"assistant","content":"x","tool_calls":true}]',
        b'"messages":[{"role":"assistant","tool_calls":{"a":1}}]',
        b'"messages":[true]',
        b'"messages":[{"role":["user"],"content":"x"}]',
        b'"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":5}]',
        b'"messages":[{"role":"user","content":"x"}],"tools":[1],"tool_choice":5',
        b'"messages":[{"role":"user","content":"x"}],"reasoning_effort":{}',
        b'"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema",'
        b'"json_schema":7}',
        b'"messages":[{"role":"assistant","tool_calls":[{"id":"a","function":{"arguments":[1]}}]}]',
    ],
)
def test_a_member_of_another_type_is_refused_or_said_and_never_a_fault(
    asked: Asked, more: bytes
) -> None:
    body = b'{"model":"claude-sonnet-4-5",' + more + b"}"
    said = "" if b"tool_calls" not in more else None
    try:
        ANTHROPIC.request(asked(body), target("claude-sonnet-4-5"), KEY, "openai")
    except Untranslatable as refusal:
        said = str(refusal) or None
    assert said is not None
