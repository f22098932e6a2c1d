"""D1, D2, D4, D5: the gateway while the server that counts its limits is away, slow or wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from harness.again import TIMES
from harness.crowd import until
from harness.figures import Note
from harness.gateway import Gateway, Serve
from harness.valkey import Valkey, Wire
from harness.volley import KEYS, Beat, Volley, beat, configuration, metric, request

pytestmark = pytest.mark.anyio

TIMEOUT = 0.05
"""The default of a decision."""
CALM = 5.0
"""Seconds before a large trial, in which nothing is wrong."""


@dataclass
class Trouble:
    """A fault: how it begins and ends. ``served`` says that it befalls nobody."""

    begin: Callable[[Valkey, Wire], object]
    end: Callable[[Valkey, Wire], object]
    served: bool = False


def wired(fault: Any) -> Trouble:
    def begin(_: Valkey, wire: Wire) -> None:
        wire.fault = fault

    def end(_: Valkey, wire: Wire) -> None:
        wire.fault = None

    return Trouble(begin, end)


def asked(begin: list[str], end: list[str], *, served: bool = False) -> Trouble:
    return Trouble(lambda server, _: server.ask(*begin), lambda server, _: server.ask(*end), served)


class Full(Trouble):
    """Nobody new is let in, and who was in has to come anew."""

    def __init__(self) -> None:
        super().__init__(self.fill, self.open)

    def fill(self, server: Valkey, wire: Wire) -> None:
        self.kept = socket.create_connection(("127.0.0.1", server.port))
        self.kept.sendall(b"CONFIG SET maxclients 1\r\n")
        assert b"+OK" in self.kept.recv(100)
        wire.cut()

    def open(self, server: Valkey, wire: Wire) -> None:
        self.kept.sendall(b"CONFIG SET maxclients 1000\r\n")
        assert b"+OK" in self.kept.recv(100)
        self.kept.close()


TROUBLES = {
    "refused": wired("refused"),
    "killed": Trouble(lambda server, _: server.kill(), lambda server, _: server.start()),
    "black-holed": wired("hole"),
    "frozen": Trouble(lambda server, _: server.freeze(), lambda server, _: server.thaw()),
    "500-ms-late": wired(0.5),
    "loading": wired(b"-LOADING Valkey is loading the dataset in memory\r\n"),
    "a-replica": asked(["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "no-auth": wired(b"-NOAUTH Authentication required.\r\n"),
    "garbage": wired("garbage"),
    "reset-mid-reply": wired("reset"),
    "full": Full(),
    "scripts-flushed": asked(["SCRIPT", "FLUSH"], ["PING"], served=True),
    "scripts-refused": asked(
        ["ACL", "SETUSER", "default", "-script", "-evalsha"],
        ["ACL", "SETUSER", "default", "+script", "+evalsha"],
        served=True,
    ),
}


async def page(gateway: Gateway, path: str) -> int:
    return (await asyncio.to_thread(gateway.ask, path)).status


async def troubled(
    serve: Serve, trouble: Trouble, seconds: float, calm: float, patience: str, *, compared: bool
) -> tuple[Beat, Beat, float, float, float, list[str]]:
    """A hundred requests a second before, during and after it: what came of them, and if it is to
    be ``compared``, of as many at a gateway beside it that counts for itself; when it began, when
    it ended, when all was well again, and what the store logged."""
    seen, beside = Beat(), Beat()
    with Valkey() as server, Wire(server) as wire:
        limits = "requests: 1M/min, when_unavailable: refuse"
        gateway = serve(configuration(wire.url, limits, f"timeout: {patience}"))
        beats = [(gateway, seen)]
        if compared:
            beats.append((serve(configuration("memory:", limits)), beside))
        ended = asyncio.Event()
        beating = asyncio.gather(
            *(beat(asked.url, request(), ended, came) for asked, came in beats)
        )
        await asyncio.sleep(calm)
        began = time.monotonic()
        await asyncio.to_thread(trouble.begin, server, wire)
        while time.monotonic() - began < seconds:
            # D5: what else is away is no reason to take this gateway away.
            assert (200, 200) == (await page(gateway, "/livez"), await page(gateway, "/readyz"))
            await asyncio.sleep(0.25)
        await asyncio.to_thread(trouble.end, server, wire)
        over = time.monotonic()
        await until(lambda: seen.statuses[-10:] == [200] * 10 and seen.sent[-10] > over)
        well = next(
            at
            for at, status in zip(seen.sent, seen.statuses, strict=True)
            if at > over and status == 200
        )
        ended.set()
        await beating
        lines = gateway.complaints() + (gateway.folder / "out").read_text()
    told = [line for line in lines.splitlines() if '"event":"redis_' in line]
    return seen, beside, began, over, well, told


async def wrong_in(serve: Serve, trouble: Trouble) -> list[str]:
    """What was not as it should be in a second of it."""
    seen, _, began, over, well, told = await troubled(
        serve, trouble, 1.0, 0.4, "250ms", compared=False
    )
    during = seen.between(began + 0.5, over - 0.05)
    late = sum(seconds > 0.2 for seconds in seen.seconds)
    wanted = {200 if trouble.served else 503}
    met = {
        f"statuses {during.counts}": wanted == set(during.counts),
        f"{late} held up": late <= 40,
        f"well after {well - over:.1f} s": well - over < 4,
        f"told {told}": len(told) == (0 if trouble.served else 2),
    }
    return [what for what, as_wished in met.items() if not as_wished]


@pytest.mark.parametrize("name", TROUBLES)
async def test_D1_D5_a_fault_holds_up_a_few_requests_and_ends_by_itself(
    serve: Serve, name: str
) -> None:
    # A machine's own pauses look like a fault, or make one longer; not each time.
    for _ in range(TIMES):
        if not (wrong := await wrong_in(serve, TROUBLES[name])):
            break
    assert [] == wrong


@pytest.mark.large
@pytest.mark.parametrize("name", TROUBLES)
async def test_D1_twenty_seconds_of_each_fault(serve: Serve, name: str, figure: Note) -> None:
    trouble = TROUBLES[name]
    seen, beside, began, over, well, told = await troubled(
        serve, trouble, 20.0, CALM, "50ms", compared=True
    )
    during, usual = seen.between(began, over), beside.between(began, over)
    first = Beat(*(values[:10] for values in vars(during).values()))
    rest = Beat(*(values[10:] for values in vars(during).values()))
    added = (rest.percentile(0.99) - usual.percentile(0.99)) * 1000
    # How far the two are apart while both are well: what cannot be told from chance.
    calm = [one.between(began - CALM + 1.0, began).percentile(0.99) for one in (seen, beside)]
    chance = abs(calm[0] - calm[1]) * 1000
    figure("first ten requests, slowest, ms", max(first.seconds) * 1000)
    figure("then p99 more than of the gateway beside it, ms", added)
    figure("and by chance, before, ms", chance)
    figure("well again after, s", well - over)
    figure("lines in the log", len(told))
    assert max(first.seconds) <= TIMEOUT + usual.percentile(0.99) + 0.025
    assert added <= 2 + chance
    assert well - over <= 2
    assert len(told) <= 10


# D2


async def heard_of_each_other(server: Valkey) -> None:
    """Two workers, each of which has said that it is there since the other one has."""

    def beats() -> dict[str, str]:
        said = server.ask("ZRANGE", "{passy}s:@workers", 0, -1, "WITHSCORES")
        return dict(zip(said[::2], said[1::2], strict=True))

    await until(lambda: 2 == len(beats()))
    for _ in range(2):  # Of one that has said it once more the answer may be on its way.
        first = beats()
        await until(
            lambda: {name for name, at in beats().items() if first.get(name) != at} >= set(first)  # noqa: B023
        )


async def without(
    serve: Serve, policy: str, *, before: int, after: int
) -> tuple[dict[int, int], dict[int, int], float]:
    """Two workers at a limit of 100: statuses before the server is killed and after it, and how
    many requests were counted as undecided."""
    with Valkey() as server:
        limits = f"requests: 100/365d, when_unavailable: {policy}"
        text = configuration(server.url, limits, "timeout: 2s, lease: 3s")
        gateway = serve(text, "--workers", "2", start=False)
        gateway.start()
        try:
            await heard_of_each_other(server)
            volley = await Volley.of([gateway.url], before)
            first = await volley.fire(request())
            volley.leave()
            await asyncio.to_thread(server.kill)
            volley = await Volley.of([gateway.url], after)
            second = await volley.fire(request())
            volley.leave()
            undecided = 0.0

            def counted() -> bool:
                nonlocal undecided
                answer = gateway.ask("/metrics")
                undecided = metric(answer.body.decode(), "passy_limits_undecided_total")
                return undecided >= after

            await until(counted)
            return dict(first), dict(second), undecided
        finally:
            assert 0 == gateway.stop()


async def test_D2_local_admits_at_most_the_limit_once_more(serve: Serve) -> None:
    first, second, undecided = await without(serve, "local", before=60, after=400)
    assert {200: 60} == first
    assert 100 >= second[200] >= 50
    assert {200, 429} == set(second)
    assert 400 == undecided


async def test_D2_workers_that_never_reached_it_share_a_limit_as_well(serve: Serve) -> None:
    text = configuration(Valkey().url, "requests: 100/365d, when_unavailable: local")
    gateway = serve(text, "--workers", "2", start=False)
    gateway.start()
    try:
        volley = await Volley.of([gateway.url], 400)
        found = await volley.fire(request())
        volley.leave()
        assert {200, 429} == set(found)
        assert 50 <= found[200] <= 100
    finally:
        assert 0 == gateway.stop()


async def test_D2_refuse_admits_nobody(serve: Serve) -> None:
    first, second, undecided = await without(serve, "refuse", before=60, after=100)
    assert ({200: 60}, {503: 100}, 100) == (first, second, undecided)


async def test_D2_allow_admits_all_and_counts_them(serve: Serve) -> None:
    first, second, undecided = await without(serve, "allow", before=60, after=200)
    assert ({200: 60}, {200: 200}, 200) == (first, second, undecided)


async def test_D4_a_gateway_that_started_without_it_finds_it_later(serve: Serve) -> None:
    server = Valkey()
    limits = "requests: 5/365d, when_unavailable: refuse"
    text = configuration(server.url, limits, "timeout: 5s")
    gateway = serve(text)

    def ask() -> int:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
        return gateway.ask(
            "/v1/chat/completions", body.encode(), authorization=f"Bearer {KEYS[0]}"
        ).status

    assert 503 == ask()
    with server:
        await until(lambda: ask() == 200)
        assert [200] * 4 + [429] == [ask() for _ in range(5)]
