"""`passy` as a process of its own, for the commands that run until they are told to stop."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

LIMIT = 60.0
"""Seconds for anything to happen: far more than it takes."""


class Running:
    """`passy` with some arguments, in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        names = ("PATH", "HOME", "PYTHONPATH")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        self.log = folder / f"stderr-{time.monotonic_ns()}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from passy_proxy.cli import main; main()", *arguments],
                cwd=folder,
                env={**kept, "PASSY_DATA": "data", **variables},
                stdout=subprocess.PIPE,
                stderr=log,
            )

    @property
    def errors(self) -> str:
        return self.log.read_text()

    def until(self, met: Callable[[], Any]) -> Any:
        """What ``met`` says as soon as it is something; it may raise OSError until then."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            try:
                if found := met():
                    return found
            except (OSError, http.client.HTTPException):
                pass
            assert self.process.poll() is None, self.errors
            time.sleep(0.02)
        raise AssertionError(f"it did not happen\n{self.errors}")

    @property
    def port(self) -> int:
        pattern = r"listening on http://[\w.\[\]:]+:(\d+)"
        return int(self.until(lambda: re.search(pattern, self.errors))[1])

    def said(self) -> str:
        """What the gateway answers now; OSError while it does not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request("GET", "/said")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def answers(self, word: str) -> None:
        self.until(lambda: word == self.said())

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> int:
        if sent == signal.SIGTERM:
            terminate(self.process)
        else:
            self.process.send_signal(sent)
        return self.process.wait(LIMIT)

    def ends(self) -> tuple[int, str]:
        """Exit code and standard error of one that does not stay."""
        code = self.process.wait(LIMIT)
        return code, self.errors


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `passy` with arguments, in an empty folder; what still runs at the end is killed."""
    with ExitStack() as stack:

        def make(*arguments: str, **variables: str) -> Running:
            running = Running(tmp_path, *arguments, **variables)
            stack.callback(end, running.process)
            return running

        yield make


def terminate(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and another: nobody needs the lame-duck time here."""
    process.terminate()
    time.sleep(0.1)  # Two at once are one.
    process.terminate()


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        terminate(process)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]
