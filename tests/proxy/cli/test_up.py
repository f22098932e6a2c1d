"""`passy up`: the first run, the runs after it, and what they show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Start = Callable[..., Any]

UP = """
listen: 127.0.0.1:LISTEN
stores: {books: {kind: sql, url: "sqlite:///books.db"}}
upstreams: {echo: {kind: echo}}
chains: {default: [auth: {directory: books}, alias, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""


def up_said(running: Any) -> dict[str, Any]:
    assert running.process.stdout is not None
    told: dict[str, Any] = json.loads(running.process.stdout.readline())
    return told


def test_the_first_run_makes_a_key_that_answers_and_the_second_does_not(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0"))
    first = start("up", "--json")
    told = up_said(first)
    assert told["key"].startswith("sk-passy-")
    assert f"{told['url']}/v1" == told["base_url"]
    assert (200, ["echo"]) == (told["first_request"], told["models"])
    assert 0 == first.stop()
    second = start("up", "--json")
    told = up_said(second)
    assert (None, None) == (told["key"], told["first_request"])
    assert 0 == second.stop()


def test_a_taken_port_moves_on_to_the_next(start: Start, tmp_path: Path, taken: int) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", str(taken)))
    running = start("up")
    assert running.process.stdout is not None
    lines = [running.process.stdout.readline().decode() for _ in range(9)]
    text = "".join(lines)
    port = int(re.findall(r"gateway +http://127\.0\.0\.1:(\d+)/v1", text)[0])
    assert taken < port < taken + 20
    assert f"port {taken} is taken, so it is {port}" in text
    assert "first request   echo → 200 in" in text


def test_without_a_terminal_there_is_no_colour(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0"))
    running = start("up")
    assert running.process.stdout is not None
    seen = b""
    while b"Ctrl-C" not in seen:
        line = running.process.stdout.readline()
        assert line, running.errors
        seen += line
    assert b"\x1b" not in seen
    assert all(len(line.decode()) <= 110 for line in seen.splitlines())
    assert 0 == running.stop()


def test_up_with_a_wrong_configuration_ends_with_78(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0").replace("alias", "allias"))
    code, errors = start("up").ends()
    assert 78 == code
    assert "did you mean 'alias'?" in errors
