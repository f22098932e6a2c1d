"""Budgets: what they refuse and in which words, what is settled, and who is told."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from math import inf
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from passy_plugins.alerts import signature
from passy_plugins.budgets import Budgets, WebhookSettings
from passy_plugins.spending import Accounts
from passy_plugins.stores.memory import Memory
from passy_proxy import Claim, Exchange, Filter, Principal, StoreUnavailable
from passy_proxy.config.settings import Secret
from passy_proxy.periods import window_at
from passy_proxy.records import ECHO_ONLY, Budget, Level
from passy_proxy.stores import Allowance, Hook
from passy_proxy.testing import Bench, Recorded, ScriptedUpstream, completion

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams: {{echo: {{kind: echo}}, paid: {{dialect: openai, url: "{url}/v1"}}}}
stores: {{state: {{kind: memory, keep: 10000}}}}
models: {{m: [paid/m], both: [echo/echo, paid/m], unknown: [paid/unknown]}}
prices: {{paid/m: {{input: 1, output: 10, per: 1M}}}}
chains:
  default:
    - usage: {{ledger: state}}
    - given
    - alias
    - budgets: {{counters: state, books: state, alerts: state{more}}}
    - fallback: {{retries: 0}}
  through: [given, budgets: {{counters: state{more}}}, direct: {{upstream: paid}}]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: POST /v1/embeddings}}
  - {{match: POST /v1/messages, dialect: anthropic}}
  - {{match: POST /v1/messages/count_tokens, dialect: anthropic}}
  - {{match: POST /v1/files, chain: through}}
"""
SPENT = 10_010_000
"""Billionths that an answer of ten tokens read and a thousand written costs."""
USAGE = {"prompt_tokens": 10, "completion_tokens": 1_000, "total_tokens": 1_010}
ANSWER = completion("hello") | {"usage": USAGE}


class Given(Filter):
    name = "given"
    provides = frozenset({"principal"})


@dataclass
class Purse:
    bench: Bench
    upstream: ScriptedUpstream

    @property
    def store(self) -> Memory:
        store = self.bench.snapshot.stores["state"]
        assert isinstance(store, Memory)
        return store

    @property
    def accounts(self) -> Accounts:
        first = next(each for each in self.bench.snapshot.filters if isinstance(each, Budgets))
        return first._accounts

    def exchange(
        self, who: Principal, path: str = "/v1/chat/completions", **body: object
    ) -> Exchange:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 1_000,
            **body,
        }
        return self.bench.exchange(body, path=path, principal=who)

    async def ask(
        self, who: Principal, path: str = "/v1/chat/completions", **body: Any
    ) -> Exchange:
        ex = self.exchange(who, path, **body)
        await ex.route.chain.run(ex)
        return ex

    async def statuses(self, *whos: Principal) -> list[int]:
        return [(await self.ask(who)).status for who in whos]

    def left(self, budget: Budget) -> int:
        window = window_at(budget.period, time.time())
        limit = Allowance(budget.amount, window.name, window.end, False, 1)
        grant = self.store.take([Claim(f"b:{budget.id}:{budget.unit}:{budget.period}", limit, 0)])
        return grant.rooms[0].remaining


Make = Callable[..., Awaitable[Purse]]


@pytest.fixture
async def purse() -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())

        async def make(more: str = "") -> Purse:
            text = CONFIGURATION.format(url=upstream.url, more=f", {more}" if more else "")
            bench = await stack.enter_async_context(Bench(text, filters=[Given]))
            upstream.json(ANSWER)
            return Purse(bench, upstream)

        yield make


def sent(ex: Exchange) -> Recorded:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream


def usd(dollars: float, id: str = "bud_1", **others: Any) -> Budget:
    return Budget(id, "usd", round(dollars * 10**9), **{"period": "total"} | others)


def owner(*budgets: Budget, **others: Any) -> Principal:
    return Principal("key_1", budgets=budgets, **others)


# Refusing


async def test_L3_exactly_what_was_spent_is_counted(purse: Make) -> None:
    gate, budget = await purse(), usd(1)
    for number in range(1, 4):
        assert 200 == (await gate.ask(owner(budget))).status
        assert 10**9 - number * SPENT == gate.left(budget)
    assert 3 * SPENT == await gate.store.spent("key", "key_1", "usd", 0, inf)


async def test_L3_five_hundred_at_once_never_overspend(purse: Make) -> None:
    # The prompt is guessed at some tokens more than it had: room for fifty.
    gate, budget = await purse(), usd(50 * (SPENT + 60_000) / 10**9)
    answers = await asyncio.gather(*(gate.ask(owner(budget)) for _ in range(500)))
    statuses = [ex.status for ex in answers]
    admitted = statuses.count(200)
    assert 500 == admitted + statuses.count(429)
    assert 49 <= admitted <= 50
    spent = await gate.store.spent("key", "key_1", "usd", 0, inf)
    assert admitted * SPENT == spent <= budget.amount
    assert budget.amount - spent == gate.left(budget)


async def test_a_hard_budget_refuses_in_the_words_clients_know(purse: Make) -> None:
    gate, budget = await purse(), usd(0.02, period="month")
    assert [200, 429] == await gate.statuses(*[owner(budget)] * 2)
    ex = await gate.ask(owner(budget))
    error = sent(ex).json["error"]
    assert ("insufficient_quota", "insufficient_quota") == (error["type"], error["code"])
    assert "What is left of the monthly budget of this key ($0.00999 of $0.02)" in error["message"]
    assert "It begins anew on" in error["message"]
    assert b"false" == sent(ex).header(b"x-should-retry")
    assert None is sent(ex).header(b"retry-after")
    assert [] == ex.attempts


async def test_anthropics_clients_are_told_in_their_own(purse: Make) -> None:
    gate = await purse()
    ex = await gate.ask(owner(usd(0)), "/v1/messages")
    assert 402 == sent(ex).status
    assert "billing_error" == sent(ex).json["error"]["type"]
    assert "The total budget of this key ($0) is used up" in sent(ex).json["error"]["message"]


@pytest.mark.parametrize("level", ["organisation", "team", "user"])
async def test_the_tightest_level_refuses_and_is_named(purse: Make, level: Any) -> None:
    gate, narrow, wide = await purse(), usd(0.015, "narrow"), usd(5, "wide")
    who = owner(wide, above=(Level(level, "x", budgets=(narrow,)),))
    assert [200, 429] == await gate.statuses(who, who)
    assert f"budget of the {level}" in sent(await gate.ask(who)).json["error"]["message"]
    assert wide.amount - SPENT == gate.left(wide)  # Refused: nothing taken there either.
    other = Principal("key_2", above=(Level(level, "x", budgets=(narrow,)),))
    assert [429] == await gate.statuses(other)  # It is shared by all keys below.


async def test_tokens_are_counted_in_and_out(purse: Make) -> None:
    gate = await purse()
    budget = Budget("bud_t", "tokens", 2_500, "day")
    assert [200, 200, 429] == await gate.statuses(*[owner(budget)] * 3)
    assert 2_500 - 2 * 1_010 == gate.left(budget)


async def test_what_was_not_used_comes_back(purse: Make) -> None:
    gate, budget = await purse(), usd(0.1)
    gate.upstream.json({"error": {"message": "no"}}, 500)
    assert [200, 500] == await gate.statuses(*[owner(budget)] * 2)
    assert budget.amount - SPENT == gate.left(budget)


async def test_an_answer_dearer_than_was_reserved_counts_whole(purse: Make) -> None:
    gate, budget = await purse(), usd(0.012)
    assert 200 == (await gate.ask(owner(budget), max_tokens=10)).status
    assert 0.012 * 10**9 - SPENT == pytest.approx(gate.left(budget))
    assert 429 == (await gate.ask(owner(budget))).status


async def test_each_window_begins_anew(purse: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, budget = await purse(), usd(0.02, period="day")
    assert [200, 429] == await gate.statuses(*[owner(budget)] * 2)
    ex = gate.exchange(owner(budget))
    ex.at += 86_400
    await ex.route.chain.run(ex)
    assert 200 == ex.status


async def test_a_raised_budget_holds_at_once(purse: Make) -> None:
    gate = await purse()
    assert [200, 429] == await gate.statuses(*[owner(usd(0.02))] * 2)
    assert [200, 429] == await gate.statuses(*[owner(usd(0.03))] * 2)


# What is free, and what cannot be reckoned


async def test_a_budget_in_another_unit_or_period_counts_anew(purse: Make) -> None:
    """What a counter had in a month says nothing of a day, nor its dollars of tokens."""
    gate = await purse()
    month = Budget("bud_1", "usd", 10**9, "month")
    assert 200 == (await gate.ask(owner(month))).status
    for other in (Budget("bud_1", "tokens", 4_000, "month"), Budget("bud_1", "usd", 10**9, "day")):
        assert 200 == (await gate.ask(owner(other))).status
    tokens = Budget("bud_1", "tokens", 4_000, "month")
    assert 4_000 - 1_010 >= gate.left(tokens) > 0


async def test_what_is_free_is_never_refused(purse: Make) -> None:
    gate = await purse()
    who = owner(usd(0))
    assert 200 == (await gate.ask(who, model="echo")).status
    assert 429 == (await gate.ask(who, model="m")).status
    assert 429 == (await gate.ask(who, model="both")).status  # It may come to cost something.
    ex = await gate.ask(who, "/v1/messages/count_tokens", model="echo")
    assert 429 != ex.status


async def test_a_test_key_costs_nothing(purse: Make) -> None:
    gate = await purse()
    who = Principal(
        "key_t",
        is_test=True,
        upstreams=ECHO_ONLY,
        above=(Level("organisation", "org_1", budgets=(usd(0, "narrow"),)),),
    )
    assert 200 == (await gate.ask(who, model="echo")).status
    [record] = [each for each in gate.store.records if each.status == 200]
    assert (0, "key_t") == (record.cost_nanos, record.key_id)


async def test_a_trial_key_has_so_much_altogether(purse: Make) -> None:
    gate = await purse("trial: 0.02")
    trial = Principal("key_t", is_trial=True)
    assert [200, 429] == await gate.statuses(trial, trial)
    assert [200, 200, 200] == await gate.statuses(*[Principal("key_1")] * 3)
    own = Principal("key_o", is_trial=True, budgets=(usd(0.04, "own"),))
    assert [200, 200, 200, 429] == await gate.statuses(*[own] * 4)


async def test_a_model_without_a_price_is_refused_under_a_hard_budget(purse: Make) -> None:
    gate = await purse()
    ex = await gate.ask(owner(usd(1)), model="unknown")
    assert (403, "price_unknown") == (ex.status, sent(ex).json["error"]["code"])
    assert [] == ex.attempts
    for who in (owner(usd(1, hard=False)), owner(Budget("t", "tokens", 10**6, "day"))):
        assert 200 == (await gate.ask(who, model="unknown")).status


async def test_a_model_without_a_price_is_admitted_where_that_is_said(purse: Make) -> None:
    gate = await purse("unpriced: admit")
    assert 200 == (await gate.ask(owner(usd(1)), model="unknown")).status


async def test_what_is_passed_through_cannot_be_reckoned(purse: Make) -> None:
    gate = await purse()
    ex = await gate.ask(owner(Budget("t", "tokens", 10**6, "day")), "/v1/files")
    assert (403, "price_unknown") == (ex.status, sent(ex).json["error"]["code"])
    assert 200 == (await gate.ask(Principal("key_2"), "/v1/files")).status


async def test_records_carry_all_that_spends(purse: Make) -> None:
    gate = await purse()
    who = owner(organisation="org_1", team="team_1", user="user_1", tags="blue,green")
    await gate.ask(who)
    [record] = gate.store.records
    spends = (record.key_id, record.organisation, record.team, record.user_id, record.tags)
    assert ("key_1", "org_1", "team_1", "user_1", "blue,green") == spends
    for kind, subject in (("organisation", "org_1"), ("team", "team_1"), ("user", "user_1")):
        assert SPENT == await gate.store.spent(kind, subject, "usd", 0, inf)


# Soft ones


async def test_a_soft_budget_admits_and_counts(purse: Make) -> None:
    gate, budget = await purse(), usd(0.01, hard=False)
    assert [200, 200, 200] == await gate.statuses(*[owner(budget)] * 3)
    assert 3 * SPENT == await gate.store.spent("key", "key_1", "usd", 0, inf)


# The stores


async def test_what_was_spent_before_is_known_after_a_start(purse: Make) -> None:
    gate, budget = await purse(), usd(0.03)
    assert [200] == await gate.statuses(owner(budget))
    gate.store._purses.clear()
    assert [200, 429] == await gate.statuses(*[owner(budget)] * 2)


async def test_many_at_once_ask_the_books_once(purse: Make) -> None:
    gate, asked = await purse(), []
    spent = gate.store.spent

    async def counted(*what: Any) -> int:
        asked.append(what)
        await asyncio.sleep(0.01)
        return await spent(*what)

    gate.store.spent = counted  # type: ignore[method-assign]
    await asyncio.gather(*(gate.ask(owner(usd(9))) for _ in range(50)))
    assert 1 == len(asked)


async def away(*_: Any) -> int:
    raise StoreUnavailable("away")


def gone(*_: Any) -> Any:
    raise StoreUnavailable("away")


@pytest.mark.parametrize("what", ["counters", "books", "later"])
async def test_D1_without_the_stores_hard_budgets_are_closed_and_soft_ones_open(
    purse: Make, what: str
) -> None:
    gate = await purse()
    if what == "books":
        gate.store.spent = away  # type: ignore[method-assign]
    else:
        gate.store.take = gone if what == "counters" else away  # type: ignore[method-assign,assignment]
    ex = await gate.ask(owner(usd(1)))
    assert (503, "budget_unavailable") == (ex.status, sent(ex).json["error"]["code"])
    assert [] == ex.attempts
    with capture_logs() as logs:
        assert 200 == (await gate.ask(owner(usd(1, hard=False)))).status
    assert ["budget_unchecked"] == [each["event"] for each in logs if "budget" in each["event"]]


async def test_the_other_way_round_where_that_is_said(purse: Make) -> None:
    gate = await purse("hard_unavailable: admit, soft_unavailable: refuse")
    gate.store.spent = away  # type: ignore[method-assign]
    assert 200 == (await gate.ask(owner(usd(1)))).status
    assert 503 == (await gate.ask(owner(usd(1, hard=False)))).status


async def test_L3_a_counter_that_lost_something_follows_the_books(purse: Make) -> None:
    gate, budget = await purse("interval: 1h"), usd(1)
    await gate.ask(owner(budget))
    # What another process had spent when it was killed: in the books by its journal, and in no
    # counter.
    row = gate.store.records[0].row()
    gate.store.record(("another", *row[1:]))
    for _ in range(2):
        await gate.accounts.round()
    assert budget.amount - 2 * SPENT == gate.left(budget)
    for _ in range(3):
        await gate.accounts.round()
    assert budget.amount - 2 * SPENT == gate.left(budget)


async def test_L3_what_is_under_way_is_not_counted_twice(purse: Make) -> None:
    gate, budget = await purse("interval: 1h"), usd(1)
    first = gate.exchange(owner(budget))
    running = asyncio.create_task(first.route.chain.run(first))
    for _ in range(20):
        await gate.accounts.round()
        await asyncio.sleep(0)
    await running
    for _ in range(3):
        await gate.accounts.round()
    assert budget.amount - SPENT == gate.left(budget)


# Telling


class Receiver:
    """Takes webhooks, and checks that they are signed."""

    def __init__(self, upstream: ScriptedUpstream, secret: str) -> None:
        self.upstream = upstream
        self.secret = secret.encode()

    def told(self) -> list[dict[str, Any]]:
        found = []
        for request in self.upstream.requests:
            assert "/hook" == request.target
            id, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
            signed = b"%b.%b.%b" % (id.encode(), at.encode(), request.body)
            made = base64.b64encode(hmac.digest(self.secret, signed, "sha256")).decode()
            assert "v1," + made == request.headers["webhook-signature"]
            assert abs(time.time() - int(at)) < 60
            found.append(json.loads(request.body) | {"id": id})
        return found


SECRET = "u3Jx9QfW0pYt7LkBz2mV6sRhCnE4aTgD8iKo1PwX5yM="


async def until(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_K7_an_alert_is_sent_once_for_each_threshold_and_signed(purse: Make) -> None:
    async with ScriptedUpstream() as hooks:
        hooks.json({})
        more = f'webhooks: [{{url: "{hooks.url}/hook", secret: "{SECRET}"}}], interval: 50ms'
        gate = await purse(more)
        receiver = Receiver(hooks, SECRET)
        budget = usd(0.0404, alerts=(50, 80, 100), period="month")
        await gate.statuses(*[owner(budget, organisation="org_1")] * 3)
        await until(lambda: len(receiver.told()) >= 1)
        who = owner(budget, organisation="org_1")
        assert [200, 429] == await gate.statuses(who, who)
        await until(lambda: len(receiver.told()) >= 3)
        await asyncio.sleep(0.2)
        told = receiver.told()
        assert [50, 80, 100] == sorted(each["data"]["percent"] for each in told)
        ids = [each["id"] for each in told]
        assert len(ids) == len(set(ids))
        first = told[0]["data"]
        assert ("budget.alert", "0.0404", "key", "key_1", "org_1", "usd", "month") == (
            told[0]["type"],
            first["amount"],
            first["kind"],
            first["subject"],
            first["organisation"],
            first["unit"],
            first["period"],
        )


async def test_an_alert_is_sent_again_until_it_is_taken(
    purse: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passy_plugins.alerts.FIRST_PAUSE", 0.02)
    async with ScriptedUpstream() as hooks:
        hooks.json({}, 503)
        hooks.json({}, 500)
        hooks.json({})
        more = f'webhooks: [{{url: "{hooks.url}/hook", secret: "{SECRET}"}}], interval: 50ms'
        gate = await purse(more)
        await gate.ask(owner(usd(0.02, alerts=(50,))))
        receiver = Receiver(hooks, SECRET)
        await until(lambda: len(receiver.told()) >= 3)
        await asyncio.sleep(0.2)
        assert 3 == len(receiver.told())
        assert 1 == len({each["id"] for each in receiver.told()})


def test_K7_a_webhook_without_a_strong_secret_is_refused() -> None:
    for secret in ("", "short", "changeme" * 8):
        with pytest.raises(ValidationError):
            WebhookSettings.model_validate({"url": "https://example.com", "secret": secret})
    for url in ("ftp://example.com", "example.com", "https://ada:pw@example.com/"):
        with pytest.raises(ValidationError):
            WebhookSettings.model_validate({"url": url, "secret": SECRET})


def test_a_signature_is_what_the_standard_says() -> None:
    # The example of the Standard Webhooks specification's reference implementations.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
    assert b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" == made
    with pytest.raises(ValueError, match="no secret"):
        signature("", "id", "1", b"")


async def test_S5_a_tenants_webhook_reaches_no_private_address(purse: Make) -> None:
    async with ScriptedUpstream() as hooks:
        hooks.json({})
        gate = await purse("interval: 50ms")
        hook = Hook("hook_1", f"{hooks.url}/hook", Secret(SECRET))

        async def theirs(organisation: str | None, event: str) -> list[Hook]:
            return [hook]

        gate.store.hooks = theirs  # type: ignore[method-assign]
        with capture_logs() as logs:
            await gate.ask(owner(usd(0.02, alerts=(50,)), organisation="org_1"))
            await until(lambda: any(each["event"] == "alert_refused" for each in logs))
        assert [] == hooks.requests
        assert all(SECRET not in str(each) for each in logs)


async def test_a_key_without_budgets_costs_a_few_instructions(purse: Make) -> None:
    gate = await purse()
    filter = next(each for each in gate.bench.snapshot.filters if isinstance(each, Budgets))
    ex = gate.exchange(Principal("key_1"))
    assert instructions(lambda: filter.on_request(ex)) < 40
    assert instructions(lambda: filter.on_complete(ex)) < 40


def instructions(work: Callable[[], object]) -> int:
    """How many the interpreter runs."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count
