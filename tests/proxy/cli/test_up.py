"""`passy up`: the first run, the runs after it, and what they show."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passy_proxy.cli.up import ourselves
from passy_proxy.place import CHECKOUT

Start = Callable[..., Any]


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")

UP = """
listen: 127.0.0.1:LISTEN
stores: {books: {kind: sql, url: "sqlite:///books.db"}}
upstreams: {echo: {kind: echo}}
chains: {default: [access_log, auth: {directory: books}, alias, fallback]}
routes: [{match: POST /v1/chat/completions}]
"""


def up_said(running: Any) -> dict[str, Any]:
    assert running.process.stdout is not None
    # To the end: the line is all that is written there, and logs go elsewhere.
    told: dict[str, Any] = json.loads(running.process.stdout.read())
    return told


def test_the_first_run_makes_a_key_and_every_run_asks_itself(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0"))
    first = start("up", "--json")
    told = up_said(first)
    assert told["key"].startswith("sk-passy-")
    assert f"{told['url']}/v1" == told["base_url"]
    assert (200, ["echo"]) == (told["first_request"], told["models"])
    assert 0 == first.stop()
    second = start("up", "--json")
    told = up_said(second)
    assert (None, 200) == (told["key"], told["first_request"])
    assert 0 == second.stop()
    assert '"path":"/v1/chat/completions"' in second.errors


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
    assert "1 token in, 1 out" in text


def test_a_checkout_is_told_of_its_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert "./passy" == ourselves()
    monkeypatch.chdir(tmp_path)
    assert "passy" == ourselves()


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


def shown(running: Any) -> str:
    """The whole banner."""
    assert running.process.stdout is not None
    seen = b""
    while b"Ctrl-C" not in seen:
        line = running.process.stdout.readline()
        assert line, running.errors
        seen += line
    return seen.decode()


def test_a_later_run_shows_an_answer_and_how_to_make_another_key(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0"))
    assert "shown this once" in shown(start("up"))
    text = shown(start("up"))
    assert "  key      another one: passy keys create\n" in text
    assert "first request   echo → 200 in" in text


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (":0", "http://127.0.0.1:"),
        ("0.0.0.0:0", "http://127.0.0.1:"),
        pytest.param("[::1]:0", "http://[::1]:", marks=needs_ipv6),
        pytest.param("[::]:0", "http://[::1]:", marks=needs_ipv6),
    ],
)
def test_it_listens_where_it_is_told_to_and_says_where(
    start: Start, tmp_path: Path, listen: str, url: str
) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0"))
    told = up_said(start("up", "--json", "--listen", listen))
    assert told["url"].startswith(url)
    assert 0 != int(told["url"].rpartition(":")[2])
    assert 200 == told["first_request"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("auth: {directory: books}, ", ""), ('kind: sql, url: "sqlite:///books.db"', "kind: memory")],
)
def test_it_asks_itself_without_a_store_that_makes_keys_too(
    start: Start, tmp_path: Path, old: str, new: str
) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0").replace(old, new))
    assert 200 == up_said(start("up", "--json"))["first_request"]


def test_without_an_echo_it_asks_what_costs_nothing(start: Start, tmp_path: Path) -> None:
    text = UP.replace("LISTEN", "0").replace("echo: {kind: echo}", 'a: {url: "http://127.0.0.1:9"}')
    (tmp_path / "gateway.yaml").write_text(text)
    assert "first request   alive → 200 in" in shown(start("up"))


def test_three_at_once_all_come_up_and_one_of_them_has_the_key(
    start: Start, tmp_path: Path, taken: int
) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", str(taken)))
    told = [up_said(one) for one in [start("up", "--json") for _ in range(3)]]
    assert [200] * 3 == [one["first_request"] for one in told]
    assert 3 == len({one["url"] for one in told})
    assert 1 == sum(one["key"] is not None for one in told)


def test_a_store_out_of_reach_ends_with_69_and_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0"))
    (tmp_path / "books.db").mkdir()
    code, errors = start("up").ends()
    assert (69, 1) == (code, len(errors.splitlines())), errors
    assert errors.startswith("passy: the store books could not be started: books.db: ")


def test_D3_up_says_that_its_database_is_away_and_serves(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(UP.replace("LISTEN", "0"))
    first = start("up", "--json")
    up_said(first)
    assert 0 == first.stop()
    for file in tmp_path.glob("books.db*"):
        file.rename(file.with_name("away-" + file.name))
    (tmp_path / "books.db").mkdir()
    again = start("up", "--json")
    again.until(lambda: "but a store is away: " in again.errors)
    assert 0 == again.stop()
    assert "Traceback" not in again.errors
