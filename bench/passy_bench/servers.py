"""Programs the bench starts: each in a session of its own, stopped by its pid whatever happens."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from passy_bench.machine import pinned

_START_LIMIT = 60.0
_STOP_LIMIT = 3.0
_POLL = 0.002
_LAST_WORDS = 600

#: Nothing of the caller's environment (keys, proxies, settings) reaches a measured program.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}


class BenchError(Exception):
    """A measurement could not be made; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run: command, folder to run in (its output goes to `output.log` there), core, and
    the account, if it is not our own."""

    command: Sequence[str]
    folder: Path
    env: Mapping[str, str]
    core: int | None
    owner: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def running(program: Program) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program in the block; on leaving, it and everything it started is ended."""
    with (program.folder / "output.log").open("wb") as output, pinned(program.core):
        child = subprocess.Popen(
            program.command,
            cwd=program.folder,
            env={**ENVIRONMENT, "HOME": str(program.folder), **program.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **program.owner,
        )
    try:
        yield child
    finally:
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the process group that `child` leads: politely, then at once."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_LIMIT)
    finally:  # also when interrupted again; and the rest of the group may outlive its leader
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def first_answer(
    child: subprocess.Popen[bytes], log: Path, url: str, request: tuple[str, Mapping[str, str]]
) -> None:
    """Ask until `url` answers 200. Raises BenchError with the end of the log when it does not."""
    deadline = time.monotonic() + _START_LIMIT
    seen = "no answer"
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise BenchError(f"ended with {child.returncode}: {last_words(log)}")
        with suppress(OSError, http.client.HTTPException):
            status, answer = ask(url, *request)
            if status == 200:
                return
            seen = f"{status} {answer[:300]!r}"
        time.sleep(_POLL)
    raise BenchError(f"no 200 within {_START_LIMIT:.0f} s, last {seen}: {last_words(log)}")


def ask(url: str, body: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """POST once; the status and the whole body."""
    where = urlsplit(url)
    kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
    connection = kind(where.hostname or "", where.port, timeout=_START_LIMIT)
    try:
        sent = {"content-type": "application/json", **headers}
        connection.request("POST", where.path, body.encode(), sent)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:])[-_LAST_WORDS:] or "no output"
