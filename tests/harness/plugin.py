"""Distributions for tests: a plugin as if it had been installed, found by way of PYTHONPATH."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path


def installed(folder: Path, name: str, source: str, version: str = "1.0") -> str:
    """Install ``source`` as the module ``<name>_plugin`` of a distribution ``passy-<name>``, which
    brings the plugin ``name``. The value for PYTHONPATH."""
    module = f"{name}_plugin.py"
    (folder / module).write_text(source)
    meta = folder / f"passy_{name}-{version}.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: passy-{name}\nVersion: {version}\n"
    )
    (meta / "entry_points.txt").write_text(f"[passy]\n{name} = {name}_plugin\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(source.encode()).digest()).decode()
    (meta / "RECORD").write_text(f"{module},sha256={digest.rstrip('=')},{len(source)}\n")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


TROUBLE = '''
import ctypes, os, re, signal, time
from passy_proxy import Filter, hookimpl


def search():
    re.match(r"(a+)+$", "a" * 64 + "b")


DO = {
    "sleep": lambda seconds="1": time.sleep(float(seconds)),
    "regex": search,
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: b"x" * (1 << 60),
    "exit": lambda: os._exit(1),
}


class Trouble(Filter):
    """Does what the header x-trouble says; tells who did it."""

    name = "trouble"

    def on_request(self, ex):
        what = ex.request.header(b"x-trouble")
        if what is not None:
            name, *more = what.decode().split()
            DO[name](*more)

    def on_response(self, ex, head):
        head.headers.append((b"x-pid", b"%d" % os.getpid()))


@hookimpl
def passy_filters():
    return [Trouble]
'''
"""A plugin that makes trouble on request: ``x-trouble: sleep 1``, ``regex``, ``segv``, …"""
