"""Limits: what is counted together, what is given back, and whether a refusal tells the truth."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from passy_plugins import rate_limit, shares
from passy_plugins.stores.memory import Memory
from passy_proxy import (
    Claim,
    Exchange,
    Filter,
    Grant,
    Limits,
    Principal,
    Rate,
    Reply,
    StoreUnavailable,
)
from passy_proxy.records import Level
from passy_proxy.testing import Answer, Bench, Recorded, ScriptedUpstream, completion

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams: {{echo: {{kind: echo}}, provider: {{dialect: openai, url: "{url}/v1"}}}}
stores: {{state: {{kind: memory}}}}
models: {{m: [provider/m]}}
chains: {{default: [given, {filters}, alias, fallback: {{retries: 0}}]}}
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: POST /v1/messages, dialect: anthropic}}
"""
SECOND = 1_000_000_000


class Given(Filter):
    name = "given"
    provides = frozenset({"principal"})


@dataclass
class Limited:
    """A gateway's snapshot with limits, whose clock stands still until it is moved."""

    bench: Bench
    upstream: ScriptedUpstream
    now: int = SECOND

    def __post_init__(self) -> None:
        self.store._clock = lambda: self.now

    @property
    def store(self) -> Memory:
        store = self.bench.snapshot.stores["state"]
        assert isinstance(store, Memory)
        return store

    def exchange(
        self, key: str | Principal = "key_a", path: str = "/v1/chat/completions", **body: object
    ) -> Exchange:
        principal = Principal(key) if isinstance(key, str) else key
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], **body}
        return self.bench.exchange(body, path=path, principal=principal)

    async def ask(self, key: str | Principal = "key_a", **body: Any) -> Exchange:
        ex = self.exchange(key, **body)
        await ex.route.chain.run(ex)
        return ex

    async def statuses(self, *keys: str | Principal) -> list[int]:
        return [(await self.ask(key)).status for key in keys]

    async def tokens_left(self, rate: str = "1000/min", key: str = "key_a") -> int:
        """What the counter holds, asked of the store without taking any."""
        amount, _, _ = rate.partition("/")
        grant = self.store.take([Claim(f"t{rate}:key:{key}", Rate(int(amount), 60.0), 0)])
        return grant.rooms[0].remaining


Make = Callable[..., Awaitable[Limited]]


@pytest.fixture
async def limited() -> AsyncIterator[Make]:
    """Makes gateways with these settings of rate_limit, one filter for each."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())

        async def make(*settings: str, filters: tuple[type[Filter], ...] = ()) -> Limited:
            entries = [f"rate_limit: {{counters: state, {one}}}" for one in settings]
            entries += [kind.name for kind in filters]
            text = CONFIGURATION.format(url=upstream.url, filters=", ".join(entries))
            bench = await stack.enter_async_context(Bench(text, filters=[Given, *filters]))
            return Limited(bench, upstream)

        yield make


def sent(ex: Exchange) -> Recorded:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream


def header(ex: Exchange, name: str) -> str | None:
    value = sent(ex).header(name.encode())
    return None if value is None else value.decode()


# Levels

NO_LIMITS = Limits()
ACME = Level("organisation", "org_1", Limits(Rate(5, 60), Rate(1_000, 60)))
TEAM = Level("team", "team_1", Limits(requests=Rate(3, 60), concurrency=2))


def worker(key: str, *above: Level, limits: Limits = NO_LIMITS) -> Principal:
    return Principal(key, organisation="org_1", limits=limits, above=above)


async def test_L1_the_tightest_level_decides_and_is_named(limited: Make) -> None:
    gate = await limited("requests: 100/min")
    one, other = worker("key_1", ACME, TEAM), worker("key_2", ACME)
    assert [200, 200, 200, 429] == await gate.statuses(one, one, one, one)
    refused = await gate.ask(one)
    assert "requests of the team, limit 3" in sent(refused).json["error"]["message"]
    assert [200, 200, 429] == await gate.statuses(other, other, other)
    refused = await gate.ask(other)
    assert "requests of the organisation, limit 5" in sent(refused).json["error"]["message"]


async def test_L1_a_level_that_refuses_takes_from_no_other(limited: Make) -> None:
    gate = await limited("requests: 4/min")
    narrow, free = worker("key_1", TEAM), worker("key_1")
    assert [200, 200, 200, 429, 429, 429] == await gate.statuses(*[narrow] * 6)
    assert [200, 429] == await gate.statuses(free, free)  # The fourth of the key's own.


async def test_what_is_told_is_the_tightest_of_all_levels(limited: Make) -> None:
    gate = await limited("requests: 100/min, tokens: 100k/min")
    answer = await gate.ask(worker("key_1", ACME, limits=Limits(requests=Rate(4, 60))))
    told = (
        header(answer, "x-ratelimit-limit-requests"),
        header(answer, "x-ratelimit-limit-tokens"),
    )
    assert ("4", "1000") == told


async def test_L2_tokens_are_settled_on_each_level(limited: Make) -> None:
    gate = await limited("requests: 100/min")
    who = worker("key_1", ACME, limits=Limits(tokens=Rate(500, 60)))
    answer = await gate.ask(who, max_tokens=300)
    used = sent(answer).json["usage"]["total_tokens"]
    assert 0 < used < 100
    for name, rate in (("t500/min:key:key_1", 500), ("t1000/min:above:organisation:org_1", 1_000)):
        room = gate.store.take([Claim(name, Rate(rate, 60.0), 0)]).rooms[0]
        assert rate - used == room.remaining


async def test_two_filters_count_the_levels_once(limited: Make) -> None:
    gate = await limited("requests: 100/min", "per: [model], requests: 100/min")
    assert [200, 200, 200, 429] == await gate.statuses(*[worker("key_1", TEAM)] * 4)


async def test_an_equal_limit_of_the_filter_and_of_a_level_count_apart(limited: Make) -> None:
    gate = await limited("per: [organisation], requests: 5/min")
    assert [200] * 5 + [429] == await gate.statuses(*[worker("key_1", ACME)] * 6)


async def test_levels_cost_nothing_where_there_are_none(limited: Make) -> None:
    gate = await limited("requests: 100/min")
    rate = next(f for f in gate.bench.snapshot.filters if isinstance(f, rate_limit.RateLimit))
    ex = gate.exchange(Principal("key_1"))
    rate.on_request(ex)
    assert rate._counted["key_1"].shared is None
    assert 1 == len(rate._counted["key_1"].fixed)


# Requests


async def test_exactly_as_many_as_the_limit_are_admitted(limited: Make) -> None:
    gate = await limited("requests: 100/min")
    answers = await asyncio.gather(*(gate.ask() for _ in range(300)))
    statuses = [ex.status for ex in answers]
    assert 100 == statuses.count(200)
    assert 200 == statuses.count(429)


async def test_a_refused_request_contacts_no_upstream(limited: Make) -> None:
    gate = await limited("requests: 1/min")
    await gate.ask()
    ex = await gate.ask()
    assert [] == ex.attempts
    error = sent(ex).json["error"]
    assert "rate_limit_exceeded" == error["code"]
    assert "rate_limit_error" == error["type"]
    assert error["message"].startswith("Rate limit reached: requests, limit 1. Try again in 1m0s.")


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("[key]", [200, 429, 200, 200, 200]),
        ("[organisation]", [200, 429, 429, 200, 200]),
        ("[model]", [200, 429, 429, 429, 429]),
        ("[key, model]", [200, 429, 200, 200, 200]),
        ("[organisation, model]", [200, 429, 429, 200, 200]),
    ],
)
async def test_each_mix_is_counted_together(limited: Make, per: str, expected: list[int]) -> None:
    gate = await limited(f"per: {per}, requests: 1/min")
    one, other = Principal("a", organisation="acme"), Principal("b", organisation="acme")
    third, alone = Principal("c", organisation="brown"), Principal("d")
    assert expected == await gate.statuses(one, one, other, third, alone)


async def test_models_are_counted_apart_where_they_are_named(limited: Make) -> None:
    gate = await limited("per: [key, model], requests: 1/min")
    asked = ["echo", "echo", "echo:json"]
    assert [200, 429, 200] == [(await gate.ask(model=model)).status for model in asked]


async def test_no_model_name_spends_from_another_organisations_counter(limited: Make) -> None:
    gate = await limited("per: [organisation, model], requests: 1/min")
    one, other = Principal("a", organisation="acme"), Principal("b", organisation="acme:echo")
    await gate.ask(one, model="echo:x")
    assert 1 == len(gate.store)
    await gate.ask(other, model="x")
    assert 2 == len(gate.store)


async def test_a_key_and_an_organisation_of_one_name_are_two(limited: Make) -> None:
    gate = await limited("per: [key], requests: 1/min", "per: [organisation], requests: 5/min")
    assert [200, 200] == await gate.statuses(
        Principal("acme", organisation="x"), Principal("other", organisation="acme")
    )


async def test_one_key_may_have_a_limit_a_second_and_a_limit_an_hour(limited: Make) -> None:
    gate = await limited("requests: 2/s", "requests: 3/h")
    assert [200, 200, 429] == await gate.statuses(*["key_a"] * 3)
    gate.now += SECOND
    assert [200, 429] == await gate.statuses(*["key_a"] * 2)


async def test_a_keys_own_limit_replaces_that_of_the_filter(limited: Make) -> None:
    gate = await limited("requests: 1/min, tokens: 1000/min")
    generous = Principal("key_g", limits=Limits(requests=Rate(3, 60.0)))
    assert [200, 200, 200, 429] == await gate.statuses(*[generous] * 4)
    strict = Principal("key_s", limits=Limits(requests=Rate(0, 60.0)))
    assert [429] == await gate.statuses(strict)
    ex = await gate.ask(Principal("key_h", limits=Limits(requests=Rate(3, 60.0))))
    assert ("3", "1000") == (
        header(ex, "x-ratelimit-limit-requests"),
        header(ex, "x-ratelimit-limit-tokens"),
    )


async def test_a_keys_own_limit_and_its_organisations_both_hold(limited: Make) -> None:
    gate = await limited("per: [organisation], requests: 3/min")
    own = Limits(requests=Rate(2, 60.0))
    one, other = (Principal(name, organisation="acme", limits=own) for name in "ab")
    assert [200, 200, 429, 200, 429] == await gate.statuses(one, one, one, other, other)


async def test_a_keys_own_limit_is_counted_once_however_many_filters_there_are(
    limited: Make,
) -> None:
    gate = await limited("requests: 1/s", "requests: 1/h", "per: [organisation], requests: 90/h")
    own = Principal("key_a", organisation="acme", limits=Limits(requests=Rate(3, 60.0)))
    assert [200, 200, 200, 429] == await gate.statuses(*[own] * 4)


# Tokens


async def test_a_reservation_is_settled_with_what_was_used(limited: Make) -> None:
    gate = await limited("tokens: 1000/min")
    gate.upstream.chat("one two three")
    ex = await gate.ask(model="m", max_tokens=900)
    assert 200 == ex.status
    assert 1000 > int(header(ex, "x-ratelimit-remaining-tokens") or 0)
    assert 1000 - 12 == await gate.tokens_left()


async def test_an_answer_dearer_than_was_reserved_is_paid_for_in_full(limited: Make) -> None:
    gate = await limited("tokens: 1000/min, output_guess: 0")
    dear = completion()
    dear["usage"] = {"prompt_tokens": 300, "completion_tokens": 600, "total_tokens": 900}
    gate.upstream.json(dear)
    assert 200 == (await gate.ask(model="m")).status
    assert 100 == await gate.tokens_left()


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_a_failed_answer_costs_no_tokens(limited: Make, status: int) -> None:
    gate = await limited("tokens: 1000/min")
    gate.upstream.json({"error": {"message": "no"}}, status)
    await gate.ask(model="m", max_tokens=500)
    assert 1000 == await gate.tokens_left()


async def test_a_stream_is_settled_with_its_usage(limited: Make) -> None:
    gate = await limited("tokens: 1000/min")
    gate.upstream.stream("one ", "two ")
    assert 200 == (await gate.ask(model="m", stream=True)).status
    assert 1000 - 11 == await gate.tokens_left()


async def test_a_stream_that_tells_no_usage_is_settled_with_an_estimate(limited: Make) -> None:
    gate = await limited("tokens: 1000/min")
    gate.upstream.stream("one ", "two ", usage=False)
    ex = await gate.ask(model="m", stream=True, max_tokens=900)
    assert ex.usage is not None
    assert ex.usage.estimated
    assert 1000 - ex.usage.input - ex.usage.output == await gate.tokens_left()


async def test_several_answers_at_once_are_reserved_for(limited: Make) -> None:
    gate = await limited("tokens: 1000/min")
    ex = await gate.ask(max_tokens=100, n=3)
    left = int(header(ex, "x-ratelimit-remaining-tokens") or 0)
    assert 600 < left < 700


async def test_a_request_larger_than_the_limit_waits_for_a_full_counter(limited: Make) -> None:
    gate = await limited("tokens: 100/min")
    large = {"max_tokens": 100_000}
    assert 200 == (await gate.ask(**large)).status
    refused = await gate.ask(**large)
    assert 429 == refused.status
    gate.now += int(header(refused, "retry-after-ms") or 0) * SECOND // 1000
    assert 200 == (await gate.ask(**large)).status


async def test_a_limit_that_admits_nothing_is_refused_without_a_time(limited: Make) -> None:
    gate = await limited("requests: 0/min")
    ex = await gate.ask()
    assert 429 == ex.status
    assert header(ex, "retry-after") is None
    assert "false" == header(ex, "x-should-retry")


# Concurrency


async def test_a_slot_is_held_while_the_answer_lasts_and_given_back_after(limited: Make) -> None:
    gate = await limited("concurrency: 1")
    release = asyncio.Event()
    gate.upstream.then(Answer(pieces=[b"{}"], hold=release))
    running = asyncio.create_task(gate.ask(model="m"))
    await gate.upstream.seen()
    refused = await gate.ask()
    assert 429 == refused.status
    assert "requests at once, limit 1" in sent(refused).json["error"]["message"]
    assert "1000" == header(refused, "retry-after-ms")
    release.set()
    assert 200 == (await running).status
    assert 200 == (await gate.ask()).status
    assert 0 == len(gate.store)


async def test_a_slot_comes_back_when_the_client_hangs_up(limited: Make) -> None:
    gate = await limited("concurrency: 1")
    gate.upstream.then(Answer(delay=60))
    ex = gate.exchange(model="m")
    running = asyncio.create_task(ex.route.chain.run(ex))
    seen = await gate.upstream.seen()
    sent(ex).leave()
    await running
    assert "client_gone" == ex.outcome.kind
    assert 0 == len(gate.store)
    await seen.closed.wait()


class Stumbling(Filter):
    name = "stumbling"

    def on_request(self, ex: Exchange) -> Reply | None:
        raise RuntimeError("a mistake in a plugin")


class Refusing(Filter):
    name = "refusing"

    def on_request(self, ex: Exchange) -> Reply | None:
        return Reply(403, "no", "No.")


@pytest.mark.parametrize(("later", "status"), [(Stumbling, 500), (Refusing, 403)])
async def test_a_slot_comes_back_when_a_later_filter_ends_the_exchange(
    limited: Make, later: type[Filter], status: int
) -> None:
    gate = await limited("concurrency: 1, tokens: 1000/min", filters=(later,))
    assert status == (await gate.ask()).status
    assert {} == gate.store._slots
    assert 1000 == await gate.tokens_left()


async def test_both_of_two_limits_give_their_slots_back(limited: Make) -> None:
    gate = await limited("concurrency: 1", "per: [organisation], concurrency: 1")
    one = Principal("a", organisation="acme")
    assert [200, 200, 200] == await gate.statuses(one, one, one)
    assert 0 == len(gate.store)


async def test_what_an_earlier_limit_took_comes_back_when_a_later_one_refuses(
    limited: Make,
) -> None:
    gate = await limited("concurrency: 5, tokens: 1000/min", "per: [organisation], requests: 0/s")
    assert 429 == (await gate.ask()).status
    assert {} == gate.store._slots
    assert 1000 == await gate.tokens_left()


# Headers


async def test_openai_clients_are_told_their_room_with_every_answer(limited: Make) -> None:
    gate = await limited("requests: 60/min, tokens: 6000/min, output_guess: 50")
    ex = await gate.ask()
    told = {k.decode(): v.decode() for k, v in sent(ex).headers if b"ratelimit" in k}
    assert "60" == told["x-ratelimit-limit-requests"]
    assert "59" == told["x-ratelimit-remaining-requests"]
    assert "1s" == told["x-ratelimit-reset-requests"]
    assert "6000" == told["x-ratelimit-limit-tokens"]
    reserved = 6000 - int(told["x-ratelimit-remaining-tokens"])
    assert 50 < reserved < 70
    assert f"{reserved * 10}ms" == told["x-ratelimit-reset-tokens"]
    assert header(ex, "retry-after") is None
    refusals = [await gate.ask() for _ in range(60)]
    last = refusals[-1]
    assert 429 == last.status
    assert "0" == header(last, "x-ratelimit-remaining-requests")
    assert header(last, "x-ratelimit-reset-requests") in ("1m0s", "1m1s")  # Rounded up.
    assert ("1", "1000") == (header(last, "retry-after"), header(last, "retry-after-ms"))


async def test_anthropic_clients_are_told_in_their_names(limited: Make) -> None:
    gate = await limited("requests: 1/min")
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    for status, left in ((200, "0"), (429, "0")):
        ex = await gate.ask(path="/v1/messages", **body)
        assert status == ex.status
        assert "1" == header(ex, "anthropic-ratelimit-requests-limit")
        assert left == header(ex, "anthropic-ratelimit-requests-remaining")
        assert (header(ex, "anthropic-ratelimit-requests-reset") or "").endswith("Z")
        assert header(ex, "x-ratelimit-limit-requests") is None
    assert "rate_limit_error" == sent(ex).json["error"]["type"]


async def test_the_providers_numbers_are_hidden_behind_the_keys(limited: Make) -> None:
    theirs = {"x_ratelimit_remaining_requests": "9999", "anthropic_ratelimit_tokens_limit": "7"}
    gate = await limited("requests: 10/min")
    gate.upstream.json(completion(), **theirs)
    ex = await gate.ask(model="m")
    assert "9" == header(ex, "x-ratelimit-remaining-requests")
    assert header(ex, "anthropic-ratelimit-tokens-limit") is None
    unlimited = await limited("output_guess: 1")
    ex = await unlimited.ask(model="m")
    assert "9999" == header(ex, "x-ratelimit-remaining-requests")


async def test_their_numbers_are_hidden_by_whatever_name_and_however_often(limited: Make) -> None:
    gate = await limited("requests: 10/min")
    for number in range(3):
        theirs = {"x_ratelimit_reset_requests": "1s", f"x_new_ratelimit_{number}": "7"}
        gate.upstream.json(completion(), **theirs, **{f"x_kept_{number}": "yes"})
        ex = await gate.ask(model="m")
        assert "yes" == header(ex, f"x-kept-{number}")
        assert header(ex, f"x-new-ratelimit-{number}") is None
        told = [v for k, v in sent(ex).headers if k == b"x-ratelimit-reset-requests"]
        assert 1 == len(told)


async def test_names_of_headers_do_not_fill_the_memory(
    limited: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "MOST_NAMES", 100)
    gate = await limited("requests: 10/min")
    [filter] = [one for one in gate.bench.snapshot.filters if isinstance(one, rate_limit.RateLimit)]
    for number in range(500):
        pairs = [(b"x-%d" % number, b""), (b"x" * 1_000, b""), (b"ratelimit-%d" % number, b"")]
        assert pairs[:2] == filter.without_theirs(pairs)
    assert len(filter._others) <= 100
    assert all(len(name) <= 200 for name in filter._others)


async def test_of_two_limits_the_tighter_one_is_told(limited: Make) -> None:
    gate = await limited("requests: 50/min", "per: [organisation], requests: 2/h")
    ex = await gate.ask()
    assert ["2"] == [v.decode() for k, v in sent(ex).headers if k == b"x-ratelimit-limit-requests"]
    assert "1" == header(ex, "x-ratelimit-remaining-requests")


async def test_a_refusal_tells_the_tighter_of_two_limits_too(limited: Make) -> None:
    gate = await limited("requests: 50/min, tokens: 90k/min", "per: [organisation], requests: 2/h")
    ex = [await gate.ask() for _ in range(3)][-1]
    assert 429 == ex.status
    told = [v.decode() for k, v in sent(ex).headers if k == b"x-ratelimit-limit-requests"]
    assert ["2"] == told
    assert ("0", "90000") == (
        header(ex, "x-ratelimit-remaining-requests"),
        header(ex, "x-ratelimit-limit-tokens"),
    )


async def test_of_a_filters_limits_and_the_keys_own_the_tighter_is_told(limited: Make) -> None:
    gate = await limited("per: [organisation], requests: 9/min, tokens: 5k/min, concurrency: 9")
    for number, amount in ((3, "3"), (30, "9")):
        own = Limits(Rate(number, 60.0), Rate(70_000, 60.0), 7)
        ex = await gate.ask(Principal(f"key_{number}", organisation=f"o{number}", limits=own))
        assert (amount, "5000") == (
            header(ex, "x-ratelimit-limit-requests"),
            header(ex, "x-ratelimit-limit-tokens"),
        )
    assert {} == gate.store._slots


# The truth of a refusal


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("requests: 90/min", "retry-after"),
        ("requests: 90/min", "retry-after-ms"),
        ("tokens: 15k/min", "retry-after"),
        ("tokens: 15k/min", "retry-after-ms"),
        ("requests: 7/s", "retry-after-ms"),  # Whole seconds are too coarse for a limit a second.
    ],
)
async def test_who_waits_as_told_is_admitted_the_next_time(
    limited: Make, settings: str, named: str
) -> None:
    gate = await limited(settings)
    drawn = random.Random(7)
    prompt = [{"role": "user", "content": "hi " * 50}]
    waiting = [(SECOND + drawn.randrange(SECOND), client, 0) for client in range(200)]
    heapq.heapify(waiting)
    second_tries = admitted = 0
    while waiting:
        gate.now, client, tries = heapq.heappop(waiting)
        ex = await gate.ask(messages=prompt, max_tokens=100)
        if tries == 1:
            second_tries += 1
            admitted += ex.status == 200
        if ex.status == 429 and tries == 0:
            unit = SECOND if named == "retry-after" else SECOND // 1000
            back = gate.now + int(header(ex, named) or 0) * unit
            heapq.heappush(waiting, (back, client, 1))
    assert 20 < second_tries
    assert 0.99 * second_tries <= admitted


# The store away


@pytest.mark.parametrize("settings", ["requests: 2/min", "concurrency: 5, tokens: 1000/min"])
async def test_a_store_that_answers_later_is_waited_for(
    limited: Make, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    gate = await limited(settings)
    take, settle = gate.store.take, gate.store.settle

    async def later_take(claims: Sequence[Claim]) -> Grant:
        await asyncio.sleep(0)
        return take(claims)

    async def later_settle(grant: Grant, actual: Sequence[int | None]) -> None:
        await asyncio.sleep(0)
        settle(grant, actual)

    monkeypatch.setattr(gate.store, "take", later_take)
    monkeypatch.setattr(gate.store, "settle", later_settle)
    statuses = await gate.statuses(*["key_a"] * 3)
    monkeypatch.undo()
    if "tokens" in settings:
        assert [200, 200, 200] == statuses
        used = [attempt.tap.usage for attempt in (await gate.ask()).attempts if attempt.tap]
        assert used[0] is not None
        assert 1000 - 4 * (used[0].input + used[0].output) == await gate.tokens_left()
        assert {} == gate.store._slots
    else:
        assert [200, 200, 429] == statuses


class Away:
    """In place of the store's methods: it answers nothing."""

    async def take(self, claims: object) -> Grant:
        raise StoreUnavailable

    async def settle(self, grant: object, actual: object) -> None:
        raise StoreUnavailable


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("refuse", 503)])
async def test_without_its_store_it_does_as_it_was_told(
    limited: Make, monkeypatch: pytest.MonkeyPatch, policy: str, status: int
) -> None:
    gate = await limited(f"requests: 1/min, when_unavailable: {policy}")
    monkeypatch.setattr(gate.store, "take", Away().take)
    for _ in range(3):
        ex = await gate.ask()
        assert status == ex.status
        assert header(ex, "x-ratelimit-limit-requests") is None
    if policy == "refuse":
        assert "rate_limit_unavailable" == ex.outcome.code
        assert "1" == header(ex, "retry-after")


async def test_without_its_store_a_worker_holds_its_share(
    limited: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "workers", 4, raising=False)
    gate = await limited("requests: 9/min, tokens: 4000/min, concurrency: 1")
    with monkeypatch.context() as patch:
        patch.setattr(gate.store, "take", Away().take)
        ex = await gate.ask()
        assert (200, "2") == (ex.status, header(ex, "x-ratelimit-limit-requests"))
        assert "1000" == header(ex, "x-ratelimit-limit-tokens")
        assert [200, 429] == await gate.statuses("key_a", "key_a")
    # The store has not counted them, and nothing was settled there.
    assert 4_000 == await gate.tokens_left("4000/min")
    assert "8" == header(await gate.ask(), "x-ratelimit-remaining-requests")


async def test_D2_shares_add_up_to_no_more_than_the_limit() -> None:
    for amount in (0, 1, 4, 99, 100, 1_000_003):
        for workers in (1, 2, 3, 16):
            most = max(amount, min(amount, 1) * workers)
            part = shares.share(Rate(amount, 60), workers)
            assert isinstance(part, Rate)
            assert part.amount * workers <= most
            assert part.amount == shares.share(amount, workers)
            assert part.amount or not amount


async def test_an_answer_is_not_lost_when_it_cannot_be_settled(
    limited: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = await limited("requests: 5/min")
    monkeypatch.setattr(gate.store, "settle", Away().settle)
    ex = await gate.ask()
    assert 200 == ex.status
    assert "ok" == ex.outcome.kind


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("refuse", 503)])
async def test_a_store_that_says_at_once_that_it_is_away(
    limited: Make, monkeypatch: pytest.MonkeyPatch, policy: str, status: int
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable

    gate = await limited(f"requests: 9/min, when_unavailable: {policy}")
    monkeypatch.setattr(gate.store, "settle", away)
    ex = await gate.ask()
    assert (200, "ok") == (ex.status, ex.outcome.kind)
    monkeypatch.setattr(gate.store, "take", away)
    assert status == (await gate.ask()).status


# Memory


async def test_a_key_whose_limits_changed_is_counted_by_the_new_ones(limited: Make) -> None:
    gate = await limited("requests: 1/min")
    own = Limits(requests=Rate(3, 60.0))
    changed = [Principal("key_a", limits=limits) for limits in (own, Limits(), own, Limits())]
    assert [200, 200, 200, 429] == await gate.statuses(*changed)


async def test_names_of_models_do_not_fill_the_memory(
    limited: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "REMEMBERED", 20)
    gate = await limited("per: [key, model], requests: 1/min")
    [filter] = [one for one in gate.bench.snapshot.filters if isinstance(one, rate_limit.RateLimit)]
    one = Principal("key_a")
    for number in range(50):
        asked = [(await gate.ask(one, model=f"made-up-{number}")).status for _ in range(2)]
        assert [404, 429] == asked
    await gate.ask(one, model="x" * 1_000)
    assert len(filter._counted) <= 20
    assert all(len(name) < 300 for _, name in filter._counted)


async def test_counters_that_are_full_again_are_dropped(limited: Make) -> None:
    gate = await limited("requests: 60/min")
    for number in range(2_000):
        gate.now += SECOND
        await gate.ask(f"key_{number}")
    assert len(gate.store) < 10
