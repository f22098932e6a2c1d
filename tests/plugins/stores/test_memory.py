"""The memory store's settings: what they accept, refuse and keep to themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from passy_plugins.stores.memory import KeySettings, Memory, MemorySettings
from passy_proxy import keys
from passy_proxy.config.document import Mapping, parse
from passy_proxy.config.problem import Problem
from passy_proxy.config.settings import read
from passy_proxy.evidence import Proof
from passy_proxy.keyring import Keyring
from passy_proxy.records import Budget, Level, Limits, Principal
from passy_proxy.site import Site
from passy_proxy.units import Rate

pytestmark = pytest.mark.anyio

RING = Keyring(["the secret key of these tests: 0123456789"])


def settings_of(text: str, **variables: str) -> MemorySettings | list[Problem]:
    root = parse(text, "gateway.yaml", variables).root
    assert isinstance(root, Mapping)
    return read(MemorySettings, root)


async def test_keys_and_organisations_come_from_the_file() -> None:
    key = keys.new_key()
    settings = settings_of(
        """
keys:
  - {key: "${MY_KEY}", name: Ada, organisation: acme, requests: 60/min, models: [gpt-4o]}
organisations:
  acme: {credentials: {openai: "${ACME_KEY}"}}
""",
        MY_KEY=key,
        ACME_KEY="sk-acme",
    )
    assert isinstance(settings, MemorySettings)
    assert key not in repr(settings)
    assert "sk-acme" not in repr(settings)
    store = Memory(settings, Site(Path(), RING))
    principal = await store.principal(keys.digest(RING.pepper, key.encode()))
    assert principal is not None
    assert ("Ada", "acme", ("gpt-4o",)) == (
        principal.name,
        principal.organisation,
        principal.models,
    )
    [credential] = await store.credentials("acme")
    assert ("openai", "sk-acme") == (credential.upstream, credential.secret)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("name: Ada", "either 'key' or 'digest'"),
        (f'key: "${{KEY}}", digest: {"0" * 64}', "either 'key' or 'digest'"),
        ("key: guessable", "can be guessed"),
        ("key: ''", "missing|empty|either"),
        ("digest: abc", "64 hexadecimal digits"),
        ('key: "${KEY}", expires: tomorrow', "2030-12-31"),
        ('key: "${KEY}", requests: many', "60/min"),
    ],
)
def test_what_is_wrong_with_a_key_is_said_where_it_is(entry: str, said: str) -> None:
    problems = settings_of(f"keys:\n  - {{{entry}}}\n", KEY=keys.new_key())
    assert isinstance(problems, list)
    assert [2] == [problem.line for problem in problems]
    assert problems[0].column > 0
    assert any(part in problems[0].message for part in said.split("|"))


def test_a_date_is_utc_unless_it_says_otherwise() -> None:
    key = keys.new_key()
    for text in ("2030-01-01", "2030-01-01T00:00:00Z", "2030-01-01T01:00:00+01:00"):
        settings = KeySettings.model_validate({"key": key, "expires": text})
        assert 1_893_456_000 == settings.expires


def test_it_needs_no_settings() -> None:
    assert [] == Memory(MemorySettings(), Site(Path(), RING)).records


def test_it_keeps_proofs_as_long_as_their_records() -> None:
    store = Memory(MemorySettings(keep=2), Site(Path(), RING))
    proof = Proof("aa", "bb", ("gateway",))
    store.record(("1",), proof)
    store.record(("1",), Proof("cc", "dd", ()))
    store.record(("2",))
    assert {"1": proof} == store.proofs
    store.record(("3",), proof)
    assert {"3": proof} == store.proofs


async def test_the_file_knows_levels_as_the_database_does(tmp_path: Path) -> None:
    settings = MemorySettings.model_validate(
        {
            "keys": [
                {
                    "key": "a key of these tests, long enough",
                    "id": "key_1",
                    "organisation": "acme",
                    "team": "research",
                    "user": "ada",
                    "tags": ["blue", "green"],
                    "budgets": [{"usd": 0.1, "per": "total"}],
                    "networks": ["10.1.2.3/8"],
                },
                {"key": "another key of these tests", "test": True},
            ],
            "organisations": {
                "acme": {
                    "requests": "600/min",
                    "byok": "own_only",
                    "budgets": [{"tokens": "10M", "per": "day", "hard": False, "alerts": [90]}],
                    "teams": {"research": {}, "sales": {}},
                }
            },
            "users": {"ada": {"models": ["gpt-*"], "disabled": True}},
        }
    )
    store = Memory(settings, Site(tmp_path, RING))

    async def found(key: str) -> Principal | None:
        return await store.principal(keys.digest(RING.pepper, key.encode()))

    assert await found("a key of these tests, long enough") == Principal(
        key_id="key_1",
        organisation="acme",
        team="research",
        user="ada",
        tags="blue,green",
        disabled=True,
        budgets=(Budget("key:key_1:usd:total", "usd", 10**8, "total", True, (50, 80, 100)),),
        above=(
            Level(
                "organisation",
                "acme",
                Limits(requests=Rate(600, 60)),
                None,
                (Budget("organisation:acme:tokens:day", "tokens", 10**7, "day", False, (90,)),),
            ),
            Level("user", "ada", models=("gpt-*",)),
        ),
        networks=("10.0.0.0/8",),
        byok="own_only",
    )
    test = await found("another key of these tests")
    assert test is not None
    assert (True, ("echo",)) == (test.is_test, test.upstreams)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"team": "sales", "organisation": "acme"}, "none of its organisation's"),
        ({"team": "research"}, "none of its organisation's"),
        ({"budgets": [{}]}, "either 'usd' or 'tokens'"),
        ({"budgets": [{"usd": 1, "tokens": 1}]}, "either 'usd' or 'tokens'"),
        ({"budgets": [{"usd": -1}]}, "greater than or equal to 0"),
        ({"budgets": [{"usd": 1, "alerts": [0]}]}, "1 to 1000 percent"),
        ({"networks": ["10.0.0.0/33"]}, "no range of addresses"),
        ({"tags": ["a,b"]}, "no tag"),
    ],
)
def test_what_cannot_be_held_is_said(written: dict[str, Any], why: str) -> None:
    file = {
        "keys": [{"key": "a key of these tests, long enough", **written}],
        "organisations": {"acme": {"teams": {"research": {}}}},
    }
    with pytest.raises(ValidationError, match=why):
        MemorySettings.model_validate(file)
