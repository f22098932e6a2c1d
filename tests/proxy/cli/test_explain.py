"""`passy explain`: the route, the chain and the targets of a request, as a tree and as data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from passy_proxy.cli.explain import command

Passy = Callable[..., Result]

CONFIGURATION = """\
upstreams:
  echo: {kind: echo}
  one: {dialect: openai, url: "https://one.test/v1"}
  unset: {dialect: openai, url: "https://two.test/v1", credential: "${NOT_SET:-}"}
models:
  both: {targets: [one/x, echo/echo], fallback_on: [5xx, timeout], timeout: 7s}
  never: [unset/x]
chains:
  default: [cors, auth, alias, fallback]
routes:
  - {match: POST /v1/chat/completions}
  - {match: "* /v1/files*", chain: [static], body: stream}
"""


@pytest.fixture
def passy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Passy:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("PASSY_SECRET_KEYS", "PASSY_CONFIG", "PASSY_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    Path("gateway.yaml").write_text(CONFIGURATION)
    return lambda *arguments: CliRunner().invoke(command, list(arguments))


def facts(result: Result) -> dict[str, Any]:
    assert 0 == result.exit_code, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_terminal_without_arrows_is_no_reason_to_fail(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from passy_proxy.cli import main; main()", "explain"]
    latin = {"PYTHONIOENCODING": "iso-8859-1", "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ran = subprocess.run(command, env=latin, cwd=tmp_path, capture_output=True, check=False)
    assert (0, b"") == (ran.returncode, ran.stderr)
    assert b"(the body is read) ? rate_limit" in ran.stdout


def test_the_chain_is_told_in_order_and_each_filter_with_its_place(passy: Passy) -> None:
    told = facts(passy("POST", "/v1/chat/completions", "--json"))
    assert ("POST /v1/chat/completions", "openai", "chat") == (
        told["route"],
        told["dialect"],
        told["operation"],
    )
    names = ["cors", "auth", "alias", "fallback"]
    assert names == [one["name"] for one in told["filters"]]
    assert all(one["place"].startswith("gateway.yaml:9:") for one in told["filters"])
    assert "fallback" == told["terminal"]


def test_each_phase_tells_who_acts_and_when_the_body_is_read(passy: Passy) -> None:
    phases = facts(passy("--json"))["phases"]
    assert ["cors", "auth", "(the body is read)", "alias"] == phases["on_request"]
    assert ["cors"] == phases["on_response"]
    assert [] == phases["on_event"]


def test_the_targets_of_a_model_are_told_in_order(passy: Passy) -> None:
    targets = facts(passy("--model", "both", "--json"))["targets"]
    assert ["one/x", "echo/echo"] == [one["target"] for one in targets]
    assert [7.0, 7.0] == [one["first_byte"] for one in targets]
    assert [["5xx", "timeout"]] * 2 == [one["fallback_on"] for one in targets]


def test_people_get_a_tree(passy: Passy) -> None:
    result = passy("--model", "both")
    assert 0 == result.exit_code
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert "POST /v1/chat/completions" == lines[0]
    assert any("on_request: cors → auth → (the body is read) → alias" in line for line in lines)
    assert any("1. one/x  head within 7 s, moves on after 5xx, timeout" in line for line in lines)
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("model", "said"),
    [("unheard-of", "404 model_not_found"), ("never", "503 no_healthy_target")],
)
def test_a_model_nobody_answers_is_told_with_what_the_client_gets(
    passy: Passy, model: str, said: str
) -> None:
    result = passy("--model", model)
    assert 0 == result.exit_code
    assert said in result.stdout


def test_the_method_may_be_left_out_and_any_is_any(passy: Passy) -> None:
    assert "* /v1/files*" == facts(passy("DELETE", "/v1/files/abc", "--json"))["route"]
    assert "POST /v1/chat/completions" == facts(passy("/v1/chat/completions", "--json"))["route"]
    assert facts(passy("post", "/v1/files", "--json"))["operation"] is None


def test_a_request_without_a_route_exits_1(passy: Passy) -> None:
    result = passy("GET", "/nowhere")
    assert 1 == result.exit_code
    assert "no route matches GET /nowhere" in result.stderr


def test_a_wrong_configuration_exits_78(passy: Passy) -> None:
    Path("gateway.yaml").write_text("routs: []\n")
    result = passy()
    assert 78 == result.exit_code
    assert "did you mean 'routes'?" in result.stderr


def test_explaining_writes_nothing(passy: Passy) -> None:
    passy("--model", "both")
    assert [Path("gateway.yaml")] == sorted(Path().rglob("*"))


def test_an_app_is_told_where_it_is(passy: Passy) -> None:
    secret = "${PASSY_SERVICE_SECRET-Yw9vUpkVgv6q0Pmg1EKM4x6NYb5wHd7e}"
    books = 'stores: {books: {kind: sql, url: "sqlite:///x.db"}}\n'
    app = f'apps:\n  /keys: {{app: keys, store: books, secret: "{secret}"}}\n'
    text = CONFIGURATION.replace("auth,", "auth: {directory: books},")
    Path("gateway.yaml").write_text(books + text + app)
    told = facts(passy("GET", "/keys/api/key_1", "--json"))
    assert ("keys", "/keys") == (told["app"], told["path"])
    assert told["place"].startswith("gateway.yaml:")
    assert "the app keys at /keys" in passy("GET", "/keys").stdout
    assert 0 != passy("GET", "/keyss").exit_code
