"""Node.js and the SDKs for it, as the lock file beside the scripts names them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "wire/node"
PATIENCE = 120.0


def installed() -> str:
    """The path of Node.js, with the SDKs in place; else the test is skipped, in CI it fails."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing = "NODE TESTS DID NOT RUN: Node.js and npm are needed"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    lock, done = SCRIPTS / "package-lock.json", SCRIPTS / "node_modules/.package-lock.json"
    with (Path(tempfile.gettempdir()) / f"passy-test-npm-{os.getuid()}").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # Of several processes that run tests one installs.
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            install = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            ran = subprocess.run(install, cwd=SCRIPTS, capture_output=True, text=True, timeout=300)
            assert 0 == ran.returncode, ran.stderr
    return node


def run(node: str, script: str, *arguments: str, **variables: str) -> Any:
    """What a script says, as JSON."""
    ran = subprocess.run(
        [node, SCRIPTS / f"{script}.mjs", *arguments],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert 0 == ran.returncode, ran.stderr
    return json.loads(ran.stdout)
