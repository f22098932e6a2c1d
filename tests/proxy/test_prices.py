"""What tokens cost, and how the price list is read without being imported."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from passy_proxy.config.model import PriceSettings
from passy_proxy.listing import Answer, Listing, Period, Question, Rates, Tier
from passy_proxy.price_book import PriceBook
from passy_proxy.prices import Price, Prices, question_of
from passy_proxy.records import Usage
from passy_proxy.transport.connect import Connector, parse_origin
from passy_proxy.transport.http1 import Http1Transport
from passy_proxy.upstream import Target, Upstream

pytestmark = pytest.mark.anyio

NOW = 1_795_430_000.0
NANO = 10**9
HERE = Path(__file__).parent

both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": use}) for use in (False, True)]
)


def at(name: str, url: str = "", owner: str = "operator") -> Upstream:
    origin = parse_origin(url or "http://127.0.0.1:9")
    transport = Http1Transport(origin, Connector())
    return Upstream(name, transport, None, url=url, owner=owner)


OPENAI = at("first", "https://api.openai.com/v1")
ANTHROPIC = at("second", "https://api.anthropic.com")
LOCAL = at("openai", "http://127.0.0.1:8000/v1")


def prices(**overlay: dict[str, Any]) -> Prices:
    return Prices({name: PriceSettings(**one) for name, one in overlay.items()})


def known(found: Price | None) -> Price:
    assert found is not None
    return found


def rates(input: int, output: int = 0, **more: int) -> Rates:
    """In nanodollars."""
    told = {"cached": input, "cache_write": input, "audio_input": input, **more}
    told = {"reasoning": output, "audio_output": output, "request": 0, **told}
    told = {"input": input, "output": output, **told}
    return Rates(**{name: nanos * NANO for name, nanos in told.items()})


# Arithmetic


def test_cost_is_counted_in_billionths_of_a_dollar() -> None:
    price = known(prices(**{"a/m": {"input": 2.5, "output": 10}}).price(at("a"), "m", NOW))
    assert 1_000 * 2_500 + 10 * 10_000 == price.cost(Usage(1_000, 10))


def test_a_price_is_the_decimal_that_was_written() -> None:
    # 0.1 + 0.2 in binary is not 0.3; and 0.07 * 1e6 is not 70000.
    price = known(prices(**{"a/m": {"input": 0.07, "output": 0.3}}).price(at("a"), "m", NOW))
    assert 70 * 10**9 + 300 == price.cost(Usage(10**9, 1))


@pytest.mark.parametrize(("tokens", "nanos"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)])
def test_half_a_billionth_is_rounded_up(tokens: int, nanos: int) -> None:
    price = known(prices(**{"a/m": {"input": 0.0003, "output": 0}}).price(at("a"), "m", NOW))
    assert nanos == price.cost(Usage(tokens))


def test_each_kind_of_token_has_its_own_rate() -> None:
    each = {"cached": 1, "cache_write": 20, "reasoning": 7, "audio_input": 100, "audio_output": 200}
    price = Price([Tier(-1, rates(10, 50, request=9, **each))], "")
    usage = Usage(100, 40, cached=30, cache_write=20, reasoning=10, audio_input=5, audio_output=4)
    read = 45 * 10 + 30 * 1 + 20 * 20 + 5 * 100
    assert 9 + read + 26 * 50 + 10 * 7 + 4 * 200 == price.cost(usage)


def test_a_part_is_never_more_than_the_whole() -> None:
    price = Price([Tier(-1, rates(10, 50, cached=1, audio_input=100))], "")
    assert 10 * 1 == price.cost(Usage(10, cached=25))
    assert 8 * 1 + 2 * 100 == price.cost(Usage(10, cached=8, audio_input=10))
    assert 0 == price.cost(Usage(0, cached=25, audio_input=4))


def test_a_long_prompt_pays_the_higher_rate_for_every_token() -> None:
    price = Price([Tier(-1, rates(10)), Tier(200, rates(20)), Tier(1_000, rates(30))], "")
    counts = (200, 201, 1_000, 1_001)
    assert [2_000, 4_020, 20_000, 30_030] == [price.cost(Usage(count)) for count in counts]


def test_every_listed_price_gives_the_cost_that_the_price_list_gives() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "price_equality.py")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    *wrong, summary = done.stdout.splitlines()
    agreed, unpriced = map(int, summary.split())
    assert [] == wrong
    assert agreed > 10_000
    assert unpriced < agreed / 100


# Time


def test_prices_change_on_the_day_they_are_to_change() -> None:
    first, second = Period((Tier(-1, rates(1)),)), Period((Tier(-1, rates(2)),), since=NOW)
    listing = Listing("p/m", (first, second))
    assert (first, float("-inf"), NOW) == listing.period(NOW - 1)
    assert (second, NOW, float("inf")) == listing.period(NOW)


@pytest.mark.parametrize(
    ("second", "night"), [(0, True), (7_199, True), (7_200, False), (79_199, False), (79_200, True)]
)
def test_a_daily_price_may_run_over_midnight(second: int, night: bool) -> None:
    midnight = NOW - NOW % 86_400
    usual, cheap = Period(()), Period((), daily=(79_200.0, 7_200.0))
    period, since, until = Listing("p/m", (usual, cheap)).period(midnight + second)
    assert night is (period is cheap)
    assert since <= midnight + second < until
    assert until - since in (4 * 3_600, 20 * 3_600)


# Which price


def test_an_unknown_price_is_none_and_not_nought() -> None:
    assert prices().price(at("a"), "m", NOW) is None
    assert prices(**{"b/*": {"input": 1, "output": 1}}).price(at("a"), "m", NOW) is None


def test_the_exact_name_beats_patterns_and_the_longer_pattern_the_shorter() -> None:
    overlay = {"*": 1, "a/*": 2, "a/gpt-*": 3, "a/gpt-4o": 4}
    table = prices(**{name: {"input": n, "output": n} for name, n in overlay.items()})
    sources = [known(table.price(at("a"), m, NOW)).source for m in ("gpt-4o", "gpt-5", "o1")]
    assert ["prices: a/gpt-4o", "prices: a/gpt-*", "prices: a/*"] == sources
    assert "prices: *" == known(table.price(at("b"), "o1", NOW)).source


def test_what_people_set_comes_first_at_once_and_can_be_taken_back() -> None:
    table = prices(**{"openai/m": {"input": 1, "output": 1}})
    target = Target.at(LOCAL, "m")
    other = PriceSettings(input=0.3, output=7)
    for teller in ("books", "other"):
        for told, source in (({"openai/m": other}, "set: openai/m"), ({}, "prices: openai/m")):
            table.set(teller, told)
            assert source == known(table.of(target, "m", NOW)).source
            assert source == known(table.price(LOCAL, "m", NOW)).source
    table.set("books", {"openai/new": other})
    assert "set: openai/new" == known(table.price(LOCAL, "new", NOW)).source
    table.set("other", {})
    assert 300 + 7_000 == known(table.price(LOCAL, "new", NOW)).cost(Usage(input=1, output=1))
    table.set("books", {})
    assert None is table.price(LOCAL, "new", NOW)


def test_only_models_of_a_public_address_are_asked_for() -> None:
    assert question_of(at("echo"), "echo") is None
    assert question_of(LOCAL, "gpt-4o") is None
    for host in ("10.1.2.3", "[::1]", "localhost", "vllm", "llm.internal", "169.254.169.254"):
        assert question_of(at("openai", f"https://{host}/v1"), "gpt-4o") is None
    assert Question("https://api.openai.com/v1", "first", "o3") == question_of(OPENAI, "o3")


def test_an_upstream_of_an_organisation_is_priced_by_its_address_alone() -> None:
    own = at("openai", "https://llm.example.com/v1", owner="org_1")
    assert Question("https://llm.example.com/v1", "", "gpt-4o") == question_of(own, "gpt-4o")


def test_what_clients_name_is_remembered_within_bounds() -> None:
    table = prices(**{"a/*": {"input": 1, "output": 1}})
    for number in range(Prices.KEPT + 50):
        assert table.price(at_a, f"m{number}", NOW) is not None
        assert table.price(at_b, f"m{number}", NOW) is None
    assert [Prices.KEPT] * 2 == [len(table._known), len(table._unknown)]


at_a, at_b = at("a"), at("b")


# The price list


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every child that was started."""
    started: list[Any] = []
    start = asyncio.create_subprocess_exec

    async def recorded(*args: Any, **kwargs: Any) -> Any:
        started.append(await start(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", recorded)
    return started


Open = Callable[..., Awaitable[Prices]]


@pytest.fixture
async def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Makes started price tables with a file in the test's folder, and stops them."""
    monkeypatch.setattr(PriceBook, "PATIENCE", 60.0)  # A child shares its machine.
    made: list[Prices] = []

    async def open(*targets: Target, overlay: dict[str, PriceSettings] | None = None) -> Prices:
        book = PriceBook(tmp_path / "prices.json", structlog.get_logger())
        made.append(Prices(overlay or {}, book))
        await made[-1].start(targets)
        return made[-1]

    yield open
    for one in made:
        await one.stop()


def priced(table: Prices, upstream: Upstream, model: str) -> Awaitable[Price | None]:
    future: asyncio.Future[Price | None] = asyncio.get_running_loop().create_future()
    table.when_known(upstream, model, NOW, future.set_result)
    return asyncio.wait_for(future, 60)


@both_loops
async def test_the_price_list_is_asked_once_and_then_remembered(
    opened: Open, children: list[Any], tmp_path: Path
) -> None:
    table = await opened()
    assert table.price(OPENAI, "gpt-4o", NOW) is None
    price = known(await priced(table, OPENAI, "gpt-4o"))
    assert 1_000 * 2_500 + 1_000 * 10_000 == price.cost(Usage(1_000, 1_000))
    assert price.source.startswith("genai-prices ")
    assert price.source.endswith(": openai/gpt-4o")
    assert price is table.price(OPENAI, "gpt-4o", NOW)
    await ended(children, 1)

    later = await opened(Target.at(OPENAI, "gpt-4o"))
    assert price.source == known(later.price(OPENAI, "gpt-4o", NOW)).source
    assert 1 == len(children)
    assert ["prices.json"] == os.listdir(tmp_path)


async def ended(children: list[Any], count: int) -> None:
    assert count == len(children)
    for child in children:
        await asyncio.wait_for(child.wait(), 60)


async def test_questions_asked_at_start_share_one_child(opened: Open, children: list[Any]) -> None:
    table = await opened(Target.at(OPENAI, "gpt-4o"), Target.at(ANTHROPIC, "claude-sonnet-4-5"))
    prices = await asyncio.gather(
        priced(table, ANTHROPIC, "claude-sonnet-4-5"),
        priced(table, OPENAI, "gpt-4o"),
        priced(table, OPENAI, "o3"),
    )
    assert all(prices)
    assert 1 == len(children)


async def test_what_the_list_does_not_know_is_not_asked_again(
    opened: Open, children: list[Any]
) -> None:
    stranger = at("stranger", "https://llm.example.com/v1")
    table = await opened()
    assert await priced(table, OPENAI, "gpt-of-dreams") is None
    assert await priced(table, stranger, "m") is None
    asked = len(children)
    for one in (table, await opened()):
        assert await priced(one, OPENAI, "gpt-of-dreams") is None
        assert await priced(one, stranger, "another") is None
    assert asked == len(children)


async def test_an_address_nobody_knows_is_told_by_the_name_of_its_upstream(opened: Open) -> None:
    relay = at("openai", "https://llm.example.com/v1")
    assert known(await priced(await opened(), relay, "gpt-4o")).source.endswith(": openai/gpt-4o")


async def test_the_overlay_wins_and_asks_nobody(opened: Open, children: list[Any]) -> None:
    written = {"first/gpt-4o": PriceSettings(input=1, output=1)}
    table = await opened(Target.at(OPENAI, "gpt-4o"), overlay=written)
    assert "prices: first/gpt-4o" == known(table.price(OPENAI, "gpt-4o", NOW)).source
    assert [] == children


@pytest.mark.parametrize("content", [b"\xff{", b'{"source": 1}'])
async def test_a_damaged_file_is_asked_anew(opened: Open, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prices.json").write_bytes(content)
    assert await priced(await opened(), OPENAI, "gpt-4o") is not None


async def test_what_another_version_of_the_list_said_is_forgotten(
    opened: Open, tmp_path: Path, children: list[Any]
) -> None:
    assert await priced(await opened(), OPENAI, "gpt-4o") is not None
    await ended(children, 1)
    file = tmp_path / "prices.json"
    file.write_bytes(file.read_bytes().replace(b"genai-prices ", b"genai-prices 0.0.0+"))
    assert await priced(await opened(), OPENAI, "gpt-4o") is not None
    assert 2 == len(children)


@both_loops
async def test_stopping_ends_the_child_and_tells_who_waits(
    opened: Open, children: list[Any]
) -> None:
    table = await opened()
    waiting = asyncio.ensure_future(priced(table, OPENAI, "gpt-4o"))
    async with asyncio.timeout(60):
        while not children:  # noqa: ASYNC110 - it is patched to be here
            await asyncio.sleep(0)
    await table.stop()
    assert await waiting is None
    assert children[0].returncode is not None
    assert table.price(OPENAI, "gpt-4o", NOW) is None
    assert 1 == len(children)


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
async def test_without_a_child_prices_are_unknown_and_nobody_asks_for_a_while(
    opened: Open, monkeypatch: pytest.MonkeyPatch, program: str, children: list[Any]
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    table = await opened()
    assert await priced(table, OPENAI, "gpt-4o") is None
    before = len(children)
    assert await priced(table, OPENAI, "gpt-4o") is None
    assert before == len(children)


async def test_a_child_that_says_nothing_is_given_up(
    opened: Open, monkeypatch: pytest.MonkeyPatch, children: list[Any], tmp_path: Path
) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(silent))
    monkeypatch.setattr(PriceBook, "PATIENCE", 0.05)
    assert await priced(await opened(), OPENAI, "gpt-4o") is None
    await ended(children, 1)


async def test_questions_are_bounded(tmp_path: Path) -> None:
    book = PriceBook(tmp_path / "prices.json", structlog.get_logger())
    book.open()
    for number in range(PriceBook.ASKED * 2):
        assert book.answer(Question("https://api.openai.com", "", f"m{number}")) is None
    told: list[int] = []
    for number in range(PriceBook.ASKED * 2):
        question = Question("https://api.openai.com", "", f"m{number}")
        book.when_known(question, lambda number=number: told.append(number))  # type: ignore[misc]
    # Those beyond the bound are told at once, the others when the book is closed.
    assert list(range(PriceBook.ASKED, PriceBook.ASKED * 2)) == told
    await book.close()
    assert PriceBook.ASKED * 2 == len(told)


def test_a_gateway_never_imports_the_price_list() -> None:
    code = (
        "import sys, passy_proxy.app, passy_proxy.config.build, passy_plugins.usage;"
        "passy_plugins.usage.Prices; sys.exit('genai_prices' in sys.modules)"
    )
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode


def test_an_answer_survives_its_journey() -> None:
    listing = Listing("p/m", (Period((Tier(-1, rates(1)),), None, (1.0, 2.0)),))
    sent = msgspec.json.encode([Answer(listing), Answer(None, provider=False)])
    assert [Answer(listing), Answer(None, provider=False)] == msgspec.json.decode(
        sent, type=list[Answer]
    )
