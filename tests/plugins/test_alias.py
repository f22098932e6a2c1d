"""Names → targets: which rule wins, in which order, and what an unknown name is told."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from passy_plugins import alias
from passy_proxy import Exchange, Filter, Principal, json
from passy_proxy.body import read_head
from passy_proxy.testing import Bench, Recorded, run_filter

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams:
  echo: {kind: echo}
  open: {dialect: openai, url: "http://127.0.0.1:1/v1", models: [listed-model, "fine-*"]}
  wide: {dialect: openai, url: "http://127.0.0.1:1/v1"}
  unset: {dialect: openai, url: "http://127.0.0.1:1/v1", credential: "${NOT_SET:-}"}
models:
  exact: [wide/inside]
  exact-but-wild: [wide/kept]
  ex*: ["wide/short-*"]
  exact-*: ["wide/long-*"]
  spread:
    - {upstream: wide, model: heavy, weight: 7}
    - {upstream: wide, model: middle, weight: 2}
    - {upstream: wide, model: light}
  tiers:
    - {upstream: wide, model: later, priority: 2}
    - {upstream: wide, model: sooner-a, priority: 1, weight: 3}
    - {upstream: wide, model: sooner-b, priority: 1}
  spare: [{upstream: wide, model: spare, weight: 0}, wide/used]
  ordered: [wide/first, wide/second, wide/third]
  credentialless: [unset/x]
  half: [unset/x, wide/y]
chains: {default: [given, ALIAS, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""


class Given(Filter):
    name = "given"
    provides = frozenset({"principal"})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(CONFIGURATION.replace("ALIAS", "alias"), filters=[Given]) as made:
        yield made


def routed(bench: Bench, model: str, models: tuple[str, ...] | None = None) -> Exchange:
    """An exchange that has gone as far as the alias filter."""
    ex = bench.exchange({"model": model}, principal=Principal("key", models=models))
    ex.request.head = read_head(json.dumps({"model": model}))
    [filter] = [one for one in bench.snapshot.filters if isinstance(one, alias.Alias)]
    ex.reply = filter.on_request(ex)
    return ex


def targets(bench: Bench, model: str) -> list[str]:
    ex = routed(bench, model)
    assert ex.reply is None, ex.reply
    return [target.label for target in ex.targets]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("exact", ["wide/inside"]),
        ("exact-but-wild", ["wide/kept"]),
        ("exact-other", ["wide/long-exact-other"]),
        ("exotic", ["wide/short-exotic"]),
        ("ordered", ["wide/first", "wide/second", "wide/third"]),
        ("half", ["wide/y"]),
        ("listed-model", ["open/listed-model"]),
        ("open/listed-model", ["open/listed-model"]),
        ("open/fine-tuned", ["open/fine-tuned"]),
        ("wide/any/thing:at-all", ["wide/any/thing:at-all"]),
        ("echo", ["echo/echo"]),
        ("echo:slow", ["echo/echo:slow"]),
        ("echo/echo:json", ["echo/echo:json"]),
    ],
)
async def test_each_rule_finds_its_targets(bench: Bench, asked: str, expected: list[str]) -> None:
    assert expected == targets(bench, asked)


@pytest.mark.parametrize(
    "asked",
    ["nothing-like-it", "open/not-listed", "wide/", "/x", "nowhere/x", "fine-tuned", "wide",
     "EXACT", "listed-model ", "wide:x", "open:listed-model"],
)  # fmt: skip
async def test_an_unknown_name_is_a_404(bench: Bench, asked: str) -> None:
    reply = routed(bench, asked).reply
    assert reply is not None
    assert (404, "model_not_found", "model") == (reply.status, reply.code, reply.param)
    assert "/v1/models" in reply.message


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("spraed", "'spread'"), ("listed-modl", "'listed-model'"), ("Ordered", "'ordered'")],
)
async def test_an_unknown_name_is_told_the_nearest(bench: Bench, asked: str, nearest: str) -> None:
    reply = routed(bench, asked).reply
    assert reply is not None
    assert f"'{asked}' does not exist here. Did you mean {nearest}" in reply.message


async def test_a_name_of_megabytes_is_refused_quickly_and_not_repeated(bench: Bench) -> None:
    reply = routed(bench, "x" * 5_000_000).reply
    assert reply is not None
    assert len(reply.message) < 500


async def test_a_model_whose_provider_has_no_key_is_a_503_that_says_so(bench: Bench) -> None:
    reply = routed(bench, "credentialless").reply
    assert reply is not None
    assert (503, "no_healthy_target") == (reply.status, reply.code)
    assert "unset has no credential" in reply.message


async def test_a_weighted_alias_spreads_its_first_choice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias, "random", random.Random(11).random)
    draws = [targets(bench, "spread") for _ in range(5_000)]
    assert all({"wide/heavy", "wide/middle", "wide/light"} == set(draw) for draw in draws)
    first = Counter(draw[0] for draw in draws)
    for label, share in (("wide/heavy", 0.7), ("wide/middle", 0.2), ("wide/light", 0.1)):
        # Four standard deviations of a binomial draw.
        allowed = 4 * (5_000 * share * (1 - share)) ** 0.5
        assert abs(first[label] - 5_000 * share) < allowed


async def test_weights_hold_inside_a_priority_and_priorities_always(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias, "random", random.Random(12).random)
    draws = [targets(bench, "tiers") for _ in range(2_000)]
    assert {"wide/later"} == {draw[2] for draw in draws}
    first = Counter(draw[0] for draw in draws)
    assert abs(first["wide/sooner-a"] - 1_500) < 4 * (2_000 * 0.75 * 0.25) ** 0.5


async def test_a_target_of_weight_nought_is_only_the_last_resort(bench: Bench) -> None:
    for _ in range(100):
        assert ["wide/used", "wide/spare"] == targets(bench, "spare")


@pytest.mark.parametrize(
    ("allowed", "asked", "status"),
    [
        (("exact",), "exact", 0),
        (("ex*",), "exact", 0),
        (("exact",), "ordered", 403),
        (("exact",), "wide/inside", 403),
        ((), "exact", 403),
        (("exact",), "unheard-of", 403),
        (("*",), "unheard-of", 404),
        (None, "exact", 0),
    ],
)
async def test_a_key_may_use_the_models_it_lists(
    bench: Bench, allowed: tuple[str, ...] | None, asked: str, status: int
) -> None:
    reply = routed(bench, asked, allowed).reply
    assert status == (reply.status if reply else 0)
    if status == 403:
        assert reply is not None
        assert "model_not_allowed" == reply.code


async def test_without_direct_only_aliases_are_known() -> None:
    text = CONFIGURATION.replace("ALIAS", "alias: {direct: false}")
    async with Bench(text, filters=[Given]) as bench:
        assert ["wide/inside"] == targets(bench, "exact")
        for name in ("wide/inside", "listed-model", "echo"):
            reply = routed(bench, name).reply
            assert reply is not None
            assert 404 == reply.status


@pytest.mark.parametrize(
    ("direct", "target", "expected"),
    [
        ("on", "unset/x", ["open/listed-model"]),
        ("off", "unset/x", []),
        ("on", "wide/x", ["wide/x"]),
    ],
)
async def test_a_pattern_gives_way_to_who_lists_the_name_where_nobody_can_answer_for_it(
    direct: str, target: str, expected: list[str]
) -> None:
    text = CONFIGURATION.replace("ALIAS", f"alias: {{direct: {direct}}}")
    text = text.replace("models:\n", f"models:\n  listed-*: [{target}]\n", 1)
    other = [] if target.startswith("unset") else [target]
    async with Bench(text, filters=[Given]) as bench:
        for name, found in (("listed-model", expected), ("listed-other", other)):
            ex = routed(bench, name)
            assert found == [target.label for target in ex.targets]
            assert (ex.reply is None) is bool(found)
        owner = expected[0].partition("/")[0] if expected else "open"
        assert bench.snapshot.models.owner("listed-model") == owner


async def test_an_earlier_choice_of_targets_is_kept(bench: Bench) -> None:
    ex = bench.exchange({"model": "exact"})
    ex.request.head = read_head(b'{"model":"exact"}')
    [filter] = [one for one in bench.snapshot.filters if isinstance(one, alias.Alias)]
    chosen = bench.snapshot.models.direct("echo")
    assert chosen is not None
    ex.targets = chosen
    assert filter.on_request(ex) is None
    assert chosen is ex.targets


async def test_the_answer_comes_from_the_target() -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}
    ex = await run_filter(alias.Alias, body=body)
    assert isinstance(ex.downstream, Recorded)
    assert 200 == ex.status
    assert b"hello there" in ex.downstream.answer


async def test_names_that_patterns_take_do_not_fill_the_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias, "REMEMBERED", 50)
    [filter] = [one for one in bench.snapshot.filters if isinstance(one, alias.Alias)]
    for number in range(120):
        ex = routed(bench, f"ex-{number}")
        assert [f"wide/short-ex-{number}"] == [one.label for one in ex.targets]
    routed(bench, "ex" + "x" * 1_000)
    assert all(len(name) <= alias.LONGEST for name in filter._fixed)
    assert 20 == len(filter._fixed)


async def test_what_is_remembered_of_a_name_are_its_own_targets(bench: Bench) -> None:
    first, other, again = (routed(bench, name).targets for name in ("exact", "ex-1", "exact"))
    assert first is again
    assert ["wide/inside", "wide/short-ex-1"] == [first[0].label, other[0].label]
    drawn = {routed(bench, "spread").targets[0].label for _ in range(200)}
    assert len(drawn) > 1
