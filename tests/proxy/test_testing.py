"""The tools for authors do what they say."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h11
import pytest

from passy_proxy import Exchange, Filter, Head, Reply, Settings, setting
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.downstream import BodyTooLarge, ClientGone
from passy_proxy.registry import Registry
from passy_proxy.testing import (
    SSE,
    Answer,
    Bench,
    Client,
    Recorded,
    ScriptedUpstream,
    run_filter,
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


class CapSettings(Settings):
    max_chars: int = setting(5, "Longest prompt.")


class Cap(Filter):
    name = "cap"
    needs = frozenset({"principal", "body"})
    config: CapSettings

    def on_request(self, ex: Exchange) -> Reply | None:
        assert ex.principal is not None
        size = sum(len(message["content"]) for message in ex.request.json.get("messages", []))
        return Reply(413, "too_long", "Too long.") if size > self.config.max_chars else None

    def on_response(self, ex: Exchange, head: Head) -> None:
        head.headers.append((b"x-cap", b"%d" % self.config.max_chars))


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def test_a_filter_runs_in_front_of_the_echo() -> None:
    ex = await run_filter(Cap, body=said("four"))
    assert "ok" == ex.outcome.kind
    assert isinstance(ex.downstream, Recorded)
    assert "four" in ex.downstream.json["choices"][0]["message"]["content"]
    assert b"5" == ex.downstream.header(b"x-cap")


async def test_its_settings_are_read_as_the_loader_reads_them() -> None:
    ex = await run_filter(Cap, {"max_chars": 3}, body=said("four"))
    assert ("replied", "too_long", []) == (ex.outcome.kind, ex.outcome.code, ex.attempts)
    with pytest.raises(ConfigInvalid, match="did you mean 'max_chars'"):
        await run_filter(Cap, {"max_chasr": 3})


@pytest.mark.parametrize("name", ["alias", "fallback", "static", "direct", "cors", "usage"])
async def test_the_filters_that_come_with_it_run_too(name: str) -> None:
    kind = Registry().filter(name)
    assert kind is not None
    settings = {"direct": {"upstream": "echo"}}.get(name)
    ex = await run_filter(kind, settings, body=said("four"))
    assert ex.status in (200, 204)


async def test_a_bench_knows_only_its_routes() -> None:
    async with Bench() as bench:
        with pytest.raises(LookupError, match="no route matches GET /nowhere"):
            bench.exchange(path="/nowhere", method="GET")


async def test_a_recorded_client_keeps_the_contract_of_a_downstream() -> None:
    client, calls = Recorded(b"body"), []
    with pytest.raises(BodyTooLarge):
        await client.body(3)
    client.watch(lambda: calls.append("gone"))
    client.start(200, [(b"x", b"1")])
    with pytest.raises(RuntimeError):
        client.start(200, [])
    assert client.write(b"one")
    client.leave()
    client.leave()
    assert ["gone"] == calls
    assert not client.write(b"two")
    client.finish(b"three")
    assert (b"one", False) == (client.answer, client.finished)
    with pytest.raises(ClientGone):
        await client.drain()
    client.watch(lambda: calls.append("at once"))
    assert ["gone", "at once"] == calls


async def test_a_client_that_leaves_with_its_answer_has_not_hung_up() -> None:
    client = Recorded()
    client.watch(pytest.fail)
    client.start(200, [])
    client.finish(b"all")
    client.leave()
    assert not client.gone


# The scripted upstream


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


async def test_answers_come_in_their_order_and_the_last_for_ever(client: Client) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.json({"n": 1}, 503, retry_after="1").json({"n": 2})
        answers = []
        for _ in range(3):
            asked = await client.ask(f"{upstream.url}/x", {"a": 1}, x_own="yes")
            answers.append((asked.status, (await asked.json())["n"]))
        assert [(503, 1), (200, 2), (200, 2)] == answers
        seen = upstream.requests[2]
        assert ("POST", "/x", {"a": 1}) == (seen.method, seen.target, seen.json)
        assert "yes" == seen.headers["x-own"]


async def test_a_held_stream_goes_on_when_it_is_told_to(client: Client) -> None:
    async with ScriptedUpstream() as upstream:
        go_on = asyncio.Event()
        upstream.then(Answer(headers=SSE, pieces=[b"one ", go_on, b"two"]))
        asked = await client.ask(upstream.url + "/")
        assert b"one " in await asked.until(b"one ")
        assert b"two" not in asked.got
        go_on.set()
        assert b"one two" == await asked.rest()


async def test_a_stream_can_be_cut(client: Client) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.stream("one ", "two ", cut=True)
        asked = await client.ask(upstream.url + "/")
        with pytest.raises(EOFError):
            await asked.rest()
        assert b"two " in asked.got
        assert b"DONE" not in asked.got


async def test_a_request_without_a_script_is_raised_at_the_end(client: Client) -> None:
    upstream = await ScriptedUpstream().__aenter__()
    assert 500 == (await client.ask(f"{upstream.url}/x")).status
    with pytest.raises(AssertionError, match="no answer is scripted for /x"):
        await upstream.__aexit__(None, None, None)


async def test_what_is_not_http_is_raised_at_the_end(client: Client) -> None:
    upstream = await ScriptedUpstream().__aenter__()
    asked = await client.send(upstream.url + "/x y")
    assert b"" == await asked.reader.read()
    with pytest.raises(h11.RemoteProtocolError):
        await upstream.__aexit__(None, None, None)


async def test_it_is_known_when_a_request_comes_and_when_its_connection_goes(
    client: Client,
) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.then(Answer(delay=3600))
        asked = await client.send(upstream.url + "/", b"half", content_length="8")
        seen = await upstream.seen(1)
        assert not seen.whole.is_set()
        asked.writer.write(b"rest")
        await seen.whole.wait()
        assert b"halfrest" == seen.body
        asked.reset()
        await seen.closed.wait()


async def test_a_whole_gateway_is_served_and_ends(tmp_path: Path, client: Client) -> None:
    text = "{upstreams: {echo: {kind: echo}}, routes: [{match: GET /x, chain: [static]}]}"
    async with serving(text, tmp_path) as site:
        assert 200 == (await client.ask(f"{site.url}/x", method="GET")).status
    with pytest.raises(OSError, match="Connect"):
        await client.ask(f"{site.url}/x")
    with pytest.raises(ConfigInvalid):
        async with serving("chains: [", tmp_path):
            pass
