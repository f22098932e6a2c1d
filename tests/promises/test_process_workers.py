"""Workers that crash, and loops that are held up: what it costs, who sees it, who is named."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.again import TIMES
from harness.figures import Note
from harness.gateway import Gateway, Serve, until
from harness.plugin import TROUBLE, installed
from harness.upstream import RawUpstream

from passy_proxy.testing import Asked, Client, chat_events

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
STREAM = {"model": "m", "messages": [], "stream": True}
HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = [event.decode("latin-1") for event in chat_events(["one ", "two "])]
SECONDS = 0.5
"""How long a stream takes."""
STREAMING: list[Any] = [
    {"send": HEAD},
    {"chunk": EVENTS[0]},
    {"wait": SECONDS},
    *({"chunk": event} for event in EVENTS[1:]),
    {"send": "0\r\n\r\n"},
]


def configuration(upstream: str, edge: str = "") -> str:
    return f"""
overload: {{loop_lag: 0s}}
edge: {{{edge}}}
stores: {{books: {{kind: sql, url: "sqlite:///books.db"}}}}
upstreams: {{one: {{url: {upstream}/v1, credential: a-credential}}}}
models: {{m: [one/real]}}
chains: {{default: [access_log, usage: {{ledger: books}}, trouble, alias, fallback]}}
routes:
  - {{match: POST /v1/chat/completions}}
  - {{match: GET /who, chain: [access_log, trouble, static: {{body: hello}}]}}
  - {{match: GET /metrics, chain: [metrics_page: {{public: true}}]}}
"""


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> str:
    return installed(tmp_path_factory.mktemp("trouble"), "trouble", TROUBLE)


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(STREAMING) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def pair(serve: Serve, upstream: RawUpstream, trouble: str) -> Iterator[Gateway]:
    """Two workers."""
    gateway = serve(configuration(upstream.url), "--workers", "2", start=False, PYTHONPATH=trouble)
    gateway.start()
    yield gateway
    assert 0 == gateway.stop()


@pytest.fixture(scope="module")
def impatient(serve: Serve, upstream: RawUpstream, trouble: str) -> Iterator[Gateway]:
    """Two workers, either of which is soon thought dead."""
    text = configuration(upstream.url, "loop_dead: 2s")
    gateway = serve(text, "--workers", "2", start=False, PYTHONPATH=trouble)
    gateway.start()
    yield gateway
    assert 0 == gateway.stop()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


def logged(gateway: Gateway, event: str) -> list[dict[str, Any]]:
    """The lines of the log about an event."""
    lines = [line for line in gateway.complaints().splitlines() if line.startswith("{")]
    return [entry for line in lines if (entry := json.loads(line))["event"] == event]


def once(gateway: Gateway, event: str, met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first line about an event that is as wanted, as soon as it is there."""
    return until(lambda: next((one for one in logged(gateway, event) if met(one)), None))


async def whole(asked: Asked) -> bool:
    """Whether an answer came to its end."""
    try:
        return (await asked.rest()).endswith(b"data: [DONE]\n\n")
    except (EOFError, OSError):
        return False


CRASHES = ("segv", "kill", "abort", "exit")
SIGNALS = {"segv": "SIGSEGV", "kill": "SIGKILL", "abort": "SIGABRT", "exit": "exit 1"}


@pytest.mark.parametrize("crashes", [4, pytest.param(50, marks=pytest.mark.large)])
async def test_O4_a_crash_costs_only_the_streams_of_its_worker(
    crashes: int, pair: Gateway, client: Client, figure: Note
) -> None:
    gateway = pair
    await workers(gateway, client, 2)
    lost = kept = 0
    before = len(logged(gateway, "worker_died"))
    for number in range(crashes):
        how = CRASHES[number % len(CRASHES)]
        streams = [await client.ask(gateway.url + CHAT, STREAM) for _ in range(12)]
        blow = await client.send(f"{gateway.url}/who", method="GET", x_trouble=how)
        assert b"" == await blow.reader.read()  # It is dead.
        died = logged(gateway, "worker_died")[before:]
        while len(died) <= number:
            # Whoever comes meanwhile is served.
            asked = await client.ask(f"{gateway.url}/who", method="GET")
            assert b"hello" == await asked.rest()
            asked.leave()
            died = logged(gateway, "worker_died")[before:]
        assert SIGNALS[how] == died[number]["cause"]
        if how in ("segv", "abort"):
            assert "trouble" == died[number]["plugin"]
            assert "trouble_plugin.py" in str(died[number]["stack"])
        streams += [await client.ask(gateway.url + CHAT, STREAM) for _ in range(4)]
        for stream in streams:
            if await whole(stream):
                kept += 1
            else:
                assert str(died[number]["pid"]) == stream.headers["x-pid"]
                lost += 1
    assert kept >= 4 * crashes
    await workers(gateway, client, 2)
    figure("crashes; streams lost with their worker, whole", f"{crashes}; {lost}, {kept}")


async def workers(gateway: Gateway, client: Client, count: int) -> Counter[str]:
    """How many of the connections each worker takes; until all have taken some."""
    found: Counter[str] = Counter()
    end = time.monotonic() + 90
    while len(found) < count:
        assert time.monotonic() < end, found
        asking = [client.ask(f"{gateway.url}/who", method="GET") for _ in range(20)]
        asked = await asyncio.gather(*asking)
        found.update(one.headers["x-pid"] for one in asked)
        for one in asked:
            one.leave()
    return found


async def test_O4_a_worker_that_dies_with_commands_unread_costs_no_more(
    pair: Gateway, client: Client
) -> None:
    asked = await client.ask(f"{pair.url}/who", method="GET")
    worker, before = int(asked.headers["x-pid"]), len(logged(pair, "worker_died"))
    os.kill(worker, signal.SIGSTOP)
    pair.process.send_signal(signal.SIGHUP)
    await asyncio.sleep(0.5)  # The supervisor has told it by now.
    os.kill(worker, signal.SIGKILL)
    until(lambda: logged(pair, "worker_died")[before:] or None)
    await workers(pair, client, 2)
    assert pair.process.poll() is None


async def test_O4_no_memory_for_one_request_is_that_requests_fault(
    pair: Gateway, client: Client
) -> None:
    gateway = pair
    stream = await client.ask(gateway.url + CHAT, STREAM)
    asked = await client.ask(gateway.url + CHAT, STREAM, x_trouble="memory")
    assert (500, "internal_error") == (asked.status, (await asked.json())["error"]["code"])
    died = len(logged(gateway, "worker_died"))
    assert await whole(stream)
    assert died == len(logged(gateway, "worker_died"))


async def test_O4_a_worker_that_dies_at_once_is_restarted_ever_more_slowly(
    serve: Serve, upstream: RawUpstream, trouble: str, client: Client
) -> None:
    text = configuration(upstream.url, "lame_duck: 0s")
    gateway = serve(text, "--workers", "1", start=False, PYTHONPATH=trouble)
    gateway.start()
    for _ in range(4):
        blow = await client.send(f"{gateway.url}/who", method="GET", x_trouble="kill")
        assert b"" == await blow.reader.read()
    # With nobody there to answer, who comes waits in the queue of the listening socket.
    asked = await client.ask(f"{gateway.url}/who", method="GET")
    assert b"hello" == await asked.rest()
    waits = [line["restart_in"] for line in logged(gateway, "worker_died")]
    assert [0.0, 0.1, 0.2, 0.4] == waits

    # The death of the supervisor is the end of its worker.
    gateway.process.kill()
    gateway.process.wait(90)
    until(lambda: True if gone(int(asked.headers["x-pid"])) else None)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "Z"  # Nobody here buries it.


async def test_D4_O4_a_worker_starts_again_while_its_store_is_away(
    serve: Serve, upstream: RawUpstream, trouble: str, client: Client
) -> None:
    gateway = serve(configuration(upstream.url), "--workers", "2", PYTHONPATH=trouble)
    await workers(gateway, client, 2)
    books = gateway.folder / "books.db"
    for file in gateway.folder.glob("books.db*"):
        file.rename(file.with_name("away-" + file.name))
    books.mkdir()
    blow = await client.send(f"{gateway.url}/who", method="GET", x_trouble="kill")
    assert b"" == await blow.reader.read()
    once(gateway, "store_away", lambda line: line["store"] == "sql")
    await workers(gateway, client, 2)
    asked = await client.ask(gateway.url + CHAT, STREAM)
    assert await whole(asked)
    assert 1 == len(logged(gateway, "worker_died"))
    books.rmdir()
    once(gateway, "store_back", lambda line: line["store"] == "sql")


async def test_O4_kept_connections_are_spread_over_the_workers(
    pair: Gateway, client: Client, figure: Note
) -> None:
    gateway = pair
    await workers(gateway, client, 2)
    # A worker that gets no turn takes nobody; that is not so each time.
    for _ in range(TIMES):
        at_once = [client.ask(f"{gateway.url}/who", method="GET") for _ in range(100)]
        asked = await asyncio.gather(*at_once)
        spread = Counter(one.headers["x-pid"] for one in asked)
        for _ in range(100):
            one = await client.ask(f"{gateway.url}/who", method="GET")
            asked.append(one)
        in_turn = Counter(one.headers["x-pid"] for one in asked[100:])
        if all(len(each) == 2 and min(each.values()) >= 20 for each in (spread, in_turn)):
            break
    shares = [sorted(each.values()) for each in (spread, in_turn)]
    figure("of 100 connections at once, and of 100 in turn", f"{shares[0]}, {shares[1]}")
    for each in (spread, in_turn):
        assert 2 == len(each)
        # The kernel deals them out by a hash: 50 of 100 give or take 5. This is six times that.
        assert min(each.values()) >= 20


@pytest.mark.parametrize("how", ["sleep 0.4", "sleep 1"])
async def test_O3_a_blocked_loop_is_logged_with_its_plugin_and_stack(
    how: str, pair: Gateway, client: Client
) -> None:
    gateway, late = pair, float(how.split()[1])
    asked = await client.ask(f"{gateway.url}/who", method="GET", x_trouble=how)
    assert b"hello" == await asked.rest()
    line = once(
        gateway,
        "loop_blocked",
        lambda one: one["plugin"] == "trouble" and one["seconds"] > late - 0.1,
    )
    assert ("passy-trouble 1.0", ["trouble"]) == (line["distribution"], line["filters"])
    assert "trouble_plugin.py" in line["stack"][0]


@pytest.mark.parametrize("how", ["sleep 30", "regex"])
async def test_O3_a_dead_loop_is_replaced_and_its_plugin_named(
    how: str, impatient: Gateway, client: Client
) -> None:
    # `regex` never lets go of the interpreter: nothing written in Python could see it.
    gateway = impatient
    await workers(gateway, client, 2)
    before = len(logged(gateway, "worker_dead"))
    blow = await client.send(f"{gateway.url}/who", method="GET", x_trouble=how)
    began = time.monotonic()
    streams = []

    def found_dead() -> list[dict[str, Any]]:
        """Of those that its plugin held up: a busy machine may hold up the other one."""
        lines = logged(gateway, "worker_dead")[before:]
        return [line for line in lines if line["plugin"] == "trouble"]

    while not (dead := found_dead()):
        assert time.monotonic() < began + 30
        streams.append(await client.send(gateway.url + CHAT, STREAM))
        await asyncio.sleep(0.1)
    assert b"" == await blow.reader.read()
    assert "trouble_plugin.py" in str(dead[0]["stack"][:3])
    once(gateway, "worker_died", lambda line: line["pid"] == dead[0]["pid"])
    served = await asyncio.gather(*[one.head() for one in streams], return_exceptions=True)
    others = [one for one in served if isinstance(one, Asked)]
    assert others
    came = await asyncio.gather(*map(whole, others))
    lost = {one.headers["x-pid"] for one, ended in zip(others, came, strict=True) if not ended}
    held_up = [one for one in logged(gateway, "worker_dead")[before:] if one["seconds"] >= 2]
    assert lost <= {str(one["pid"]) for one in held_up if one["pid"] != dead[0]["pid"]}
    await workers(gateway, client, 2)


HANGS = """
import asyncio, pathlib, time
from passy_proxy import Filter, hookimpl


class Hangs(Filter):
    name = "hangs"

    async def start(self):
        while (how := pathlib.Path("hang")).exists():
            time.sleep(0.1) if how.read_text() == "held up" else await asyncio.sleep(0.1)


@hookimpl
def passy_filters():
    return [Hangs]
"""


@pytest.mark.parametrize("how", ["held up", "waits"])
async def test_O3_a_worker_that_never_comes_to_serve_is_replaced(
    how: str, serve: Serve, tmp_path: Path, client: Client, trouble: str
) -> None:
    text = """
edge: {start_timeout: 2s, lame_duck: 0s}
chains: {default: [hangs, trouble, static: {body: hello}]}
routes: [{match: GET /who}]
"""
    path = os.pathsep.join((installed(tmp_path, "hangs", HANGS), trouble))
    gateway = serve(text, "--workers", "2", start=False, PYTHONPATH=path)
    gateway.start()
    first = int(next(iter(await workers(gateway, client, 2))))
    (gateway.folder / "hang").write_text(how)
    os.kill(first, signal.SIGKILL)
    dead = once(gateway, "worker_dead", lambda line: not line["ready"])
    assert dead["pid"] != first
    assert 2 <= dead["seconds"] < 20
    if how == "held up":
        assert "hangs" == dead["plugin"]
    # Meanwhile the other one serves.
    asked = await client.ask(f"{gateway.url}/who", method="GET")
    assert b"hello" == await asked.rest()
    (gateway.folder / "hang").unlink()
    once(gateway, "worker_died", lambda line: line["pid"] == dead["pid"])
    await workers(gateway, client, 2)
    assert 0 == gateway.stop()


@pytest.mark.parametrize("how", ["regex"])
def test_O3_without_a_supervisor_a_dead_loop_ends_the_process(
    how: str, serve: Serve, upstream: RawUpstream, trouble: str
) -> None:
    text = configuration(upstream.url, "loop_dead: 1s")
    gateway = serve(text, start=False, PYTHONPATH=trouble)
    gateway.start()
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as sock:
        sock.sendall(f"GET /who HTTP/1.1\r\nhost: x\r\nx-trouble: {how}\r\n\r\n".encode())
        assert 1 == gateway.process.wait(90)
    assert "Timeout" in gateway.complaints()
    assert "trouble_plugin.py" in gateway.complaints()


async def test_O3_a_stopped_worker_is_replaced(impatient: Gateway, client: Client) -> None:
    gateway = impatient
    pid = random.choice(list(await workers(gateway, client, 2)))
    os.kill(int(pid), signal.SIGSTOP)
    once(gateway, "worker_dead", lambda line: str(line["pid"]) == pid)
    after = await workers(gateway, client, 2)
    assert pid not in after


@pytest.mark.parametrize("arguments", [("--workers", "1")], ids=["worker"])
async def test_D7_a_log_that_nobody_reads_holds_nobody_up(
    arguments: tuple[str, ...],
    serve: Serve,
    upstream: RawUpstream,
    trouble: str,
    tmp_path: Path,
    client: Client,
) -> None:
    """Standard output and standard error are pipes that are full."""
    gateway = serve(configuration(upstream.url), *arguments, start=False, PYTHONPATH=trouble)
    for name in ("out", "err"):
        os.mkfifo(gateway.folder / name)
    ends = [os.open(gateway.folder / name, os.O_RDWR | os.O_NONBLOCK) for name in ("out", "err")]
    gateway.start()
    for end in ends:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(end, b"." * 4096)
    slowest = 0.0
    for number in range(60):
        began = time.monotonic()
        what = "memory" if number % 3 == 0 else ""
        asked = await client.ask(f"{gateway.url}/who", method="GET", x_trouble=what)
        await asked.rest()
        assert (500 if what else 200) == asked.status
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 5
    page = (await client.ask(f"{gateway.url}/metrics", method="GET")).rest()
    [dropped] = [n for n in (await page).split(b"\n") if n.startswith(b"passy_log_lines_dropped")]
    assert 0 < int(dropped.split()[1])
    assert 0 == gateway.stop()
    for end in ends:
        os.close(end)
