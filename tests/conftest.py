"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, so that none fails by chance; `passy test --fuzz N` draws new
# ones, about as many as fit into N seconds.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile(
    "fuzz", max_examples=20 * int(os.environ.get("PASSY_FUZZ", 5)), deadline=None
)
settings.load_profile("fuzz" if "PASSY_FUZZ" in os.environ else "same")


# Who runs in the background of a shell has its interrupts ignored, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


pytest_plugins = [
    "harness.figures",
    "harness.gateway",
    "harness.hosts",
    "harness.postgres",
    "harness.valkey",
]


SLOW_FIRST = ("promises", "portal", "wire", "test_", "contract", "plugins")
"""Beginnings of paths below this folder: who waits for processes and browsers. They come first, so
that no core is left with the longest file at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((at for at, each in enumerate(SLOW_FIRST) if path.startswith(each)), 99)

    items.sort(key=place)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
