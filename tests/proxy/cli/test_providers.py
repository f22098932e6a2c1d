"""`passy organisations` and `passy providers`: what is entered, shown, refused, and kept secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from harness.gateway import Hire, Provider

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


def test_a_key_for_an_upstream_that_nobody_has_is_told_of(passy: Passy, acme: str) -> None:
    with Path("gateway.yaml").open("a") as file:
        file.write('\nupstreams: {openai: {url: "https://a.test"}}')
    for name, words in (("opanai", "no upstream 'opanai'; did you mean 'openai'?"), ("openai", "")):
        result = passy("providers", "add", "--organisation", acme, "--for", name)
        assert 0 == result.exit_code
        assert result.stdout.startswith("cred_")
        assert words in result.stderr
        assert bool(words) == ("this configuration" in result.stderr)


def test_an_empty_list_of_models_is_not_taken_for_all(passy: Passy, acme: str) -> None:
    result = passy("providers", "add", "--organisation", acme, *OWN, "--models", "")
    assert 2 == result.exit_code
    assert "--models names none" in result.stderr


def test_a_key_for_a_shared_upstream_comes_from_a_variable(
    passy: Passy, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", "another-secret")
    arguments = ("--organisation", acme, "--for", "openai", "--key-env", "ACME_KEY")
    assert 0 == passy("providers", "add", *arguments).exit_code
    result = passy("providers", "list", "--json")
    [found] = json.loads(result.stdout)["credentials"]
    assert (acme, "openai", True, 1) == (
        found["organisation"],
        found["upstream"],
        found["active"],
        found["version"],
    )
    assert "another-secret" not in result.output


def test_a_key_is_shown_by_its_last_four_and_edited_without_being_seen(
    passy: Passy, acme: str
) -> None:
    arguments = ("--organisation", acme, "--for", "openai", "--name", "main", "--priority", "3")
    key = passy("providers", "add", *arguments).stdout.strip()
    assert key.startswith("cred_")

    def known() -> dict[str, object]:
        [found] = json.loads(passy("providers", "list", "--json").stdout)["credentials"]
        return dict(found)

    assert (KEY[-4:], "main", 3, 1) == tuple(
        known()[name] for name in ("shown", "name", "priority", "version")
    )
    assert KEY[-4:] in passy("providers", "list").stdout
    assert 0 == passy("providers", "change", key, "--name", "spare", "--priority", "9").exit_code
    assert ("spare", 9, 1) == tuple(known()[name] for name in ("name", "priority", "version"))
    assert 0 == passy("providers", "change", key, "--new-key").exit_code
    assert 2 == known()["version"]
    assert 0 == passy("providers", "disable", key).exit_code
    assert known()["active"] is False
    assert 0 == passy("providers", "enable", key).exit_code
    assert known()["active"] is True
    assert 0 == passy("providers", "delete", key).exit_code
    assert [] == json.loads(passy("providers", "list", "--json").stdout)["credentials"]


def test_an_upstream_is_changed_and_removed_with_its_keys(passy: Passy, acme: str) -> None:
    provider = passy("providers", "add", "--organisation", acme, *OWN).stdout.strip()
    arguments = ("--organisation", acme, "--for", provider, "--priority", "1")
    assert 0 == passy("providers", "add", *arguments).exit_code
    changed = passy("providers", "change", provider, "--models", "x,y", "--base-url", "https://b.c")
    assert 0 == changed.exit_code, changed.output
    said = json.loads(passy("providers", "list", "--json", "--organisation", acme).stdout)
    [found] = said["providers"]
    assert (["x", "y"], "https://b.c", 2) == (found["models"], found["url"], found["version"])
    assert [provider, provider] == [one["upstream"] for one in said["credentials"]]
    assert 0 == passy("providers", "delete", provider).exit_code
    assert {"providers": [], "credentials": []} == json.loads(
        passy("providers", "list", "--json").stdout
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("change", "cred_x"),
        ("change", "cred_x", "--models", "m"),
        ("change", "prov_x", "--new-key"),
        ("change", "prov_x", "--dialect", "klingon"),
        ("test",),
        ("test", "cred_x", "--for", "openai"),
    ],
)
def test_what_makes_no_sense_ends_with_2(passy: Passy, arguments: tuple[str, ...]) -> None:
    assert 2 == passy("providers", *arguments).exit_code


@pytest.mark.parametrize("word", ["enable", "disable", "delete", "test"])
@pytest.mark.parametrize("one", ["prov_nowhere", "cred_nowhere"])
def test_what_is_not_there_ends_with_1(passy: Passy, word: str, one: str) -> None:
    result = passy("providers", word, one)
    assert 1 == result.exit_code
    assert one in result.stderr


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


def test_empty_lists_say_what_to_do(passy: Passy) -> None:
    assert "passy organisations create" in passy("organisations", "list").stdout
    assert "passy providers add" in passy("providers", "list").stdout


@pytest.fixture
def place(passy: Passy, hire: Hire) -> Provider:
    """A provider that organisations may bring, which this machine is otherwise not."""
    provider = hire()
    text = Path("gateway.yaml").read_text()
    Path("gateway.yaml").write_text(f"{text}\nconnect: {{tenants_may_reach: [127.0.0.1]}}\n")
    return provider


def answers(provider: Provider, status: int) -> None:
    async def scripted() -> None:
        provider.forget()
        said = {"error": {"message": f"Incorrect API key provided: {KEY}."}}
        provider.json(said, status)
        provider.json({"data": [{"id": "small"}]}).chat("Hi")

    provider.wait(scripted())


def test_a_key_that_fails_its_test_is_not_entered_unless_one_insists(
    passy: Passy, acme: str, place: Provider
) -> None:
    there = ("--name", "Mine", "--base-url", f"{place.url}/v1", "--test")
    adding = ("providers", "add", "--organisation", acme, *there)
    answers(place, 401)
    refused = passy(*adding)
    assert 1 == refused.exit_code
    for part in ("refused", "401", "The key was refused", "Incorrect API key", "Was it revoked"):
        assert part in " ".join(refused.stderr.split()), part
    assert KEY not in refused.output
    assert [] == json.loads(passy("providers", "list", "--json").stdout)["providers"]
    answers(place, 401)
    assert passy(*adding, "--anyway").stdout.startswith("prov_")
    answers(place, 400)
    entered = passy(*adding)
    assert (0, 1) == (entered.exit_code, len(entered.stdout.split()))
    assert "small answered" in entered.stderr
    answers(place, 401)
    tried = passy("providers", "test", entered.stdout.strip(), "--json")
    told = json.loads(tried.stdout)
    assert (1, False) == (tried.exit_code, told["ok"])
    assert any("revoked" in one for one in told["advice"])
