"""The price list, asked for in a process of its own and remembered.

genai-prices takes a second to import and more memory than a whole gateway, so it never comes into
this process. Questions are gathered; a child answers them all, and those that come up meanwhile,
and ends. What it said is kept in memory and in a file, so that a later start has nothing to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from passy_proxy.listing import Answer, Question
from passy_proxy.structs import Struct

try:
    import msgspec

    HAVE_MSGSPEC = True
except ImportError:  # Then the only prices are those written in the configuration.
    HAVE_MSGSPEC = False

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

K = TypeVar("K")
V = TypeVar("V")

FORMAT = 2
"""Of the file; grows when what it holds changes its meaning."""


class Remembered(Struct):
    """The file."""

    source: str
    answers: list[tuple[Question, Answer]]


class PriceBook:
    """What the price list says. Asks nobody before ``open`` and after ``close``.

    Models can be named by clients, so everything here is bounded: a question too many is unknown
    for now, and the oldest answer makes room for the newest.
    """

    KEPT = 4_096
    UNLISTED = 1_024
    ASKED = 256
    BATCH = 64
    WAITING = 10_000
    """Who may wait for one answer."""
    PATIENCE = 15.0
    """Seconds for a child's answer, its start included."""
    RETRY = 60.0
    """Seconds without a question after a child that failed."""

    def __init__(self, path: Path, log: FilteringBoundLogger) -> None:
        self._path = path
        self._log = log
        self._open = False
        self._asking: asyncio.Task[None] | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._not_before = 0.0
        self._listed: dict[Question, Answer] = {}
        self._unlisted: dict[Question, Answer] = {}
        self._strangers: dict[tuple[str, str], Answer] = {}
        self._waiting: dict[Question, list[Callable[[], None]]] = {}
        self.source = ""
        """Name and version of the list."""

    def open(self) -> None:
        """Read the file and begin to answer; needs a running event loop. May be called again."""
        if self._open or not HAVE_MSGSPEC:
            return
        try:
            self.source = f"genai-prices {version('genai-prices')}"
        except PackageNotFoundError:
            self._log.warning("price_list_missing", hint="pip install genai-prices")
            return
        self._open = True
        self._read()

    async def close(self) -> None:
        """End the child and tell everyone who waits. May be called again."""
        self._open = False
        kill(self._child)
        if self._asking is not None:
            # Not cancelled: it would leave a child that nobody has waited for.
            await self._asking

    def answer(self, question: Question) -> Answer | None:
        """What is known; ``None`` when nothing is yet, and the question is then asked."""
        known = self._listed.get(question) or self._unlisted.get(question)
        if known is None:
            known = self._strangers.get(question[:2])
        if known is None and self._open:
            self._ask(question)
        return known

    def asks(self, question: Question) -> bool:
        """Whether the answer is on its way."""
        return question in self._waiting

    def when_known(self, question: Question, then: Callable[[], None]) -> None:
        """Call ``then`` once the question is answered or given up; at once if nobody is asked."""
        waiting = self._waiting.get(question)
        if waiting is None or len(waiting) >= self.WAITING:
            then()
        else:
            waiting.append(then)

    def _ask(self, question: Question) -> None:
        if question in self._waiting or len(self._waiting) >= self.ASKED:
            return
        if monotonic() < self._not_before:
            return
        self._waiting[question] = []
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask_child())

    async def _ask_child(self) -> None:
        try:
            while self._waiting and self._open:
                await self._answered_by_child()
        except (OSError, ValueError, TimeoutError, NotImplementedError) as exc:
            self._not_before = monotonic() + self.RETRY
            if self._open:
                reason = str(exc) or type(exc).__name__
                self._log.warning("price_list_unavailable", reason=reason)
        finally:
            self._asking = None
            self._tell(list(self._waiting))

    async def _answered_by_child(self) -> None:
        """Ask until nothing is left to ask. Raises OSError, ValueError, TimeoutError."""
        # -P: nothing of the folder we were started in is imported. A session of its own: the
        # terminal's Ctrl-C is ours to deal with, and the end of our pipe is the end of the child.
        self._child = child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "passy_proxy.price_list"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            limit=1 << 24,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            while self._waiting and self._open:
                batch = list(self._waiting)[: self.BATCH]
                async with asyncio.timeout(self.PATIENCE):
                    child.stdin.write(msgspec.json.encode(batch) + b"\n")
                    await child.stdin.drain()
                    line = await child.stdout.readline()
                if not line:
                    raise ValueError("the process that reads the price list ended")
                answers = msgspec.json.decode(line, type=list[Answer])
                for question, answer in zip(batch, answers, strict=True):
                    self._learn(question, answer)
                self._tell(batch)
            self._write()
        finally:
            self._child = None
            kill(child)
            await child.communicate()  # Waits for its end, and for that of its pipes.

    def _learn(self, question: Question, answer: Answer) -> None:
        if answer.listing is not None:
            keep(self._listed, question, answer, self.KEPT)
        elif answer.provider:
            keep(self._unlisted, question, answer, self.UNLISTED)
        else:
            keep(self._strangers, question[:2], answer, self.UNLISTED)

    def _tell(self, questions: list[Question]) -> None:
        for question in questions:
            for then in self._waiting.pop(question, ()):
                then()

    # The file

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # Missing or damaged: everything is asked.
            remembered = msgspec.json.decode(self._path.read_bytes(), type=Remembered)
            if remembered.source == f"{self.source}/{FORMAT}":
                for question, answer in remembered.answers:
                    self._learn(question, answer)

    def _write(self) -> None:
        strangers = [(Question(*who, ""), answer) for who, answer in self._strangers.items()]
        answers = [*self._listed.items(), *self._unlisted.items(), *strangers]
        # Every worker has a draft of its own; the last one to finish has its way.
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            remembered = Remembered(f"{self.source}/{FORMAT}", answers)
            draft.write_bytes(msgspec.json.encode(remembered))
            draft.chmod(0o600)
            draft.replace(self._path)
        except OSError as exc:
            self._log.warning("prices_not_kept", path=str(self._path), reason=str(exc))


def kill(child: asyncio.subprocess.Process | None) -> None:
    if child is not None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()


def keep(kept: dict[K, V], key: K, value: V, most: int) -> None:
    """Remember ``value``, at the cost of the oldest where ``most`` are remembered."""
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
