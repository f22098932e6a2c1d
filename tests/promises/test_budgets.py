"""L3: a hard budget is never overspent by concurrency, and a killed process neither loses nor
doubles what was spent. Two gateways, one Valkey, one set of books."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.gateway import PATIENCE, Gateway, Hire, Provider, Serve
from harness.valkey import Valkey

from passy_proxy.testing import Answer, completion

CONFIGURATION = """
overload: {{loop_lag: 0s}}
stores:
  state: {{kind: redis, url: "{redis}", timeout: 5s}}
  books: {{kind: sql, url: "sqlite:///{folder}/books.db"}}
upstreams:
  paid: {{dialect: openai, url: "{upstream}/v1"}}
models: {{m: [paid/m]}}
prices: {{paid/m: {{input: 1, output: 10, per: 1M}}}}
chains:
  default:
    - usage: {{ledger: books}}
    - auth: {{directory: books, ttl: 1s}}
    - alias
    - budgets:
        counters: state
        books: books
        alerts: books
        lease: {lease}
        interval: 200ms
        webhooks: [{{url: "{hook}/hook", secret: "u3Jx9QfW0pYt7LkBz2mV6sRhCnE4aTgD8iKo1PwX5yM="}}]
    - fallback: {{retries: 0}}
routes: [{{match: POST /v1/chat/completions}}]
"""
USAGE = {"prompt_tokens": 10, "completion_tokens": 1_000, "total_tokens": 1_010}
COST = 10_010_000
"""Billionths of a dollar that an answer costs."""
BODY = {"model": "m", "max_tokens": 1_000, "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Site:
    """Two hosts of one installation."""

    one: Gateway
    other: Gateway
    upstream: Provider
    hook: Provider
    folder: Path

    def key(self, *arguments: str) -> str:
        return self.one.new_key(*arguments)

    def records(self) -> list[dict[str, Any]]:
        self.one.folder.joinpath(".passy").mkdir(exist_ok=True)
        link = self.one.folder / ".passy/passy.db"
        if not link.exists():
            link.symlink_to(self.folder / "books.db")
        return self.one.records()


def slow(seconds: float) -> Answer:
    body = json.dumps(completion("hello") | {"usage": USAGE}).encode()
    return Answer(200, (("content-type", "application/json"),), [body], delay=seconds)


@pytest.fixture
def site(
    serve: Serve, hire: Hire, valkey: Valkey, tmp_path: Path, request: pytest.FixtureRequest
) -> Site:
    upstream, hook = hire(), hire()
    hook.json({})
    valkey.ask("FLUSHALL")
    text = CONFIGURATION.format(
        redis=valkey.url,
        folder=tmp_path,
        upstream=upstream.url,
        hook=hook.url,
        lease=getattr(request, "param", "1h"),
    )
    ring = secrets.token_urlsafe(48)
    hosts = [serve(text, PASSY_SECRET_KEYS=ring) for _ in range(2)]
    return Site(hosts[0], hosts[1], upstream, hook, tmp_path)


def ask(gateway: Gateway, key: str, **more: Any) -> Any:
    return gateway.ask(
        "/v1/chat/completions",
        BODY | more,
        authorization=f"Bearer {key}",
        content_type="application/json",
    )


def left(gateway: Gateway, key: str) -> float:
    """What the counter holds, as a request is told that can never fit."""
    refused = ask(gateway, key, max_tokens=900_000_000)
    assert 429 == refused.status, refused.body
    message = refused.json["error"]["message"]
    found = re.search(r"\(\$?([\d.,]+) ?(?:tokens)? of", message)
    return float(found[1].replace(",", "")) if found else 0.0


def until(met: Any, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not met():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


async def crowd(gateways: list[Gateway], key: str, count: int) -> list[int]:
    """The statuses of so many requests at once, each on a connection of its own."""
    body = json.dumps(BODY).encode()
    ready = asyncio.Event()

    async def one(number: int) -> int:
        host, _, port = gateways[number % len(gateways)].url.partition("//")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-type: application/json\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n" % (key.encode(), len(body))
        )
        await ready.wait()
        writer.write(body)
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1])

    async with asyncio.timeout(PATIENCE):
        asking = [asyncio.create_task(one(number)) for number in range(count)]
        await asyncio.sleep(0.5)
        ready.set()
        return list(await asyncio.gather(*asking))


def test_L3_a_budget_for_fifty_is_not_overspent_by_five_hundred(site: Site) -> None:
    site.upstream.json(completion("hello") | {"usage": USAGE})
    budget = 50 * COST + 100_000  # The prompt is guessed at some tokens more than it had.
    key = site.key("--limit", f"{budget / 1e9:.9f}")
    statuses = asyncio.run(crowd([site.one, site.other], key, 500))
    admitted = statuses.count(200)
    assert 500 == admitted + statuses.count(429)
    assert 49 <= admitted <= 50
    until(lambda: admitted == sum(each["status"] == 200 for each in site.records()))
    spent = sum(each["cost_nanos"] or 0 for each in site.records())
    assert admitted * COST == spent <= budget
    assert admitted == len(site.upstream.requests)
    # Who has the end of an answer may be a little ahead of what is given back.
    rest = pytest.approx((budget - spent) / 1e9, abs=1e-9)
    until(lambda: [rest, rest] == [left(host, key) for host in (site.one, site.other)])
    # All hosts together have told each threshold once.
    until(lambda: len(site.hook.requests) >= 3)
    time.sleep(1)
    told = sorted(each.json["data"]["percent"] for each in site.hook.requests)
    assert [50, 80, 100] == told


def test_L3_L1_workers_without_a_server_share_budgets_and_each_has_its_own_rates(
    serve: Serve, hire: Hire, tmp_path: Path
) -> None:
    """Counters in memory. Budgets are exact over the workers of a host; of rates each admits what
    is written, which is said at the start."""
    upstream = hire()
    upstream.json(completion("hello") | {"usage": USAGE})
    text = CONFIGURATION.format(
        redis="memory:", folder=tmp_path, upstream=upstream.url, hook=upstream.url, lease="1h"
    )
    # The books have no part in it.
    text = text.replace("interval: 200ms", "interval: 1h")
    text = text.replace("    - alias\n", "    - rate_limit: {counters: state}\n    - alias\n")
    gateway = serve(text, "--workers", "2")
    said = [line for line in gateway.complaints().splitlines() if "2 workers (" in line]
    assert 1 == len(said)
    assert "rate_limit" in said[0]
    assert "REDIS_URL" in said[0]
    budget = 50 * COST + 100_000
    key = gateway.new_key("--limit", f"{budget / 1e9:.9f}")
    statuses = asyncio.run(crowd([gateway], key, 200))
    assert 200 == statuses.count(200) + statuses.count(429)
    assert 49 <= statuses.count(200) <= 50
    assert statuses.count(200) == len(upstream.requests)
    rest = pytest.approx((budget - statuses.count(200) * COST) / 1e9, abs=1e-9)
    until(lambda: [rest] * 6 == [left(gateway, key) for _ in range(6)])
    limited = gateway.new_key("--requests", "40/day")
    statuses = asyncio.run(crowd([gateway], limited, 200))
    assert {200, 429} == set(statuses)
    assert 40 <= statuses.count(200) <= 80


@pytest.mark.parametrize("site", ["3s"], indirect=True)
@pytest.mark.parametrize(
    ("unit", "amount"), [pytest.param("tokens", 11_000, marks=pytest.mark.large), ("usd", 0.105)]
)
def test_L3_what_a_killed_process_had_reserved_comes_back_and_what_it_spent_stays(
    site: Site, unit: str, amount: float
) -> None:
    site.upstream.then(slow(120))
    made = site.one.passy("keys", "create", "--json")
    key, id = json.loads(made.stdout)["key"], json.loads(made.stdout)["id"]
    wanted = ("add", "key", id, f"--{unit}", str(amount), "--per", "total")
    added = site.one.passy("budgets", *wanted)
    assert 0 == added.returncode, added.stderr
    with ThreadPoolExecutor(10) as crowd:
        for _ in range(10):
            crowd.submit(lost, site.one, key)
        until(lambda: 10 == len(site.upstream.requests))
        # All of it is reserved: the other host has nothing left for another one.
        assert 429 == ask(site.other, key).status
        killed = time.monotonic()
        site.one.process.kill()
        site.one.process.wait()
    site.upstream.forget()
    site.upstream.json(completion("hello") | {"usage": USAGE})
    assert 429 == ask(site.other, key).status or time.monotonic() - killed > 3
    until(lambda: 200 == ask(site.other, key).status)
    site.one.start()  # It ships what it had: ten guesses of a prompt, and what they cost.
    until(lambda: 10 == len(interrupted(site)))
    assert all(each["input"] and each["cost_nanos"] for each in interrupted(site))

    def agreed() -> bool:
        spent = sum(used(each, unit) for each in site.records())
        rest = pytest.approx(amount - spent, abs=1e-9)
        return [rest, rest] == [left(site.other, key), left(site.one, key)]

    until(agreed)
    time.sleep(1)  # Some more rounds change nothing.
    assert agreed()


def test_D1_L3_without_the_counters_hard_budgets_are_closed_and_then_follow_the_books(
    site: Site, valkey: Valkey
) -> None:
    site.upstream.json(completion("hello") | {"usage": USAGE})
    hard, made = site.key("--limit", "1"), site.one.passy("keys", "create", "--json")
    soft, id = json.loads(made.stdout)["key"], json.loads(made.stdout)["id"]
    added = site.one.passy("budgets", "add", "key", id, "--usd", "1", "--soft")
    assert 0 == added.returncode, added.stderr
    assert [200] * 4 == [ask(site.one, key).status for key in (hard, hard, hard, soft)]
    until(lambda: 4 == len(site.records()))
    valkey.kill()
    until(lambda: 503 == ask(site.one, hard).status)
    refused = ask(site.one, hard)
    assert "budget_unavailable" == refused.json["error"]["code"]
    assert 200 == ask(site.one, soft).status
    valkey.start()  # It knows nothing any more.
    until(lambda: 200 == ask(site.one, hard).status)

    def agreed() -> bool:
        spent = sum(used(each, "usd") for each in site.records() if each["key_id"] != id)
        return left(site.one, hard) == pytest.approx(1 - spent, abs=1e-9)

    until(agreed)


def interrupted(site: Site) -> list[dict[str, Any]]:
    return [each for each in site.records() if each["outcome"] == "interrupted"]


def used(record: dict[str, Any], unit: str) -> float:
    if unit == "usd":
        return float(record["cost_nanos"] or 0) / 1e9
    return float(record["input"] + record["output"])


def lost(gateway: Gateway, key: str) -> None:
    """A request whose gateway dies."""
    with suppress(OSError, http.client.HTTPException):
        ask(gateway, key)
