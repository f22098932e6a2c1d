"""`passy keys`: what it prints, keeps and refuses, and with which exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from passy_proxy import keys as client_keys
from passy_proxy.cli.keys import command

Passy = Callable[..., Result]

CONFIGURATION = """
stores:
  state: {kind: memory}
  books: {kind: sql, url: "sqlite:///books.db"}
"""


@pytest.fixture
def passy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Passy:
    """Runs `passy keys …` in an empty folder with a configuration and no environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "PASSY_SECRET_KEYS", "PASSY_CONFIG", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PASSY_DATA", "data")
    Path("gateway.yaml").write_text(CONFIGURATION)
    return lambda *arguments: CliRunner().invoke(command, list(arguments))


def created(passy: Passy, *arguments: str) -> dict[str, Any]:
    result = passy("create", "--json", *arguments)
    assert 0 == result.exit_code, result.output
    made: dict[str, Any] = json.loads(result.stdout)
    return made


def test_a_key_is_shown_when_it_is_made_and_never_again(passy: Passy) -> None:
    result = passy("create", "--name", "Ada")
    key = result.stdout.strip()
    assert 0 == result.exit_code
    assert client_keys.well_formed(key.encode())
    key_id = re.findall(r"key_\w+", result.stderr)[0]
    for arguments in (["list"], ["list", "--json"], ["show", key_id], ["disable", key_id]):
        later = passy(*arguments)
        assert 0 == later.exit_code
        assert key_id in later.output
        assert key not in later.output
    assert key.encode() not in Path("books.db").read_bytes()


def test_every_setting_is_kept(passy: Passy) -> None:
    arguments = ["--name", "Ada", "--email", "a@b.test", "--description", "Mine", "--limit", "12.5"]
    arguments += ["--requests", "60/min", "--tokens", "100k/min", "--concurrency", "4"]
    arguments += ["--models", "gpt-4o, claude-*", "--expires", "2040-01-01", "--trial"]
    made = created(passy, *arguments)
    key = made.pop("key")
    assert made == json.loads(passy("show", made["id"], "--json").stdout)
    assert client_keys.shown(key) == made["shown"]
    assert {
        "requests": {"amount": 60, "seconds": 60},
        "tokens": {"amount": 100_000, "seconds": 60},
        "concurrency": 4,
    } == made["limits"]
    assert (["gpt-4o", "claude-*"], 12.5) == (made["models"], made["usage_limit"])
    assert ("Trial Key", "a@b.test") == (made["description"], made["email"])
    assert ("2040-01-01T00:00:00+00:00", "active") == (made["expires"], made["state"])


def test_a_test_key_has_no_email(passy: Passy) -> None:
    made = created(passy, "--test", "--email", "a@b.test")
    assert ("Test Key", None) == (made["description"], made["email"])


def test_disabling_is_seen_in_the_list(passy: Passy) -> None:
    first, second = created(passy), created(passy)
    assert 0 == passy("disable", first["id"]).exit_code
    listed = json.loads(passy("list", "--json").stdout)
    assert [(first["id"], "disabled"), (second["id"], "active")] == [
        (key["id"], key["state"]) for key in listed
    ]


def test_an_empty_list_says_what_to_do(passy: Passy) -> None:
    assert "passy keys create" in passy("list").output
    assert "[]" == passy("list", "--json").stdout.strip()


def test_markup_in_a_name_is_shown_as_it_is(passy: Passy) -> None:
    created(passy, "--name", "[red]")
    assert "[red]" in passy("list").output


@pytest.mark.parametrize("verb", ["show", "disable", "roll", "delete"])
def test_an_unknown_key_ends_with_1(passy: Passy, verb: str) -> None:
    result = passy(verb, "key_nowhere")
    assert (1, True) == (result.exit_code, "key_nowhere" in result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--requests", "sixty"],
        ["--concurrency", "0"],
        ["--expires", "2001-01-01"],
        ["--expires", "soon"],
        ["--limit", "-1"],
        ["--limit", "nan"],
        ["--limit", "inf"],
        ["--url", "mysql://u:hidden@h/x"],
        ["--colour", "red"],
    ],
)
def test_a_wrong_option_ends_with_2(passy: Passy, arguments: list[str]) -> None:
    result = passy("create", *arguments)
    assert 2 == result.exit_code
    assert "hidden" not in result.output
    assert not Path("books.db").exists()


def test_a_usage_limit_is_a_budget_of_the_key(passy: Passy) -> None:
    made = created(passy, "--limit", "5", "--per", "month")
    assert (5, "month") == (made["usage_limit"], made["usage_period"])
    assert "$5 (month)" in passy("show", made["id"]).output
    assert "total" == created(passy, "--limit", "5")["usage_period"]


def test_a_usage_limit_may_be_in_tokens(passy: Passy) -> None:
    made = created(passy, "--token-limit", "10M", "--per", "day")
    assert (10_000_000, "tokens") == (made["usage_limit"], made["usage_unit"])
    assert "10,000,000 tokens (day)" in passy("show", made["id"]).output
    assert 2 == passy("create", "--limit", "5", "--token-limit", "5").exit_code


def test_a_key_is_changed(passy: Passy) -> None:
    made = created(passy, "--name", "laptop", "--limit", "5", "--models", "gpt-4o")
    result = passy("change", made["id"], "--name", "server", "--networks", "10.1.2.3/8", "--json")
    changed = json.loads(result.stdout)
    assert ("server", ["10.0.0.0/8"], 5) == (
        changed["name"],
        changed["networks"],
        changed["usage_limit"],
    )
    result = passy("change", made["id"], "--no", "limit", "--no", "models", "--json")
    assert (None, None) == (
        json.loads(result.stdout)["usage_limit"],
        json.loads(result.stdout)["models"],
    )
    assert 0 == passy("disable", made["id"]).exit_code
    result = passy("change", made["id"], "--enable", "--json")
    assert "active" == json.loads(result.stdout)["state"]
    assert 2 == passy("change", made["id"]).exit_code
    assert 1 == passy("change", made["id"], "--networks", "everywhere").exit_code


def test_K1_a_key_is_rolled(passy: Passy) -> None:
    made = created(passy)
    rolled = json.loads(passy("roll", made["id"], "--grace", "1h", "--json").stdout)
    assert made["id"] == rolled["id"]
    assert made["key"] != rolled["key"]
    assert rolled["old_until"] is not None
    said = passy("roll", made["id"], "--grace", "1h")
    assert said.stdout.startswith("sk-passy-")
    assert "good until" in said.stderr


def test_a_deleted_key_is_listed_no_more(passy: Passy) -> None:
    made = created(passy)
    assert 0 == passy("delete", made["id"]).exit_code
    assert "[]" == passy("list", "--json").stdout.strip()
    assert 1 == passy("delete", made["id"]).exit_code


def test_a_key_may_last_for_years(passy: Passy) -> None:
    assert created(passy, "--expires", "800d")["expires"] > "2028"


def test_an_unknown_organisation_ends_with_1(passy: Passy) -> None:
    result = passy("create", "--organisation", "org_nowhere")
    assert (1, True) == (result.exit_code, "org_nowhere" in result.stderr)


def test_a_database_out_of_reach_ends_with_69(passy: Passy) -> None:
    Path("books.db").mkdir()
    result = passy("list")
    assert (69, True) == (result.exit_code, "books.db" in result.stderr)


@pytest.mark.parametrize("given", ["", "too short"])
def test_a_bad_secret_key_ends_with_78(
    passy: Passy, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("PASSY_SECRET_KEYS", given)
    result = passy("list")
    assert (78, True) == (result.exit_code, "PASSY_SECRET_KEYS" in result.stderr)


def test_another_secret_key_than_the_books_ends_with_78(
    passy: Passy, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(passy)
    monkeypatch.setenv("PASSY_SECRET_KEYS", "another secret key than there was: 42")
    assert 78 == passy("list").exit_code


def test_a_configuration_without_a_store_of_keys_ends_with_78(passy: Passy) -> None:
    Path("gateway.yaml").write_text("stores: {state: {kind: memory}}")
    result = passy("list")
    assert (78, True) == (result.exit_code, "--url" in result.stderr)
    assert 0 == passy("list", "--url", "sqlite:///other.db").exit_code


def test_a_mistake_in_the_configuration_is_located(passy: Passy) -> None:
    Path("gateway.yaml").write_text("stores:\n  books: {kind: sql, ulr: x}\n")
    result = passy("list")
    assert 78 == result.exit_code
    assert "gateway.yaml:2:" in result.stderr


def test_help_names_values_as_they_can_be_written(passy: Passy) -> None:
    words = passy("create", "--help").output
    for option, value in (("--requests", "60/min"), ("--tokens", "100k/min"), ("--limit", "12")):
        assert f"{option} {value if option != '--limit' else 'DOLLARS'} " in words
        created(passy, option, value)
    assert "--expires 30d|DATE " in words
    created(passy, "--expires", "30d")
    refused = passy("create", "--expires", "2030-13-45")
    assert 2 == refused.exit_code
    assert "'2030-13-45' is not understood; write 30d, 12h, or a date like 2030-01-31" in (
        refused.output
    )


def test_a_name_cannot_move_the_cursor_of_whoever_looks(passy: Passy) -> None:
    made = created(passy, "--name", "a\x1b[31mb\rc\u202e")
    for arguments in (["list"], ["show", made["id"]]):
        # As on a terminal, where escape sequences are passed on.
        shown = CliRunner().invoke(command, arguments, color=True).output
        assert "a\ufffd[31mb\ufffdc\ufffd" in shown.replace("\n", "")
        assert not {"\x1b", "\r", "\u202e"} & set(shown)


def test_a_list_leaves_nothing_out(passy: Passy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = created(passy, "--name", "ü" * 70)
    listed = passy("list").output
    assert f" {made['id']}   {made['shown']} " in listed
    assert 70 == listed.count("ü")


def test_K3_a_key_in_place_of_its_id_is_not_repeated(passy: Passy) -> None:
    key = created(passy)["key"]
    for arguments in (["show"], ["disable"], ["roll"], ["delete"], ["change", "--enable"]):
        refused = passy(*arguments, key)
        assert 1 == refused.exit_code
        assert key not in refused.output
        assert "a key is known by its id, which begins with key_" in refused.output
