"""Where a run takes place: a folder, the mock, and what lives as long as the run."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from passy_bench.servers import Program, last_words, running


class LeftOut(Exception):
    """A peer that this machine does not have; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Site:
    """A folder for configurations and data, and the port of the mock. What is on ``stack`` ends
    with the run; ``core`` is that of everything but the target."""

    folder: Path
    mock_port: int
    core: int | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def mock(self) -> str:
        return f"http://127.0.0.1:{self.mock_port}"

    def room(self, name: str) -> Path:
        """A new folder for one target."""
        room = self.folder / name
        room.mkdir()
        return room

    def begin(self, program: Program) -> subprocess.Popen[bytes]:
        """Run it until the end of the run."""
        return self.stack.enter_context(running(program))

    def said(self, program: Program) -> str:
        return last_words(program.folder / "output.log")
