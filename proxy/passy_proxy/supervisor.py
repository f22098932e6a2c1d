"""Several workers on one address, and the process that looks after them.

All workers accept from one socket, or one for each of two listeners, which was there before they
were. A connection that waits in its queue belongs to none of them, so the death of one loses none;
with a socket for each worker (``SO_REUSEPORT``) those in its own queue would be reset. That they
take fair shares is the business of `door.py`.

The supervisor forks its workers from itself, with everything imported: a new one serves within a
tenth of a second. For that it must stay what it is, a process without threads or an event loop.

It tells its workers what to do through a pipe each, and not by signals, since those also reach the
workers from elsewhere: a terminal sends Ctrl-C to all of them, systemd SIGTERM. So a signal asks a
worker to stop, however often it comes; only the supervisor asks twice. The end of the pipe is the
supervisor's death, which nobody survives. A worker says on its side what the others are to do as it
did: reload, or turn clients away for a while. Of the latter the supervisor knows how it stands, so
that who takes a dead worker's place does the same.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from passy_proxy.cli import Exit
from passy_proxy.pulse import LAST_WORDS, Slot

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

DRAIN: Final = b"d"
INTERRUPT: Final = b"i"
HURRY: Final = b"h"
RELOAD: Final = b"r"
AWAY: Final = b"a"
"""Have no more clients sent here."""
BACK: Final = b"b"
"""Have them again."""

TICK = 0.25
"""Seconds between two looks at the workers."""
QUICK = 10.0
"""A worker that lives shorter died quickly: the next one waits, longer each time."""
LAST_SIGN = 0.5
"""Seconds for a dead worker to write down its stack; one that was stopped cannot."""
FIRST_WAIT = 0.1
LONGEST_WAIT = 5.0
DOUBLED = 6
"""How often `FIRST_WAIT` is doubled, at most: a worker may die quickly for days."""
ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
REOPEN = getattr(signal, "SIGUSR1", None)
"""Whoever gets it opens its own log files anew; workers are born knowing how."""

Work = Callable[[int, socket.socket], None]
"""Serve as the worker of that number; commands come from the socket."""

Blame = Callable[[list[str]], dict[str, Any]]
"""Says whose code a stack is in."""


class Worker:
    """One slot and who is in it now."""

    def __init__(self, number: int, slot: Slot) -> None:
        self.number = number
        self.slot = slot
        self.pid = 0
        """0 while there is nobody."""
        self.due = 0.0
        """When the next one is started."""
        self.born = 0.0
        self.line: socket.socket | None = None
        self.quick = 0
        """Quick deaths in a row."""
        self.beats = 0
        self.silent = 0.0
        """Seconds without a beat, or in which it did not come to listen."""

    def tell(self, command: bytes) -> None:
        if self.line is not None:
            with contextlib.suppress(OSError):
                self.line.send(command)


class Times(NamedTuple):
    """In seconds."""

    dead: float
    """Silence after which a worker is replaced; 0 is never."""
    start: float
    """The same for one that does not listen yet: its loop may well turn, and wait for ever."""
    patience: float
    """How long the end may take, before workers are killed."""


class Supervisor:
    """Starts workers, replaces those that die or hang, and ends them together."""

    def __init__(
        self,
        work: Work,
        slots: Sequence[Slot],
        listening: Sequence[socket.socket],
        blame: Blame,
        log: FilteringBoundLogger,
        times: Times,
    ) -> None:
        self.workers = [Worker(number, slot) for number, slot in enumerate(slots)]
        self._work = work
        self._listening = listening
        self._blame = blame
        self._log = log
        self._times = times
        self._began = False
        """Some worker has listened."""
        self._code = Exit.ok
        self._end: float | None = None
        """When the last worker has to be gone."""
        self._woken, self._wake = socket.socketpair()
        self._away = False
        """The workers were told to be `AWAY`."""

    def run(self) -> int:
        """The exit code, once all workers have ended."""
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        for number in ASKED:
            signal.signal(number, _noticed)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()
        looked = monotonic()
        while self._end is None or any(worker.pid for worker in self.workers):
            self._start_who_is_due()
            lines = [worker.line for worker in self.workers if worker.line is not None]
            said, _, _ = select.select([self._woken, *lines], [], [], TICK)
            self._obey()
            self._pass_on(said)
            self._bury()
            now = monotonic()
            # Who stops us all for a while (a debugger, a container's pause) makes nobody silent.
            self._listen(min(now - looked, 2 * TICK))
            looked = now
        return self._code

    def _obey(self) -> None:
        try:
            numbers = self._woken.recv(4096)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGHUP:
                self._tell_all(RELOAD)
            elif number == REOPEN:
                # A signal this once, since it does no harm twice. Ours was opened anew by now.
                for worker in self.workers:
                    if worker.pid:
                        _kill(worker.pid, number)
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._stop(interrupted=number == signal.SIGINT)

    def _pass_on(self, said: Sequence[object]) -> None:
        """What workers say to each other."""
        for worker in self.workers:
            if worker.line is None or worker.line not in said:
                continue
            commands = heard(worker.line)
            for number in commands:
                command = bytes([number])
                if command in (AWAY, BACK):
                    self._away = command == AWAY
                for other in self.workers:
                    if other is not worker:
                        other.tell(command)
            if not commands:  # It is gone, and will be buried.
                worker.line.close()
                worker.line = None

    def _stop(self, *, interrupted: bool) -> None:
        if interrupted:
            self._code = Exit.interrupted
        if self._end is not None:
            self._tell_all(HURRY)
            return
        self._end = monotonic() + self._times.patience
        # Ours must not be the last one: what waits in its queue then would be lost.
        self._stop_listening()
        self._tell_all(INTERRUPT if interrupted else DRAIN)

    def _stop_listening(self) -> None:
        for sock in self._listening:
            sock.close()

    def _tell_all(self, command: bytes) -> None:
        for worker in self.workers:
            worker.tell(command)

    def _start_who_is_due(self) -> None:
        now = monotonic()
        for worker in self.workers:
            if not worker.pid and self._end is None and worker.due <= now:
                self._fork(worker)

    def _fork(self, worker: Worker) -> None:
        worker.born, worker.silent, worker.beats = monotonic(), 0.0, -1
        # A signal between the fork and the child's own handlers must wait for those.
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)
        try:
            worker.line, line = socket.socketpair()
            with line:
                worker.pid = os.fork()
                if worker.pid == 0:
                    self._be(worker, line)
                if self._away:
                    worker.tell(AWAY)
        except OSError as exc:  # There is no room for another process now: the others serve on.
            if worker.line is not None:
                worker.line.close()
                worker.line = None
            worker.due = monotonic() + LONGEST_WAIT
            self._log.error("worker_not_started", worker=worker.number, cause=str(exc))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED)

    def _be(self, worker: Worker, line: socket.socket) -> None:
        """The life of a worker; never returns."""
        code: int = Exit.failed
        try:
            signal.set_wakeup_fd(-1)
            for number in ASKED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED)
            # Of the others' lines none may stay open here, or they would not notice our death.
            for other in self.workers:
                if other.line is not None:
                    other.line.close()
            self._woken.close()
            self._wake.close()
            self._work(worker.number, line)
            code = Exit.ok
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else Exit.failed
        except KeyboardInterrupt:
            code = Exit.interrupted
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _bury(self) -> None:
        """Those who died, and when they will be replaced."""
        for worker in self.workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            worker.pid = 0
            if worker.line is not None:  # Nobody has heard its end yet.
                worker.line.close()
                worker.line = None
            code = os.waitstatus_to_exitcode(status)
            # One that serves while another has not come to it yet has not been looked at, perhaps.
            self._began = self._began or any(other.slot.ready for other in self.workers)
            worker.slot.ready = False
            if self._end is not None:
                continue
            if not self._began:
                self._give_up(code)
                continue
            self._plan(worker, pid, code)

    def _give_up(self, code: int) -> None:
        """The first worker could not even start: no other could."""
        self._code = Exit(code) if code in list(Exit) and code else Exit.failed
        if code < 0:
            self._log.error("worker_died", cause=_named(code))
        self._end = monotonic() + self._times.patience
        self._stop_listening()
        self._tell_all(DRAIN)
        self._tell_all(HURRY)

    def _plan(self, worker: Worker, pid: int, code: int) -> None:
        now = monotonic()
        lived = now - worker.born
        worker.quick = worker.quick + 1 if lived < QUICK else 0
        times = min(worker.quick - 2, DOUBLED)
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**times) if worker.quick > 1 else 0.0
        worker.due = now + wait
        worker.slot.restarted()
        stack = worker.slot.stack()
        self._log.error(
            "worker_died",
            worker=worker.number,
            pid=pid,
            cause=_named(code),
            lived=round(lived, 1),
            restart_in=wait,
            **(self._blame(stack) | {"stack": stack} if stack else {}),
        )

    def _listen(self, elapsed: float) -> None:
        """For the beat of each worker."""
        for worker in self.workers:
            if not worker.pid:
                continue
            worker.silent += elapsed
            longest = self._times.start
            if worker.slot.ready:
                self._began = True
                longest, beats = self._times.dead, worker.slot.beats
                if beats != worker.beats:
                    worker.silent, worker.beats = 0.0, beats
            if 0 < longest < worker.silent:
                self._replace(worker)
        if self._end is not None and monotonic() > self._end:
            for worker in self.workers:
                if worker.pid:
                    self._log.error("worker_overdue", worker=worker.number, pid=worker.pid)
                    _kill(worker.pid, signal.SIGKILL)

    def _replace(self, worker: Worker) -> None:
        stack = worker.slot.stack()  # From when it began to be late.
        if LAST_WORDS is not None:
            _kill(worker.pid, LAST_WORDS)  # It writes down where it is now.
        end = monotonic() + LAST_SIGN
        while monotonic() < end:
            sleep(0.02)
            if now := worker.slot.stack():
                stack = now
                break
        self._log.error(
            "worker_dead",
            worker=worker.number,
            pid=worker.pid,
            seconds=round(worker.silent, 1),
            ready=worker.slot.ready,
            **self._blame(stack),
            stack=stack,
        )
        worker.silent = 0.0
        _kill(worker.pid, signal.SIGKILL)


def _noticed(number: int, frame: object) -> None:
    """The number is read from the pipe that wakes the loop."""


def heard(line: socket.socket) -> bytes:
    """Commands; none from who is gone, also if it left some of ours unread, which is a reset."""
    try:
        return line.recv(64)
    except ConnectionResetError:
        return b""


def _named(code: int) -> str:
    """``SIGSEGV``, or ``exit 1``."""
    if code >= 0:
        return f"exit {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
