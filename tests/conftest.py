"""Fixtures shared by the whole suite."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, so that none fails by chance; `passy test --fuzz N` draws new
# ones, about as many as fit into N seconds. How long it takes says something of the machine alone.
ANY_TIME: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **ANY_TIME)
settings.register_profile(
    "fuzz", max_examples=20 * int(os.environ.get("PASSY_FUZZ", 5)), **ANY_TIME
)
settings.load_profile("fuzz" if "PASSY_FUZZ" in os.environ else "same")


# Who runs in the background of a shell has its interrupts ignored, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What is collected stays: to look through it again and again was a third of the collecting.
_usual = gc.get_threshold()
gc.set_threshold(100_000)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_usual)


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


@pytest.hookimpl(tryfirst=True)  # Before anybody leaves out what is large.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in beside_the_diagonal(items):
        item.add_marker(pytest.mark.large)

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((at for at, each in enumerate(SLOW_FIRST) if path.startswith(each)), 99)

    items.sort(key=place)


def beside_the_diagonal(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Of tests that are ``crossed``, those that can be spared: the others have each value of each
    of the parameters."""
    products: dict[str, list[tuple[pytest.Item, list[Any]]]] = {}
    for item in items:
        mark, called = item.get_closest_marker("crossed"), getattr(item, "callspec", None)
        if mark is not None and called is not None:
            given = [called.params[name] for name in mark.args if name in called.params]
            products.setdefault(item.nodeid.partition("[")[0], []).append((item, given))
    for product in products.values():
        # Of each parameter its values, in their order.
        columns: list[list[Any]] = [[] for _ in product[0][1]]
        for _, given in product:
            for values, value in zip(columns, given, strict=True):
                if value not in values:
                    values.append(value)
        least = min(map(len, columns), default=1)
        for item, given in product:
            places = map(list.index, columns, given)
            if len({place % least for place in places}) > 1:
                yield item


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
