"""The pulse of a process: whether its event loop still turns, and who holds it up if not.

The loop beats twenty times a second: it counts, and winds up the kernel's alarm clock. A loop that
is held up does not wind it up again, the alarm goes off, and its handler writes down the stack: a
handler of Python's, between two steps of the interpreter. One in C could look at any moment, also
at one in which greenlets are being switched and there is no stack, and would end the process. The
next beat, if there is one, logs the stack with the plugin it leads to.

A loop that does not beat any more is dead. The supervisor sees that in the `Slot` it shares with
each worker, and replaces it; before that it sends `LAST_WORDS`, whose handler is C, since what
holds up the loop may hold the interpreter's lock, as a regular expression does for as long as it
searches. Where there is no supervisor, `faulthandler` ends the process, which leaves the stack on
standard error and the rest to whatever started it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import mmap
import os
import re
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Collection
from time import monotonic
from typing import TYPE_CHECKING, Any

from passy_proxy.tasks import Tasks

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.registry import Registry

INTERVAL = 0.05
"""Seconds between two beats."""
REWIND = 1.0
"""Seconds between two renewals of the promise to end a dead process: they cost a thread each."""
QUIET = 5.0
"""Seconds between two lines that blame the same for less than `LONG`."""
LONG = 0.5
FRAMES = 30
"""Innermost frames of a stack that are logged."""

LAST_WORDS = getattr(signal, "SIGVTALRM", None)
"""What a worker that is about to be killed is sent, to write down its stack whatever holds it up.
``None`` on Windows."""

_FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$', re.MULTILINE)
_SECTION = re.compile(r"^(?:Stack|Current thread \w+).*\(most recent call first\):$", re.MULTILINE)
_BEATS, _READY, _RESTARTS, _CONNECTIONS, _CONFIGURATION, _TAKEN, _REFUSED, _DRAINED = range(8)
_FRONT = struct.Struct("<II")  # length and CRC of what is published


class Slot:
    """The place of one worker. What is in it outlives the worker, and is seen by the supervisor and
    by the workers beside it: they were all forked from where it was made."""

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self.dump = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        """Where stacks are written by signal handlers."""
        self._published = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def begin(self) -> None:
        """Be its worker: a crash writes down its stack here, and `LAST_WORDS` do."""
        self.drained = False  # Who is, is told so anew.
        faulthandler.enable(self.dump)
        if LAST_WORDS is not None:
            faulthandler.register(LAST_WORDS, self.dump, all_threads=False)

    def close(self) -> None:
        """Give back what it takes; nobody may use it any more."""
        self.dump.close()
        self._published.close()

    @property
    def beats(self) -> int:
        """Grows while the worker's loop turns."""
        return self._cells[_BEATS]

    def beat(self) -> None:
        self._cells[_BEATS] += 1

    @property
    def ready(self) -> bool:
        """The worker listens."""
        return bool(self._cells[_READY])

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._cells[_READY] = ready

    @property
    def restarts(self) -> int:
        """How many workers were started here in place of another."""
        return self._cells[_RESTARTS]

    def restarted(self) -> None:
        self._cells[_RESTARTS] += 1

    @property
    def connections(self) -> int:
        """Those of clients, about."""
        return self._cells[_CONNECTIONS]

    @connections.setter
    def connections(self, count: int) -> None:
        self._cells[_CONNECTIONS] = count

    @property
    def configuration(self) -> str:
        """Short hash of what the worker runs."""
        return f"{self._cells[_CONFIGURATION]:08x}"

    @property
    def taken(self) -> int:
        """How many configurations were taken here, the one of each start among them."""
        return self._cells[_TAKEN]

    @property
    def refused(self) -> int:
        """How many were refused here."""
        return self._cells[_REFUSED]

    def took(self, hash: str) -> None:
        self._cells[_CONFIGURATION] = int(hash, 16)
        self._cells[_TAKEN] += 1

    def refuse(self) -> None:
        self._cells[_REFUSED] += 1

    @property
    def drained(self) -> bool:
        """The worker was told to turn clients away; see `Gateway.drained`."""
        return bool(self._cells[_DRAINED])

    @drained.setter
    def drained(self, drained: bool) -> None:
        self._cells[_DRAINED] = drained

    def stack(self) -> list[str]:
        """The latest stack in the dump, innermost frame first, ``file:line in function``; the dump
        is empty then."""
        fd = self.dump.fileno()
        text = os.pread(fd, 1 << 20, 0).decode("utf-8", "replace")
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        begins = [found.end() for found in _SECTION.finditer(text)]
        section = text[begins[-1] :].partition("\n\n")[0] if begins else ""
        frames = [each for each in _FRAME.findall(section) if each[0] != __file__]
        return [f"{file}:{line} in {name}" for file, line, name in frames[:FRAMES]]

    def publish(self, data: bytes) -> None:
        """Let the others see ``data``, in place of what was published before."""
        os.pwrite(self._published.fileno(), _FRONT.pack(len(data), zlib.crc32(data)) + data, 0)

    def published(self) -> bytes:
        """What was published last, or nothing; also nothing while it is being replaced."""
        raw = os.pread(self._published.fileno(), 1 << 24, 0)
        if len(raw) < _FRONT.size:
            return b""
        length, crc = _FRONT.unpack_from(raw)
        data = raw[_FRONT.size : _FRONT.size + length]
        return data if len(data) == length and zlib.crc32(data) == crc else b""


class Pulse:
    """Beats in an event loop, from `start` to `stop`. ``dead`` is the time after which the process
    ends itself; 0 leaves that to a supervisor, or to nobody."""

    def __init__(
        self, slot: Slot, registry: Registry, log: FilteringBoundLogger, lag: float, dead: float
    ) -> None:
        self.slot = slot
        self.connections: Collection[object] = ()
        """Those whose number is told in the slot."""
        self.lag = 0.0
        """By how many seconds the latest beat was late."""
        self.blocked = 0
        """How often the loop was held up for longer than allowed."""
        self.blocked_seconds = 0.0
        """And for how long in all."""
        self._registry = registry
        self._log = log
        self._allowed = max(lag, INTERVAL)  # What is less is noise.
        self._dead = dead
        self._tasks = Tasks(log)
        self._rewound = 0.0
        self._said: dict[str | None, float] = {}
        """When each plugin, or nobody, was last blamed."""
        self._unsaid = 0
        self._before: Any = None
        """What SIGALRM did before."""

    def start(self) -> None:
        """Begin. Only in a main thread, which signals reach."""
        if hasattr(signal, "SIGALRM"):  # Not on Windows.
            self._before = signal.signal(signal.SIGALRM, self._alarmed)
            signal.siginterrupt(signal.SIGALRM, False)
        self._tasks.start(self._run())

    async def stop(self) -> None:
        await self._tasks.stop()
        if hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)
        faulthandler.cancel_dump_traceback_later()

    def _alarmed(self, number: int, frame: object) -> None:
        faulthandler.dump_traceback(self.slot.dump, all_threads=False)

    async def _run(self) -> None:
        due = monotonic()
        while True:
            now = monotonic()
            self.lag = late = max(0.0, now - due)
            if late > self._allowed:
                self._held_up(late, now)
            self.slot.beat()
            self.slot.connections = len(self.connections)
            if hasattr(signal, "SIGALRM"):
                signal.setitimer(signal.ITIMER_REAL, INTERVAL + self._allowed)
            if self._dead and now - self._rewound > REWIND:
                self._rewound = now
                faulthandler.dump_traceback_later(self._dead + REWIND, exit=True, file=sys.stderr)
            due = monotonic() + INTERVAL
            await asyncio.sleep(INTERVAL)

    def _held_up(self, late: float, now: float) -> None:
        self.blocked += 1
        self.blocked_seconds += late
        stack = self.slot.stack()
        blame = blamed(stack, self._registry)
        # Each of those to blame has a silence of its own: a busy machine must not cover them.
        said = self._said.get(blame["plugin"])
        if late < LONG and said is not None and now - said < QUIET:
            self._unsaid += 1
            return
        self._log.warning(
            "loop_blocked", seconds=round(late, 3), **blame, stack=stack, unsaid=self._unsaid
        )
        self._said[blame["plugin"]], self._unsaid = now, 0


def blamed(stack: list[str], registry: Registry) -> dict[str, Any]:
    """Whose code a stack is in: the plugin of the innermost frame that belongs to one."""
    for frame in stack:
        plugin = registry.owner(frame.rpartition(" in ")[0].rpartition(":")[0])
        if plugin is not None:
            return {
                "plugin": plugin.name,
                "filters": [one.name for one in plugin.filters],
                "distribution": f"{plugin.distribution} {plugin.version}".strip(),
            }
    return {"plugin": None}
