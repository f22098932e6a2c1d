"""The journal: what happened, on disk before anybody is told.

A record is put here and moved into the database later, by a shipper. What a process put here
survives its own death by whatever signal (and a power failure too, where ``durability`` is
``power``), so an answer that a client saw complete has its record, and a database that is away
delays nobody.

A journal belongs to one store of one process. It is a few files in one folder:

    <name>.<n>       segments: the records of exchanges that are over, one line each
    <name>.running   slots: what is known of each exchange under way, should nothing follow
    <name>.cursor    how far the shipper has come
    <name>.lock      locked while the owner lives; the kernel unlocks it, however that ends

A line is ``crc32 in 8 hex digits, tag, JSON, newline``; behind the last one there are zeros. The
tag is ``c`` for a record and ``p`` for a price that was not known then. A slot is empty (it begins
with zero) or holds a line with tag ``o``.

Both are written through a mapping of the file (decision 0010): bytes are in the kernel's page as
soon as they are in ours, for a tenth of the price of a system call. All space is claimed from the
disk before it is mapped, so a full disk is met when a segment is made, and not within a record. The
last part of each segment is kept for exchanges under way; when no further segment can be made the
journal is ``full``, and the filter decides what becomes of new requests.

What is ugly: the cursor only saves work. A row that is shipped twice is left out by the database,
which knows its id. What the owner leaves behind is taken over by `passy_proxy.recovery`.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from passy_proxy.config.settings import Settings, setting
from passy_proxy.units import Size

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

OPEN, CLOSE, PRICE = b"o", b"c", b"p"

CHECK = 8
"""Characters of a line's checksum."""
CHUNK = 1 << 20
"""Bytes read at once by the shipper: some two thousand records."""
RESERVE = 1 << 20
"""Bytes at the end of a segment that only exchanges under way use, in a segment that can spare
them."""
RECENT = 4_096
"""Records that are kept in memory until they are shipped, at most."""
SLOT = 512
FIRST_SLOTS = 256
RETRY_SECONDS = 1.0

_OPEN, _CLOSE = crc32(OPEN), crc32(CLOSE)
"""Checksums go on from the tag's."""


class JournalSettings(Settings):
    """Where records wait for the database."""

    segment: Size = setting("4MiB", "Size of one file.", ge=1 << 16, le=1 << 30)
    limit: Size = setting(
        "1GiB", "Disk space for records that wait, at most, for each process.", ge=1 << 17
    )
    durability: Literal["process", "power"] = setting(
        "process",
        "What a record survives: the end of the process, or the end of the power too. For that"
        " the last bytes of each answer wait for the disk, some milliseconds.",
    )


def line(tag: bytes, json: bytes) -> bytes:
    """One record as it is written."""
    return b"%08x%b%b\n" % (crc32(json, crc32(tag)), tag, json)


def body_of(line: bytes) -> bytes:
    """Tag and JSON of a line without its newline; ValueError when it is damaged."""
    body = line[CHECK:]
    # Of one spelling only: int() would take "+1f" and "1F" as well.
    if line[:CHECK] != b"%08x" % crc32(body):
        raise ValueError("a line does not fit its checksum")
    return body


class Mapped:
    """A file of a fixed size, in memory and on disk. OSError when there is no room for it."""

    __slots__ = ("bytes", "fd", "path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self.fd, 0, size)
            self.bytes = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            path.unlink(missing_ok=True)
            raise

    def grow(self, size: int) -> None:
        """OSError when there is no room for more."""
        os.posix_fallocate(self.fd, 0, size)
        self.bytes.resize(size)
        self.size = size

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


class Segment(Mapped):
    """One file of records."""

    __slots__ = ("end", "number")

    def __init__(self, path: Path, number: int, size: int) -> None:
        super().__init__(path, size)
        self.number = number
        self.end = 0
        """Where the next line goes."""


class Journal:
    """Written by one process, on its event loop; read by its shipper."""

    def __init__(self, folder: Path, settings: JournalSettings, log: FilteringBoundLogger) -> None:
        self.folder = folder
        self.name = ""
        self.full = False
        """No further segment can be made: what begins now may leave no record."""
        self.failed = 0
        """Records that could not be written."""
        self.cursor = (0, 0)
        """Segment and offset up to which everything is in the database."""
        self.power = settings.durability == "power"
        self._log = log
        self._size = int(settings.segment)
        self._reserve = min(RESERVE, self._size // 8)
        self._most = max(2, int(settings.limit) // self._size)
        self._segments: dict[int, Segment] = {}
        self._segment: Segment | None = None
        self._recent: deque[bytes] = deque(maxlen=RECENT)
        self._remember = self._recent.append
        """The records since ``_recent_from``: what is shipped soon need not be read again."""
        self._recent_from: tuple[int, int] | None = (0, 0)
        self._soft = 0
        """Where in the segment the next one is due."""
        self._number = 0
        self._slots: Mapped | None = None
        self._notes: Any = b""
        """The bytes of all slots."""
        self._free: list[int] = []
        self._running: dict[str, int] = {}
        """Exchange → where its slot is."""
        self._retry_at = 0.0
        self._lock = -1
        self._disk: ThreadPoolExecutor | None = None
        self._dirty: set[Segment] = set()
        self._syncing: set[Segment] = set()
        self._next_sync: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Claim a name and a first segment. OSError when the folder cannot be used; a full disk
        is no error, but a state."""
        for folder in (*reversed(self.folder.parents), self.folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        while self._lock < 0:
            self.name = f"{int(time.time() * 1000):012x}-{os.getpid()}-{secrets.token_hex(3)}"
            # Who looks for what others left behind may have seen it before it was locked.
            with suppress(BlockingIOError):
                self._lock = locked(self.folder / f"{self.name}.lock")
        if self.power:
            self._disk = ThreadPoolExecutor(1, thread_name_prefix="passy-journal")
        self._rotate()
        self._more_slots()

    def stop(self, *, leave: bool = False) -> None:
        """Give the files up. If anything is left in them they are for whoever comes next; and with
        ``leave`` in any case."""
        if self._disk is not None:
            self._disk.shutdown()
            self._disk = None
        done = not leave and not self.waiting and not self._running
        for file in (*self._segments.values(), *([self._slots] if self._slots else ())):
            if done:
                file.remove()
            else:
                if file in self._dirty:
                    with suppress(OSError):
                        os.fdatasync(file.fd)
                file.close()
        self._dirty.clear()
        self._segments.clear()
        self._segment = self._slots = None
        # Who ends later still writes its record, into a segment of its own, and has no slot here.
        self._running.clear()
        self._free.clear()
        if self._lock >= 0:
            if done:
                remove_marks(self.folder, self.name)
            os.close(self._lock)
            self._lock = -1

    @property
    def waiting(self) -> int:
        """Bytes that are not known to be in the database."""
        number, offset = self.cursor
        written = sum(segment.end for n, segment in self._segments.items() if n >= number)
        return written - (offset if number in self._segments else 0)

    @property
    def running(self) -> int:
        """Exchanges under way."""
        return len(self._running)

    # Writing

    def open(self, id: str, json: bytes) -> bool:
        """An attempt of exchange ``id`` begins. False when that could not be written."""
        data = b"%08xo%b\n" % (crc32(json, _OPEN), json)
        size = len(data)
        if size > SLOT or (not self._free and not self._more_slots()):
            return False
        at = self._free.pop()
        self._notes[at : at + size] = data
        before = self._running.get(id)
        self._running[id] = at
        if before is not None:
            self._notes[before] = 0
            self._free.append(before)
        return True

    def close(self, id: str, json: bytes) -> bool:
        """Exchange ``id`` is over; ``json`` is its record. False when that could not be written."""
        data = b"%08xc%b\n" % (crc32(json, _CLOSE), json)
        segment = self._segment
        if segment is None or (end := segment.end + len(data)) > self._soft or self.power:
            written = self._write(data)
            if written:
                self._remember(json)
            else:
                self.failed += 1
        else:  # The same without a detour: each exchange comes through here.
            segment.bytes[segment.end : end] = data
            segment.end = end
            self._remember(json)
            written = True
        slot = self._running.pop(id, None)
        if slot is not None:
            self._notes[slot] = 0
            self._free.append(slot)
        return written

    def price(self, json: bytes) -> bool:
        """What an exchange that is over has cost."""
        self._recent_from = None  # It has to stay behind its record: both are read.
        return self._write(line(PRICE, json))

    def _write(self, data: bytes) -> bool:
        segment, size = self._segment, len(data)
        if segment is None or segment.end + size > self._soft:
            segment = self._room(size)
            if segment is None:
                return False
        at = segment.end
        segment.bytes[at : at + size] = data
        segment.end = at + size
        if self.power:
            self._dirty.add(segment)
        return True

    def _room(self, size: int) -> Segment | None:
        """A segment with room for ``size`` bytes: the next one, or else what was kept back."""
        if size > self._size:  # The next one would stay empty, and so would all that follow.
            return None
        if not self.full or time.monotonic() >= self._retry_at:
            self._rotate()
        segment = self._segment
        return segment if segment is not None and segment.end + size <= segment.size else None

    def _more_slots(self) -> bool:
        slots = self._slots
        try:
            if slots is None:
                before, size = 0, FIRST_SLOTS * SLOT
                self._slots = Mapped(self.folder / f"{self.name}.running", size)
                self._notes = self._slots.bytes
            else:
                before, size = slots.size, 2 * slots.size
                slots.grow(size)
        except OSError as error:
            self._trouble(error)
            return False
        self._free.extend(range(before, size, SLOT))
        return True

    def _rotate(self) -> None:
        try:
            if len(self._segments) >= self._most:
                raise OSError(f"the limit of {self._most} segments is reached")
            path = self.folder / f"{self.name}.{self._number + 1}"
            segment = Segment(path, self._number + 1, self._size)
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._trouble(error)
            return
        self._number += 1
        self._segment = self._segments[self._number] = segment
        self._soft = segment.size - self._reserve
        if self.full:
            self.full = False
            self._log.warning("journal_has_room_again", journal=str(self.folder))
        if self.power:
            sync_folder(self.folder)

    def _trouble(self, error: BaseException) -> None:
        if not self.full:
            self.full = True
            self._log.error("journal_full", journal=str(self.folder), error=str(error))
            with suppress(RuntimeError):  # no loop: a test, or a start
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        # Who refuses requests while it is full never writes, and would never learn.
        if self.full and self._lock >= 0:
            self._rotate()
            if self.full:
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)

    # Power

    def durable(self) -> Awaitable[None]:
        """What to wait for until everything written so far survives a power failure, where
        ``power`` is set. Whoever comes while the disk is at work waits for its next turn,
        together."""
        waiting = self._next_sync
        if waiting is None:
            waiting = self._next_sync = asyncio.get_running_loop().create_future()
            if not self._syncing:
                self._sync()
        return asyncio.shield(waiting)

    def _sync(self) -> None:
        self._syncing, self._dirty = self._dirty, set()
        waiting, self._next_sync = self._next_sync, None
        descriptors = [segment.fd for segment in self._syncing]
        if self._disk is None:  # Stopped: who ends later waits for the disk here, with everybody.
            error: OSError | None = None
            try:
                _sync_all(descriptors)
            except OSError as exc:
                error = exc
            self._synced(error, waiting)
            return
        loop = asyncio.get_running_loop()
        synced = loop.run_in_executor(self._disk, _sync_all, descriptors)
        synced.add_done_callback(lambda synced: self._synced(synced.exception(), waiting))

    def _synced(self, error: BaseException | None, waiting: asyncio.Future[None] | None) -> None:
        self._syncing = set()
        if error is not None:
            self._trouble(error)
        if waiting is not None and not waiting.done():
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)
        if self._next_sync is not None:
            self._sync()

    # Reading, for the shipper

    def recent(self) -> list[bytes] | None:
        """All records that are not shipped, if they are still in memory; ``None`` when some have to
        be read first. They are not here a second time."""
        segment, records = self._segment, list(self._recent)
        here = self._recent_from
        whole = here is not None and len(records) < RECENT
        if whole and self.unshipped() is not None:
            return None
        self._recent.clear()
        self._recent_from = self.cursor if segment is None else (segment.number, segment.end)
        return records if whole else None

    @property
    def end(self) -> tuple[int, int]:
        """Segment and offset up to which `recent` has told."""
        return self._recent_from or self.cursor

    def unshipped(self) -> tuple[Segment, int, int] | None:
        """A segment, and from where to where nothing of it is shipped and all has to be read; in
        order, ``None`` when there is no such part."""
        number, offset = self.cursor
        last, end = self._recent_from or (inf, 0)
        for n in sorted(n for n in self._segments if number <= n <= last):
            segment, start = self._segments[n], offset if n == number else 0
            stop = end if n == last else segment.end
            if start < stop:
                return segment, start, stop
        return None

    def finished(self) -> list[Segment]:
        """Segments that nobody needs any more; they are the caller's to `remove`."""
        number, _ = self.cursor
        synced = self._dirty | self._syncing
        done = [
            segment for n, segment in self._segments.items() if n < number and segment not in synced
        ]
        for segment in done:
            del self._segments[segment.number]
        return done


def _sync_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.fdatasync(descriptor)


def save_cursor(folder: Path, name: str, cursor: tuple[int, int], power: bool = False) -> None:
    """Remember how far shipping has come."""
    draft = folder / f"{name}.cursor~"
    with draft.open("w") as file:
        file.write(f"{cursor[0]} {cursor[1]}\n")
        if power:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(folder / f"{name}.cursor")
    if power:
        sync_folder(folder)


def load_cursor(folder: Path, name: str) -> tuple[int, int]:
    """What was saved last; the beginning where that cannot be read."""
    try:
        number, offset = (folder / f"{name}.cursor").read_text("ascii").split()
        return int(number), int(offset)
    except (OSError, ValueError):
        return 0, 0


def remove_marks(folder: Path, name: str) -> None:
    """Everything of a journal but its segments."""
    for kind in ("running", "cursor~", "cursor", "lock"):
        (folder / f"{name}.{kind}").unlink(missing_ok=True)


def locked(path: Path) -> int:
    """The descriptor of a file that is locked until it is closed, or the process ends.
    BlockingIOError while somebody else holds it, or has just removed it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_nlink:
            raise BlockingIOError(f"{path} was removed")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync_folder(folder: Path) -> None:
    """Make the names of new files survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
