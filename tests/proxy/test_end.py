"""``on_end``: before the last bytes of an answer, once, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from passy_proxy import Exchange, Filter
from passy_proxy.config.settings import Settings
from passy_proxy.testing import SSE, Answer, Bench, Recorded, ScriptedUpstream, chat_events

pytestmark = pytest.mark.anyio


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


def recorded(ex: Exchange) -> Recorded:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream


class Ends(Filter):
    """Writes down what was sent by the time of ``on_end``, and how it ended."""

    name = "ends"
    config: Settings
    seen: ClassVar[list[tuple[str, bytes]]] = []

    async def on_end(self, ex: Exchange) -> None:
        await asyncio.sleep(0)
        self.seen.append((ex.outcome.code or ex.outcome.kind, recorded(ex).answer))


ENDS = (
    "{{upstreams: {{mock: {{dialect: openai, url: {url}}}}}, models: {{m: [mock/m]}}, "
    "chains: {{default: [ends, alias, fallback]}}, "
    "routes: [{{match: POST /v1/chat/completions, chain: default}}]}}"
)


@pytest.fixture
def seen() -> list[tuple[str, bytes]]:
    Ends.seen = []
    return Ends.seen


async def asked(url: str, **body: object) -> Exchange:
    async with Bench(ENDS.format(url=url), filters=[Ends]) as bench:
        ex = bench.exchange(body={"model": "m", **body})
        await ex.route.chain.run(ex)
        return ex


async def test_on_end_comes_before_a_plain_answer(
    upstream: ScriptedUpstream, seen: list[tuple[str, bytes]]
) -> None:
    ex = await asked(upstream.chat().url)
    assert [("ok", b"")] == seen
    assert b"Hello!" in recorded(ex).answer


async def test_on_end_comes_before_the_end_mark(
    upstream: ScriptedUpstream, seen: list[tuple[str, bytes]]
) -> None:
    # The end mark comes alone, and the end of the body only when the client has the mark.
    hold, events = asyncio.Event(), chat_events(["one", "two"])
    upstream.then(Answer(headers=SSE, pieces=events, gap=0.02, hold=hold))
    async with Bench(ENDS.format(url=upstream.url), filters=[Ends]) as bench:
        ex = bench.exchange(
            body={"model": "m", "stream": True, "stream_options": {"include_usage": True}}
        )
        task = asyncio.get_running_loop().create_task(ex.route.chain.run(ex))
        while b"[DONE]" not in recorded(ex).answer:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        hold.set()
        await task
    assert [("ok", b"".join(events[:-1]))] == seen


async def test_on_end_comes_before_the_word_that_a_stream_broke(
    upstream: ScriptedUpstream, seen: list[tuple[str, bytes]]
) -> None:
    ex = await asked(upstream.stream("one", cut=True).url, stream=True)
    [(outcome, sent)] = seen
    assert "upstream_broken" == outcome
    assert b"one" in sent
    assert b"upstream_broken" not in sent
    assert b"upstream_broken" in recorded(ex).answer


async def test_on_end_comes_once_when_nothing_can_be_sent(
    upstream: ScriptedUpstream, seen: list[tuple[str, bytes]]
) -> None:
    upstream.then(Answer(delay=30))
    async with Bench(ENDS.format(url=upstream.url), filters=[Ends]) as bench:
        ex = bench.exchange(body={"model": "m"})
        task = asyncio.get_running_loop().create_task(ex.route.chain.run(ex))
        await upstream.seen()
        recorded(ex).leave()
        await task
    assert [("client_gone", b"")] == seen
