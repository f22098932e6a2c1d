"""Three requests, walked from the client's socket to the providers' and back."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from passy_proxy import UsageRecord, keys
from passy_proxy.testing import SSE, Answer, Client, ScriptedUpstream, Serving, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task outlives its test, and no socket: what is collected unclosed is an error."""
    yield
    left = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert [] == [task for task in left if "coro=<TestRunner." not in task]  # anyio's own
    gc.collect()


CHAT = "/v1/chat/completions"
KEY = keys.new_key()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


async def until(true: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def config(first: ScriptedUpstream, second: ScriptedUpstream) -> str:
    return f"""
stores:
  state: {{kind: memory}}
  books:
    kind: memory
    keys:
      - {{key: "{KEY}", id: key_walk, organisation: acme, requests: 60/min}}
    organisations:
      acme: {{credentials: {{openai: their-own-credential}}}}
upstreams:
  openai:    {{dialect: openai, url: {first.url}/v1, credential: ours-for-openai}}
  anthropic: {{dialect: anthropic, url: {second.url}, credential: ours-for-anthropic}}
models:
  fast: {{targets: [openai/gpt-4o-mini, anthropic/claude-haiku], fallback_on: [5xx]}}
chains:
  default:
    - usage:      {{ledger: books}}
    - auth:       {{directory: books}}
    - rate_limit: {{counters: state, tokens: 100k/min}}
    - alias
    - byok:       {{vault: books}}
    - fallback
routes: [{{match: POST /v1/chat/completions}}]
"""


def records(site: Serving) -> list[UsageRecord]:
    books: Any = site.gateway.snapshot.stores["books"]
    found: list[UsageRecord] = books.records
    return found


async def ask(client: Client, site: Serving, *, stream: bool = False) -> Any:
    body = {"model": "fast", "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}
    return await client.ask(site.url + CHAT, body, authorization=f"Bearer {KEY}")


def event(name: str, **fields: object) -> bytes:
    """An event of Anthropic's stream."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def begun(*texts: str) -> list[bytes]:
    """The beginning of an answer of Anthropic's, up to these pieces of text."""
    usage = {"input_tokens": 9, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    return [
        event(
            "message_start",
            message={**message, "model": "claude-haiku", "stop_reason": None, "usage": usage},
        ),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
            for text in texts
        ),
    ]


async def test_a_plain_completion(tmp_path: Path, client: Client) -> None:
    async with ScriptedUpstream() as first, ScriptedUpstream() as second:
        first.chat("one two three", model="gpt-4o-mini")
        async with serving(config(first, second), tmp_path) as site:
            asked = await ask(client, site)
            answer = await asked.json()
            await until(lambda: 0 == site.gateway.snapshot.running)
            [record] = records(site)

    assert 200 == asked.status
    assert "one two three" == answer["choices"][0]["message"]["content"]
    assert "openai/gpt-4o-mini" == asked.headers["x-passy-upstream"]
    assert "59" == asked.headers["x-ratelimit-remaining-requests"]
    assert record.id == asked.headers["x-request-id"]
    [seen] = first.requests
    assert "/v1/chat/completions" == seen.target
    assert "gpt-4o-mini" == seen.json["model"]
    assert [{"role": "user", "content": "Hello"}] == seen.json["messages"]
    assert "Bearer their-own-credential" == seen.headers["authorization"]
    assert [] == second.requests
    assert ("ok", 200, "key_walk", "acme") == (
        record.outcome,
        record.status,
        record.key_id,
        record.organisation,
    )
    assert ("fast", "openai", "gpt-4o-mini") == (
        record.model,
        record.upstream,
        record.upstream_model,
    )
    assert (9, 3, False) == (record.input, record.output, record.estimated)
    assert 1 == len(record.attempts)


async def test_a_stream_that_falls_back_and_loses_its_client(
    tmp_path: Path, client: Client
) -> None:
    async with ScriptedUpstream() as first, ScriptedUpstream() as second:
        first.json({"error": {"message": "busy", "type": "server_error"}}, 503)
        never = asyncio.Event()
        second.then(Answer(headers=SSE, pieces=[*begun("Once ", "upon a time"), never]))
        async with serving(config(first, second), tmp_path) as site:
            asked = await ask(client, site, stream=True)
            got = await asked.until(b"upon a time")
            [seen] = second.requests
            asked.leave()
            # A quarter of a second is promised; a busy machine is given two in which this loop
            # turns: all take part in it, so while the machine lets it wait, none can.
            closing = asyncio.ensure_future(seen.closed.wait())
            for _ in range(40):
                await asyncio.wait([closing], timeout=0.05)
            soon = closing.done()
            await closing
            await until(lambda: 0 == site.gateway.snapshot.running)
            [record] = records(site)

    assert 200 == asked.status
    assert "text/event-stream" == asked.headers["content-type"].partition(";")[0]
    assert "anthropic/claude-haiku" == asked.headers["x-passy-upstream"]
    assert "2" == asked.headers["x-passy-attempts"]
    assert b"busy" not in got
    assert b"chat.completion.chunk" in got
    assert soon
    assert "gpt-4o-mini" == first.requests[0].json["model"]
    assert "claude-haiku" == seen.json["model"]
    assert "ours-for-anthropic" == seen.headers["x-api-key"]
    assert "authorization" not in seen.headers
    assert [503, 200] == [attempt.status for attempt in record.attempts]
    assert ("client_gone", True) == (record.outcome, record.estimated)
    assert ("anthropic", "claude-haiku") == (record.upstream, record.upstream_model)
    assert 0 < record.output < 9


async def test_a_request_over_its_limit_reaches_neither_vault_nor_provider(
    tmp_path: Path, client: Client
) -> None:
    async with ScriptedUpstream() as first, ScriptedUpstream() as second:
        first.chat("one")
        text = config(first, second).replace("60/min", "1/min")
        async with serving(text, tmp_path) as site:
            await (await ask(client, site)).rest()
            vault: Any = site.gateway.snapshot.stores["books"]
            asked_of_vault: list[object] = []
            vault.credential = vault.providers = asked_of_vault.append
            refused = await ask(client, site)
            answer = await refused.json()
            await until(lambda: 0 == site.gateway.snapshot.running)
            [_, record] = records(site)

    assert 429 == refused.status
    assert "rate_limit_exceeded" == answer["error"]["code"]
    assert "requests" in answer["error"]["message"]
    assert "0" == refused.headers["x-ratelimit-remaining-requests"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [] == asked_of_vault
    assert (1, 0) == (len(first.requests), len(second.requests))
    assert ("rate_limit_exceeded", 429, 0, 0) == (
        record.outcome,
        record.status,
        record.input,
        record.output,
    )
    assert () == record.attempts
