"""What a process may use of the machine, and what it uses: memory and file descriptors.

Read from where Linux tells it. Elsewhere, or where it is not told, nothing is known, which never
counts as too much.
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED = 1 << 60  # bytes; what version 1 of cgroups says is a little less than 2**63
_MOST_DESCRIPTORS = 1 << 20


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group that limits memory: ``folder`` is its place, ``limit`` in bytes."""

    folder: Path
    limit: int
    version: int

    @classmethod
    def of_process(
        cls, told: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/sys/fs/cgroup")
    ) -> Cgroup | None:
        """The one with the tightest limit among those that this process is in."""
        found = []
        with suppress(OSError):
            for line in told.read_text().splitlines():
                _, kinds, path = line.split(":", 2)
                if not kinds:
                    found += cls._above(mounts, path, "memory.max", 2)
                elif "memory" in kinds.split(","):
                    found += cls._above(mounts / "memory", path, "memory.limit_in_bytes", 1)
        return min(found, key=lambda each: each.limit, default=None)

    @classmethod
    def _above(cls, mount: Path, path: str, name: str, version: int) -> list[Cgroup]:
        # A container may see only its own group, as the root, under the name the host gives it.
        parts = Path(path.strip("/")).parts
        found = []
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            with suppress(OSError, ValueError):
                limit = int((folder / name).read_text())
                if limit < _UNLIMITED:
                    found.append(cls(folder, limit, version))
        return found

    def used(self) -> int:
        """Bytes that cannot be taken back: without the pages of files that nobody reads."""
        name, idle = "memory.current", "inactive_file"
        if self.version == 1:
            name, idle = "memory.usage_in_bytes", "total_inactive_file"
        used = int((self.folder / name).read_text())
        for line in (self.folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == idle:
                return used - int(value)
        return used


class Memory:
    """Memory of this process, and of what it shares its limit with."""

    def __init__(self) -> None:
        self._cgroup = Cgroup.of_process()
        self._machine = 0
        with suppress(OSError, ValueError):
            self._machine = os.sysconf("SC_PHYS_PAGES") * _PAGE

    def own(self) -> int:
        """Bytes resident in this process; 0 if that is not told."""
        with suppress(OSError, ValueError, IndexError):
            return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
        return 0

    def shared(self) -> tuple[int, int]:
        """Bytes used and bytes there are: of the cgroup, or of the machine by this process alone.

        0 bytes there are: it is not known.
        """
        if self._cgroup is not None:
            with suppress(OSError, ValueError):
                return self._cgroup.used(), self._cgroup.limit
        return self.own(), self._machine


def descriptors() -> tuple[int, int]:
    """File descriptors open, and how many may be; 0 may be: there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 0, 0
    return _open(), limit


def _open() -> int:
    folder = "/proc/self/fd"
    with suppress(OSError):
        # Linux tells the number as the size since 6.2; before, they have to be looked through.
        return os.stat(folder).st_size or len(os.listdir(folder))
    return 0


def allow_descriptors() -> None:
    """Raise this process's limit of file descriptors as far as it is allowed to: the usual soft
    limit of 1024 is there for programs that use ``select``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > _MOST_DESCRIPTORS:
        hard = _MOST_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            )


def give_back_memory() -> None:
    """Hand memory that is free, but kept for later, back to the system. Takes milliseconds."""
    with suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
