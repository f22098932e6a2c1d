"""`passy organisations` and `passy providers`: what is entered, shown, refused, and kept secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from passy_proxy.cli import cli

Passy = Callable[..., Result]
OWN = ("--name", "Mine", "--base-url", "https://llm.example.com/v1")
KEY = "plain-secret-of-nobody"


@pytest.fixture
def passy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Passy:
    """Runs `passy …` in an empty folder, with a key on standard input."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "PASSY_SECRET_KEYS", "PASSY_CONFIG", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSY_DATA", "data")
    Path("gateway.yaml").write_text('stores: {books: {kind: sql, url: "sqlite:///books.db"}}')
    return lambda *arguments: CliRunner().invoke(cli, list(arguments), input=f"{KEY}\n")


@pytest.fixture
def acme(passy: Passy) -> str:
    result = passy("organisations", "create", "Acme")
    assert 0 == result.exit_code, result.output
    return result.stdout.strip()


def test_organisations_are_listed(passy: Passy, acme: str) -> None:
    assert acme in passy("organisations", "list").stdout
    [found] = json.loads(passy("organisations", "list", "--json").stdout)
    assert (acme, "Acme") == (found["id"], found["name"])


def test_an_upstream_of_its_own_is_added_listed_and_disabled(passy: Passy, acme: str) -> None:
    result = passy("providers", "add", "--organisation", acme, *OWN, "--models", "a, b*")
    assert 0 == result.exit_code, result.output
    provider = result.stdout.strip()
    assert "active" in passy("providers", "list").stdout
    assert 0 == passy("providers", "disable", provider).exit_code
    result = passy("providers", "list", "--json")
    [found] = json.loads(result.stdout)["providers"]
    assert (provider, acme, ["a", "b*"]) == (found["id"], found["organisation"], found["models"])
    assert (OWN[3], False) == (found["url"], found["active"])
    assert KEY not in result.output
    assert KEY.encode() not in Path("books.db").read_bytes()


def test_a_key_for_a_shared_upstream_comes_from_a_variable(
    passy: Passy, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", "another-secret")
    arguments = ("--organisation", acme, "--for", "openai", "--key-env", "ACME_KEY")
    assert 0 == passy("providers", "add", *arguments).exit_code
    result = passy("providers", "list", "--json")
    assert [{"organisation": acme, "for": "openai"}] == json.loads(result.stdout)["credentials"]
    assert "another-secret" not in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--for", "openai", *OWN), 2),
        ((), 2),
        ((*OWN, "--key-env", "NOT_SET"), 2),
        ((*OWN, "--dialect", "klingon"), 2),
        (("--name", "Mine", "--base-url", "ftp://x"), 2),
        (("--for", "openai", "--key", KEY), 2),
        (OWN, 1),
        (("--for", "openai"), 1),
    ],
)
def test_what_cannot_be_is_refused(passy: Passy, arguments: tuple[str, ...], code: int) -> None:
    result = passy("providers", "add", "--organisation", "org_nowhere", *arguments)
    assert code == result.exit_code, result.output
    assert KEY not in result.output


def test_an_unknown_provider_ends_with_1(passy: Passy) -> None:
    assert 1 == passy("providers", "disable", "prov_nowhere").exit_code


def test_empty_lists_say_what_to_do(passy: Passy) -> None:
    assert "passy organisations create" in passy("organisations", "list").stdout
    assert "passy providers add" in passy("providers", "list").stdout
