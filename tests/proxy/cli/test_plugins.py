"""`passy plugins`: what is installed, and what each can be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from passy_proxy.cli.plugins import command
from passy_proxy.registry import Registry

Passy = Callable[..., Result]


@pytest.fixture
def passy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *arguments: CliRunner().invoke(command, list(arguments))


def told(result: Result) -> list[dict[str, Any]]:
    assert 0 == result.exit_code, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_every_installed_plugin_has_a_line(passy: Passy) -> None:
    result = passy()
    assert 0 == result.exit_code
    firsts = [line.split(" ")[0] for line in result.stdout.splitlines()]
    assert set(Registry().installed()) <= set(firsts)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_the_terminal(
    passy: Passy, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in ((), ("fallback",), ("sql",)):
        result = passy(*arguments)
        assert 0 == result.exit_code
        assert all(len(line) <= width for line in result.stdout.splitlines())


def test_each_setting_is_described_with_its_default(passy: Passy) -> None:
    [plugin] = told(passy("rate_limit", "--json"))
    [part] = plugin["parts"]
    assert ("filter", "rate_limit", "stable") == (part["kind"], part["name"], part["status"])
    settings = part["settings"]
    assert {"counters", "per", "requests", "tokens", "concurrency"} <= settings.keys()
    assert "default" not in settings["counters"]
    assert ["key"] == settings["per"]["default"]
    assert all(setting["description"] for setting in settings.values())


def test_what_nobody_writes_is_not_shown_as_a_setting(passy: Passy) -> None:
    assert {"ttl", "directory"} <= told(passy("auth", "--json"))[0]["parts"][0]["settings"].keys()
    assert "keyring" not in passy("auth").stdout
    assert ["vault", "on_error", "hook_timeout"] == list(
        told(passy("models", "--json"))[0]["parts"][0]["settings"]
    )
    assert "no settings" in passy("openai").stdout


def test_people_see_defaults_as_they_are_written(passy: Passy) -> None:
    text = passy("auth").stdout
    assert "ttl              30s" in text
    assert "directory        needed" in text
    assert "per               [key] " in passy("rate_limit").stdout


def test_all_of_them_can_be_shown(passy: Passy) -> None:
    rows = told(passy("--json"))
    assert Registry().installed() == [row["name"] for row in rows]
    assert [] == [row for row in rows if "error" in row]
    for row in rows:
        assert row["version"]
        assert all(part["summary"] for part in row["parts"])
        assert 0 == passy(row["name"]).exit_code


def test_an_unknown_name_exits_1_and_names_those_there_are(passy: Passy) -> None:
    result = passy("nobody")
    assert 1 == result.exit_code
    assert "no plugin is named 'nobody'" in result.stderr
    assert "rate_limit" in result.stderr
