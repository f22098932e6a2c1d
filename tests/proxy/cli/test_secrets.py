"""`passy secrets`: what is sealed with which key, rotation, and a key that is retired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from passy_proxy.cli import cli
from passy_proxy.keyring import Keyring

Passy = Callable[..., Result]
OLD = "the old secret key of these tests: 0123456789"
NEW = "a newer secret key of these tests: 9876543210"
KEY = "plain-secret-of-nobody"
OLD_ID, NEW_ID = Keyring([OLD]).first, Keyring([NEW]).first


@pytest.fixture
def passy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Passy:
    """Runs `passy …` in an empty folder with a ring of keys; a provider's key on standard input."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "PASSY_CONFIG", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSY_DATA", "data")
    Path("gateway.yaml").write_text('stores: {books: {kind: sql, url: "sqlite:///books.db"}}')

    def run(*arguments: str, ring: str = OLD) -> Result:
        monkeypatch.setenv("PASSY_SECRET_KEYS", ring)
        return CliRunner().invoke(cli, list(arguments), input=f"{KEY}\n")

    return run


@pytest.fixture
def sealed(passy: Passy) -> Passy:
    """With two keys of providers, sealed with the old key."""
    acme = passy("organisations", "create", "Acme").stdout.strip()
    for upstream in ("openai", "anthropic"):
        made = passy("providers", "add", "--organisation", acme, "--for", upstream)
        assert 0 == made.exit_code, made.output
    return passy


def counted(result: Result) -> dict[str, tuple[bool, bool, int]]:
    return {
        one["key_id"]: (one["given"], one["first"], one["current"])
        for one in json.loads(result.stdout)
    }


def test_before_anything_is_sealed_that_is_said(passy: Passy) -> None:
    result = passy("secrets", "status")
    assert (0, "nothing is sealed yet\n") == (result.exit_code, result.stdout)


def test_the_status_counts_by_key(sealed: Passy) -> None:
    result = sealed("secrets", "status", "--json")
    assert {OLD_ID: (True, True, 2)} == counted(result)
    result = sealed("secrets", "status", ring=f"{NEW},{OLD}")
    assert 0 == result.exit_code
    assert OLD_ID in result.stdout
    assert "opens" in result.stdout


def test_K5_rotation_puts_all_under_the_first_key_and_the_old_one_can_be_retired(
    sealed: Passy,
) -> None:
    both = f"{NEW},{OLD}"
    refused = sealed("secrets", "retire", OLD_ID, ring=both)
    assert (1, "") == (refused.exit_code, refused.stdout)
    assert f"2 secrets are sealed with {OLD_ID}" in refused.stderr
    result = sealed("secrets", "rotate", ring=both)
    assert 0 == result.exit_code, result.output
    assert "2 of 2 secrets were put under the first key" in result.stdout
    again = sealed("secrets", "rotate", "--json", ring=both)
    assert {"seen": 2, "wrapped": 0, "failed": {}} == json.loads(again.stdout)
    entry = sealed("secrets", "retire", OLD_ID, ring=both)
    assert 0 == entry.exit_code, entry.output
    assert "PASSY_SECRET_KEYS" in entry.stderr
    ring = f"{NEW},{entry.stdout.strip()}"
    result = sealed("secrets", "status", "--json", ring=ring)
    assert (0, {NEW_ID: (True, True, 2)}) == (result.exit_code, counted(result))
    assert 78 == sealed("keys", "list", ring=NEW).exit_code, "the pepper went with the old key"


def test_a_missing_key_is_named(sealed: Passy) -> None:
    assert 0 == sealed("secrets", "rotate", ring=f"{NEW},{OLD}").exit_code
    status = sealed("secrets", "status")
    assert 1 == status.exit_code
    assert NEW_ID in status.stderr
    rotate = sealed("secrets", "rotate", "--json")
    assert 1 == rotate.exit_code
    failed = json.loads(rotate.stdout)["failed"]
    assert 2 == len(failed)
    assert all(NEW_ID in why for why in failed.values())


@pytest.mark.parametrize(
    ("key_id", "ring", "code", "said"),
    [
        (OLD_ID, OLD, 1, "the first key seals"),
        ("nowhere", OLD, 1, f"the id of no key; KEY is one of {OLD_ID}"),
        (OLD_ID, "short", 78, "5 bytes"),
        (OLD_ID, "", 78, "holds no key"),
    ],
)
def test_what_cannot_be_retired_is_said(
    sealed: Passy, key_id: str, ring: str, code: int, said: str
) -> None:
    result = sealed("secrets", "retire", key_id, ring=ring)
    assert (code, "") == (result.exit_code, result.stdout)
    assert said in result.stderr


def test_no_command_shows_a_secret(sealed: Passy) -> None:
    both = f"{NEW},{OLD}"
    for words in (
        ("status",),
        ("rotate",),
        ("status", "--json"),
        ("retire", OLD_ID),
        ("retire", OLD),
    ):
        output = sealed("secrets", *words, ring=both).output
        for secret in (OLD, NEW, KEY):
            assert secret not in output
