"""A client that leaves takes its upstream connection with it, whenever that is."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from passy_proxy.testing import (
    SSE,
    Answer,
    Client,
    ScriptedUpstream,
    Serving,
    chat_events,
    completion,
    serving,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task outlives its test, and no socket: what is collected unclosed is an error."""
    yield
    left = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert [] == [task for task in left if "coro=<TestRunner." not in task]  # anyio's own
    gc.collect()


SOON = 2.0
"""Seconds in which this process runs. The promise is a quarter of one; a busy machine is given
more."""


def config(upstream: ScriptedUpstream) -> str:
    return f"""
upstreams: {{one: {{url: {upstream.url}/v1, credential: a-credential}}}}
models: {{m: [one/real]}}
chains:
  default: [usage, alias, fallback]
  through: [usage, direct: {{upstream: one}}]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: "* /v1/files*", chain: through, body: stream, root: /v1}}
"""


STOCK = [{}, {"http": "h11"}]


@pytest.fixture(params=STOCK, ids=["edge", "stock"])
def stock(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Our own edge, and uvicorn's protocol on h11."""
    settings: dict[str, Any] = request.param
    return settings


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


async def within(happening: Awaitable[Any], seconds: float = 60.0) -> Any:
    async with asyncio.timeout(seconds):
        return await happening


async def soon(happening: Awaitable[Any]) -> None:
    """Within `SOON`. All take part in this loop: while the machine lets it wait, none can."""
    waiting = asyncio.ensure_future(happening)
    for _ in range(40):
        await asyncio.wait([waiting], timeout=SOON / 40)
        if waiting.done():
            return
    waiting.cancel()
    raise AssertionError("it never came")


async def until(true: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def outcome(site: Serving) -> str:
    [record] = site.gateway.snapshot.stores["memory"].records
    return str(record.outcome)


async def test_while_uploading(tmp_path: Path, client: Client, stock: dict[str, Any]) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.json({})
        async with serving(config(upstream), tmp_path, **stock) as site:
            asked = await client.send(f"{site.url}/v1/files", b"half", content_length="8")
            seen = await within(upstream.seen())
            await until(lambda: b"half" == seen.body)
            asked.leave()
            await soon(seen.closed.wait())
            await until(lambda: 0 == site.gateway.snapshot.running)
            assert "client_gone" == outcome(site)
        assert not seen.whole.is_set()


async def test_while_a_body_that_is_read_first_comes(
    tmp_path: Path, client: Client, stock: dict[str, Any]
) -> None:
    async with (
        ScriptedUpstream() as upstream,
        serving(config(upstream), tmp_path, **stock) as site,
    ):
        asked = await client.send(f"{site.url}/v1/chat/completions", b"{", content_length="8")
        await until(lambda: 1 == site.gateway.snapshot.running)
        asked.leave()
        await until(lambda: 0 == site.gateway.snapshot.running)
        assert "client_gone" == outcome(site)
        assert [] == upstream.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["leave", "reset"])
async def test_before_the_head(
    tmp_path: Path, client: Client, stock: dict[str, Any], stream: bool, how: str
) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.then(Answer(delay=3600))
        async with serving(config(upstream), tmp_path, **stock) as site:
            body = {"model": "m", "messages": [], "stream": stream}
            asked = await client.send(f"{site.url}/v1/chat/completions", body)
            seen = await within(upstream.seen())
            await within(seen.whole.wait())
            getattr(asked, how)()
            await soon(seen.closed.wait())
            await until(lambda: 0 == site.gateway.snapshot.running)
            assert "client_gone" == outcome(site)


async def test_in_the_middle_of_a_plain_answer(
    tmp_path: Path, client: Client, stock: dict[str, Any]
) -> None:
    whole = json.dumps(completion()).encode()
    async with ScriptedUpstream() as upstream:
        upstream.then(Answer(pieces=[whole[:50]], hold=asyncio.Event()))
        async with serving(config(upstream), tmp_path, **stock) as site:
            asked = await client.send(
                f"{site.url}/v1/chat/completions", {"model": "m", "messages": []}
            )
            seen = await within(upstream.seen())
            await within(seen.whole.wait())
            asked.leave()
            await soon(seen.closed.wait())
            await until(lambda: 0 == site.gateway.snapshot.running)
            assert "client_gone" == outcome(site)


@pytest.mark.parametrize("how", ["leave", "reset"])
async def test_in_the_middle_of_a_stream(
    tmp_path: Path, client: Client, stock: dict[str, Any], how: str
) -> None:
    async with ScriptedUpstream() as upstream:
        events = chat_events(["one ", "two "])[:3]
        upstream.then(Answer(headers=SSE, pieces=events, hold=asyncio.Event()))
        async with serving(config(upstream), tmp_path, **stock) as site:
            body = {"model": "m", "messages": [], "stream": True}
            asked = await client.ask(f"{site.url}/v1/chat/completions", body)
            assert 200 == asked.status
            await asked.until(b"two")
            getattr(asked, how)()
            await soon(upstream.requests[0].closed.wait())
            await until(lambda: 0 == site.gateway.snapshot.running)
            assert "client_gone" == outcome(site)


async def test_in_a_large_answer_that_is_relayed_as_it_comes(
    tmp_path: Path, client: Client, stock: dict[str, Any]
) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.then(Answer(pieces=[b"x" * 100_000] * 12, hold=asyncio.Event()))
        async with serving(config(upstream), tmp_path, **stock) as site:
            asked = await client.ask(f"{site.url}/v1/files/large/content", method="GET")
            await asked.until(b"x" * 1000)
            asked.leave()
            await soon(upstream.requests[0].closed.wait())
            await until(lambda: 0 == site.gateway.snapshot.running)
            assert "client_gone" == outcome(site)


async def test_a_client_that_leaves_after_its_answer_has_missed_nothing(
    tmp_path: Path, client: Client, stock: dict[str, Any]
) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.chat("Hello!")
        async with serving(config(upstream), tmp_path, **stock) as site:
            body = {"model": "m", "messages": []}
            asked = await client.ask(f"{site.url}/v1/chat/completions", body)
            await asked.rest()
            asked.reset()
            await until(lambda: 0 == site.gateway.snapshot.running)
            assert "ok" == outcome(site)


async def test_an_upload_that_grows_too_large_on_its_way_is_refused_as_such(
    tmp_path: Path, client: Client
) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.json({})
        text = config(upstream).replace("root: /v1", "root: /v1, body_limit: 10KiB")
        async with serving(text, tmp_path) as site:
            chunks = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
            asked = await client.send(
                f"{site.url}/v1/files", chunks, transfer_encoding="chunked", content_length=""
            )
            await within(upstream.seen())
            asked.writer.write(chunks + b"0\r\n\r\n")
            await asked.head()
            assert 413 == asked.status
            assert "request_too_large" == (await asked.json())["error"]["code"]
            await soon(upstream.requests[0].closed.wait())
