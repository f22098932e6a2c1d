"""A configuration is replaced under running streams, and a broken one is not taken."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.place import LAST_GOOD
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


STREAMS = 100
CHAT = "/v1/chat/completions"
STREAM = {"model": "m", "messages": [], "stream": True}
PLAIN = {"model": "m", "messages": []}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


async def until(true: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def config(upstream: ScriptedUpstream, attempts: str = "3") -> str:
    return f"""
upstreams: {{one: {{url: {upstream.url}/v1, credential: a-credential}}}}
models: {{m: [one/real]}}
chains: {{default: [usage, alias, fallback: {{attempts: {attempts}}}]}}
routes: [{{match: POST /v1/chat/completions}}]
"""


def replaced(file: Path, text: str) -> None:
    """As editors and volumes do it: another file takes the name."""
    draft = file.with_suffix(".new")
    draft.write_text(text)
    draft.replace(file)


async def readiness(client: Client, site: Serving) -> str:
    asked = await client.ask(f"{site.url}/readyz", method="GET")
    assert 200 == asked.status
    return str((await asked.json())["checks"]["configuration"])


@pytest.mark.parametrize("how", ["content", "SIGHUP"])
async def test_a_reload_under_a_hundred_streams_drops_none(
    tmp_path: Path, client: Client, how: str
) -> None:
    file = tmp_path / "gateway.yaml"
    async with ScriptedUpstream() as upstream:
        go_on = asyncio.Event()
        one, *rest = chat_events(["one ", "two "])
        upstream.then(Answer(headers=SSE, pieces=[one, go_on, *rest]))
        file.write_text(config(upstream))
        async with serving(file, tmp_path) as site:
            before = site.gateway.snapshot
            streams = await asyncio.gather(
                *(client.ask(site.url + CHAT, STREAM) for _ in range(STREAMS))
            )
            if how == "SIGHUP":
                file.write_text(config(upstream, "2"))
                os.kill(os.getpid(), signal.SIGHUP)
            else:
                replaced(file, config(upstream, "2"))
            await until(lambda: site.gateway.snapshot is not before)
            after = site.gateway.snapshot
            assert STREAMS == before.running
            assert before.held, "stopped under its exchanges"

            streams.append(await client.ask(site.url + CHAT, STREAM))
            assert after.hash.decode() == streams[-1].headers["x-passy-config"]
            go_on.set()
            for asked in streams:
                assert (await asked.rest()).endswith(b"data: [DONE]\n\n")
            assert before.hash.decode() == streams[0].headers["x-passy-config"]
            await until(lambda: not before.held)
            assert 0 == before.running
        assert 0 == len(site.gateway.parts.shared)


async def test_a_broken_file_is_refused_and_the_old_configuration_stays(
    tmp_path: Path, client: Client
) -> None:
    file = tmp_path / "gateway.yaml"
    async with ScriptedUpstream() as upstream:
        upstream.chat()
        file.write_text(config(upstream))
        async with serving(file, tmp_path) as site:
            before = site.gateway.snapshot
            assert "ok" == await readiness(client, site)
            held = len(site.gateway.parts.shared)
            for broken in (config(upstream, "many"), "chains: [", "\x00", "routes: 3"):
                replaced(file, broken)
                assert not await site.gateway.reload()
                assert site.gateway.snapshot is before
                assert f"{file}:" in await readiness(client, site)
                assert held == len(site.gateway.parts.shared)
            asked = await client.ask(site.url + CHAT, PLAIN)
            assert (200, before.hash.decode()) == (asked.status, asked.headers["x-passy-config"])

            replaced(file, config(upstream, "2"))
            await until(lambda: site.gateway.snapshot is not before)
            assert "ok" == await readiness(client, site)


async def test_a_file_that_is_gone_leaves_the_old_configuration(
    tmp_path: Path, client: Client
) -> None:
    file = tmp_path / "gateway.yaml"
    async with ScriptedUpstream() as upstream:
        text = config(upstream)
        file.write_text(text)
        async with serving(file, tmp_path) as site:
            before = site.gateway.snapshot
            file.unlink()
            assert not await site.gateway.reload()
            assert "ok" != await readiness(client, site)
            replaced(file, config(upstream, "2"))
            await until(lambda: site.gateway.snapshot is not before)


async def test_reloads_at_once_end_with_what_the_file_says(tmp_path: Path, client: Client) -> None:
    file = tmp_path / "gateway.yaml"
    async with ScriptedUpstream() as upstream:
        file.write_text(config(upstream))
        async with serving(file, tmp_path) as site:
            reloads = []
            for attempts in range(1, 9):
                replaced(file, config(upstream, str(attempts)))
                reloads.append(asyncio.ensure_future(site.gateway.reload()))
                await asyncio.sleep(0)
            assert all(await asyncio.gather(*reloads))
            [route] = site.gateway.snapshot.routes.all
            assert 8 == route.chain.terminal.config.attempts
        assert 0 == len(site.gateway.parts.shared)


async def test_a_restart_with_a_broken_file_serves_the_last_good_one(
    tmp_path: Path, client: Client
) -> None:
    file = tmp_path / "gateway.yaml"
    async with ScriptedUpstream() as upstream:
        upstream.chat("still here")
        file.write_text(config(upstream))
        async with serving(file, tmp_path) as site:
            good = site.gateway.snapshot.hash
        assert 0o600 == (tmp_path / LAST_GOOD).stat().st_mode & 0o777

        file.write_text(config(upstream, "many"))
        async with serving(file, tmp_path) as site:
            assert f"{file}:4:" in await readiness(client, site)
            asked = await client.ask(site.url + CHAT, PLAIN)
            assert good.decode() == asked.headers["x-passy-config"]
            assert "still here" in str(await asked.json())
            before = site.gateway.snapshot
            file.write_text(config(upstream, "2"))
            await until(lambda: site.gateway.snapshot is not before)
            assert "ok" == await readiness(client, site)


async def test_a_first_start_with_a_broken_file_fails(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("chains: [")
    with pytest.raises(ConfigInvalid):
        async with serving(file, tmp_path):
            pass
    assert not (tmp_path / LAST_GOOD).exists()


async def test_warm_connections_survive_an_unrelated_edit(tmp_path: Path, client: Client) -> None:
    file = tmp_path / "gateway.yaml"
    async with ScriptedUpstream() as upstream:
        upstream.json(completion(), keep_alive="timeout=600")  # However slow the machine is.
        file.write_text(config(upstream))
        async with serving(file, tmp_path) as site:
            await (await client.ask(site.url + CHAT, PLAIN)).rest()
            [warm] = upstream.connections
            file.write_text(config(upstream, "2"))
            assert await site.gateway.reload()
            await (await client.ask(site.url + CHAT, PLAIN)).rest()
            assert {warm} == upstream.connections
            transport = site.gateway.snapshot.upstreams["one"].transport
            stats = transport.stats()
            assert (1, 1) == (stats["opened"], stats["reused"])

            file.write_text(config(upstream).replace("/v1,", "/v1, max_connections: 9,"))
            assert await site.gateway.reload()
            await asyncio.wait_for(warm.lost.wait(), 20)
