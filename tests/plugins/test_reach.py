"""What a key may ask for and whom it reaches: models of each level, upstreams, addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from passy_proxy import Exchange, Filter, Principal, keys
from passy_proxy.records import ECHO_ONLY, Level
from passy_proxy.testing import Bench, Recorded, ScriptedUpstream

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams:
  echo: {{kind: echo}}
  paid: {{dialect: openai, url: "{url}/v1", models: [paid-1]}}
models:
  mixed: [paid/m, echo/echo]
  gpt-*: [paid/*]
stores: {{state: {{kind: memory}}}}
chains:
  default: [given, alias, fallback: {{retries: 0}}]
  list: [given, models]
  through: [given, direct: {{upstream: paid}}]
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: GET /v1/models, chain: list}}
  - {{match: POST /v1/files, chain: through}}
"""


class Given(Filter):
    name = "given"
    provides = frozenset({"principal"})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with (
        ScriptedUpstream() as upstream,
        Bench(CONFIGURATION.format(url=upstream.url), filters=[Given]) as bench,
    ):
        upstream.chat("hello")
        yield bench


async def ask(bench: Bench, who: Principal, model: str) -> Exchange:
    ex = bench.exchange({"model": model, "messages": HELLO}, principal=who)
    await ex.route.chain.run(ex)
    return ex


def error(ex: Exchange) -> tuple[int, str]:
    assert isinstance(ex.downstream, Recorded)
    return ex.status, ex.downstream.json["error"]["code"]


HELLO = [{"role": "user", "content": "hello"}]
ACME = Level("organisation", "org_1", models=("gpt-*", "mixed", "echo"))
TEAM = Level("team", "team_1", models=("gpt-4*", "echo"))
NARROW = Principal("key_1", models=("gpt-4o", "mixed", "echo"), above=(ACME, TEAM))


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ("gpt-4o", True),
        ("gpt-4o-mini", False),
        ("gpt-3.5", False),
        ("mixed", False),
        ("echo", True),
    ],
)
async def test_a_model_must_be_allowed_on_each_level(
    bench: Bench, model: str, allowed: bool
) -> None:
    ex = await ask(bench, NARROW, model)
    if allowed:
        assert ex.attempts
    else:
        assert (403, "model_not_allowed") == error(ex)
        assert [] == ex.attempts


async def test_the_list_shows_what_all_levels_allow(bench: Bench) -> None:
    async def shown(who: Principal) -> list[str]:
        ex = bench.exchange(b"", path="/v1/models", method="GET", principal=who)
        await ex.route.chain.run(ex)
        assert isinstance(ex.downstream, Recorded)
        return [one["id"] for one in ex.downstream.json["data"]]

    assert ["mixed", "echo", "paid-1"] == await shown(Principal("key_1"))
    assert ["mixed", "echo"] == await shown(Principal("key_1", above=(ACME,)))
    assert ["echo"] == await shown(NARROW)
    assert ["mixed", "echo"] == await shown(Principal("t", is_test=True, upstreams=ECHO_ONLY))


async def test_a_test_key_reaches_echo_alone(bench: Bench) -> None:
    who = Principal("key_t", is_test=True, upstreams=ECHO_ONLY)
    for model in ("gpt-4o", "paid-1", "paid/paid-1"):
        ex = await ask(bench, who, model)
        assert (403, "model_not_allowed") == error(ex)
        assert [] == ex.attempts
    for model in ("echo", "mixed", "echo:json"):
        ex = await ask(bench, who, model)
        assert (200, ["echo"]) == (ex.status, [one.target.upstream.name for one in ex.attempts])


async def test_a_key_for_one_upstream_reaches_no_other(bench: Bench) -> None:
    who = Principal("key_1", upstreams=("pai*",))
    assert (403, "model_not_allowed") == error(await ask(bench, who, "echo"))
    assert ["paid"] == [
        one.target.upstream.name for one in (await ask(bench, who, "mixed")).attempts
    ]


async def test_what_is_passed_through_is_not_for_keys_with_limits_on_models(bench: Bench) -> None:
    for who, code in (
        (Principal("t", is_test=True, upstreams=ECHO_ONLY), "upstream_not_allowed"),
        (Principal("k", above=(ACME,)), "model_not_allowed"),
    ):
        ex = bench.exchange(b"{}", path="/v1/files", principal=who)
        await ex.route.chain.run(ex)
        assert (403, code) == error(ex)
        assert [] == ex.attempts


# Addresses

NETWORKS = """
upstreams: {{echo: {{kind: echo}}}}
stores:
  books:
    kind: memory
    keys: [{{key: {key}, networks: [10.0.0.0/8]}}]
chains: {{default: [auth: {{directory: books{more}}}, alias, fallback]}}
routes: [{{match: POST /v1/chat/completions}}]
"""


async def shown_from(peer: str, forwarded: str = "", more: str = "") -> Exchange:
    key = keys.new_key()
    async with Bench(NETWORKS.format(key=key, more=more)) as bench:
        headers = [(b"authorization", b"Bearer " + key.encode())]
        if forwarded:
            headers.append((b"x-forwarded-for", forwarded.encode()))
        for _ in range(2):  # Known keys are remembered; where from they come is not.
            ex = bench.exchange({"model": "echo", "messages": HELLO}, headers=headers)
            assert isinstance(ex.downstream, Recorded)
            ex.downstream.peer = peer
            await ex.route.chain.run(ex)
        return ex


async def test_a_key_is_good_from_its_addresses_only() -> None:
    assert 200 == (await shown_from("10.1.2.3")).status
    for peer in ("11.1.2.3", "", "::1"):
        ex = await shown_from(peer)
        assert (403, "address_not_allowed") == error(ex)
        assert [] == ex.attempts


async def test_behind_a_trusted_proxy_its_client_counts() -> None:
    trusted = ", trusted_proxies: [192.0.2.0/24]"
    assert 200 == (await shown_from("192.0.2.1", "10.1.2.3", trusted)).status
    assert 403 == (await shown_from("192.0.2.1", "10.1.2.3, 11.1.1.1", trusted)).status
    assert 403 == (await shown_from("192.0.2.1", "10.1.2.3")).status
    assert 403 == (await shown_from("11.1.1.1", "10.1.2.3", trusted)).status
