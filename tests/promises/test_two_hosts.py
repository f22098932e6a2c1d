"""Two hosts on one database and one Valkey; one of them cut off from both, under load, and back:
nothing lost, nothing doubled, limits as the policy says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness.clients import Clients
from harness.figures import Note
from harness.gateway import Asked, Gateway, Serve, until
from harness.hosts import Host, Relay
from harness.postgres import Database, OwnServer
from harness.upstream import RawUpstream, plainly
from harness.valkey import Valkey

from passy_plugins.stores.sql.admin import Admin
from passy_proxy import Limits, Rate, json
from passy_proxy.issue import NewKey
from passy_proxy.keyring import Keyring

SECRET = "of-this-test-alone-Gw7Kq2ZrXn5VtJ8bLm3PyHcD9sF4aE6u"
CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]})
LIMIT = 100
THREADS = 3
CONFIGURATION = """
stores:
  state: {{kind: redis, url: "redis://{stores}:{redis}/0", timeout: 4s}}
  books: {{kind: sql, url: "{books}"}}
upstreams: {{one: {{url: "http://{outside}:{upstream}/v1", credential: a-credential}}}}
models: {{m: [one/real]}}
chains:
  default:
    - access_log
    - usage: {{ledger: books}}
    - auth: {{directory: books, changes: state}}
    - rate_limit: {{counters: state, requests: 1000000/min}}
    - alias
    - fallback: {{retries: 0}}
routes: [{{match: POST /v1/chat/completions}}]
"""


def clients_of(gateway: Gateway, key: str, threads: int = THREADS) -> Clients:
    return Clients([gateway], key, BODY, threads)


@pytest.fixture
def pair(
    serve: Serve, own_postgres: OwnServer, hosts: tuple[Host, Host]
) -> Iterator[tuple[list[Gateway], list[str], RawUpstream, Database]]:
    """A gateway on each host, two keys, the provider, and the database."""
    with ExitStack() as stack:
        database = stack.enter_context(own_postgres.database())
        valkey = stack.enter_context(Valkey())
        upstream = stack.enter_context(RawUpstream(script=plainly))
        # First: to hear of the edit later would end what is known of them.
        limits = (Limits(), Limits(requests=Rate(LIMIT, 86_400)))
        keys = [key_in(database, each) for each in limits]
        gateways = []
        for host in hosts:
            stack.callback(host.mend)
            for address, port in (
                (host.stores, own_postgres.port),
                (host.stores, valkey.port),
                (host.outside, upstream.port),
            ):
                stack.enter_context(Relay(address, port))
            text = CONFIGURATION.format(
                stores=host.stores,
                outside=host.outside,
                redis=valkey.port,
                books=database.url.replace("127.0.0.1", host.stores),
                upstream=upstream.port,
            )
            gateway = serve(text, start=False, before=host.enter, PASSY_SECRET_KEYS=SECRET)
            gateway.start(f"{host.front}:8080")
            stack.callback(gateway.kill)
            gateways.append(gateway)
        yield gateways, keys, upstream, database


def key_in(database: Database, limits: Limits) -> str:
    async def made() -> str:
        async with Admin.opened(database.url, Keyring([SECRET])) as admin:
            return (await admin.create_key(NewKey("client", limits=limits)))[1]

    return asyncio.run(made())


def let_in(gateway: Gateway, key: str) -> Asked:
    """The first answer of a gateway that knows the key."""

    def asked() -> Asked | None:
        found = gateway.ask(CHAT, BODY, authorization=f"Bearer {key}")
        return found if found.status == 200 else None

    return until(asked)


def stores(gateway: Gateway) -> object:
    return gateway.ask("/readyz?verbose").json["stores"]


def test_D2_D3_a_host_that_is_cut_off_and_comes_back(
    pair: tuple[list[Gateway], list[str], RawUpstream, Database],
    hosts: tuple[Host, Host],
    figure: Note,
) -> None:
    (a, b), (free, limited), upstream, database = pair

    # Both are well: one limit for both, exact. A database may take its time to tell of a key.
    one_each = [let_in(gateway, key) for key in (free, limited) for gateway in (a, b)]
    on_both = [clients_of(gateway, free) for gateway in (a, b)]
    counted = [clients_of(gateway, limited) for gateway in (a, b)]
    until(lambda: all(len(each.refused) > 20 for each in counted) or None)
    for each in counted:
        each.stop()
    assert LIMIT == 2 + sum(len(each.whole) for each in counted)

    # The second one's cable to the stores is pulled. Who it knows is served on.
    hosts[1].cut()
    until(lambda: {"state": "away", "books": "away"} == stores(b) or None)
    until(lambda: {"state": "ok", "books": "ok"} == stores(a) or None)
    assert (200, 200) == (b.ask("/livez").status, b.ask("/readyz").status)
    alone = [clients_of(gateway, limited) for gateway in (a, b)]
    until(lambda: all(len(each.refused) > 20 for each in alone) or None)
    for each in alone:
        each.stop()
    assert [] == alone[0].whole
    # A share of the limit: there were two workers.
    assert LIMIT // 2 == len(alone[1].whole)

    # It is killed, and starts again, still cut off.
    served = [len(each.whole) for each in on_both]
    b.kill()
    b.start(f"{hosts[1].front}:8080")
    until(lambda: len(on_both[1].whole) > served[1] + 50 or None)
    until(lambda: len(on_both[0].whole) > served[0] or None)
    # It knows how many workers there were, and holds no more than that share.
    alone.append(clients_of(b, limited))
    until(lambda: len(alone[2].refused) > 20 or None)
    assert LIMIT // 2 == len(alone[2].stop().whole)

    # It is mended. What it had to tell is told.
    hosts[1].mend()
    began = time.monotonic()
    until(lambda: {"state": "ok", "books": "ok"} == stores(b) or None)
    back = time.monotonic() - began
    for each in on_both:
        each.stop()
    clients = [*on_both, *counted, *alone]
    told = [id for each in clients for id in (*each.whole, *each.refused)]
    told += [asked.headers["x-request-id"] for asked in one_each]

    def entered() -> set[str] | None:
        rows = database.rows("SELECT id FROM usage")
        found = {id for (id,) in rows}
        return found if found.issuperset(told) else None

    found = until(entered)
    shipped = time.monotonic() - began
    assert len(told) == len(set(told))
    # Each request that reached the provider has one record that says so. Of others there are only
    # those that the killed one had noted and not yet sent.
    asked = (
        "SELECT count(*), count(*) FILTER (WHERE outcome = 'interrupted') FROM usage"
        " WHERE attempts <> '[]'"
    )

    def recorded() -> tuple[int, int] | None:
        [(rows, interrupted)] = database.rows(asked)
        return (rows, interrupted) if rows - interrupted <= len(upstream.hits) <= rows else None

    _, interrupted = until(recorded)
    # One for each client that was asking it when it was killed.
    assert interrupted <= THREADS
    assert {} == on_both[0].others
    # Of the killed one only what was under way at that moment.
    assert set(on_both[1].others) <= {
        "RemoteDisconnected",
        "ConnectionResetError",
        "ConnectionRefusedError",
        "BrokenPipeError",
        "IncompleteRead",
    }
    # The limit is one again, and used up.
    again = [clients_of(gateway, limited, 1) for gateway in (a, b)]
    until(lambda: all(len(each.refused) > 5 for each in again) or None)
    assert [] == [id for each in again for id in each.stop().whole]
    for gateway in (a, b):
        assert 0 == gateway.stop()
    figure("requests told of; entered", f"{len(told)}; {len(found)}")
    figure("after the cable: well, all entered (s)", f"{back:.1f}, {shipped:.1f}")
