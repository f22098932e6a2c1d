"""One gateway in one process: how it starts, reloads, keeps what worked, and stops."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_proxy import Filter
from passy_proxy.config.document import MAX_BYTES
from passy_proxy.config.problem import ConfigInvalid
from passy_proxy.config.snapshot import StartFailed
from passy_proxy.gateway import Gateway
from passy_proxy.place import LAST_GOOD
from passy_proxy.site import Site
from passy_proxy.testing import KEYRING

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task outlives its test, and no socket: what is collected unclosed is an error."""
    yield
    left = [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert [] == [task for task in left if "coro=<TestRunner." not in task]  # anyio's own
    gc.collect()


TEXT = """
upstreams: {echo: {kind: echo}}
chains: {default: [fragile, alias, fallback: {attempts: 3}]}
routes: [{match: POST /v1/chat/completions}]
"""


class Fragile(Filter):
    """Starts, or does not, as it is told."""

    name = "fragile"
    fault: BaseException | None = None
    stopped = 0

    async def start(self) -> None:
        await asyncio.sleep(0)
        if type(self).fault is not None:
            raise type(self).fault

    async def stop(self) -> None:
        type(self).stopped += 1


Make = Callable[[], Gateway]


@pytest.fixture
def kind() -> type[Fragile]:
    """A class of this test's own."""
    return type("Fragile", (Fragile,), {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "gateway.yaml"
    file.write_text(TEXT)
    return file


@pytest.fixture
def make(tmp_path: Path, file: Path, kind: type[Fragile]) -> Make:
    def gateway() -> Gateway:
        log: Any = structlog.get_logger()
        made = Gateway(Site(tmp_path, KEYRING), {}, log, path=file)
        made.parts.registry.filters["fragile"] = kind
        return made

    return gateway


def write(file: Path, text: str) -> None:
    file.write_text(text)


def attempts(gateway: Gateway) -> int:
    [route] = gateway.snapshot.routes.all
    return int(route.chain.terminal.config.attempts)


async def test_the_hash_is_that_of_the_text_that_runs(make: Make, file: Path) -> None:
    gateway = make()
    await gateway.start()
    assert hashlib.sha256(TEXT.encode()).hexdigest()[:8].encode() == gateway.snapshot.hash
    await gateway.stop()
    write(file, "chains: [")
    again = make()
    await again.start()
    assert gateway.snapshot.hash == again.snapshot.hash
    await again.stop()


async def test_a_reload_that_cannot_start_leaves_the_old_snapshot(
    make: Make, file: Path, kind: type[Fragile]
) -> None:
    gateway = make()
    await gateway.start()
    before, held = gateway.snapshot, len(gateway.parts.shared)
    write(file, TEXT.replace("attempts: 3", "attempts: 2"))
    for fault in (OSError("no such disk"), LookupError("a bug of the plugin's")):
        kind.fault = fault
        assert not await gateway.reload()
        assert gateway.snapshot is before
        assert str(fault) in gateway.problem
        assert held == len(gateway.parts.shared)
    assert TEXT.encode() == (file.parent / LAST_GOOD).read_bytes()

    kind.fault = None
    assert await gateway.reload()
    assert (2, "") == (attempts(gateway), gateway.problem)
    await gateway.stop()
    assert 0 == len(gateway.parts.shared)


async def test_code_that_breaks_while_a_snapshot_is_built_stops_no_watch(
    make: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make()
    await gateway.start()

    def broken(*_: object) -> None:
        raise RuntimeError("nobody expected this")

    with monkeypatch.context() as patched:
        patched.setattr("passy_proxy.gateway.building", broken)
        assert not await gateway.reload()
    assert "nobody expected this" in gateway.problem
    assert await gateway.reload()
    await gateway.stop()


async def test_the_end_stops_snapshots_that_still_wait_for_exchanges(
    make: Make, file: Path, kind: type[Fragile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("passy_proxy.gateway.STOP", 0.01)
    gateway = make()
    await gateway.start()
    gateway.snapshot.running += 1
    write(file, TEXT.replace("attempts: 3", "attempts: 2"))
    assert await gateway.reload()
    gateway.snapshot.running += 1
    await asyncio.sleep(0)
    assert 0 == kind.stopped
    await gateway.stop()
    assert 2 == kind.stopped
    assert 0 == len(gateway.parts.shared)


async def test_without_anything_that_worked_a_broken_file_is_fatal(
    make: Make, file: Path, kind: type[Fragile]
) -> None:
    kind.fault = OSError("no such disk")
    with pytest.raises(StartFailed, match="the filter fragile could not be started: no such disk"):
        await make().start()
    write(file, "chains: [")
    gateway = make()
    with pytest.raises(ConfigInvalid):
        await gateway.start()
    assert 0 == len(gateway.parts.shared)


async def test_a_file_that_grows_without_bounds_is_refused(make: Make, file: Path) -> None:
    gateway = make()
    await gateway.start()
    write(file, "#" * (MAX_BYTES + 1))
    assert not await gateway.reload()
    assert "MiB" in gateway.problem
    await gateway.stop()


async def test_a_configuration_without_a_file_is_not_watched(tmp_path: Path) -> None:
    text = TEXT.replace("fragile, ", "")
    log: Any = structlog.get_logger()
    gateway = Gateway(Site(tmp_path, KEYRING), {}, log, text=text)
    await gateway.start()
    assert await gateway.reload()
    await gateway.stop()
    assert not (tmp_path / LAST_GOOD).exists()
