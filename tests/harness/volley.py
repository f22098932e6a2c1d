"""Many requests in the same moment, at several gateways, and a steady beat of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.crowd import CHAT, Caller, asking, percentile

CONFIGURATION = """
overload: {{loop_lag: 0s}}
edge: {{max_connections_per_ip: 4000}}
stores:
  state: {{kind: redis, url: "{url}", {store}}}
  people: {{kind: memory, keys: [{keys}]}}
upstreams: {{echo: {{kind: echo}}, provider: {{url: "{provider}/v1", credential: a-credential}}}}
models: {{m: [echo/echo], real: [provider/real]}}
chains:
  default: [auth: {{directory: people}}, rate_limit: {{counters: state, {limits}}}, alias, fallback]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: GET /metrics, chain: [metrics_page: {{public: true}}]}}
"""
KEYS = tuple(f"key-of-somebody-{number:03}" for number in range(8))


def configuration(
    url: str, limits: str, store: str = "", provider: str = "http://127.0.0.1:1"
) -> str:
    """Limits that are counted at ``url``, for a few keys of the file."""
    keys = ", ".join(f"{{key: {key}, id: key_{at}}}" for at, key in enumerate(KEYS))
    return CONFIGURATION.format(url=url, limits=limits, store=store, keys=keys, provider=provider)


def request(key: str = KEYS[0], model: str = "m") -> bytes:
    return asking("/v1/chat/completions", CHAT | {"model": model}, f"authorization: Bearer {key}")


class Volley:
    """Connections to some gateways, on which everybody asks at once."""

    def __init__(self, callers: Sequence[Caller]) -> None:
        self._callers = callers

    @classmethod
    async def of(cls, urls: Sequence[str], count: int) -> Volley:
        opened = [Caller.of(urls[number % len(urls)]) for number in range(count)]
        return cls(await asyncio.gather(*opened))

    async def fire(
        self, data: bytes, told: Callable[[int], object] = lambda _: None
    ) -> Counter[int]:
        """How often each status came back. ``told`` hears of each answer how many there are."""
        found = Counter[int]()

        async def answer(caller: Caller) -> None:
            status, _, _ = await caller.answer()
            found[status] += 1
            told(found.total())

        for caller in self._callers:
            await caller.send(data)
        await asyncio.gather(*map(answer, self._callers))
        return found

    def leave(self) -> None:
        for caller in self._callers:
            caller.leave()


@dataclass
class Beat:
    """What came of requests in steady succession: when each was sent, its status, its seconds."""

    sent: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def between(self, start: float, end: float) -> Beat:
        kept = [at for at, when in enumerate(self.sent) if start <= when < end]
        return Beat(
            *([values[at] for at in kept] for values in (self.sent, self.statuses, self.seconds))  # type: ignore[arg-type]
        )

    def percentile(self, share: float) -> float:
        return percentile(self.seconds, share)

    @property
    def counts(self) -> Counter[int]:
        return Counter(self.statuses)


async def beat(
    url: str, data: bytes, ended: asyncio.Event, beat: Beat, rate: float = 100.0, callers: int = 20
) -> None:
    """``rate`` requests a second, whatever comes back, on as many connections; until ``ended``."""
    opened = [await Caller.of(url) for _ in range(callers)]
    free = asyncio.Queue[Caller]()
    for caller in opened:
        free.put_nowait(caller)
    asking: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        caller = await free.get()
        await caller.send(data)
        status, _, _ = await caller.answer()
        free.put_nowait(caller)
        beat.sent.append(due)
        beat.statuses.append(status)
        # From when it was due: who had to wait for a connection was held up as well.
        beat.seconds.append(time.monotonic() - due)

    due = time.monotonic()
    while not ended.is_set():
        task = asyncio.ensure_future(one(due))
        asking.add(task)
        task.add_done_callback(asking.discard)
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*asking)
    for caller in opened:
        caller.leave()


def metric(page: str, name: str) -> float:
    """The sum of a metric of ``/metrics``."""
    lines = [line for line in page.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def body(answer: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(answer)
    return found
