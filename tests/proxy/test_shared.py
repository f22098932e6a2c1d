"""What snapshots have in common is made once, started once and closed by its last user."""

from __future__ import annotations

import pytest

from passy_proxy.shared import Shared

pytestmark = pytest.mark.anyio


class Thing:
    def __init__(self) -> None:
        self.told: list[str] = []

    async def start(self) -> None:
        self.told.append("start")

    async def stop(self) -> None:
        self.told.append("stop")


async def test_equal_keys_share_one_thing_until_the_last_user_leaves() -> None:
    shared = Shared()
    first = shared.take("a", Thing, "stop")
    await shared.start("a")
    assert first is shared.take("a", Thing, "stop")
    await shared.start("a")
    assert first is not shared.take("b", Thing, "stop")
    await shared.give_back("a")
    assert ["start"] == first.told
    await shared.give_back("a")
    assert ["start", "stop"] == first.told
    assert 1 == len(shared)


async def test_a_forgotten_thing_is_neither_closed_nor_kept() -> None:
    shared = Shared()
    thing = shared.take("a", Thing, "stop")
    shared.take("a", Thing, "stop")
    keys = ["a", "a"]
    shared.forget(keys)  # type: ignore[arg-type]
    assert ([], [], 0) == (thing.told, keys, len(shared))


async def test_forgetting_leaves_what_others_hold() -> None:
    shared = Shared()
    thing = shared.take("a", Thing, "stop")
    await shared.start("a")
    shared.take("a", Thing, "stop")
    shared.forget(["a"])
    assert 1 == len(shared)
    await shared.give_back("a")
    assert ["start", "stop"] == thing.told


async def test_a_thing_that_cannot_be_made_is_not_held() -> None:
    def fail() -> Thing:
        raise OSError("no such disk")

    shared = Shared()
    with pytest.raises(OSError, match="disk"):
        shared.take("a", fail, "stop")
    assert 0 == len(shared)
