"""The official OpenAI SDK for Python, as its users have it: only `base_url` and key are ours."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import openai
import pytest
from harness.again import TIMES, spared
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from passy_proxy.testing import SSE, Answer, Seen, chat_events, completion

if TYPE_CHECKING:
    from harness.gateway import Gateway, Hire, Provider, Serve, Shipped

OPERATORS = "sk-operator-0123456789"
HELLO: Any = [{"role": "user", "content": "hello to you"}]
ALIASES = """
models:
  fancy: [openai/gpt-real]
  pair: [openai/gpt-first, openai/gpt-second]
  hasty: {targets: [openai/gpt-real], timeout: 1s, fallback_on: []}
"""
BINARY = bytes(range(256)) * 4096
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
FORCED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def provider(hire: Hire) -> Provider:
    return hire()


@pytest.fixture(scope="module")
def gateway(serve: Serve, shipped: Shipped, provider: Provider) -> Gateway:
    text = shipped(openai=provider.url).replace("\nmodels:\n", ALIASES)
    return serve(text, OPENAI_API_KEY=OPERATORS)


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.new_key("--name", "SDK")


@pytest.fixture
def client(gateway: Gateway, key: str, provider: Provider) -> Iterator[OpenAI]:
    """The SDK as it comes, and a provider without a script."""
    provider.forget()
    with OpenAI(base_url=gateway.base_url, api_key=key) as client:
        yield client
    assert [] == provider.faults


# Chat


def test_a_chat_completion(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HELLO)
    assert "hello to you" == answer.choices[0].message.content
    assert answer.usage is not None
    assert (3, 3) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)


def test_a_streamed_chat_completion(client: OpenAI) -> None:
    with client.chat.completions.create(model="echo", messages=HELLO, stream=True) as stream:
        chunks = list(stream)
    said = [chunk.choices[0].delta.content for chunk in chunks]
    assert ["", "hello ", "to ", "you", None] == said
    assert "stop" == chunks[-1].choices[0].finish_reason


def test_a_stream_ends_with_its_usage_for_who_asks_for_it(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *_, last = stream
    assert [] == last.choices
    assert last.usage is not None
    assert 6 == last.usage.total_tokens


@pytest.mark.anyio
async def test_the_asynchronous_client_does_both(gateway: Gateway, key: str) -> None:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=key) as client:
        answer = await client.chat.completions.create(model="echo", messages=HELLO)
        assert "hello to you" == answer.choices[0].message.content
        stream = await client.chat.completions.create(model="echo", messages=HELLO, stream=True)
        async with stream:
            said = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "hello to you" == "".join(said)


def test_a_tool_is_called(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo", messages=HELLO, tools=[WEATHER], tool_choice=FORCED
    )
    assert "tool_calls" == answer.choices[0].finish_reason
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert ("weather", {"city": "hello to you"}) == (
        call.function.name,
        json.loads(call.function.arguments),
    )


def test_a_tool_is_called_in_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="echo", messages=HELLO, tools=[WEATHER], tool_choice=FORCED
    ) as stream:
        answer = stream.get_final_completion()
    [call] = answer.choices[0].message.tool_calls or []
    assert {"city": "hello to you"} == json.loads(call.function.arguments)


def test_an_answer_of_a_given_shape(client: OpenAI) -> None:
    class City(BaseModel):
        name: str

    answer = client.chat.completions.parse(model="echo:json", messages=HELLO, response_format=City)
    assert City(name="hello to you") == answer.choices[0].message.parsed


# What reaches the provider, and what comes back


def recording(gateway: Gateway, key: str, sent: list[bytes]) -> OpenAI:
    """An SDK that notes the bodies it sends."""

    def note(request: Any) -> None:
        sent.append(request.read())

    hooks: Any = {"request": [note]}
    http = openai.DefaultHttpxClient(event_hooks=hooks)
    return OpenAI(base_url=gateway.base_url, api_key=key, http_client=http)


def test_a_body_differs_in_its_model_only(gateway: Gateway, key: str, provider: Provider) -> None:
    provider.forget()
    provider.chat()
    sent: list[bytes] = []
    unheard_of = {"zeta": {"b": 1, "a": [1.0, 1e3, "é\u2028"]}, "model_hint": '"model": "fancy"'}
    with recording(gateway, key, sent) as client:
        client.chat.completions.create(model="fancy", messages=HELLO, extra_body=unheard_of)
    [body] = sent
    assert 1 == body.count(b'"model":"fancy"')
    assert body.replace(b'"model":"fancy"', b'"model":"gpt-real"') == provider.requests[0].body


def test_a_body_whose_model_stays_is_the_same_to_the_byte(
    gateway: Gateway, key: str, provider: Provider
) -> None:
    provider.forget()
    provider.chat()
    sent: list[bytes] = []
    with recording(gateway, key, sent) as client:
        client.chat.completions.create(
            model="gpt-4o-mini", messages=HELLO, temperature=0.1, extra_body={"new": None}
        )
    assert sent == [provider.requests[0].body]


def test_an_answer_is_the_provider_s_to_the_byte(client: OpenAI, provider: Provider) -> None:
    body = b'{ "id":"x","zeta" : [1.0, 1e3],"choices":[{"index":0, "new":{}, "message":' \
        b'{"role":"assistant","content":"hi \\u00e9"},"finish_reason":"stop"}],"object":' \
        b'"chat.completion","created":1,"model":"gpt-real","usage":{"prompt_tokens":1,' \
        b'"completion_tokens":2,"total_tokens":3,"odd":true}}\n'  # fmt: skip
    provider.then(Answer(pieces=[body]))
    answer = client.chat.completions.with_raw_response.create(model="fancy", messages=HELLO)
    assert body == answer.content
    parsed = answer.parse()
    assert {"zeta": [1.0, 1000.0]} == parsed.model_extra
    assert parsed.usage is not None
    assert {"odd": True} == parsed.usage.model_extra


def test_a_stream_is_the_provider_s_to_the_byte(client: OpenAI, provider: Provider) -> None:
    provider.stream("a", "b", gap=0.01)
    with client.chat.completions.with_streaming_response.create(
        model="fancy", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as answer:
        received = b"".join(answer.iter_bytes())
    assert b"".join(chat_events(["a", "b"])) == received


def test_usage_is_always_asked_for_and_shown_to_who_asked(
    client: OpenAI, provider: Provider, gateway: Gateway
) -> None:
    provider.stream("a", "b")
    raw = client.chat.completions.with_raw_response.create(
        model="fancy", messages=HELLO, stream=True
    )
    with raw.parse() as stream:
        chunks = list(stream)
    assert [] == [chunk for chunk in chunks if chunk.usage or not chunk.choices]
    assert {"include_usage": True} == provider.requests[0].json["stream_options"]
    record = gateway.record(raw.headers["x-request-id"])
    assert (9, 2, 0) == (record["input"], record["output"], record["estimated"])


def test_a_provider_sees_the_operator_s_key_and_nothing_of_the_client_s(
    client: OpenAI, provider: Provider, key: str
) -> None:
    provider.chat()
    named = client.with_options(default_headers={"x-secret": "mine"}, organization="org-mine")
    named.chat.completions.create(model="fancy", messages=HELLO)
    headers = provider.requests[0].headers
    assert f"Bearer {OPERATORS}" == headers["authorization"]
    assert key not in str(headers)
    leaked = [n for n in headers if n.startswith(("x-stainless", "x-secret", "openai-org"))]
    assert [] == leaked


# The other operations


def test_embeddings(client: OpenAI) -> None:
    answer = client.embeddings.create(model="echo", input=["one", "two"], dimensions=8)
    assert [8, 8] == [len(one.embedding) for one in answer.data]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert 2 == answer.usage.prompt_tokens


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"echo", "fancy", "gpt-4o"} <= set(names)
    assert "fancy" == client.models.retrieve("fancy").id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert "model_not_found" == caught.value.code


def test_text_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="one two")
    assert "one two" == answer.choices[0].text
    with client.completions.create(model="echo", prompt="one two", stream=True) as stream:
        assert "one two" == "".join(chunk.choices[0].text for chunk in stream)


def test_responses(client: OpenAI) -> None:
    answer = client.responses.create(model="echo", input="one two")
    assert "one two" == answer.output_text
    assert answer.usage is not None
    assert (2, 2) == (answer.usage.input_tokens, answer.usage.output_tokens)


def test_streamed_responses(client: OpenAI, gateway: Gateway) -> None:
    with client.responses.stream(model="echo", input="one two") as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert ["response.created", "response.completed"] == [kinds[0], kinds[-1]]
    assert "one two" == answer.output_text


def test_a_kept_response_is_fetched_and_deleted_where_it_is(
    client: OpenAI, provider: Provider
) -> None:
    provider.json({"id": "resp_1", "object": "response", "output": []})
    assert "resp_1" == client.responses.retrieve("resp_1", include=["file_search_call.results"]).id
    client.responses.delete("resp_1")
    assert [
        "GET /v1/responses/resp_1?include%5B%5D=file_search_call.results",
        "DELETE /v1/responses/resp_1",
    ] == [f"{seen.method} {seen.target}" for seen in provider.requests]


def test_moderations(client: OpenAI, provider: Provider) -> None:
    provider.json({"id": "modr-1", "model": "omni", "results": []})
    assert "modr-1" == client.moderations.create(input="one two", model="omni").id
    assert "/v1/moderations" == provider.requests[0].target
    assert {"input": "one two", "model": "omni"} == provider.requests[0].json


class Slow(io.RawIOBase):
    """A file whose second half is not there before ``gate`` lets it."""

    def __init__(self, size: int, gate: Callable[[], object]) -> None:
        self.size, self.at, self.gate = size, 0, gate
        self.name = "lines.jsonl"

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        size = min(self.size - self.at, size if size >= 0 else self.size)
        if self.at < self.size / 2 <= self.at + size:
            self.gate()
        self.at += size
        return b"x" * size


def test_a_file_is_passed_on_while_it_is_still_being_sent(
    client: OpenAI, provider: Provider
) -> None:
    provider.json({"id": "file-1", "object": "file", "purpose": "batch"})
    size = 8 << 20
    file: Any = Slow(size, lambda: provider.wait(provider.seen()))
    assert "file-1" == client.files.create(file=file, purpose="batch").id
    seen = provider.requests[0]
    assert "/v1/files" == seen.target
    assert seen.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert size == seen.body.count(b"x" * 1024) * 1024
    assert b'name="purpose"\r\n\r\nbatch\r\n' in seen.body


def test_files_are_listed_read_and_deleted(client: OpenAI, provider: Provider) -> None:
    provider.json({"object": "list", "data": [], "has_more": False})
    assert [] == list(client.files.list(limit=2, purpose="batch"))
    provider.then(Answer(headers=(("content-type", "application/octet-stream"),), pieces=[BINARY]))
    assert BINARY == client.files.content("file-1").read()
    provider.json({"id": "file-1", "object": "file", "deleted": True})
    assert client.files.delete("file-1").deleted
    assert [
        "GET /v1/files?limit=2&purpose=batch",
        "GET /v1/files/file-1/content",
        "DELETE /v1/files/file-1",
    ] == [f"{seen.method} {seen.target}" for seen in provider.requests]


def test_speech_comes_as_the_bytes_it_is(client: OpenAI, provider: Provider) -> None:
    pieces = [BINARY[at : at + 65536] for at in range(0, len(BINARY), 65536)]
    provider.then(Answer(headers=(("content-type", "audio/mpeg"),), pieces=pieces, gap=0.001))
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="one two"
    ) as answer:
        assert "audio/mpeg" == answer.headers["content-type"]
        assert BINARY == b"".join(answer.iter_bytes())
    assert "/v1/audio/speech" == provider.requests[0].target


def test_speech_begins_before_its_end_is_there(client: OpenAI, provider: Provider) -> None:
    hold = asyncio.Event()
    provider.then(Answer(headers=(("content-type", "audio/mpeg"),), pieces=[BINARY * 3], hold=hold))
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="one two"
    ) as answer:
        pieces = answer.iter_bytes(1024)
        assert BINARY[:1024] == next(pieces)
        provider.call(hold.set)
        assert len(BINARY) * 3 - 1024 == sum(map(len, pieces))


def test_a_transcription(client: OpenAI, provider: Provider) -> None:
    provider.json({"text": "one two"})
    file = ("a.wav", BINARY, "audio/wav")
    assert "one two" == client.audio.transcriptions.create(model="whisper-1", file=file).text
    assert BINARY in provider.requests[0].body


# Errors


ERRORS: list[tuple[int, type[openai.APIStatusError], int]] = [
    (400, openai.BadRequestError, 1),
    (401, openai.AuthenticationError, 1),
    (403, openai.PermissionDeniedError, 1),
    (404, openai.NotFoundError, 1),
    (408, openai.APIStatusError, 3),
    (409, openai.ConflictError, 3),
    (413, openai.APIStatusError, 1),
    (422, openai.UnprocessableEntityError, 1),
    (429, openai.RateLimitError, 3),
    (500, openai.InternalServerError, 3),
    (502, openai.InternalServerError, 3),
    (503, openai.InternalServerError, 3),
    (504, openai.InternalServerError, 3),
]


@pytest.mark.parametrize(("status", "kind", "tries"), ERRORS)
def test_a_provider_s_error_is_the_error_the_sdk_knows(
    client: OpenAI, provider: Provider, status: int, kind: type[openai.APIStatusError], tries: int
) -> None:
    error = {"message": "As I say.", "type": "of_mine", "param": "p", "code": "c", "more": 1}
    provider.json({"error": error}, status, retry_after_ms="1")
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert status == caught.value.status_code
    assert error == caught.value.body
    assert str(caught.value.request_id).startswith("req_")
    assert tries == len(provider.requests)


def test_a_provider_decides_whether_it_is_tried_again(client: OpenAI, provider: Provider) -> None:
    error = {"error": {"message": "Never mind.", "type": "t"}}
    provider.json(error, 500, x_should_retry="false")
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    assert 1 == len(provider.requests)


def test_the_sdk_does_not_repeat_what_the_gateway_has_tried_everywhere(
    client: OpenAI, provider: Provider
) -> None:
    provider.json({"error": {"message": "Not now.", "type": "t"}}, 500)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="pair", messages=HELLO)
    assert 502 == caught.value.status_code
    assert "false" == caught.value.response.headers["x-should-retry"]
    assert ["gpt-first", "gpt-second"] == [seen.json["model"] for seen in provider.requests]


def test_a_timeout_of_the_provider(client: OpenAI, provider: Provider) -> None:
    provider.chat().then(Answer(delay=60))
    client.chat.completions.create(model="fancy", messages=HELLO)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="hasty", messages=HELLO)
    assert (504, "upstream_timeout") == (caught.value.status_code, caught.value.code)
    provider.wait(provider.seen(2))
    # It may have been billed: it is not sent again, be the connection a used one, nor by the SDK.
    assert 2 == len(provider.requests)


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="fency", messages=HELLO)
    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)
    assert "'fency'" in caught.value.message
    assert "'fancy'" in caught.value.message


def test_a_model_whose_provider_has_no_key_is_unavailable(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=0).chat.completions.create(
            model="claude-sonnet", messages=HELLO
        )
    assert (503, "no_healthy_target") == (caught.value.status_code, caught.value.code)
    assert "anthropic" in caught.value.message


@pytest.mark.parametrize("wrong", ["sk-passy-wrong", "sk-proj-something", "x"])
def test_a_wrong_key_is_an_authentication_error(
    client: OpenAI, provider: Provider, wrong: str
) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key=wrong).chat.completions.create(model="fancy", messages=HELLO)
    assert ("invalid_api_key", "invalid_request_error") == (caught.value.code, caught.value.type)
    assert wrong not in caught.value.message
    assert [] == provider.requests


def test_a_key_may_be_for_some_models_only(client: OpenAI, gateway: Gateway) -> None:
    limited = client.with_options(api_key=gateway.new_key("--models", "echo,gpt-4*"))
    assert {"echo", "gpt-4o"} == {model.id for model in limited.models.list()}
    assert "hi" == (limited.completions.create(model="echo", prompt="hi").choices[0].text)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        limited.chat.completions.create(model="fancy", messages=HELLO)
    assert "model_not_allowed" == caught.value.code


def test_the_sdk_waits_as_long_as_a_rate_limit_says(client: OpenAI, gateway: Gateway) -> None:
    limited = client.with_options(api_key=gateway.new_key("--requests", "1/s"))

    def asked() -> tuple[openai.RateLimitError | None, int]:
        """Three times in a row: how the second one was refused, and how often the third was asked
        again."""
        limited.chat.completions.create(model="echo", messages=HELLO)
        refused = None
        try:
            once = limited.with_options(max_retries=0)
            once.chat.completions.create(model="echo", messages=HELLO)
        except openai.RateLimitError as error:
            refused = error
        answer = limited.chat.completions.with_raw_response.create(model="echo", messages=HELLO)
        return refused, answer.retries_taken

    # In between a busy machine may pass the second that is waited for.
    refused, retries = spared(asked, lambda found: found[0] is not None and found[1] == 1)
    assert refused is not None
    assert 1 == retries
    headers = refused.response.headers
    assert "rate_limit_exceeded" == refused.code
    assert "1" == headers["x-ratelimit-limit-requests"]
    assert "0" == headers["x-ratelimit-remaining-requests"]
    assert 0 < int(headers["retry-after-ms"]) <= 1000


def test_a_body_that_is_too_large_is_refused_as_such(client: OpenAI) -> None:
    huge: Any = [{"role": "user", "content": "x" * (33 << 20)}]
    with pytest.raises(openai.APIStatusError) as caught:
        client.with_options(max_retries=0).chat.completions.create(model="echo", messages=huge)
    assert (413, "request_too_large") == (caught.value.status_code, caught.value.code)


def test_an_unknown_path_is_not_found_in_json(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/nowhere", cast_to=object)
    assert "unknown_url" == caught.value.code


# Streams that do not come to their end


def test_a_stream_that_breaks_off_raises(client: OpenAI, provider: Provider) -> None:
    provider.stream("one ", "two", cut=True, gap=0.01)
    said: list[str | None] = []
    with (
        pytest.raises(openai.APIError) as caught,
        client.chat.completions.create(model="fancy", messages=HELLO, stream=True) as stream,
    ):
        said.extend(chunk.choices[0].delta.content for chunk in stream)
    assert ["", "one ", "two"] == said
    assert "upstream_broken" == caught.value.code
    assert "openai/gpt-real" in caught.value.message


def test_a_stream_with_an_error_in_it_raises(client: OpenAI, provider: Provider) -> None:
    first = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"one"}}]}\n\n'
    error = b'data: {"error":{"message":"Over.","type":"server_error","code":"overloaded"}}\n\n'
    provider.then(Answer(headers=SSE, pieces=[first, error], gap=0.01))
    with (
        pytest.raises(openai.APIError, match="Over") as caught,
        client.chat.completions.create(model="fancy", messages=HELLO, stream=True) as stream,
    ):
        list(stream)
    assert "overloaded" == caught.value.code


def test_a_responses_stream_that_breaks_off_raises(client: OpenAI, provider: Provider) -> None:
    created = {"type": "response.created", "sequence_number": 0, "response": {"id": "r"}}
    piece = b"event: response.created\ndata: " + json.dumps(created).encode() + b"\n\n"
    provider.then(Answer(headers=SSE, pieces=[piece], gap=0.01, cut=True))
    with (
        pytest.raises(openai.APIError) as caught,
        client.responses.create(model="fancy", input="one", stream=True) as stream,
    ):
        assert ["response.created"] == [event.type for event in stream]
    assert "upstream_broken" == caught.value.code


def test_a_client_that_stops_reading_stops_the_provider(
    client: OpenAI, provider: Provider, gateway: Gateway
) -> None:
    first, *rest = chat_events(["one"])
    provider.then(Answer(headers=SSE, pieces=[first, asyncio.Event(), *rest]))
    raw = client.chat.completions.with_raw_response.create(
        model="fancy", messages=HELLO, stream=True
    )
    with raw.parse() as stream:
        assert "" == next(stream).choices[0].delta.content
    provider.wait(provider.requests[0].closed.wait())
    line = gateway.line(raw.headers["x-request-id"])
    assert (499, "client_gone", "DC") == (line["status"], line["outcome"], line["flags"])


def test_a_client_that_does_not_wait_stops_the_provider(client: OpenAI, provider: Provider) -> None:
    provider.then(Answer(delay=60))
    patience = iter(0.3 * 1.5**turn for turn in range(TIMES))

    def left() -> list[Seen]:
        """What the provider had seen by then: nothing, where the machine was busy elsewhere."""
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=next(patience), max_retries=0).chat.completions.create(
                model="fancy", messages=HELLO
            )
        return list(provider.requests)

    seen, *_ = spared(left, bool)
    provider.wait(seen.closed.wait())


# Headers


def test_the_request_id_is_ours(client: OpenAI, provider: Provider, gateway: Gateway) -> None:
    provider.json(completion(), x_request_id="req_of_theirs", openai_processing_ms="12")
    raw = client.chat.completions.with_raw_response.create(model="fancy", messages=HELLO)
    request_id = raw.parse()._request_id
    assert request_id == raw.headers["x-request-id"]
    assert str(request_id).startswith("req_")
    assert "req_of_theirs" == raw.headers["x-upstream-request-id"]
    assert "12" == raw.headers["x-upstream-processing-ms"]
    assert "openai/gpt-real" == gateway.line(str(request_id))["upstream"]


def test_headers_tell_what_happened(client: OpenAI, provider: Provider) -> None:
    provider.json({"error": {"message": "Not now.", "type": "t"}}, 503).chat()
    headers = client.chat.completions.with_raw_response.create(model="pair", messages=HELLO).headers
    assert "openai/gpt-second" == headers["x-passy-upstream"]
    assert "2" == headers["x-passy-attempts"]
    assert "2020-10-01" == headers["openai-version"]
    assert 0 <= int(headers["openai-processing-ms"]) < 10_000
    assert 0 <= int(headers["x-passy-upstream-ms"]) < 10_000
    assert 0 <= float(headers["x-passy-overhead-ms"]) < 10_000
    assert 8 == len(headers["x-passy-config"])
    assert "6000" == headers["x-ratelimit-limit-requests"]
    assert 6000 > int(headers["x-ratelimit-remaining-requests"]) >= 0
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert "10000000" == headers["x-ratelimit-limit-tokens"]


def test_the_cost_of_a_plain_answer_is_told(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="echo", messages=HELLO)
    assert 0 == float(raw.headers["x-passy-cost-usd"])
    assert "echo" == raw.headers["x-passy-upstream"].partition("/")[0]


def test_a_stream_has_the_headers_of_one(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="echo", messages=HELLO, stream=True
    )
    with raw.parse() as stream:
        list(stream)
    assert "text/event-stream" == raw.headers["content-type"].partition(";")[0]
    assert "no-cache" == raw.headers["cache-control"]
    assert "no" == raw.headers["x-accel-buffering"]
    assert "content-length" not in raw.headers


def test_a_base_url_without_its_v1_is_understood(gateway: Gateway, key: str) -> None:
    with OpenAI(base_url=gateway.url, api_key=key) as client:
        assert "hi" == client.completions.create(model="echo", prompt="hi").choices[0].text
        assert "echo" in [model.id for model in client.models.list()]
