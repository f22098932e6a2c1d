"""The exchanges of a span of time, as the gateway would have recorded them.

The same seed and span give the same exchanges but for the ids of keys. Costs are reckoned by the
gateway's own prices from the tokens of each record, never made up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from random import Random

from passy_portal.demo.cast import HOURS, OWN_MODELS, WEEKEND, Ask, Work
from passy_portal.demo.trouble import ALWAYS, PROVIDERS, Failed, Provider, among, fault_of, spread
from passy_proxy.prices import Price
from passy_proxy.records import AttemptRecord, Usage, UsageRecord

HOUR, DAY = 3_600, 86_400
"""Seconds."""
BAD_DAY, BAD_TIME, BAD_SECONDS = 9, 14 * HOUR, 5_400
"""Providers were in trouble so many days before the end, at that time of UTC, and for how long."""
NONE = Usage()

Whose = tuple[str, str, str, str, str]
"""As `Principal.whose`: key, organisation, team, user and tags."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Who can answer to a model's name, best first, and what sends a request on."""

    targets: Sequence[tuple[str, str]]
    """Upstream and model."""
    fallback_on: frozenset[str]


@dataclass(frozen=True, slots=True)
class Market:
    """What the configuration of the demo says: aliases, and prices by ``upstream/model``."""

    aliases: Mapping[str, Alias]
    prices: Mapping[str, Price]
    own: str
    """What the organisation's own provider is called in the books."""

    def alias(self, model: str) -> Alias | None:
        if model in OWN_MODELS:
            return Alias([(self.own, model)], frozenset())
        if (found := self.aliases.get(model)) is not None:
            return found
        if model == "echo":
            return Alias([("echo", "echo")], frozenset())
        if model.startswith("gpt-"):
            return Alias([("openai", model)], frozenset())
        return None

    def price(self, upstream: str, model: str) -> Price | None:
        known = self.prices
        return known.get(f"{upstream}/{model}") or known.get(f"{upstream}/*")


class Traffic:
    """Makes `UsageRecord`s of what is done with each key, hour by hour."""

    def __init__(self, market: Market, keys: Mapping[str, Whose], seed: int) -> None:
        """``keys``: the name of a `Work` → whose records it makes."""
        self._market = market
        self._keys = keys
        self._random = Random(seed)

    @staticmethod
    def bad(at: float, span: tuple[float, float]) -> bool:
        """Whether providers are in trouble then."""
        start, end = span
        days = min(BAD_DAY, int(end - start) // DAY // 2)
        day = int(end // DAY) - days
        day -= max(0, _weekday(day) - 4)
        return 0 <= at - day * DAY - BAD_TIME < BAD_SECONDS

    def hour(
        self, works: Sequence[Work], at: float, span: tuple[float, float]
    ) -> Iterator[UsageRecord]:
        """Those of the hour that begins ``at``, within ``span``, in the order of their ends."""
        start, end = span
        made: list[UsageRecord] = []
        for work in works:
            for _ in range(self._count(work, at, span)):
                moment = at + self._random.random() * HOUR
                if start <= moment < end:
                    made.append(self._exchange(work, moment, span))
        made.sort(key=lambda record: record.at + record.duration_ms / 1000)
        yield from made

    def _count(self, work: Work, at: float, span: tuple[float, float]) -> int:
        """How many requests come in an hour: around what is usual then, as chance has it."""
        start, end = span
        gone = (at - start) / (end - start)
        if not work.first_day <= gone <= work.last_day:
            return 0
        hours = HOURS[work.rhythm]
        mean = work.a_day * hours[int(at % DAY // HOUR)] / sum(hours)
        if _weekday(int(at // DAY)) >= 5:
            mean *= WEEKEND[work.rhythm]
        mean *= 0.8 + 0.35 * gone
        limit, count, product = exp(-mean), 0, self._random.random()
        while product > limit:
            count += 1
            product *= self._random.random()
        return count

    def _exchange(self, work: Work, at: float, span: tuple[float, float]) -> UsageRecord:
        random, bad = self._random, self.bad(at, span)
        ask = work.asks[among(random, [each.weight for each in work.asks])]
        told = Told(random, ask, at, self._keys[work.name])
        alias = self._market.alias(ask.model)
        if alias is None:
            return told.refused("model_not_found", 404)
        if work.kind == "trial" and span[1] - at < 2 * DAY and random.random() < 0.2:
            return told.refused("insufficient_quota", 429)
        if work.limits.requests is not None and random.random() < 0.006:
            return told.refused("rate_limit_exceeded", 429)
        failed = ALWAYS
        for upstream, model in alias.targets:
            known = "own" if upstream == self._market.own else upstream
            fault = ALWAYS if model == "echo:500" else fault_of(random, known, bad)
            if fault is None:
                price = self._market.price(upstream, model)
                return told.answered(upstream, model, PROVIDERS[known], price)
            told.tried(upstream, model, fault)
            failed = fault
            if fault.condition and fault.condition not in alias.fallback_on:
                break
        return told.failed(failed, len(alias.targets))


def _weekday(day: int) -> int:
    """0 is Monday; day 0 of Unix time was a Thursday."""
    return (day + 3) % 7


class Told:
    """One exchange as it goes on."""

    def __init__(self, random: Random, ask: Ask, at: float, whose: Whose) -> None:
        self._random = random
        self._ask = ask
        self._at = at
        self._whose = whose
        self._attempts: list[AttemptRecord] = []
        self._ms = random.randint(1, 4)
        """Since its start."""
        self._streamed = random.random() < ask.streamed

    def tried(self, upstream: str, model: str, failed: Failed) -> None:
        took = self._random.randint(failed.fastest, failed.slowest)
        waited = self._connected() if failed.status else (0, 0)
        took += sum(waited)
        attempt = AttemptRecord(
            upstream, model, failed.status, failed.why, self._ms, took, failed.maybe_billed, *waited
        )
        self._attempts.append(attempt)
        self._ms += took + 1

    def refused(self, code: str, status: int) -> UsageRecord:
        """By the gateway itself."""
        return self._record(code, status, NONE, None, self._ms)

    def failed(self, failed: Failed, targets: int) -> UsageRecord:
        """Nobody answered: the client hears of the only try, or that all of them failed."""
        if failed.status and (targets == 1 or failed.status == 400):
            return self._record("upstream_status", failed.status, NONE, None, self._ms)
        if targets == 1 and failed.condition == "timeout":
            return self._record("upstream_timeout", 504, NONE, None, self._ms)
        return self._record("upstream_error", 502, NONE, None, self._ms)

    def answered(
        self, upstream: str, model: str, provider: Provider, price: Price | None
    ) -> UsageRecord:
        random, usage = self._random, self._usage()
        waited = (0, 0) if upstream == "echo" else self._connected()
        head = max(1, int(spread(random, provider.first))) + sum(waited)
        writing = int(1000 * usage.output / spread(random, provider.speed, 0.25))
        outcome, status, failure, billed = "ok", 200, "", False
        if self._streamed and (drawn := random.random()) < 0.012:
            share = random.uniform(0.1, 0.9)
            writing = int(writing * share)
            usage = usage._replace(
                output=int(usage.output * share), reasoning=0, audio_output=0, estimated=True
            )
            if drawn < 0.009:
                outcome = "client_gone"
            else:
                outcome, billed = "upstream_broken", True
                failure = "broken: the stream ended before its end marker"
        attempt = AttemptRecord(
            upstream, model, 200, failure, self._ms, head if self._streamed else head + writing,
            billed, *waited,
        )  # fmt: skip
        self._attempts.append(attempt)
        first = self._ms + head + (random.randint(2, 30) if self._streamed else writing)
        last = self._ms + head + writing + random.randint(1, 6)
        self._ms = max(first, last)
        return self._record(outcome, status, usage, price, first)

    def _connected(self) -> tuple[int, int]:
        """Milliseconds in the queue for a connection, and to make one: mostly one is there."""
        drawn = self._random.random()
        if drawn < 0.9:
            return 0, 0
        return (
            (0, self._random.randint(18, 95)) if drawn < 0.99 else (self._random.randint(2, 240), 0)
        )

    def _usage(self) -> Usage:
        ask, random = self._ask, self._random
        read = max(1, int(spread(random, ask.input, 0.6)))
        written = int(spread(random, ask.output, 0.6)) if ask.output else 0

        def share(of: int, usual: float) -> int:
            return int(of * min(0.97, usual * random.uniform(0.75, 1.1))) if usual else 0

        cached = share(read, ask.cached) if random.random() < 0.9 else 0
        return Usage(
            input=read,
            output=written,
            cached=cached,
            cache_write=min(read - cached, share(read, ask.written)),
            reasoning=share(written, ask.reasoning),
            audio_input=share(read, ask.heard),
            audio_output=share(written, ask.spoken),
        )

    def _record(
        self, outcome: str, status: int, usage: Usage, price: Price | None, first: int
    ) -> UsageRecord:
        upstream, model = "", ""
        if self._attempts:
            upstream, model = self._attempts[-1].upstream, self._attempts[-1].model
        at = int(self._at * 1000)
        made = (
            f"req_{at:012x}{self._random.getrandbits(80):020x}", at / 1000, *self._whose,
            self._ask.route, self._ask.model, upstream, model, outcome, status, self._streamed,
            *usage,
            None if price is None else price.cost(usage), "" if price is None else price.text,
            first, self._ms, tuple(self._attempts),
        )  # fmt: skip
        return UsageRecord._make(made)
