"""The echo: every API it speaks, and every way in which it goes wrong."""

from __future__ import annotations

import asyncio
import json
import struct
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse, ModerationCreateResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from passy_plugins.echo import NAMES, Echo
from passy_plugins.echo_question import Instance, words
from passy_proxy.sse import Decoder
from passy_proxy.transport import Leg, Timeouts, TransportError, UpstreamRequest

pytestmark = pytest.mark.anyio

QUICK = Echo.Settings(head_pause="1ms", word_pause="1ms")
Json = Any

NOW = 1_800_000_000
HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello big world"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city", "days"],
        },
    },
}


async def ask(path: str, body: Json = None, method: str = "POST", **more: Json) -> Leg:
    request = UpstreamRequest(
        method, path.encode(), [], json.dumps({} if body is None else body).encode(), **more
    )
    return await Echo(QUICK, lambda: float(NOW)).open(request)


async def answer(path: str, body: Json = None, **more: Json) -> Json:
    leg = await ask(path, body, **more)
    assert 200 == leg.status
    assert leg.complete
    assert (b"content-type", b"application/json") in leg.headers
    return json.loads(await leg.read_all(1 << 20))


async def events(path: str, body: Json) -> list[Json]:
    """The messages of a stream: JSON, or the end marker as text."""
    leg = await ask(path, {**body, "stream": True})
    assert 200 == leg.status
    decoder = Decoder()
    said = decoder.feed(await leg.read_all(1 << 20)) + decoder.finish()
    return [m.data.decode() if m.data == b"[DONE]" else json.loads(m.data) for m in said]


async def test_a_chat_is_answered_with_the_last_thing_the_user_said() -> None:
    said = await answer("/chat/completions", {"model": "echo", "messages": HELLO})
    assert "Hello big world" == said["choices"][0]["message"]["content"]
    assert "stop" == said["choices"][0]["finish_reason"]
    assert ("echo", NOW, "chat.completion") == (said["model"], said["created"], said["object"])
    assert (5, 3, 8) == tuple(
        said["usage"][f"{x}_tokens"] for x in ("prompt", "completion", "total")
    )


async def test_the_same_request_gets_the_same_id_and_another_one_another() -> None:
    bodies = [{"model": "echo", "messages": HELLO}] * 2 + [{"model": "echo", "messages": HELLO[1:]}]
    ids = [(await answer("/chat/completions", body))["id"] for body in bodies]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


@pytest.mark.parametrize("asked", [True, False])
async def test_a_stream_comes_word_by_word_and_tells_usage_when_asked(asked: bool) -> None:
    body = {"model": "echo", "messages": HELLO, "stream_options": {"include_usage": asked}}
    said = await events("/chat/completions", body)
    assert "[DONE]" == said.pop()
    if asked:
        assert 3 == said.pop()["usage"]["completion_tokens"]
    deltas = [chunk["choices"][0]["delta"] for chunk in said]
    assert {"role": "assistant", "content": ""} == deltas[0]
    assert ["Hello ", "big ", "world"] == [delta["content"] for delta in deltas[1:-1]]
    assert "stop" == said[-1]["choices"][0]["finish_reason"]
    assert 1 == len({chunk["id"] for chunk in said})


async def test_streams_arrive_in_pieces() -> None:
    leg = await ask("/chat/completions", {"model": "echo", "messages": HELLO, "stream": True})
    assert not leg.complete
    first = await leg.read()
    assert b'"role"' in first
    assert b"world" not in first
    leg.close()
    assert b"" == await leg.read()


async def test_content_parts_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    body = {"model": "echo", "messages": [{"role": "user", "content": parts}]}
    assert "a" == (await answer("/chat/completions", body))["choices"][0]["message"]["content"]


async def test_the_limit_on_tokens_is_kept() -> None:
    body = {"model": "echo", "messages": HELLO, "max_tokens": 2}
    said = await answer("/chat/completions", body)
    choice = said["choices"][0]
    assert ("Hello big ", "length") == (choice["message"]["content"], choice["finish_reason"])
    assert 2 == said["usage"]["completion_tokens"]


async def test_completions_are_spoken() -> None:
    body = {"model": "echo", "prompt": "one two"}
    assert "one two" == (await answer("/completions", body))["choices"][0]["text"]
    said = await events("/completions", {**body, "stream_options": {"include_usage": True}})
    assert "[DONE]" == said[-1]
    assert 2 == said[-2]["usage"]["completion_tokens"]
    assert "one two" == "".join(chunk["choices"][0]["text"] for chunk in said[:-2])


async def test_responses_are_spoken() -> None:
    body = {"model": "echo", "instructions": "Be kind.", "input": "one two"}
    said = await answer("/responses", body)
    assert "one two" == said["output"][0]["content"][0]["text"]
    assert (4, 2) == (said["usage"]["input_tokens"], said["usage"]["output_tokens"])
    streamed = await events("/responses", body)
    kinds = [event["type"] for event in streamed]
    assert "response.created" == kinds[0]
    assert "response.completed" == kinds[-1]
    assert list(range(len(kinds))) == [event["sequence_number"] for event in streamed]
    deltas = [e["delta"] for e in streamed if e["type"] == "response.output_text.delta"]
    assert ["one ", "two"] == deltas
    assert said["usage"] == streamed[-1]["response"]["usage"]


async def test_responses_call_tools_with_named_events() -> None:
    tool = {"type": "function", **TOOL["function"]}
    body = {"model": "echo", "input": "Rome", "tools": [tool], "tool_choice": "required"}
    streamed = await events("/responses", body)
    done = next(e for e in streamed if e["type"] == "response.function_call_arguments.done")
    assert {"city": "Rome", "days": 1} == json.loads(done["arguments"])
    assert "function_call" == streamed[-1]["response"]["output"][0]["type"]


async def test_anthropics_messages_are_spoken() -> None:
    body = {"model": "echo", "max_tokens": 9, "system": "Be kind.", "messages": HELLO[1:]}
    said = await answer("/v1/messages?beta=true", body)
    assert [{"type": "text", "text": "Hello big world"}] == said["content"]
    assert ("end_turn", 5, 3) == (
        said["stop_reason"],
        said["usage"]["input_tokens"],
        said["usage"]["output_tokens"],
    )
    streamed = await events("/v1/messages", body)
    assert [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ] == [event["type"] for event in streamed]
    assert {"output_tokens": 3} == streamed[-2]["usage"]
    assert {"input_tokens": 5} == await answer("/v1/messages/count_tokens", body)


async def test_embeddings_depend_on_the_text_alone() -> None:
    body = {"model": "echo", "input": ["a b", "c"], "dimensions": 8}
    said = await answer("/embeddings", body)
    one, two = (item["embedding"] for item in said["data"])
    assert 8 == len(one)
    assert one != two
    assert 1 == pytest.approx(sum(x * x for x in one))
    assert {"prompt_tokens": 3, "total_tokens": 3} == said["usage"]
    packed = await answer("/embeddings", {**body, "input": "a b", "encoding_format": "base64"})
    floats = struct.unpack("<8f", b64decode(packed["data"][0]["embedding"]))
    assert one == pytest.approx(floats)
    numbers = await answer("/embeddings", {"model": "echo", "input": [[1, 2, 3], [4]]})
    assert (2, 4) == (len(numbers["data"]), numbers["usage"]["prompt_tokens"])


async def test_nothing_is_flagged() -> None:
    said = await answer("/moderations", {"model": "echo", "input": ["a", "b"]})
    assert [False, False] == [result["flagged"] for result in said["results"]]


async def test_models_are_listed() -> None:
    said = await answer("/v1/models", method="GET")
    assert list(NAMES) == [model["id"] for model in said["data"]]
    assert "echo:cut" == (await answer("/models/echo:cut", method="GET"))["id"]
    assert 404 == (await ask("/models/gpt-4", method="GET")).status
    assert 404 == (await ask("/files", method="GET")).status


async def failed(path: str, body: Json) -> tuple[int, Json, dict[bytes, bytes]]:
    leg = await ask(path, body)
    return leg.status, json.loads(await leg.read()), dict(leg.headers)


async def test_faults_have_the_callers_error_shape() -> None:
    status, said, headers = await failed(
        "/chat/completions", {"model": "echo:429", "messages": HELLO}
    )
    assert (429, "rate_limit_error") == (status, said["error"]["type"])
    assert b"1" == headers[b"retry-after"]
    status, said, _ = await failed("/chat/completions", {"model": "echo:500", "messages": HELLO})
    assert (500, "server_error") == (status, said["error"]["type"])
    status, said, _ = await failed("/v1/messages", {"model": "echo:500", "messages": HELLO})
    assert (500, "error", "api_error") == (status, said["type"], said["error"]["type"])


async def test_an_unknown_variant_is_told_what_there_is() -> None:
    status, said, _ = await failed("/chat/completions", {"model": "echo:x", "messages": HELLO})
    assert (404, "model_not_found") == (status, said["error"]["code"])
    assert all(name in said["error"]["message"] for name in NAMES)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", {"model": "echo"}, "messages"),
        ("/chat/completions", {"messages": HELLO}, "model"),
        ("/chat/completions", [], None),
        ("/completions", {"model": "echo", "prompt": []}, "prompt"),
        ("/embeddings", {"model": "echo"}, "input"),
        ("/embeddings", {"model": "echo", "input": "a", "dimensions": 0}, "dimensions"),
    ],
)
async def test_a_bad_request_is_refused(path: str, body: Json, param: str | None) -> None:
    status, said, _ = await failed(path, body)
    assert 400 == status
    if param:
        assert param == said["error"]["param"]


async def test_an_unknown_path_is_refused() -> None:
    status, said, _ = await failed("/audio/speech", {"model": "echo"})
    assert (404, "unknown_url") == (status, said["error"]["code"])


@pytest.mark.parametrize("streamed", [True, False])
async def test_echo_cut_breaks_off_in_mid_answer(streamed: bool) -> None:
    body = {"model": "echo:cut", "messages": HELLO, "stream": streamed}
    leg = await ask("/chat/completions", body)
    assert 200 == leg.status
    assert b"" != await leg.read()
    assert not leg.complete
    with pytest.raises(TransportError) as caught:
        await leg.read_all(1 << 20)
    assert ("broken", True) == (caught.value.kind, caught.value.sent)


async def test_echo_slow_answers_in_the_end() -> None:
    said = await events("/chat/completions", {"model": "echo:slow", "messages": HELLO})
    assert "[DONE]" == said[-1]


async def test_echo_slow_runs_into_timeouts() -> None:
    body = {"model": "echo:slow", "messages": HELLO, "stream": True}
    with pytest.raises(TransportError) as caught:
        await ask("/chat/completions", body, timeouts=Timeouts(first_byte=0.0))
    assert ("timeout", "first_byte") == (caught.value.kind, caught.value.phase)
    leg = await ask("/chat/completions", body, timeouts=Timeouts(idle=0.0))
    with pytest.raises(TransportError) as caught:
        await leg.read()
    assert ("timeout", "idle") == (caught.value.kind, caught.value.phase)


FORCED = {"type": "function", "function": {"name": "weather"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "sunny"}


@pytest.mark.parametrize(
    ("model", "more", "called"),
    [
        ("echo", {"tools": [TOOL]}, False),
        ("echo", {"tools": [TOOL], "tool_choice": "auto"}, False),
        ("echo", {"tools": [TOOL], "tool_choice": "required"}, True),
        ("echo", {"tools": [TOOL], "tool_choice": FORCED}, True),
        ("echo", {"tool_choice": "required"}, False),
        ("echo:tool", {"tools": [TOOL]}, True),
        ("echo:tool", {"tools": [TOOL], "tool_choice": "none"}, False),
        ("echo:tool", {}, False),
        ("echo:tool", {"tools": [TOOL], "messages": [*HELLO, RESULT]}, False),
        ("echo", {"tools": [TOOL], "tool_choice": "required", "messages": [RESULT]}, False),
    ],
)
async def test_a_tool_is_called_only_where_it_is_forced_or_asked_for(
    model: str, more: dict[str, Any], called: bool
) -> None:
    body = {"model": model, "messages": HELLO, **more}
    choice = (await answer("/chat/completions", body))["choices"][0]
    assert called == ("tool_calls" in choice["message"])
    assert called == (choice["finish_reason"] == "tool_calls")
    if called:
        function = choice["message"]["tool_calls"][0]["function"]
        assert "weather" == function["name"]
        assert {"city": "Hello big world", "days": 1} == json.loads(function["arguments"])


async def test_the_result_of_a_tool_is_echoed() -> None:
    body = {"model": "echo:tool", "tools": [TOOL], "messages": [*HELLO, RESULT]}
    assert "sunny" == (await answer("/chat/completions", body))["choices"][0]["message"]["content"]


async def test_a_streamed_tool_call_adds_up() -> None:
    body = {"model": "echo:tool", "tools": [TOOL], "messages": HELLO}
    said = await events("/chat/completions", body)
    calls = [
        call for chunk in said[:-1] for call in chunk["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert {"id", "index", "type", "function"} == set(calls[0])
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert {"city": "Hello big world", "days": 1} == json.loads(arguments)
    assert "tool_calls" == said[-2]["choices"][0]["finish_reason"]


async def test_anthropics_tools_are_called() -> None:
    tool = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
    body = {"model": "echo", "messages": HELLO[1:], "tools": [tool], "tool_choice": {"type": "any"}}
    said = await answer("/v1/messages", body)
    assert ("tool_use", {"city": "Hello big world", "days": 1}) == (
        said["stop_reason"],
        said["content"][0]["input"],
    )
    result = {"role": "user", "content": [{"type": "tool_result", "content": "sunny"}]}
    said = await answer("/v1/messages", {**body, "messages": [*HELLO[1:], result]})
    assert "sunny" == said["content"][0]["text"]
    streamed = await events("/v1/messages", body)
    partial = [e["delta"]["partial_json"] for e in streamed if e["type"] == "content_block_delta"]
    assert {"city": "Hello big world", "days": 1} == json.loads("".join(partial))


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "hi"),
        ({"type": "string", "minLength": 5}, "hi..."),
        ({"type": "string", "maxLength": 1}, "h"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 7}, 7),
        ({"type": "number", "minimum": 2.5}, 2.5),
        ({"type": "integer", "exclusiveMinimum": 2}, 3),
        ({"type": "integer", "maximum": -4}, -4),
        ({"type": ["boolean", "null"]}, False),
        ({"type": "null"}, None),
        ({"type": "array", "items": {"type": "boolean"}}, []),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, 3),
        ({"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}, 0),
        ({"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}, {"a": "hi"}),
    ],
)
def test_an_instance_is_valid_and_small(schema: dict[str, Any], value: object) -> None:
    assert value == Instance(schema, "hi").value()


def test_a_schema_that_holds_itself_ends() -> None:
    node = {"properties": {"next": {"$ref": "#"}}, "required": ["next"], "type": "object"}
    assert "next" in Instance(node, "hi").value()


DEEP: Json = json.loads("[" * 300 + "]" * 300)
WIDE = {
    "properties": {str(name): {"$ref": "#"} for name in range(50)},
    "required": [str(name) for name in range(50)],
}


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/chat/completions", {"response_format": {"json_schema": {"schema": {"const": DEEP}}}}),
        ("/v1/messages", {"output_config": {"format": {"schema": {"enum": [DEEP]}}}}),
        ("/chat/completions", {"response_format": {"json_schema": {"schema": WIDE}}}),
        ("/embeddings", {"input": [DEEP]}),
        ("/embeddings", {"input": ["a"] * 4096, "dimensions": 4096}),
        ("/moderations", {"input": ["a"] * 100_000}),
    ],
    ids=["deep", "deep-enum", "wide", "deep-input", "many-numbers", "many-inputs"],
)
async def test_S9_what_would_have_no_end_is_refused(path: str, more: dict[str, Json]) -> None:
    asked = await ask(path, {"model": "echo:json", "messages": HELLO, **more})
    assert 400 == asked.status


def test_S9_a_text_is_no_longer_than_it_must_be() -> None:
    said = Instance({"type": "string", "minLength": 10**12}, "hi").value()
    assert 10_000 == len(said)
    many = Instance({"type": "array", "items": {"type": "string"}, "minItems": 90}, "x" * 9_000)
    with pytest.raises(ValueError, match="followed"):
        many.value()


async def test_echo_json_honours_the_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for path, more in (
        ("/chat/completions", {"response_format": {"json_schema": {"schema": schema}}}),
        ("/chat/completions", {"output_config": {"format": {"schema": schema}}}),
    ):
        said = await answer(path, {"model": "echo:json", "messages": HELLO, **more})
        assert {"n": 0} == json.loads(said["choices"][0]["message"]["content"])
    said = await answer("/chat/completions", {"model": "echo:json", "messages": HELLO})
    assert {"echo": "Hello big world"} == json.loads(said["choices"][0]["message"]["content"])


CHAT = {"model": "echo", "messages": HELLO}
CALLED = {**CHAT, "model": "echo:tool", "tools": [TOOL]}
NATIVE = {"model": "echo", "max_tokens": 9, "messages": HELLO[1:]}
NATIVE_TOOL = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
PROMPT = {"model": "echo", "prompt": "a b"}
INPUT = {"model": "echo", "input": "a b"}


@pytest.mark.parametrize(
    ("path", "body", "plain", "streamed"),
    [
        ("/chat/completions", CHAT, ChatCompletion, ChatCompletionChunk),
        ("/chat/completions", CALLED, ChatCompletion, ChatCompletionChunk),
        ("/completions", PROMPT, Completion, None),
        ("/responses", INPUT, Response, ResponseStreamEvent),
        (
            "/responses",
            {**INPUT, "tools": [{"type": "function", **TOOL["function"]}], "model": "echo:tool"},
            Response,
            ResponseStreamEvent,
        ),
        ("/v1/messages", NATIVE, Message, RawMessageStreamEvent),
        (
            "/v1/messages",
            {**NATIVE, "tools": [NATIVE_TOOL], "model": "echo:tool"},
            Message,
            RawMessageStreamEvent,
        ),
        ("/embeddings", INPUT, CreateEmbeddingResponse, None),
        ("/moderations", INPUT, ModerationCreateResponse, None),
        ("/messages/count_tokens", NATIVE, MessageTokensCount, None),
    ],
)
async def test_the_sdks_types_accept_every_shape(
    path: str, body: Json, plain: Json, streamed: Json
) -> None:
    TypeAdapter(plain).validate_python(await answer(path, body))
    if streamed is not None:
        adapter = TypeAdapter(streamed)
        said = await events(path, {**body, "stream_options": {"include_usage": True}})
        for event in said:
            if event not in ("[DONE]", {"type": "ping"}):
                adapter.validate_python(event)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "function", "name", "parameters", "content", "text", "properties"]
            )
            | st.sampled_from(["required", "enum", "items", "anyOf", "allOf", "$ref", "format"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
MEMBERS = (
    "messages",
    "input",
    "prompt",
    "tools",
    "tool_choice",
    "response_format",
    "text",
    "stream",
)
PATHS = ("/chat/completions", "/completions", "/responses", "/v1/messages", "/embeddings")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(PATHS),
    st.sampled_from(["echo", "echo:tool", "echo:json"]),
    st.dictionaries(st.sampled_from(MEMBERS), JUNK, max_size=4),
)
def test_no_body_is_more_than_refused(path: str, model: str, more: dict[str, Json]) -> None:
    body = {"messages": HELLO, "input": "a", "prompt": "a", "tools": [TOOL], **more, "model": model}
    leg = asyncio.run(ask(path, body))
    assert leg.status in (200, 400)


def test_words_join_to_the_text() -> None:
    text = "  a b\n\nc\u00a0d  "
    assert text == "".join(words(text))


async def test_a_body_in_pieces_is_read() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model":"echo",'
        yield b'"input":"a"}'

    leg = await Echo(QUICK).open(UpstreamRequest("POST", b"/embeddings", [], pieces()))
    assert 200 == leg.status


async def test_an_answer_beyond_the_limit_is_an_error() -> None:
    leg = await ask("/chat/completions", {"model": "echo", "messages": HELLO})
    with pytest.raises(TransportError) as caught:
        await leg.read_all(10)
    assert "protocol" == caught.value.kind


async def test_requests_are_counted() -> None:
    echo = Echo(QUICK)
    await echo.open(UpstreamRequest("GET", b"/models", []))
    assert 1 == echo.stats()["opened"]
    await echo.aclose()


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError):
        Echo.Settings(pause="1s")  # type: ignore[call-arg]
