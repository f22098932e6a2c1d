"""The journal alone: what is written is found again, and nothing else is taken for a record."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_proxy import recovery
from passy_proxy.journal import (
    CLOSE,
    SLOT,
    Journal,
    JournalSettings,
    line,
    load_cursor,
    locked,
    save_cursor,
)
from passy_proxy.json import dumps, loads
from passy_proxy.records import UsageRecord
from passy_proxy.recovery import Left, left_behind, read

pytestmark = pytest.mark.anyio

LOG = structlog.get_logger()
ASKED = (
    "key_1",
    "",
    "",
    "",
    "",
    "POST /v1/chat/completions",
    "m",
    1,
    "echo",
    "echo",
    2_500_000,
    "dear",
)
BEGUN = (1_000, 44, 3, ASKED, ())
Make = Callable[..., Journal]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> Make:
    def make(**settings: Any) -> Journal:
        made = Journal(folder, JournalSettings(**settings), LOG)
        made.start()
        return made

    return make


def begin(journal: Journal, id: str) -> bool:
    return journal.open(id, dumps((id, *BEGUN)))


def end(journal: Journal, id: str, size: int = 300) -> bool:
    return journal.close(id, dumps([id, "x" * size]))


def die(journal: Journal) -> None:
    """As the kernel does it: the files are closed and nothing else."""
    os.close(journal._lock)
    journal._lock = -1


def found(folder: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """The rows in all that was left behind, and what was said about it."""
    rows: list[Any] = []
    with structlog.testing.capture_logs() as logs:
        for left in left_behind(folder):
            for batch in left.batches(structlog.get_logger()):
                rows += [loads(record) for record in batch.records]
            left.release()
    return rows, [dict(entry) for entry in logs]


def test_what_was_under_way_is_recorded_as_interrupted(journal: Make, folder: Path) -> None:
    dead = journal()
    for id in ("one", "two", "three"):
        assert begin(dead, id)
    assert end(dead, "two")
    die(dead)
    rows, logs = found(folder)
    assert [] == logs
    assert ["one", "three", "two"] == sorted(row[0] for row in rows)
    assert "two" == rows[0][0]
    record = UsageRecord.of(rows[1])
    assert ("interrupted", 12, 0, True) == (
        record.outcome,
        record.input,
        record.output,
        record.estimated,
    )
    assert [("echo", True)] == [(each.upstream, each.maybe_billed) for each in record.attempts]
    assert (30, "dear") == (record.cost_nanos, record.price)  # Twelve tokens at 2.5 each.


def test_the_latest_attempt_takes_the_place_of_those_before(journal: Make, folder: Path) -> None:
    dead = journal()
    begin(dead, "one")
    asked = (*ASKED[:-4], "second", "b", *ASKED[-2:])
    dead.open("one", dumps(("one", 1_000, 44, 40, asked, [("first", "a", 0)])))
    die(dead)
    [row], _ = found(folder)
    told = [(each.upstream, each.failure) for each in UsageRecord.of(row).attempts]
    assert [("first", "failed"), ("second", "interrupted")] == told


def test_slots_are_used_again_and_grow_when_needed(journal: Make, folder: Path) -> None:
    dead = journal()
    for number in range(2_000):
        begin(dead, f"{number}")
        end(dead, f"{number}", 0)
    assert SLOT * 256 == next(folder.glob("*.running")).stat().st_size
    for number in range(2_000, 2_600):
        assert begin(dead, f"{number}")
    die(dead)
    rows, _ = found(folder)
    assert [str(number) for number in range(2_000)] == [row[0] for row in rows[:2_000]]
    assert {str(number) for number in range(2_000, 2_600)} == {row[0] for row in rows[2_000:]}


def test_what_does_not_fit_a_slot_is_said_to_have_failed(journal: Make) -> None:
    alive = journal()
    assert not alive.open("big", dumps(("big", "x" * 600)))
    assert 0 == alive.running
    alive.stop()


def test_a_living_journal_is_left_alone(journal: Make, folder: Path) -> None:
    alive = journal()
    end(alive, "one")
    assert [] == left_behind(folder)
    die(alive)
    [left] = left_behind(folder)
    assert [] == left_behind(folder)  # Now it is ours.
    left.discard()
    assert [] == list(folder.iterdir())


def test_a_journal_with_nothing_left_in_it_leaves_nothing(journal: Make, folder: Path) -> None:
    alive = journal()
    begin(alive, "one")
    end(alive, "one")
    alive.cursor = (1, alive._segments[1].end)
    alive.stop()
    assert [] == list(folder.iterdir())


def test_only_what_is_behind_the_cursor_is_shipped_again(journal: Make, folder: Path) -> None:
    dead = journal()
    end(dead, "one")
    save_cursor(folder, dead.name, (1, dead._segments[1].end))
    end(dead, "two")
    die(dead)
    assert ["two"] == [row[0] for row in found(folder)[0]]


@pytest.mark.parametrize("text", ["", "x y", "1", "1 2 3", "-", "1 \ud800"])
def test_a_cursor_that_cannot_be_read_is_the_beginning(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "a.cursor").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert (0, 0) == load_cursor(folder, "a")


# M3: torn and damaged journals


def written(journal: Journal, count: int) -> list[int]:
    """Ids 0 to ``count`` are over; where each line ends."""
    ends = []
    for number in range(count):
        assert end(journal, f"{number}", 40)
        ends.append(journal._segments[1].end)
    return ends


def test_M3_a_segment_cut_at_any_byte_keeps_every_record_before(
    journal: Make, folder: Path
) -> None:
    dead = journal(segment="64KiB")
    ends = written(dead, 12)
    die(dead)
    segment = folder / f"{dead.name}.1"
    whole = segment.read_bytes()
    for cut in range(ends[-4], ends[-1] + 1):
        segment.write_bytes(whole[:cut].ljust(len(whole), b"\0"))
        rows, logs = found(folder)
        good = sum(end <= cut for end in ends)
        assert [str(number) for number in range(good)] == [row[0] for row in rows], cut
        torn = cut not in ends
        assert (["journal_torn"] if torn else []) == [entry["event"] for entry in logs], cut
        segment.write_bytes(whole[:cut])  # A file that really ends there is no different.
        assert rows == found(folder)[0]


def test_M3_a_flipped_bit_is_never_a_wrong_record(journal: Make, folder: Path) -> None:
    dead = journal(segment="64KiB")
    ends = written(dead, 40)
    die(dead)
    segment = folder / f"{dead.name}.1"
    whole = segment.read_bytes()
    right = {str(number): [str(number), "x" * 40] for number in range(40)}
    dice = random.Random(3)
    for _ in range(1_000):
        at, bit = dice.randrange(ends[-1]), 1 << dice.randrange(8)
        segment.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        rows, logs = found(folder)
        hit = sum(end <= at for end in ends)
        assert all(right[row[0]] == row for row in rows), at
        assert [str(number) for number in range(hit)] == [row[0] for row in rows[:hit]], at
        # A newline lost takes two lines with it; a newline won takes one.
        assert len(rows) >= 38, at
        last = hit >= 38 and len(rows) == hit
        event = "journal_torn" if last else "journal_damaged"
        assert [event] == [entry["event"] for entry in logs], at
        if not last:
            assert segment.read_bytes() == (folder / "damaged" / segment.name).read_bytes()


def test_M3_a_torn_slot_was_never_asked_for(journal: Make, folder: Path) -> None:
    dead = journal()
    begin(dead, "one")
    begin(dead, "two")
    die(dead)
    slots = folder / f"{dead.name}.running"
    whole = slots.read_bytes()
    first = max(dead._running.values())
    size = whole.index(b"\n", first) + 1 - first
    for cut in range(size):
        torn = whole[: first + cut] + bytes(SLOT - cut) + whole[first + SLOT :]
        slots.write_bytes(torn)
        assert ["two"] == [row[0] for row in found(folder)[0]], cut


def test_a_segment_of_noise_is_no_record() -> None:
    dice = random.Random(7)
    for _ in range(200):
        noise = dice.randbytes(2_000).replace(b"0", b"\n")
        assert [] == read(noise).lines
    good = line(CLOSE, b'["x"]')
    assert [b'c["x"]'] == [body for _, body in read(noise + b"\n" + good).lines]


# A process that dies, really

WRITER = """
import os, sys
from pathlib import Path
import structlog
from passy_proxy.journal import Journal, JournalSettings
journal = Journal(Path(sys.argv[1]), JournalSettings(segment="64KiB"), structlog.get_logger())
journal.start()
number = 0
while True:
    asked = b'["","","","","","","",1,"echo","echo",null,""]'
    journal.open(str(number), b'["%d",1000,2,3,%b,[]]' % (number, asked))
    os.write(1, b"b%d\\n" % number)
    journal.close(str(number), b'["%d","record"]' % number)
    os.write(1, b"e%d\\n" % number)
    number += 1
"""


@pytest.mark.parametrize("after", [0.0, 0.05, 0.2])
def test_what_was_said_before_a_kill_is_there_after_it(folder: Path, after: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline() + process.stdout.read(int(after * 400_000))
        process.send_signal(signal.SIGKILL)
        process.wait(90)
        said += process.stdout.read()
    last = int(said.split()[-1][1:])
    rows, logs = found(folder)
    assert [] == logs
    told = [int(row[0]) for row in rows]
    assert list(range(len(told))) == told
    assert last <= told[-1] <= last + 1
    assert all(row[1] == "record" for row in rows[:-1])


# A full disk


def test_a_journal_at_its_limit_is_full_and_keeps_room_for_what_runs(journal: Make) -> None:
    alive = journal(segment="64KiB", limit="128KiB")
    number = 0
    while not alive.full:
        assert end(alive, str(number))
        number += 1
    kept = 0
    while end(alive, f"late {kept}"):
        kept += 1
    assert kept >= 20
    assert 1 == alive.failed
    assert not end(alive, "later")
    die(alive)


async def test_it_finds_by_itself_that_there_is_room_again(
    journal: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passy_proxy.journal.RETRY_SECONDS", 0.02)
    alive = journal(segment="64KiB", limit="128KiB")
    while not alive.full:
        end(alive, "x")
    alive.cursor = (2, alive._segments[2].end)
    for segment in alive.finished():
        segment.remove()
    async with asyncio.timeout(60):
        while alive.full:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.01)
    assert end(alive, "y")
    die(alive)


# Power


async def test_whoever_waits_for_the_disk_waits_together(
    journal: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), sync(fd)))
    alive = journal(durability="power")

    async def one(number: int) -> None:
        assert end(alive, str(number))
        await alive.durable()

    await asyncio.gather(*(one(number) for number in range(50)))
    assert 1 <= len(syncs) <= 3
    await one(51)
    alive.cursor = (1, alive._segments[1].end)
    alive.stop()


async def test_who_ends_after_the_stop_waits_for_the_disk_too(
    journal: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), sync(fd)))
    stopping = journal(durability="power")
    assert end(stopping, "under way")
    before = asyncio.ensure_future(stopping.durable())
    assert end(stopping, "not asked for")
    stopping.stop()
    assert len(syncs) == 2, "what nobody waited for is safe as well"
    assert end(stopping, "late")
    async with asyncio.timeout(60):
        await asyncio.gather(before, stopping.durable())
    assert len(syncs) == 3
    rows, _ = found(folder)
    assert ["under way", "not asked for", "late"] == [row[0] for row in rows]


def test_names_of_journals_tell_what_is_left(folder: Path, journal: Make) -> None:
    dead = journal()
    end(dead, "one")
    die(dead)
    (folder / "damaged").mkdir()
    (folder / "README").write_text("not ours")
    assert [dead.name] == [left.name for left in left_behind(folder) if isinstance(left, Left)]


def test_one_that_cannot_be_opened_keeps_nobody_from_the_others(
    folder: Path, journal: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, dead = journal(), journal()
    for each in (foreign, dead):
        end(each, "one")
        die(each)

    def mine(path: Path) -> int:
        if path.name.startswith(foreign.name):
            raise PermissionError(path)
        return locked(path)

    monkeypatch.setattr(recovery, "locked", mine)
    [left] = left_behind(folder)
    assert dead.name == left.name
    with pytest.raises(PermissionError):  # There may be some.
        left_behind(folder)
    left.release()
    left.release()


def test_records_that_fit_nowhere_use_no_segments_up(journal: Make) -> None:
    alive = journal(segment="64KiB", limit="128KiB")
    for number in range(3):
        assert not end(alive, str(number), 1 << 16)
    assert (3, False) == (alive.failed, alive.full)
    assert end(alive, "one")
    alive.cursor = (1, alive._segments[1].end)
    alive.stop()


def test_who_ends_after_the_stop_is_recorded_once(journal: Make, folder: Path) -> None:
    stopped = journal()
    assert begin(stopped, "late")
    assert begin(stopped, "never")
    stopped.stop()
    assert end(stopped, "late")
    rows, _ = found(folder)
    assert ["late", "never"] == [row[0] for row in rows]
