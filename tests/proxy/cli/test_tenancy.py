"""`passy organisations`, `teams`, `users`, `budgets` and `webhooks`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from passy_proxy.cli import cli

Passy = Callable[..., Result]


@pytest.fixture
def passy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Passy:
    """Runs `passy` in a folder with a configuration that names a store of keys."""
    monkeypatch.chdir(tmp_path)
    for name in ("PASSY_CONFIG", "PASSY_SECRET_KEYS", "PASSY_DATA", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    Path("gateway.yaml").write_text('stores: {books: {kind: sql, url: "sqlite:///books.db"}}\n')

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, arguments)

    return run


def told(passy: Passy, *arguments: str) -> Any:
    result = passy(*arguments, "--json")
    assert 0 == result.exit_code, result.output
    return json.loads(result.stdout)


def test_a_tree_is_made_changed_and_deleted(passy: Passy) -> None:
    acme = told(passy, "organisations", "create", "Acme", "--requests", "600/min")["id"]
    team = told(passy, "teams", "create", acme, "Research", "--models", "gpt-*, claude-*")
    assert (acme, ["gpt-*", "claude-*"]) == (team["organisation"], team["models"])
    user = told(passy, "users", "create", "Ada@Example.com", "--name", "Ada")
    assert "ada@example.com" == user["email"]
    placed = told(passy, "users", "place", user["id"], acme, "admin")
    assert "admin" == placed["role"]
    assert [user] == told(passy, "users", "list", "--organisation", acme)
    key = told(
        passy,
        "keys",
        "create",
        "--organisation",
        acme,
        "--team",
        team["id"],
        "--user",
        user["id"],
        "--tags",
        "blue, green",
    )
    assert (team["id"], user["id"], ["blue", "green"]) == (
        key["team"],
        key["user_id"],
        key["tags"],
    )
    changed = told(passy, "teams", "change", team["id"], "--no", "models", "--status", "disabled")
    assert (None, "disabled") == (changed["models"], changed["status"])
    changed = told(passy, "organisations", "change", acme, "--byok", "own_only", "--name", "Ace")
    assert ("own_only", "Ace", {"amount": 600, "seconds": 60}) == (
        changed["byok"],
        changed["name"],
        changed["limits"]["requests"],
    )
    assert "600/min requests" in passy("organisations", "show", acme).output
    assert told(passy, "organisations", "delete", acme)["deleted"]
    assert [] == told(passy, "organisations", "list")
    assert [] == told(passy, "teams", "list")
    assert [] == told(passy, "keys", "list")
    assert [user] == told(passy, "users", "list")


def test_organisations_have_a_short_name_too(passy: Passy) -> None:
    made = told(passy, "orgs", "create", "Acme")
    assert [made["id"]] == [each["id"] for each in told(passy, "organizations", "list")]


def test_budgets_are_set_and_shown(passy: Passy) -> None:
    acme = told(passy, "organisations", "create", "Acme")["id"]
    made = told(passy, "budgets", "add", "organisation", acme, "--usd", "100.5", "--alerts", "90")
    assert (100.5, "usd", "month", True, [90]) == (
        made["amount"],
        made["unit"],
        made["period"],
        made["hard"],
        made["alerts"],
    )
    other = told(
        passy, "budgets", "add", "organisation", acme, "--tokens", "10M", "--per", "day", "--soft"
    )
    assert (10_000_000, "tokens", False) == (other["amount"], other["unit"], other["hard"])
    assert 2 == len(told(passy, "budgets", "list", "--of", acme))
    changed = told(passy, "budgets", "change", made["id"], "--usd", "200", "--soft")
    assert (200, False, [90]) == (changed["amount"], changed["hard"], changed["alerts"])
    assert "$200" in passy("budgets", "list").output
    assert told(passy, "budgets", "remove", other["id"])["removed"]
    assert [changed] == told(passy, "budgets", "list")


def test_a_webhook_shows_its_secret_once(passy: Passy) -> None:
    made = told(passy, "webhooks", "add", "https://example.com/hook")
    assert made["secret"].startswith("whsec_")
    [listed] = told(passy, "webhooks", "list")
    assert "secret" not in listed
    assert made["id"] == listed["id"]
    assert "all" in passy("webhooks", "list").output
    assert told(passy, "webhooks", "remove", made["id"])["removed"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["teams", "create", "org_nowhere", "x"], 1),
        (["teams", "show", "team_nowhere"], 1),
        (["teams", "change", "team_nowhere", "--name", "x"], 1),
        (["teams", "change", "team_nowhere"], 2),
        (["teams", "delete", "team_nowhere"], 1),
        (["users", "create", "no address"], 1),
        (["users", "place", "user_nowhere", "org_nowhere", "king"], 2),
        (["users", "place", "user_nowhere", "org_nowhere", "owner"], 1),
        (["budgets", "add", "team", "team_nowhere", "--usd", "1"], 1),
        (["budgets", "add", "planet", "x", "--usd", "1"], 2),
        (["budgets", "add", "team", "x"], 2),
        (["budgets", "add", "team", "x", "--usd", "nan"], 2),
        (["budgets", "change", "bud_nowhere", "--usd", "1"], 1),
        (["budgets", "remove", "bud_nowhere"], 1),
        (["webhooks", "add", "ftp://example.com"], 1),
        (["webhooks", "remove", "hook_nowhere"], 1),
        (["organisations", "delete", "org_nowhere"], 1),
    ],
)
def test_what_cannot_be_done_is_said(passy: Passy, arguments: list[str], code: int) -> None:
    result = passy(*arguments)
    assert code == result.exit_code, result.output
    assert "Traceback" not in result.output


def test_empty_lists_say_what_to_do(passy: Passy) -> None:
    for name in ("organisations", "teams", "users", "budgets", "webhooks"):
        assert f"try: passy {name}" in passy(name, "list").output
