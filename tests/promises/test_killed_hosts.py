"""L3, M1: two hosts of two workers each, one PostgreSQL, one Valkey, and kill -9 again and again:
a hard budget is not overspent, and no answer that was seen is lost or counted twice."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from harness.clients import Clients
from harness.figures import Note
from harness.gateway import Gateway, Serve, until
from harness.ports import free_port
from harness.postgres import Database, Server
from harness.upstream import RawUpstream, whole
from harness.valkey import Valkey

from passy_proxy.testing import completion

CONFIGURATION = """
overload: {{loop_lag: 0s}}
stores:
  state: {{kind: redis, url: "{redis}", timeout: 5s}}
  books: {{kind: sql, url: "{books}"}}
upstreams: {{paid: {{url: "{upstream}/v1", credential: a-credential}}}}
models: {{m: [paid/m]}}
prices: {{paid/m: {{input: 1, output: 10, per: 1M}}}}
chains:
  default:
    - usage: {{ledger: books}}
    - auth: {{directory: books, changes: state}}
    - rate_limit: {{counters: state, requests: 1000000/min}}
    - alias
    - budgets: {{counters: state, books: books, interval: 200ms, lease: 1h}}
    - fallback: {{retries: 0}}
routes: [{{match: POST /v1/chat/completions}}]
"""
USAGE = {"prompt_tokens": 10, "completion_tokens": 1_000, "total_tokens": 1_010}
COST = 10_010_000
"""Billionths of a dollar that an answer costs."""
BODY = json.dumps(
    {"model": "m", "max_tokens": 1_000, "messages": [{"role": "user", "content": "hi"}]}
)
SUPERVISOR = 3
"""Each so many kills, all of a host is killed at once and started again."""


@pytest.fixture
def site(
    serve: Serve, postgres: Server, valkey: Valkey
) -> Iterator[tuple[list[Gateway], RawUpstream, Database]]:
    answer = whole(json.dumps(completion("hello") | {"usage": USAGE}))
    with ExitStack() as stack:
        database = stack.enter_context(postgres.database())
        upstream = stack.enter_context(RawUpstream(script=lambda _: answer))
        valkey.ask("FLUSHALL")
        text = CONFIGURATION.format(redis=valkey.url, books=database.url, upstream=upstream.url)
        ring = secrets.token_urlsafe(48)
        gateways = []
        for _ in range(2):
            gateway = serve(text, "--workers", "2", start=False, PASSY_SECRET_KEYS=ring)
            gateway.start(f"127.0.0.1:{free_port()}")
            gateways.append(gateway)
        yield gateways, upstream, database


def workers(gateway: Gateway) -> list[int]:
    pid = gateway.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_all(gateway: Gateway) -> None:
    """Nobody of the host has a last word; then it is started anew where it was."""
    family = [gateway.process.pid, *workers(gateway)]
    for pid in family:
        kill(pid)
    gateway.process.wait(90)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family) or None)
    gateway.start(gateway.url.partition("//")[2])


def tried(
    site: tuple[list[Gateway], RawUpstream, Database], kills: int, each: int, threads: int
) -> tuple[int, int]:
    """Kill so often, after ``each`` more answers; more is asked for than there is money for.
    How many answers were seen whole, and how many requests were interrupted."""
    gateways, upstream, database = site
    dice = random.Random(4)
    # What is interrupted costs a guess, which comes out of the same budget.
    budget = (kills + 2) * each * COST + 100_000
    key = gateways[0].new_key("--limit", f"{budget / 1e9:.9f}")
    with Clients(gateways, key, BODY, threads) as crowd:
        for number in range(1, kills + 1):
            until(lambda: len(crowd.whole) >= number * each or None)  # noqa: B023
            gateway = gateways[number % 2]
            if number % SUPERVISOR:
                kill(dice.choice(until(lambda: workers(gateway) or None)))  # noqa: B023
            else:
                kill_all(gateway)
        until(lambda: len(crowd.refused) > 20 or None)
    assert not {"500", "502", "401"} & set(crowd.others), crowd.others
    assert len(crowd.whole) == len(set(crowd.whole))

    def entered() -> list[tuple[str, str, int, int]] | None:
        rows = database.rows("SELECT id, outcome, status, cost_nanos FROM usage")
        return rows if {row[0] for row in rows}.issuperset(crowd.whole) else None

    until(entered)
    # All journals are shipped: what reached the provider is in the books, once.
    asked = "SELECT count(*) FROM usage WHERE attempts <> '[]'"
    until(lambda: database.rows(asked)[0][0] >= len(upstream.hits) or None)
    rows = database.rows("SELECT id, outcome, status, cost_nanos FROM usage")
    assert len(rows) == len({row[0] for row in rows})
    by_id = {row[0]: row for row in rows}
    assert all((200, COST) == by_id[id][2:] for id in crowd.whole)
    spent = sum(row[3] or 0 for row in rows)
    assert spent <= budget
    # What was reserved for those who were killed is the most that can be left over.
    interrupted = sum(row[1] == "interrupted" for row in rows)
    assert interrupted <= kills * threads
    assert budget - spent <= (interrupted + kills * threads + 1) * (COST + 300_000)
    time.sleep(0.5)  # Some more rounds of reading the books change nothing.
    for gateway in gateways:
        shown = {"authorization": f"Bearer {key}"}
        assert 429 == gateway.ask("/v1/chat/completions", json.loads(BODY), **shown).status
        assert 0 == gateway.stop()
    return len(crowd.whole), interrupted


def test_L3_M1_hosts_that_are_killed_overspend_no_budget_and_lose_no_answer(
    site: tuple[list[Gateway], RawUpstream, Database],
) -> None:
    tried(site, kills=3, each=15, threads=4)


@pytest.mark.large
def test_L3_M1_hosts_that_are_killed_thirty_times(
    site: tuple[list[Gateway], RawUpstream, Database], figure: Note
) -> None:
    seen, interrupted = tried(site, kills=30, each=60, threads=8)
    figure("answers seen whole; requests interrupted", f"{seen}; {interrupted}")
