"""Logging: structlog for what happens now and then, a batch writer for what happens all the time.

Nothing here waits for who reads the log. Each descriptor has one thread that writes to it; when
that is stuck (a pipe nobody reads, a disk that hangs), lines wait within bounds, and beyond those
they are dropped, counted, and told of once the log moves again.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, TextIO, cast

from passy_proxy import json
from passy_proxy.config.problem import redacted

# For tracebacks that nobody wants here structlog would load rich, an eighth of what a start takes.
_rich = sys.modules.setdefault("rich", cast(Any, None))
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.config.model import LogSettings

_log = logging.getLogger("passy.log")

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
BATCH = 256
"""Lines in one write, and what is written before its time has come: what waits for long is cold."""
PENDING = 20_000
"""Lines that may wait; beyond that they are dropped and counted, since a log never holds up
traffic."""
PENDING_BYTES = 16 << 20
"""Bytes that may wait, beside the first batch."""
LAST_WORDS = 2.0
"""Seconds that a process which ends gives its logs."""
REPEATS = 5
"""How often one and the same message of a library is written in ``REPEAT_SPAN``."""
REPEAT_SPAN = 10.0


def configure(level: str, format: str, stream: TextIO | None = None) -> FilteringBoundLogger:
    """The process's logger: JSON lines, or the pretty form (``auto``: on a terminal).

    To standard error, where what libraries log goes too; or to ``stream``.
    """
    if stream is None:
        log = configure(level, format, _unblocking(sys.stderr))
        _take_in(log)
        return log
    pretty = format == "pretty" or (format == "auto" and stream.isatty())
    final: Any = (
        # Plain tracebacks: the rich ones show local variables, and those hold keys.
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if pretty
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _mask,
    ]
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        structlog.PrintLogger(stream),
        processors=[*processors, final],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
    )


def unconfigured() -> FilteringBoundLogger:
    """A logger of those who have no process of their own to configure."""
    return structlog.get_logger()  # type: ignore[no-any-return]


def configured(log: LogSettings, variables: Mapping[str, str]) -> FilteringBoundLogger:
    """The process's logger, as the environment says, else the configuration."""
    return configure(
        variables.get("PASSY_LOG_LEVEL", "").lower() or log.level,
        variables.get("PASSY_LOG_FORMAT", "").lower() or log.format,
    )


def _json(event: object, **_: object) -> str:
    return json.dumps(event).decode()


def _mask(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What looks like a key is masked, whatever brought it here."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redacted(value)
    return event


class Records(logging.Handler):
    """Passes on what libraries log; of one and the same message, only so many in a time."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log
        self._seen: dict[tuple[str, str], list[float]] = {}  # since when, and how often

    def emit(self, record: logging.LogRecord) -> None:
        now = monotonic()
        key = (record.name, str(record.msg)[:200])
        since, count = seen = self._seen.setdefault(key, [now, 0.0])
        more: dict[str, Any] = {}
        if now - since >= REPEAT_SPAN:
            if count > REPEATS:
                more["not_shown"] = int(count) - REPEATS
            seen[:] = [now, 0.0]
        seen[1] += 1
        if seen[1] > REPEATS:
            return
        if len(self._seen) > 1000:
            self._seen.clear()
        try:
            said = record.getMessage()
            self._log.log(
                record.levelno, said, logger=record.name, exc_info=record.exc_info, **more
            )
        except Exception:  # As every handler: what cannot be said must not harm who says it.
            self.handleError(record)


def _take_in(log: FilteringBoundLogger) -> None:
    """Have what libraries log, and Python's warnings, go the way of our own."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, Records)]:
        root.removeHandler(handler)
    root.addHandler(Records(log))


class Alarms:
    """Lets one alarm of a name through in a while and counts the others, so that nobody who is at
    fault all the time can flood the log."""

    MOST = 1_000
    """Names remembered."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._next: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def due(self, name: str) -> int | None:
        """How many were kept back since the last one; ``None``: keep this one back too."""
        now = monotonic()
        if now < self._next.get(name, 0.0):
            self._kept_back[name] = self._kept_back.get(name, 0) + 1
            return None
        if len(self._next) >= self.MOST:
            self._next.clear()
        self._next[name] = now + self._seconds
        return self._kept_back.pop(name, 0)


_dropped = 0


def dropped() -> int:
    """Lines that the writers of this process could not write, so far."""
    return _dropped


def _unblocking(stream: TextIO) -> TextIO:
    """``stream`` so that it holds nobody up, where the system can tell whether it would."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream  # It is in memory.
    return cast(TextIO, _Unblocking(descriptor)) if hasattr(select, "poll") else stream


class _Unblocking:
    """A stream of lines to a descriptor. A line that its reader does not take is dropped and
    counted: the event loop, and the supervisor, have better things to do than to wait for it."""

    ROOM = 4096
    """What a pipe that is ready takes without waiting."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._text = ""

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        data, self._text = self._text.encode(errors="backslashreplace"), ""
        try:
            while data and self._poll.poll(0):
                data = data[os.write(self._descriptor, data[: self.ROOM]) :]
        except OSError:
            pass  # Nobody reads any more.
        if data:
            _drop(1)


def _drop(count: int) -> None:
    global _dropped
    _dropped += count


class LineWriter:
    """Writes lines from a thread of its own, in batches: a full pipe never holds up the event loop,
    which only appends to a list."""

    _all: ClassVar[dict[int, LineWriter]] = {}

    def __init__(self, descriptor: int, interval: float = 0.2) -> None:
        self._descriptor = descriptor
        self._interval = interval
        self._lines: list[bytes] = []
        self._behind = 0  # bytes that wait beside the first batch, about
        self._due = threading.Event()
        self._done = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.dropped = 0
        self._told = 0  # of those dropped

    @classmethod
    def of(cls, descriptor: int) -> LineWriter:
        """The one writer of a descriptor in this process, running: two would mix their lines, and
        a stuck one would be left behind by each reload."""
        writer = cls._all.get(descriptor)
        if writer is None or not writer.alive:  # A fork takes no thread along.
            writer = cls._all[descriptor] = cls(descriptor)
            writer.start()
        return writer

    @property
    def alive(self) -> bool:
        """Its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="passy-log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue a line, without the end of it."""
        lines = self._lines
        count = len(lines)
        if count < BATCH:
            lines.append(line)
        elif count < PENDING and self._behind < PENDING_BYTES:
            self._behind += len(line)
            lines.append(line)
            if count == BATCH:
                self._due.set()
        else:
            self.drop()

    def drop(self, count: int = 1) -> None:
        """Give up lines."""
        self.dropped += count
        _drop(count)

    def flush(self, timeout: float = LAST_WORDS) -> None:
        """Wait until what was put has been written, for at most ``timeout`` seconds."""
        end = monotonic() + timeout
        if not self.alive:
            return
        for _ in range(2):  # It may be at the end of a round which had not seen the latest line.
            self._done.clear()
            self._due.set()
            self._done.wait(max(0.0, end - monotonic()))

    def stop(self, timeout: float = LAST_WORDS) -> None:
        """Write what waits, for at most ``timeout`` seconds, and end."""
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            self._due.wait(self._interval)
            self._due.clear()
            self._flush()
            self._done.set()
        self._flush()

    def _flush(self) -> None:
        # The loop may append at any moment, but not within the taking or the deletion of a slice.
        while lines := self._lines[:BATCH]:
            del self._lines[: len(lines)]
            # A number that is not exact is enough for a bound; it is right again when none wait.
            self._behind = max(0, self._behind - sum(map(len, lines))) if self._lines else 0
            try:
                self._write(b"\n".join([*lines, b""]))
            except OSError:
                self.drop(len(lines))
                continue
            if self.dropped > self._told:
                self._tell_dropped()

    def _tell_dropped(self) -> None:
        count, self._told = self.dropped - self._told, self.dropped
        _log.warning("%d lines for descriptor %d were dropped", count, self._descriptor)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except (
                BlockingIOError
            ):  # Somebody it is shared with does not like to wait; here is time.
                room = select.poll()
                room.register(self._descriptor, select.POLLOUT)
                room.poll()


def reopen_when_asked() -> None:
    """From now on SIGUSR1 opens those of the standard streams anew that are files, by the names
    they have now: who rotates logs moves a file away and then sends it. It ends no process."""
    if not hasattr(signal, "SIGUSR1"):  # Windows.
        return
    files = {descriptor: name for descriptor in (1, 2) if (name := _file_of(descriptor))}

    def reopen(number: int, frame: FrameType | None) -> None:
        for descriptor, name in files.items():
            with suppress(OSError):  # Then the old one is better than none.
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                opened = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
                os.dup2(opened, descriptor)
                os.close(opened)

    signal.signal(signal.SIGUSR1, reopen)


def _file_of(descriptor: int) -> str | None:
    """The path of the file that is open there, where it is one and the system tells."""
    try:
        open_, name = os.fstat(descriptor), os.readlink(f"/proc/self/fd/{descriptor}")
        there = stat.S_ISREG(open_.st_mode) and os.path.samestat(open_, os.stat(name))
    except OSError:
        return None
    return name if there else None


def let_go() -> None:
    """Part with standard streams that take nothing, as on a full disk: Python would try once more
    at the very end, and make that the exit code."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError):
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def flush(timeout: float = LAST_WORDS) -> None:
    """Wait until all logs are written, for at most ``timeout`` seconds."""
    end = monotonic() + timeout
    for writer in list(LineWriter._all.values()):
        writer.flush(max(0.0, end - monotonic()))


atexit.register(flush)
