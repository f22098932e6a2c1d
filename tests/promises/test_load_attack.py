"""Many bad connections, a few good ones: slow heads, slow bodies, slow readers, silence."""

from __future__ import annotations

import asyncio
import functools
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from harness.again import spared
from harness.crowd import Caller, Seen, asking, normals, percentile
from harness.gateway import Gateway, Serve, until
from harness.ports import free_port

CONFIGURATION = """
overload: {loop_lag: 0s}
upstreams: {echo: {kind: echo}}
models: {m: [echo/echo]}
edge: EDGE
chains:
  default: [alias, fallback]
  large: [static: {status: 200, body: LARGE}]
routes:
  - {match: POST /v1/chat/completions}
  - {match: GET /large, chain: large}
"""
QUICK = (
    "{header_timeout: 3s, body_grace: 1s, keep_alive: 4s, write_timeout: 1s, write_rate: 100KiB}"
)
GOOD = asking(
    "/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


def configuration(edge: str) -> str:
    return CONFIGURATION.replace("EDGE", edge).replace("LARGE", "x" * 500_000)


async def drip(caller: Caller, piece: bytes, gap: float) -> None:
    while True:
        await asyncio.sleep(gap)
        await caller.send(piece)


async def sip(caller: Caller) -> None:
    # What has come can be read long after a reset: that is not waited for.
    ended = functools.partial(caller.sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
    while await caller.read(16) and not ended():  # noqa: ASYNC110
        await asyncio.sleep(0.3)


async def bad(url: str, kind: str) -> str:
    """One bad connection, until the other side ends it."""
    caller = await Caller.of(url, window=2048 if kind == "slow reader" else 0)
    dripping: asyncio.Task[None] | None = None
    try:
        with suppress(OSError):
            if kind == "slow head":
                await caller.send(HEAD)
                dripping = asyncio.create_task(drip(caller, b"x-a: b\r\n", 0.3))
            elif kind == "slow body":
                await caller.send(HEAD + b"content-length: 100000\r\n\r\n{")
                dripping = asyncio.create_task(drip(caller, b" ", 0.3))
            elif kind == "slow chunks":
                await caller.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
                dripping = asyncio.create_task(drip(caller, b"1\r\n \r\n", 0.3))
            elif kind == "ranges":
                ranges = ",".join(f"{n}-" for n in range(1500))
                await caller.send(asking("/large", None, f"range: bytes=0-{ranges}"))
            elif kind == "slow reader":
                await caller.send(asking("/large") * 20)
                dripping = asyncio.create_task(sip(caller))
                await asyncio.wait([dripping])
            elif kind == "idle":
                await caller.send(GOOD)
                await caller.answer()
        try:
            return await caller.ended()
        except TimeoutError:
            return "open"
    finally:
        if dripping is not None:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
        caller.leave()


KINDS = ("silent", "slow head", "slow body", "slow chunks", "ranges", "slow reader", "idle")


def test_C4_bad_connections_are_closed_and_harm_nobody(serve: Serve) -> None:
    gateway = serve(configuration(QUICK))

    async def attack() -> tuple[Seen, Seen, list[str]]:
        before = await normals(gateway.url, GOOD, 1.0)
        bads = [asyncio.create_task(bad(gateway.url, KINDS[n % len(KINDS)])) for n in range(300)]
        during = await normals(gateway.url, GOOD, 4.0)
        return before, during, await asyncio.gather(*bads)

    def kept(found: tuple[Seen, Seen, list[str]]) -> bool:
        before, during = (percentile(seen.seconds, 0.9) for seen in found[:2])
        return during < max(2 * before, 0.05) * 8

    before, during, ends = found = spared(lambda: asyncio.run(attack()), kept, 3)
    report("C4", before, during)
    assert ([], []) == (before.faults, during.faults)
    left = [KINDS[n % len(KINDS)] for n, end in enumerate(ends) if end == "open"]
    assert [] == left
    assert kept(found)


def report(name: str, before: Seen, during: Seen) -> None:
    p99 = [percentile(seen.seconds, 0.99) * 1000 for seen in (before, during)]
    print(f"{name}: p99 {p99[0]:.1f} ms before, {p99[1]:.1f} ms during")


NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  {server}
}}
"""
BARE = {
    "nginx": """
client_header_timeout 1s; client_body_timeout 60s; send_timeout 60s; keepalive_timeout 2s;
server {
  listen 80;
  location / {
    proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_request_buffering off; proxy_buffering off; proxy_set_header Host $host;
  }
}
""",
    "haproxy": """
global
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-request 1s
  timeout http-keep-alive 2s
listen front
  bind :80
  server gateway 127.0.0.1:8080
""",
}
"""Front proxies that pass on what comes as it comes."""
EXAMPLES = Path(__file__).parents[2] / "docs/examples"
SHIPPED = {
    program: (EXAMPLES / file).read_text()
    for program, file in (("nginx", "nginx.conf"), ("haproxy", "haproxy.cfg"))
}


@contextmanager
def front(program: str, text: str, gateway: Gateway, folder: Path) -> Iterator[str]:
    """A front proxy with a configuration that listens at port 80 and asks port 8080; its URL."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if found is None:
        pytest.skip(
            f"{program.upper()} IS MISSING: C4 IS NOT TRIED BEHIND IT (apt install {program})"
        )
    port = free_port()
    for there, here in (
        ("127.0.0.1:8080", urlsplit(gateway.url).netloc),
        ("listen 80", f"listen 127.0.0.1:{port}"),
        ("bind :80", f"bind 127.0.0.1:{port}"),
    ):
        text = text.replace(there, here)
    if program == "nginx":
        text = NGINX.format(folder=folder, server=text)
    file = folder / f"{program}.conf"
    file.write_text(text)
    arguments = ["-c", str(file)] if program == "nginx" else ["-f", str(file), "-db"]
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen([found, *arguments], stdout=out, stderr=out)
    try:
        until(lambda: listens(port) or process.poll() is not None or None)
        assert process.poll() is None, (folder / "out").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(90)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("program", ["nginx", "haproxy"])
def test_C4_behind_a_front_proxy(serve: Serve, tmp_path: Path, program: str) -> None:
    gateway = serve(configuration(QUICK))
    kinds = ("slow head", "slow body", "slow chunks", "ranges", "idle")

    async def attack(url: str) -> tuple[Seen, Seen, list[str]]:
        before = await normals(url, GOOD, 0.5)
        bads = [asyncio.create_task(bad(url, kinds[n % len(kinds)])) for n in range(60)]
        during = await normals(url, GOOD, 2.0)
        return before, during, await asyncio.gather(*bads)

    with front(program, BARE[program], gateway, tmp_path) as url:
        before, during, ends = asyncio.run(attack(url))
    report(f"C4 behind {program}", before, during)
    assert ([], []) == (before.faults, during.faults)
    left = {kinds[n % len(kinds)] for n, end in enumerate(ends) if end == "open"}
    assert set() == left


MODES = {
    "-H": ["-H", "-i", "3", "-x", "20"],
    "-B": ["-B", "-i", "3", "-s", "100000", "-x", "20"],
    "-R": ["-R", "-a", "5", "-b", "3000"],
    "-X": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"],
}


@pytest.mark.large
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("through", ["", "nginx", "haproxy"])
def test_C4_slowhttptest(serve: Serve, tmp_path: Path, mode: str, through: str) -> None:
    program = shutil.which("slowhttptest")
    if program is None:
        pytest.skip("SLOWHTTPTEST IS MISSING: C4 IS NOT TRIED WITH IT (apt install slowhttptest)")
    gateway = serve(configuration("{}"))
    if not through:
        slow(program, mode, gateway.url, tmp_path)
        return
    with front(through, SHIPPED[through], gateway, tmp_path) as url:
        slow(program, mode, url, tmp_path)


def slow(program: str, mode: str, url: str, folder: Path) -> None:
    """A minute of a thousand bad connections, and twenty good clients."""
    path = "/v1/chat/completions" if mode == "-B" else "/large"
    before = asyncio.run(normals(url, GOOD, 5.0))
    arguments = [*MODES[mode], "-c", "1000", "-r", "200", "-l", "60", "-p", "3"]
    with (folder / "slow").open("wb") as out:
        attack = subprocess.Popen(
            [program, *arguments, "-u", url + path], stdout=out, stderr=out, cwd=folder
        )
    try:
        during = asyncio.run(normals(url, GOOD, 60.0))
    finally:
        with suppress(subprocess.TimeoutExpired):
            attack.wait(60)
        attack.kill()
        attack.wait()
    said = re.sub(r"\x1b\[[0-9;]*m", "", (folder / "slow").read_text(errors="replace"))
    ends = dict(re.findall(r"(closed|connected|error|pending):\s+(\d+)", said[-1500:]))
    report(f"C4 slowhttptest {mode} {url}: {ends}", before, during)
    assert ([], []) == (before.faults, during.faults)
    assert percentile(during.seconds, 0.99) < 2 * max(percentile(before.seconds, 0.99), 0.02)
    end = time.monotonic() + 80  # The keep-alive of those that asked for something whole.
    port = urlsplit(url).port or 0
    while established(port):
        assert time.monotonic() < end, "some are still open"
        time.sleep(0.2)


def established(port: int) -> int:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[3] == "01" and int(line[1][-4:], 16) == port for line in lines)
