"""The way to the server that has the counters: found, kept, and given up for a while when it fails.

A breaker of its own: the first call that is not answered in time, and the first refusal that says
the server cannot serve, opens it. From then on nobody waits; a task knocks until the server answers
a decision as fast as one must be. So a server that is slow stays outside as one that is gone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from passy_plugins.stores.redis.link import GONE, Link
from passy_plugins.stores.redis.nodes import AGAIN, NO_ANSWER, Caller, Nodes, command, unknown
from passy_plugins.stores.redis.place import Place
from passy_plugins.stores.redis.resp import Refused
from passy_proxy.tasks import Tasks
from passy_proxy.timers import NEVER

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

GRACE = 0.005
"""Seconds for an answer that is there already and was not read, the loop having been held up."""
KNOCK = 0.25
"""Seconds between two attempts to reach a server that is away."""
QUIET = 15.0
"""Seconds in which at most one departure and one return are logged."""
AWAY = (
    *("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS", "NOPERM"),
    *("BUSY", "OOM", "MISCONF", "NOREPLICAS"),
)
"""Refusals that the next call would meet as well."""


class Call:
    """One run of the script. ``done`` or ``failed`` is called at its end, once."""

    __slots__ = ("at", "done", "failed", "input", "keys", "sent", "whole")

    def __init__(
        self,
        keys: Sequence[bytes],
        input: bytes,
        done: Callable[[bytes], bool],
        failed: Callable[[str, bool], None],
    ) -> None:
        """``done`` says whether the reply is one. Where it is not, and where there is none,
        ``failed`` is told why, and whether the script may have been run for all that."""
        self.keys = keys
        self.input = input
        self.done = done
        self.failed = failed
        self.at = 0.0
        self.sent = False
        self.whole = False
        """Send the script itself: it is not known there."""


class Line:
    """``send`` is for those who looked at ``up`` before."""

    def __init__(self, nodes: Nodes, caller: Caller, log: FilteringBoundLogger) -> None:
        self.up = False
        """Whether calls are worth making."""
        self.reason = "it was not reached yet"
        self.waiting: dict[Call, None] = {}
        """Calls without an answer, oldest first."""
        self._nodes, self._caller, self._log = nodes, caller, log
        self._timeout = nodes.timeout
        self._link: Link | None = None
        self._next: Place | None = None
        """Where to look first."""
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        self._search = asyncio.Event()
        self._tasks = Tasks(log)
        self._left = 0.0
        self._logged = -NEVER

    async def start(self) -> None:
        """Reach the server, if that can be done now; otherwise go on trying."""
        self._left = time.monotonic()
        await self._reach()
        self._tasks.start(self._keep())
        if not self.up:
            self._search.set()
            self._tell("redis_away", reason=self.reason)

    async def stop(self) -> None:
        await self._tasks.stop()
        self.up, self.reason = False, "the store has stopped"
        self._drop(self.reason)
        self._caller.turned(False)

    def send(self, call: Call) -> None:
        """Run ``call`` on the server, within the time limit."""
        loop = asyncio.get_running_loop()
        call.at = loop.time()
        self.waiting[call] = None
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._look)
        self._write(call)

    def _write(self, call: Call) -> None:
        link = self._link
        if link is None:
            return  # It is sent when there is one again, or fails in time.
        call.sent = True
        data = command(link, call.keys, call.input, call.whole)
        link.send(data, lambda reply: self._replied(call, link, reply))

    def _replied(self, call: Call, link: Link, reply: Any) -> None:
        if call not in self.waiting:
            return
        if type(reply) is bytes and call.done(reply):
            del self.waiting[call]
            self._late = False
        elif isinstance(reply, Refused):
            self._refused(call, link, str(reply))
        elif reply is GONE:
            self._fail(call, link.reason)
        else:
            self._fail(call, NO_ANSWER)
            self._away(NO_ANSWER, link)

    def _refused(self, call: Call, link: Link, why: str) -> None:
        """Nothing of it was run. Send it where or as it should have been, or give up."""
        call.sent = False
        word = why.partition(" ")[0]
        if not call.whole and unknown(link, why):
            call.whole = True
            self._write(call)
        elif word == "MOVED":
            if link is self._link:
                self._link, self._next = None, link.place.at(why.split()[2])
                self._search.set()
                # What is under way there will be sent on as well.
                asyncio.get_running_loop().call_later(self._timeout, link.close)
            else:
                self._write(call)
        elif word == "ASK":
            self._tasks.start(self._ask(call, link.place.at(why.split()[2])))
        elif word == "TRYAGAIN":
            asyncio.get_running_loop().call_later(AGAIN, self._again, call)
        else:
            self._fail(call, why)
            if any(each in why for each in AWAY):
                self._away(why, link)

    def _again(self, call: Call) -> None:
        if call in self.waiting:
            self._write(call)

    async def _ask(self, call: Call, place: Place) -> None:
        """Run it on the node that takes the slot over just now."""
        try:
            async with asyncio.timeout(self._timeout):
                link = await self._nodes.link(place, lambda _: None)
                try:
                    call.sent = True
                    data = command(link, call.keys, call.input, whole=True)
                    _, reply = await link.ask([(b"ASKING",)], data)
                finally:
                    link.close()
        except (OSError, Refused) as error:
            self._fail(call, str(error))
        else:
            self._replied(call, link, reply)

    def _fail(self, call: Call, why: str) -> None:
        if call in self.waiting:
            del self.waiting[call]
            call.failed(why, call.sent)

    def _look(self) -> None:
        """Is the oldest call too old?"""
        self._timer = None
        loop = asyncio.get_running_loop()
        oldest = next(iter(self.waiting), None)
        if oldest is None:
            return
        left = oldest.at + self._timeout - loop.time()
        if left > 0:
            self._late = False
        elif self._late:
            self._late = False
            return self._away(f"no answer within {self._timeout * 1000:g} ms", self._link)
        else:
            self._late, left = True, GRACE
        self._timer = loop.call_later(left, self._look)

    def _away(self, why: str, link: Link | None) -> None:
        """Give up for a while: whoever waits is told, and whoever comes."""
        if link is not self._link or not self.up:
            return
        self.up = False
        self.reason = why
        self._left = time.monotonic()
        self._drop(why)
        self._search.set()
        self._tell("redis_away", reason=why)
        self._caller.turned(False)

    def _drop(self, why: str) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(why)
        for call in list(self.waiting):
            self._fail(call, why)

    def _lost(self, link: Link) -> None:
        """A connection ended by itself. Nobody having waited, it may just have been idle."""
        if link is not self._link:
            return
        if any(call.sent for call in self.waiting):
            return self._away(link.reason, link)
        self._link = None
        self._search.set()

    def _tell(self, event: str, **words: object) -> None:
        now = time.monotonic()
        if event == "redis_away":
            if now - self._logged < QUIET:
                return
            self._logged = now
            self._log.warning(event, **words)
        elif self._logged >= self._left:
            self._log.info(event, **words)

    # Finding it

    async def _keep(self) -> None:
        while True:
            await self._search.wait()
            self._search.clear()
            while self._link is None and not await self._reach():
                if self.up:
                    self._away(self.reason, None)
                    self._search.clear()
                await asyncio.sleep(KNOCK * random.uniform(0.8, 1.2))

    async def _reach(self) -> bool:
        first, self._next = self._next, None
        try:
            link = await self._nodes.reach(first, self._caller, self._lost)
        except OSError as error:
            self.reason = str(error)
            return False
        self._reached(link)
        return True

    def _reached(self, link: Link) -> None:
        self._link = link
        for call in list(self.waiting):
            if not call.sent:
                self._write(call)
        if not self.up:
            self.up = True
            away = time.monotonic() - self._left
            self._tell("redis_back", server=str(link.place), seconds=round(away, 3))
        self._caller.turned(True)
