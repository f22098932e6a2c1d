"""Other people's proxies in front of the gateway, and a relay between the two that keeps count."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness.client import Told
from harness.ports import free_port

PATIENCE = 60.0


class Relay:
    """Passes bytes on to ``url``; ``answered()`` says how many final answers came back."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._there = (address.hostname, address.port)
        self._said: list[bytearray] = []
        self._counts: dict[int, tuple[int, int]] = {}  # bytes and answers of each connection
        self._tasks: set[asyncio.Task[None] | None] = set()  # else nobody would hold them
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(PATIENCE)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc: object) -> None:
        async def end() -> None:
            self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def answered(self) -> int:
        """So far, on all connections."""
        for number, said in enumerate(self._said):
            size = len(said)
            if self._counts.get(number, (0, 0))[0] != size:
                answers = Told(bytes(said[:size]), "fin", 0.0).answers()
                self._counts[number] = (size, len(answers))
        return sum(count for _, count in self._counts.values())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = bytearray()
        self._said.append(said)
        self._tasks.add(asyncio.current_task())
        there_reader, there = await asyncio.open_connection(*self._there)

        async def pump(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray | None
        ) -> None:
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    if kept is not None:
                        kept += data
                    sink.write(data)
                    await sink.drain()
            with suppress(OSError):
                sink.write_eof()

        try:
            await asyncio.gather(pump(reader, there, None), pump(there_reader, writer, said))
        finally:
            writer.transport.abort()
            there.transport.abort()


@dataclass(slots=True)
class Front:
    """A proxy that listens. Its log has a line for each request: ``forwarded|request line``."""

    url: str
    log: Path

    def forwarded(self) -> list[str]:
        """The request lines of what it passed on, in the order of their ends."""
        lines = self.log.read_text("latin-1").splitlines()
        told = [line.partition("|") for line in lines if "|" in line]
        return [request for passed, _, request in told if passed not in ("-", "", "<NOSRV>")]


NGINX = """
daemon off;
worker_processes 1;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
  log_format passed '$upstream_status|$request';
  access_log {folder}/log passed;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_header_timeout 2s;
  client_body_timeout 2s;
  client_max_body_size 0;
  large_client_header_buffers 8 64k;
  ignore_invalid_headers off;
  underscores_in_headers on;
  merge_slashes off;
  upstream gateway {{ server 127.0.0.1:{port}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{listen};
    location / {{
      proxy_pass http://gateway;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_next_upstream off;
    }}
  }}
}}
"""

HAPROXY = """
global
  log stdout format raw local0
  nbthread 1
defaults
  mode http
  log global
  option accept-invalid-http-request
  timeout client 2s
  timeout server 10s
  timeout connect 5s
  timeout http-request 2s
  retries 0
frontend front
  bind 127.0.0.1:{listen}
  log-format "%s|%r"
  default_backend gateway
backend gateway
  server gateway 127.0.0.1:{port}
"""


def missing(name: str) -> str:
    """Why a front cannot run here; empty when it can."""
    found = shutil.which(name)
    return "" if found else f"DEBIAN'S {name.upper()} IS MISSING: apt-get install {name}"


@contextmanager
def nginx(folder: Path, port: int) -> Iterator[Front]:
    """nginx before what listens on ``port``: as lenient as it can be set."""
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (folder / name).mkdir()
    with _running(folder, NGINX, port, lambda file: ["nginx", "-p", str(folder), "-c", file]) as it:
        yield it


@contextmanager
def haproxy(folder: Path, port: int) -> Iterator[Front]:
    """The same with HAProxy."""
    with _running(folder, HAPROXY, port, lambda file: ["haproxy", "-db", "-f", file]) as it:
        yield it


@contextmanager
def _running(
    folder: Path, template: str, port: int, command: Callable[[str], list[str]]
) -> Iterator[Front]:
    listen = free_port()
    file = folder / "conf"
    file.write_text(template.format(folder=folder, port=port, listen=listen))
    log = folder / "log"
    with log.open("ab") as out, (folder / "err").open("ab") as err:
        process = subprocess.Popen(command(str(file)), stdout=out, stderr=err)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", listen), 1):
                break
            assert process.poll() is None, (folder / "err").read_text()
            assert time.monotonic() < end, "it never listens"
            time.sleep(0.02)
        yield Front(f"http://127.0.0.1:{listen}", log)
    finally:
        process.terminate()
        process.wait(PATIENCE)
