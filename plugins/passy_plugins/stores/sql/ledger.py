"""Usage on its way from the journal into the database: one task that ships what is there, in
batches.

Who records writes to the journal and nothing else. The first record of a batch wakes the task,
which waits a moment for others, reads the journal in a thread and writes what it read in one
transaction; then it saves how far it came. When nothing happens, nothing runs
but a look, now and then, at journals whose owners are gone. A row is written under the id of its
exchange, and the database leaves out a second one of the same id: shipping again after a failure of
unknown outcome is always safe.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, TypeVar

from passy_proxy.journal import CHUNK, CLOSE, PRICE, Journal, Segment, body_of, save_cursor
from passy_proxy.recovery import DAMAGED, Batch, Left, left_behind, put_aside
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    Write = Callable[[Sequence[bytes], Sequence[bytes]], Awaitable[None]]
    Over = Callable[[str], Awaitable[None]]

T = TypeVar("T")

FLUSH_SECONDS = 0.25
"""How long records gather, unless there is a `CHUNK` of them."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0
LOOK_SECONDS = 10.0
"""Between two looks at what others left behind."""
LOG_EVERY = 60.0
REFUSED = "refused.jsonl"
"""The file, among the damaged segments, for records that the database will never take."""


class Shipper:
    """Moves records from ``journal`` to ``write``, in order. Lives on one event loop.

    While ``write`` raises `StoreUnavailable` records wait in the journal. A record that it refuses
    with `ValueError` is put aside alone. Troubles are logged once a minute at most.

    ``write`` is given JSON: lists of the values of a `UsageRow`, and lists of nanos, price and id.
    ``over`` is told of each journal of others that is about to go, with all of it shipped.
    """

    def __init__(
        self, journal: Journal, write: Write, over: Over, log: FilteringBoundLogger
    ) -> None:
        self.journal = journal
        self.refused = 0
        """Records that were put aside."""
        self._write = write
        self._over = over
        self._log = log
        self._delivered = time.time()
        self.asleep = False
        """There was nothing to ship: `wake` it when there is. Otherwise it finds out by itself."""
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passy-ship")
        self._stopping = False
        self._pause = FIRST_PAUSE
        self._silent_until = -inf

    def wake(self) -> None:
        """Something was written to the journal."""
        self._some.set()

    def delivered(self) -> float:
        """Unix seconds: all that was recorded until then is in the database."""
        if not self.journal.waiting:
            self._delivered = time.time()
        return self._delivered

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="passy-ledger")

    async def stop(self, seconds: float = 10.0) -> None:
        """Ship what waits, for so long at most; the next start ships what is left then."""
        if self._stopping:
            return
        self._stopping = True
        self._some.set()
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=seconds)
            if not done:
                self._task.cancel()
                await asyncio.wait([self._task])
        await self._in_thread(lambda: None)  # What it began is over.
        self._thread.shutdown(wait=False)
        if self.journal.waiting:
            self._log.warning("usage_waits_on_disk", bytes=self.journal.waiting)

    async def _run(self) -> None:
        looked = -inf
        while True:
            try:
                if time.monotonic() >= looked + LOOK_SECONDS:
                    looked = time.monotonic()
                    await self._take_over()
                if self.journal.waiting:
                    await self._linger()
                    await self._ship()
                elif self._stopping:
                    return
                else:
                    await self._idle()
            except Exception as error:
                # No descriptor is left, or a disk is full: who ends here ships nothing ever after.
                self._tell("usage_waits", error)
                await self._rest()

    async def _idle(self) -> None:
        """Wait for something to ship, or for the next look at what others left."""
        self.asleep = True
        await self._woken(LOOK_SECONDS)
        self.asleep = False

    async def _linger(self) -> None:
        """Let records gather, unless there are enough or the end has come."""
        if self.journal.waiting < CHUNK and not self._stopping:
            await self._woken(FLUSH_SECONDS)

    async def _woken(self, seconds: float) -> None:
        """Wait for so long, or until somebody calls."""
        self._some.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._some.wait()

    async def _ship(self) -> None:
        journal, began = self.journal, time.time()
        if (records := journal.recent()) is not None:
            batch, cursor = Batch(records, []), journal.end
            last = cursor
        elif (part := journal.unshipped()) is not None:
            last = journal.end
            batch, end = await self._in_thread(lambda: self._read(*part))
            cursor = (part[0].number, end)
        else:
            return
        if not await self._written(batch):
            return
        journal.cursor = cursor
        if cursor == last:
            self._delivered = began
        finished = journal.finished()

        def over() -> None:
            with suppress(OSError):  # A full disk: what was shipped would be shipped again.
                save_cursor(journal.folder, journal.name, cursor, journal.power)
            for each in finished:
                each.remove()

        await self._in_thread(over)

    async def _written(self, batch: Batch) -> bool:
        """Whether all of ``batch`` is in the database, or put aside."""
        if not batch.records and not batch.prices:
            return True
        try:
            await self._write(batch.records, batch.prices)
        except StoreUnavailable as error:
            self._tell("usage_waits", error)
            await self._rest()
            return False
        except ValueError as error:
            self._tell("usage_refused", error)
            if not await self._one_by_one(batch):
                await self._rest()
                return False
        self._pause = FIRST_PAUSE
        return True

    async def _rest(self) -> None:
        await asyncio.sleep(0 if self._stopping and self._pause == FIRST_PAUSE else self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _one_by_one(self, batch: Batch) -> bool:
        """Write a batch that holds something which cannot be. False when the database is away."""
        each = [Batch([record], []) for record in batch.records]
        each += [Batch([], [price]) for price in batch.prices]
        for records, prices in each:
            try:
                await self._write(records, prices)
            except StoreUnavailable:
                return False
            except ValueError:
                self.refused += 1
                refused = (records or prices)[0]
                await self._in_thread(lambda: self._put_aside(refused))  # noqa: B023
        return True

    def _put_aside(self, refused: bytes) -> None:
        aside = self.journal.folder / DAMAGED
        aside.mkdir(mode=0o700, exist_ok=True)
        with (aside / REFUSED).open("ab") as file:
            file.write(refused + b"\n")

    def _read(self, segment: Segment, start: int, end: int) -> tuple[Batch, int]:
        """Records of a part of a segment, and where they end."""
        data = os.pread(segment.fd, min(end - start, CHUNK), start)
        length = data.rfind(b"\n") + 1 or len(data)
        batch, damaged = Batch([], []), False
        for line in data[:length].splitlines():
            try:
                body = body_of(line)
            except ValueError:
                damaged = True
                continue
            if body[:1] == CLOSE:
                batch.records.append(body[1:])
            elif body[:1] == PRICE:
                batch.prices.append(body[1:])
        if damaged:
            put_aside(segment.path, self._log)
        return batch, start + length

    async def _take_over(self) -> None:
        """Ship what processes left behind that are gone."""
        folder = self.journal.folder
        found = await self._in_thread(lambda: left_behind(folder))
        try:
            for left in found:
                try:
                    if await self._shipped(left):
                        await self._over(left.name)
                        await self._in_thread(left.discard)
                except Exception as error:  # One that cannot be read: the others can.
                    self._tell("usage_waits", error)
        finally:  # Else nobody could take them as long as this process lives.
            for left in found:
                left.release()

    async def _shipped(self, left: Left) -> bool:
        batches = left.batches(self._log)
        count = 0
        while (batch := await self._in_thread(lambda: next(batches, None))) is not None:
            while not await self._written(batch):
                if self._stopping:
                    return False
            count += len(batch.records)
        if count:
            self._log.info("journal_recovered", journal=left.name, records=count)
        return True

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _tell(self, event: str, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + LOG_EVERY
            self._log.warning(event, error=str(error), bytes=self.journal.waiting)
