"""Logging: structlog for what happens now and then, a batch writer for what happens all the
time."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections.abc import Mapping, MutableMapping
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from passy_proxy import json
from passy_proxy.config.problem import redacted

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_proxy.config.model import LogSettings

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
BATCH = 256
"""Lines in one write, and what is written before its time has come: what waits for long is cold."""
PENDING = 20_000
"""Lines that may wait; beyond that they are dropped and counted, since a log never holds up
traffic."""


def configure(level: str, format: str, stream: TextIO | None = None) -> FilteringBoundLogger:
    """The process's logger: JSON lines, or the pretty form (``auto``: on a terminal)."""
    stream = stream or _unblocking(sys.stderr)
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
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        structlog.PrintLogger(stream),
        processors=[*processors, final],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
    )


def configured(log: LogSettings, variables: Mapping[str, str]) -> FilteringBoundLogger:
    """The process's logger, as the environment says, else the configuration."""
    return configure(
        variables.get("PASSY_LOG_LEVEL") or log.level,
        variables.get("PASSY_LOG_FORMAT") or log.format,
    )


def _json(event: object, **_: object) -> str:
    return json.dumps(event).decode()


def _mask(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What looks like a key is masked, whatever brought it here."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redacted(value)
    return event


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

    def __init__(self, descriptor: int, interval: float = 0.2) -> None:
        self._descriptor = descriptor
        self._interval = interval
        self._lines: list[bytes] = []
        self._due = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="passy-log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue a line, without the end of it."""
        lines = self._lines
        count = len(lines)
        if count < PENDING:
            lines.append(line)
            if count == BATCH:
                self._due.set()
        else:
            self.drop()

    def drop(self, count: int = 1) -> None:
        """Give up lines."""
        self.dropped += count
        _drop(count)

    def stop(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most ``timeout`` seconds."""
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            self._due.wait(self._interval)
            self._due.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        # The loop may append at any moment, but not within the taking or the deletion of a slice.
        while lines := self._lines[:BATCH]:
            del self._lines[: len(lines)]
            try:
                self._write(b"\n".join([*lines, b""]))
            except OSError:
                self.drop(len(lines))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
