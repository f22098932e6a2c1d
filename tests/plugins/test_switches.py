"""What people decided of targets: what becomes of a table of models, and what holds while the store
is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from passy_plugins.switches import following as followed
from passy_proxy import Model, Models, StoreUnavailable, Switch
from passy_proxy.keyring import Keyring
from passy_proxy.models import Choice
from passy_proxy.remembered import Remembered
from passy_proxy.upstream import Upstream

pytestmark = pytest.mark.anyio

LOG = structlog.get_logger()
OFF = Switch("m", "one/a", "disabled", "user_1", 1.5)
PIN = Switch("m", "two/b", "pinned", "", 2.5)


class Board:
    """A switchboard that says what it is told to, or that it is away."""

    place = "here"

    def __init__(self) -> None:
        self.said: list[Switch] | None = None
        self.told: list[Callable[[str, str], None]] = []

    async def switches(self) -> Sequence[Switch]:
        if self.said is None:
            raise StoreUnavailable("it is away")
        return self.said

    async def publish(self, kind: str, subject: str) -> None:
        for told in self.told:
            told(kind, subject)

    def listen(self, told: Callable[[str, str], None]) -> Callable[[], None]:
        self.told.append(told)
        return lambda: self.told.remove(told)

    @property
    def hears(self) -> bool:
        return True


def upstream(name: str) -> Upstream:
    return Upstream(name, transport=None, dialect=None)  # type: ignore[arg-type]  # never asked


def table() -> Models:
    one, two = upstream("one"), upstream("two")
    choices = [Choice(one, "a", weight=9.0), Choice(two, "b"), Choice(two, "c", priority=5)]
    return Models([Model("m", choices), Model("other", choices)], {"one": one, "two": two})


def labels(models: Models, name: str) -> list[str]:
    found = models.find(name)
    assert found is not None
    return [target.label for target in found.targets]


def test_a_pinned_target_comes_before_all_weights_and_a_disabled_one_is_gone() -> None:
    models = table()
    now = models.switched([PIN, OFF._replace(target="two/c")])
    assert ["two/b", "one/a"] == labels(now, "m")
    found = now.find("m")
    assert found is not None
    assert ("two/c",) == found.disabled
    assert ["two/b"] == [one.label for one in found.tiers[0]], "no draw goes against it"
    assert ["one/a", "two/b", "two/c"] == labels(now, "other"), "another name has its own"
    assert labels(models, "m") == labels(models.switched([OFF._replace(target="gone/x")]), "m")


async def test_D3_what_was_disabled_stays_so_when_the_store_is_away_at_the_start(
    tmp_path: Path,
) -> None:
    board, keyring = Board(), Keyring.load(tmp_path, None)
    board.said = [OFF, PIN]
    held: list[Any] = []
    for said in ([OFF, PIN], None):
        board.said = said
        remembered = Remembered(tmp_path, keyring, LOG)
        following = followed(board, remembered, held.append, LOG)
        await following.start()
        assert [OFF, PIN] == held[-1]
        await following.stop()
        await remembered.aclose()
    assert 2 == len(held)
    assert [] == board.told


async def test_an_edit_is_taken_as_soon_as_it_is_told_and_the_store_may_go_away(
    tmp_path: Path,
) -> None:
    board = Board()
    board.said = []
    remembered = Remembered(tmp_path, Keyring.load(tmp_path, None), LOG)
    held: list[Any] = []
    heard = asyncio.Event()

    def hold(switches: Sequence[Switch]) -> None:
        held.append(switches)
        heard.set()

    following = followed(board, remembered, hold, LOG)
    await following.start()
    assert [] == held, "nothing was decided, so nothing is compiled"
    for said in ([OFF], [PIN]):
        board.said = said
        await board.publish("switch", "m")
        async with asyncio.timeout(60):
            await heard.wait()
        heard.clear()
        assert said == held[-1]
        board.said = None
        await board.publish("", "")
        await asyncio.sleep(0.01)
        assert said == held[-1]
    await following.stop()
    await remembered.aclose()
