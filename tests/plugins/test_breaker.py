"""Who is left alone, for how long, and who never is. Time is a number here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from passy_plugins.breaker import Breaker
from passy_proxy import Attempt, Exchange, Failure, Filter, Principal
from passy_proxy.config.build import build
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.records import Credential
from passy_proxy.testing import SSE, Answer, Bench, Recorded, ScriptedUpstream, Wire, chat_events

pytestmark = pytest.mark.anyio

NAMES = ("one", "two", "three")
CONFIGURATION = """
upstreams:
  one: {{dialect: openai, url: "{one}/v1", timeouts: {{first_byte: {patience}}}}}
  two: {{dialect: openai, url: "{two}/v1"}}
  three: {{dialect: openai, url: "{three}/v1"}}
models:
  pair: [one/m, two/m]
  all: [one/m, two/m, three/m]
  twice: [one/a, one/b]
  alone: [one/m]
chains: {{default: [{filters}alias, breaker: {{{settings}}}, fallback: {{retries: 0}}]}}
routes: [{{match: POST /v1/chat/completions}}]
"""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Three:
    """A gateway in front of three providers, and its time."""

    bench: Bench
    breaker: Breaker
    clock: Clock
    providers: dict[str, ScriptedUpstream]

    async def ask(self, model: str = "pair", headers: Wire = (), **body: object) -> Exchange:
        fields = {"model": model, "messages": [], **body}
        ex = self.bench.exchange(fields, headers=headers, principal=Principal("key"))
        await ex.route.chain.run(ex)
        return ex

    async def asked(self, model: str = "pair") -> str:
        """Who gets to see one request, joined."""
        before = {name: len(one.requests) for name, one in self.providers.items()}
        await self.ask(model)
        seen = [n for n, one in self.providers.items() if len(one.requests) > before[n]]
        return " ".join(seen)

    async def reloaded(self, old: str, new: str) -> None:
        """Go on with the configuration after an edit."""
        bench, before = self.bench, self.bench.snapshot
        edited = bench._text.replace(old, new)
        assert edited != bench._text
        bench._text = edited
        file = layers(parse(edited, "test.yaml", {}), {})
        bench.snapshot = build(file, bench.parts, "edited")
        await bench.snapshot.start()
        await before.retire()
        for one in bench.snapshot.filters:
            if isinstance(one, Breaker):
                one.clock = self.clock

    def answers(self, name: str, answer: Answer) -> None:
        """From here on ``name`` answers so."""
        provider = self.providers[name]
        provider._script[:] = [answer] * (len(provider.requests) + 1)

    def fails(self, *names: str) -> None:
        for name in names:
            self.answers(name, FAILED)

    def recovers(self, name: str) -> None:
        self.answers(name, GOOD)


SLOW = Answer(delay=120)
FAILED = Answer(status=500, pieces=[b"{}"])
GOOD = Answer(pieces=[b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'])
Make = Callable[..., Awaitable[Three]]


@pytest.fixture
async def three() -> AsyncIterator[Make]:
    """Makes gateways whose ``one`` fails and whose others answer."""
    async with AsyncExitStack() as stack:
        providers = {name: await stack.enter_async_context(ScriptedUpstream()) for name in NAMES}

        async def make(settings: str = "", *filters: type[Filter], patience: str = "60s") -> Three:
            text = CONFIGURATION.format(
                settings=settings,
                patience=patience,
                filters="".join(f"{kind.name}, " for kind in filters),
                **{name: one.url for name, one in providers.items()},
            )
            bench = await stack.enter_async_context(Bench(text, filters=filters))
            [breaker] = [one for one in bench.snapshot.filters if isinstance(one, Breaker)]
            clock = Clock()
            breaker.clock = clock
            made = Three(bench, breaker, clock, providers)
            made.fails("one")
            made.recovers("two")
            made.recovers("three")
            return made

        yield make


async def test_U11_five_failures_in_a_row_and_it_is_out_for_thirty_seconds(three: Make) -> None:
    made = await three()
    assert ["one two"] * 5 == [await made.asked() for _ in range(5)]
    assert "two" == await made.asked()
    made.clock.now += 29.9
    assert "two" == await made.asked()
    made.clock.now += 0.1
    assert "one two" == await made.asked()


async def test_U11_each_time_it_is_out_for_longer_and_never_longer_than_the_longest(
    three: Make,
) -> None:
    made = await three()
    times = []
    for _ in range(12):
        while await made.asked() == "one two":
            pass
        out = 0
        while await made.asked() == "two":
            made.clock.now += 10
            out += 10
        times.append(out)
    assert [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300] == times


async def test_U11_a_success_between_begins_the_row_anew(three: Make) -> None:
    made = await three()
    for _ in range(3):
        for _ in range(4):
            made.fails("one")
            assert "one two" == await made.asked()
        made.recovers("one")
        assert "one" == await made.asked()
    assert {} == made.breaker._known


async def test_U11_who_stays_well_is_forgiven_one_time_an_interval(three: Make) -> None:
    made = await three("rest: 30s, interval: 10s")
    for rest in (30, 60):
        for _ in range(5):
            await made.asked()
        made.clock.now += rest
    made.recovers("one")
    assert "one" == await made.asked()
    made.clock.now += 10
    assert "one" == await made.asked()
    made.fails("one")
    for _ in range(5):
        assert "one two" == await made.asked()
    made.clock.now += 59
    assert "two" == await made.asked()  # twice, less the one that is forgiven, and once more
    made.clock.now += 1
    made.recovers("one")
    assert "one" == await made.asked()
    made.clock.now += 20
    assert "one" == await made.asked()
    assert {} == made.breaker._known


async def test_U11_time_alone_forgives_nothing(three: Make) -> None:
    made = await three()
    for _ in range(5):
        await made.asked()
    made.clock.now += 3600
    for _ in range(5):
        assert "one two" == await made.asked()
    made.clock.now += 59
    assert "two" == await made.asked()


async def test_U11_of_a_handful_only_one_is_out_at_a_time(three: Make) -> None:
    made = await three()
    for _ in range(5):
        await made.asked("all")
    made.clock.now += 10
    made.fails("two")
    for _ in range(9):
        assert "two three" == await made.asked("all")
    made.clock.now += 20
    assert "one three" == await made.asked("all")  # it is two's turn, whose time began later


@pytest.mark.parametrize(
    ("settings", "asked"),
    [("share: 67", "three"), ("share: 100", "three"), ("share: 0", "two three")],
)
async def test_U11_the_share_is_a_setting(three: Make, settings: str, asked: str) -> None:
    made = await three(f"{settings}, rest: 60s")
    made.fails("two")
    for _ in range(6):
        await made.asked("all")
    assert asked == await made.asked("all")


async def test_U11_the_last_one_is_asked_however_often_it_fails(three: Make) -> None:
    made = await three("share: 100")
    made.fails("two", "three")
    for _ in range(20):
        assert await made.asked("all")
    assert "three" == await made.asked("all")
    assert ["one"] * 20 == [await made.asked("alone") for _ in range(20)]
    assert ["one"] * 3 == [await made.asked("twice") for _ in range(3)]


async def test_U11_the_last_one_too_where_that_is_wished_for(three: Make) -> None:
    made = await three("last: true")
    for _ in range(5):
        assert "one" == await made.asked("alone")
    ex = await made.ask("alone")
    assert isinstance(ex.downstream, Recorded)
    assert (503, "no_healthy_target", b"30") == (
        ex.status,
        ex.outcome.code,
        ex.downstream.header(b"retry-after"),
    )
    assert 5 == len(made.providers["one"].requests)


async def test_U11_what_is_passed_over_is_seen_in_the_attempts(three: Make) -> None:
    made = await three()
    for _ in range(5):
        await made.ask()
    made.fails("two")
    ex = await made.ask()
    assert isinstance(ex.downstream, Recorded)
    assert (500, b"1") == (ex.status, ex.downstream.header(b"x-passy-attempts"))
    [first, second] = ex.attempts
    assert first.failure is not None
    assert ("ejected", False, 30.0) == (
        first.failure.kind,
        first.failure.sent,
        first.failure.after,
    )
    assert 500 == second.status


# What counts


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        *((Answer(status=status, pieces=[b"{}"]), True) for status in (500, 502, 503, 504, 529)),
        *((Answer(status=status, pieces=[b"{}"]), False) for status in (400, 401, 404, 422, 429)),
        (Answer(headers=(), cut=True), True),
        (SLOW, True),
        (Answer(pieces=[b'{"choices":['], cut=True), True),
        (Answer(pieces=[b"<html>"]), True),
    ],
)
async def test_U11_which_failures_count(three: Make, answer: Answer, counts: bool) -> None:
    made = await three(patience="200ms" if answer is SLOW else "60s")
    made.answers("one", answer)
    for _ in range(5):
        await made.ask()
    assert ("two" if counts else "one") == (await made.asked()).split()[0]


async def test_U11_a_stream_that_breaks_off_counts(three: Make) -> None:
    made = await three()
    first, second, *_ = chat_events(["a", "b"])
    made.answers("one", Answer(headers=SSE, pieces=[first, second], gap=0.01, cut=True))
    for _ in range(5):
        ex = await made.ask(stream=True)
        assert "upstream_broken" == ex.outcome.kind
    assert "two" == await made.asked()


class Brings(Filter):
    """Shows an organisation's own key."""

    name = "brings"

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> None:
        attempt.credential = Credential("sk-theirs", "acme")


class Refuses(Filter):
    name = "refuses"

    def on_attempt(self, ex: Exchange, attempt: Attempt) -> Failure | None:
        return Failure("refused", "no") if attempt.target.upstream.name == "one" else None


@pytest.mark.parametrize("kind", [Brings, Refuses])
async def test_U11_what_says_nothing_of_the_upstream_does_not_count(
    three: Make, kind: type[Filter]
) -> None:
    made = await three("failures: 1", kind)
    await made.ask()
    assert {} == made.breaker._known


async def test_U11_answers_to_earlier_requests_do_not_prolong_the_rest(three: Make) -> None:
    made = await three("failures: 1")
    await made.ask()
    await made.ask("alone")
    made.recovers("one")
    await made.ask("alone")
    made.clock.now += 29
    assert "two" == await made.asked()
    made.clock.now += 1
    assert "one" == await made.asked()


async def test_U11_a_reload_forgets_nothing_of_an_upstream_that_stays(three: Make) -> None:
    made = await three()
    assert ["one two"] * 3 == [await made.asked() for _ in range(3)]
    await made.reloaded("pair: [one/m, two/m]", "pair: [one/n, two/m]")
    assert ["one two"] * 2 == [await made.asked() for _ in range(2)]
    assert "two" == await made.asked(), "five in a row, of two configurations"
    await made.reloaded("alone: [one/m]", "alone: [one/n]")
    assert "two" == await made.asked(), "it is out as long as before"
    made.clock.now += 30
    assert "one two" == await made.asked()


@pytest.mark.parametrize(
    ("old", "new"),
    [("first_byte: 60s", "first_byte: 90s"), ('/v1", timeouts', '/v2", timeouts')],
    ids=["a timeout", "a path"],
)
async def test_U11_what_is_known_of_an_upstream_is_so_of_its_address(
    old: str, new: str, three: Make
) -> None:
    made = await three()
    for _ in range(5):
        await made.asked()
    await made.reloaded(old, new)
    assert "two" == await made.asked()


async def test_U11_an_upstream_with_a_new_address_begins_anew(three: Make) -> None:
    made = await three()
    for _ in range(5):
        await made.asked()
    await made.reloaded(f"{made.providers['one'].url}/v1", f"{made.providers['three'].url}/v1")
    assert "three" == await made.asked()
    await made.reloaded("breaker: {}", "breaker: {failures: 4}")
    [breaker] = [one for one in made.bench.snapshot.filters if isinstance(one, Breaker)]
    assert {} == breaker._known


@pytest.mark.parametrize(("settings", "hits"), [("", 6), ("last: true", 5)])
async def test_U11_the_only_upstream_there_is_goes_where_that_is_wished_for(
    settings: str, hits: int, three: Make
) -> None:
    made = await three(settings)
    chain = f"breaker: {{{settings}}}, "
    await made.reloaded(
        f"alias, {chain}fallback: {{retries: 0}}", f"{chain}direct: {{upstream: one}}"
    )
    for _ in range(6):
        ex = await made.ask()
    assert hits == len(made.providers["one"].requests)
    if settings:
        assert (503, "no_healthy_target") == (ex.status, ex.outcome.code)
