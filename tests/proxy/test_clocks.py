"""What filters took: of every so many-th exchange, and of the others nothing is different."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from passy_proxy import Attempt, Event, Exchange, Filter, Head, Reply
from passy_proxy.chain import Chain
from passy_proxy.clocks import SPENT
from passy_proxy.records import AttemptRecord
from passy_proxy.retold import what_ran
from passy_proxy.testing import Bench, Recorded

pytestmark = pytest.mark.anyio

TURN = 0.01
"""Seconds that a filter waits."""
RAN: list[str] = []
"""What the books would say that ran."""


class Book(Filter):
    name = "book"

    def on_end(self, ex: Exchange) -> None:
        RAN.append(ex.route.ran)


class Waiting(Filter):
    """One turn before the answer, one for each try and one with it."""

    name = "waiting"

    async def on_request(self, ex: Exchange) -> None:
        await asyncio.sleep(TURN)

    async def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        await asyncio.sleep(TURN)

    async def on_response(self, ex: Exchange, head: Head) -> None:
        await asyncio.sleep(TURN)


class Quick(Filter):
    name = "quick"

    def on_event(self, ex: Exchange, event: Event) -> Event:
        event.raw = event.raw.replace(b"Hi", b"Ho")
        return event


class Silent(Filter):
    """It has no hook before the end."""

    name = "silent"

    def on_complete(self, ex: Exchange) -> None: ...


class Refusing(Filter):
    name = "refusing"
    needs = frozenset({"body"})

    def on_request(self, ex: Exchange) -> Reply | None:
        return Reply(429, "slow_down", "Not now.") if ex.request.head.model == "none" else None


KINDS: Sequence[type[Filter]] = (Book, Waiting, Quick, Silent, Refusing)


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


def bench(every: int) -> Bench:
    names = ", ".join(kind.name for kind in KINDS)
    text = f"""
    time_filters: {every}
    upstreams: {{echo: {{kind: echo}}}}
    models: {{two: {{targets: [echo/echo:500, echo/echo], fallback_on: [5xx]}}}}
    chains: {{default: [{names}, alias, {{fallback: {{retries: 0}}}}]}}
    routes: [{{match: POST /v1/chat/completions}}]
    """
    return Bench(text, filters=KINDS)


async def asked(bench: Bench, **body: object) -> Exchange:
    said = [{"role": "user", "content": "Hi there"}]
    ex = bench.exchange({"model": "echo/echo", "messages": said, **body})
    route = ex.route
    await ex.route.chain.run(ex)
    assert ex.route is route
    return ex


def told(ran: str) -> tuple[str, dict[str, float]]:
    what, took = what_ran(AttemptRecord("", "", 200, "", 0, 0, False, ran=ran))
    return what, dict(took)


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"model": "two"}, {"model": "none"}])
async def test_what_is_timed_ends_as_what_is_not(body: dict[str, object]) -> None:
    ends = []
    for every in (0, 1):
        async with bench(every) as rig:
            ex = await asked(rig, **body)
        assert isinstance(ex.downstream, Recorded)
        text = ex.downstream.answer.replace(ex.id.encode(), b"")
        ends.append((ex.outcome, ex.status, len(ex.attempts), text.count(b"Ho there"), len(text)))
    assert ends[0] == ends[1]
    plain, timed = RAN[0], RAN[-1]
    assert (plain, {}) == told(plain)
    what, took = told(timed)
    assert what.partition("@")[0] == plain.partition("@")[0] == "default"
    # Who was not reached took nothing, and neither did who has no hook before the end.
    refused = body.get("model") == "none"
    wanted = {"waiting", "refusing"} | (set() if refused else {"quick", "alias"})
    assert wanted <= set(took) <= wanted | {"fallback"}
    turns = 2 if refused else 2 + len(ex.attempts)
    assert took["waiting"] >= 1000 * TURN * turns * 0.9
    assert took["waiting"] > took["refusing"] >= 0


def test_the_name_of_a_chain_may_be_anything() -> None:
    assert ("its own@4f2a", {"a": 0.1, "b": 12.0}) == told("its own@4f2a a=0.100 b=12.000")
    assert ("a b=1.000 @ c@4f2a", {}) == told("a b=1.000 @ c@4f2a")
    assert ("", {}) == told("")


async def test_every_third_exchange_is_timed_and_the_first_one() -> None:
    async with bench(3) as rig:
        timed = [SPENT in (await asked(rig)).stash for _ in range(7)]
    assert [True, False, False, True, False, False, True] == timed
    assert [" " in ran for ran in RAN] == timed


async def test_without_the_setting_there_is_one_chain_and_no_clock() -> None:
    async with bench(0) as rig:
        ex = rig.exchange()
        assert type(ex.route.chain) is Chain
        hooks = [hook for _, hook in ex.route.chain.on_request]
        assert {Waiting, Refusing} <= {
            type(hook.__self__) for hook in hooks if hasattr(hook, "__self__")
        }
