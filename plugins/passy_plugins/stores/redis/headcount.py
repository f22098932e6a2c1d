"""How many workers share a server's counters, as was last heard: in memory, and on disk.

Who is cut off holds its share of each limit, and so must know how many there are. One that starts
while it is cut off knows it from before.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

MOST = 1_000_000


class Headcount:
    """``least`` are those of this host, who are there whatever was heard."""

    def __init__(self, file: Path, least: int = 1) -> None:
        self._file = file
        self.count = max(least, _read(file))

    def heard(self, count: int) -> None:
        """The server says that there are so many. In an event loop."""
        if count != self.count:
            self.count = count
            asyncio.get_running_loop().run_in_executor(None, self._write, count)

    def _write(self, count: int) -> None:
        # Of its own, since the other workers of this host are told the same at this very moment.
        draft = self._file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # It is known all the same, until the process ends.
            draft.write_text(str(count))
            draft.replace(self._file)


def _read(file: Path) -> int:
    with suppress(OSError, ValueError):
        return min(max(int(file.read_text()[:20]), 1), MOST)
    return 1
