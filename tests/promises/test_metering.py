"""M: what a client saw complete has one record, whatever happens to process, database and disk."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
from harness.client import Told, send
from harness.figures import Note
from harness.gateway import Gateway, Serve, until
from harness.metered import Clients, answer, number_of, question, steps_of, tokens
from harness.postgres import Database
from harness.upstream import Hit, RawUpstream, Step

CONFIGURATION = """
overload: {{loop_lag: 0s}}
stores:
  books: {{kind: sql, url: "sqlite:///.passy/passy.db", journal: {{{journal}}}}}
upstreams:
  mock: {{dialect: openai, url: "{url}/v1", credential: sk-of-the-operator}}
models: {{"*": ["mock/*"]}}
chains: {{default: [usage: {{ledger: books{usage}}}, alias, fallback: {{retries: 0}}]}}
routes: [{{match: POST /v1/chat/completions, chain: default}}]
prices: {{mock/*: {{input: 1, output: 2, per: 1M}}}}
"""


def configuration(upstream: RawUpstream, *, journal: str = "", usage: str = "") -> str:
    return CONFIGURATION.format(url=upstream.url, journal=journal, usage=usage)


def books(gateway: Gateway) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db")) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM usage")]


def workers(gateway: Gateway) -> list[int]:
    """Processes that serve: the supervisor's children but for multiprocessing's own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = stat.with_name("cmdline").read_bytes()
            if (
                int(parent) == gateway.process.pid
                and state != "Z"
                and b"resource_tracker" not in command
            ):
                found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    ("count", "kills", "over"),
    [
        pytest.param(300, 2, 4.0, id="fast"),
        pytest.param(5_000, 20, 60.0, id="large", marks=pytest.mark.large),
    ],
)
def test_M1_a_complete_answer_has_exactly_one_record_after_any_kill(
    serve: Serve, figure: Note, count: int, kills: int, over: float
) -> None:
    dice = random.Random(count)
    with RawUpstream(script=lambda hit: answer(hit, 0.01)) as upstream:
        gateway = serve(configuration(upstream), "--workers", "2", start=False)
        gateway.start()
        clients = Clients(gateway.url, count, 100, seed=count)
        killed = 0

        def kill() -> None:
            nonlocal killed
            for moment in sorted(dice.uniform(0.1, 0.95) * over for _ in range(kills)):
                time.sleep(max(0.0, began + moment - time.monotonic()))
                before = killed
                while killed == before:
                    serving = until(lambda: workers(gateway) or None)
                    with suppress(ProcessLookupError):
                        os.kill(dice.choice(serving), signal.SIGKILL)
                        killed += 1

        began = time.monotonic()
        killer = threading.Thread(target=kill)
        killer.start()
        asyncio.run(clients.run(over))
        killer.join()
        # Those who were killed last are taken over by those who live, or by the next start.
        gateway.stop()
        gateway.start()
        journals = gateway.folder / "data/journal"
        until(lambda: len(list(journals.glob("*/*.lock"))) <= 2 or None)
        assert 0 == gateway.stop()
        hits = Counter(number_of(hit) for hit in upstream.hits if hit.whole.is_set())
    assert kills == killed
    records = books(gateway)
    by_number: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        by_number.setdefault(int(record["model"].removeprefix("m-")), []).append(record)
    doubled = [number for number, found in by_number.items() if len(found) > 1]
    lost = [number for number in clients.complete if number not in by_number]
    assert ([], []) == (doubled, lost)
    for number in clients.complete:
        [record] = by_number[number]
        assert ("ok", 0) == (record["outcome"], record["estimated"]), record
        assert tokens(number) == (record["input"], record["output"]), record
    assert 0 == len([number for number in hits if number not in by_number])
    unasked = [found[0] for number, found in by_number.items() if number not in hits]
    # Noted before the upstream is asked; the kill came in between.
    assert all(record["outcome"] == "interrupted" for record in unasked)
    outcomes = Counter(record["outcome"] for record in records)
    assert set(outcomes) <= {"ok", "interrupted", "client_gone"}
    assert len(clients.complete) > count / 4
    figure("requests, kills", f"{count}, {killed}")
    figure(
        "complete at clients, records, lost, double",
        f"{len(clients.complete)}, {len(records)}, 0, 0",
    )
    figure("outcomes; noted without a hit", f"{dict(outcomes)}; {len(unasked)}")


# M2: the shipper, killed at its worst moments

KEY = "the secret key of these tests: 0123456789"
SHIPPER = """
import asyncio, os, signal, sys
from pathlib import Path
from passy_plugins.stores.sql import Sql, SqlSettings, database, ledger, shipment
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord
from passy_proxy.site import Site

ledger.FLUSH_SECONDS = 0.02
folder, point, first, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
calls = 0

def dying(function):
    def called(*arguments):
        global calls
        calls += 1
        if calls > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return called

if point == "commit":      # in the database, and the cursor does not know
    ledger.save_cursor = dying(ledger.save_cursor)
elif point == "cursor":    # written, and not yet in its place
    Path.replace = dying(Path.replace)
elif point == "batch":     # within the transaction
    database.loads = dying(database.loads)
    enter, die = shipment.enter, dying(lambda: None)

    async def entered(*arguments):
        await enter(*arguments)
        die()

    shipment.enter = entered

async def write():
    url = Secret(os.environ["DATABASE_URL"])
    store = Sql(SqlSettings(url=url), Site(folder, Keyring([sys.argv[5]])))
    await store.start()
    numbers = (5, 0, 0, 0, 0, 0, 0)
    for number in range(first, first + 600):
        record = UsageRecord(f"req_{number:07}", 1.5, *[""] * 5, "r", "m", "u", "m", "ok", 200,
            False, *numbers, False, 0, "", 1, 2, ())
        store.record(record.row())
        if number % 40 == 39:
            await asyncio.sleep(0.01)
    await store.stop()

asyncio.run(write())
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize(
    "rounds", [pytest.param(9, id="fast"), pytest.param(200, id="large", marks=pytest.mark.large)]
)
def test_M2_the_shipper_enters_each_record_exactly_once(
    request: pytest.FixtureRequest, tmp_path: Path, figure: Note, rounds: int, kind: str
) -> None:
    dice = random.Random(rounds)
    died = Counter[str]()
    database: Database | None = None
    if kind == "postgres":
        database = request.getfixturevalue("database")
    url = f"sqlite:///{tmp_path}/passy.db" if database is None else database.url
    variables = {**os.environ, "DATABASE_URL": url}
    for number in range(rounds):
        point = ("commit", "cursor", "batch")[number % 3]
        after = dice.randrange(3)
        arguments = [str(tmp_path), point, str(number * 1_000), str(after), KEY]
        command = [sys.executable, "-c", SHIPPER, *arguments]
        ended = subprocess.run(command, timeout=60, env=variables)
        assert ended.returncode in (0, -signal.SIGKILL)
        died[point] += ended.returncode != 0
    assert all(died[point] for point in ("commit", "cursor", "batch")), died
    arguments = [str(tmp_path), "never", str(rounds * 1_000), "0", KEY]
    command = [sys.executable, "-c", SHIPPER, *arguments]
    subprocess.run(command, timeout=60, check=True, env=variables)
    found = [id for (id,) in entered(tmp_path, database, "SELECT id FROM usage ORDER BY id")]
    assert len(set(found)) == len(found)
    numbers = [int(id.removeprefix("req_")) for id in found]
    for start in range(0, rounds * 1_000, 1_000):
        # Records are written in order, so those of one life are its first ones without a hole.
        of_round = [number for number in numbers if start <= number < start + 1_000]
        assert list(range(start, start + len(of_round))) == of_round
        assert len(of_round) >= 40
    sums = entered(tmp_path, database, "SELECT sum(requests), sum(input) FROM usage_days")
    assert (len(found), 5 * len(found)) == tuple(map(int, sums[0]))
    assert [] == [path for path in (tmp_path / "journal").glob("*/*") if path.is_file()]
    figure("rounds, deaths by point", f"{rounds}, {dict(died)}")


def entered(folder: Path, database: Database | None, statement: str) -> list[tuple[Any, ...]]:
    """What the books say, of the one kind or the other."""
    if database is not None:
        return database.rows(statement)
    with closing(sqlite3.connect(folder / "passy.db")) as books:
        return books.execute(statement).fetchall()


# M4: a database that is away


@contextmanager
def locked(gateway: Gateway) -> Iterator[None]:
    """Nobody else can write to the database meanwhile."""
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db")) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(3.0, id="fast"), pytest.param(60.0, id="large", marks=pytest.mark.large)],
)
def test_M4_a_database_that_is_away_loses_no_record_and_slows_no_request(
    serve: Serve, figure: Note, seconds: float
) -> None:
    with RawUpstream(script=answer) as upstream:
        gateway = serve(configuration(upstream), start=False)
        gateway.start()

        def load(over: float, seed: int) -> Clients:
            clients = Clients(gateway.url, int(over * 100), 10, seed)
            asyncio.run(clients.run(over))
            assert set() == clients.failed
            return clients

        load(0.5, 1)
        calm = load(seconds, 2)
        with locked(gateway):
            away = load(seconds, 3)
            waiting = sum(path.stat().st_size for path in gateway.folder.glob("data/journal/*/*"))
        began = time.monotonic()
        expected = 50 + 2 * int(seconds * 100)
        until(lambda: len(books(gateway)) >= expected or None)
        back = time.monotonic() - began
        assert 0 == gateway.stop()
    assert expected == len(books(gateway))
    before, meanwhile = (quantiles(each.seconds, n=100)[98] for each in (calm, away))
    # The promise is 2 ms, on a machine that does nothing else. Who waited for the database would
    # wait for as long as it is away, and so would all.
    usual, then = (quantiles(each.seconds, n=10)[8] for each in (calm, away))
    assert then < usual + 1.0
    figure("p99 before, while away (ms)", f"{before * 1e3:.1f}, {meanwhile * 1e3:.1f}")
    figure("entered after (s); journal (MB)", f"{back:.1f}; {waiting / 1e6:.1f}")


# M5: a full disk


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """``place`` is on a disk of 16 MiB."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("M5 NEEDS THE RIGHT TO MOUNT A SMALL TMPFS, which this user does not have")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("policy", ["refuse", "serve"])
def test_M5_a_full_journal_disk_is_a_decision(serve: Serve, figure: Note, policy: str) -> None:
    release = threading.Event()

    def script(hit: Hit) -> Iterator[Step]:
        yield "read"
        steps = steps_of(hit)
        if number_of(hit) == 0:
            steps.insert(3, {"wait": release, "saying": ": still here\n\n"})
        yield from steps

    count = 600
    with RawUpstream(script=script) as upstream:
        settings = {"usage": f", when_full: {policy}", "journal": "segment: 64KiB"}
        gateway = serve(configuration(upstream, **settings), start=False)
        data = gateway.folder / "data"
        with small_disk(data):
            gateway.start()
            told: list[Told] = []
            ask = question(0, stream=True)
            running = threading.Thread(
                target=lambda: told.append(send(gateway.url, ask, quiet=600, patience=600))
            )
            with locked(gateway):  # Nothing is shipped, so nothing makes room.
                running.start()
                upstream.until(lambda: upstream.hits)
                with (data / "ballast").open("wb", buffering=0) as file, suppress(OSError):
                    while file.write(bytes(1 << 14)):
                        pass
                clients = Clients(gateway.url, count, 20, seed=5)
                next(clients._numbers)
                asyncio.run(clients.run())
                refusal = send(gateway.url, question(count, stream=False)).answer("POST")
                release.set()
                running.join()
            (data / "ballast").unlink()
            # It notices that there is room again.
            until(
                lambda: (
                    send(gateway.url, question(count + 1, False)).answer("POST").status == 200
                    or None
                )
            )
            assert 0 == gateway.stop()
    assert b"data: [DONE]" in told[0].data
    models = Counter(record["model"] for record in books(gateway))
    assert {1} == set(models.values())
    log = [json.loads(line) for line in gateway.complaints().splitlines() if line.startswith("{")]
    events = {entry["event"] for entry in log}
    assert "journal_full" in events
    if policy == "refuse":
        assert "journal_has_room_again" in events
        assert 503 == refusal.status
        assert "metering_unavailable" == json.loads(refusal.body)["error"]["code"]
        assert "5" == refusal.headers["retry-after"]
        # Each answer has its record, and nobody who was refused has one.
        answered = {f"m-{number}" for number in clients.complete}
        assert "m-0" in models, "what was under way is recorded"
        assert answered == set(models) - {"m-0", f"m-{count + 1}"}
        assert 100 < len(answered) < count - 100
    else:
        assert 200 == refusal.status
        assert set() == clients.failed
        [counted] = [entry["count"] for entry in log if entry["event"] == "unmetered_requests"]
        served = count + 2
        assert served == len(models) + counted
        assert 100 < counted
    figure("answered, recorded", f"{len(clients.complete)}, {len(models)}")


# M7: a client that leaves


GO_ON = threading.Event()
"""The provider may say what is left to say."""


@pytest.fixture(scope="module")
def provider() -> Iterator[RawUpstream]:
    def script(hit: Hit) -> Iterator[Step]:
        yield "read"
        steps = steps_of(hit, 0.05)
        # One is silent first, the other one talks first.
        steps.insert(0 if number_of(hit) == 1 else 7, {"wait": GO_ON})
        yield from steps

    with RawUpstream(script=script) as upstream:
        yield upstream


@pytest.fixture(scope="module", params=["stop", "guess", "drain"])
def left(
    request: pytest.FixtureRequest, serve: Serve, provider: RawUpstream
) -> tuple[str, Gateway]:
    usage = {
        "stop": "",
        "guess": ", unanswered: prompt",
        "drain": ", when_client_leaves: drain",
    }[request.param]
    return request.param, serve(configuration(provider, usage=usage))


@pytest.mark.parametrize(
    ("window", "number", "stream"),
    [
        ("before the head", 1, True),
        ("before the answer", 1, False),
        ("streaming", 2, True),
    ],
)
def test_M7_a_client_that_leaves_has_one_record_of_that_window(
    left: tuple[str, Gateway],
    provider: RawUpstream,
    window: str,
    number: int,
    stream: bool,
) -> None:
    policy, gateway = left
    GO_ON.clear()
    known = len(books(gateway)) if (gateway.folder / ".passy/passy.db").exists() else 0
    asked = len(provider.hits)
    ask = question(number, stream)
    address = gateway.url.partition("//")[2].split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=90) as sock:
        sock.sendall(ask)
        provider.until(lambda: len(provider.hits) > asked)
        heard = b""
        while window == "streaming" and b"word 2" not in heard:
            heard += sock.recv(1 << 16)
    if policy == "drain":
        time.sleep(1)  # Until it is seen that the client has left.
        GO_ON.set()
    found = until(lambda: books(gateway)[known:] or None)
    GO_ON.set()
    time.sleep(0.3)
    [record] = books(gateway)[known:]
    assert found == [record]
    assert "client_gone" == record["outcome"]
    if policy == "drain":
        assert (*tokens(number), 0) == (record["input"], record["output"], record["estimated"])
        return
    if window != "streaming" and policy == "stop":
        assert (0, 0, 0) == (record["input"], record["output"], record["estimated"])
        return  # The upstream had sent no byte, so nothing is invented.
    body = ask.partition(b"\r\n\r\n")[2]
    assert 1 == record["estimated"]
    assert len(body) / 5 <= record["input"] <= len(body) / 3
    if window == "streaming":
        said = sum(len(f"word {n} ") for n in range(3))
        assert 0.5 * said / 4 <= record["output"] <= 1.5 * said / 3
    else:
        assert 0 == record["output"]
