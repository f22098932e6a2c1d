"""D1 for the store of kind `redis`: what it does while its server is away, slow, wrong or new."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import structlog
from harness.crowd import until
from harness.upstream import black_hole
from harness.valkey import Cluster, Valkey, Wire

from passy_plugins.stores.redis import Redis, RedisSettings
from passy_plugins.stores.redis.line import QUIET, Line
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site
from passy_proxy.stores import Allowance, Claim, Grant, StoreUnavailable
from passy_proxy.units import Rate

pytestmark = pytest.mark.anyio

NAMES = (f"faults-{number}" for number in count())
TIMEOUT = 0.4
"""Of a decision where a server does not answer it. Many times the default: these tests share their
machine."""
PATIENT = 30.0
"""Of one that is answered, by a server that may get no turn for a while."""
ONE = Claim("key", Rate(1_000_000, 365 * 86_400), 1)

FAULTS: dict[str, Any] = {
    "refused": "refused",
    "black-holed": "hole",
    "delayed": 60.0,
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "no-auth": b"-NOAUTH Authentication required.\r\n",
    "garbage": "garbage",
    "reset-mid-reply": "reset",
    "cluster-down": b"-CLUSTERDOWN The cluster is down\r\n",
    "out-of-memory": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "old-servers-read-only": b"-ERR Error running script (call to f_1): -READONLY You can't\r\n",
    "no-string": b":7\r\n",
    "a-string-too-short": b"$3\r\nabc\r\n",
    "too-many-answers": b"$3\r\nabc\r\n$3\r\nabc\r\n",
}


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Redis]:
    patient = {"timeout": PATIENT, "connect_timeout": PATIENT}
    settings = {"name": next(NAMES), **patient, **settings}
    keyring = Keyring(["the secret key of these tests: 0123456789"])
    store = Redis(RedisSettings(url=Secret(url), **settings), Site(Path("nowhere"), keyring))
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


async def taken(store: Redis, *claims: Claim) -> Grant:
    answer = store.take(claims or [ONE])
    return answer if isinstance(answer, Grant) else await answer


async def served(store: Redis) -> bool:
    try:
        await taken(store)
    except StoreUnavailable:
        return False
    return True


def patience(store: Redis, seconds: float) -> None:
    """From now on a decision may take so long."""
    it = line(store)
    it._timeout = it._nodes.timeout = seconds
    if it._timer is not None:  # It looks at what there was before.
        it._timer.cancel()
        it._timer = None


async def back(store: Redis, within: float = 60.0) -> float:
    """Seconds until it decides again."""
    patience(store, PATIENT)
    began = time.monotonic()
    while not await served(store):
        assert time.monotonic() - began < within
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def line(store: Redis) -> Line:
    assert store._there is not None
    return store._there._line


@pytest.mark.parametrize("fault", FAULTS)
async def test_D1_a_fault_costs_a_few_decisions_and_ends_by_itself(
    valkey: Valkey, logged: list[Any], fault: str
) -> None:
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            assert await served(store)
            wire.fault = FAULTS[fault]
            patience(store, TIMEOUT)
            began = time.monotonic()
            assert not any(await asyncio.gather(*(served(store) for _ in range(20))))
            assert time.monotonic() - began < TIMEOUT + 15
            connections, began = wire.connections, time.monotonic()
            at_once = 0
            while (lasted := time.monotonic() - began) < 1.2 or at_once < 20:
                assert lasted < 30, "each of them waits"
                asked = time.monotonic()
                assert not await served(store)
                at_once += time.monotonic() - asked < TIMEOUT / 2
                await asyncio.sleep(0.01)
            assert wire.connections - connections < 10 * lasted, "it knocks too often"
            wire.fault = None
            await back(store)
    events = [each["event"] for each in logged if each["event"].startswith("redis")]
    assert ["redis_away", "redis_back"] == events


async def test_D1_a_frozen_server_is_given_up_and_taken_back(logged: list[Any]) -> None:
    with Valkey() as server:
        async with opened(server.url) as store:
            server.freeze()
            patience(store, TIMEOUT)
            assert not await served(store)
            with pytest.raises(StoreUnavailable, match=f"no answer within {TIMEOUT * 1000:.0f} ms"):
                store.take([ONE])
            server.thaw()
            await back(store)


async def test_D1_a_server_nobody_can_connect_to() -> None:
    with black_hole() as url:
        began = time.monotonic()
        async with opened(url.replace("http", "redis"), connect_timeout=0.2) as store:
            assert time.monotonic() - began < 15
            assert not await served(store)


async def test_D1_scripts_that_were_flushed_are_sent_again(logged: list[Any]) -> None:
    with Valkey() as server:
        async with opened(server.url) as store:
            for _ in range(3):
                server.ask("SCRIPT", "FLUSH")
                grants = await asyncio.gather(*(taken(store) for _ in range(300)))
                assert all(grant.admitted for grant in grants)
            assert 1_000_000 - 901 == (await taken(store)).rooms[0].remaining
    assert not [each for each in logged if each["event"] == "redis_away"]


@pytest.mark.parametrize("refused", ["-evalsha -script", "-evalsha", "-script"])
async def test_D1_where_scripts_cannot_be_kept_they_are_sent_each_time(refused: str) -> None:
    with Valkey() as server:
        server.ask("ACL", "SETUSER", "default", *refused.split())
        async with opened(server.url) as store:
            for _ in range(3):
                assert await served(store)
            assert ("-evalsha" in refused) == (line(store)._link.whole)  # type: ignore[union-attr]


async def test_D1_scripts_that_are_refused_later_on(logged: list[Any]) -> None:
    with Valkey() as server:
        async with opened(server.url) as store:
            server.ask("ACL", "SETUSER", "default", "-evalsha")
            assert await served(store)
            server.ask("ACL", "SETUSER", "default", "-eval")
            assert not await served(store)
            server.ask("ACL", "SETUSER", "default", "+eval")
            await back(store)


async def test_D1_no_more_clients_are_let_in() -> None:
    with Valkey() as server, socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(b"PING\r\n")
        assert other.recv(10)
        async with opened(server.url) as store:
            server.ask("CONFIG", "SET", "maxclients", "1")
            assert await served(store)  # Its own connection stays.
            line(store)._link.close("cut by the test")  # type: ignore[union-attr]
            await until(lambda: not line(store).up)
            assert "max number of clients" in line(store).reason


async def test_D1_a_master_that_became_a_replica_is_left_for_the_new_one() -> None:
    with Valkey() as old, Valkey() as new:
        async with opened(f"{old.url},{new.url}") as store:
            assert await served(store)
            old.ask("REPLICAOF", "127.0.0.1", new.port)
            assert not await served(store)
            await back(store)
            assert new.port == line(store)._link.place.port  # type: ignore[union-attr]


async def test_D1_a_password_that_was_set_meanwhile() -> None:
    with Valkey() as server:
        async with opened(f"redis://:later@127.0.0.1:{server.port}") as store:
            assert not await served(store)  # There is none yet.
            server.ask("CONFIG", "SET", "requirepass", "later")
            await back(store)


async def test_D4_a_server_that_comes_up_later_needs_no_restart(logged: list[Any]) -> None:
    server = Valkey()
    async with opened(server.url) as store:
        assert not await served(store)
        with server:
            await back(store)
    assert ["redis_away", "redis_back"] == [
        each["event"] for each in logged if each["event"].startswith("redis")
    ]


async def test_an_idle_connection_that_ends_costs_nobody_anything(
    valkey: Valkey, logged: list[Any]
) -> None:
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            for _ in range(5):
                assert await served(store)
                await until(lambda: not line(store).waiting)
                link = line(store)._link
                wire.cut()
                await until(lambda link=link: line(store)._link is not link)  # type: ignore[misc]
                assert await served(store)
    assert not [each for each in logged if each["event"] == "redis_away"]


async def test_D1_one_that_comes_and_goes_does_not_fill_the_log(
    valkey: Valkey, logged: list[Any]
) -> None:
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            began = time.monotonic()
            for _ in range(8):
                wire.fault = "garbage"
                assert not await served(store)
                wire.fault = None
                await back(store)
    lines = len([each for each in logged if each["event"].startswith("redis")])
    assert lines <= 2 + 2 * (time.monotonic() - began) // QUIET


async def test_a_worker_that_was_held_up_does_not_blame_the_server(valkey: Valkey) -> None:
    async with opened(valkey.url) as store:
        patience(store, TIMEOUT)
        asked = asyncio.ensure_future(taken(store))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(3 * TIMEOUT)  # noqa: ASYNC251
        sock = line(store)._link._transport.get_extra_info("socket")  # type: ignore[union-attr]
        select.select([sock], [], [], 60)  # By now the answer is there, and is not read yet.
        assert (await asked).admitted
        assert line(store).up


async def test_too_many_at_once_are_refused_and_the_rest_is_decided(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    from passy_plugins.stores.redis import counters

    monkeypatch.setattr(counters, "MOST", 300)
    async with opened(valkey.url) as store:
        assert await served(store)
        found = await asyncio.gather(*(served(store) for _ in range(500)))
        assert (300, 200) == (sum(found), len(found) - sum(found))
        assert await served(store)


# What is settled while it is away


async def test_D1_what_was_perhaps_taken_is_given_back(valkey: Valkey) -> None:
    """The server decides, and its reply never comes: nobody holds the slot."""
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            budget = Allowance(100, "w", 2e9, True, 600.0)
            await store.prime("budget", budget, 0)  # type: ignore[misc]
            wire.fault = "reset"
            with pytest.raises(StoreUnavailable):
                await taken(store, Claim("slots", 1, 1), Claim("budget", budget, 100))
            wire.fault = None
            await back(store)
            assert (await taken(store, Claim("slots", 1, 1), Claim("budget", budget, 1))).admitted


async def test_a_settle_that_nobody_heard_is_said_later(valkey: Valkey) -> None:
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            budget = Claim("budget", Allowance(100, "w", 2e9, True, 600.0), 50)
            claims = [Claim("rate", Rate(10, 3_600), 8), budget, Claim("slots", 1, 1)]
            assert isinstance(budget.limit, Allowance)
            await store.prime("budget", budget.limit, 0)  # type: ignore[misc]
            grant = await taken(store, *claims)
            wire.fault = "garbage"
            assert not await served(store)
            assert store.settle(grant, [2, 10]) is None
            wire.fault = None
            await back(store)
            rate, money, slots = (
                await taken(store, *[Claim(one.key, one.limit, 0) for one in claims])
            ).rooms
            assert (8, 90, 1) == (rate.remaining, money.remaining, slots.remaining)


async def test_a_settle_that_was_perhaps_heard_counts_once(valkey: Valkey) -> None:
    """The server does it, and its reply never comes."""
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            budget = Claim("budget", Allowance(100, "w", 2e9, True, 600.0), 50)
            assert isinstance(budget.limit, Allowance)
            await store.prime("budget", budget.limit, 0)  # type: ignore[misc]
            grants = [await taken(store, budget, Claim("slots", 2, 1)) for _ in range(2)]
            wire.fault = "reset"
            for grant in grants:
                assert store.settle(grant, [10]) is None
            assert not await served(store)
            wire.fault = None
            await back(store)
            money, slots = (
                await taken(store, Claim("budget", budget.limit, 0), Claim("slots", 2, 0))
            ).rooms
            assert (80, 2) == (money.remaining, slots.remaining)


async def test_a_prime_that_cannot_be_said_says_so(valkey: Valkey) -> None:
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            wire.fault = "garbage"
            with pytest.raises(StoreUnavailable):
                await store.prime("budget", Allowance(1, "w", 2e9, True, 1.0), 0)  # type: ignore[misc]
            with pytest.raises(StoreUnavailable):
                await store.prime("budget", Allowance(1, "w", 2e9, True, 1.0), 0)  # type: ignore[misc]


# A Cluster


async def test_decisions_follow_their_slot_to_another_node(logged: list[Any]) -> None:
    with Cluster() as cluster:
        name = next(NAMES)
        async with opened(cluster.url, name=name) as store:
            done = asyncio.Event()
            taken_ = 0

            async def keep_asking() -> None:
                nonlocal taken_
                while not done.is_set():
                    await taken(store, ONE, Claim("slots", 1_000_000, 1))
                    taken_ += 1

            asking = [asyncio.ensure_future(keep_asking()) for _ in range(5)]
            for _ in range(2):
                owner = cluster.owner(f"{{{name}}}")
                others = [node for node in cluster.masters if node is not owner]
                await asyncio.to_thread(cluster.move, f"{{{name}}}", others[0])
                assert cluster.owner(f"{{{name}}}") is others[0]
                before = taken_
                await until(lambda before=before: taken_ > before + 100)  # type: ignore[misc]
            done.set()
            await asyncio.gather(*asking)
            assert 1_000_000 - taken_ - 1 == (await taken(store)).rooms[0].remaining
    assert not [each for each in logged if each["event"] == "redis_away"]


async def test_D1_decisions_go_on_when_a_replica_takes_over() -> None:
    with Cluster(replicas=True) as cluster:
        name = next(NAMES)
        async with opened(cluster.url, name=name) as store:
            for _ in range(5):
                assert await served(store)
            owner = cluster.owner(f"{{{name}}}")
            replica = cluster.replicas[cluster.masters.index(owner)]
            said = int(owner.info("master_repl_offset"))
            await until(lambda: int(replica.info("slave_repl_offset")) >= said)
            owner.kill()
            replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
            await back(store)
            # What was counted before is there, and the decision that tried it.
            assert 1_000_000 - 7 == (await taken(store)).rooms[0].remaining
            assert replica.port == line(store)._link.place.port  # type: ignore[union-attr]
