"""M4, D1: a PostgreSQL that is stopped, silent or restarted under load: nobody notices, and nothing
is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import quantiles

import pytest
from harness.figures import Note
from harness.gateway import PATIENCE, Serve, until
from harness.metered import Clients, answer
from harness.postgres import Database, OwnServer
from harness.upstream import RawUpstream

CONFIGURATION = """
stores:
  books: {{kind: sql, url: "${{DATABASE_URL}}"}}
upstreams:
  mock: {{dialect: openai, url: "{url}/v1", credential: sk-of-the-operator}}
models: {{"*": ["mock/*"]}}
chains:
  default: [usage: {{ledger: books}}, auth: {{directory: books, ttl: 4s}}, alias, fallback]
routes: [{{match: POST /v1/chat/completions, chain: default}}]
prices: {{mock/*: {{input: 1, output: 2, per: 1M}}}}
"""


@contextmanager
def stopped(server: OwnServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def paused(server: OwnServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def restarted(server: OwnServer) -> Iterator[None]:
    """Again and again, also in the middle of a batch."""
    over = threading.Event()

    def restart() -> None:
        while not over.wait(0.7):
            server.stop()
            server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


SIZES = [
    pytest.param(2.5, id="fast"),
    pytest.param(60.0, id="large", marks=pytest.mark.large),
]


@pytest.mark.parametrize("seconds", SIZES)
@pytest.mark.parametrize("fault", [stopped, paused, restarted])
def test_M4_D1_postgres_away_loses_no_record_and_slows_no_request(
    serve: Serve,
    database: Database,
    own_postgres: OwnServer,
    figure: Note,
    seconds: float,
    fault: Callable[[OwnServer], AbstractContextManager[None]],
) -> None:
    with RawUpstream(script=answer) as upstream:
        configuration = CONFIGURATION.format(url=upstream.url)
        gateway = serve(configuration, start=False, DATABASE_URL=database.url)
        gateway.start()
        key = gateway.new_key()

        def load(over: float, seed: int) -> Clients:
            clients = Clients(gateway.url, int(over * 100), 10, seed, key)
            asyncio.run(clients.run(over))
            assert set() == clients.failed
            return clients

        load(0.5, 1)
        calm = load(seconds, 2)
        with fault(own_postgres):
            away = load(seconds, 3)
            assert 200 == gateway.ask("/livez").status
            assert 200 == gateway.ask("/readyz").status
        began = time.monotonic()
        expected = 50 + 2 * int(seconds * 100)
        count = "SELECT count(*) FROM usage"
        until(lambda: database.rows(count) == [(expected,)] or None)
        back = time.monotonic() - began
        assert 0 == gateway.stop()
    found = "SELECT count(*), count(DISTINCT id) FROM usage WHERE outcome = 'ok'"
    assert [(expected, expected)] == database.rows(found)
    assert [(expected,)] == database.rows("SELECT sum(requests)::int FROM usage_days")
    assert back < PATIENCE
    before, meanwhile = (quantiles(each.seconds, n=100)[98] for each in (calm, away))
    # The promise is 2 ms, on a machine that does nothing else. Who waited for the database would
    # wait for as long as it is away, and so would all.
    usual, then = (quantiles(each.seconds, n=10)[8] for each in (calm, away))
    assert then < usual + 1.0
    lines = gateway.complaints().count('"usage_waits"')
    assert lines <= 10
    figure("p99 before, while away (ms)", f"{before * 1e3:.1f}, {meanwhile * 1e3:.1f}")
    figure("entered after (s)", f"{back:.1f}")
