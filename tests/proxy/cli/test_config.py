"""`passy config import-env`: what it prints means what the environment meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from passy_proxy.cli.check import command as check
from passy_proxy.cli.config import command
from passy_proxy.cli.explain import command as explain

Passy = Callable[..., Result]

PROVIDERS = [
    {
        "id": "mine",
        "name": "Mine",
        "baseUrl": "https://mine.test",
        "authHeader": "x-key",
        "authPrefix": "Token ",
        "endpoints": {"chat": "/api/chat", "models": "/api/models"},
        "models": ["large", "small"],
        "timeout": 5000,
    }
]
ROUTING = [
    {
        "alias": "best",
        "targets": [
            {"provider": "mine", "model": "small", "priority": 2},
            {"provider": "mine", "model": "large", "priority": 1},
        ],
        "fallbackOn": ["5xx", "rate_limit"],
        "timeout": 1500,
    }
]
REST = """
chains: {default: [alias, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""


@pytest.fixture
def passy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Passy:
    """Runs `passy config import-env` with an environment of its own."""
    monkeypatch.chdir(tmp_path)
    names = ["PASSY_SECRET_KEYS", "PASSY_CONFIG", "PASSY_DATA", "XDG_DATA_HOME"]
    names += [f"{name}_API_KEY" for name in ("OPENAI", "ANTHROPIC", "NEBIUS", "DEEPINFRA", "MINE")]
    for name in (*names, "MINI_LLM_PROVIDERS", "MINI_LLM_ROUTING"):
        monkeypatch.delenv(name, raising=False)

    def run(**variables: str) -> Result:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(command, ["import-env"])

    return run


def explained(model: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(explain, ["--model", model, "--json"])
    assert 0 == result.exit_code, result.output
    targets: list[dict[str, object]] = json.loads(result.stdout)["targets"]
    return [{name: one[name] for name in one if name != "upstream"} for one in targets]


def test_what_is_printed_passes_the_check_and_means_the_same(
    passy: Passy, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("gateway.yaml").write_text(REST)
    variables = {
        "MINI_LLM_PROVIDERS": json.dumps(PROVIDERS),
        "MINI_LLM_ROUTING": json.dumps(ROUTING),
        "OPENAI_API_KEY": "sk-canary-openai",
        "NEBIUS_API_KEY": "canary-nebius",
        "MINE_API_KEY": "canary-mine",
    }
    result = passy(**variables)
    assert 0 == result.exit_code, result.output
    asked = ("best", "gpt-4o", "llama-70b", "llama-8b", "mine/large", "small")
    by_environment = {model: explained(model) for model in asked}
    assert ["mine/large", "mine/small"] == [one["target"] for one in by_environment["best"]]
    assert 1.5 == by_environment["best"][0]["first_byte"]

    monkeypatch.delenv("MINI_LLM_PROVIDERS")
    monkeypatch.delenv("MINI_LLM_ROUTING")
    Path("gateway.yaml").write_text(result.stdout + REST)
    checked = CliRunner().invoke(check, [])
    assert 0 == checked.exit_code, checked.output
    assert by_environment == {model: explained(model) for model in asked}


def test_no_secret_is_printed(passy: Passy) -> None:
    result = passy(OPENAI_API_KEY="sk-canary-openai", DEEPINFRA_API_KEY="canary-deepinfra")
    assert 0 == result.exit_code
    assert "canary" not in result.output
    assert "${OPENAI_API_KEY" in result.stdout


@pytest.mark.parametrize("value", ["[", "{}", '[{"id": 1}]', '[{"id": "x"}]', "null"])
def test_what_cannot_be_read_exits_78_and_names_the_variable(passy: Passy, value: str) -> None:
    result = passy(MINI_LLM_PROVIDERS=value)
    assert 78 == result.exit_code
    assert "MINI_LLM_PROVIDERS" in result.stderr


def test_an_environment_with_nothing_in_it_is_said_to_be_so(passy: Passy) -> None:
    result = passy()
    assert 0 == result.exit_code
    assert "nothing to import" in result.stderr
    assert "nothing to import" not in result.stdout
