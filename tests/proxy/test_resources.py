"""What a process may use, as Linux tells it."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from passy_proxy import resources
from passy_proxy.resources import Cgroup, Memory, descriptors


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_tightest_limit_above_a_process_counts(tmp_path: Path, told: Path) -> None:
    told.write_text("0::/outer/inner\n")
    group(tmp_path / "outer", memory__max=1000, memory__current=900, memory__stat="inactive_file 7")
    group(tmp_path / "outer/inner", memory__max="max")
    found = Cgroup.of_process(told, tmp_path)
    assert found == Cgroup(tmp_path / "outer", 1000, 2)
    assert 893 == found.used()


def test_version_1_names_things_otherwise(tmp_path: Path, told: Path) -> None:
    told.write_text("5:cpu,cpuacct:/x\n4:memory:/docker/id\n0::/\n")
    # Within the container only its own group is there, as the root.
    group(
        tmp_path / "memory",
        memory__limit_in_bytes=5000,
        memory__usage_in_bytes=4000,
        memory__stat="cache 1\ntotal_inactive_file 1500",
    )
    found = Cgroup.of_process(told, tmp_path)
    assert found == Cgroup(tmp_path / "memory", 5000, 1)
    assert 2500 == found.used()


@pytest.mark.parametrize("limit", ["max", 9223372036854771712, "odd"])
def test_no_limit_is_none(tmp_path: Path, told: Path, limit: object) -> None:
    told.write_text("4:memory:/\n0::/\n")
    group(tmp_path, memory__max=limit)
    group(tmp_path / "memory", memory__limit_in_bytes=limit)
    assert Cgroup.of_process(told, tmp_path) is None
    assert Cgroup.of_process(tmp_path / "nothing", tmp_path) is None


def test_memory_of_this_process() -> None:
    memory = Memory()
    before = memory.own()
    held = mmap.mmap(-1, 32 << 20)  # New pages, and none that something else gave up.
    held.write(bytes(len(held)))
    assert memory.own() >= before + len(held) // 2
    used, there = memory.shared()
    assert 0 < used < there
    resources.give_back_memory()


def test_descriptors_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    used, limit = descriptors()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == limit
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    assert used + 20 == descriptors()[0]
    for each in opened:
        os.close(each)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert (0, 0) == descriptors()


def test_the_limit_of_descriptors_is_raised_as_far_as_allowed() -> None:
    text = """
import resource
from passy_proxy.resources import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500))
allow_descriptors()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    said = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert "(500, 500)\n" == said.stdout
