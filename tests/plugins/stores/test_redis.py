"""Counters on a server: leases, workers, what is kept there, and who may read what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import pytest
from harness.crowd import until
from harness.tls import Authority
from harness.valkey import Cluster, Valkey, Wire

from passy_plugins.stores.redis import Redis, RedisSettings, changes
from passy_plugins.stores.redis.batch import Lease
from passy_plugins.stores.redis.place import places
from passy_plugins.stores.redis.resp import NO_RESP, PlainReader, Refused, pack, plain_pack, reader
from passy_plugins.stores.redis.script import EXACT, pace
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.pulse import Slot
from passy_proxy.site import Site
from passy_proxy.stores import ANYTHING, Allowance, Claim, Counters, Grant, Shared, StoreUnavailable
from passy_proxy.units import Rate
from passy_proxy.vitals import Vitals

pytestmark = pytest.mark.anyio

SITE = Site(Path("nowhere"), Keyring(["the secret key of these tests: 0123456789"]))
NAMES = (f"unit-{number}" for number in count())
PATIENT = {"timeout": 30.0, "connect_timeout": 30.0}
"""Seconds: a server that gets no turn for a while is not away."""


@asynccontextmanager
async def opened(
    url: str, clock: Callable[[], int] | None = None, **settings: Any
) -> AsyncIterator[Redis]:
    settings = {"name": next(NAMES), **PATIENT, **settings}
    store = Redis(RedisSettings(url=Secret(url), **settings), SITE, clock)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


async def taken(store: Counters, *claims: Claim) -> Grant:
    answer = store.take(claims)
    return answer if isinstance(answer, Grant) else await answer


@pytest.fixture
def never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gets no turn for a while is not taken for one that has gone."""
    monkeypatch.setattr(changes, "PULSE", 60.0)


def keys(server: Valkey, name: str) -> list[str]:
    return sorted(server.ask("KEYS", f"{{{name}}}*"))


# Leases


async def test_a_slot_of_a_killed_worker_comes_back_by_its_lease(valkey: Valkey) -> None:
    name = next(NAMES)
    slot = Claim("slots", 1, 1)
    short: Any = {"name": name, "lease": 3.0}
    async with opened(valkey.url, **short) as other, opened(valkey.url, **short) as killed:
        began = time.monotonic()
        assert (await taken(killed, slot)).admitted
        assert killed._there is not None
        await killed._there._tasks.stop()  # Nothing is renewed any more.
        while not (await taken(other, slot)).admitted:
            assert time.monotonic() - began < 60
            await asyncio.sleep(0.05)
        assert time.monotonic() - began > 2.5


async def test_a_slot_that_is_held_for_long_is_renewed(valkey: Valkey) -> None:
    now = 1_000_000_000_000
    slot = Claim("slots", 1, 1)
    async with opened(valkey.url, lambda: now, lease=3.0) as one:
        grant = await taken(one, slot, Claim("rate", Rate(100, 365 * 86_400), 1))
        lease = grant.token
        assert isinstance(lease, Lease)
        for _ in range(2):
            told = lease.at
            await until(lambda told=told: lease.at > told)  # type: ignore[misc]
            now += 2_500_000_000
            assert not (await taken(one, slot)).admitted
        now += 3_000_000_000
        last = await taken(one, slot)
        assert last.admitted
        await settled(one, last, 0)
        await settled(one, grant, None, 1)
        again = await taken(one, slot, Claim("rate", Rate(100, 365 * 86_400), 1))
        assert (True, 98) == (again.admitted, again.rooms[1].remaining)


async def settled(store: Counters, grant: Grant, *actual: int | None) -> None:
    done = store.settle(grant, actual)
    assert done is None
    await asyncio.sleep(0)


async def test_who_leaves_before_the_answer_holds_nothing(valkey: Valkey) -> None:
    async with opened(valkey.url) as store:
        claims = [Claim("rate", Rate(10, 3_600), 4), Claim("slots", 3, 1)]
        for turns in range(4):  # Before it is sent, while it is under way, and when it is there.
            task = asyncio.ensure_future(taken(store, *claims))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await settled(store, await task, 0)
        assert store._there is not None
        decisions = store._there.decisions
        await until(lambda: not decisions._leases)
        grant = await taken(store, *claims)
        assert [6, 2] == [room.remaining for room in grant.rooms]


async def test_who_leaves_in_the_moment_of_the_answer_holds_nothing(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(valkey.url) as store:
        assert store._there is not None
        decisions = store._there.decisions
        task = asyncio.ensure_future(taken(store, Claim("slots", 1, 1)))
        decided = decisions._decided

        def too_late(*words: Any) -> None:
            decided(*words)
            task.cancel()

        monkeypatch.setattr(decisions, "_decided", too_late)
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.undo()
        await until(lambda: not decisions._leases)
        assert (await taken(store, Claim("slots", 1, 1))).admitted


# Workers


async def test_workers_know_how_many_they_are(valkey: Valkey) -> None:
    name = next(NAMES)
    async with opened(valkey.url, name=name, lease=3.0) as one:
        assert isinstance(one, Shared)
        assert 1 == one.workers
        async with opened(valkey.url, name=name, lease=3.0) as two:
            await until(lambda: one.workers == 2 == two.workers)
        await until(lambda: one.workers == 1)
    async with opened(valkey.url, name=name), opened(valkey.url, name=name) as last:
        assert 2 == last.workers  # At once.


async def test_D2_who_starts_while_it_is_cut_off_knows_how_many_they_were(tmp_path: Path) -> None:
    site = Site(tmp_path, SITE.keyring)
    with Valkey() as server:
        settings = RedisSettings(url=Secret(server.url), lease=3.0, **PATIENT)
        before = [Redis(settings, site) for _ in range(3)]
        for one in before:
            await one.start()
        await until(lambda: [3, 3, 3] == [one.workers for one in before])
        file = tmp_path / "workers-passy"
        await until(lambda: file.exists() and "3" == file.read_text())
        server.kill()
        for one in before:
            await one.stop()
        assert 3 == Redis(settings, site).workers
    file.write_text("many")
    assert 1 == Redis(settings, site).workers
    slots = [Slot(), Slot()]
    assert 2 == Redis(settings, Site(tmp_path, SITE.keyring, vitals=Vitals(slots))).workers
    for slot in slots:
        slot.close()


# What is kept


async def test_L6_everything_expires_soon_after_it_is_full_again(valkey: Valkey) -> None:
    name = next(NAMES)
    async with opened(valkey.url, name=name) as store:
        claims = [
            Claim("requests", Rate(60, 60), 50),
            Claim("tokens", Rate(100_000, 86_400), 50_000),
            Claim("slots", 5, 1),
            Claim("budget", Allowance(100, "w", time.time() + 60, True, 10.0), 1),
            Claim("total", Allowance(100, "", inf, True, 10.0), 1),
        ]
        for claim in claims[3:]:
            assert isinstance(claim.limit, Allowance)
            await store.prime(claim.key, claim.limit, 0)  # type: ignore[misc]
        assert (await taken(store, *claims)).admitted
        lasts = {key: valkey.ask("PTTL", key) / 1000 for key in keys(valkey, name)}
        of = {key.partition("}")[2]: seconds for key, seconds in lasts.items()}
        assert 10 < of["r:requests"] < 52
        assert 43_140 < of["r:tokens"] < 43_203
        assert 0 < of["s:slots"] < 62
        assert 0 < of["a:budget"] < 60 + 3_700
        assert 0 < of["a:total"] < 86_500
        assert all(0 < seconds < 90_000 for seconds in lasts.values())


async def test_L6_a_counter_that_is_full_again_is_gone(valkey: Valkey) -> None:
    name = next(NAMES)
    async with opened(valkey.url, name=name) as store:
        grant = await taken(store, Claim("rate", Rate(10, 86_400), 5))
        assert f"{{{name}}}r:rate" in keys(valkey, name)
        await settled(store, grant, 0)
        await taken(store, Claim("other", Rate(10, 1), 0))
        assert [f"{{{name}}}s:@workers"] == keys(valkey, name)


async def test_L6_a_refused_claim_on_nothing_keeps_nothing(valkey: Valkey) -> None:
    name = next(NAMES)
    async with opened(valkey.url, name=name) as store:
        for limit in (Rate(0, 60), 0):
            assert not (await taken(store, Claim(f"{limit}", limit, 1))).admitted
        assert [f"{{{name}}}s:@workers"] == keys(valkey, name)


async def test_a_long_name_is_kept_short_and_still_its_own(valkey: Valkey) -> None:
    name = next(NAMES)
    async with opened(valkey.url, name=name) as store:
        for last in ("a", "b", "\ud800"):
            grant = await taken(store, Claim("x" * 100_000 + last, Rate(2, 60), 1))
            assert 1 == grant.rooms[0].remaining
        assert max(map(len, keys(valkey, name))) < 100
        assert store._there is not None
        assert ["@workers"] == list(store._there.decisions._names._known)  # None of them is kept.


async def test_after_the_server_lost_everything_exchanges_still_hold_their_slots() -> None:
    with Valkey() as server:
        async with opened(server.url) as store:
            slot = Claim("slots", 2, 1)
            await taken(store, slot)
            server.restart()
            assert store._there is not None
            line = store._there._line
            await until(lambda: line.up and line._link is not None)
            await until(lambda: any("slots" in key for key in server.ask("KEYS", "*")))
            assert 0 == (await taken(store, slot)).rooms[0].remaining


# Numbers


@pytest.mark.parametrize(
    "limit",
    [
        Rate(1, 1),
        Rate(10**7, 60),
        Rate(6_000_007, 86_400),
        Rate(999_983, 365 * 86_400),
        Rate(100_000, 86_400),
        Rate(7, 0.001),
    ],
)
def test_what_a_limit_counts_in_is_whole_and_small_enough(limit: Rate) -> None:
    price, speed, tick, full = pace(limit)
    assert full == limit.amount * price <= EXACT
    # In ``seconds`` the whole amount comes back.
    assert limit.seconds * 1e6 / tick * speed == full


async def test_a_rate_with_a_coarse_tick_admits_exactly_its_amount(valkey: Valkey) -> None:
    """Too many for microseconds of a day: it ticks in milliseconds."""
    limit = Rate(6_000_007, 86_400)
    assert 1_000 == pace(limit)[2]
    async with opened(valkey.url) as store:
        # At one moment of the server's clock, since they go in one call.
        most, last, refused = await asyncio.gather(
            *[taken(store, Claim("day", limit, cost)) for cost in (6_000_006, 1, 2)]
        )
        assert (True, True, False) == (most.admitted, last.admitted, refused.admitted)
        assert pytest.approx(2 * 86_400 / 6_000_007, abs=0.002) == refused.rooms[0].retry
        await asyncio.sleep(refused.rooms[0].retry)
        assert (await taken(store, Claim("day", limit, 2))).admitted


# Settings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://a", "a:6379"),
        ("redis://a:1,redis://b:2 , rediss://c", "a:1 b:2 c:6379"),
        ("redis://user:p%40ss@a:7/3", "a:7"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
        ("redis://[::1]:7", "::1:7"),
        ("memory:", ""),
    ],
)
def test_a_url_names_servers(url: str, shown: str) -> None:
    found = places(url)
    assert shown == " ".join(map(str, found))
    assert "p@ss" not in repr(found)


def test_a_url_carries_a_user_a_password_and_a_database() -> None:
    (place,) = places("redis://user:p%40ss@a:7/3")
    assert [(b"AUTH", b"user", b"p@ss"), (b"SELECT", b"3")] == place.greeting()
    (place,) = places("redis://:secret@a")
    assert [(b"AUTH", b"secret")] == place.greeting()


@pytest.mark.parametrize(
    "url",
    [
        "",
        ",",
        "http://secret@a",
        "redis://",
        "redis://a/x",
        "redis://a:secret",
        "unix://",
        "a:6379",
    ],
)
def test_a_wrong_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"write redis|path of a socket|secret is empty") as told:
        RedisSettings(url=Secret(url) if url else "")
    assert "secret@" not in str(told.value)
    assert ":secret" not in str(told.value)


async def test_a_password_is_shown_to_the_server_and_to_nobody_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Valkey(requirepass="a pass:word") as server:
        url = f"redis://:a%20pass%3Aword@127.0.0.1:{server.port}"
        async with opened(url) as store:
            assert (await taken(store, Claim("key", Rate(1, 60), 1))).admitted
            assert store._there is not None
            assert "word" not in repr(vars(store._there._line._nodes))
        async with opened(url.replace("word", "wrong")) as store:
            assert store._there is not None
            assert "WRONGPASS" in store._there._line.reason
    assert "pass:wrong" not in capsys.readouterr().out


@pytest.mark.usefixtures("never_quiet")
async def test_a_server_over_tls_is_verified(valkey: Valkey, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with Wire(valkey, authority.server()) as wire:
        async with opened(wire.url, ca=str(authority.file)) as store:
            assert (await taken(store, Claim("key", Rate(1, 60), 1))).admitted
            heard: list[tuple[str, str]] = []
            store.listen(lambda *change: heard.append(change))
            await until(lambda: store.hears)
            await store.publish("key", "key_a")
            await until(lambda: ("key", "key_a") in heard)
        async with opened(wire.url) as store:
            with pytest.raises(StoreUnavailable, match="certificate verify failed"):
                store.take([Claim("key", Rate(1, 60), 1)])


async def test_a_server_on_a_socket_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "valkey.sock"
    with Valkey(unixsocket=path):
        async with opened(f"unix://{path}") as store:
            assert (await taken(store, Claim("key", Rate(1, 60), 1))).admitted
            store.listen(lambda *_: None)
            await until(lambda: store.hears)


async def test_a_database_is_its_own(valkey: Valkey) -> None:
    name = next(NAMES)
    for number in (0, 3):
        url = f"redis://127.0.0.1:{valkey.port}/{number}"
        async with opened(url, name=name) as store:
            assert 1 == (await taken(store, Claim("key", Rate(2, 3_600), 1))).rooms[0].remaining


async def test_memory_is_this_process_alone(valkey: Valkey) -> None:
    async with opened("memory:") as store:
        grant = store.take([Claim("key", Rate(2, 60), 1)])
        assert isinstance(grant, Grant)
        assert (1, 1, False) == (grant.rooms[0].remaining, store.workers, store.hears)
        heard: list[tuple[str, str]] = []
        end = store.listen(lambda *change: heard.append(change))
        await store.publish("key", "key_a")
        end()
        await store.publish("key", "key_b")
        assert [("key", "key_a")] == heard


# Changes


@pytest.mark.usefixtures("never_quiet")
async def test_a_change_reaches_every_process_that_listens(valkey: Valkey) -> None:
    name = next(NAMES)
    heard: list[tuple[str, str]] = []
    async with opened(valkey.url, name=name) as one, opened(valkey.url, name=name) as two:
        one.listen(lambda *change: heard.append(change))
        end = one.listen(lambda *change: None)
        await until(lambda: one.hears)
        assert [(ANYTHING, ANYTHING)] == heard
        await two.publish("key", "key_a")
        await until(lambda: len(heard) == 2)
        await one.publish("organisation", 'o "1"')
        await until(lambda: len(heard) == 3)
        assert [("key", "key_a"), ("organisation", 'o "1"')] == heard[1:]
        end()
        assert not two.hears


@pytest.mark.usefixtures("never_quiet")
async def test_after_a_gap_anything_may_have_changed() -> None:
    with Valkey() as server:
        heard: list[tuple[str, str]] = []
        async with opened(server.url) as store:
            store.listen(lambda *change: heard.append(change))
            await until(lambda: store.hears)
            server.kill()
            await until(lambda: not store.hears)
            server.start()
            await until(lambda: store.hears)
            assert [(ANYTHING, ANYTHING)] * 2 == heard
            await store.publish("key", "key_a")
            await until(lambda: ("key", "key_a") in heard)


async def test_a_change_is_told_though_the_connection_was_idle_for_too_long(valkey: Valkey) -> None:
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            await store.publish("key", "key_a")
            wire.cut()
            await store.publish("key", "key_b")
            wire.fault = "refused"
            with pytest.raises(StoreUnavailable):
                await store.publish("key", "key_c")


@pytest.mark.usefixtures("never_quiet")
async def test_D6_a_change_goes_through_a_cluster(cluster: Cluster) -> None:
    name = next(NAMES)
    heard: list[tuple[str, str]] = []
    first, last = cluster.masters[0].url, cluster.masters[2].url
    async with opened(first, name=name) as one, opened(last, name=name) as two:
        one.listen(lambda *change: heard.append(change))
        await until(lambda: one.hears)
        began = time.monotonic()
        await two.publish("key", "key_a")
        await until(lambda: len(heard) == 2)
        assert time.monotonic() - began < 15


# RESP


def test_replies_are_read_alike_with_and_without_hiredis() -> None:
    data = b"+OK\r\n:7\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n$1\r\nx\r\n*1\r\n:1\r\n-MOVED 1 a:2\r\n"
    data += b"$0\r\n\r\n"
    for step in (1, 2, 7, len(data)):
        for one in (PlainReader(), reader()):
            found = []
            for at in range(0, len(data), step):
                one.feed(data[at : at + step])
                while (reply := one.gets()) is not False:
                    found.append(reply)
            assert [b"OK", 7, b"a\r\n", None, [b"x", [1]]] == found[:5]
            assert isinstance(found[5], Refused)
            assert ("MOVED 1 a:2", b"") == (str(found[5]), found[6])


@pytest.mark.parametrize(
    "data", [b"?x\r\n", b":x\r\n", b"$x\r\n", b"*1\r\n?\r\n", b"HTTP/1.1 400\r\n"]
)
def test_what_is_no_reply_is_noticed(data: bytes) -> None:
    for one in (PlainReader(), reader()):
        one.feed(data)
        with pytest.raises(NO_RESP):
            one.gets()


def test_commands_are_packed_alike_with_and_without_hiredis() -> None:
    words = (b"EVAL", b"", b"a\r\nb", bytes(range(256)))
    assert plain_pack(words) == pack(words)
