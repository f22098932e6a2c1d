"""Limits that several workers and hosts hold together: exact, true, bounded, by one clock."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.crowd import Caller, resident, until
from harness.figures import Note
from harness.gateway import Gateway, Serve
from harness.upstream import Hit, RawUpstream, Step, whole
from harness.valkey import Cluster, Valkey
from harness.volley import KEYS, Volley, configuration, request

from passy_proxy import keys
from passy_proxy.testing import completion

pytestmark = pytest.mark.anyio

HUNDRED = "requests: 100/365d"
"""Which does not refill while a test runs."""


@contextmanager
def hosts(serve: Serve, text: str, count: int = 2, **variables: str) -> Iterator[list[Gateway]]:
    """Gateways with two workers each."""
    found = [serve(text, "--workers", "2", start=False, **variables) for _ in range(count)]
    for gateway in found:
        gateway.start()
    yield found
    for gateway in found:
        assert 0 == gateway.stop()


async def rounds(serve: Serve, server: Valkey | Cluster, number: int, many: int) -> None:
    flush: Callable[[], object] = (
        (lambda: server.ask("FLUSHALL"))
        if isinstance(server, Valkey)
        else lambda: [node.ask("FLUSHALL") for node in server.masters]
    )
    text = configuration(server.url, HUNDRED, "timeout: 5s")
    with hosts(serve, text) as gateways:
        volley = await Volley.of([gateway.url for gateway in gateways], many)
        for _ in range(number):
            flush()
            assert {200: 100, 429: many - 100} == await volley.fire(request())
        volley.leave()


async def test_L1_two_hosts_with_two_workers_admit_exactly_the_limit(
    serve: Serve, valkey: Valkey
) -> None:
    await rounds(serve, valkey, 2, 400)


async def test_L1_and_on_a_cluster(serve: Serve, cluster: Cluster) -> None:
    await rounds(serve, cluster, 2, 400)


@pytest.mark.large
async def test_L1_fifty_rounds_of_a_thousand(serve: Serve, valkey: Valkey) -> None:
    await rounds(serve, valkey, 50, 1_000)


async def test_L1_slots_are_shared_and_come_back(serve: Serve, valkey: Valkey) -> None:
    """Ten at once of eighty who hold theirs until all others are refused; then all are free."""
    refused = threading.Event()
    slow = whole(json.dumps(completion()))
    with RawUpstream(script=lambda _: [{"wait": refused}, *slow]) as upstream:
        text = configuration(
            valkey.url, "concurrency: 10", "timeout: 5s, name: slots", provider=upstream.url
        )
        with hosts(serve, text) as gateways:
            volley = await Volley.of([gateway.url for gateway in gateways], 80)
            for _ in range(2):
                refused.clear()
                asked = request(model="real")
                found = await volley.fire(asked, lambda answered: answered == 70 and refused.set())
                assert {200: 10, 429: 70} == found
                await until(lambda: 0 == slots(valkey, "slots"))
            volley.leave()


def slots(server: Valkey, name: str) -> int:
    return int(server.ask("ZCARD", f"{{{name}}}s:c:key:key_0"))


# L2


async def tokens(
    serve: Serve, valkey: Valkey, rounds: int, limit: int, count: int
) -> tuple[Counter[int], int]:
    """Ten requests at once, so many times, at ``count`` hosts. Their answers are dearer or cheaper
    than was reserved, at random. How often each status came back, and the tokens of all answers."""
    valkey.ask("FLUSHALL")
    dice = random.Random(2)
    told: list[int] = []

    def usage(_: Hit) -> list[Step]:
        used = dice.choice([1, 30, 200, 290, 500])
        told.append(used)
        answer = completion() | {"usage": {"prompt_tokens": 1, "completion_tokens": used - 1}}
        return whole(json.dumps(answer))

    with RawUpstream(script=usage) as upstream:
        text = configuration(
            valkey.url, f"tokens: {limit}/365d", "timeout: 5s, name: tokens", provider=upstream.url
        )
        with hosts(serve, text, count=count) as gateways:
            volley = await Volley.of([gateway.url for gateway in gateways], 10)
            statuses: Counter[int] = Counter()
            for _ in range(rounds):
                statuses += await volley.fire(request(model="real"))
            volley.leave()
    assert statuses[200] == len(told)
    assert statuses[429] > 100
    # What was reserved for each is the size of the prompt and 256; ten may be under way at once,
    # and each may turn out dearer than that.
    assert limit - 2 * 300 < sum(told) <= limit + 10 * (500 - 256)
    return statuses, sum(told)


async def test_L2_tokens_are_never_exceeded_by_more_than_one_estimate(
    serve: Serve, valkey: Valkey
) -> None:
    await tokens(serve, valkey, 60, 20_000, 1)


@pytest.mark.large
async def test_L2_two_thousand_requests_at_two_hosts(
    serve: Serve, valkey: Valkey, figure: Note
) -> None:
    statuses, told = await tokens(serve, valkey, 200, 200_000, 2)
    assert 2_000 == statuses.total()
    figure("admitted; tokens of a limit of 200,000", f"{statuses[200]}; {told}")


# L4


FAKE = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
needs_faketime = pytest.mark.skipif(not FAKE.exists(), reason="needs Debian's faketime")
CLOCKS = {
    "an hour ahead": "+1h",
    "an hour behind": "-1h",
    "a day ahead": "+1d",
    "a day behind": "-1d",
    "2038": "@2038-01-19 03:14:00",
    "a leap day": "@2028-02-29 23:59:58",
}


def faked(clock: str) -> dict[str, str]:
    """Another time of day; the clock that only goes forward stays as it is."""
    fake = {"LD_PRELOAD": str(FAKE), "FAKETIME": clock}
    return fake | {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}


@needs_faketime
@pytest.mark.parametrize("clock", CLOCKS)
async def test_L4_a_host_whose_clock_is_wrong_counts_by_the_servers(
    serve: Serve, valkey: Valkey, clock: str
) -> None:
    name = clock.replace(" ", "-")
    store = f"timeout: 5s, name: {name}"
    text = configuration(valkey.url, "requests: 20/min, concurrency: 50", store)
    right = serve(text)
    wrong = serve(text, start=False, **faked(CLOCKS[clock]))
    wrong.start()
    try:
        assert 3_000 < abs(told_time(wrong) - time.time())
        statuses: list[int] = []
        began = time.monotonic()
        for number in range(30):
            answer = (right, wrong)[number % 2].ask(
                "/v1/chat/completions", CHAT, authorization=f"Bearer {KEYS[0]}"
            )
            statuses.append(answer.status)
        # One refills every three seconds.
        assert 20 <= statuses.count(200) <= 21 + (time.monotonic() - began) / 3
        assert [200] * 20 == statuses[:20]
        retry = int(answer.headers["retry-after-ms"] or 0)
        assert answer.status == 200 or 0 < retry <= 31_000
    finally:
        assert 0 == wrong.stop()


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def told_time(gateway: Gateway) -> float:
    """The gateway's time of day, as it stands in its answers."""
    created = gateway.ask("/v1/chat/completions", CHAT, authorization=f"Bearer {KEYS[7]}").json
    return float(created["created"])


@needs_faketime
async def test_L4_a_clock_that_jumps_moves_no_limit_of_a_process(
    serve: Serve, tmp_path: Path
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = faked("+0") | {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    del fake["FAKETIME"]
    gateway = serve(configuration("memory:", "requests: 20/h"), start=False, **fake)
    gateway.start()
    try:
        statuses = []
        began = time.monotonic()
        for jump in ("+0", "+3600", "-3600", "+86400", "-86400", "@2038-01-19 03:14:00"):
            clock.write_text(jump)
            for _ in range(5):
                answer = gateway.ask(
                    "/v1/chat/completions", CHAT, authorization=f"Bearer {KEYS[0]}"
                )
                statuses.append(answer.status)
        assert [200] * 20 + [429] * 10 == statuses
        took = time.monotonic() - began
        assert 179 - took <= int(answer.headers["retry-after"] or 0) <= 180 * 12
    finally:
        assert 0 == gateway.stop()


@needs_faketime
async def test_L4_the_servers_own_clock_may_be_set_back(serve: Serve) -> None:
    """It refills nothing for the time it goes through twice, and goes on at once."""
    server = Valkey()
    with server:
        text = configuration(server.url, "requests: 10/s", "timeout: 2s, name: back")
        gateway = serve(text)

        def ask() -> int:
            authorization = f"Bearer {KEYS[0]}"
            return gateway.ask("/v1/chat/completions", CHAT, authorization=authorization).status

        for _ in range(15):
            ask()
        # It is there for as long as it is not full again.
        await until(lambda: ask() > 0 and 1 == len(server.ask("KEYS", "*r:*")))
        # As after a failover to a host whose clock is an hour behind.
        server.variables = faked("-1h")
        server.restart()
        await until(lambda: ask() == 200)


# L5


async def obedient(caller: Caller, heard: list[float]) -> list[int]:
    """Statuses of one who asks, waits as it is told, and asks once more. It adds when it heard the
    first one."""
    await caller.send(request())
    status, headers, _ = await caller.answer()
    heard.append(time.monotonic())
    if status == 200:
        return [200]
    assert int(headers["retry-after"]) * 1000 >= int(headers["retry-after-ms"])
    assert "0" == headers["x-ratelimit-remaining-requests"]
    await asyncio.sleep(int(headers["retry-after-ms"]) / 1000)
    await caller.send(request())
    again, _, _ = await caller.answer()
    return [status, again]


async def crowd(
    serve: Serve, server: Valkey, limit: str, clients: int, name: str
) -> tuple[list[list[int]], float]:
    """The statuses of each client, and how long it took them to hear the first one."""
    text = configuration(server.url, f"requests: {limit}", f"timeout: 5s, name: {name}")
    with hosts(serve, text) as gateways:
        callers = [await Caller.of(gateways[number % 2].url) for number in range(clients)]
        heard: list[float] = []
        began = time.monotonic()
        found = await asyncio.gather(*(obedient(caller, heard) for caller in callers))
        for caller in callers:
            caller.leave()
    return found, max(heard) - began


async def test_L5_who_waits_as_told_is_admitted(serve: Serve, valkey: Valkey) -> None:
    found, took = await crowd(serve, valkey, "60/6s", 100, "obedient")
    at_once = sum(statuses == [200] for statuses in found)
    in_vain = sum(statuses == [429, 429] for statuses in found)
    assert 60 <= at_once <= 60 + 10 * took + 1
    # Who comes a little later than the others may find what one of them was promised.
    assert in_vain <= at_once - 60


@pytest.mark.large
async def test_L5_two_hundred_clients_obey(serve: Serve, valkey: Valkey, figure: Note) -> None:
    found, _ = await crowd(serve, valkey, "120/30s", 200, "two-hundred")
    waited = [statuses for statuses in found if len(statuses) == 2]
    assert len(waited) >= 70
    share = sum(statuses[1] == 200 for statuses in waited) / len(waited)
    figure("admitted at the second try, %", share * 100)
    assert share >= 0.99


# L6

BATCH = 20


async def refused(url: str, count: int, at_once: int = 50) -> int:
    """How many keys that nobody issued are refused, each another one, well formed. Several are sent
    at once, as more time goes into asking than into refusing otherwise."""
    sizes = iter([BATCH] * (count // BATCH))

    async def some() -> int:
        caller = await Caller.of(url)
        found = 0
        for size in sizes:
            await caller.send(b"".join(request(keys.new_key()) for _ in range(size)))
            for _ in range(size):
                status, _, _ = await caller.answer()
                found += status == 401
        caller.leave()
        return found

    return sum(await asyncio.gather(*(some() for _ in range(at_once))))


async def unknown(serve: Serve, server: Valkey, count: int, name: str) -> tuple[int, int]:
    """Keys of the server that are this gateway's, and bytes that the gateway grew by, after so many
    unknown client keys."""
    text = configuration(server.url, "requests: 100/min, tokens: 1M/min", f"name: {name}")
    gateway = serve(text)
    await refused(gateway.url, 1_000)
    memory = resident(gateway.process.pid)
    assert count == await refused(gateway.url, count)
    kept = [key for key in server.ask("KEYS", f"*{{{name}}}*") if "workers" not in key]
    return len(kept), resident(gateway.process.pid) - memory


async def test_L6_keys_that_nobody_issued_leave_nothing(serve: Serve, valkey: Valkey) -> None:
    more, grown = await unknown(serve, valkey, 2_000, "nobody")
    assert 0 == more
    assert grown < 8 << 20


@pytest.mark.large
async def test_L6_a_million_keys_that_nobody_issued(
    serve: Serve, valkey: Valkey, figure: Note
) -> None:
    began = time.monotonic()
    more, grown = await unknown(serve, valkey, 1_000_000, "million")
    figure("seconds", time.monotonic() - began)
    figure("keys of the server", more)
    figure("the gateway grew by, MiB", grown / 2**20)
    assert 0 == more
    assert grown < 64 << 20


async def test_L6_what_valid_keys_leave_expires(serve: Serve) -> None:
    with Valkey() as server:
        text = configuration(server.url, "requests: 50/s, tokens: 100k/s, concurrency: 9")
        gateway = serve(text)

        def asked() -> bool:
            told = [f"Bearer {key}" for key in KEYS]
            return all(
                200 == gateway.ask("/v1/chat/completions", CHAT, authorization=one).status
                for one in told
            )

        def counters() -> list[str]:
            return [key for key in server.ask("KEYS", "*") if "workers" not in key]

        await until(lambda: asked() and counters() != [])
        await until(lambda: not counters())
