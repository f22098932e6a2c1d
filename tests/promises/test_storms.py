"""Trouble upstream stays where it is: no storm of retries, and no harm to who is well."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from statistics import quantiles
from typing import TYPE_CHECKING

import openai
import pytest
from harness.again import spared
from harness.upstream import RawUpstream, Step

from passy_plugins.fallback import Config
from passy_plugins.retrying import Budget

if TYPE_CHECKING:
    from harness.figures import Note
    from harness.gateway import Gateway, Serve

CONFIGURATION = """
upstreams:
{upstreams}
models:
  alone: [bad/m]
  both: [bad/m, worse/m]
  mended: [bad/m, well/m]
  spared: [out/m, well/m]
  well: [well/m]
  slow: [slow/m]
chains:
{chains}
routes:
{routes}
"""
CHAINS = tuple(
    ["alone", "both", "alone-broken", "both-broken", "sdk-alone", "sdk-both", "mended", "ejected"]
)
"""Each has a budget of its own, since no two are written alike."""
BODY = (
    '{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
REFUSAL = '{"error":{"message":"theirs","type":"t","code":"c"}}'


def plain(status: int, body: str) -> Sequence[Step]:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return [{"send": f"{head}\r\n\r\n{body}"}]


FAILED = plain(500, REFUSAL)
WELL = plain(200, BODY)


@dataclass
class Heard:
    """What many clients heard."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    overhead: list[float] = field(default_factory=list)
    """Milliseconds of them that the gateway says were its own."""
    last: str = ""
    """The head of the last answer."""

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return quantiles(self.seconds, n=100)[98] * 1000


class Client:
    """One kept connection."""

    def __init__(self, gateway: Gateway, model: str, heard: Heard, chain: str = "well") -> None:
        self._port = int(gateway.url.rpartition(":")[2])
        body = f'{{"model":"{model}","messages":[]}}'
        self._asked = (
            f"POST /{chain}/v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._heard = heard

    async def ask(self, times: int | None = None, until: float = 0.0, every: float = 0.0) -> None:
        """Ask so many times or until then, at a steady pace or as fast as answers come."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await self._ask(reader, writer, times, until, every)
        finally:
            writer.close()

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        times: int | None,
        until: float,
        every: float,
    ) -> None:
        due = time.monotonic()
        for _ in count() if times is None else range(times):
            if every:
                due += every
                await asyncio.sleep(max(due - time.monotonic(), 0))
            if until and time.monotonic() >= until:
                break
            began = time.monotonic()
            writer.write(self._asked)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
            self._heard.seconds.append(time.monotonic() - began)
            self._heard.statuses[int(head[9:12])] += 1
            if own := head.partition("x-passy-overhead-ms: ")[2]:
                self._heard.overhead.append(float(own.partition("\r")[0]))
            self._heard.last = head


class Stage:
    """One gateway in front of upstreams that fail, one that is well, and one that hangs."""

    def __init__(self, serve: Serve, stack: ExitStack) -> None:
        numbers = count(1)
        slow: Sequence[Step] = [{"wait": 1.0}, *WELL]
        self.upstreams = {
            "bad": RawUpstream(FAILED),
            "worse": RawUpstream(FAILED),
            "out": RawUpstream(FAILED),
            "well": RawUpstream(WELL),
            "slow": RawUpstream(script=lambda _: ["hold"] if next(numbers) % 100 == 0 else slow),
        }
        for upstream in self.upstreams.values():
            stack.enter_context(upstream)
        # Only where time is to run out there is little of it.
        limits = {"slow": ", timeouts: {first_byte: 3s}"}
        listed = [
            f'  {name}: {{url: "{one.url}/v1"{limits.get(name, "")}}}'
            for name, one in self.upstreams.items()
        ]
        chains = [
            f"  {name}: [alias{breaker(name)}, fallback: {{attempts: {50 + number}}}]"
            for number, name in enumerate((*CHAINS, "well"))
        ]
        routes = [
            f"  - {{match: POST /{name}/v1/chat/completions, chain: {name}}}"
            for name in (*CHAINS, "well")
        ]
        self.gateway = serve(
            CONFIGURATION.format(
                upstreams="\n".join(listed), chains="\n".join(chains), routes="\n".join(routes)
            )
        )

    def hits(self, *names: str) -> int:
        return sum(len(self.upstreams[name].hits) for name in names)


def breaker(chain: str) -> str:
    return ", breaker" if chain.endswith(("broken", "ejected")) else ""


@pytest.fixture(scope="module")
def stage(serve: Serve) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(serve, stack)


# U5


LEAST = Config().budget_floor
"""Tries that there may be, however few the requests are. Half of them are forgotten each `SPAN`."""


def check_storm(hits: int, requests: int, seconds: float) -> None:
    # Where a machine takes long for them, the requests of a span are few.
    more = int(seconds / Budget.SPAN) * (LEAST + 1) // 2
    assert hits <= 1.2 * requests + 3 + more, f"{hits} hits of {requests} requests"


@pytest.mark.parametrize(
    ("clients", "times", "seconds"),
    [
        pytest.param(40, 10, 0.0, id="F"),
        pytest.param(200, None, 20.0, id="H", marks=pytest.mark.large),
    ],
)
@pytest.mark.parametrize("chain", ["alone", "both", "alone-broken", "both-broken"])
def test_U5_when_all_fail_hits_stay_near_the_number_of_requests(
    stage: Stage, clients: int, times: int | None, seconds: float, chain: str, figure: Note
) -> None:
    async def storm() -> Heard:
        heard, until = Heard(), seconds and time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                client = Client(stage.gateway, chain.partition("-")[0], heard, chain)
                group.create_task(client.ask(times, until))
        return heard

    before, began = stage.hits("bad", "worse"), time.monotonic()
    heard = asyncio.run(storm())
    hits, requests = stage.hits("bad", "worse") - before, heard.statuses.total()
    figure("requests", requests)
    figure("hits a request", hits / requests)
    assert requests >= 2 * clients
    assert "x-should-retry: false" in heard.last
    assert heard.statuses.keys() <= {500, 502}
    check_storm(hits, requests, time.monotonic() - began)


@pytest.mark.parametrize("model", ["alone", "both"])
def test_U5_the_sdk_s_own_retries_do_not_multiply_it(stage: Stage, model: str) -> None:
    asked, before, began = 120, stage.hits("bad", "worse"), time.monotonic()

    def ask(_: int) -> int:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hello"}]
            )
        return caught.value.status_code

    url = f"{stage.gateway.url}/sdk-{model}/v1"
    with openai.OpenAI(base_url=url, api_key="sk-none") as client, ThreadPoolExecutor(8) as pool:
        assert 2 == client.max_retries
        statuses = set(pool.map(ask, range(asked)))
    assert statuses <= {500, 502}
    check_storm(stage.hits("bad", "worse") - before, asked, time.monotonic() - began)


def test_U5_who_is_well_is_asked_by_everybody(stage: Stage) -> None:
    async def ask() -> Heard:
        heard = Heard()
        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                client = Client(stage.gateway, "mended", heard, "mended")
                group.create_task(client.ask(times=10))
        return heard

    before = stage.hits("bad"), stage.hits("well")
    assert {200: 400} == asyncio.run(ask()).statuses
    assert (400, 400) == (stage.hits("bad") - before[0], stage.hits("well") - before[1])


def test_U11_an_ejected_upstream_is_spared(stage: Stage) -> None:
    heard, before = Heard(), stage.hits("well")
    asyncio.run(Client(stage.gateway, "spared", heard, "ejected").ask(times=50))
    assert {200: 50} == heard.statuses
    assert 5 == stage.hits("out")  # As many as were needed to see it.
    assert 50 == stage.hits("well") - before
    assert "x-passy-attempts: 1\r\n" in heard.last
    said = (stage.gateway.folder / "err").read_text() + (stage.gateway.folder / "out").read_text()
    assert "upstream_ejected" in said


# D8


@pytest.mark.parametrize(
    ("clients", "seconds", "most"),
    [
        # Whoever is held up by the slow one waits for a second, whatever else a machine does.
        pytest.param(50, 1.2, 900.0, id="F"),
        pytest.param(500, 20.0, 5.0, id="H", marks=pytest.mark.large),
    ],
)
def test_D8_a_slow_upstream_does_not_hurt_the_others(
    stage: Stage, clients: int, seconds: float, most: float, figure: Note
) -> None:
    """Each hundredth request there hangs until it times out, the others take a second."""

    async def join(place: float) -> None:
        await asyncio.sleep(place)  # Not all in the same moment of each second.
        await Client(stage.gateway, "slow", Heard()).ask()

    async def measure(beside: int) -> Heard:
        heard = Heard()
        others = [asyncio.create_task(join(number / beside)) for number in range(beside)]
        await asyncio.sleep(1.5)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                client = Client(stage.gateway, "well", heard)
                group.create_task(client.ask(round(seconds / 0.1), every=0.1))
                await asyncio.sleep(0.02)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return heard

    def both() -> tuple[Heard, Heard]:
        return asyncio.run(measure(0)), asyncio.run(measure(clients))

    def kept(found: tuple[Heard, Heard]) -> bool:
        # A machine that is busy with other things shows it alone, too.
        return found[1].p99 - found[0].p99 < max(most, found[0].p99)

    alone, beside = spared(both, kept)
    figure("p99 of the others, ms", alone.p99)
    figure(f"beside {clients} clients, ms", beside.p99)
    for name, heard in (("alone", alone), ("beside them", beside)):
        figure(f"p99 of the gateway's own part {name}, ms", quantiles(heard.overhead, n=100)[98])
    assert {200} == alone.statuses.keys() == beside.statuses.keys()
    assert kept((alone, beside))
