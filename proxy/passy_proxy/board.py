"""A piece of memory that the workers of a host have in common, for what they decide together.

It is made before they are forked. Who writes holds the board; the lock is the kernel's, which takes
it from a process that ends, whatever ends it. So who writes sees to it that what is left in the
middle is no worse than what was never begun.
"""

from __future__ import annotations

import fcntl
import mmap
import tempfile
from time import monotonic, sleep

from passy_proxy.stores import StoreUnavailable

BYTES = 16 << 20
"""Of memory, where it is used."""
PATIENCE = 0.25
"""Seconds for another worker to let go. It holds on for some microseconds; but it may have lost its
core meanwhile."""
PAUSE = 0.0002


class Board:
    """``with board:`` nobody else writes; `StoreUnavailable` where somebody does not let go. Who
    holds it may take hold again."""

    def __init__(self, workers: int, size: int = BYTES) -> None:
        self.workers = workers
        self.cells = memoryview(mmap.mmap(-1, size)).cast("q")
        """Whole numbers of 64 bits, 0 at first."""
        self._lock = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._fd = self._lock.fileno()
        self._depth = 0

    @property
    def held(self) -> bool:
        """By this process."""
        return self._depth > 0

    def __enter__(self) -> None:
        if not self._depth:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._wait()
        self._depth += 1

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if not self._depth:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _wait(self) -> None:
        end = monotonic() + PATIENCE
        while True:
            sleep(PAUSE)
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if monotonic() > end:
                    raise StoreUnavailable("another worker does not let go of it") from None
            else:
                return

    def close(self) -> None:
        """Nobody may use it any more."""
        self._lock.close()
