"""Organisations' own upstreams and keys: who is asked, whose key is shown, what never is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog

from passy_plugins import brought, byok
from passy_proxy import (
    Credential,
    CustomProvider,
    Exchange,
    Keyring,
    Principal,
    Remembered,
    StoreUnavailable,
)
from passy_proxy.testing import KEYRING, Bench, Recorded, ScriptedUpstream
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
        self.held: dict[str, list[Credential]] = {}
        self.queries = 0
        self.away = self.sealed = False

    def bring(self, upstream: str, *secrets: str, organisation: str = "acme") -> None:
        """In the order in which they are to be shown."""
        held = self.held.setdefault(organisation, [])
        held[:] = [one for one in held if one.upstream != upstream]
        held += [Credential(one, organisation, f"cred {one}", upstream) for one in secrets]

    async def providers(self, organisation: str) -> list[CustomProvider]:
        self.queries += 1
        if self.away:
            raise StoreUnavailable
        return self.listed.get(organisation, [])

    async def credentials(self, organisation: str) -> list[Credential]:
        self.queries += 1
        if self.away:
            raise StoreUnavailable
        held = self.held.get(organisation, [])
        if not self.sealed:
            return held
        trouble = "sealed with key 0123abcd, which is not among the secret keys given"
        return [replace(one, secret="", trouble=trouble) for one in held]


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
        monkeypatch.setattr(store, "credentials", vault.credentials)
        made = House(bench, vault, one, two, own)
        made.allow("127.0.0.1")
        for module in (byok, brought):
            monkeypatch.setattr(module, "monotonic", lambda: made.now)
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


# Several of their own


def answering(upstream: ScriptedUpstream, *statuses: int, **headers: str) -> None:
    """A script of refusals, and then an answer."""
    upstream._script.clear()
    for status in statuses:
        upstream.json({"error": {"message": f"no: {status}"}}, status, **headers)
    upstream.chat("at last")


def all_shown(upstream: ScriptedUpstream) -> list[str]:
    return [one.headers["authorization"].removeprefix("Bearer ") for one in upstream.requests]


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_the_next_own_key_is_shown_when_one_is_refused(house: House, status: int) -> None:
    house.vault.bring("one", "sk-first", "sk-second", "sk-third")
    answering(house.one, status, status)
    ex = await house.ask()
    assert (200, ["sk-first", "sk-second", "sk-third"]) == (ex.status, all_shown(house.one))
    assert [status, status, 200] == [attempt.status for attempt in ex.attempts]


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_what_is_wrong_with_the_request_is_not_asked_twice(house: House, status: int) -> None:
    house.vault.bring("one", "sk-first", "sk-second")
    house.one._script.clear()
    house.one.json({"error": {"message": "no"}}, status)
    await house.ask()
    assert ["sk-first"] == all_shown(house.one)


@pytest.mark.parametrize("status", [401, 403])
async def test_when_all_own_keys_are_refused_that_is_the_answer(house: House, status: int) -> None:
    house.vault.bring("one", "sk-first", "sk-second")
    house.one._script.clear()
    house.one.json({"error": {"message": "wrong key"}}, status)
    ex = await house.ask()
    assert (status, (2, 0, 0)) == (ex.status, house.hits)
    assert "sk-operator-one" not in all_shown(house.one)


async def test_a_limit_of_their_keys_is_not_met_with_the_operators_key(house: House) -> None:
    house.vault.bring("one", "sk-first", "sk-second")
    house.one._script.clear()
    house.one.json({"error": {"message": "slow down"}}, 429, retry_after="7")
    ex = await house.ask()
    assert (429, "own_key_refused", (2, 0, 0)) == (ex.status, ex.outcome.code, house.hits)
    assert b"7" == sent(ex).header(b"retry-after")
    assert "operator's is not used" in sent(ex).json["error"]["message"]


async def test_a_limit_of_their_keys_is_met_with_their_key_elsewhere(house: House) -> None:
    house.vault.bring("one", "sk-first")
    house.vault.bring("two", "sk-for-two")
    house.one._script.clear()
    house.one.json({"error": {"message": "slow down"}}, 429)
    ex = await house.ask()
    assert (200, ["sk-first"], ["sk-for-two"]) == (
        ex.status,
        all_shown(house.one),
        all_shown(house.two),
    )


async def test_a_refused_key_stands_behind_the_others_for_a_while(house: House) -> None:
    house.vault.bring("one", "sk-first", "sk-second")
    answering(house.one, 401)
    for _ in range(3):
        await house.ask()
    house.now += 10
    await house.ask()
    expected = ["sk-first", "sk-second", "sk-second", "sk-second", "sk-first"]
    assert expected == all_shown(house.one)


async def test_a_key_rests_for_as_long_as_its_upstream_says(house: House) -> None:
    house.vault.bring("one", "sk-first", "sk-second")
    answering(house.one, 429, retry_after="25")
    await house.ask()
    house.now += 24
    await house.ask()
    house.now += 2
    await house.ask()
    assert ["sk-first", "sk-second", "sk-second", "sk-first"] == all_shown(house.one)


async def test_keys_that_all_rest_cost_one_try_each_time(house: House) -> None:
    house.vault.bring("one", "sk-first", "sk-second")
    house.one._script.clear()
    house.one.json({"error": {"message": "slow down"}}, 429)
    for _ in range(5):
        assert 429 == (await house.ask()).status
    assert len(all_shown(house.one)) <= 2 + 2 * 4
    before = len(house.one.requests)
    for _ in range(5):
        await house.ask()
    assert before + 5 == len(house.one.requests)


async def test_one_organisations_limit_says_nothing_of_the_upstream_to_others(
    house: House,
) -> None:
    house.vault.bring("one", "sk-first")
    house.one._script.clear()
    house.one.json({"error": {"message": "slow down"}}, 429)
    for _ in range(10):
        await house.ask()
    house.one._script.clear()
    house.one.chat("from one")
    ex = await house.ask(organisation="brown")
    assert (200, "Bearer sk-operator-one") == (ex.status, shown(house.one))


async def test_a_key_without_trouble_is_shown_in_place_of_one_with(house: House) -> None:
    house.vault.bring("one", "sk-first", "sk-second")
    house.vault.held["acme"][0] = replace(house.vault.held["acme"][0], secret="", trouble="gone")
    assert 200 == (await house.ask()).status
    assert ["sk-second"] == all_shown(house.one)


async def test_a_provider_of_their_own_may_have_several_keys_too(house: House) -> None:
    house.build(OWN)
    house.vault.bring("p1", "sk-first", "sk-second")
    answering(house.own, 401)
    assert 200 == (await house.ask()).status
    assert ["sk-first", "sk-second"] == all_shown(house.own)


async def test_another_upstream_of_theirs_follows_where_the_first_fails(house: House) -> None:
    house.build(OWN, replace(OWN, id="p2", priority=1, url=f"{house.two.url}/v1"))
    house.own._script.clear()
    house.own.json({"error": {"message": "down"}}, 503)
    ex = await house.ask()
    assert (200, (0, 1, 1)) == (ex.status, house.hits)
    assert b"custom-p2/m" == sent(ex).header(b"x-passy-upstream")
    assert shown(house.two) is None


# Whose keys serve


async def test_own_only_never_shows_the_operators_key(house: House) -> None:
    ex = await house.ask(byok="own_only")
    assert (403, "own_key_missing", (0, 0, 0)) == (ex.status, ex.outcome.code, house.hits)
    assert "has none for two" in sent(ex).json["error"]["message"]


async def test_own_only_goes_on_to_where_there_is_an_own_key(house: House) -> None:
    house.vault.bring("two", "sk-for-two")
    ex = await house.ask(byok="own_only")
    assert (200, (0, 1, 0), "Bearer sk-for-two") == (ex.status, house.hits, shown(house.two))


async def test_own_only_is_content_with_an_upstream_of_theirs(house: House) -> None:
    house.build(OWN)
    assert 200 == (await house.ask(byok="own_only")).status
    assert (0, 0, 1) == house.hits


async def test_own_first_shows_the_operators_key_where_there_is_none(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    house.one._script.clear()
    house.one.json({"error": {"message": "down"}}, 503)
    ex = await house.ask()
    assert (200, "Bearer sk-operator-two") == (ex.status, shown(house.two))


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


async def test_a_vault_that_is_away_is_asked_once_a_second(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await house.ask()
    house.vault.away = True
    house.now += 60
    asked = house.vault.queries
    for _ in range(10):
        assert 200 == (await house.ask()).status
    assert asked + 1 == house.vault.queries


async def test_K6_a_key_that_cannot_be_opened_is_named_and_replaced_by_no_other(
    house: House,
) -> None:
    house.vault.bring("one", "sk-theirs")
    house.vault.sealed = True
    ex = await house.ask()
    assert (503, "own_key_unreadable", (0, 0, 0)) == (ex.status, ex.outcome.code, house.hits)
    assert "0123abcd" in sent(ex).json["error"]["message"]
    assert b"false" == sent(ex).header(b"x-should-retry")
    assert 200 == (await house.ask(organisation="brown")).status


def memory_of(house: House) -> brought.Memory:
    (filter,) = [one for one in house.bench.snapshot.filters if isinstance(one, byok.Byok)]
    return filter._memory


async def test_K6_no_key_stays_in_memory_for_longer_than_it_may_be_shown(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await house.ask()
    memory = memory_of(house)
    assert ["acme"] == list(memory._entries)
    assert "sk-theirs" not in repr(memory._entries)
    house.now += 15 * 60 - 1
    await house.ask(organisation="brown")
    memory._sweep()
    assert ["acme", "brown"] == sorted(memory._entries)
    house.now += 1
    memory._sweep()
    assert ["brown"] == list(memory._entries)
    assert memory._sweeper is not None
    await memory.stop()
    assert {} == memory._entries
    assert memory._sweeper.cancelled()


async def test_what_was_edited_is_read_at_once_when_somebody_tells(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await house.ask()
    memory = memory_of(house)
    house.vault.bring("one", "sk-new")
    for kind, subject, expected in (
        ("key", "acme", "sk-theirs"),
        ("credential", "brown", "sk-theirs"),
        ("credential", "acme", "sk-new"),
    ):
        memory.told(kind, subject)
        await house.ask()
        assert f"Bearer {expected}" == shown(house.one)
    house.vault.bring("one", "sk-newest")
    memory.told("", "")
    await house.ask()
    assert "Bearer sk-newest" == shown(house.one)
    memory.told("", "")
    house.vault.away = True
    assert 200 == (await house.ask()).status


async def test_of_what_was_edited_nothing_serves_while_the_vault_is_away(house: House) -> None:
    house.vault.bring("one", "sk-leaked")
    await house.ask()
    memory_of(house).told("credential", "acme")
    house.vault.away = True
    assert 503 == (await house.ask()).status
    assert 1 == len(house.one.requests)


async def test_an_answer_from_before_an_edit_is_not_kept(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    memory, providers = memory_of(house), house.vault.providers

    async def edited(organisation: str) -> list[CustomProvider]:
        memory.told("credential", organisation)
        return await providers(organisation)

    memory._vault.providers = edited  # type: ignore[method-assign]
    assert 200 == (await house.ask()).status
    assert {} == memory._entries


async def test_an_answer_in_use_is_renewed_beside_the_requests(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await house.ask()
    house.vault.bring("one", "sk-new")
    house.now += 16
    await house.ask()
    assert "Bearer sk-theirs" == shown(house.one)
    await asyncio.gather(*memory_of(house)._questions.running)
    await house.ask()
    assert "Bearer sk-new" == shown(house.one)


async def test_all_who_come_at_once_ask_once(house: House) -> None:
    house.vault.bring("one", "sk-theirs")
    await asyncio.gather(*(house.ask() for _ in range(20)))
    assert 2 == house.vault.queries


async def test_a_vault_that_does_not_answer_is_away(house: House) -> None:
    async def never(organisation: str) -> list[CustomProvider]:
        await asyncio.sleep(60)
        raise AssertionError

    memory = memory_of(house)
    memory._vault.providers = never  # type: ignore[method-assign]
    memory._config = memory._config.model_copy(update={"patience": 0.02})
    assert 503 == (await house.ask()).status


# On disk


class Placed(Vault):
    place = "somewhere"


async def memory_on(folder: Path, vault: Vault, ring: Keyring) -> tuple[brought.Memory, Remembered]:
    remembered = Remembered(folder, ring, structlog.get_logger())
    given = {"vault": vault, "keyring": ring, "remembered": remembered}
    config = byok.Config.model_construct(**dict(DEFAULTS), **given)
    memory = brought.Memory(config, structlog.get_logger())
    memory.start()
    return memory, remembered


DEFAULTS = {
    "changes": None,
    "ttl": 30.0,
    "stale": 900.0,
    "patience": 2.0,
    "known": 100,
    "rest": 10.0,
}


async def test_after_a_start_what_was_brought_is_known_from_disk_and_lies_there_sealed(
    tmp_path: Path,
) -> None:
    vault = Placed()
    vault.listed["acme"] = [replace(OWN, url="https://own.test/v1")]
    vault.bring("one", "sk-canary-of-acme")
    memory, remembered = await memory_on(tmp_path, vault, KEYRING)
    first = await memory.look_up("acme")
    assert await memory.look_up("nobody") is not None
    assert first is not None
    await memory.stop()
    await remembered.aclose()
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for secret in (b"sk-canary", b"own.test"):
        assert secret not in written
    assert b"v2:" in written

    vault.away = True
    memory, remembered = await memory_on(tmp_path, vault, KEYRING)
    found = await memory.look_up("acme")
    assert found is not None
    assert ("sk-canary-of-acme", "p1") == (found.own["one"].usable[0].secret, found.providers[0].id)
    assert ("m", "own-*") == found.providers[0].models
    nothing = await memory.look_up("nobody")
    assert nothing is not None
    assert ([], {}) == (nothing.providers, nothing.own)
    assert await memory.look_up("never seen") is None
    memory.told("credential", "acme")
    assert await memory.look_up("acme") is None, "it was edited"
    await memory.stop()
    await remembered.aclose()


async def test_what_lies_on_disk_is_nothing_without_the_key(tmp_path: Path) -> None:
    vault = Placed()
    vault.bring("one", "sk-canary-of-acme")
    memory, remembered = await memory_on(tmp_path, vault, KEYRING)
    await memory.look_up("acme")
    await memory.stop()
    await remembered.aclose()
    vault.away = True
    other = Keyring(["another key for tests only, of 32 bytes or more"])
    memory, remembered = await memory_on(tmp_path, vault, other)
    assert await memory.look_up("acme") is None
    await memory.stop()
    await remembered.aclose()


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
