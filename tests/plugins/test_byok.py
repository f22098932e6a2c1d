"""Organisations' own upstreams and keys: who is asked, whose key is shown, what never is."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from passy_plugins import byok
from passy_proxy import (
    Credential,
    CredentialRef,
    CustomProvider,
    Exchange,
    Principal,
    StoreUnavailable,
)
from passy_proxy.testing import Bench, Recorded, ScriptedUpstream
from passy_proxy.transport.connect import AllowList, Connector, ConnectSettings

pytestmark = pytest.mark.anyio

CONFIGURATION = """
stores: {{books: {{kind: memory}}}}
upstreams:
  echo: {{kind: echo}}
  one: {{dialect: openai, url: "{one}/v1", credential: sk-operator-one}}
  two: {{dialect: openai, url: "{two}/v1", credential: sk-operator-two}}
models:
  m: {{targets: [one/m, two/m], fallback_on: [5xx, 4xx, timeout, rate_limit]}}
chains:
  default: [given, byok: {{vault: books, ttl: 30s, stale: 15m}}, alias, fallback: {{retries: 0}}]
routes: [{{match: POST /v1/chat/completions}}]
"""
OWN = CustomProvider("p1", "acme", "Ours", "openai", "", ("m", "own-*"))


class Given(byok.Filter):
    name = "given"
    provides = frozenset({"principal"})


class Vault:
    """What organisations brought; counts its queries and can be away."""

    def __init__(self) -> None:
        self.listed: dict[str, list[CustomProvider]] = {}
        self.held: dict[CredentialRef, Credential] = {}
        self.queries = 0
        self.away = self.sealed = False

    def bring(self, upstream: str, secret: str, organisation: str = "acme") -> None:
        ref = CredentialRef(organisation, upstream)
        self.held[ref] = Credential(secret, organisation)

    async def providers(self, organisation: str) -> list[CustomProvider]:
        self.queries += 1
        if self.away:
            raise StoreUnavailable
        return self.listed.get(organisation, [])

    async def credential(self, ref: CredentialRef) -> Credential | None:
        self.queries += 1
        if self.away or self.sealed:
            raise StoreUnavailable
        return self.held.get(ref)


@dataclass
class House:
    """A gateway with two shared upstreams, an organisation's own, and a vault."""

    bench: Bench
    vault: Vault
    one: ScriptedUpstream
    two: ScriptedUpstream
    own: ScriptedUpstream
    now: float = 1000.0

    async def ask(
        self, model: str = "m", organisation: str | None = "acme", **key: object
    ) -> Exchange:
        principal = Principal("key", organisation=organisation, **key)  # type: ignore[arg-type]
        ex = self.bench.exchange({"model": model, "messages": []}, principal=principal)
        await ex.route.chain.run(ex)
        return ex

    def build(self, *providers: CustomProvider) -> None:
        """The organisation's own upstreams; one without a URL is the scripted one."""
        url = f"{self.own.url}/v1"
        self.vault.listed["acme"] = [replace(one, url=one.url or url) for one in providers]

    def allow(self, *entries: str) -> None:
        """Let organisations reach what tests can reach."""
        self.bench.parts.connector.settings = ConnectSettings(allow=AllowList.of(entries))

    @property
    def hits(self) -> tuple[int, int, int]:
        return len(self.one.requests), len(self.two.requests), len(self.own.requests)


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        one, two, own = [await stack.enter_async_context(ScriptedUpstream()) for _ in range(3)]
        for upstream, name in ((one, "one"), (two, "two"), (own, "own")):
            upstream.chat(f"from {name}")
        text = CONFIGURATION.format(one=one.url, two=two.url)
        bench = await stack.enter_async_context(Bench(text, filters=[Given]))
        vault = Vault()
        store = bench.snapshot.stores["books"]
        monkeypatch.setattr(store, "providers", vault.providers)
        monkeypatch.setattr(store, "credential", vault.credential)
        made = House(bench, vault, one, two, own)
        made.allow("127.0.0.1")
        monkeypatch.setattr(byok, "monotonic", lambda: made.now)
        yield made


def sent(ex: Exchange) -> Recorded:
    assert isinstance(ex.downstream, Recorded)
    return ex.downstream


def shown(upstream: ScriptedUpstream, number: int = -1) -> str | None:
    return upstream.requests[number].headers.get("authorization")


# Their own upstream


async def test_an_own_upstream_wins_over_the_table(house: House) -> None:
    house.build(OWN)
    house.vault.bring("p1", "sk-theirs")
    ex = await house.ask()
    assert (200, (0, 0, 1)) == (ex.status, house.hits)
    assert "Bearer sk-theirs" == shown(house.own)
    assert b"custom-p1/m" == sent(ex).header(b"x-passy-upstream")
    assert "/v1/chat/completions" == house.own.requests[0].target


async def test_another_organisation_does_not_have_it(house: House) -> None:
    house.build(OWN)
    for organisation in ("brown", None):
        assert 200 == (await house.ask(organisation=organisation)).status
    assert (2, 0, 0) == house.hits


@pytest.mark.parametrize(
    ("provider", "model", "wins"),
    [
        (OWN, "own-large", True),
        (replace(OWN, models=("*",)), "m", True),
        (replace(OWN, models=("*",)), "unheard-of", True),
        (replace(OWN, models=("other",)), "m", False),
        (replace(OWN, active=False), "m", False),
    ],
)
async def test_it_serves_its_models_while_it_is_active(
    house: House, provider: CustomProvider, model: str, wins: bool
) -> None:
    house.build(provider)
    ex = await house.ask(model)
    assert (200, (int(not wins), 0, int(wins))) == (ex.status, house.hits)


async def test_of_several_the_one_with_the_lowest_number_is_asked(house: House) -> None:
    second = replace(OWN, id="p2", priority=-1)
    house.build(OWN, second)
    assert b"custom-p2/m" == sent(await house.ask()).header(b"x-passy-upstream")


async def test_an_own_upstream_without_a_key_is_shown_none(house: House) -> None:
    house.build(OWN)
    assert 200 == (await house.ask()).status
    assert shown(house.own) is None


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_an_own_upstream_that_fails_is_not_replaced_by_the_operators(
    house: House, status: int
) -> None:
    house.build(OWN)
    house.own._script.clear()
    house.own.json({"error": {"message": "theirs"}}, status)
    ex = await house.ask()
    assert (status, (0, 0, 1)) == (ex.status, house.hits)


async def test_a_key_that_may_not_use_a_model_may_not_use_it_there_either(house: House) -> None:
    house.build(replace(OWN, models=("*",)))
    ex = await house.ask("own-large", models=("m",))
    assert (403, "model_not_allowed", (0, 0, 0)) == (ex.status, ex.outcome.code, house.hits)


# Their own key for a shared upstream


async def test_an_own_key_takes_the_place_of_the_operators(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await house.ask()
    await house.ask(organisation="brown")
    assert ("Bearer sk-theirs", "Bearer sk-operator-one") == (
        shown(house.one, 0),
        shown(house.one, 1),
    )


@pytest.mark.parametrize("status", [401, 403])
async def test_an_own_key_that_is_refused_is_not_replaced_by_the_operators(
    house: House, status: int
) -> None:
    house.vault.bring("one", "sk-theirs")
    house.one._script.clear()
    house.one.json({"error": {"message": "wrong key"}}, status)
    ex = await house.ask()
    assert (status, (1, 0, 0)) == (ex.status, house.hits)
    assert ["Bearer sk-theirs"] == [one.headers["authorization"] for one in house.one.requests]


async def test_each_upstream_is_shown_the_key_that_belongs_to_it(house: House) -> None:
    house.vault.bring("one", "sk-for-one")
    house.vault.bring("two", "sk-for-two")
    house.one._script.clear()
    house.one.json({}, 500)
    assert 200 == (await house.ask()).status
    assert ("Bearer sk-for-one", "Bearer sk-for-two") == (shown(house.one), shown(house.two))


# The vault


async def test_an_answer_of_the_vault_is_used_for_its_time_to_live(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    for _ in range(5):
        await house.ask()
    assert 2 == house.vault.queries
    house.vault.bring("one", "sk-new")
    house.now += 30
    await house.ask()
    assert "Bearer sk-new" == shown(house.one)


async def test_a_vault_that_is_away_is_remembered_for_a_while(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await house.ask()
    house.vault.away = True
    house.now += 15 * 60 - 1
    assert 200 == (await house.ask()).status
    assert "Bearer sk-theirs" == shown(house.one)
    house.now += 1
    ex = await house.ask()
    assert (503, "vault_unavailable", 2) == (ex.status, ex.outcome.code, house.hits[0])
    assert b"1" == sent(ex).header(b"retry-after")


async def test_a_key_outlives_the_vault_also_when_the_list_was_read_anew(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await house.ask()
    house.now += 60
    house.vault.sealed = True
    assert 200 == (await house.ask()).status
    assert "Bearer sk-theirs" == shown(house.one)


async def test_without_their_key_the_operators_is_not_shown(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    house.vault.sealed = True
    ex = await house.ask()
    assert (502, (0, 0, 0)) == (ex.status, house.hits)


async def test_others_are_served_while_the_vault_is_away(house: House) -> None:
    house.vault.away = True
    assert 200 == (await house.ask(organisation=None)).status


async def test_only_so_much_is_remembered(house: House) -> None:
    entries: dict[str, int] = {}
    for number in range(100):
        byok.remember(entries, f"org {number}", number, 10)
    assert [f"org {number}" for number in range(90, 100)] == list(entries)


# Where their upstream may be


@pytest.mark.parametrize(
    "url",
    [
        "https://10.0.0.1/v1",
        "https://127.0.0.1/v1",
        "https://169.254.169.254/latest",
        "https://[::1]/v1",
        "https://localhost/v1",
        "https://2130706433/v1",
        "http://example.com/v1",
        "https://example.com:8443/v1",
        "https://user:secret@example.com/v1",
        "https://example.com/v1?key=1",
        "ftp://example.com/",
        "file:///etc/passwd",
        "not an address",
    ],
)
async def test_a_forbidden_address_is_refused_before_anything_is_dialled(
    house: House, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connector, "connect", never)
    house.allow()
    house.build(replace(OWN, url=url))
    ex = await house.ask()
    assert (502, (0, 0, 0)) == (ex.status, house.hits)
    error = sent(ex).json["error"]
    assert ("upstream_error", "provider_error") == (error["code"], error["type"])
    assert "custom-p1" in error["message"]
    assert "secret" not in error["message"]
    assert b"false" == sent(ex).header(b"x-should-retry")


async def never(*_: object, **__: object) -> None:
    raise AssertionError("a connection was begun")


async def test_a_name_that_leads_inside_is_refused_when_it_is_resolved(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public when it was entered, private when it is dialled."""
    house.allow()
    leads_to = ["93.184.216.34", "127.0.0.1"]

    def lookup(host: str, port: int, *_: object) -> list[object]:
        row = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (leads_to[-1], port))
        return [row]

    async def no_socket(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("passy_proxy.transport.connect._dialled", no_socket)
    monkeypatch.setattr(house.bench.parts.connector, "_lookup", lookup)
    house.build(replace(OWN, url="https://rebinding.test/v1"))
    ex = await house.ask()
    assert (502, (0, 0, 0)) == (ex.status, house.hits)
    assert "not allowed" in sent(ex).json["error"]["message"]


async def test_an_unknown_dialect_is_said_plainly(house: House) -> None:
    house.build(replace(OWN, dialect="klingon"))
    ex = await house.ask()
    assert (502, (0, 0, 0)) == (ex.status, house.hits)
    assert "klingon" in sent(ex).json["error"]["message"]


async def test_a_changed_upstream_is_asked_where_it_is_now(house: House) -> None:
    house.build(OWN)
    await house.ask()
    house.build(replace(OWN, version=2, url=f"{house.two.url}/v1"))
    house.now += 30
    await house.ask()
    assert (0, 1, 1) == house.hits
