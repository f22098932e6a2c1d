"""The way of usage from the journal into the database: troubles, several writers, a killed one."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_plugins.stores.sql import Sql, SqlSettings, database, ledger
from passy_plugins.stores.sql.ledger import Shipper
from passy_plugins.stores.sql.shipment import has_proof
from passy_proxy.config.settings import Secret
from passy_proxy.evidence import Proof
from passy_proxy.journal import Journal, JournalSettings
from passy_proxy.json import dumps, loads
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, BegunRow, UsageRecord
from passy_proxy.recovery import left_behind
from passy_proxy.site import Site
from passy_proxy.stores import StoreUnavailable

pytestmark = pytest.mark.anyio

KEY = "the secret key of these tests: 0123456789"
ATTEMPT = AttemptRecord("echo", "echo", 200, "", 0, 1, False)
COUNTS = (1, 2, 0, 0, 0, 0, 0)
NAMES = ("key_1", "", "", "", "", "/v1/chat/completions", "echo", "echo", "echo", "ok")
RECORD = UsageRecord("req_0", 1.5, *NAMES, 200, False, *COUNTS, False, 0, "", 1, 2, (ATTEMPT,))

WRITER = f"""
import asyncio, sys
from pathlib import Path
from passy_plugins.stores.sql import Sql, SqlSettings, database
from passy_plugins.stores.sql.ledger import Shipper
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import BegunRow, AttemptRecord, UsageRecord
from passy_proxy.site import Site

RECORD = UsageRecord("", 1.5, *{NAMES}, 200, False, *{COUNTS}, False, 0, "", 1, 2,
    (AttemptRecord("echo", "echo", 200, "", 0, 1, False),))

database.BUSY_SECONDS = 60.0
Shipper.stop.__defaults__ = (60.0,)  # On a machine that others use as well.

async def write(data, url, first, last):
    store = Sql(SqlSettings(url=Secret(url)), Site(Path(data), Keyring([{KEY!r}])))
    await store.start()
    for number in range(int(first), int(last)):
        store.record(RECORD._replace(id=f"req_{{number:06}}").row())
        if number % 100 == 0:
            await asyncio.sleep(0.005)
            print(number, flush=True)
    await store.stop()

asyncio.run(write(*sys.argv[1:]))
"""


def store_at(path: Path, **settings: Any) -> Sql:
    url = Secret(f"sqlite:///{path}")
    return Sql(SqlSettings(url=url, **settings), Site(path.parent, Keyring([KEY])))


def writer(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    place = [str(path.parent), f"sqlite:///{path}"]
    arguments = [sys.executable, "-c", WRITER, *place, str(first), str(last)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def ids(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM usage ORDER BY id")]


def numbered(first: int, last: int) -> list[UsageRecord]:
    return [RECORD._replace(id=f"req_{number:06}") for number in range(first, last)]


async def until(true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  # it waits for threads and other processes
            await asyncio.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "passy.db"


async def test_processes_that_write_at_once_lose_and_double_nothing(path: Path) -> None:
    first, second = writer(path, 0, 3_000), writer(path, 2_000, 5_000)
    for process in (first, second):
        await asyncio.to_thread(process.communicate, timeout=180)
    assert (0, 0) == (first.returncode, second.returncode)
    assert [record.id for record in numbered(0, 5_000)] == ids(path)


async def test_what_a_killed_process_had_written_is_not_written_twice(path: Path) -> None:
    process = writer(path, 0, 1_000_000)
    assert process.stdout is not None
    with process:
        await until(lambda: path.exists() and _rows(path) > 500)
        process.kill()
    written = _rows(path)
    store = store_at(path)
    await store.start()
    for record in numbered(0, written + 500):  # all of them once more
        store.record(record.row())
    await store.stop()
    found = ids(path)  # More than those: what it had in its journal is there too.
    assert [record.id for record in numbered(0, len(found))] == found
    assert len(found) >= written + 500


def _rows(path: Path) -> int:
    try:
        return len(ids(path))
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0


def events(logs: Sequence[MutableMapping[str, Any]]) -> list[str]:
    return [entry["event"] for entry in logs]


async def test_records_wait_while_the_database_is_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(ledger, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ledger, "LONGEST_PAUSE", 0.05)
    store = store_at(path)
    with structlog.testing.capture_logs() as logs, closing(sqlite3.connect(path)) as other:
        await store.start()
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        for record in numbered(0, 600):
            store.record(record.row())
        await until(lambda: "usage_waits" in events(logs))
        store.record(numbered(600, 601)[0].row())
        await asyncio.sleep(0.3)
        assert store.waiting > 90_000
        other.execute("ROLLBACK")
        await until(lambda: store.waiting == 0)
        await store.stop()
    assert 601 == len(ids(path))
    assert 1 == events(logs).count("usage_waits")


async def test_what_clients_and_upstreams_say_can_always_be_written(path: Path) -> None:
    store = store_at(path)
    records = numbered(0, 5)
    records[1] = records[1]._replace(input=2**70)
    records[2] = records[2]._replace(input=-(2**70))
    records[3] = records[3]._replace(model="\ud800")
    failed = ATTEMPT._replace(failure="broken: \ud800")
    records[4] = records[4]._replace(attempts=(failed,))
    await store.start()
    for record in records:
        assert store.record(record.row()) is True
    await store.stop()
    with closing(sqlite3.connect(path)) as books:
        found = books.execute("SELECT input, model, attempts FROM usage ORDER BY id").fetchall()
    assert [1, 2**63 - 1, 1 - 2**63, 1, 1] == [input for input, _, _ in found]
    assert "?" == found[3][1]
    assert "broken: ?" in found[4][2]


@pytest.mark.parametrize("character", ["x", "\x01", "\N{SLIGHTLY SMILING FACE}"])
async def test_megabytes_that_clients_and_upstreams_say_are_recorded_in_short(
    path: Path, character: str
) -> None:
    said = character * (3 << 20)
    failed = ATTEMPT._replace(failure=f"stream: {said}", model=said)
    records = [
        RECORD._replace(id=f"req_{number}", model=said, attempts=(failed,) * number)
        for number in (1, 2, 10)
    ]
    store = store_at(path, journal={"segment": "64KiB"})
    await store.start()
    for record in records:
        proof = Proof("11" * 32, "22" * 32, ("gateway",))
        assert store.record(record.row(), proof) is True
    await store.stop()
    with closing(sqlite3.connect(path)) as books:
        found = books.execute("SELECT model, input, output, attempts FROM usage").fetchall()
    assert [(character * 200, 1, 2)] * 3 == [row[:3] for row in found]
    assert [1, 2, 10] == [len(loads(row[3].encode())) for row in found]


@pytest.mark.parametrize("character", ["x", '"', "\x01", "\N{SLIGHTLY SMILING FACE}"])
async def test_an_attempt_of_any_model_is_noted(path: Path, character: str) -> None:
    store = store_at(path)
    await store.start()
    model, id = character * 600, "req_" + "0" * 32
    asked = (
        "k" * 40,
        "o" * 40,
        "t" * 40,
        "u" * 40,
        "",
        "/v1/chat/completions",
        model,
        1,
        "upstream",
        model,
        2_500_000_000,
        "2.5 in, 10 out per 1M (a price list of some name)",
    )
    row = BegunRow(id, 1_795_430_994_913, 12, 30_001, asked, [("upstream", model, 3)] * 9)
    store.begin(id, dumps(tuple(row)))
    assert 1 == store._journal.running
    assert store.record(RECORD._replace(id=id).row())
    await store.stop()


class Away:
    """A database that takes nothing until it is back, and some things never."""

    def __init__(self) -> None:
        self.here = False
        self.tries = 0
        self.written: list[bytes] = []
        self.prices: list[bytes] = []
        self.never = b"nothing is this"
        self.gone: list[str] = []
        """Journals of others that are all here."""

    async def write(self, records: Sequence[bytes], prices: Sequence[bytes]) -> None:
        self.tries += 1
        if not self.here:
            raise StoreUnavailable("away")
        if any(self.never in record for record in records):
            raise ValueError("never")
        self.written += records
        self.prices += prices

    async def over(self, journal: str) -> None:
        if not self.here:
            raise StoreUnavailable("away")
        self.gone.append(journal)

    @property
    def ids(self) -> list[str]:
        return [loads(record)[0] for record in self.written]


class Shipping:
    """A journal with its shipper, before a database that is away."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.away = Away()
        log = structlog.get_logger()
        self.journal = Journal(folder, JournalSettings(**settings), log)
        self.shipper = Shipper(self.journal, self.away.write, self.away.over, log)
        self.journal.start()

    def record(self, records: Sequence[UsageRecord]) -> None:
        for record in records:
            assert self.journal.close(record.id, dumps(record.row()))
            self.shipper.wake()

    async def stop(self, seconds: float = 60.0) -> None:
        await self.shipper.stop(seconds)
        self.journal.stop()


@pytest.fixture
async def shipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shipping]:
    monkeypatch.setattr(ledger, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ledger, "LONGEST_PAUSE", 0.05)
    shipping = Shipping(tmp_path / "journal", segment="64KiB")
    yield shipping
    await shipping.stop(0.1)


async def test_nothing_is_lost_while_the_database_is_away(shipping: Shipping) -> None:
    away, records = shipping.away, numbered(0, 1_000)
    with structlog.testing.capture_logs() as logs:
        shipping.shipper.start()
        shipping.record(records)
        recorded = time.time()
        await until(lambda: away.tries > 2)
        assert shipping.shipper.delivered() <= recorded
        assert len(list(shipping.journal.folder.glob("*-*.[0-9]*"))) > 2
        away.here = True
        await shipping.stop()
    assert shipping.shipper.delivered() > recorded
    assert [record.id for record in records] == away.ids
    assert ["usage_waits"] == [entry["event"] for entry in logs]
    assert [] == list(shipping.journal.folder.iterdir())


async def test_what_a_stop_cannot_ship_the_next_start_does(
    shipping: Shipping, tmp_path: Path
) -> None:
    with structlog.testing.capture_logs() as logs:
        shipping.shipper.start()
        shipping.record(numbered(0, 7))
        await shipping.stop(0.1)
    assert "usage_waits_on_disk" == logs[-1]["event"]
    following = Shipping(tmp_path / "journal")
    following.away.here = True
    with structlog.testing.capture_logs() as logs:
        following.shipper.start()
        await until(lambda: following.away.gone)
        await following.stop()
    assert [record.id for record in numbered(0, 7)] == following.away.ids
    assert [shipping.journal.name] == following.away.gone
    assert [("journal_recovered", 7)] == [(entry["event"], entry["records"]) for entry in logs]
    assert [] == list((tmp_path / "journal").iterdir())


async def test_who_cannot_say_that_all_is_there_leaves_it_to_who_comes_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(journal: str) -> None:
        raise StoreUnavailable("away")

    def marks() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            wanted = "SELECT name FROM marks WHERE name LIKE 'journal:%'"
            return [name.partition(":")[2] for (name,) in connection.execute(wanted)]

    first = store_at(path)
    await first.start()
    await until(marks)
    monkeypatch.setattr(first, "_delivered", away)
    await first.stop()
    (left,) = marks()
    second = store_at(path)
    await second.start()
    await until(lambda: [second._journal.name] == marks())
    assert left != second._journal.name
    await second.stop()
    assert [] == marks()
    assert [] == list(second._journal.folder.iterdir())


async def test_what_the_database_never_takes_is_put_aside_alone(shipping: Shipping) -> None:
    away = shipping.away
    away.here, away.never = True, b"req_000004"
    with structlog.testing.capture_logs() as logs:
        shipping.shipper.start()
        shipping.record(numbered(0, 9))
        await shipping.stop()
    assert [f"req_{number:06}" for number in range(9) if number != 4] == away.ids
    refused = shipping.journal.folder / "damaged/refused.jsonl"
    assert ["req_000004"] == [loads(line)[0] for line in refused.read_bytes().splitlines()]
    assert ["usage_refused"] == [entry["event"] for entry in logs]


async def test_records_are_written_in_batches(
    shipping: Shipping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "FLUSH_SECONDS", 3_600.0)
    monkeypatch.setattr(ledger, "CHUNK", 1 << 15)
    away = shipping.away
    away.here = True
    shipping.shipper.start()
    await until(lambda: shipping.shipper.asleep)
    shipping.record(numbered(0, 10))
    await asyncio.sleep(0.05)
    assert 0 == away.tries
    # A second one would be too late while it waits: here is enough, and nothing but a look.
    await shipping.stop()
    assert 10 == len(away.written)
    assert 1 == away.tries


async def test_a_crowd_of_records_does_not_wait(
    shipping: Shipping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "FLUSH_SECONDS", 3_600.0)
    monkeypatch.setattr(ledger, "CHUNK", 1 << 15)
    away = shipping.away
    away.here = True
    shipping.record(numbered(0, 600))
    shipping.shipper.start()
    await until(lambda: len(away.written) >= 500)
    assert away.tries < 100


async def test_a_price_follows_its_record(path: Path) -> None:
    store = store_at(path)
    await store.start()
    unpriced, priced = numbered(0, 2)
    for record in (unpriced._replace(cost_nanos=None), priced._replace(cost_nanos=7)):
        store.record(record.row())
        store.price(record.id, 42, "1 in, 2 out per 1M")
    await store.stop()
    with closing(sqlite3.connect(path)) as books:
        found = books.execute("SELECT cost_nanos, price FROM usage ORDER BY id").fetchall()
    assert [(42, "1 in, 2 out per 1M"), (7, "")] == found


async def test_a_damaged_line_is_told_and_left_out(shipping: Shipping) -> None:
    shipping.away.here = True
    shipping.record(numbered(0, 3))
    segment = next(shipping.journal.folder.glob("*-*.1"))
    with segment.open("r+b") as file:
        file.seek(segment.read_bytes().index(b"req_000001"))
        file.write(b"R")
    assert shipping.journal.recent()  # What is in memory needs no reading.
    with structlog.testing.capture_logs() as logs:
        shipping.shipper.start()
        await shipping.stop()
    assert ["req_000000", "req_000002"] == shipping.away.ids
    assert ["journal_damaged"] == [entry["event"] for entry in logs]
    assert (shipping.journal.folder / "damaged" / segment.name).exists()


async def test_a_lack_of_descriptors_ends_no_shipping(
    shipping: Shipping, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def none_left(folder: Path) -> list[Any]:
        looks.append(folder)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(ledger, "left_behind", none_left)
    monkeypatch.setattr(ledger, "LOOK_SECONDS", 0.1)
    shipping.away.here = True
    with structlog.testing.capture_logs() as logs:
        shipping.shipper.start()
        await until(lambda: len(looks) > 1)
        shipping.record(numbered(0, 3))
        await until(lambda: shipping.away.written)
    assert [record.id for record in numbered(0, 3)] == shipping.away.ids
    assert ["usage_waits"] == [entry["event"] for entry in logs]


async def test_a_full_disk_where_the_refused_are_put_ends_no_shipping(
    shipping: Shipping, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, put_aside, full = shipping.away, shipping.shipper._put_aside, [True, True]

    def put(refused: bytes) -> None:
        if full:
            full.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        put_aside(refused)

    monkeypatch.setattr(shipping.shipper, "_put_aside", put)
    away.here, away.never = True, b"req_000004"
    shipping.shipper.start()
    shipping.record(numbered(0, 9))
    await shipping.stop()
    assert {f"req_{number:06}" for number in range(9) if number != 4} == set(away.ids)
    refused = shipping.journal.folder / "damaged/refused.jsonl"
    assert ["req_000004"] == [loads(line)[0] for line in refused.read_bytes().splitlines()]


async def test_journals_that_are_not_taken_over_are_left_to_others(
    shipping: Shipping, tmp_path: Path
) -> None:
    shipping.record(numbered(0, 1))
    await shipping.stop(0.1)
    following = Shipping(tmp_path / "journal")
    hangs = asyncio.Event()

    async def write(records: Sequence[bytes], prices: Sequence[bytes]) -> None:
        hangs.set()
        await asyncio.Event().wait()

    following.shipper._write = write
    following.shipper.start()
    await hangs.wait()
    await following.stop(0.01)
    [left] = left_behind(tmp_path / "journal")
    left.release()


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
async def test_what_survives_the_power_in_the_journal_does_so_in_the_database(
    path: Path, durability: str, synchronous: int
) -> None:
    # With 1, SQLite's NORMAL, a power failure takes back what was written since a checkpoint: out
    # of a journal that has forgotten it.
    store = store_at(path, journal={"durability": durability})
    await store.start()
    assert [(synchronous,)] == await store._writer.fetch("PRAGMA synchronous")
    assert [(1,)] == await store._reader.fetch("PRAGMA synchronous")
    await store.stop()


async def test_a_journal_that_cannot_be_read_keeps_nobody_from_the_others(
    shipping: Shipping, tmp_path: Path
) -> None:
    other = Shipping(tmp_path / "journal")
    for number, dead in enumerate((shipping, other)):
        dead.record(numbered(number, number + 1))
        await dead.stop(0.1)
    damaged = shipping.journal.folder / f"{shipping.journal.name}.1"
    damaged.unlink()
    damaged.mkdir()
    following = Shipping(tmp_path / "journal")
    following.away.here = True
    with structlog.testing.capture_logs() as logs:
        following.shipper.start()
        await until(lambda: following.away.written)
        await following.stop()
    assert ["req_000001"] == following.away.ids
    assert {"usage_waits", "journal_recovered"} == {entry["event"] for entry in logs}
    damaged.rmdir()


@pytest.mark.parametrize("proof", [("", "", ()), ("ab", "cd", ("usage", "x"))])
@pytest.mark.parametrize(
    "attempts", [(), (ATTEMPT,), (ATTEMPT._replace(credential="c", ran='x"]]]'),)]
)
def test_F6_a_proof_behind_a_row_is_known_by_its_shape(attempts: Any, proof: Any) -> None:
    row = ("req_1", '],["a","b",["c"]]]', list(map(tuple, attempts)))
    assert not has_proof(dumps(row))
    assert has_proof(dumps((*row, proof)))
