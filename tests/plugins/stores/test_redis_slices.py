"""Slices: how inexact a limit is that workers decide from what they hold."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from harness.crowd import until
from harness.valkey import Valkey, Wire

from passy_plugins.stores.redis import Redis, RedisSettings
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.site import Site
from passy_proxy.stores import Claim, Grant, StoreUnavailable
from passy_proxy.units import Rate

pytestmark = pytest.mark.anyio

NAMES = (f"slices-{number}" for number in count())
FIXED = Rate(1_000, 365 * 86_400)
"""Which does not refill while a test runs."""
COUNT = 20
SIZE = 50


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Redis]:
    patient = {"timeout": 30.0, "connect_timeout": 30.0}
    settings = {"name": next(NAMES), "slices": COUNT, **patient, **settings}
    keyring = Keyring(["the secret key of these tests: 0123456789"])
    store = Redis(RedisSettings(url=Secret(url), **settings), Site(Path("nowhere"), keyring))
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


async def taken(store: Redis, *claims: Claim) -> Grant:
    answer = store.take(claims)
    return answer if isinstance(answer, Grant) else await answer


async def admitted(store: Redis, claim: Claim, times: int) -> int:
    return sum([(await taken(store, claim)).admitted for _ in range(times)])


def held(store: Redis) -> int:
    assert store._there is not None
    assert store._there.slices is not None
    return sum(one.left for one in store._there.slices._slices.values())


async def test_no_more_than_the_limit_and_fewer_by_what_others_hold(valkey: Valkey) -> None:
    name = next(NAMES)
    one = Claim("key", FIXED, 1)
    async with opened(valkey.url, name=name) as a, opened(valkey.url, name=name) as b:
        parts = await asyncio.gather(*(admitted(store, one, 400) for store in (a, b)))
        assert [400, 400] == parts
        assert held(a) <= 2 * SIZE
        found = 800 + await admitted(a, one, 600)
        assert 1_000 - 2 * SIZE <= found <= 1_000
        assert found + held(a) + held(b) <= 1_000
        # What was not used comes back to the others by itself.
        await until(lambda: 0 == held(b))
        found += await admitted(a, one, 600)
        assert 1_000 == found


async def test_most_decisions_ask_nobody(valkey: Valkey) -> None:
    async with opened(valkey.url) as store:
        before = int(valkey.info("total_commands_processed"))
        claims = [Claim("requests", Rate(10_000, 60), 1), Claim("tokens", Rate(1_000_000, 60), 300)]
        for _ in range(900):
            grant = await taken(store, *claims)
            assert grant.admitted
            store.settle(grant, [None, 20])
        assert int(valkey.info("total_commands_processed")) - before < 150
        room = (await taken(store, *claims)).rooms
        # As far as this worker knows.
        assert pytest.approx(10_000 - 901, abs=1_000) == room[0].remaining
        assert pytest.approx(1_000_000 - 900 * 20, abs=2 * 50_000) == room[1].remaining


async def test_over_a_time_it_admits_the_limit_within_two_slices_a_worker(valkey: Valkey) -> None:
    """Three workers that are busy in turns, of a rate that refills all the time."""
    name, limit = next(NAMES), Rate(200, 1)
    size, seconds, dice = 200 // COUNT, 2.5, random.Random(1)
    settings: Any = {"name": name}
    async with (
        opened(valkey.url, **settings) as a,
        opened(valkey.url, **settings) as b,
        opened(valkey.url, **settings) as c,
    ):
        began, found = time.monotonic(), 0
        last, unheard = began, 0.0
        while (now := time.monotonic()) - began < seconds:
            # Who is held up for long does not ask for what has come back meanwhile.
            last, unheard = now, unheard + max(0.0, now - last - 0.2)
            store = dice.choice([a, b, c])
            for _ in range(dice.randint(1, 40)):
                found += (await taken(store, Claim("key", limit, 1))).admitted
        lasted, unheard = now - began, unheard + now - last
        inexact = 3 * 2 * size
        least = 200 + 200 * (lasted - unheard) - inexact - 2
        assert least <= found <= 200 + 200 * lasted + inexact


async def test_what_is_dearer_than_a_slice_is_decided_there(valkey: Valkey) -> None:
    async with opened(valkey.url) as store:
        assert (await taken(store, Claim("key", FIXED, 900))).admitted
        refused = await taken(store, Claim("key", FIXED, 900))
        assert (False, 100) == (refused.admitted, refused.rooms[0].remaining)
        assert refused.rooms[0].retry > 0


async def test_a_crowd_at_once_takes_no_more_slices_than_it_needs(valkey: Valkey) -> None:
    async with opened(valkey.url) as store:
        one = Claim("key", FIXED, 1)
        grants = await asyncio.gather(*(taken(store, one) for _ in range(40)))
        assert all(grant.admitted for grant in grants)
        assert held(store) <= 2 * SIZE


async def test_dearer_than_reserved_is_owed_and_cheaper_comes_back(valkey: Valkey) -> None:
    async with opened(valkey.url) as store:
        grant = await taken(store, Claim("key", FIXED, 10))
        store.settle(grant, [500])
        store.settle(grant, [500])
        grant = await taken(store, Claim("key", FIXED, 20))
        store.settle(grant, [0])
        await until(lambda: 0 == held(store))
        exact = await taken(store, Claim("key", FIXED, 60))
        assert 1_000 - 500 - 60 == exact.rooms[0].remaining


async def test_slots_stay_exact(valkey: Valkey) -> None:
    async with opened(valkey.url) as store:
        claims = [Claim("slots", 2, 1), Claim("key", FIXED, 1)]
        found = [(await taken(store, *claims)).admitted for _ in range(3)]
        assert [True, True, False] == found
        assert 0 == held(store)


async def test_D1_what_is_held_serves_while_the_server_is_away(valkey: Valkey) -> None:
    with Wire(valkey) as wire:
        async with opened(wire.url) as store:
            assert (await taken(store, Claim("key", FIXED, 1))).admitted
            left = held(store)
            wire.fault = "garbage"
            assert left == await admitted(store, Claim("key", FIXED, 1), left)
            with pytest.raises(StoreUnavailable):
                await taken(store, Claim("key", FIXED, 1))


async def test_what_is_held_goes_back_when_a_worker_stops(valkey: Valkey) -> None:
    name = next(NAMES)
    async with opened(valkey.url, name=name) as store:
        assert (await taken(store, Claim("key", FIXED, 1))).admitted
    async with opened(valkey.url, name=name, slices=0) as store:
        assert 998 == (await taken(store, Claim("key", FIXED, 1))).rooms[0].remaining
