"""One record an exchange: its tokens, its cost, its attempts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from passy_plugins.stores.memory import Memory
from passy_proxy import Attempt, Exchange, Filter, UsageRecord
from passy_proxy.price_book import PriceBook
from passy_proxy.testing import Bench, Recorded, ScriptedUpstream

pytestmark = pytest.mark.anyio

CONFIGURATION = """
stores: {{books: {{kind: memory}}}}
upstreams:
  echo: {{kind: echo}}
  first: {{dialect: openai, url: "{url}/v1", credential: sk-canary-0123456789}}
  away: {{dialect: openai, url: "http://127.0.0.1:1/v1"}}
models:
  m: [first/gpt-4o]
  second-try: [away/gpt-4o, first/gpt-4o]
  "*": ["first/*"]
chains: {{default: [usage: {{ledger: books}}, alias, fallback: {{retries: 0}}]}}
routes: [{{match: POST /v1/chat/completions}}]
prices: {{{prices}}}
"""
WRITTEN = "first/gpt-4o: {input: 2, output: 10, per: 1M}"
COST = 9 * 2_000 + 10_000


@dataclass
class Metered:
    """A gateway's snapshot with its books."""

    bench: Bench
    upstream: ScriptedUpstream

    async def ask(self, model: str = "m", **body: object) -> Exchange:
        ex = self.bench.exchange({"model": model, "messages": [], **body})
        await ex.route.chain.run(ex)
        return ex

    @property
    def books(self) -> list[UsageRecord]:
        store = self.bench.snapshot.stores["books"]
        assert isinstance(store, Memory)
        return store.records


Meter = Callable[..., Awaitable[Metered]]


@pytest.fixture
async def metered() -> AsyncIterator[Meter]:
    """Makes started gateways in front of one scripted upstream."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())

        async def make(prices: str = WRITTEN, *, priced_as: str = "", url: str = "") -> Metered:
            text = CONFIGURATION.format(url=url or upstream.url, prices=prices)
            bench = await stack.enter_async_context(Bench(text))
            if priced_as:  # Asked where the script is, and priced as if it were elsewhere.
                bench.snapshot.upstreams["first"].url = priced_as
            return Metered(bench, upstream)

        yield make


def header(ex: Exchange, name: bytes) -> bytes | None:
    assert isinstance(ex.downstream, Recorded)
    return dict(ex.downstream.headers).get(name)


async def test_a_plain_answer_is_recorded_with_its_tokens_and_cost(metered: Meter) -> None:
    gateway = await metered()
    gateway.upstream.chat("Hello!")
    ex = await gateway.ask()
    [record] = gateway.books
    assert (ex.id, "m", "first", "gpt-4o") == (
        record.id,
        record.model,
        record.upstream,
        record.upstream_model,
    )
    assert ("ok", 200, False) == (record.outcome, record.status, record.streamed)
    assert (9, 1, False) == (record.input, record.output, record.estimated)
    assert COST == record.cost_nanos
    assert "2 in, 10 out per 1M (prices: first/gpt-4o)" == record.price
    assert 0 <= record.first_ms <= record.duration_ms
    assert b"0.000028000" == header(ex, b"x-passy-cost-usd")


async def test_each_kind_of_token_is_in_its_column(metered: Meter) -> None:
    gateway = await metered()
    told = {
        "prompt_tokens": 900,
        "completion_tokens": 80,
        "prompt_tokens_details": {"cached_tokens": 700, "audio_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 50, "audio_tokens": 4},
    }
    gateway.upstream.json({"choices": [], "usage": told})
    ex = await gateway.ask()
    [record] = gateway.books
    columns = (record.input, record.output, record.cached, record.cache_write, record.reasoning)
    assert (900, 80, 700, 0, 50) == columns
    assert (6, 4) == (record.audio_input, record.audio_output)
    assert ("", "") == (record.key_id, record.organisation)
    assert "POST /v1/chat/completions" == record.route
    assert abs(ex.at - record.at) <= 0.001
    assert record == UsageRecord.of(record.row())


async def test_a_stream_is_recorded_like_a_plain_answer(metered: Meter) -> None:
    gateway = await metered()
    gateway.upstream.stream("Hello!")
    ex = await gateway.ask(stream=True)
    [record] = gateway.books
    assert (9, 1, COST) == (record.input, record.output, record.cost_nanos)
    assert record.streamed
    assert header(ex, b"x-passy-cost-usd") is None


async def test_every_try_is_in_the_record(metered: Meter) -> None:
    gateway = await metered()
    gateway.upstream.chat()
    await gateway.ask("second-try")
    [record] = gateway.books
    refused, answered = record.attempts
    assert ("away", 0, False) == (refused.upstream, refused.status, refused.maybe_billed)
    assert refused.failure.startswith("connect: ")
    assert ("first", 200, "") == (answered.upstream, answered.status, answered.failure)
    assert "sk-canary" not in repr(record)


async def test_an_unknown_price_leaves_the_cost_open(metered: Meter) -> None:
    gateway = await metered(prices="")
    gateway.upstream.chat()
    ex = await gateway.ask()
    [record] = gateway.books
    assert (9, 1, None, "") == (record.input, record.output, record.cost_nanos, record.price)
    assert header(ex, b"x-passy-cost-usd") is None


async def test_a_refusal_is_recorded_without_cost(metered: Meter) -> None:
    gateway = await metered()
    gateway.upstream.json({"error": {"message": "no"}}, status=400)
    await gateway.ask()
    [record] = gateway.books
    assert (400, 0, 0, None) == (record.status, record.input, record.output, record.cost_nanos)


OPENAI = "https://api.openai.com/v1"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Whoever is asked for prices answers once this file is there."""
    go, program = tmp_path / "go", tmp_path / "held"
    program.write_text(
        f'#!/bin/sh\nuntil [ -e {go} ]; do sleep 0.02; done\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(PriceBook, "PATIENCE", 60.0)
    return go


async def test_a_price_that_is_being_asked_for_is_entered_later(metered: Meter, held: Path) -> None:
    gateway = await metered(prices="", priced_as=OPENAI)
    gateway.upstream.chat()
    ex = await gateway.ask()
    assert 200 == ex.status
    assert [None] == [record.cost_nanos for record in gateway.books]
    held.touch()
    await until(lambda: gateway.books[0].cost_nanos is not None)
    [record] = gateway.books
    assert ex.id == record.id
    assert 9 * 2_500 + 10_000 == record.cost_nanos
    assert record.price.startswith("2.5 in, 10 out, 1.25 cached per 1M (genai-prices ")
    assert b"0.000032500" == header(await gateway.ask(), b"x-passy-cost-usd")


async def test_prices_of_aliases_are_asked_for_at_start(metered: Meter, held: Path) -> None:
    held.touch()
    gateway = await metered(prices="", url="https://api.openai.com")
    file = gateway.bench.parts.site.data / "prices.json"
    await until(file.exists)
    assert b"openai/gpt-4o" in file.read_bytes()


async def test_a_stop_leaves_no_record_behind(
    metered: Meter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(silent))
    gateway = await metered(prices="", priced_as=OPENAI)
    gateway.upstream.chat()
    ex = await gateway.ask()
    books = gateway.bench.snapshot.stores["books"]
    assert isinstance(books, Memory)
    await gateway.bench.snapshot.stop()
    [record] = books.records
    assert (ex.id, 9, None) == (record.id, record.input, record.cost_nanos)


class Waiting(Filter):
    """Waits before anything is sent, as who looks up a credential does; meanwhile the client
    leaves."""

    name = "waiting"

    async def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        assert isinstance(ex.downstream, Recorded)
        ex.downstream.leave()
        await asyncio.sleep(60)


@pytest.mark.parametrize("when_client_leaves", ["stop", "drain"])
async def test_who_leaves_before_anything_was_sent_owes_nothing(
    when_client_leaves: str,
) -> None:
    settings = f"ledger: books, unanswered: prompt, when_client_leaves: {when_client_leaves}"
    text = CONFIGURATION.replace("ledger: books", settings).replace("alias,", "alias, waiting,")
    text = text.replace("waiting,", "waiting: {{hook_timeout: 200ms}},")
    async with (
        ScriptedUpstream() as upstream,
        Bench(text.format(url=upstream.url, prices=WRITTEN), filters=[Waiting]) as bench,
    ):
        ex = bench.exchange({"model": "m", "messages": [{"role": "user", "content": "x" * 400}]})
        await asyncio.create_task(ex.route.chain.run(ex))
        books = Metered(bench, upstream).books
    [record] = books
    [attempt] = record.attempts
    assert ("client_gone", 0, 0, False) == (
        record.outcome,
        record.input,
        record.output,
        record.estimated,
    )
    assert not attempt.maybe_billed
    assert 0 <= attempt.head_ms <= record.duration_ms
    assert [] == upstream.requests


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110 - another process reaches it
            await asyncio.sleep(0.01)
