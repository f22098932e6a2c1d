"""Trying a credential: what each step says, in our words and theirs, and what it never shows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from passy_proxy import Credential, CustomProvider
from passy_proxy.testing import Answer, Bench, ScriptedUpstream
from passy_proxy.transport.connect import AllowList, ConnectSettings
from passy_proxy.trial import Step, Trial, likely, listed, trial
from passy_proxy.veil import concealed

pytestmark = pytest.mark.anyio

KEY = "sk-proj-canary-Zq81kLmN0pQrStUv"
CONFIGURATION = """
upstreams:
  openai: {{dialect: openai, url: "{url}/v1", credential: sk-operator}}
  claude: {{dialect: anthropic, url: "{url}", credential: sk-operator}}
routes: []
"""
EMPTY = {"error": {"message": "you must provide a model parameter"}}
MODELS = {"data": [{"id": "text-embedding-3"}, {"id": "gpt-small"}, {"id": "gpt-large"}]}
WRONG = {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key"}}


@dataclass
class Shop:
    """An upstream behind a gateway that lets tenants reach it."""

    upstream: ScriptedUpstream
    bench: Bench

    async def tried(self, name: str = "openai", *models: str, key: str | None = KEY) -> Trial:
        credential = Credential(key, "acme") if key else None
        return await trial(self.bench.snapshot.upstreams[name], credential, models)


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())
        text = CONFIGURATION.format(url=upstream.url)
        yield Shop(upstream, await stack.enter_async_context(Bench(text)))


def by_name(result: Trial) -> dict[str, Step]:
    return {step.name: step for step in result.steps}


async def test_a_good_key_passes_all_three_steps(shop: Shop) -> None:
    shop.upstream.json(EMPTY, 400).json(MODELS).chat("Hi")
    result = await shop.tried()
    assert result.ok
    assert ["authentication", "models", "call"] == [step.name for step in result.steps]
    assert ["ok", "ok", "ok"] == [step.verdict for step in result.steps]
    assert all(step.ms >= 0 for step in result.steps)
    assert ("text-embedding-3", "gpt-small", "gpt-large") == result.models
    assert "3 models." == by_name(result)["models"].message
    assert "gpt-small answered" in by_name(result)["call"].message
    empty, models, call = shop.upstream.requests
    assert ("/v1/chat/completions", b"{}") == (empty.target, empty.body)
    assert ("GET", "/v1/models", b"") == (models.method, models.target, models.body)
    assert ("gpt-small", 1) == (call.json["model"], call.json["max_tokens"])
    shown = {request.headers["authorization"] for request in shop.upstream.requests}
    assert {f"Bearer {KEY}"} == shown


async def test_what_the_upstream_says_stands_beside_our_words(shop: Shop) -> None:
    said = {"error": {"message": "you must provide a model parameter\x07\nnow"}}
    shop.upstream.json(said, 400).json(MODELS).chat("Hi")
    step = by_name(await shop.tried())["authentication"]
    assert ("The key was taken.", 400) == (step.message, step.status)
    assert "you must provide a model parameter  now" == step.theirs


@pytest.mark.parametrize("status", [401, 403])
async def test_K4_a_refused_key_is_said_and_never_shown(shop: Shop, status: int) -> None:
    shop.upstream.json(WRONG, status)
    result = await shop.tried()
    assert not result.ok
    assert ["refused", "skipped", "skipped"] == [step.verdict for step in result.steps]
    assert 1 == len(shop.upstream.requests)
    assert "Incorrect API key provided: [redacted]." == result.steps[0].theirs
    assert KEY not in repr(result)


@pytest.mark.parametrize(
    "echo",
    [
        f"no such key: {KEY}",
        f"no such key: {KEY[:20]}…",
        f"{KEY[8:]} is unknown",
        KEY * 50,
        f"Bearer {KEY}{KEY[5:]}",
        KEY[:-1],
    ],
)
@pytest.mark.parametrize("shape", ["json", "text", "html"])
async def test_K4_an_upstream_that_repeats_the_key_is_redacted(
    shop: Shop, echo: str, shape: str
) -> None:
    body = {"json": f'{{"error": {{"message": "{echo}"}}}}', "text": echo, "html": f"<b>{echo}</b>"}
    for _ in range(3):
        shop.upstream.then(Answer(500, (("content-type", "x/y"),), [body[shape].encode()]))
    result = await shop.tried("openai", "m")
    text = repr(result)
    assert "[redacted]" in text
    for place in range(len(KEY) - 8):
        assert KEY[place : place + 8] not in text


async def test_K4_what_the_operator_sends_with_each_request_is_redacted_too(
    shop: Shop,
) -> None:
    secret = "xtra_of_operator_0123456789"
    upstream = shop.bench.snapshot.upstreams["openai"]
    upstream.headers = ((b"x-extra-token", secret.encode()),)
    upstream.secrets = (secret.encode(),)
    shop.upstream.json({"error": {"message": f"no: {secret} and {KEY}"}}, 401)
    result = await shop.tried()
    assert secret == shop.upstream.requests[0].headers["x-extra-token"]
    assert "no: [redacted] and [redacted]" == result.steps[0].theirs


async def test_a_key_that_is_refused_for_the_call_alone_is_refused(shop: Shop) -> None:
    """Some providers look at the body before they look at the key."""
    shop.upstream.json(EMPTY, 400).json(MODELS).json(WRONG, 401)
    result = await shop.tried()
    assert not result.ok
    assert ["refused", "ok", "refused"] == [step.verdict for step in result.steps]


async def test_a_list_that_is_not_given_does_not_spoil_the_key(shop: Shop) -> None:
    shop.upstream.json(EMPTY, 400).json({"error": {"message": "no"}}, 403).chat("Hi")
    result = await shop.tried("openai", "m-*", "my-model")
    assert result.ok
    assert "unclear" == by_name(result)["models"].verdict
    assert "my-model" == shop.upstream.requests[-1].json["model"]


@pytest.mark.parametrize(("status", "said"), [(429, "limit is used up"), (402, "no credit")])
async def test_a_key_without_room_is_good(shop: Shop, status: int, said: str) -> None:
    shop.upstream.json({"error": {"message": "later"}}, status)
    shop.upstream.json(MODELS).json({"error": {"message": "later"}}, status)
    result = await shop.tried()
    assert result.ok
    assert ["limited", "ok", "limited"] == [step.verdict for step in result.steps]
    assert said in result.steps[0].message


async def test_a_model_that_is_not_there_fails_the_call_and_not_the_key(shop: Shop) -> None:
    missing = {"error": {"message": "The model `m` does not exist"}}
    shop.upstream.json(EMPTY, 400).json(MODELS).json(missing, 404)
    result = await shop.tried("openai", "m")
    assert not result.ok
    assert ["ok", "ok", "failed"] == [step.verdict for step in result.steps]
    assert "m gave no answer." == by_name(result)["call"].message
    assert "does not exist" in by_name(result)["call"].theirs


async def test_a_model_that_counts_otherwise_is_asked_otherwise(shop: Shop) -> None:
    said = {"error": {"message": "Use 'max_completion_tokens' instead of 'max_tokens'."}}
    shop.upstream.json(EMPTY, 400).json(MODELS).json(said, 400).chat("Hi")
    assert (await shop.tried()).ok
    assert 1 == shop.upstream.requests[-1].json["max_completion_tokens"]
    assert "max_tokens" not in shop.upstream.requests[-1].json


async def test_without_a_model_no_call_is_made(shop: Shop) -> None:
    shop.upstream.json(EMPTY, 400).json({"data": []})
    result = await shop.tried("openai", "*")
    assert not result.ok
    assert ("skipped", "No model is known; name one.") == (
        by_name(result)["call"].verdict,
        by_name(result)["call"].message,
    )


async def test_another_dialect_is_tried_in_its_own_words(shop: Shop) -> None:
    refused = {"type": "error", "error": {"type": "invalid_request_error", "message": "empty"}}
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 8, "output_tokens": 1},
    }
    shop.upstream.json(refused, 400).json({"data": [{"id": "claude-x"}]}).json(answer)
    result = await shop.tried("claude")
    assert result.ok, result
    assert "claude-x answered: 9 tokens." == by_name(result)["call"].message
    assert "empty" == by_name(result)["authentication"].theirs
    empty, models, call = shop.upstream.requests
    assert ["/v1/messages", "/v1/models", "/v1/messages"] == [
        empty.target,
        models.target,
        call.target,
    ]
    for request in shop.upstream.requests:
        assert KEY == request.headers["x-api-key"]
        assert "2023-06-01" == request.headers["anthropic-version"]


async def test_an_upstream_that_cannot_be_reached_is_asked_once() -> None:
    async with Bench(CONFIGURATION.format(url="http://127.0.0.1:9")) as bench:
        result = await trial(bench.snapshot.upstreams["openai"], Credential(KEY))
    assert ["failed", "skipped", "skipped"] == [step.verdict for step in result.steps]
    assert "No answer" in result.steps[0].message


@pytest.mark.parametrize(
    "url", ["https://169.254.169.254/v1", "https://10.0.0.1/v1", "https://localhost/v1"]
)
async def test_S5_a_trial_does_not_lead_inside(shop: Shop, url: str) -> None:
    provider = CustomProvider("new", "acme", "x", "openai", url, ("*",))
    with pytest.raises(ValueError, match="allowed"):
        shop.bench.snapshot.connections.custom(provider)


async def test_S5_a_trial_goes_where_tenants_may(shop: Shop) -> None:
    settings = ConnectSettings(allow=AllowList.of(["127.0.0.1"]))
    shop.bench.parts.connector.settings = settings
    shop.upstream.json(EMPTY, 400).json(MODELS).chat("Hi")
    url = f"{shop.upstream.url}/v1"
    own = CustomProvider("new", "acme", "x", "openai", url, ("*",))
    assert (await trial(shop.bench.snapshot.connections.custom(own), Credential(KEY))).ok


async def test_an_upstream_without_a_key_is_shown_none(shop: Shop) -> None:
    shop.upstream.json(EMPTY, 400).json(MODELS).chat("Hi")
    result = await shop.tried(key=None)
    assert result.ok
    assert "was shown no key" in result.steps[0].message
    assert all("authorization" not in request.headers for request in shop.upstream.requests)


def test_of_listed_models_one_that_chats_is_likely() -> None:
    assert "b" == likely(["text-embedding-3", "whisper-1", "b", "c"])
    assert "" == likely(["tts-1"])


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"data":[{"id":"a"},{"id":"b"},{"x":1},7]}', ("a", "b")),
        (b'{"models":[{"name":"a"}]}', ("a",)),
        (b'[{"id":"a"}]', ("a",)),
        (b'["a","b"]', ("a", "b")),
        (b'{"data":{}}', ()),
        (b"<html>", ()),
        (b"7", ()),
    ],
)
def test_lists_of_models_come_in_many_shapes(body: bytes, names: tuple[str, ...]) -> None:
    assert names == listed(body)


def test_no_long_piece_of_a_secret_is_left() -> None:
    assert "a [redacted] b" == concealed(f"a {KEY} b", KEY)
    assert "[redacted]…[redacted]" == concealed(f"{KEY[:12]}…{KEY[-9:]}", KEY)
    assert f"…{KEY[-4:]}" == concealed(f"…{KEY[-4:]}", KEY)
    assert "short" == concealed("short", "short")
    assert "" == concealed("", KEY)
