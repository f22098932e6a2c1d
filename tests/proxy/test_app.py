"""The ASGI callable, under our edge and under stock uvicorn with h11 and plain asyncio."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_proxy.app import App
from passy_proxy.gateway import Gateway
from passy_proxy.site import Site
from passy_proxy.testing import KEYRING, Client, Serving, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task outlives its test, and no socket: what is collected unclosed is an error."""
    yield
    left = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert [] == [task for task in left if "coro=<TestRunner." not in task]  # anyio's own
    gc.collect()


TEXT = """
upstreams: {echo: {kind: echo}}
chains:
  default: [alias, fallback]
  fixed: [cors: {origins: ["*"]}, static: {status: 200, body: "{}"}]
routes:
  - {match: POST /v1/chat/completions}
  - {match: GET /v1/models, chain: [static: {body: "[]"}]}
  - {match: "* /v1/files*", chain: fixed}
  - {match: OPTIONS /v1/*, chain: fixed}
"""
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "Hello there"}]}


@pytest.fixture(params=["edge", "stock"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Serving]:
    """Our edge, and uvicorn's own protocol on h11; both on asyncio's own loop."""
    assert type(asyncio.get_running_loop()).__module__.startswith("asyncio")
    stock = {"http": "h11"} if request.param == "stock" else {}
    async with serving(TEXT, tmp_path, **stock) as site:
        yield site


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


async def test_a_plain_answer(site: Serving, client: Client) -> None:
    asked = await client.ask(f"{site.url}/v1/chat/completions", HELLO)
    answer = await asked.json()
    assert 200 == asked.status
    assert "Hello there" in answer["choices"][0]["message"]["content"]
    assert asked.headers["x-request-id"].startswith("req_")
    assert "content-length" in asked.headers


async def test_a_streamed_answer(site: Serving, client: Client) -> None:
    asked = await client.ask(f"{site.url}/v1/chat/completions", {**HELLO, "stream": True})
    assert "no-cache" == asked.headers["cache-control"]
    body = await asked.rest()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{}", 400, "invalid_value"),
        ({**HELLO, "model": "eco"}, 404, "model_not_found"),
        ({**HELLO, "model": "echo:429"}, 429, "rate_limit_exceeded"),
        ({**HELLO, "model": "echo:500"}, 500, "internal_error"),
    ],
)
async def test_errors(site: Serving, client: Client, body: object, status: int, code: str) -> None:
    asked = await client.ask(f"{site.url}/v1/chat/completions", body)
    assert (status, code) == (asked.status, (await asked.json())["error"]["code"])
    assert "application/json" == asked.headers["content-type"]


async def test_a_broken_stream_ends_with_an_error_event(site: Serving, client: Client) -> None:
    body = {**HELLO, "model": "echo:cut", "stream": True}
    asked = await client.ask(f"{site.url}/v1/chat/completions", body)
    last = (await asked.rest()).rstrip().rpartition(b"\n\n")[2]
    assert b'"upstream_broken"' in last


async def test_preflight_has_no_body(site: Serving, client: Client) -> None:
    url = f"{site.url}/v1/chat/completions"
    asked = await client.ask(url, method="OPTIONS", origin="https://example.com")
    assert 204 == asked.status
    assert "*" == asked.headers["access-control-allow-origin"]


@pytest.mark.parametrize("path", ["/health", "/livez", "/healthz", "/readyz", "/"])
async def test_health_is_answered_by_the_process_itself(
    site: Serving, client: Client, path: str
) -> None:
    asked = await client.ask(site.url + path, method="GET")
    assert 200 == asked.status
    assert isinstance(await asked.json(), dict)


async def test_readiness_ends_with_draining_and_liveness_does_not(
    site: Serving, client: Client
) -> None:
    site.gateway.draining = True
    ready = await client.ask(f"{site.url}/readyz", method="GET")
    alive = await client.ask(f"{site.url}/livez", method="GET")
    assert (503, 200) == (ready.status, alive.status)
    assert "draining" == (await ready.json())["status"]


async def test_the_details_of_readiness_say_how_stores_are_and_what_filters_do_without(
    client: Client, tmp_path: Path
) -> None:
    text = """
stores: {state: {kind: redis, url: "redis://127.0.0.1:1"}, books: {kind: memory}}
upstreams: {echo: {kind: echo}}
models: {m: [echo]}
chains:
  default:
    - usage: {ledger: books, when_full: serve}
    - auth: {directory: books, stale: 5m}
    - rate_limit: {counters: state, requests: 5/s, when_unavailable: refuse}
    - rate_limit: {counters: state, requests: 9/min}
    - alias
    - fallback
routes: [{match: POST /v1/chat/completions}]
"""
    async with serving(text, tmp_path) as site:
        brief = await (await client.ask(f"{site.url}/readyz", method="GET")).json()
        asked = await client.ask(f"{site.url}/readyz?verbose", method="GET")
        told = await asked.json()
        assert (200, "ok") == (asked.status, told["status"])
        assert {"status", "checks"} == set(brief)
        assert {"state": "away", "books": "ok"} == told["stores"]
        assert {"usage", "auth", "rate_limit"} == set(told["when_away"])
        assert "5m0s" in told["when_away"]["auth"]
        assert "refuse" in told["when_away"]["rate_limit"]
        assert "local" in told["when_away"]["rate_limit"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/v1/chat/completions", 404, "Did you mean /v1/chat/completions?"),
        ("POST", "/chat/completions", 404, "Did you mean /v1/chat/completions?"),
        ("POST", "/v1/chat/completions/", 404, "Did you mean /v1/chat/completions?"),
        ("POST", "/V1/Chat/Completions", 404, "Did you mean /v1/chat/completions?"),
        ("POST", "/openai/v1/chat/completions", 404, "Did you mean /v1/chat/completions?"),
        ("GET", "/v1/v1/files/file-1", 404, "Did you mean /v1/files/file-1?"),
        ("GET", "/v1", 404, "their base_url; GET /v1/models lists the models."),
        ("GET", "/v1/", 404, "their base_url; GET /v1/models lists the models."),
        ("POST", "/", 404, "There is nothing at POST /."),
        ("GET", "/v2/anything", 404, "There is nothing at GET /v2/anything."),
        ("DELETE", "/v1/models", 405, "use GET."),
        ("PUT", "/v1/chat/completions", 405, "use POST."),
    ],
)
async def test_an_unknown_place_is_told_of_with_help(
    site: Serving, client: Client, method: str, path: str, status: int, words: str
) -> None:
    asked = await client.ask(site.url + path, method=method)
    error = (await asked.json())["error"]
    assert (status, "invalid_request_error") == (asked.status, error["type"])
    assert words in error["message"]
    if status == 405:
        assert "OPTIONS" in asked.headers["allow"]


async def test_an_exchange_is_counted_while_it_runs(site: Serving, client: Client) -> None:
    snapshot = site.gateway.snapshot
    asked = await client.ask(
        f"{site.url}/v1/chat/completions", {**HELLO, "model": "echo:slow", "stream": True}
    )
    assert 1 == snapshot.running
    asked.leave()
    async with asyncio.timeout(60):
        while snapshot.running:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# The server's life cycle


def gateway(tmp_path: Path, text: str) -> Gateway:
    return Gateway(Site(tmp_path, KEYRING), {}, structlog.get_logger(), text=text)


async def lifespan(app: App, *messages: str) -> list[dict[str, Any]]:
    told = [{"type": f"lifespan.{name}"} for name in messages]
    sent: list[Any] = []

    async def receive() -> Any:
        return told.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app({"type": "lifespan"}, receive, send)
    except Exception as exc:
        sent.append({"type": type(exc).__name__})
    return sent


async def test_the_servers_life_is_the_gateways(tmp_path: Path) -> None:
    made = gateway(tmp_path, TEXT)
    sent = await lifespan(App(made), "startup", "shutdown")
    expected = ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert expected == [message["type"] for message in sent]
    assert 0 == len(made.parts.shared)


async def test_a_start_that_fails_is_told_to_the_server(tmp_path: Path) -> None:
    failed, raised = await lifespan(App(gateway(tmp_path, "chains: [")), "startup")
    assert "lifespan.startup.failed" == failed["type"]
    assert "built-in:" in failed["message"]
    assert "ConfigInvalid" == raised["type"]


async def test_websockets_are_refused(tmp_path: Path) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await App(gateway(tmp_path, TEXT))({"type": "websocket"}, receive, send)
    assert [{"type": "websocket.close", "code": 1003}] == sent


@pytest.mark.parametrize(
    "path",
    ["/v1/files/../keys", "/v1/files/%2e%2e/a", "/v1/a%2fb", "/v1/a%5cb", "/v1//a", "/v1/%00"],
)
async def test_a_path_with_two_meanings_is_refused_under_any_server(
    site: Serving, path: str
) -> None:
    reader, writer = await asyncio.open_connection(*site.url.removeprefix("http://").split(":"))
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert b" 400 " in answer[:16]
    assert b"invalid_path" in answer
