"""The end of a gateway, as those see it who are still talking to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import openai
import pytest
from harness.again import TIMES, spared
from harness.figures import Note
from harness.gateway import Gateway, Serve, until
from harness.ports import free_port
from harness.upstream import RawUpstream

from passy_proxy.edge import EdgeLimits
from passy_proxy.testing import Client, chat_events, completion

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": []}
SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = [event.decode("latin-1") for event in chat_events(["one ", "two "])]


def script(hit: Any) -> list[Any]:
    """``slow`` streams for ever, ``half`` for half a second, ``silent`` says nothing; ``quick``
    answers at once."""
    if hit.target.startswith("/quick"):
        body = json.dumps(completion())
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        return [{"send": f"{head}\r\n\r\n{body}"}]
    if hit.target.startswith("/silent"):
        return ["hold"]
    start = [{"send": SSE}, {"chunk": EVENTS[0]}]
    if hit.target.startswith("/slow"):
        return [*start, "hold"]
    rest = [{"chunk": event} for event in EVENTS[1:]]
    return [*start, {"wait": 0.5}, *rest, {"send": "0\r\n\r\n"}]


def configuration(upstream: str, edge: str) -> str:
    names = ("quick", "slow", "half", "silent")
    models = ", ".join(f"{name}: [{name}/real]" for name in names)
    upstreams = ", ".join(f"{n}: {{url: {upstream}/{n}/v1, credential: secret}}" for n in names)
    return f"""
overload: {{loop_lag: 0s}}
edge: {{{edge}}}
stores: {{books: {{kind: sql, url: "sqlite:///.passy/passy.db"}}}}
upstreams: {{{upstreams}}}
models: {{{models}}}
chains: {{default: [access_log, usage: {{ledger: books}}, alias, fallback]}}
routes:
  - {{match: POST /v1/chat/completions}}
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=script) as upstream:
        yield upstream


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


Started = Any


@pytest.fixture
def started(serve: Serve, upstream: RawUpstream) -> Iterator[Started]:
    """Starts a gateway that the test itself will stop."""
    running: list[Gateway] = []

    def start(edge: str, *arguments: str) -> Gateway:
        gateway = serve(configuration(upstream.url, edge), *arguments, start=False)
        (gateway.folder / ".passy").mkdir()
        gateway.start()
        running.append(gateway)
        return gateway

    yield start
    for gateway in running:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait(90)


WORKERS = pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
ALONE = pytest.mark.parametrize("workers", [()], ids=["alone"])
SUPERVISED = pytest.mark.parametrize("workers", [("--workers", "2")], ids=["workers"])


@ALONE
async def test_O2_a_lame_duck_serves_all_who_come_and_asks_them_to_leave(
    workers: tuple[str, ...], started: Started, client: Client
) -> None:
    gateway = started("lame_duck: 60s", *workers)
    kept = HTTPConnection(gateway.url.partition("//")[2], timeout=90)
    kept.request("GET", "/livez")
    kept.getresponse().read()
    gateway.process.terminate()
    began = time.monotonic()
    until(lambda: True if 503 == gateway.ask("/readyz").status else None)
    assert 200 == gateway.ask("/livez").status
    fresh = gateway.ask(CHAT, {**ASK, "model": "quick"})
    assert (200, "close") == (fresh.status, fresh.headers["connection"])
    # One that was kept open before is served as well, and told.
    kept.request("GET", "/livez")
    answer = kept.getresponse()
    assert (200, "close") == (answer.status, answer.headers["connection"])
    kept.close()
    stream = await client.ask(gateway.url + CHAT, {**ASK, "model": "half", "stream": True})
    while time.monotonic() < began + 0.8:
        assert 200 == gateway.ask("/livez").status
        await asyncio.sleep(0.02)
    assert (await stream.rest()).endswith(b"data: [DONE]\n\n")
    gateway.process.terminate()
    assert 0 == gateway.process.wait(90)
    with pytest.raises(ConnectionRefusedError):
        gateway.ask("/livez")


@ALONE
async def test_O2_streams_end_within_the_limit_and_the_listener_is_closed_meanwhile(
    workers: tuple[str, ...], started: Started, client: Client
) -> None:
    gateway = started("lame_duck: 0s", *workers)
    stream = await client.ask(gateway.url + CHAT, {**ASK, "model": "half", "stream": True})
    gateway.process.terminate()
    until(lambda: True if refused(gateway) else None)
    assert (await stream.rest()).endswith(b"data: [DONE]\n\n")
    assert 0 == gateway.process.wait(90)


def refused(gateway: Gateway) -> bool:
    try:
        gateway.ask("/livez")
    except OSError:
        return True
    return False


@WORKERS
def test_O2_a_cut_stream_raises_in_the_sdk_and_has_a_record(
    workers: tuple[str, ...], started: Started, upstream: RawUpstream
) -> None:
    gateway = started("lame_duck: 0s, shutdown_timeout: 1s", *workers)
    upstream.hits.clear()
    ids, raised = [], []
    with closing(openai.OpenAI(api_key="x", base_url=gateway.base_url, max_retries=0)) as sdk:
        streams = []
        for _ in range(5):
            stream = sdk.chat.completions.create(**{**ASK, "model": "slow", "stream": True})
            ids.append(stream.response.headers["x-request-id"])
            assert next(stream).choices
            streams.append(stream)
        silent = threading.Thread(target=lambda: raised.append(asked_in_vain(sdk)))
        silent.start()
        upstream.until(lambda: any(hit.target.startswith("/silent") for hit in upstream.hits))
        gateway.process.terminate()
        for stream in streams:
            with pytest.raises(openai.APIError) as caught:
                list(stream)
            assert "draining" == caught.value.code
        silent.join(20)
    assert (503, "draining") == raised[0]
    assert 0 == gateway.process.wait(90)
    for id in ids:
        record = gateway.record(id)
        assert "shutdown" == record["outcome"], record
        assert "shutdown" == gateway.line(id)["outcome"]
    assert "Traceback" not in gateway.complaints()


def asked_in_vain(sdk: openai.OpenAI) -> tuple[int, str | None]:
    try:
        sdk.chat.completions.create(**{**ASK, "model": "silent"})
    except openai.InternalServerError as exc:
        return exc.status_code, exc.code
    return 200, None


@SUPERVISED
async def test_O2_a_second_sigterm_shortens_each_step(
    workers: tuple[str, ...], started: Started, client: Client
) -> None:
    gateway = started("lame_duck: 60s, shutdown_timeout: 60s", *workers)
    stream = await client.ask(gateway.url + CHAT, {**ASK, "model": "slow", "stream": True})
    began = time.monotonic()
    gateway.process.terminate()
    until(lambda: True if 503 == gateway.ask("/readyz").status else None)
    gateway.process.terminate()
    until(lambda: True if refused(gateway) else None)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.until(b"draining"), 0.3)
    gateway.process.terminate()
    assert b"draining" in await stream.rest()
    assert 0 == gateway.process.wait(90)
    assert time.monotonic() - began < 50


@SUPERVISED
async def test_O2_ctrl_c_is_quick_and_still_lets_answers_end(
    workers: tuple[str, ...], started: Started, client: Client
) -> None:
    said = b""
    # It waits for three seconds: an upstream that gets no turn for so long has another chance.
    for _ in range(TIMES):
        gateway = started("lame_duck: 60s, shutdown_timeout: 60s", *workers)
        half = await client.ask(gateway.url + CHAT, {**ASK, "model": "half", "stream": True})
        slow = await client.ask(gateway.url + CHAT, {**ASK, "model": "slow", "stream": True})
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGINT)
        said = await half.rest()
        assert b"draining" in await slow.rest()
        assert 130 == gateway.process.wait(90)
        assert time.monotonic() - began < 50
        if said.endswith(b"data: [DONE]\n\n"):
            break
    assert said.endswith(b"data: [DONE]\n\n")


def test_O2_a_second_ctrl_c_does_not_wait(started: Started) -> None:

    def measured() -> tuple[int, float]:
        gateway = started("lame_duck: 60s, shutdown_timeout: 60s")
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as sock:
            sock.sendall(request("slow"))
            assert sock.recv(20).startswith(b"HTTP/1.1 200")
            gateway.process.send_signal(signal.SIGINT)
            until(lambda: True if refused(gateway) else None)
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGINT)
            return gateway.process.wait(90), time.monotonic() - began

    # After three seconds the first one is enough: who gets no turn for so long tries again.
    code, seconds = spared(measured, lambda found: found[0] == 130 and found[1] < 2.9)
    assert 130 == code
    assert seconds < 2.9


LINGER = EdgeLimits().linger
"""Seconds that a connection waits for one more request."""


def request(model: str) -> bytes:
    body = b'{"model":"%b","messages":[],"stream":true}' % model.encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def test_O2_signals_to_all_processes_at_once_count_once(started: Started) -> None:
    """As systemd and terminals send them."""
    gateway = started("lame_duck: 1s", "--workers", "2")
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    pids = [int(pid) for pid in children.read_text().split()]
    assert 2 == len(pids)
    began = time.monotonic()
    for pid in (gateway.process.pid, *pids):
        os.kill(pid, signal.SIGTERM)
    # It serves for as long as it is a lame duck.
    assert not refused(gateway) or time.monotonic() - began > 0.9
    assert 0 == gateway.process.wait(90)
    assert 0.9 < time.monotonic() - began < 60


def test_O2_after_its_last_answer_a_connection_waits_for_one_more_request(
    started: Started,
) -> None:
    """The head of this answer was sent before the end began, and said nothing of it."""

    def asked_twice() -> tuple[bytes, float]:
        """The second answer, and how long after the first one it was asked for."""
        gateway = started("lame_duck: 0s")
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as sock:
            sock.settimeout(90)
            sock.sendall(request("half"))
            said = sock.recv(1 << 16)
            assert b"connection: close" not in said
            gateway.process.terminate()
            until(lambda: True if refused(gateway) else None)
            while not said.endswith(b"\r\n0\r\n\r\n"):
                said += sock.recv(1 << 16)
            told, again = time.monotonic(), b""
            time.sleep(0.15)  # The way there and back, and what a client thinks of meanwhile.
            with suppress(OSError):
                sock.sendall(request("half"))
            took = time.monotonic() - told
            with suppress(OSError):
                while piece := sock.recv(1 << 16):
                    again += piece
        assert 0 == gateway.process.wait(90)
        return again, took

    again, _ = spared(asked_twice, lambda found: bool(found[0]) or found[1] < LINGER - 0.1)
    assert again.startswith(b"HTTP/1.1 200")
    assert b"\r\nconnection: close\r\n" in again
    assert again.endswith(b"\r\n0\r\n\r\n")


def test_O2_who_waits_in_the_queue_of_the_listening_socket_is_let_in(started: Started) -> None:
    """A loop that is held up accepts nobody; its end must not reset those who got through."""

    def answered() -> tuple[int, float]:
        """How many, and how long after the beginning of the end they had all asked."""
        gateway, served = started("lame_duck: 0s"), 0
        port = int(gateway.url.rpartition(":")[2])
        os.kill(gateway.process.pid, signal.SIGSTOP)
        waiting = [socket.create_connection(("127.0.0.1", port), timeout=90) for _ in range(20)]
        gateway.process.terminate()
        began = time.monotonic()
        os.kill(gateway.process.pid, signal.SIGCONT)
        for sock in waiting:
            with suppress(OSError):
                sock.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        took = time.monotonic() - began
        for sock in waiting:
            with sock, suppress(OSError):
                served += sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert 0 == gateway.process.wait(90)
        return served, took

    served, _ = spared(answered, lambda found: found[0] == 20 or found[1] < LINGER - 0.1)
    assert 20 == served


def test_O2_who_keeps_asking_on_one_connection_loses_nothing(started: Started) -> None:
    """The connection stays for the request that may be on its way; its answer says that it ends."""
    gateway = started("lame_duck: 300ms")
    lost, missed, asked = [], [], itertools.count()
    # A connection waits for so long; who got no turn meanwhile came too late.
    patience = LINGER - 0.2
    stop = threading.Event()

    def ask(gap: float) -> None:
        with closing(HTTPConnection(gateway.url.partition("//")[2], timeout=90)) as connection:
            free = time.monotonic()
            while not stop.is_set():
                next(asked)
                fresh, sent = connection.sock is None, 0.0
                try:
                    if fresh:
                        free = time.monotonic()
                        connection.connect()
                    connection.request("GET", "/livez")
                    sent = time.monotonic()
                    connection.getresponse().read()
                except ConnectionRefusedError:
                    return
                except (OSError, HTTPException) as exc:
                    if (sent or time.monotonic()) - free < patience:
                        (missed if fresh else lost).append(exc)
                    return
                free = time.monotonic()
                time.sleep(gap)

    threads = [threading.Thread(target=ask, args=(0.001 * n,)) for n in range(1, 13)]
    for thread in threads:
        thread.start()
    until(lambda: next(asked) > 300 or None)
    gateway.process.terminate()
    assert 0 == gateway.process.wait(90)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert [] == lost
    assert [] == missed


NGINX = shutil.which("nginx") or "/usr/sbin/nginx"


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Any]:
    """Debian's nginx before two gateways, with connections kept open, as docs/guides say."""
    if not Path(NGINX).exists():
        pytest.skip("NGINX IS NOT INSTALLED: THE ROLLING RESTART (O2) IS NOT TESTED")
    running: list[subprocess.Popen[bytes]] = []

    def start(*servers: str) -> str:
        port = free_port()
        upstreams = "".join(f"server {server} max_fails=0;" for server in servers)
        (tmp_path / "nginx.conf").write_text(f"""
daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log info;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;
  fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
  keepalive_requests 1000000;
  upstream gateways {{ {upstreams} keepalive 32; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://gateways; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 120s;
    }}
  }}
}}""")
        command = [NGINX, "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "early"]
        running.append(subprocess.Popen(command, cwd=tmp_path))
        until(lambda: True if listens(port) else None)
        return f"127.0.0.1:{port}"

    yield start
    for process in running:
        process.terminate()
        process.wait(90)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return 0 == probe.connect_ex(("127.0.0.1", port))


SIZES = [
    pytest.param((20, 100, 1, "1s"), id="small"),
    pytest.param((200, 100, 5, "5s"), id="large", marks=pytest.mark.large),
]


@pytest.mark.parametrize("size", SIZES)
def test_O2_a_rolling_restart_behind_nginx_fails_no_request(
    size: tuple[int, int, int, str], started: Started, front: Any, figure: Note
) -> None:
    clients, rate, rounds, lame = size
    gateways = [started(f"lame_duck: {lame}") for _ in range(2)]
    at = front(*(gateway.url.partition("//")[2] for gateway in gateways))
    stop = threading.Event()
    failed: list[str] = []
    done = itertools.count()
    body = b'{"model":"%b","messages":[],"stream":%b}'
    bodies = [body % (b"quick", b"false")] * 4 + [body % (b"half", b"true")]

    def ask(number: int) -> None:
        connection = HTTPConnection(at, timeout=90)
        turn = itertools.count(number)
        while not stop.wait(clients / rate):
            wanted = bodies[next(turn) % len(bodies)]
            try:
                connection.request("POST", CHAT, wanted, {"content-type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, HTTPException) as exc:
                failed.append(repr(exc))
                connection.close()
                continue
            whole = said.endswith(b"data: [DONE]\n\n") if b"half" in wanted else b"usage" in said
            if 200 != answer.status or not whole:
                failed.append(f"{answer.status} {said[:300]!r}")
            next(done)
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        for gateway in gateways:
            gateway.process.terminate()
            assert 0 == gateway.process.wait(90), gateway.complaints()
            gateway.start(gateway.url.partition("//")[2])
            time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join(60)
    count = next(done)
    figure("restarts, clients", f"{2 * rounds}, {clients}")
    figure("requests failed", f"{len(failed)} of {count}")
    assert [] == failed
    assert count > rate
