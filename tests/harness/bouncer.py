"""PgBouncer in transaction mode: each transaction may go to another server process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from harness.ports import free_port
from harness.postgres import PATIENCE, Database

CONFIGURATION = """\
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 200
server_round_robin = 1
logfile = {folder}/log
pidfile = {folder}/pid
"""


@contextmanager
def bouncer(database: Database, pool: int = 3) -> Iterator[str]:
    """The URL of ``database`` by way of one with so many connections, which are used in turn."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        missing = "PGBOUNCER TESTS DID NOT RUN: Debian's package pgbouncer is needed"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    there = urlsplit(database.url)
    folder = Path(tempfile.mkdtemp(prefix="passy-bouncer-"))
    folder.chmod(0o777)
    listen = free_port()
    (folder / "ini").write_text(
        CONFIGURATION.format(
            host=there.hostname,
            port=there.port,
            user=there.username,
            password=unquote(there.password or ""),
            listen=listen,
            pool=pool,
            folder=folder,
        )
    )
    unprivileged = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [program, *unprivileged, "-q", str(folder / "ini")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", listen), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.02)
        yield f"postgresql://passy:unused@127.0.0.1:{listen}{there.path}"
    finally:
        process.terminate()
        process.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)
