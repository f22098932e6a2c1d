"""What is kept on disk of what stores said: who is believed, for how long, and who is not."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
import structlog

from passy_proxy import remembered
from passy_proxy.keyring import Keyring
from passy_proxy.remembered import FILE, Remembered, Said
from passy_proxy.testing import KEYRING

pytestmark = pytest.mark.anyio

OTHERS = Keyring(["another key for tests only, of 32 bytes or more"])
NOW = 1_800_000_000.0

Open = Callable[..., Remembered]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def opened(keyring: Keyring = KEYRING, folder: Path = tmp_path) -> Remembered:
            made = Remembered(folder, keyring, structlog.get_logger())
            stack.push_async_callback(made.aclose)
            return made

        yield opened


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [NOW]
    monkeypatch.setattr(remembered, "time", lambda: now[0])
    return now


def said(value: bytes = b"value", asked: float = NOW, *subjects: str) -> Said:
    return Said(value, asked, 900.0, subjects)


async def kept(opened: Open, *all: tuple[bytes, Said]) -> None:
    """On disk, by a process that has ended."""
    before = opened()
    for key, each in all:
        before.put("auth here", key, each)
    await before.aclose()


async def test_what_one_process_learned_the_next_one_finds(opened: Open, tmp_path: Path) -> None:
    await kept(opened, (b"one", said()), (b"two", said(b"2", NOW - 600)))
    after = opened()
    assert (b"value", 900.0) == await after.find("auth here", b"one")
    assert (b"2", 300.0) == await after.find("auth here", b"two")
    assert None is await after.find("auth here", b"three")
    # What one directory said is no word of another's.
    assert None is await after.find("auth elsewhere", b"one")
    for file in tmp_path.glob(FILE + "*"):
        assert 0o600 == stat.S_IMODE(file.stat().st_mode)


async def test_what_waits_to_be_written_is_found_too(opened: Open) -> None:
    one = opened()
    one.put("auth here", b"one", said())
    assert (b"value", 900.0) == await one.find("auth here", b"one")
    one.edited("key:1")
    one.put("auth here", b"two", said(b"value", NOW - 1, "key:1"))
    assert None is await one.find("auth here", b"two")


async def test_the_latest_word_counts_whoever_writes_last(opened: Open) -> None:
    one, other = opened(), opened()
    one.put("auth here", b"k", said(b"new", NOW))
    await one.aclose()
    other.put("auth here", b"k", said(b"old", NOW - 1))
    await other.aclose()
    assert b"new" == (await opened().find("auth here", b"k"))[0]  # type: ignore[index]


async def test_nothing_is_believed_for_longer_than_was_said(
    opened: Open, today: list[float]
) -> None:
    await kept(opened, (b"k", said()))
    after = opened()
    today[0] = NOW + 899.5
    assert (b"value", 0.5) == await after.find("auth here", b"k")
    today[0] = NOW + 900
    assert None is await after.find("auth here", b"k")


async def test_L4_what_a_clock_that_was_set_back_makes_young_is_not_believed(
    opened: Open, today: list[float]
) -> None:
    await kept(opened, (b"k", said()))
    today[0] = NOW - 3600
    assert None is await opened().find("auth here", b"k")


async def test_D6_an_edit_ends_what_was_said_before_it_on_disk_too(
    opened: Open, today: list[float]
) -> None:
    subjects = ("key:1", "organisation:acme corp")
    await kept(opened, (b"k", said(b"old", NOW, *subjects)), (b"other", said(b"o", NOW, "key:2")))
    editor, reader = opened(), opened()
    today[0] = NOW + 5
    editor.edited("organisation:acme corp")
    await editor.aclose()
    assert None is await reader.find("auth here", b"k")
    assert None is not await reader.find("auth here", b"other")
    today[0] = NOW + 6
    reader.put("auth here", b"k", said(b"new", NOW + 6, *subjects))
    await reader.aclose()
    assert b"new" == (await opened().find("auth here", b"k"))[0]  # type: ignore[index]


async def test_only_in_place_of_what_is_known(opened: Open) -> None:
    await kept(opened, (b"k", said()))
    one = opened()
    for key in (b"k", b"stranger"):
        one.put("auth here", key, said(b"gone"), only_known=True)
    await one.aclose()
    assert b"gone" == (await opened().find("auth here", b"k"))[0]  # type: ignore[index]
    assert None is await opened().find("auth here", b"stranger")


@pytest.mark.parametrize(
    "change",
    [
        "value = x'6e756c6c'",
        "at = at + 1",
        "until = until + 1",
        "subjects = '[]'",
        "proof = proof || '0'",
        "proof = ''",
        "proof = x'00'",
        "key = x'6f74686572'",
        "kind = 'auth there'",
        "value = 7",
    ],
)
async def test_K_what_was_changed_on_disk_is_not_believed(
    change: str, opened: Open, tmp_path: Path
) -> None:
    await kept(opened, (b"k", said(b"value", NOW, "key:1")))
    with closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        assert 1 == file.execute(f"UPDATE remembered SET {change}").rowcount
    after = opened()
    for kind in ("auth here", "auth there"):
        for key in (b"k", b"other"):
            assert None is await after.find(kind, key)


async def test_K_what_others_wrote_is_not_believed(opened: Open) -> None:
    await kept(opened, (b"k", said()))
    assert None is await opened(OTHERS).find("auth here", b"k")


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"x" * 4096])
async def test_a_file_that_is_damaged_is_begun_anew(
    content: bytes, opened: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes(content)
    one = opened()
    assert None is await one.find("auth here", b"k")
    await kept(opened, (b"k", said()))
    assert None is not await opened().find("auth here", b"k")


async def test_a_disk_that_cannot_be_written_stops_nobody(opened: Open, tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    one = opened()
    one.put("auth here", b"k", said())
    one.edited("key:1")
    await one.aclose()
    assert None is await one.find("auth here", b"k")


async def test_what_has_had_its_time_is_taken_away(
    opened: Open, today: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "TIDIED", 0.0)
    monkeypatch.setattr(remembered, "KEPT", 3)
    await kept(opened, *((b"%d" % n, said(b"", NOW + n / 10)) for n in range(9)))
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        rows = file.execute("SELECT key FROM remembered ORDER BY until").fetchall()
        assert [(b"6",), (b"7",), (b"8",)] == rows
    today[0] = NOW + 1000
    editor = opened()
    editor.edited("key:1")
    await editor.aclose()
    with closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert [(0,)] == file.execute("SELECT count(*) FROM remembered").fetchall()
