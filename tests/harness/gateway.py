"""The gateway as its users meet it: its own process, scripted providers, unmodified clients."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from harness.ports import free_port
from passy_proxy.testing import ScriptedUpstream

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PASSY = Path(sys.executable).with_name("passy")
PATIENCE = 120.0
"""Seconds that anything here may take; only a hang takes so long."""

HOSTS = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "nebius": "https://api.studio.nebius.ai",
    "deepinfra": "https://api.deepinfra.com",
}


class Provider(ScriptedUpstream):
    """A scripted upstream whose loop runs in another thread, so that tests may block."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        """The result of something that happens in the upstream's loop."""

        async def bounded() -> T:
            return await asyncio.wait_for(awaited, PATIENCE)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    def call(self, act: Callable[[], object]) -> None:
        """Do something in the upstream's loop."""
        self._loop.call_soon_threadsafe(act)

    def forget(self) -> None:
        """Begin a new script."""
        self.requests.clear()
        self.faults.clear()
        self._script.clear()


class Asked(NamedTuple):
    """An answer, as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class Gateway:
    """``passy serve`` in a folder of its own, on a free port of loopback."""

    command = "serve"

    def __init__(
        self,
        folder: Path,
        configuration: str,
        variables: dict[str, str],
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.arguments = arguments
        """More of them for ``passy serve``."""
        self.file = folder / "gateway.yaml"
        self.file.write_text(configuration)
        # Nothing of this machine's own settings may reach it.
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        own = {"HOME": str(folder), "PASSY_ADMIN_LISTEN": "127.0.0.1:0"}
        self.variables = {**kept, **own, **variables}
        self.url = ""
        self.process: subprocess.Popen[bytes]
        self.before: Callable[[], object] | None = None
        """Called in the new process before it becomes the gateway."""
        self.stdout: int | None = None
        self.stderr: int | None = None
        """Descriptors to use instead of the files ``out`` and ``err``."""

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def admin_url(self) -> str:
        """Of the listener of those who run it."""
        return re.findall(r"administration at (http://\S+)", self.complaints())[-1]  # type: ignore[no-any-return]

    def passy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command on the same configuration."""
        return subprocess.run(
            [PASSY, *arguments, "--config", self.file, "--data", self.data],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def new_key(self, *arguments: str) -> str:
        """A key as `passy keys create` makes it."""
        made = self.passy("keys", "create", "--json", *arguments)
        assert 0 == made.returncode, made.stderr
        return str(json.loads(made.stdout)["key"])

    def start(self, listen: str = "") -> None:
        """``listen``: where; on a free port of loopback without it."""
        if listen:
            assert self._started(listen), self.complaints()
            self.url = f"http://{listen}"
            return
        listen = f"127.0.0.1:{free_port()}"
        assert self._started(listen), f"the gateway does not start:\n{self.complaints()}"
        self.url = f"http://{listen}"

    def _started(self, listen: str) -> bool:
        serve: list[str | Path] = [
            PASSY,
            self.command,
            "--config",
            self.file,
            "--data",
            self.data,
        ]
        with (self.folder / "out").open("ab") as out, (self.folder / "err").open("ab") as err:
            self.process = subprocess.Popen(
                [*serve, "--listen", listen, *self.arguments],
                cwd=self.folder,
                env=self.variables,
                stdout=out if self.stdout is None else self.stdout,
                stderr=err if self.stderr is None else self.stderr,
                preexec_fn=self.before,
            )
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"the gateway never listens:\n{self.complaints()}"
            try:
                urllib.request.urlopen(f"http://{listen}/livez", timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return True
        return False

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "",
        admin: bool = False,
        **headers: str,
    ) -> Asked:
        """One request with nobody's SDK in between; ``x_name="…"`` is the header ``x-name``.
        ``admin``: at the listener of those who run the gateway."""
        url = self.admin_url if admin else self.url
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(url.partition("//")[2], timeout=PATIENCE)
        with closing(connection):
            # What is refused before its end was answered all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                method = method or ("GET" if body is None else "POST")
                connection.request(method, path, content, sent)
            answer = connection.getresponse()
            return Asked(answer.status, answer.headers, answer.read())

    def stop(self) -> int:
        """Its exit code after SIGTERM, and another one: nobody needs the lame-duck time here."""
        return ended([self])[0]

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        process: subprocess.Popen[bytes] | None = getattr(self, "process", None)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(PATIENCE)

    def complaints(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "err").read_text()

    def line(self, request_id: str) -> dict[str, Any]:
        """The access log's line for a request, as soon as it is there."""
        return until(lambda: self._line(request_id))

    def _line(self, request_id: str) -> dict[str, Any] | None:
        # What is behind the last line is one that is being written.
        written = (self.folder / "out").read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in written if request_id in line]
        return lines[0] if lines else None

    def record(self, request_id: str) -> dict[str, Any]:
        """What the books say of a request, as soon as it is there."""
        return until(lambda: self._record(request_id))

    def _record(self, request_id: str) -> dict[str, Any] | None:
        found = self.records("WHERE id = ?", request_id)
        return found[0] if found else None

    def records(self, where: str = "", *values: object) -> list[dict[str, Any]]:
        """What is in the books by now, oldest first."""
        with closing(sqlite3.connect(self.folder / ".passy/passy.db", timeout=90)) as books:
            books.row_factory = sqlite3.Row
            rows = books.execute(f"SELECT * FROM usage {where} ORDER BY at", values)
            return [dict(row) for row in rows]


def until(look: Callable[[], T | None]) -> T:
    """What ``look`` finds in the end."""
    end = time.monotonic() + PATIENCE
    while (found := look()) is None:
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of all scripted providers, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="providers")
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


Hire = Callable[[], Provider]


@pytest.fixture(scope="module")
def hire(loop: asyncio.AbstractEventLoop) -> Iterator[Hire]:
    """Makes scripted providers, as many as are wanted."""
    with ExitStack() as stack:

        def make() -> Provider:
            provider = Provider(loop)
            provider.wait(provider.__aenter__())
            stack.callback(lambda: provider.wait(provider.__aexit__(None, None, None)))
            return provider

        yield make


Serve = Callable[..., Gateway]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Runs gateways: a configuration, more arguments, and environment variables as keywords.

    Each must end with 0 when it is told to, and without having been at fault, unless it is
    ``faulty``. ``before``, ``stdout`` and ``stderr`` are attributes of a Gateway.
    """
    running: list[tuple[Gateway, bool]] = []
    with ExitStack() as stack:
        stack.callback(stop, running)

        def run(
            configuration: str,
            *arguments: str,
            start: bool = True,
            faulty: bool = False,
            before: Callable[[], object] | None = None,
            stdout: int | None = None,
            stderr: int | None = None,
            **variables: str,
        ) -> Gateway:
            folder = tmp_path_factory.mktemp("gateway")
            gateway = Gateway(folder, configuration, variables, arguments)
            gateway.before, gateway.stdout, gateway.stderr = before, stdout, stderr
            if not start:
                stack.callback(gateway.kill)
                return gateway
            try:
                gateway.start()
            except BaseException:
                gateway.kill()
                raise
            running.append((gateway, faulty))
            return gateway

        yield run


def stop(running: Sequence[tuple[Gateway, bool]]) -> None:
    """Those that may have been at fault are told of."""
    codes = ended([gateway for gateway, _ in running])
    for (gateway, faulty), code in zip(running, codes, strict=True):
        complaints = gateway.complaints()
        assert 0 == code, complaints
        assert faulty == ("Traceback" in complaints), complaints


def ended(gateways: Sequence[Gateway]) -> list[int]:
    """Stops them side by side; their exit codes."""
    for gateway in gateways:
        gateway.process.send_signal(signal.SIGTERM)
    time.sleep(0.1 if gateways else 0)  # Two at once are one.
    for gateway in gateways:
        gateway.process.send_signal(signal.SIGTERM)
    return [gateway.process.wait(PATIENCE) for gateway in gateways]


Shipped = Callable[..., str]


@pytest.fixture(scope="session")
def shipped() -> Shipped:
    """``config/gateway.yaml`` with the hosts of some providers replaced: ``openai="http://…"``."""

    def text(**hosts: str) -> str:
        text = (ROOT / "config/gateway.yaml").read_text()
        for name, url in hosts.items():
            text, count = re.subn(re.escape(HOSTS[name]) + r"\b", url, text)
            assert 1 == count, name
        # Whatever else this machine has to do, nobody is sent away for that.
        return f"{text}\noverload: {{loop_lag: 0s}}\n"

    return text
