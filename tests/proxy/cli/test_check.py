"""`passy check`: every problem with its place, for people and for programs, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from passy_proxy.cli import main
from passy_proxy.cli.check import command

Passy = Callable[..., Result]

GOOD = """
upstreams: {echo: {kind: echo}}
chains: {default: [alias, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""
BAD = """
lisen: 127.0.0.1:0
upstreams: {echo: {kind: echo, wrong: 1}}
chains: {default: [alias, fallback]}
routes: [{match: POST /v1/chat/completions, body_limit: many}]
"""
UNFIT = """
upstreams: {echo: {kind: ecko}}
chains: {default: [fallback, alias, {cors: {origin: "*"}}]}
routes: [{match: POST /v1/chat/completions, chain: defalt}]
"""


@pytest.fixture
def passy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Passy:
    """Runs `passy check …` in a folder with a good and a bad configuration, and no environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("PASSY_SECRET_KEYS", "PASSY_CONFIG", "PASSY_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OPENAI", "ANTHROPIC", "NEBIUS", "DEEPINFRA"):
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)
    Path("gateway.yaml").write_text(GOOD)
    Path("bad.yaml").write_text(BAD)
    return lambda *arguments: CliRunner().invoke(command, list(arguments))


def test_a_good_configuration_exits_0_and_says_so_in_a_line(passy: Passy) -> None:
    result = passy()
    assert (0, "✓ gateway.yaml can run\n") == (result.exit_code, result.stdout)


def test_checking_writes_nothing(passy: Passy) -> None:
    before = sorted(Path().rglob("*"))
    passy()
    passy("bad.yaml")
    assert before == sorted(Path().rglob("*"))


def test_a_bad_one_exits_78_and_tells_all_that_is_wrong_with_its_place(passy: Passy) -> None:
    result = passy("bad.yaml")
    assert 78 == result.exit_code
    assert "" == result.stdout
    for said in (
        "bad.yaml:2:1: error: unknown setting 'lisen'; did you mean 'listen'?",
        "    lisen: 127.0.0.1:0\n    ^",
        "bad.yaml:5:57: error: 'many' is not understood",
        "problems in the configuration",
    ):
        assert said in result.stderr


def test_what_plugins_are_told_is_looked_at_though_the_rest_is_wrong(passy: Passy) -> None:
    """A store that is wrong is complained of once, and a `direct` of upstreams that are not."""
    Path("bad.yaml").write_text("""
lisen: 127.0.0.1:0
stores: {state: {knd: memory}, books: {kind: sql, url: "sqlite:///x.db"}}
upstreams: {echo: {kind: echo, wrong: 1}, one: {ur: "https://x.test"}}
models: {m: {targets: [one/x], fallbackOn: []}}
chains:
  default: [auth: {directory: books, tl: 3s}, rate_limit: {counters: state, requsts: 5/s}, alias]
  through: [direct: {upstream: one}]
routes: [{match: POST /v1/chat/completions, chain: [cors: {origin: "*"}, fallback]}]
apps: {/portal: {app: portal, stor: books}}
""")
    result = passy("bad.yaml")
    assert 78 == result.exit_code
    found = [line for line in result.stderr.splitlines() if ": error: " in line]
    words = ["lisen", "knd", "wrong", "ur", "fallbackOn", "tl", "requsts", "origin", "stor"]
    assert words == [line.split("unknown setting '")[-1].split("'")[0] for line in found]


def test_what_does_not_fit_together_is_told_all_at_once_too(passy: Passy) -> None:
    Path("gateway.yaml").write_text(UNFIT)
    result = passy()
    assert 78 == result.exit_code
    for said in (
        "no kind of upstream is named 'ecko'; did you mean 'echo'?",
        "no chain is named 'defalt'; did you mean 'default'?",
        "unknown setting 'origin'; did you mean 'origins'?",
    ):
        assert said in result.stderr


def test_programs_get_the_problems_as_json(passy: Passy) -> None:
    assert (0, []) == (passy("--json").exit_code, json.loads(passy("--json").stdout))
    result = passy("bad.yaml", "--json")
    assert 78 == result.exit_code
    problems = json.loads(result.stdout)
    assert len(problems) > 1
    assert {"error"} == {problem["severity"] for problem in problems}
    [first] = [problem for problem in problems if "lisen" in problem["message"]]
    assert (2, 1) == (first["line"], first["column"])
    assert "bad.yaml" in str(first)


def test_what_is_left_out_is_a_warning_and_can_run(passy: Passy) -> None:
    Path("gateway.yaml").write_text(
        GOOD.replace(
            "echo: {kind: echo}",
            'echo: {kind: echo}, x: {dialect: openai, url: "https://x.test/v1", '
            'credential: "${X_KEY:-}"}',
        )
    )
    result = passy()
    assert 0 == result.exit_code
    assert "warning: the upstream 'x' is left out" in result.stderr
    assert "set X_KEY" in result.stderr
    [problem] = json.loads(passy("--json").stdout)
    assert "warning" == problem["severity"]


def test_a_file_that_is_not_there_exits_78(passy: Passy) -> None:
    result = passy("nowhere.yaml")
    assert 78 == result.exit_code
    assert "there is no configuration at nowhere.yaml" in result.stderr


def test_a_direct_upstream_that_does_not_exist_is_found(passy: Passy) -> None:
    Path("gateway.yaml").write_text(GOOD.replace("alias, fallback", "direct: {upstream: ecko}"))
    result = passy()
    assert 78 == result.exit_code
    assert "no upstream is named 'ecko'; there are echo" in result.stderr


def test_the_built_in_configuration_is_good(passy: Passy) -> None:
    Path("gateway.yaml").unlink()
    result = passy()
    assert 0 == result.exit_code
    assert "the built-in configuration can run" in result.stdout


def test_secret_keys_that_are_no_good_are_said(
    passy: Passy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSY_SECRET_KEYS", "abc")
    result = passy()
    assert 78 == result.exit_code
    assert "PASSY_SECRET_KEYS" in result.stderr


def test_a_folder_nobody_may_look_into_is_said_in_a_line(
    passy: Passy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/somebody's/secret.key")

    monkeypatch.setattr("passy_proxy.cli.check.placed", closed)
    monkeypatch.setattr("sys.argv", ["passy", "check"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert 1 == ended.value.code
    assert "passy: /somebody's/secret.key: Permission denied\n" == capsys.readouterr().err
