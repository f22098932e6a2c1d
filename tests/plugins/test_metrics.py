"""Which row an exchange is counted in, and how the page tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from passy_plugins.metrics import BOUNDS, REMEMBERED, TABLE, Metrics
from passy_plugins.metrics_page import ended, rendered
from passy_proxy import Exchange
from passy_proxy.testing import Bench, ScriptedUpstream

pytestmark = pytest.mark.anyio

CONFIGURATION = """
stores: {{books: {{kind: memory}}}}
upstreams:
  echo: {{kind: echo}}
  real: {{dialect: openai, url: "{url}/v1", credential: sk-canary, models: [listed]}}
models:
  alias: [real/gpt-4o]
  "wild-*": ["real/*"]
  both: [echo/echo:500, real/gpt-4o]
chains:
  default: [metrics, usage: {{ledger: books}}, alias, fallback: {{retries: 0}}]
  bare: [metrics, static]
routes: [{{match: POST /v1/chat/completions}}, {{match: GET /bare, chain: bare}}]
prices: {{"real/*": {{input: 2, output: 10, per: 1M}}}}
"""


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def bench(upstream: ScriptedUpstream) -> AsyncIterator[Bench]:
    async with Bench(CONFIGURATION.format(url=upstream.url)) as bench:
        yield bench


async def ask(bench: Bench, model: str, **more: object) -> Exchange:
    messages = [{"role": "user", "content": "hello"}]
    ex = bench.exchange({"model": model, "messages": messages, **more})
    await ex.route.chain.run(ex)
    return ex


def rows(bench: Bench) -> dict[tuple[str, ...], list[float]]:
    return bench.parts.site.vitals.gather()[0].get(TABLE, {})


def page(bench: Bench) -> list[str]:
    return "".join(rendered(bench.parts.site.vitals)).splitlines()


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        ("alias", ("alias", "real", "2xx", "ok")),
        ("wild-anything", ("wild-*", "real", "2xx", "ok")),
        ("listed", ("listed", "real", "2xx", "ok")),
        ("real/listed", ("other", "real", "2xx", "ok")),
        ("both", ("both", "real", "2xx", "ok")),
        ("echo", ("other", "echo", "2xx", "ok")),
        ("nobody", ("other", "none", "4xx", "model_not_found")),
        ("n" * 5_000, ("other", "none", "4xx", "model_not_found")),
        ("other", ("other", "none", "4xx", "model_not_found")),
    ],
)
async def test_labels_are_names_of_the_configuration(
    bench: Bench, upstream: ScriptedUpstream, model: str, labels: tuple[str, ...]
) -> None:
    upstream.chat()
    await ask(bench, model)
    await ask(bench, model)
    [(key, row)] = rows(bench).items()
    assert (labels, 2) == (key, ended(key, row))


async def test_what_no_model_was_asked_for_is_counted_too(bench: Bench) -> None:
    ex = bench.exchange(b"", path="/bare", method="GET")
    await ex.route.chain.run(ex)
    assert [("none", "none", "2xx", "static")] == list(rows(bench))


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_and_their_cost(
    bench: Bench, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.stream("Hello") if stream else upstream.chat()
    ex = await ask(bench, "alias", stream=stream)
    assert ex.usage is not None
    labels = 'model="alias",upstream="real"'
    cost = (ex.usage.input * 2 + ex.usage.output * 10) / 1_000_000
    said = page(bench)
    assert f'passy_tokens_total{{{labels},kind="input"}} {ex.usage.input}' in said
    assert f'passy_tokens_total{{{labels},kind="output"}} {ex.usage.output}' in said
    assert f'passy_cost_usd_total{{{labels},status="2xx",outcome="ok"}} {cost:.9g}' in said


async def test_attempts_are_counted_beside_requests(
    bench: Bench, upstream: ScriptedUpstream
) -> None:
    upstream.chat()
    await ask(bench, "both")
    labels = 'model="both",upstream="real",status="2xx",outcome="ok"'
    assert f"passy_attempts_total{{{labels}}} 2" in page(bench)


async def test_each_duration_is_in_one_bucket(bench: Bench, upstream: ScriptedUpstream) -> None:
    upstream.chat()
    for _ in range(3):
        await ask(bench, "alias")
    assert not [line for line in page(bench) if "first_byte_seconds_count" in line]
    buckets = [line for line in page(bench) if "request_duration_seconds_bucket" in line]
    counts = [int(line.rpartition(" ")[2]) for line in buckets]
    assert (len(BOUNDS) + 1, sorted(counts), 3) == (len(buckets), counts, counts[-1])


async def test_what_clients_ask_for_is_remembered_up_to_a_number(bench: Bench) -> None:
    [metrics, *_] = bench.snapshot.routes.all[0].chain.filters
    assert isinstance(metrics, Metrics)
    for number in range(REMEMBERED + 100):
        await ask(bench, f"nobody-{number}")
    assert len(metrics._rows) <= REMEMBERED
    assert 1 == len(rows(bench))
