"""The official Anthropic SDK for Python on the native route: Messages in, Messages out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from passy_proxy.testing import Answer

if TYPE_CHECKING:
    from harness.gateway import Gateway, Hire, Provider, Serve, Shipped

OPERATORS = "sk-ant-operator-0123456789"
HELLO: Any = [{"role": "user", "content": "hello to you"}]
ALIASES = """
models:
  sonnet: [anthropic/claude-real]
  claude-pair: [anthropic/claude-first, anthropic/claude-second]
"""
SSE = (("content-type", "text/event-stream"),)
WEATHER: Any = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-real",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 4, "odd": 1},
}


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


STREAM = [
    event("message_start", message={**MESSAGE, "content": [], "stop_reason": None}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("ping"),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hel"}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "lo!"}),
    event("content_block_stop", index=0),
    event(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"output_tokens": 2},
    ),
    event("message_stop"),
]


@pytest.fixture(scope="module")
def provider(hire: Hire) -> Provider:
    return hire()


@pytest.fixture(scope="module")
def gateway(serve: Serve, shipped: Shipped, provider: Provider) -> Gateway:
    text = shipped(anthropic=provider.url).replace("\nmodels:\n", ALIASES)
    return serve(text, ANTHROPIC_API_KEY=OPERATORS)


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.new_key("--name", "SDK")


@pytest.fixture
def client(gateway: Gateway, key: str, provider: Provider) -> Iterator[Anthropic]:
    """The SDK as it comes, and a provider without a script."""
    provider.forget()
    with Anthropic(base_url=gateway.url, api_key=key) as client:
        yield client
    assert [] == provider.faults


def test_a_message(client: Anthropic) -> None:
    answer = client.messages.create(model="echo", max_tokens=64, messages=HELLO)
    assert ["hello to you"] == [block.text for block in answer.content if block.type == "text"]
    assert ("end_turn", 3, 3) == (
        answer.stop_reason,
        answer.usage.input_tokens,
        answer.usage.output_tokens,
    )


def test_a_streamed_message(client: Anthropic) -> None:
    with client.messages.stream(model="echo", max_tokens=64, messages=HELLO) as stream:
        said = list(stream.text_stream)
        answer = stream.get_final_message()
    assert ["hello ", "to ", "you"] == said
    assert 3 == answer.usage.output_tokens


@pytest.mark.anyio
async def test_the_asynchronous_client_streams(gateway: Gateway, key: str) -> None:
    async with (
        AsyncAnthropic(base_url=gateway.url, api_key=key) as client,
        client.messages.stream(model="echo", max_tokens=64, messages=HELLO) as stream,
    ):
        assert "hello to you" == "".join([text async for text in stream.text_stream])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called(client: Anthropic, streamed: bool) -> None:
    asked: Any = {
        "model": "echo",
        "max_tokens": 64,
        "messages": HELLO,
        "tools": [WEATHER],
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    if streamed:
        with client.messages.stream(**asked) as stream:
            answer: Any = stream.get_final_message()
    else:
        answer = client.messages.create(**asked)
    [call] = answer.content
    assert "tool_use" == answer.stop_reason
    assert ("tool_use", "weather", {"city": "hello to you"}) == (call.type, call.name, call.input)


def test_tokens_are_counted(client: Anthropic) -> None:
    assert 3 == client.messages.count_tokens(model="echo", messages=HELLO).input_tokens


def test_tokens_are_counted_by_the_provider(client: Anthropic, provider: Provider) -> None:
    provider.json({"input_tokens": 17})
    assert 17 == client.messages.count_tokens(model="sonnet", messages=HELLO).input_tokens
    assert "/v1/messages/count_tokens" == provider.requests[0].target
    assert "claude-real" == provider.requests[0].json["model"]


def test_models_are_listed_in_anthropic_s_shape(client: Anthropic) -> None:
    page = client.models.list(limit=1000)
    names = [model.id for model in page]
    assert {"echo", "sonnet", "claude-pair"} <= set(names)
    assert ["model"] * len(names) == [model.type for model in page.data]
    assert (names[0], names[-1], False) == (page.first_id, page.last_id, page.has_more)
    assert "sonnet" == client.models.retrieve("sonnet").id
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert "not_found_error" == caught.value.type


# What reaches the provider, and what comes back


def recording(gateway: Gateway, key: str, sent: list[bytes]) -> Anthropic:
    """An SDK that notes the bodies it sends."""

    def note(request: Any) -> None:
        sent.append(request.read())

    hooks: Any = {"request": [note]}
    http = anthropic.DefaultHttpxClient(event_hooks=hooks)
    return Anthropic(base_url=gateway.url, api_key=key, http_client=http)


def test_a_body_differs_in_its_model_only(gateway: Gateway, key: str, provider: Provider) -> None:
    provider.forget()
    provider.json(MESSAGE)
    sent: list[bytes] = []
    unheard_of = {"zeta": {"b": 1, "a": [1.0, 1e3, "é\u2028"]}}
    with recording(gateway, key, sent) as client:
        client.messages.create(model="sonnet", max_tokens=64, messages=HELLO, extra_body=unheard_of)
    [body] = sent
    assert 1 == body.count(b'"model":"sonnet"')
    assert body.replace(b'"model":"sonnet"', b'"model":"claude-real"') == provider.requests[0].body


def test_version_and_betas_are_the_client_s(client: Anthropic, provider: Provider) -> None:
    provider.json(MESSAGE)
    client.beta.messages.create(
        model="sonnet",
        max_tokens=64,
        messages=HELLO,
        betas=["one-2025", "two-2026"],
        extra_query={"beta": "true"},  # as Claude Code sends it
    )
    seen = provider.requests[0]
    assert "/v1/messages?beta=true" == seen.target
    assert "one-2025,two-2026" == seen.headers["anthropic-beta"]
    assert client.default_headers["anthropic-version"] == seen.headers["anthropic-version"]


def test_a_provider_sees_the_operator_s_key_and_nothing_of_the_client_s(
    client: Anthropic, provider: Provider, key: str
) -> None:
    provider.json(MESSAGE)
    client.messages.create(model="sonnet", max_tokens=64, messages=HELLO)
    headers = provider.requests[0].headers
    assert OPERATORS == headers["x-api-key"]
    assert key not in str(headers)
    assert [] == [name for name in headers if name.startswith("x-stainless")]


def test_older_clients_show_their_key_in_x_api_key(gateway: Gateway, key: str) -> None:
    older = {"Authorization": anthropic.Omit(), "x-api-key": key}
    headers: Any = older
    with Anthropic(base_url=gateway.url, api_key="x", default_headers=headers) as client:
        assert 3 == client.messages.count_tokens(model="echo", messages=HELLO).input_tokens


def test_an_answer_is_the_provider_s_to_the_byte(client: Anthropic, provider: Provider) -> None:
    body = json.dumps(MESSAGE, indent=1).encode()
    provider.then(Answer(pieces=[body]))
    raw = client.messages.with_raw_response.create(model="sonnet", max_tokens=64, messages=HELLO)
    assert body == raw.http_response.content
    assert {"odd": 1} == raw.parse().usage.model_extra


def test_a_stream_is_the_provider_s_to_the_byte(
    client: Anthropic, provider: Provider, gateway: Gateway
) -> None:
    provider.then(Answer(headers=SSE, pieces=STREAM, gap=0.005))
    with client.messages.with_streaming_response.create(
        model="sonnet", max_tokens=64, messages=HELLO, stream=True
    ) as answer:
        assert b"".join(STREAM) == b"".join(answer.iter_bytes())
    record = gateway.record(answer.headers["request-id"])
    # Anthropic counts what it read from its cache beside the input; the books keep the sum.
    assert (13, 2, 4) == (record["input"], record["output"], record["cached"])


# Errors


ERRORS: list[tuple[int, str, type[anthropic.APIStatusError], int]] = [
    (400, "invalid_request_error", anthropic.BadRequestError, 1),
    (401, "authentication_error", anthropic.AuthenticationError, 1),
    (403, "permission_error", anthropic.PermissionDeniedError, 1),
    (404, "not_found_error", anthropic.NotFoundError, 1),
    (413, "request_too_large", anthropic.RequestTooLargeError, 1),
    (422, "invalid_request_error", anthropic.UnprocessableEntityError, 1),
    (429, "rate_limit_error", anthropic.RateLimitError, 3),
    (500, "api_error", anthropic.InternalServerError, 3),
    (504, "timeout_error", anthropic.InternalServerError, 3),
    (529, "overloaded_error", anthropic.InternalServerError, 3),
]


@pytest.mark.parametrize(("status", "name", "kind", "tries"), ERRORS)
def test_a_provider_s_error_is_the_error_the_sdk_knows(
    client: Anthropic,
    provider: Provider,
    status: int,
    name: str,
    kind: type[anthropic.APIStatusError],
    tries: int,
) -> None:
    body = {"type": "error", "error": {"type": name, "message": "As I say.", "more": 1}}
    provider.json(body, status, retry_after_ms="1")
    with pytest.raises(kind) as caught:
        client.messages.create(model="sonnet", max_tokens=64, messages=HELLO)
    assert (status, body) == (caught.value.status_code, caught.value.body)
    assert str(caught.value.request_id).startswith("req_")
    assert tries == len(provider.requests)


def test_the_gateway_s_own_errors_have_anthropic_s_envelope(
    client: Anthropic, provider: Provider
) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="sonet", max_tokens=64, messages=HELLO)
    body: Any = caught.value.body
    assert ("error", "not_found_error") == (body["type"], body["error"]["type"])
    assert "'sonnet'" in body["error"]["message"]
    assert body["request_id"] == caught.value.request_id
    assert "model_not_found" == body["error"]["details"]["error_code"]
    assert [] == provider.requests


def test_a_wrong_key_is_an_authentication_error(client: Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError) as caught:
        client.with_options(api_key="sk-ant-wrong").messages.create(
            model="sonnet", max_tokens=64, messages=HELLO
        )
    body: Any = caught.value.body
    assert "authentication_error" == body["error"]["type"]


def test_a_rate_limit_is_told_in_anthropic_s_headers(client: Anthropic, gateway: Gateway) -> None:
    limited = client.with_options(api_key=gateway.new_key("--requests", "1/min"), max_retries=0)
    first = limited.messages.with_raw_response.create(model="echo", max_tokens=9, messages=HELLO)
    assert "1" == first.headers["anthropic-ratelimit-requests-limit"]
    assert "0" == first.headers["anthropic-ratelimit-requests-remaining"]
    assert first.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    with pytest.raises(anthropic.RateLimitError) as caught:
        limited.messages.create(model="echo", max_tokens=9, messages=HELLO)
    assert "rate_limit_error" == caught.value.type
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60


def test_the_sdk_does_not_repeat_what_the_gateway_has_tried_everywhere(
    client: Anthropic, provider: Provider
) -> None:
    provider.json({"type": "error", "error": {"type": "api_error", "message": "No."}}, 500)
    with pytest.raises(anthropic.InternalServerError) as caught:
        client.messages.create(model="claude-pair", max_tokens=64, messages=HELLO)
    assert (502, "api_error") == (caught.value.status_code, caught.value.type)
    assert ["claude-first", "claude-second"] == [seen.json["model"] for seen in provider.requests]


def test_an_overloaded_provider_is_stood_in_for(client: Anthropic, provider: Provider) -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Full."}}
    provider.json(overloaded, 529).json(MESSAGE)
    answer = client.messages.create(model="claude-pair", max_tokens=64, messages=HELLO)
    assert "msg_1" == answer.id
    assert 2 == len(provider.requests)


def test_a_stream_that_breaks_off_raises(client: Anthropic, provider: Provider) -> None:
    provider.then(Answer(headers=SSE, pieces=STREAM[:4], gap=0.01, cut=True))
    said: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(model="sonnet", max_tokens=64, messages=HELLO) as stream,
    ):
        said.extend(stream.text_stream)
    body: Any = caught.value.body
    assert ["Hel"] == said
    assert ("api_error", "upstream_broken") == (
        body["error"]["type"],
        body["error"]["details"]["error_code"],
    )


def test_a_client_that_stops_reading_stops_the_provider(
    client: Anthropic, provider: Provider
) -> None:
    provider.then(Answer(headers=SSE, pieces=STREAM[:5], hold=asyncio.Event()))
    with client.messages.stream(model="sonnet", max_tokens=64, messages=HELLO) as stream:
        assert "Hel" == next(iter(stream.text_stream))
    provider.wait(provider.requests[0].closed.wait())


def test_the_request_id_is_ours(client: Anthropic, provider: Provider) -> None:
    provider.then(
        Answer(
            headers=(("content-type", "application/json"), ("request-id", "req_of_theirs")),
            pieces=[json.dumps(MESSAGE).encode()],
        )
    )
    raw = client.messages.with_raw_response.create(model="sonnet", max_tokens=64, messages=HELLO)
    assert raw.parse()._request_id == raw.headers["request-id"] == raw.headers["x-request-id"]
    assert raw.headers["request-id"].startswith("req_")
    assert "req_of_theirs" == raw.headers["x-upstream-request-id"]
    assert "anthropic/claude-real" == raw.headers["x-passy-upstream"]
