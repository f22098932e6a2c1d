"""OpenAI's dialect: what goes upstream, and what the gateway says itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

import pytest

from passy_plugins.dialects.openai import OpenAI
from passy_proxy.dialect import Untranslatable
from passy_proxy.downstream import Downstream, pairs
from passy_proxy.event import Reply
from passy_proxy.exchange import Request
from passy_proxy.records import Credential
from passy_proxy.stores import Room
from passy_proxy.transport import Transport
from passy_proxy.upstream import Target, Upstream

Asked = Callable[..., Request]

OPENAI = OpenAI()
KEY = Credential("sk-upstream")
BODY = b'{ "model" : "fast", "unheard_of": [1e2], "messages":[{"role":"user","content":"hi"}]}'


def target(model: str = "gpt-4o", **settings: object) -> Target:
    upstream = Upstream("up", cast(Transport, None), OPENAI, path=b"/v1")
    for name, value in settings.items():
        setattr(upstream, name, value)
    return Target.at(upstream, model)


def test_a_changed_model_is_the_only_change(asked: Asked) -> None:
    sent = OPENAI.request(asked(BODY), target(), KEY, "openai")
    assert BODY.replace(b'"fast"', b'"gpt-4o"') == sent.body
    assert ("POST", b"/v1/chat/completions") == (sent.method, sent.target)


@pytest.mark.parametrize("model", ["fast", ""])
def test_a_body_with_nothing_to_change_is_the_very_same_object(asked: Asked, model: str) -> None:
    assert OPENAI.request(asked(BODY), target(model), KEY, "openai").body is BODY


@pytest.mark.parametrize("operation", ["chat", "completions"])
def test_usage_is_asked_for_in_streams(asked: Asked, operation: str) -> None:
    body = b'{"model":"m","stream":true,"prompt":"x"}'
    sent = OPENAI.request(asked(body, operation), target("m"), KEY, "openai")
    assert isinstance(sent.body, bytes)
    assert {"include_usage": True} == json.loads(sent.body)["stream_options"]


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}', "chat"),
        (b'{"model":"m","stream":false}', "chat"),
        (b'{"model":"m","stream":true,"input":"x"}', "responses"),
        (b'{"model":"m","input":"x"}', "embeddings"),
    ],
)
def test_usage_is_not_asked_for_elsewhere(asked: Asked, body: bytes, operation: str) -> None:
    assert OPENAI.request(asked(body, operation), target("m"), KEY, "openai").body is body


def test_only_listed_headers_of_the_client_go_upstream(asked: Asked) -> None:
    secret = (
        (b"authorization", b"Bearer sk-passy-1"),
        (b"x-api-key", b"sk-passy-1"),
        (b"api-key", b"sk-passy-1"),
        (b"cookie", b"a=b"),
        (b"x-stainless-lang", b"python"),
        (b"x-passy-timeout-ms", b"1"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"openai-organization", b"org-1"),
        (b"accept-encoding", b"gzip"),
        (b"content-type", b"text/plain"),
        (b"unknown", b"x"),
    )
    kept = (
        (b"accept", b"application/json"),
        (b"user-agent", b"OpenAI/Python 3.54.0"),
        (b"openai-beta", b"assistants=v2"),
    )
    sent = OPENAI.request(asked(BODY, headers=(*secret, *kept)), target(), KEY, "openai")
    assert {
        *kept,
        (b"accept-encoding", b"identity"),
        (b"x-passy-hops", b"1"),
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer sk-upstream"),
    } == set(sent.headers)


def test_an_upstream_may_ask_for_more_headers_but_never_for_secrets(asked: Asked) -> None:
    headers = ((b"x-trace", b"1"), (b"authorization", b"Bearer sk-passy-1"), (b"cookie", b"a=b"))
    more = (*headers, (b"x-stainless-os", b"Linux"), (b"x-passy-tags", b"a"))
    greedy = frozenset(name for name, _ in more)
    sent = OPENAI.request(asked(BODY, headers=more), target(forward_headers=greedy), None, "openai")
    names = [name for name, _ in sent.headers]
    assert [b"accept-encoding", b"x-passy-hops", b"x-trace", b"content-type"] == names


def test_a_header_the_upstream_sets_wins_over_the_clients(asked: Asked) -> None:
    own = ((b"user-agent", b"passy"),)
    request = asked(BODY, headers=((b"user-agent", b"curl"),))
    sent = OPENAI.request(request, target(headers=own), KEY, "openai")
    assert [b"passy"] == [value for name, value in sent.headers if name == b"user-agent"]


def test_the_credential_is_shown_as_the_upstream_wants_it(asked: Asked) -> None:
    where = target(auth_header=b"api-key", auth_prefix=b"")
    assert (b"api-key", b"sk-upstream") in OPENAI.request(asked(BODY), where, KEY, "openai").headers
    without = OPENAI.request(asked(BODY), where, None, "openai").headers
    assert [] == [name for name, _ in without if name in (b"api-key", b"authorization")]


def test_an_upstream_may_have_its_own_path_for_an_operation(asked: Asked) -> None:
    where = target(paths={"chat": b"/elsewhere/chat?api-version=1"})
    sent = OPENAI.request(asked(BODY), where, KEY, "openai")
    assert b"/elsewhere/chat?api-version=1" == sent.target


def test_an_unknown_path_is_passed_through_with_its_query(asked: Asked) -> None:
    request = asked(b"", "", query=b"limit=2", method="GET", rest="/files/caf\u00e9 1")
    sent = OPENAI.request(request, target(""), KEY, "openai")
    assert (b"/v1/files/caf%C3%A9%201?limit=2", b"") == (sent.target, sent.body)
    assert b"content-type" not in [name for name, _ in sent.headers]


def test_an_upload_is_passed_on_as_it_arrives(asked: Asked) -> None:
    kind = (b"content-type", b"application/octet-stream")
    request = asked(b"", "", headers=(kind, (b"content-length", b"123")), rest="/files")
    request.streamed_upload = True
    pieces = cast("bytes", object())
    request.downstream = type("D", (), {"pieces": lambda self, limit: pieces})()
    sent = OPENAI.request(request, target(""), KEY, "openai")
    assert pieces is sent.body
    assert 123 == sent.length
    assert kind in sent.headers
    assert not sent.replay_safe


@pytest.mark.parametrize(
    ("operation", "body", "headers", "safe"),
    [
        ("chat", BODY, (), True),
        ("chat", BODY, ((b"idempotency-key", b"k"),), False),
        ("embeddings", b'{"model":"m","input":"x"}', (), True),
        ("responses", b'{"model":"m","input":"x"}', (), True),
        ("responses", b'{"model":"m","store":false,"input":"x"}', (), True),
        ("responses", b'{"model":"m","store":true,"input":"x"}', (), False),
        ("responses", b'{"model":"m","background":true,"input":"x"}', (), False),
        ("", b"{}", (), False),
    ],
)
def test_only_what_leaves_nothing_behind_may_be_sent_twice(
    asked: Asked, operation: str, body: bytes, headers: tuple[tuple[bytes, bytes], ...], safe: bool
) -> None:
    sent = OPENAI.request(asked(body, operation, headers), target(), KEY, "openai")
    assert safe == sent.replay_safe


def test_another_dialects_request_is_refused(asked: Asked) -> None:
    with pytest.raises(Untranslatable):
        OPENAI.request(asked(BODY), target(), KEY, "anthropic")


PROPER = b'{ "error": {"message": "no", "type": "invalid_request_error", "extra": 1}, "more": 2}'


@pytest.mark.parametrize(
    ("status", "body", "message", "kind"),
    [
        (400, b'{"error":"model overloaded"}', "model overloaded", "invalid_request_error"),
        (503, b'{"error":{"message":"later"}}', "later", "service_unavailable_error"),
        (422, b'{"detail":[{"msg":"bad"}]}', '[{"msg":"bad"}]', "invalid_request_error"),
        (400, b'{"object":"error","message":"no","type":"BadRequest"}', "no", "BadRequest"),
        (502, b"<html>bad gateway</html>", "The upstream answered 502.", "server_error"),
        (500, b"", "The upstream answered 500.", "server_error"),
        (429, b"slow down", "slow down", "rate_limit_error"),
        (500, b"[1,2]", "The upstream answered 500.", "server_error"),
        (500, b'{"error":{"code":"x"}}', "The upstream answered 500.", "server_error"),
    ],
)
def test_a_providers_odd_error_becomes_an_envelope(
    status: int, body: bytes, message: str, kind: str
) -> None:
    error = json.loads(OPENAI.problem(status, body, "openai"))["error"]
    assert (message, kind) == (error["message"], error["type"])
    assert {"message", "type", "param", "code"} == set(error)


def test_a_proper_error_passes_byte_for_byte() -> None:
    assert OPENAI.problem(400, PROPER, "openai") is PROPER


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_json", "invalid_request_error"),
        (401, "invalid_api_key", "invalid_request_error"),
        (403, "model_not_allowed", "permission_error"),
        (404, "model_not_found", "invalid_request_error"),
        (408, "request_body_timeout", "timeout_error"),
        (413, "request_too_large", "invalid_request_error"),
        (429, "rate_limit_exceeded", "rate_limit_error"),
        (429, "insufficient_quota", "insufficient_quota"),
        (500, "internal_error", "server_error"),
        (502, "upstream_error", "server_error"),
        (503, "no_healthy_target", "service_unavailable_error"),
        (504, "upstream_timeout", "timeout_error"),
    ],
)
def test_a_reply_has_the_type_of_its_status(status: int, code: str, kind: str) -> None:
    answered, body = OPENAI.reply(Reply(status, code, "words", param="p"), "req_1")
    error = json.loads(body)["error"]
    assert status == answered
    assert (kind, code, "words", "p", "req_1") == tuple(
        error[name] for name in ("type", "code", "message", "param", "request_id")
    )


def test_a_reply_lists_the_attempts_and_keeps_a_type_of_its_own() -> None:
    reply = Reply(502, "upstream_error", type="own", attempts=[{"upstream": "a"}])
    error = json.loads(OPENAI.reply(reply, "")[1])["error"]
    assert ([{"upstream": "a"}], "own") == (error["attempts"], error["type"])
    assert "request_id" not in error


def test_a_broken_stream_ends_with_an_error_event() -> None:
    event = OPENAI.broken("it broke", "upstream_broken", "req_1")
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    error = json.loads(event[6:])["error"]
    assert ("it broke", "upstream_broken", "req_1") == (
        error["message"],
        error["code"],
        error["request_id"],
    )


def test_every_answer_carries_the_request_id_first() -> None:
    head = pairs(OPENAI.head("req_1", 12))
    assert (b"x-request-id", b"req_1") == head[0]
    assert (b"openai-processing-ms", b"12") in head


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0s"),
        (0.0121, b"13ms"),
        (1, b"1s"),
        (59.2, b"1m0s"),
        (360, b"6m0s"),
        (3600, b"1h0m0s"),
        (90061, b"25h1m1s"),
    ],
)
def test_waits_are_written_as_openai_writes_them(seconds: float, text: bytes) -> None:
    lines = pairs(OPENAI.limit_lines([("tokens", Room(9, 4, seconds, 0))], 0.0))
    assert (b"x-ratelimit-reset-tokens", text) == lines[-1]


def test_limits_are_told_under_openais_names() -> None:
    rooms = [("tokens", Room(100, 40, 1.5, 0)), ("requests", Room(5, 4, 0.2, 0))]
    assert [
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"40"),
        (b"x-ratelimit-reset-tokens", b"2s"),
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-ratelimit-remaining-requests", b"4"),
        (b"x-ratelimit-reset-requests", b"200ms"),
    ] == pairs(OPENAI.limit_lines(rooms, 0.0))


@pytest.mark.parametrize(
    ("method", "headers", "empty"),
    [
        ("GET", (), True),
        ("DELETE", (), True),
        ("POST", ((b"content-length", b"0"),), True),
        ("POST", (), False),
        ("DELETE", ((b"transfer-encoding", b"chunked"),), False),
        ("GET", ((b"content-length", b"5"),), False),
    ],
)
def test_an_upload_without_a_body_is_sent_without_framing(
    asked: Asked, method: str, headers: tuple[tuple[bytes, bytes], ...], empty: bool
) -> None:
    request = asked(b"", "", headers, method=method, rest="/files/a%252Fb")
    request.streamed_upload = True
    request.downstream = cast(Downstream, Uploads())
    sent = OPENAI.request(request, target(), KEY, "openai")
    assert empty is (sent.body == b"")
    assert b"/v1/files/a%252Fb" == sent.target


class Uploads:
    def pieces(self, limit: int) -> object:
        return object()


@pytest.mark.parametrize("name", [b"range", b"if-range", b"if-none-match", b"if-modified-since"])
def test_a_part_of_a_file_can_be_asked_for(asked: Asked, name: bytes) -> None:
    request = asked(b"", "", ((name, b"x"),), method="GET", rest="/files/1/content")
    assert (name, b"x") in OPENAI.request(request, target(), KEY, "openai").headers
