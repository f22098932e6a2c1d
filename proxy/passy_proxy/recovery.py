"""What a process that died left in its journal, read by whoever takes it over.

Lines are believed by their checksum and by nothing else. Behind the last good line of the last
segment there may be a torn one: its writer died within it, and nobody was told what it says. Damage
anywhere else is none of ours: it is reported, the segment is put aside for people to look at, and
every other line is used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from passy_proxy.estimate import prompt_tokens
from passy_proxy.journal import (
    CLOSE,
    SLOT,
    body_of,
    load_cursor,
    locked,
    remove_marks,
)
from passy_proxy.json import dumps, loads
from passy_proxy.records import BegunRow, UsageRow

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

BATCH = 500
DAMAGED = "damaged"
"""The folder beside the journals for segments that are put aside."""


class Batch(NamedTuple):
    """JSON of records, and of prices for records of this or an earlier batch."""

    records: list[bytes]
    prices: list[bytes]


class Read(NamedTuple):
    """The good lines of a segment, with where each ends."""

    lines: list[tuple[int, bytes]]
    torn: int
    """Bytes behind the last good line that are none."""
    damaged: bool
    """A line that is none stands before a good one."""


def read(data: bytes) -> Read:
    """A segment's lines (tag and JSON)."""
    end = len(data.rstrip(b"\0"))
    lines: list[tuple[int, bytes]] = []
    at = good = 0
    damaged = bad = False
    while at < end:
        newline = data.find(b"\n", at, end)
        if newline < 0:
            break
        try:
            body = body_of(data[at:newline])
        except ValueError:
            bad = True
        else:
            damaged |= bad
            good = newline + 1
            lines.append((good, body))
        at = newline + 1
    return Read(lines, end - good, damaged)


def left_behind(folder: Path) -> list[Left]:
    """The journals in ``folder`` whose owners are gone, locked for us. OSError when there may be
    some, but none that could be locked."""
    names = {path.name.partition(".")[0] for path in folder.glob("*-*-*.*")}
    found = []
    trouble = None
    for name in sorted(names):
        try:
            lock = locked(folder / f"{name}.lock")
        except BlockingIOError:
            continue  # it lives
        except OSError as error:  # Not ours to open, or no descriptor is left.
            trouble = error
            continue
        found.append(Left(folder, name, lock))
    if trouble is not None and not found:
        raise trouble
    return found


def interrupted(begun: Sequence[Any]) -> UsageRow:
    """The record of an exchange that nothing more is known of: a `BegunRow`'s.

    The upstream was asked, perhaps: what is recorded is a marked guess of the prompt, and what that
    costs.
    """
    id, at, size, started, asked, before = BegunRow._make(begun)
    *names, streamed, upstream, model, million, price = asked
    attempts = [(*each[:2], 0, "failed", each[2], 0, True) for each in before]
    attempts.append((upstream, model, 0, "interrupted", started, 0, True))
    names = [id, at, *names, upstream, model, "interrupted"]
    read = prompt_tokens(size) if size else 0
    cost = None if million is None else (read * million + 500_000) // 1_000_000
    return (*names, 0, streamed, read, *[0] * 6, 1, cost, price, 0, 0, attempts)


def put_aside(path: Path, log: FilteringBoundLogger) -> None:
    """Keep a copy of a damaged segment, and raise the alarm."""
    aside = path.parent / DAMAGED
    aside.mkdir(mode=0o700, exist_ok=True)
    shutil.copy2(path, aside / path.name)
    log.error("journal_damaged", segment=path.name, kept=str(aside))


class Left:
    """A journal without an owner. ``lock`` keeps others from it."""

    def __init__(self, folder: Path, name: str, lock: int) -> None:
        self.folder = folder
        self.name = name
        self.lock = lock
        numbered = {
            int(path.suffix[1:]): path
            for path in folder.glob(f"{name}.*")
            if path.suffix[1:].isdigit()
        }
        self._segments = [numbered[number] for number in sorted(numbered)]

    def batches(self, log: FilteringBoundLogger) -> Iterator[Batch]:
        """Everything that is not known to be in the database, in order; last of all a record for
        each exchange that was under way."""
        number, offset = load_cursor(self.folder, self.name)
        over: set[str] = set()
        batch = Batch([], [])
        for path in self._segments:
            found = read(path.read_bytes())
            self._complain(path, found, log)
            at = int(path.suffix[1:])
            for end, body in found.lines:
                tag, json = body[:1], body[1:]
                if tag == CLOSE:
                    over.add(loads(json)[0])
                if (at, end) <= (number, offset):
                    continue
                (batch.records if tag == CLOSE else batch.prices).append(json)
                if len(batch.records) >= BATCH:
                    yield batch
                    batch = Batch([], [])
        rows = (interrupted(row) for row in self._begun() if row[0] not in over)
        batch.records.extend(dumps(row) for row in rows)
        if batch.records or batch.prices:
            yield batch

    def _begun(self) -> Iterator[Any]:
        """What was under way."""
        try:
            slots = (self.folder / f"{self.name}.running").read_bytes()
        except FileNotFoundError:
            return
        for at in range(0, len(slots), SLOT):
            # One that is no line was being written when its writer died: nobody was asked yet.
            with suppress(ValueError):
                yield loads(body_of(slots[at : slots.index(b"\n", at, at + SLOT)])[1:])

    def _complain(self, path: Path, found: Read, log: FilteringBoundLogger) -> None:
        if found.damaged or (found.torn and path != self._segments[-1]):
            put_aside(path, log)
        elif found.torn:
            log.warning("journal_torn", segment=path.name, bytes=found.torn)

    def discard(self) -> None:
        """Remove it: everything of it is in the database."""
        for path in self._segments:
            path.unlink(missing_ok=True)
        remove_marks(self.folder, self.name)
        self.release()

    def release(self) -> None:
        """Leave it to others, as it is; unless that was done."""
        lock, self.lock = self.lock, -1
        if lock >= 0:
            os.close(lock)
