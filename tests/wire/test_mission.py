"""What passy takes over from the services before it, row by row: each test names its row.

The routing gateway knew its providers and aliases from two variables and ran without keys; the API
service stood in front of it with keys, limits, organisations' own providers and the books.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from harness.again import spared
from openai import AsyncOpenAI, OpenAI

from passy_proxy import keys
from passy_proxy.attempt import Attempt
from passy_proxy.testing import Answer, Bench, ScriptedUpstream, completion, serving
from passy_proxy.transport.connect import ConnectSettings
from passy_proxy.transport.origin import AllowList
from passy_proxy.upstream import Target

if TYPE_CHECKING:
    from harness.gateway import Gateway, Hire, Provider, Serve, Shipped

HELLO: Any = [{"role": "user", "content": "hello to you"}]
LLAMA_70B = "meta-llama/Meta-Llama-3.1-70B-Instruct"
LLAMA_8B = "meta-llama/Meta-Llama-3.1-8B-Instruct"
STANDARD_KEYS = {
    "OPENAI_API_KEY": "sk-openai",
    "ANTHROPIC_API_KEY": "sk-anthropic",
    "NEBIUS_API_KEY": "sk-nebius",
    "DEEPINFRA_API_KEY": "sk-deepinfra",
}
BARE = """
overload: {loop_lag: 0s}
chains: {default: [access_log, alias, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""
"""A file that says nothing of providers and aliases: those come from the environment."""

# 1. The routing gateway


def provider_of(upstream: Provider, id: str, **more: object) -> dict[str, object]:
    """One element of MINI_LLM_PROVIDERS."""
    return {
        "id": id,
        "name": id.title(),
        "baseUrl": upstream.url,
        "authHeader": "Authorization",
        "authPrefix": "Bearer ",
        "endpoints": {"chat": "/v1/chat/completions", "models": "/v1/models"},
        "models": ["*"],
        **more,
    }


def route_of(alias: str, *targets: str, **more: object) -> dict[str, object]:
    """One element of MINI_LLM_ROUTING; its targets in the order of their priorities."""
    listed = [
        {"provider": provider, "model": f"{provider}-model", "priority": place}
        for place, provider in enumerate(targets, 1)
    ]
    return {"alias": alias, "targets": listed[::-1], **more}


ALL = ["5xx", "4xx", "timeout", "rate_limit"]
ROUTES = [
    route_of("any", "first", "second", "third", fallbackOn=ALL),
    route_of("never", "first", "second"),
    route_of("hasty", "first", "second", "third", fallbackOn=ALL, timeout=1500),
    route_of("hasty-never", "first", "second", timeout=1500),
    route_of("5xx", "first", "second", fallbackOn=["5xx"]),
    route_of("4xx", "first", "second", fallbackOn=["4xx"]),
    route_of("timeout", "first", "second", fallbackOn=["timeout"], timeout=1500),
    route_of("rate_limit", "first", "second", fallbackOn=["rate_limit"]),
    route_of("odd", "odd"),
    route_of("claude", "claude"),
]


class Three:
    """A gateway of the environment's making, and the providers behind it."""

    def __init__(self, hire: Hire, serve: Serve) -> None:
        names = ("first", "second", "third", "odd", "claude", "brief")
        self.providers = {name: hire() for name in names}
        odd: dict[str, object] = {
            "authHeader": "X-Token",
            "authPrefix": "Token ",
            "endpoints": {"chat": "/deep/chat"},
        }
        claude: dict[str, object] = {
            "authHeader": "x-api-key",
            "authPrefix": "",
            "apiVersion": "2023-01-01",
            "endpoints": {"chat": "/below/v1/messages"},
        }
        special = {"odd": odd, "claude": claude, "brief": {"timeout": 400}}
        listed = [provider_of(p, n, **special.get(n, {})) for n, p in self.providers.items()]
        named = {f"{name.upper()}_API_KEY": f"key-of-{name}" for name in self.providers}
        self.gateway = serve(
            BARE,
            MINI_LLM_PROVIDERS=json.dumps(listed),
            MINI_LLM_ROUTING=json.dumps(ROUTES),
            **named,
        )

    def script(self, **answers: Answer) -> None:
        for name, provider in self.providers.items():
            provider.forget()
            if name in answers:
                provider.then(answers[name])

    def ask(self, model: str, **more: object) -> Any:
        body = {"model": model, "messages": HELLO, **more}
        return self.gateway.ask("/v1/chat/completions", body)

    @property
    def asked(self) -> list[str]:
        """The names of those who were asked."""
        return [name for name, provider in self.providers.items() if provider.requests]


@pytest.fixture(scope="module")
def three(hire: Hire, serve: Serve) -> Three:
    return Three(hire, serve)


def answered(text: str = "Hello!") -> Answer:
    return Answer(pieces=[json.dumps(completion(text)).encode()])


def failed(status: int) -> Answer:
    error = {"message": f"I say {status}.", "type": "of_mine", "param": None, "code": "mine"}
    return Answer(status, pieces=[json.dumps({"error": error}).encode()])


SLOW = Answer(delay=60)


def test_provider_registry_a_provider_is_asked_as_it_says(three: Three) -> None:
    three.script(odd=answered())
    assert 200 == three.ask("odd").status
    seen = three.providers["odd"].requests[0]
    assert ("POST", "/deep/chat") == (seen.method, seen.target)
    assert "Token key-of-odd" == seen.headers["x-token"]
    assert "authorization" not in seen.headers
    assert "odd-model" == seen.json["model"]


def test_provider_registry_an_anthropic_provider_has_its_path_and_version(three: Three) -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}], "model": "x"}
    usage = {"input_tokens": 1, "output_tokens": 1}
    body = {"id": "msg_1", "type": "message", "stop_reason": "end_turn", "usage": usage, **message}
    three.script(claude=Answer(pieces=[json.dumps(body).encode()]))
    answer = three.ask("claude")
    assert "Hi" == answer.json["choices"][0]["message"]["content"]
    seen = three.providers["claude"].requests[0]
    assert "/below/v1/messages" == seen.target
    assert ("key-of-claude", "2023-01-01") == (
        seen.headers["x-api-key"],
        seen.headers["anthropic-version"],
    )


def test_provider_registry_a_provider_s_own_timeout_holds(three: Three) -> None:
    three.script(brief=SLOW)
    began = time.monotonic()
    assert 504 == three.ask("brief/its-model").status
    assert 0.2 < time.monotonic() - began < 15


def targets(gateway: Gateway, model: str) -> list[dict[str, Any]]:
    """Who would be asked for a model, by `passy explain`."""
    told = gateway.passy("explain", "--json", "--model", model)
    assert 0 == told.returncode, told.stderr
    found: list[dict[str, Any]] = json.loads(told.stdout)["targets"]
    return found


def test_provider_registry_a_model_is_found_at_the_provider_that_lists_it(
    serve: Serve, hire: Hire
) -> None:
    nowhere = hire()
    listed = [
        provider_of(nowhere, "late", models=["shared", "rare"], priority=2, authHeader=""),
        provider_of(nowhere, "early", models=["shared"], priority=1, authHeader=""),
    ]
    gateway = serve(BARE, start=False, MINI_LLM_PROVIDERS=json.dumps(listed))
    assert ["late/rare"] == [one["target"] for one in targets(gateway, "rare")]
    assert "early/shared" == targets(gateway, "shared")[0]["target"]
    assert ["late/rare"] == [one["target"] for one in targets(gateway, "late/rare")]
    assert [] == targets(gateway, "unlisted")


@pytest.mark.parametrize("variable", ["MINI_LLM_PROVIDERS", "MINI_LLM_ROUTING"])
def test_from_the_environment_bad_json_is_a_clear_error_at_the_start(
    serve: Serve, variable: str
) -> None:
    gateway = serve(BARE, start=False, **{variable: '[\n{"id": "a" "b"}]'})
    refused = gateway.passy("serve", "--listen", "127.0.0.1:0")
    assert 78 == refused.returncode
    assert f"{variable}:2:12: error: not JSON" in refused.stderr


@pytest.mark.parametrize("variable", ["MINI_LLM_PROVIDERS", "MINI_LLM_ROUTING"])
def test_from_the_environment_a_missing_field_is_named_at_the_start(
    serve: Serve, variable: str
) -> None:
    gateway = serve(BARE, start=False, **{variable: '[{"id": "a", "alias": "a"}]'})
    refused = gateway.passy("serve", "--listen", "127.0.0.1:0")
    assert 78 == refused.returncode
    missing = "baseUrl" if variable == "MINI_LLM_PROVIDERS" else "targets"
    assert missing in refused.stderr
    assert variable in refused.stderr


OPENAI_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo")
CLAUDE_MODELS = ("claude-3-5-sonnet-20241022", "claude-3-opus", "claude-3-haiku")
LLAMAS = (LLAMA_70B, LLAMA_8B)
CHAT = "/v1/chat/completions"
STANDARD: list[tuple[str, str, str, str, str, tuple[str, ...]]] = [
    ("openai", "api.openai.com", CHAT, "authorization", "Bearer ", OPENAI_MODELS),
    ("anthropic", "api.anthropic.com", "/v1/messages", "x-api-key", "", CLAUDE_MODELS),
    ("nebius", "api.studio.nebius.ai", CHAT, "authorization", "Bearer ", LLAMAS),
    (
        "deepinfra",
        "api.deepinfra.com",
        "/v1/openai/chat/completions",
        "authorization",
        "Bearer ",
        LLAMAS,
    ),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "host", "path", "header", "prefix", "models"), STANDARD)
async def test_standard_providers_are_there_when_their_key_is_set(
    name: str, host: str, path: str, header: str, prefix: str, models: tuple[str, ...]
) -> None:
    variable = f"{name.upper()}_API_KEY"
    async with Bench(BARE, {variable: "sk-of-mine"}) as bench:
        assert [name] == list(bench.snapshot.upstreams)
        upstream = bench.snapshot.upstreams[name]
        assert ("https", host) == urlsplit(upstream.url)[:2]
        assert models == upstream.models
        ex = bench.exchange({"model": "m", "messages": HELLO})
        ex.request.body = await ex.downstream.body(1 << 20)
        request = Attempt(ex, Target.at(upstream, models[0])).request
    headers = {key.decode(): value.decode() for key, value in request.headers}
    assert path == request.target.decode()
    assert f"{prefix}sk-of-mine" == headers[header]
    version = "2023-06-01" if name == "anthropic" else None
    assert version == headers.get("anthropic-version")
    assert isinstance(request.body, bytes)
    assert models[0] == json.loads(request.body)["model"]


def test_standard_providers_are_not_there_without_a_key(serve: Serve) -> None:
    gateway = serve(BARE, start=False)
    assert [] == targets(gateway, "gpt-4o")


def test_routing_table_targets_come_by_priority_and_time_out_after_thirty_seconds(
    three: Three,
) -> None:
    found = targets(three.gateway, "hasty")
    assert ["first/first-model", "second/second-model", "third/third-model"] == [
        one["target"] for one in found
    ]
    assert [1.5] * 3 == [one["first_byte"] for one in found]
    assert sorted(ALL) == found[0]["fallback_on"]
    assert [30.0, 30.0] == [one["first_byte"] for one in targets(three.gateway, "5xx")]


DEFAULTS = [
    ("llama-70b", ["nebius", "deepinfra"], LLAMA_70B, ["5xx", "rate_limit", "timeout"], 30.0),
    ("llama-8b", ["nebius", "deepinfra"], LLAMA_8B, ["5xx", "timeout"], 30.0),
    ("gpt-4o", ["openai"], "gpt-4o", [], 60.0),
    ("claude-sonnet", ["anthropic"], "claude-3-5-sonnet-20241022", ["5xx"], 60.0),
]


@pytest.mark.parametrize("file", ["bare", "shipped"])
@pytest.mark.parametrize(("alias", "providers", "model", "named", "seconds"), DEFAULTS)
def test_default_routes(  # noqa: PLR0913
    serve: Serve,
    shipped: Shipped,
    file: str,
    alias: str,
    providers: list[str],
    model: str,
    named: list[str],
    seconds: float,
) -> None:
    text = BARE if file == "bare" else shipped()
    found = targets(serve(text, start=False, **STANDARD_KEYS), alias)
    assert [f"{provider}/{model}" for provider in providers] == [one["target"] for one in found]
    assert [(named, seconds)] * len(providers) == [
        (one["fallback_on"], one["first_byte"]) for one in found
    ]


def test_fallback_the_first_target_answers_with_its_own_model(three: Three) -> None:
    three.script(first=answered("from the first"))
    answer = three.ask("any")
    assert "from the first" == answer.json["choices"][0]["message"]["content"]
    assert ["first"] == three.asked
    assert "first-model" == three.providers["first"].requests[0].json["model"]


@pytest.mark.parametrize(
    ("alias", "status"),
    [("5xx", 500), ("5xx", 503), ("4xx", 400), ("4xx", 404), ("4xx", 429), ("rate_limit", 429)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_fallback_a_named_status_leads_to_the_next_target(
    three: Three, alias: str, status: int, stream: bool
) -> None:
    three.script(first=failed(status))
    second = three.providers["second"]
    (second.stream("a") if stream else second.chat())
    answer = three.ask(alias, stream=stream)
    assert (200, "second/second-model") == (answer.status, answer.headers["x-passy-upstream"])
    assert "second-model" == second.requests[0].json["model"]


@pytest.mark.parametrize(
    ("alias", "status"),
    [("never", 500), ("never", 429), ("5xx", 400), ("5xx", 429), ("rate_limit", 500),
     ("rate_limit", 400), ("4xx", 500), ("timeout", 503)],
)  # fmt: skip
def test_fallback_any_other_status_is_returned_as_it_is(
    three: Three, alias: str, status: int
) -> None:
    three.script(first=failed(status))
    answer = three.ask(alias)
    assert (status, failed(status).pieces[0]) == (answer.status, answer.body)
    assert ["first"] == three.asked


def test_fallback_a_timeout_leads_to_the_next_target_when_it_is_named(three: Three) -> None:
    def asked() -> tuple[int, list[str]]:
        three.script(first=SLOW, second=answered())
        return three.ask("timeout").status, three.asked

    wanted = 200, ["first", "second"]
    assert wanted == spared(asked, lambda found: found == wanted)  # The second has 1.5 s, too.


def test_fallback_a_timeout_ends_it_when_it_is_not_named(three: Three) -> None:
    three.script(first=SLOW, second=answered())
    answer = three.ask("hasty-never")
    assert (504, "upstream_timeout") == (answer.status, answer.json["error"]["code"])
    three.providers["first"].wait(three.providers["first"].seen())
    assert ["first"] == three.asked


def test_fallback_all_failed_names_each_provider_and_its_failure(three: Three) -> None:
    def asked() -> Any:
        three.script(first=failed(500), second=SLOW, third=failed(429))
        return three.ask("hasty")

    def kept(answer: Any) -> bool:
        """The two others had answered within 1.5 s."""
        return all(one["status"] for one in answer.json["error"]["attempts"][::2])

    answer = spared(asked, kept)
    error = answer.json["error"]
    assert (502, "provider_error") == (answer.status, error["type"])
    for provider, failure in [("first", "500"), ("second", "in time"), ("third", "429")]:
        [said] = [part for part in error["message"].split(";") if provider in part]
        assert failure in said
    assert ["first", "second", "third"] == [one["provider"] for one in error["attempts"]]
    assert [500, None, 429] == [one["status"] for one in error["attempts"]]


def test_fallback_providers_that_are_away_are_passed_over(serve: Serve, hire: Hire) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        there = hire()
        there.chat("I am here")
        listed = [
            provider_of(there, name, authHeader="", baseUrl=url)
            for name, url in [("away", address), ("gone", address), ("there", there.url)]
        ]
        gateway = serve(
            BARE,
            MINI_LLM_PROVIDERS=json.dumps(listed),
            MINI_LLM_ROUTING=json.dumps([route_of("m", "away", "gone", "there")]),
        )
        answer = gateway.ask("/v1/chat/completions", {"model": "m", "messages": HELLO})
    assert "I am here" == answer.json["choices"][0]["message"]["content"]


def test_unknown_alias_is_named(three: Three) -> None:
    answer = three.ask("no-such-alias")
    assert 404 == answer.status
    assert "no-such-alias" in answer.json["error"]["message"]
    assert "model_not_found" == answer.json["error"]["code"]


# 2. The API service, and Anthropic through chat completions


class Service:
    """The shipped configuration, with all four providers on loopback."""

    def __init__(self, hire: Hire, serve: Serve, shipped: Shipped) -> None:
        names = ("openai", "anthropic", "nebius", "deepinfra")
        self.providers = {name: hire() for name in names}
        text = shipped(**{name: provider.url for name, provider in self.providers.items()})
        self.gateway = serve(text, **STANDARD_KEYS)
        self.key = self.gateway.new_key("--name", "mission")

    def ask(self, model: str, **more: object) -> Any:
        body = {"model": model, "messages": HELLO, **more}
        return self.gateway.ask("/v1/chat/completions", body, authorization=f"Bearer {self.key}")


@pytest.fixture(scope="module")
def running(hire: Hire, serve: Serve, shipped: Shipped) -> Service:
    return Service(hire, serve, shipped)


@pytest.fixture
def service(running: Service) -> Service:
    for provider in running.providers.values():
        provider.forget()
    return running


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


CLAUDE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-3-5-sonnet-20241022",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "max_tokens",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 2},
}


def claude(service: Service) -> OpenAI:
    return OpenAI(base_url=service.gateway.base_url, api_key=service.key)


def test_anthropic_through_chat_completions(service: Service) -> None:
    provider = service.providers["anthropic"]
    provider.json(CLAUDE)
    asked: Any = [{"role": "system", "content": "Be brief."}, *HELLO]
    with claude(service) as client:
        answer = client.chat.completions.create(model="claude-sonnet", messages=asked, stop=["x"])
    assert ("Hello!", "length") == (
        answer.choices[0].message.content,
        answer.choices[0].finish_reason,
    )
    assert answer.usage is not None
    assert (9, 2) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    seen = provider.requests[0]
    assert ("/v1/messages", "sk-anthropic", "2023-06-01") == (
        seen.target,
        seen.headers["x-api-key"],
        seen.headers["anthropic-version"],
    )
    body = seen.json
    assert "claude-3-5-sonnet-20241022" == body["model"]
    assert "Be brief." in json.dumps(body["system"])
    assert ["user"] == [message["role"] for message in body["messages"]]
    assert ["x"] == body["stop_sequences"]
    assert body["max_tokens"] > 0


def test_anthropic_through_chat_completions_streamed(service: Service) -> None:
    start = {**CLAUDE, "content": [], "stop_reason": None}
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    pieces = [
        event("message_start", message=start),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hel"}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "lo!"}),
        event("content_block_stop", index=0),
        event("message_delta", delta=delta, usage={"output_tokens": 2}),
        event("message_stop"),
    ]
    provider = service.providers["anthropic"]
    provider.then(Answer(headers=(("content-type", "text/event-stream"),), pieces=pieces, gap=0.01))
    with (
        claude(service) as client,
        client.chat.completions.create(
            model="claude-sonnet",
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream,
    ):
        chunks = list(stream)
    said = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert ["Hel", "lo!"] == said
    assert ["stop"] == [
        c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason
    ]
    assert chunks[-1].usage is not None
    assert (9, 2) == (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens)


def test_sdks_work_unmodified_on_the_default_routes(service: Service) -> None:
    service.providers["nebius"].then(failed(500))
    service.providers["deepinfra"].chat("from the second")
    with claude(service) as client:
        answer = client.chat.completions.create(model="llama-70b", messages=HELLO)
    assert "from the second" == answer.choices[0].message.content
    assert [LLAMA_70B] == [s.json["model"] for s in service.providers["deepinfra"].requests]
    assert "/v1/openai/chat/completions" == service.providers["deepinfra"].requests[0].target


def test_get_health(service: Service) -> None:
    answer = service.gateway.ask("/health")
    assert (200, b'{"status":"ok"}') == (answer.status, answer.body)
    assert "application/json" == answer.headers["content-type"]


def test_cors_any_origin_may_ask(service: Service) -> None:
    allowed = service.gateway.ask(
        "/v1/chat/completions",
        method="OPTIONS",
        origin="https://app.example",
        access_control_request_method="POST",
        access_control_request_headers="authorization,content-type",
    )
    assert 204 == allowed.status
    assert "*" == allowed.headers["access-control-allow-origin"]
    assert "GET, POST, OPTIONS" == allowed.headers["access-control-allow-methods"]
    named = allowed.headers["access-control-allow-headers"].split(", ")
    assert ["Content-Type", "Authorization"] == named[:2]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/responses/x"])
def test_cors_a_browser_may_read_a_refusal(service: Service, path: str) -> None:
    refused = service.gateway.ask(path, b"{}", method="POST", origin="https://app.example")
    if refused.status == 405:
        refused = service.gateway.ask(path, origin="https://app.example")
    assert (401, "*") == (refused.status, refused.headers["access-control-allow-origin"])


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic dXNlcjpwYXNz", "sk-passy-without"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_401_missing_or_invalid_authorization(
    service: Service, path: str, header: str | None
) -> None:
    body = {"model": "echo", "messages": HELLO} if path.endswith("completions") else None
    headers = {} if header is None else {"authorization": header}
    answer = service.gateway.ask(path, body, **headers)
    assert (401, "invalid_api_key") == (answer.status, answer.json["error"]["code"])
    assert "application/json" == answer.headers["content-type"]


def test_401_comes_before_anything_else_is_looked_at(service: Service) -> None:
    answer = service.gateway.ask("/v1/chat/completions", b"no JSON at all")
    assert 401 == answer.status


def test_post_chat_completions_key_limit_provider_usage(service: Service) -> None:
    service.providers["openai"].chat("one two")
    answer = service.ask("gpt-4o")
    assert "one two" == answer.json["choices"][0]["message"]["content"]
    assert "openai/gpt-4o" == answer.headers["x-passy-upstream"]
    assert "6000" == answer.headers["x-ratelimit-limit-requests"]
    record = service.gateway.record(answer.headers["x-request-id"])
    assert {
        "model": "gpt-4o",
        "upstream": "openai",
        "upstream_model": "gpt-4o",
        "input": 9,
        "output": 2,
        "estimated": 0,
        "status": 200,
        "streamed": 0,
        "route": "POST /v1/chat/completions",
    }.items() <= record.items()
    shown = json.loads(service.gateway.passy("keys", "list", "--json").stdout)
    assert record["key_id"] in [key["id"] for key in shown]


def test_post_chat_completions_streamed_usage_is_recorded_too(service: Service) -> None:
    service.providers["openai"].stream("one ", "two")
    answer = service.ask("gpt-4o", stream=True)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b'"usage":{' not in answer.body.replace(b" ", b"")
    record = service.gateway.record(answer.headers["x-request-id"])
    assert (9, 2, 0, 1) == (
        record["input"],
        record["output"],
        record["estimated"],
        record["streamed"],
    )


def test_rate_limits_are_per_key(service: Service) -> None:
    gateway = service.gateway
    one, other = (gateway.new_key("--requests", "2/min") for _ in range(2))

    def ask(key: str) -> int:
        return gateway.ask(
            "/v1/chat/completions",
            {"model": "echo", "messages": HELLO},
            authorization=f"Bearer {key}",
        ).status

    assert [200, 200, 429] == [ask(one) for _ in range(3)]
    assert 200 == ask(other)


def test_usage_is_recorded_without_delaying_the_answer(service: Service) -> None:
    service.ask("echo")  # The key is known from here on.
    path = service.gateway.folder / ".passy/passy.db"
    with closing(sqlite3.connect(path, timeout=90)) as books:
        books.execute("BEGIN IMMEDIATE")  # Nobody can write now.
        answer = service.ask("echo")
        assert 200 == answer.status
        request_id = answer.headers["x-request-id"]
        found = books.execute("SELECT * FROM usage WHERE id = ?", [request_id]).fetchall()
        assert [] == found
        books.rollback()
    assert 3 == service.gateway.record(request_id)["output"]


def test_get_models_lists_what_the_caller_may_use(service: Service) -> None:
    gateway = service.gateway
    limited = gateway.new_key("--models", "gpt-4o,llama-*")

    def names(key: str) -> set[str]:
        answer = gateway.ask("/v1/models", authorization=f"Bearer {key}")
        assert "list" == answer.json["object"]
        return {model["id"] for model in answer.json["data"]}

    assert {"llama-70b", "llama-8b", "gpt-4o", "claude-sonnet", "echo"} <= names(service.key)
    assert {"gpt-4o", "llama-70b", "llama-8b"} == names(limited)


def chat(ask: Callable[..., Any]) -> Any:
    return ask("/v1/chat/completions", b"{not json")


ERRORS: list[tuple[str, Callable[[Callable[..., Any]], Any], int, str]] = [
    ("bad JSON", chat, 400, "invalid_json"),
    ("unknown path", lambda ask: ask("/v1/nowhere"), 404, "unknown_url"),
    ("root path", lambda ask: ask("/index.html"), 404, "unknown_url"),
    ("wrong method", lambda ask: ask("/v1/chat/completions"), 405, "method_not_allowed"),
    ("no model", lambda ask: ask("/v1/chat/completions", {"model": "?"}), 404, "model_not_found"),
    ("long path", lambda ask: ask("/" + "x" * 10_000), 414, "url_too_long"),
    ("long header", lambda ask: ask("/", x_long="x" * 40_000), 431, "headers_too_large"),
]


@pytest.mark.parametrize(("what", "act", "status", "code"), ERRORS)
def test_errors_are_json_never_html(
    service: Service, what: str, act: Callable[[Callable[..., Any]], Any], status: int, code: str
) -> None:
    def ask(path: str, body: object = None, **headers: str) -> Any:
        key = f"Bearer {service.key}"
        return service.gateway.ask(path, body, authorization=key, accept="text/html", **headers)

    answer = act(ask)
    assert status == answer.status
    assert "application/json" == answer.headers["content-type"]
    assert code == answer.json["error"]["code"]
    assert {"message", "type", "param", "code"} <= answer.json["error"].keys()


def test_errors_are_json_even_for_what_is_no_http(service: Service) -> None:
    port = int(service.gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=90) as wire:
        wire.sendall(b"HELLO WORLD\r\n\r\n")
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/json" in head
    assert "message" in json.loads(body)["error"]


def test_errors_a_provider_s_html_becomes_json(service: Service) -> None:
    html = Answer(503, (("content-type", "text/html"),), [b"<html>cloudy today</html>"])
    service.providers["openai"].then(html)
    answer = service.ask("gpt-4o")
    assert (503, "application/json") == (answer.status, answer.headers["content-type"])
    assert "<" not in answer.json["error"]["message"]


BROKEN = """
from passy_proxy import Filter, hookimpl

class Broken(Filter):
    name = "broken"

    def on_request(self, ex):
        raise RuntimeError("the secret is 1234")

@hookimpl
def passy_filters():
    return [Broken]
"""


def test_errors_an_internal_one_says_no_more_than_its_request_id(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    metadata = tmp_path / "broken-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[passy]\nbroken = broken\n")
    text = BARE.replace("access_log,", "access_log, broken,")
    gateway = serve(text, faulty=True, PYTHONPATH=str(tmp_path))
    answer = gateway.ask("/v1/chat/completions", {"model": "echo", "messages": HELLO})
    request_id = answer.headers["x-request-id"]
    error = answer.json["error"]
    assert (500, "internal_error", request_id) == (
        answer.status,
        error["code"],
        error["request_id"],
    )
    assert request_id in error["message"]
    for leak in ("secret", "1234", "RuntimeError", "broken"):
        assert leak not in answer.body.decode()
    assert "the secret is 1234" in gateway.complaints()


def test_database_is_sqlite_when_there_is_no_database_url(service: Service) -> None:
    with closing(sqlite3.connect(service.gateway.folder / ".passy/passy.db")) as database:
        assert [(1,)] == database.execute(
            "SELECT count(*) FROM keys WHERE name = 'mission'"
        ).fetchall()


def test_database_url_says_where_it_is(serve: Serve, shipped: Shipped, tmp_path: Path) -> None:
    gateway = serve(shipped(), start=False, DATABASE_URL=f"sqlite:///{tmp_path}/other.db")
    gateway.new_key("--name", "elsewhere")
    assert (tmp_path / "other.db").exists()


# Bring your own key: in this process, where loopback may be a tenant's network


OWN = """
stores:
  vault:
    kind: memory
    keys: [{{key: "{key}", organisation: acme}}, {{key: "{stranger}"}}]
    organisations:
      acme:
        credentials: {{shared: sk-acme-at-shared}}
        providers:
          - {{id: own, url: "{own}/v1", models: [gpt-4o], credential: sk-acme-own}}
          - {{id: keyless, url: "{own}/v1", models: [gpt-4o, bare]}}
          - {{id: off, url: "{own}/v1", models: ["*"], status: disabled}}
  books: {{kind: sql, url: "sqlite:///{folder}/books.db"}}
upstreams: {{shared: {{url: "{shared}/v1", credential: sk-operator}}}}
models: {{gpt-4o: [shared/gpt-4o], small: [shared/gpt-4o-mini]}}
chains:
  default:
    - usage: {{ledger: books}}
    - auth: {{directory: vault}}
    - byok: {{vault: vault}}
    - alias
    - fallback
routes: [{{match: POST /v1/chat/completions}}]
"""


class Acme:
    """A gateway with an organisation of its own means, while the block lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own, self.shared = ScriptedUpstream(), ScriptedUpstream()
        self.key, self.stranger = keys.new_key(), keys.new_key()

    async def ask(self, model: str, key: str) -> Any:
        text = OWN.format(
            key=self.key,
            stranger=self.stranger,
            own=self.own.url,
            shared=self.shared.url,
            folder=self.folder,
        )
        async with serving(text, self.folder) as running:
            connector = running.gateway.parts.connector
            connector.settings = ConnectSettings(allow=AllowList.of(["127.0.0.1"]))
            async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key) as client:
                return await client.chat.completions.with_raw_response.create(
                    model=model, messages=HELLO
                )


@pytest.mark.anyio
async def test_byok_an_own_provider_wins_and_is_shown_as_custom(tmp_path: Path) -> None:
    acme = Acme(tmp_path)
    async with acme.own.chat("mine"), acme.shared:
        raw = await acme.ask("gpt-4o", acme.key)
        assert "mine" == raw.parse().choices[0].message.content
        assert "custom-own/gpt-4o" == raw.headers["x-passy-upstream"]
        assert "Bearer sk-acme-own" == acme.own.requests[0].headers["authorization"]
        assert [] == acme.shared.requests
    with closing(sqlite3.connect(tmp_path / "books.db")) as books:
        assert [("custom-own", "acme", "gpt-4o", 9, 1)] == books.execute(
            "SELECT upstream, organisation, model, input, output FROM usage"
        ).fetchall()


@pytest.mark.anyio
async def test_byok_an_own_provider_without_a_key_never_sees_the_operator_s(tmp_path: Path) -> None:
    acme = Acme(tmp_path)
    async with acme.own.chat(), acme.shared:
        raw = await acme.ask("bare", acme.key)
        assert "custom-keyless/bare" == raw.headers["x-passy-upstream"]
        assert "authorization" not in acme.own.requests[0].headers


@pytest.mark.anyio
async def test_byok_a_disabled_provider_leaves_it_to_the_routing_table(tmp_path: Path) -> None:
    acme = Acme(tmp_path)
    async with acme.own, acme.shared.chat():
        raw = await acme.ask("small", acme.key)
        assert "shared/gpt-4o-mini" == raw.headers["x-passy-upstream"]
        assert "Bearer sk-acme-at-shared" == acme.shared.requests[0].headers["authorization"]


@pytest.mark.anyio
async def test_byok_others_use_the_routing_table(tmp_path: Path) -> None:
    acme = Acme(tmp_path)
    async with acme.own, acme.shared.chat():
        raw = await acme.ask("gpt-4o", acme.stranger)
        assert "shared/gpt-4o" == raw.headers["x-passy-upstream"]
        assert "Bearer sk-operator" == acme.shared.requests[0].headers["authorization"]


def test_byok_an_address_of_the_inside_is_refused_as_the_tenant_s_mistake(
    serve: Serve, tmp_path: Path
) -> None:
    key = keys.new_key()
    text = OWN.format(
        key=key,
        stranger=keys.new_key(),
        own="http://127.0.0.1:9",
        shared="http://127.0.0.1:9",
        folder=tmp_path,
    )
    gateway = serve(text)
    body = {"model": "gpt-4o", "messages": HELLO}
    answer = gateway.ask("/v1/chat/completions", body, authorization=f"Bearer {key}")
    error = answer.json["error"]
    assert (502, "provider_error") == (answer.status, error["type"])
    assert "custom-own" in error["message"]
    assert "127.0.0.1" not in answer.body.decode()


def test_get_of_a_route_asks_the_routing_table_with_the_admin_token(
    serve: Serve, shipped: Shipped
) -> None:
    gateway = serve(
        shipped(), PASSY_ADMIN_TOKEN="an-admin-token-for-tests-0123456789", NEBIUS_API_KEY="n" * 20
    )
    url = f"{gateway.admin_url}/admin/routing"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=90)
    refused.value.close()
    assert 401 == refused.value.code
    asked = urllib.request.Request(
        url, headers={"Authorization": "Bearer an-admin-token-for-tests-0123456789"}
    )
    with urllib.request.urlopen(asked, timeout=90) as answer:
        text = answer.read()
    assert b"n" * 20 not in text
    routes = {one["alias"]: one for one in json.loads(text)["routes"]}
    assert ["5xx", "rate_limit", "timeout"] == routes["llama-70b"]["fallbackOn"]
    assert 30_000 == routes["llama-70b"]["timeout"]
