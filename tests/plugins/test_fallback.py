"""When the next target is asked, when it is not, and what the client hears when nobody answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar

import pytest
from harness.ports import free_port

from passy_plugins.fallback import Fallback
from passy_plugins.retrying import Budget
from passy_proxy import Attempt, Exchange, Failure, Filter, Principal
from passy_proxy.records import Credential
from passy_proxy.testing import SSE, Answer, Bench, Recorded, ScriptedUpstream, Wire, chat_events

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams:
  one: {{dialect: openai, url: "{one}/v1", timeouts: {{first_byte: {patience}}}}}
  two: {{dialect: openai, url: "{two}/v1"}}
  claude: {{dialect: anthropic, url: "{two}"}}
  shut: {{dialect: openai, url: "http://127.0.0.1:{shut}/v1"}}
models:
  both: {{targets: [one/first, two/second]{on}}}
  alone: {{targets: [one/first]{on}}}
  plain: [one/first]
  from-shut: {{targets: [shut/x, two/second]{on}}}
  only-shut: [shut/x]
  thrice: {{targets: [one/a, one/b, one/c, one/d]{on}}}
  odd: [claude/x, two/second]
chains: {{default: [{filters}alias, fallback: {{{settings}}}]}}
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: POST /v1/embeddings}}
"""
CUT = Answer(headers=(), cut=True)
SLOW = Answer(delay=120)
SOON = "200ms"
"""The patience of who meets it."""
EVERYTHING = "5xx, 4xx, timeout, rate_limit"


@dataclass
class Pair:
    """A gateway in front of two providers, each of which keeps a ledger of what it saw."""

    bench: Bench
    one: ScriptedUpstream
    two: ScriptedUpstream

    async def ask(
        self,
        model: str = "both",
        *,
        path: str = "/v1/chat/completions",
        headers: Wire = (),
        **body: object,
    ) -> Exchange:
        fields = {"model": model, "messages": [], **body}
        ex = self.bench.exchange(fields, path=path, headers=headers, principal=Principal("key"))
        await ex.route.chain.run(ex)
        return ex

    @property
    def hits(self) -> tuple[int, int]:
        return len(self.one.requests), len(self.two.requests)


Make = Callable[..., Awaitable[Pair]]


@pytest.fixture
def shut() -> int:
    """A port where nobody listens."""
    return free_port()


@pytest.fixture
async def pair(shut: int) -> AsyncIterator[Make]:
    """Makes gateways; ``on`` is the alias's fallback_on, ``patience`` the time in which the first
    provider has to answer, the rest the filter's settings. The time of their budgets stands still.
    """
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(ScriptedUpstream())
        two = await stack.enter_async_context(ScriptedUpstream())
        two.chat("from two")

        async def make(
            settings: str = "retries: 0",
            on: str | None = None,
            *filters: type[Filter],
            patience: str = "60s",
        ) -> Pair:
            text = CONFIGURATION.format(
                one=one.url,
                two=two.url,
                shut=shut,
                on="" if on is None else f", fallback_on: [{on}]",
                settings=settings,
                patience=patience,
                filters="".join(f"{kind.name}, " for kind in filters),
            )
            bench = await stack.enter_async_context(Bench(text, filters=filters))
            made = Pair(bench, one, two)
            fallback_of(made)._budget._clock = lambda: 0.0
            return made

        yield make


def sent(ex: Exchange) -> Recorded:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream


def header(ex: Exchange, name: str) -> str | None:
    value = sent(ex).header(name.encode())
    return None if value is None else value.decode()


# By status. What fallback_on names, then who is asked.


@pytest.mark.parametrize(
    ("status", "on", "moves_on"),
    [
        *((status, "5xx", True) for status in (500, 502, 503, 504, 529, 599)),
        *((status, "4xx, rate_limit, timeout", False) for status in (500, 503, 529)),
        (429, "rate_limit", True),
        (429, "4xx", True),
        (429, "5xx, timeout", False),
        *((s, "5xx, timeout, rate_limit", False) for s in (400, 401, 403, 404, 409, 413, 422)),
        *((s, "4xx", True) for s in (400, 401, 403, 404, 408, 409, 413, 422)),
        (302, "5xx", True),
        (302, "4xx, timeout, rate_limit", False),
        (400, "", False),
        (500, "", False),
    ],
)
async def test_a_status_moves_on_only_where_it_is_named(
    pair: Make, status: int, on: str, moves_on: bool
) -> None:
    made = await pair(on=on)
    made.one.json({"error": {"message": "theirs", "type": "t", "code": "c"}}, status)
    ex = await made.ask()
    if moves_on:
        assert (200, (1, 1)) == (ex.status, made.hits)
        assert "from two" in sent(ex).json["choices"][0]["message"]["content"]
        assert ("2", "two/second") == (
            header(ex, "x-passy-attempts"),
            header(ex, "x-passy-upstream"),
        )
    else:
        refused = status >= 400
        assert (status if refused else 502, (1, 0)) == (ex.status, made.hits)
        assert ("theirs" if refused else "302") in sent(ex).json["error"]["message"]


async def test_an_alias_that_says_nothing_leaves_it_to_the_filter(pair: Make) -> None:
    made = await pair("retries: 0, fallback_on: [rate_limit]")
    made.one.json({"error": {"message": "busy"}}, 429).json({"error": {"message": "sorry"}}, 500)
    assert [200, 500] == [(await made.ask()).status for _ in range(2)]
    assert (2, 1) == made.hits


async def test_each_target_is_asked_for_its_own_model(pair: Make) -> None:
    made = await pair(on="5xx")
    made.one.json({}, 500)
    await made.ask(temperature=0.5)
    first, second = made.one.requests[0].json, made.two.requests[0].json
    assert ("first", "second") == (first["model"], second["model"])
    assert 0.5 == first["temperature"] == second["temperature"]


# What did not answer


async def test_a_target_that_cannot_be_connected_to_is_always_passed_over(pair: Make) -> None:
    made = await pair(on="")
    assert 200 == (await made.ask("from-shut")).status
    assert (0, 1) == made.hits


async def test_a_target_that_cannot_be_connected_to_is_tried_once_more(pair: Make) -> None:
    made = await pair("retries: 1")
    ex = await made.ask("from-shut")
    assert ["shut/x", "shut/x", "two/second"] == [one.target.label for one in ex.attempts]
    assert 200 == ex.status


@pytest.mark.parametrize(("on", "status"), [("timeout", 200), ("5xx, 4xx, rate_limit", 504)])
async def test_a_timeout_moves_on_only_where_it_is_named(pair: Make, on: str, status: int) -> None:
    made = await pair(on=on, patience=SOON)
    made.one.then(SLOW)
    ex = await made.ask()
    assert (status, (1, int(status == 200))) == (ex.status, made.hits)


@pytest.mark.parametrize(("on", "status"), [("5xx", 200), ("timeout, 4xx, rate_limit", 502)])
async def test_a_connection_cut_before_the_answer_counts_as_5xx(
    pair: Make, on: str, status: int
) -> None:
    made = await pair(on=on)
    made.one.then(CUT)
    ex = await made.ask()
    assert (status, (1, int(status == 200))) == (ex.status, made.hits)


@pytest.mark.parametrize("answer", [SLOW, CUT])
async def test_an_unknown_outcome_may_be_final(pair: Make, answer: Answer) -> None:
    made = await pair("retries: 0, on_unknown_outcome: fail", EVERYTHING, patience=SOON)
    made.one.then(answer)
    ex = await made.ask()
    assert ex.status in (502, 504)
    assert (1, 0) == made.hits
    assert "false" == header(ex, "x-should-retry")
    assert "All providers" not in sent(ex).json["error"]["message"]  # The second was not asked.


@pytest.mark.parametrize("answer", [SLOW, CUT])
async def test_with_an_idempotency_key_it_is_not_asked_twice(pair: Make, answer: Answer) -> None:
    made = await pair(on=EVERYTHING, patience=SOON)
    made.one.then(answer)
    ex = await made.ask(headers=((b"idempotency-key", b"abc"),))
    assert ex.status in (502, 504)
    assert (1, 0) == made.hits


async def test_a_complete_refusal_may_be_replaced_whatever_the_key(pair: Make) -> None:
    made = await pair(on="5xx")
    made.one.json({}, 503)
    assert 200 == (await made.ask(headers=((b"idempotency-key", b"abc"),))).status


async def test_a_plain_answer_that_breaks_off_can_still_be_replaced(pair: Make) -> None:
    made = await pair(on="5xx")
    made.one.then(Answer(pieces=[b'{"choices":['], cut=True))
    ex = await made.ask()
    assert (200, (1, 1)) == (ex.status, made.hits)
    assert "from two" in sent(ex).answer.decode()


# Streams


def stream(*pieces: bytes, **more: object) -> Answer:
    return Answer(headers=SSE, pieces=pieces, **more)  # type: ignore[arg-type]


ERROR = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
ROLE, HELLO, *REST = chat_events(["hello"])


async def test_an_error_for_a_first_event_is_replaced(pair: Make) -> None:
    made = await pair(on="5xx")
    made.one.then(stream(ERROR))
    made.two._script.clear()
    made.two.stream("from ", "two")
    ex = await made.ask(stream=True)
    assert (200, (1, 1)) == (ex.status, made.hits)
    assert b"overloaded" not in sent(ex).answer
    assert sent(ex).answer.endswith(b"data: [DONE]\n\n")


async def test_an_error_for_a_first_event_is_final_where_5xx_is_not_named(pair: Make) -> None:
    made = await pair(on="timeout")
    made.one.then(stream(ERROR))
    ex = await made.ask(stream=True)
    assert (502, (1, 0)) == (ex.status, made.hits)
    assert "overloaded" in sent(ex).json["error"]["message"]


async def test_comments_before_an_error_are_no_first_event(pair: Make) -> None:
    made = await pair(on="5xx")
    made.one.then(stream(b": one moment\n\n", b": please\n\n", ERROR, gap=0.02))
    ex = await made.ask(stream=True)
    assert (200, (1, 1)) == (ex.status, made.hits)


@pytest.mark.parametrize("pieces", [(), (b": wait\n\n",), (b'data: {"choices":[{',)])
async def test_a_stream_that_ends_before_its_first_event_is_replaced(
    pair: Make, pieces: tuple[bytes, ...]
) -> None:
    made = await pair(on="5xx")
    made.one.then(stream(*pieces))
    made.two._script.clear()
    made.two.stream("from ", "two")
    ex = await made.ask(stream=True)
    assert (200, (1, 1)) == (ex.status, made.hits)
    assert sent(ex).answer.endswith(b"data: [DONE]\n\n")
    failure = ex.attempts[0].failure
    assert failure is not None
    assert ("broken", True) == (failure.kind, failure.sent)


async def test_comments_do_not_stand_for_a_first_event_in_time(pair: Make) -> None:
    made = await pair("retries: 0, first_event: 300ms", "timeout")
    made.one.then(stream(*[b": wait\n\n"] * 100, gap=0.05))
    ex = await made.ask(stream=True)
    assert (200, (1, 1)) == (ex.status, made.hits)
    await made.one.requests[0].closed.wait()


async def test_a_stalled_first_event_is_a_timeout(pair: Make) -> None:
    made = await pair("retries: 0, first_event: 100ms", "timeout")
    made.one.then(stream(hold=asyncio.Event()))
    ex = await made.ask(stream=True)
    assert (200, (1, 1)) == (ex.status, made.hits)
    [first, _] = ex.attempts
    assert first.failure is not None
    assert ("timeout", True) == (first.failure.kind, first.failure.sent)
    await made.one.requests[0].closed.wait()


async def test_an_error_says_how_long_a_first_event_was_waited_for(pair: Make) -> None:
    made = await pair("retries: 0, first_event: 60ms", "5xx")
    made.one.then(stream(hold=asyncio.Event()))
    ex = await made.ask(stream=True)
    assert 504 == ex.status
    [told] = sent(ex).json["error"]["attempts"]
    assert (200, True) == (told["status"], 50 <= told["ms"] < 5_000), told
    await made.one.requests[0].closed.wait()


async def test_committed_at_the_head_it_does_not_wait_for_the_first_event(pair: Make) -> None:
    made = await pair("retries: 0, commit: head, first_event: 50ms", EVERYTHING)
    made.one.then(stream(ROLE, HELLO, *REST, gap=0.08))
    ex = await made.ask(stream=True)
    assert (200, (1, 0)) == (ex.status, made.hits)
    assert b"hello" in sent(ex).answer


async def test_committed_at_the_head_an_error_event_is_passed_on(pair: Make) -> None:
    made = await pair("retries: 0, commit: head", EVERYTHING)
    made.one.then(stream(ERROR))
    ex = await made.ask(stream=True)
    assert (200, (1, 0)) == (ex.status, made.hits)
    assert b"overloaded" in sent(ex).answer


async def test_after_the_first_event_nobody_else_is_asked(pair: Make) -> None:
    made = await pair(on=EVERYTHING)
    made.one.then(stream(ROLE, HELLO, gap=0.02, cut=True))
    ex = await made.ask(stream=True)
    assert (200, (1, 0)) == (ex.status, made.hits)
    assert "upstream_broken" == ex.outcome.kind
    assert b'"error"' in sent(ex).answer
    assert b"[DONE]" not in sent(ex).answer


# When nobody answered


async def test_all_failed_names_each_provider_and_its_failure(pair: Make) -> None:
    made = await pair(on="5xx")
    made.one.json({}, 500)
    made.two._script.clear()
    made.two.json({}, 503)
    ex = await made.ask()
    assert 502 == ex.status
    error = sent(ex).json["error"]
    for attempt in error["attempts"]:
        assert 0 <= attempt.pop("ms") < 10_000
    assert {
        "message": "All providers failed: one: status 500; two: status 503",
        "type": "provider_error",
        "param": None,
        "code": "upstream_error",
        "request_id": ex.id,
        "attempts": [
            {"provider": "one", "model": "first", "status": 500, "reason": "status 500"},
            {"provider": "two", "model": "second", "status": 503, "reason": "status 503"},
        ],
    } == error
    assert "false" == header(ex, "x-should-retry")


async def test_the_last_answer_passes_when_nothing_names_it(pair: Make) -> None:
    made = await pair(on="rate_limit")
    made.one.json({}, 429)
    made.two._script.clear()
    made.two.json({"error": {"message": "broken", "type": "x", "code": "y"}}, 500)
    ex = await made.ask()
    assert (500, (1, 1)) == (ex.status, made.hits)
    assert ("broken", "y") == (sent(ex).json["error"]["message"], sent(ex).json["error"]["code"])
    assert "false" == header(ex, "x-should-retry")


async def test_a_single_target_without_a_policy_answers_for_itself(pair: Make) -> None:
    made = await pair()
    made.one.json({"error": {"message": "busy"}}, 503, retry_after="7")
    ex = await made.ask("plain")
    assert (503, "7") == (ex.status, header(ex, "retry-after"))
    assert "busy" == sent(ex).json["error"]["message"]
    assert header(ex, "x-should-retry") is None


async def test_a_single_target_whose_alias_names_the_status_is_a_provider_error(
    pair: Make,
) -> None:
    made = await pair(on="5xx")
    made.one.json({}, 500)
    ex = await made.ask("alone")
    assert (502, "provider_error") == (ex.status, sent(ex).json["error"]["type"])


async def test_a_single_target_that_cannot_be_reached_is_a_502(pair: Make) -> None:
    made = await pair()
    ex = await made.ask("only-shut")
    assert (502, "provider_error") == (ex.status, sent(ex).json["error"]["type"])
    assert "refused" in sent(ex).json["error"]["message"]
    assert header(ex, "x-should-retry") is None  # Nobody has seen the request.


async def test_a_single_target_that_is_too_slow_is_a_504(pair: Make) -> None:
    made = await pair(patience=SOON)
    made.one.then(SLOW)
    ex = await made.ask("plain")
    assert (504, "upstream_timeout") == (ex.status, sent(ex).json["error"]["code"])
    assert "false" == header(ex, "x-should-retry")  # It may be billed already.


async def test_no_more_attempts_are_made_than_allowed(pair: Make) -> None:
    made = await pair("retries: 5, attempts: 3", "5xx")
    made.one.json({}, 500)
    ex = await made.ask("thrice")
    assert (502, 3, 3) == (ex.status, len(ex.attempts), len(made.one.requests))
    assert 3 == len((await made.ask("only-shut")).attempts)


async def test_what_cannot_be_translated_goes_to_who_understands_it(pair: Make) -> None:
    made = await pair()
    made.two._script.clear()
    made.two.json({"object": "list", "data": [], "model": "second"})
    ex = await made.ask("odd", path="/v1/embeddings", input="x")
    assert 200 == ex.status
    failure = ex.attempts[0].failure
    assert failure is not None
    assert ("untranslatable", False) == (failure.kind, failure.sent)


class Targetless(Filter):
    name = "targetless"
    provides = frozenset({"targets"})


async def test_without_a_target_the_client_hears_that_nobody_is_there() -> None:
    text = """
    upstreams: {echo: {kind: echo}}
    chains: {default: [targetless, fallback]}
    routes: [{match: POST /v1/chat/completions}]
    """
    async with Bench(text, filters=[Targetless]) as bench:
        ex = bench.exchange()
        await ex.route.chain.run(ex)
    assert (503, "no_healthy_target") == (ex.status, ex.outcome.code)


# Whose key


class Brings(Filter):
    """Shows an organisation's own key."""

    name = "brings"

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        attempt.credential = Credential("sk-theirs", "acme")


@pytest.mark.parametrize(("status", "hits"), [(401, (1, 0)), (402, (1, 0)), (403, (1, 0))])
async def test_an_own_key_that_is_refused_is_final(
    pair: Make, status: int, hits: tuple[int, int]
) -> None:
    made = await pair("retries: 0", EVERYTHING, Brings)
    made.one.json({"error": {"message": "wrong key"}}, status)
    ex = await made.ask()
    assert (status, hits) == (ex.status, made.hits)


# The budget of retries


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_budget_is_a_share_of_the_requests_or_a_few() -> None:
    clock = Clock()
    budget = Budget(20, 15, clock)
    for _ in range(15):
        assert budget.allows()
        budget.spend()
    assert not budget.allows()
    budget.give_back()
    assert budget.allows()
    budget.spend()
    budget.asked = 79
    assert not budget.allows()
    budget.asked = 80
    assert budget.allows()


def test_what_the_budget_counted_is_worth_half_after_a_while() -> None:
    clock = Clock()
    budget = Budget(20, 3, clock)
    budget.asked, budget.spent = 1000, 200
    clock.now += 4.9
    assert not budget.allows()
    clock.now += 0.1
    assert not budget.allows()
    assert (500, 100) == (budget.asked, budget.spent)
    clock.now += 15
    assert not budget.allows()
    assert (62, 12) == (budget.asked, budget.spent)
    clock.now += 1e6
    assert budget.allows()
    assert (0, 0) == (budget.asked, budget.spent)


def test_the_budget_is_never_exceeded_over_time() -> None:
    clock, made = Clock(), 0
    budget = Budget(20, 15, clock)
    for asked in range(1, 20_001):
        budget.asked += 1
        if budget.allows():
            budget.spend()
            made += 1
        clock.now += 0.003
        assert made <= max(15, 0.2 * asked + 3)
    assert made > 3900


def fallback_of(made: Pair) -> Fallback:
    [filter] = [one for one in made.bench.snapshot.filters if isinstance(one, Fallback)]
    return filter


async def test_tries_at_the_same_target_stay_within_the_budget(pair: Make) -> None:
    made = await pair("retries: 5, attempts: 20, budget: 0, budget_floor: 5")
    assert [6, 1] == [len((await made.ask("only-shut")).attempts) for _ in range(2)]


async def test_who_is_well_is_asked_whatever_the_budget(pair: Make) -> None:
    made = await pair("retries: 0, budget: 0, budget_floor: 0", "5xx")
    for _ in range(9):
        made.one.json({}, 500)
        assert 200 == (await made.ask()).status
    assert (9, 9) == made.hits


async def test_who_failed_last_time_is_asked_within_the_budget(pair: Make) -> None:
    made = await pair("retries: 0, budget: 20, budget_floor: 5", "5xx")
    made.two._script.clear()
    for _ in range(100):
        made.one.json({}, 500)
    for _ in range(100):
        made.two.json({}, 500)
    answers = [await made.ask() for _ in range(100)]
    assert (100, 20) == made.hits
    assert {502} == {ex.status for ex in answers}
    assert {"false"} == {header(ex, "x-should-retry") for ex in answers}


async def test_a_target_is_well_again_once_it_answers(pair: Make) -> None:
    made = await pair("retries: 0, budget: 0, budget_floor: 5", "5xx")
    made.two._script.clear()
    made.two.json({}, 500).json({}, 500).json({}, 500).json({}, 500).json({}, 500)
    for _ in range(20):
        made.one.json({}, 500)
    [await made.ask() for _ in range(8)]
    assert (8, 5) == made.hits
    fallback_of(made)._budget.spent = 0
    made.two.chat().chat()
    assert [200, 200] == [(await made.ask()).status for _ in range(2)]


async def test_a_single_target_that_keeps_failing_asks_its_clients_not_to_retry(
    pair: Make,
) -> None:
    made = await pair()
    for _ in range(5):
        made.one.json({}, 500)
    said = [header(await made.ask("plain"), "x-should-retry") for _ in range(5)]
    assert [None, None, None, "false", "false"] == said


# The same target again


@pytest.mark.parametrize(
    ("settings", "status", "headers", "hits"),
    [
        ("", 500, (), 1),
        ("retry_on: [5xx]", 500, (), 2),
        ("retry_on: [5xx]", 502, (), 2),
        ("retry_on: [5xx]", 504, (), 2),
        ("retry_on: [5xx]", 503, (), 1),
        ("retry_on: [5xx]", 529, (), 1),
        ("retry_on: [5xx]", 429, (), 1),
        ("retry_on: [5xx]", 404, (), 1),
        ("retry_on: [5xx]", 500, ((b"idempotency-key", b"x"),), 1),
        ("retry_on: [5xx], retries: 0", 500, (), 1),
    ],
)
async def test_a_status_is_tried_again_where_the_settings_say_so(
    pair: Make, settings: str, status: int, headers: Wire, hits: int
) -> None:
    made = await pair(settings)
    made.one.json({}, status).chat()
    ex = await made.ask("plain", headers=headers)
    assert (200 if hits == 2 else status, hits) == (ex.status, len(made.one.requests))


@pytest.mark.parametrize(
    ("said", "status", "hits"),
    [
        ("0", 429, 2),
        ("0.05", 503, 2),
        ("0", 529, 2),
        ("0", 500, 1),
        ("2", 429, 1),
        ("soon", 429, 1),
        ("-1", 429, 1),
        ("1" * 400, 429, 1),
        ("", 429, 1),
        ("Thu, 01 Jan 2015 00:00:00 GMT", 429, 2),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 429, 1),
        ("Thu, 99 Jan 2099 00:00:00 GMT", 429, 1),
    ],
)
async def test_a_short_retry_after_is_waited_for(
    pair: Make, said: str, status: int, hits: int
) -> None:
    made = await pair("retry_after: 1s")
    made.one.json({}, status, retry_after=said).chat()
    ex = await made.ask("plain")
    assert (200 if hits == 2 else status, hits) == (ex.status, len(made.one.requests))


async def test_an_upload_that_was_passed_on_is_not_sent_again() -> None:
    text = """
    upstreams: {{one: {{dialect: openai, url: "{url}/v1"}}}}
    models: {{"*": [one/whisper]}}
    chains: {{default: [alias, fallback: {{retry_after: 1s}}]}}
    routes: [{{match: POST /v1/audio/transcriptions, body: stream}}]
    """
    async with ScriptedUpstream() as one, Bench(text.format(url=one.url)) as bench:
        one.json({}, 429, retry_after="0").json({})
        ex = bench.exchange(b"a song", path="/v1/audio/transcriptions")
        await ex.route.chain.run(ex)
    assert (429, 1) == (ex.status, len(one.requests))


async def test_another_target_is_asked_before_anybody_waits(pair: Make) -> None:
    made = await pair("retry_after: 10s", "rate_limit")
    made.one.json({}, 429, retry_after="5")
    assert 200 == (await made.ask()).status
    assert (1, 1) == made.hits


async def test_nobody_waits_unless_told_to(pair: Make) -> None:
    made = await pair()
    made.one.json({}, 429, retry_after="0").chat()
    assert 429 == (await made.ask("plain")).status


# Passed over


class Resting(Filter):
    """Passes over the upstreams it is told of."""

    name = "resting"
    names: ClassVar[set[str]] = set()

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> Failure | None:
        if attempt.target.upstream.name in self.names:
            return Failure("ejected", "it rests for 7 s more", after=7.0)
        return None


async def test_a_target_that_is_passed_over_is_no_try(
    pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resting, "names", {"one"})
    made = await pair("attempts: 1, budget: 0, budget_floor: 0", None, Resting)
    ex = await made.ask()
    assert (200, (0, 1), "1") == (ex.status, made.hits, header(ex, "x-passy-attempts"))
    made.two.json({}, 500).json({"error": {"message": "bad"}}, 400)
    assert (500, None) == ((ex := await made.ask()).status, header(ex, "x-should-retry"))
    assert (400, None) == ((ex := await made.ask()).status, header(ex, "x-should-retry"))


async def test_when_all_are_passed_over_the_client_hears_when_to_come_back(
    pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resting, "names", {"one", "two"})
    made = await pair("", None, Resting)
    ex = await made.ask()
    assert (503, "no_healthy_target", "7") == (
        ex.status,
        ex.outcome.code,
        header(ex, "retry-after"),
    )
    assert ["one", "two"] == [one["provider"] for one in sent(ex).json["error"]["attempts"]]
    assert ((0, 0), "0") == (made.hits, header(ex, "x-passy-attempts"))
