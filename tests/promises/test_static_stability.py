"""D: databases and Redis that are away, at the start and in the middle: who is served, who is not,
how soon a revocation holds, and that nothing has to be started again."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeVar

import pytest
from harness.again import spared
from harness.figures import Note
from harness.gateway import PATIENCE, Gateway, Serve, until
from harness.hosts import Relay
from harness.ports import free_port
from harness.postgres import Database, OwnServer
from harness.upstream import RawUpstream, plainly
from harness.valkey import Valkey

from passy_plugins.shares import Shares
from passy_plugins.stores.redis import Redis, RedisSettings
from passy_plugins.stores.sql.admin import Admin
from passy_proxy import Claim, Rate, Vitals, keys
from passy_proxy.issue import NewKey
from passy_proxy.keyring import Keyring
from passy_proxy.pulse import Slot
from passy_proxy.site import Site as ProcessSite

T = TypeVar("T")

SECRET = "of-this-test-alone-Gw7Kq2ZrXn5VtJ8bLm3PyHcD9sF4aE6u"
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
CONFIGURATION = """
stores:
  state: {{kind: redis, url: "{redis}"}}
  books: {{kind: sql, url: "{books}"}}
upstreams: {{one: {{url: "{upstream}/v1", credential: a-credential}}}}
models: {{m: [one/real]}}
chains:
  default:
    - access_log
    - usage: {{ledger: books}}
    - auth: {{directory: books{auth}}}
    - rate_limit: {{counters: state, requests: 100000/min}}
    - byok: {{vault: books}}
    - alias
    - fallback
routes: [{{match: POST /v1/chat/completions}}]
"""


TOLD = ", changes: state"


class Site:
    """A database, a Valkey, a provider, and gateways on them."""

    def __init__(self, serve: Serve, database: Database, upstream: RawUpstream) -> None:
        self._serve = serve
        self.database = database
        self.books = database.url
        """Where gateways find it."""
        self.upstream = upstream
        self.valkey = Valkey()

    def gateway(
        self, *arguments: str, start: bool = True, auth: str = ", changes: state"
    ) -> Gateway:
        text = CONFIGURATION.format(
            redis=self.valkey.url, books=self.books, upstream=self.upstream.url, auth=auth
        )
        made = self._serve(text, *arguments, start=False, PASSY_SECRET_KEYS=SECRET)
        if start:
            made.start()
        return made

    def edit(self, work: Callable[[Admin], Awaitable[T]], tell: bool = False) -> T:
        """What an administrator does; ``tell`` as the API of administration tells of it."""

        async def told(kind: str, subject: str) -> None:
            if tell:
                self.valkey.ask("PUBLISH", "passy:changes", json.dumps([kind, subject]))

        async def within() -> T:
            async with Admin.opened(self.database.url, Keyring([SECRET]), told) as admin:
                return await work(admin)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(within())).result()

    def keys(self, count: int = 1) -> list[tuple[str, str]]:
        """Id and key of new ones."""

        async def made(admin: Admin) -> list[tuple[str, str]]:
            found = [await admin.create_key(NewKey(f"{number}")) for number in range(count)]
            return [(record.id, key) for record, key in found]

        return self.edit(made)

    def disable(self, id: str, tell: bool = False) -> None:
        self.edit(lambda admin: admin.disable_key(id), tell)


@pytest.fixture
def site(serve: Serve, own_postgres: OwnServer) -> Iterator[Site]:
    with ExitStack() as stack:
        database = stack.enter_context(own_postgres.database())
        # To drop the database its server has to run.
        stack.callback(lambda: own_postgres.pid or own_postgres.start())
        upstream = stack.enter_context(RawUpstream(script=plainly))
        made = Site(serve, database, upstream)
        with made.valkey:
            yield made


def ask(gateway: Gateway, key: str) -> int:
    return gateway.ask(CHAT, BODY, authorization=f"Bearer {key}").status


def let_in(gateway: Gateway, key: str) -> None:
    """The gateway knows the key when this returns: a database may take its time to tell of it."""
    until(lambda: 200 == ask(gateway, key) or None)


def probes(gateway: Gateway) -> tuple[int, int]:
    return gateway.ask("/livez").status, gateway.ask("/readyz").status


def stores(gateway: Gateway) -> Any:
    return gateway.ask("/readyz?verbose").json["stores"]


def test_D3_D5_a_gateway_that_starts_while_all_is_away_serves_who_it_knew(
    site: Site, own_postgres: OwnServer, figure: Note
) -> None:
    gateway = site.gateway()
    (_, known), (id, revoked), (gone_id, gone), (_, unseen) = site.keys(4)
    for key in (known, revoked, gone):
        let_in(gateway, key)
    # Revoked, and shown never again; the gateway learns of it all the same.
    site.disable(id, tell=True)
    site.edit(lambda admin: admin.delete_key(gone_id), tell=True)
    # The table of changes tells of it once more, and of the last edit last.
    [(last, _)] = site.keys()
    until(lambda: has_heard_of(gateway, last) or None)
    until(
        lambda: (
            (
                [200, 401, 401] == [ask(gateway, key) for key in (known, revoked, gone)]
                and well_known(gateway)
            )
            or None
        )
    )
    own_postgres.stop()
    site.valkey.kill()
    gateway.kill()
    began = time.monotonic()
    gateway.start(gateway.url.partition("//")[2])
    figure("a start while all is away (s)", round(time.monotonic() - began, 2))
    for _ in range(3):
        answers = [ask(gateway, key) for key in (known, revoked, gone, unseen, keys.new_key())]
        assert [200, 401, 401, 503, 503] == answers
        assert (200, 200) == probes(gateway)
        time.sleep(0.4)
    until(lambda: {"state": "away", "books": "away"} == stores(gateway) or None)
    # All comes back, without a restart.
    own_postgres.start()
    site.valkey.start()
    until(lambda: 200 == ask(gateway, unseen) or None)
    assert [200, 401, 401] == [ask(gateway, key) for key in (known, revoked, gone)]
    until(lambda: {"state": "ok", "books": "ok"} == stores(gateway) or None)
    served = len(site.upstream.hits)
    until(lambda: [(served,)] == ok_records(site) or None)
    assert 0 == gateway.stop()


def has_heard_of(gateway: Gateway, id: str) -> bool:
    """Whether it was told that this key was edited."""
    with closing(sqlite3.connect(gateway.folder / "data/known.db")) as file:
        found = file.execute("SELECT 1 FROM edited WHERE subject = ?", [f"key:{id}"]).fetchone()
    return found is not None


def well_known(gateway: Gateway) -> bool:
    """Whether all three keys are on disk, each as it was after the last edit of it."""
    with closing(sqlite3.connect(gateway.folder / "data/known.db")) as file:
        values = [value for (value,) in file.execute("SELECT value FROM remembered")]
        old = file.execute(
            "SELECT count(*) FROM remembered, json_each(remembered.subjects) AS about"
            " JOIN edited ON edited.subject = about.value WHERE edited.at >= remembered.at"
        ).fetchone()
    disabled = sum(b'"disabled":true' in value for value in values)
    return (3, 1, 1, (0,)) == (len(values), disabled, values.count(b"null"), old)


def ok_records(site: Site) -> list[tuple[Any, ...]]:
    return site.database.rows("SELECT count(*) FROM usage WHERE outcome = 'ok'")


ORDERS = list(itertools.permutations(("postgres", "valkey", "gateway", "upstream")))
FEW = [
    ("gateway", "postgres", "valkey", "upstream"),
    ("upstream", "valkey", "gateway", "postgres"),
    ("postgres", "gateway", "upstream", "valkey"),
]


@pytest.mark.parametrize(
    ("orders", "gap"), [(FEW, 0.3), pytest.param(ORDERS, 5.0, marks=pytest.mark.large)]
)
def test_D4_whatever_starts_first_nothing_is_started_twice(
    orders: Any, gap: float, serve: Serve, own_postgres: OwnServer, figure: Note
) -> None:
    slowest = max(all_well_after(order, gap, serve, own_postgres) for order in orders)
    figure("orders; all well at the latest after (s)", f"{len(orders)}; {slowest:.1f}")


def all_well_after(
    order: Sequence[str], gap: float, serve: Serve, own_postgres: OwnServer
) -> float:
    """Start all four in an order; how long after the last one everything works."""
    with ExitStack() as stack:
        database = stack.enter_context(own_postgres.database())
        upstream = RawUpstream(script=plainly, port=free_port())
        site = Site(serve, database, upstream)
        stack.callback(site.valkey.kill)
        [(_, key)] = site.keys()
        own_postgres.stop()
        stack.callback(lambda: own_postgres.pid or own_postgres.start())
        gateway = site.gateway(start=False)
        stack.callback(gateway.kill)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        starting: list[Future[None]] = []
        begin: dict[str, Callable[[], object]] = {
            "postgres": own_postgres.start,
            "valkey": site.valkey.start,
            # It answers only once it has had what it needs.
            "gateway": lambda: starting.append(pool.submit(gateway.start)),
            "upstream": lambda: stack.enter_context(upstream),
        }
        for who in order:
            begin[who]()
            time.sleep(gap)
        began = time.monotonic()
        starting[0].result(PATIENCE)
        until(lambda: 200 == ask(gateway, key) or None)
        until(lambda: {"state": "ok", "books": "ok"} == stores(gateway) or None)
        until(lambda: [(len(upstream.hits),)] == ok_records(site) or None)
        took = time.monotonic() - began
        assert (200, 200) == probes(gateway)
        assert 0 == gateway.stop()
        return took


@pytest.mark.parametrize("times", [3, pytest.param(100, marks=pytest.mark.large)])
@pytest.mark.parametrize(
    ("auth", "tell", "limit"),
    [(", changes: state", True, 1.0), ("", False, 5.0)],
    ids=["redis", "books"],
)
def test_D6_a_revocation_holds_in_time(
    times: int, auth: str, tell: bool, limit: float, site: Site, figure: Note
) -> None:
    gateway = site.gateway("--workers", "2", auth=auth)
    took = []
    made = site.keys(times)
    for _, key in made:
        for _ in range(6):  # Both workers know it.
            let_in(gateway, key)
    until(lambda: {"state": "ok", "books": "ok"} == stores(gateway) or None)
    for id, key in made:
        site.disable(id, tell)
        began = time.monotonic()
        in_a_row = 0
        while in_a_row < 6:  # Whichever worker is asked.
            status = ask(gateway, key)
            assert status in (200, 401, 503)  # It may have to wait for what the database says.
            if status == 200:
                took.append(time.monotonic() - began)
            in_a_row = in_a_row + 1 if status == 401 else 0
            assert time.monotonic() - began < PATIENCE
        took.append(0.0)
    assert 0 == gateway.stop()
    longest = max(took)
    figure("revocations; still let in for at most (s)", f"{times}; {longest:.2f}")
    assert longest < limit + 5.0  # The machine may be busy with other things.


def test_D3_D5_M4_no_request_waits_for_postgresql(
    site: Site, own_postgres: OwnServer, figure: Note
) -> None:
    """Stopped, and stopped dead: with its sockets open and nobody behind them."""
    [(_, key)] = site.keys()  # First: to hear of the edit later would end what is known of it.
    gateway = site.gateway(auth=", ttl: 1s, patience: 1m, changes: state")

    def load(count: int) -> list[float]:
        took = []
        for _ in range(count):
            began = time.monotonic()
            assert 200 == ask(gateway, key)
            took.append(time.monotonic() - began)
            time.sleep(0.005)
        return took

    let_in(gateway, key)
    load(50)
    calm = load(200)

    def outage() -> tuple[list[float], list[float]]:
        own_postgres.pause()
        frozen = load(400)
        assert (200, 200) == probes(gateway)
        own_postgres.resume()
        own_postgres.stop()
        stopped = load(300)
        own_postgres.start()
        return frozen, stopped

    # Nobody has waited for a time limit: those are 3 s.
    frozen, stopped = spared(outage, lambda took: max(map(max, took)) < 2.9)
    p99 = [quantiles(each, n=100)[98] * 1e3 for each in (calm, frozen, stopped)]
    figure("p99 (ms): calm, frozen, stopped", ", ".join(f"{each:.1f}" for each in p99))
    figure("longest (ms)", ", ".join(f"{max(each) * 1e3:.0f}" for each in (calm, frozen, stopped)))
    assert max(frozen + stopped) < 2.9
    served = len(site.upstream.hits)
    assert served >= 950
    until(lambda: [(served,)] == ok_records(site) or None)
    assert 0 == gateway.stop()


def test_D3_postgresql_hears_no_more_of_many_requests_than_of_few(
    serve: Serve, own_postgres: OwnServer, figure: Note
) -> None:
    """What goes to it is counted: usage in batches, looks at the table of changes, a key now and
    then; nothing for each request."""
    with ExitStack() as stack:
        database = stack.enter_context(own_postgres.database())
        upstream = stack.enter_context(RawUpstream(script=plainly))
        site = Site(serve, database, upstream)
        stack.enter_context(site.valkey)
        relay = stack.enter_context(Relay("127.0.0.2", own_postgres.port))
        site.books = database.url.replace("127.0.0.1", "127.0.0.2")
        [(_, key)] = site.keys()  # First: to hear of the edit later would end what is known of it.
        gateway = site.gateway()
        let_in(gateway, key)

        def packets(pause: float, seconds: float = 3.0, least: int = 0) -> tuple[int, float]:
            """How many requests in that time, or until there were so many; and what went to the
            database in each second."""
            before, count, began = relay.sent, 0, time.monotonic()
            with closing(HTTPConnection(gateway.url.partition("//")[2], timeout=90)) as connection:
                while time.monotonic() < began + seconds or count < least:
                    sent = {"authorization": f"Bearer {key}"}
                    connection.request("POST", CHAT, json.dumps(BODY), sent)
                    answer = connection.getresponse()
                    answer.read()
                    assert 200 == answer.status
                    count += 1
                    time.sleep(pause)
            return count, (relay.sent - before) / (time.monotonic() - began)

        packets(0.1, 1.0)
        few, calm = packets(0.3)
        many, busy = packets(0.0, least=10 * few)
        figure("requests; packets to PostgreSQL a second", f"{few}, {many}; {calm:.0f}, {busy:.0f}")
        # A batch each quarter of a second is a handful of packets, however much is in it.
        assert busy < 60
        assert busy < calm + 40
        assert 0 == gateway.stop()


def test_D6_a_command_tells_of_its_edit_through_redis(site: Site) -> None:
    """And a changed limit is one at once, without a restart."""
    gateway = site.gateway()
    made = gateway.passy("keys", "create", "--json", "--requests", "1000/min")
    key, id = (json.loads(made.stdout)[name] for name in ("key", "id"))
    let_in(gateway, key)
    until(lambda: {"state": "ok", "books": "ok"} == stores(gateway) or None)
    with socket.create_connection(("127.0.0.1", site.valkey.port), timeout=90) as sock:
        sock.sendall(b"SUBSCRIBE passy:changes\r\n")
        assert b"subscribe" in sock.recv(1000)
        assert 0 == gateway.passy("keys", "disable", id).returncode
        heard = b""
        while id.encode() not in heard:
            piece = sock.recv(1000)
            assert piece, heard
            heard += piece
    until(lambda: 401 == ask(gateway, key) or None)
    # Limits: what was remembered of a key's limits ends with its principal.
    [(other_id, other)] = site.keys()
    let_in(gateway, other)
    limits = {"requests": Rate(1, 86_400)}
    site.edit(lambda admin: admin.change_key(other_id, **limits), tell=True)
    until(lambda: 429 == ask(gateway, other) or None)
    assert 0 == gateway.stop()


def test_D1_what_filters_do_without_their_store_where_nothing_is_set(site: Site) -> None:
    gateway = site.gateway()
    gateway.file.write_text(
        gateway.file.read_text().replace(
            "    - byok", "    - budgets: {counters: state}\n    - byok"
        )
    )
    told = until(
        lambda: (
            found
            if "budgets" in (found := gateway.ask("/readyz?verbose").json["when_away"])
            else None
        )
    )
    assert {
        "usage": "records wait in the journal; when its disk is full: 503",
        "auth": "keys known in the last 15m0s are taken, 503 for others",
        "rate_limit": "local: each worker holds its share of the limits",
        "budgets": "hard budgets: 503; soft ones: admitted uncounted",
        "byok": "what organisations brought is used for 15m0s, 503 for them after that",
    } == told
    assert 0 == gateway.stop()


def test_D2_shares_of_a_server_never_heard_of_are_those_of_this_gateways_workers(
    tmp_path: Path,
) -> None:
    slots = [Slot() for _ in range(3)]
    vitals = Vitals(slots, 1)
    settings = RedisSettings.model_validate({"url": "redis://127.0.0.1:1"})
    store = Redis(settings, ProcessSite(tmp_path, Keyring([SECRET]), vitals=vitals))
    claim = Claim("key:1", Rate(90, 3600.0), 1)
    shares = Shares(store)
    assert 30 == sum(shares.take([claim]).admitted for _ in range(100))
    for slot in slots:
        slot.close()
