"""`passy serve` as a process: where it listens, what signals do, how it fails."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from harness.ports import free_port

from passy_proxy.cli.serve import command
from passy_proxy.config.build import build
from passy_proxy.supervisor import Supervisor

Start = Callable[..., Any]

CONFIGURATION = """
listen: 127.0.0.1:0
chains: {default: [static: {body: "WORD"}]}
routes: [{match: GET /said}]
"""


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(CONFIGURATION.replace("WORD", "first"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_answers_and_a_term_signal_ends_it_with_0(start: Start, workers: str) -> None:
    # Of those that nobody else is given as soon as it is free.
    running = start("serve", "--workers", workers, "--listen", f"127.0.0.1:{free_port()}")
    running.answers("first")
    assert 0 == running.stop()
    assert "Traceback" not in running.errors
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), timeout=60)


def test_a_configuration_is_built_once_before_workers_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def counting(file: Any, parts: Any, hash: str) -> Any:
        built.append(hash)
        return build(file, parts, hash)

    def ended(supervisor: Supervisor) -> int:
        for one in (*supervisor._listening, supervisor._woken, supervisor._wake):
            one.close()
        for worker in supervisor.workers:
            worker.slot.close()
        return 0

    monkeypatch.setattr("passy_proxy.config.build.build", counting)
    monkeypatch.setattr(Supervisor, "run", ended)
    place = ["--config", str(tmp_path / "gateway.yaml"), "--data", str(tmp_path / "data")]
    ran = CliRunner().invoke(command, [*place, "--workers", "1"])
    assert (0, None) == (ran.exit_code, ran.exception), ran.output
    assert 1 == len(built)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_ends_it_with_130(start: Start, workers: str) -> None:
    running = start("serve", "--workers", workers)
    running.answers("first")
    assert 130 == running.stop(signal.SIGINT)
    assert "Traceback" not in running.errors


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_hangup_signal_reloads(start: Start, workers: str) -> None:
    running = start("serve", "--workers", workers)
    running.answers("first")
    running.process.send_signal(signal.SIGHUP)
    # A second worker may still be on its way up, and then reads the file anyway.
    running.until(lambda: '"reloaded"' in running.errors)
    running.answers("first")
    assert 0 == running.stop()


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_a_log_that_was_moved_away_is_opened_anew(start: Start, workers: tuple[str, ...]) -> None:
    running = start("serve", *workers)
    running.answers("first")
    moved = running.log.rename(running.log.with_suffix(".1"))
    running.process.send_signal(signal.SIGUSR1)
    running.until(lambda: running.log.exists())
    for process in (running.process.pid, *children(running.process.pid)):
        own = Path(f"/proc/{process}/fd/2")
        running.until(lambda own=own: own.resolve() == running.log)
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: '"reloaded"' in running.errors)
    assert '"reloaded"' not in moved.read_text()
    assert 0 == running.stop()


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_changed_file_is_taken_up_without_a_signal(start: Start, tmp_path: Path) -> None:
    running = start("serve")
    running.answers("first")
    (tmp_path / "gateway.yaml").write_text(CONFIGURATION.replace("WORD", "second"))
    running.answers("second")


def test_a_reload_that_is_wrong_leaves_the_old_one_serving(start: Start, tmp_path: Path) -> None:
    running = start("serve")
    running.answers("first")
    (tmp_path / "gateway.yaml").write_text("listen: [\n")
    running.process.send_signal(signal.SIGHUP)
    running.until(lambda: "reload_refused" in running.errors)
    assert "first" == running.said()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_said_in_one_line(start: Start, taken: int, workers: str) -> None:
    running = start("serve", "--listen", f"127.0.0.1:{taken}", "--workers", workers)
    code, errors = running.ends()
    assert 1 == code
    assert (
        f"passy: cannot listen on 127.0.0.1:{taken}: address already in use; "
        "try: passy serve --listen :0\n"
    ) == errors


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_store_out_of_reach_ends_with_69(start: Start, tmp_path: Path, workers: str) -> None:
    books = 'stores: {books: {kind: sql, url: "sqlite:///books.db"}}\n'
    (tmp_path / "gateway.yaml").write_text(books + CONFIGURATION)
    (tmp_path / "books.db").mkdir()
    code, errors = start("serve", "--workers", workers).ends()
    assert 69 == code, errors
    assert "passy: the store books could not be started: books.db: " in errors
    assert "Traceback" not in errors
    assert "Application startup failed" not in errors


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"PASSY_DATA": "gateway.yaml"},
            "the data folder gateway.yaml cannot be used: File exists",
        ),
        (
            {"PASSY_SECRET_KEYS_FILE": "."},
            "the file that PASSY_SECRET_KEYS_FILE names cannot be read: not a regular file",
        ),
        (
            {"PASSY_LOG_LEVEL": "loud"},
            "PASSY_LOG_LEVEL='loud' is none of debug, info, warning, error",
        ),
    ],
)
def test_an_environment_that_is_wrong_is_said_in_a_line(
    start: Start, variables: dict[str, str], words: str
) -> None:
    code, errors = start("serve", **variables).ends()
    assert 78 == code, errors
    assert words in errors
    assert "Traceback" not in errors


AWAY = "postgresql://passy:a-password-of-ours@127.0.0.1:1/passy"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_D4_a_first_start_with_a_server_that_is_not_there_ends_with_69(
    start: Start, tmp_path: Path, workers: str
) -> None:
    books = f'stores: {{books: {{kind: sql, url: "{AWAY}", start_timeout: 500ms}}}}\n'
    (tmp_path / "gateway.yaml").write_text(books + CONFIGURATION)
    code, errors = start("serve", "--workers", workers).ends()
    assert 69 == code, errors
    assert "passy: the store books could not be started: postgresql://127.0.0.1:1/passy" in errors
    assert "waiting_for_store" in errors
    assert "a-password" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
def test_D4_who_waits_for_a_server_can_be_told_to_stop(
    start: Start, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    books = f'stores: {{books: {{kind: sql, url: "{AWAY}", start_timeout: 1h}}}}\n'
    (tmp_path / "gateway.yaml").write_text(books + CONFIGURATION)
    running = start("serve", *arguments)
    running.until(lambda: "waiting_for_store" in running.errors)
    running.process.terminate()
    assert 0 == running.ends()[0]
    assert "Traceback" not in running.errors


def test_the_data_folder_is_for_its_owner_alone(start: Start, tmp_path: Path) -> None:
    running = start("serve")
    running.answers("first")
    assert 0o700 == (tmp_path / "data").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("log: {level: warning}\n", '"settings":["log"]'),
        ("edge: {max_headers: 50}\n", '"settings":["edge"]'),
    ],
)
def test_a_reload_names_what_needs_a_restart(
    start: Start, tmp_path: Path, added: str, named: str
) -> None:
    running = start("serve")
    running.answers("first")
    (tmp_path / "gateway.yaml").write_text(added + CONFIGURATION.replace("WORD", "second"))
    running.answers("second")
    [line] = [line for line in running.errors.splitlines() if "restart_needed" in line]
    assert named in line.replace(" ", "")


def test_the_environment_says_where_to_listen(start: Start, taken: int) -> None:
    code, errors = start("serve", PORT=str(taken), HOST="localhost").ends()
    assert 1 == code
    assert f"cannot listen on localhost:{taken}" in errors


def test_the_option_wins_over_the_environment(start: Start, taken: int) -> None:
    running = start("serve", "--listen", "127.0.0.1:0", PORT=str(taken))
    running.answers("first")


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:70000", "127.0.0.1:x"])
def test_an_address_that_is_none_is_wrong_usage(start: Start, listen: str) -> None:
    code, errors = start("serve", "--listen", listen).ends()
    assert 2 == code
    assert "Traceback" not in errors
    assert listen in errors


def test_a_name_that_nobody_has_is_said(start: Start) -> None:
    code, errors = start("serve", "--listen", "no-such-host.invalid:8080").ends()
    assert 1 == code
    assert "cannot listen on no-such-host.invalid:8080" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("text", "said", "workers"),
    [
        ("listen: [\n", "gateway.yaml:", "1"),
        ("lisen: 127.0.0.1:0\n", "did you mean 'listen'?", "1"),
        (CONFIGURATION.replace("static", "sttic"), "no filter is named 'sttic'", "1"),
        (CONFIGURATION.replace("static", "sttic"), "no filter is named 'sttic'", "2"),
    ],
)
def test_without_a_configuration_that_ever_worked_it_ends_with_78(
    start: Start, tmp_path: Path, text: str, said: str, workers: str
) -> None:
    (tmp_path / "gateway.yaml").write_text(text)
    code, errors = start("serve", "--workers", workers).ends()
    assert 78 == code
    assert said in errors
    assert "1 problem in the configuration" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("broken", "workers"),
    [
        ("listen: [\n", "1"),
        ("listen: [\n", "2"),
        (CONFIGURATION.replace("static", "sttic"), "1"),
    ],
)
def test_it_starts_with_the_last_configuration_that_worked(
    start: Start, tmp_path: Path, broken: str, workers: str
) -> None:
    first = start("serve")
    first.answers("first")
    assert 0 == first.stop()
    (tmp_path / "gateway.yaml").write_text(broken)
    again = start("serve", "--workers", workers)
    again.answers("first")
    assert "gateway.yaml:" in again.errors
    assert "serving with the last configuration that worked" in again.errors


def test_a_missing_file_ends_with_78(start: Start) -> None:
    code, errors = start("serve", "--config", "nowhere.yaml").ends()
    assert 78 == code
    assert "there is no configuration at nowhere.yaml" in errors


def test_weak_secret_keys_end_with_78(start: Start) -> None:
    code, errors = start("serve", PASSY_SECRET_KEYS="short").ends()
    assert 78 == code
    assert "PASSY_SECRET_KEYS" in errors
    assert "Traceback" not in errors
    assert "short\n" not in errors


def test_check_only_checks(start: Start, tmp_path: Path) -> None:
    running = start("serve", "--check")
    assert (0, "") == running.ends()
    assert not (tmp_path / "data").exists()
