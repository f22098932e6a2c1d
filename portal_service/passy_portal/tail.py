"""What arrives in the books, for all who watch: one reader in each process, however many they are.

Everybody goes on from their own place, which their browser keeps: for whoever was away for a moment
it is read to where the others are, exactly. Whoever does not take what there is is let go, and
comes back with the place it had.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from passy_plugins.api.denied import Denied
from passy_portal.shown_requests import Row, rows_of
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from passy_plugins.stores.sql.arrivals import Arrived
    from passy_plugins.stores.sql.exchanges import Wanted
    from passy_portal.accounts import Accounts, Visitor

EVERY = 0.4
"""Seconds between two looks."""
AWAY = 2.0
"""The same while the books cannot be asked."""
CHECKED = 2.0
"""Seconds between two looks whether those who watch may still do so."""
MOST = 200
"""Who may watch in one process."""
MOST_WAITING = 5_000
"""Records that nobody has taken yet, of one who watches."""


class Piece(NamedTuple):
    """Some of what arrived."""

    rows: Sequence[Row]
    place: str
    """Where to go on behind it; empty where there is nothing new."""
    lost: bool = False
    """Something before it may be missing."""
    away: bool = False
    """The books cannot be asked."""


class Watcher:
    """One who watches. ``over`` says why there is no more: ``session``, ``behind``, ``end``."""

    def __init__(self, visitor: Visitor, wanted: Wanted, place: str) -> None:
        self.visitor = visitor
        self.wanted = wanted
        self.place = place
        """As far as it was read for this one."""
        self.new = True
        """It is not yet where all others are."""
        self.over = ""
        self._pieces: deque[Piece] = deque()
        self._waiting = 0
        self._woken = asyncio.Event()

    def told(self, rows: Sequence[Row], found: Arrived) -> None:
        """What it wants of ``rows``, which are those of what was found."""
        mine, wanted = self.visitor.organisation, self.wanted
        own = [r for r in rows if r.record.organisation == mine and wanted.holds(r.record)]
        self.place = found.place
        if own or found.lost:
            self.put(Piece(own, found.place, found.lost))

    def put(self, piece: Piece) -> None:
        if self.over:
            return
        self._pieces.append(piece)
        self._waiting += len(piece.rows)
        if self._waiting > MOST_WAITING:
            self.end("behind")
        self._woken.set()

    def end(self, why: str) -> None:
        self.over = self.over or why
        self._woken.set()

    async def next(self, seconds: float) -> Piece | None:
        """All that has come meanwhile, as one piece; ``None`` after so long without any."""
        if not self._pieces and not self.over:
            self._woken.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                return None
        pieces = [*self._pieces]
        self._pieces.clear()
        self._waiting = 0
        if not pieces:
            return None
        places = [piece.place for piece in pieces if piece.place]
        rows = [row for piece in pieces for row in piece.rows]
        lost = any(piece.lost for piece in pieces)
        return Piece(rows, places[-1] if places else "", lost, pieces[-1].away)


class Tail:
    """Reads while somebody watches, and not otherwise. Lives on one event loop."""

    def __init__(self, accounts: Accounts, draining: Callable[[], bool]) -> None:
        """``draining``: whether this process is about to end."""
        self._accounts = accounts
        self._draining = draining
        self._arrivals = accounts.admin.arrivals()
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._place = ""
        self._checked = 0.0

    def __len__(self) -> int:
        return len(self._watchers)

    async def place(self) -> str:
        """Where what comes from now on begins."""
        return await self._arrivals.place()

    async def after(self, visitor: Visitor, wanted: Wanted, place: str) -> Arrived:
        """For who does not watch, but asks now and then."""
        found = await self._arrivals.after(place, [visitor.organisation])
        return found._replace(records=[each for each in found.records if wanted.holds(each)])

    def watch(self, visitor: Visitor, wanted: Wanted, place: str) -> Watcher:
        """From a place on, until `leave`. 503 where there are too many."""
        if len(self._watchers) >= MOST:
            raise Denied(503, "too_many_watchers", "Too many are watching; try again later.")
        watcher = Watcher(visitor, wanted, place)
        self._watchers.add(watcher)
        if self._task is None:
            self._place = ""
            self._task = asyncio.get_running_loop().create_task(self._run(), name="passy-tail")
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    async def close(self) -> None:
        for watcher in self._watchers:
            watcher.end("end")
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._arrivals.close()

    async def _run(self) -> None:
        try:
            while self._watchers:
                pause = EVERY
                try:
                    await self._check()
                    if await self._round():
                        pause = 0.0
                except StoreUnavailable:
                    for watcher in self._watchers:
                        watcher.put(Piece((), "", away=True))
                    pause = AWAY
                await asyncio.sleep(pause)
        finally:
            self._task = None  # From here on somebody new begins anew; nobody else is left alone.
            for watcher in self._watchers:
                watcher.end("end")

    async def _check(self) -> None:
        """Let those go whose session has ended, or who are not any more what they were."""
        if self._draining():
            for watcher in self._watchers:
                watcher.end("end")
        if time.monotonic() < self._checked + CHECKED:
            return
        ids = {watcher.visitor.session for watcher in self._watchers}
        living = await self._accounts.living(ids)
        self._checked = time.monotonic()
        for watcher in self._watchers:
            visitor = watcher.visitor
            if living.get(visitor.session) != (visitor.organisation, visitor.role):
                watcher.end("session")

    async def _round(self) -> bool:
        """Tell everybody what came; whether there is more already."""
        if not self._place:
            self._place = await self._arrivals.place()
        new = [each for each in self._watchers if each.new]
        organisations = {each.visitor.organisation for each in self._watchers if not each.new}
        found = await self._arrivals.after(self._place, organisations)
        rows = await self._rows(found)
        self._place = found.place  # Not before all of it is known that is told.
        for watcher in self._watchers:
            if not watcher.new:
                watcher.told(rows, found)
        if not found.more:
            for watcher in new:
                await self._catch_up(watcher)
        return found.more

    async def _catch_up(self, watcher: Watcher) -> None:
        """From its own place, which is older, to that of all others."""
        while watcher.new:
            found = await self._arrivals.after(
                watcher.place, [watcher.visitor.organisation], self._place
            )
            watcher.told(await self._rows(found), found)
            watcher.new = found.more

    async def _rows(self, found: Arrived) -> list[Row]:
        """With the names that pages have; looked up once for all who watch."""
        rows: list[Row] = []
        for organisation in {record.organisation for record in found.records}:
            own = [each for each in found.records if each.organisation == organisation]
            rows += await rows_of(self._accounts.admin, own)
        return rows
