"""What is known of keys: who waits for the directory and who does not, what an edit ends, what is
known after a start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from passy_plugins import known_keys
from passy_plugins.auth import Config
from passy_plugins.known_keys import Known
from passy_proxy import Principal, Remembered, StoreUnavailable, remembered
from passy_proxy.records import Level
from passy_proxy.stores import ANYTHING, Told
from passy_proxy.testing import KEYRING

pytestmark = pytest.mark.anyio

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
ACME = Level("organisation", "acme")
TTL, STALE, PATIENCE = 30.0, 900.0, 2.0


class Books:
    """A directory in a place that tells of edits, can be away, and can be slow."""

    def __init__(self, place: str = "here") -> None:
        self.place = place
        self.rows = {
            A: Principal("key_a", organisation="acme", above=(ACME,)),
            B: Principal("key_b", user="ada"),
        }
        self.asked: list[bytes] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.listeners: list[Told] = []
        self.hears = True

    async def principal(self, digest: bytes) -> Principal | None:
        self.asked.append(digest)
        row = self.rows.get(digest)
        await self.gate.wait()
        if self.away:
            raise StoreUnavailable("away")
        return row

    async def publish(self, kind: str, subject: str) -> None:
        for told in list(self.listeners):
            told(kind, subject)

    def listen(self, told: Told) -> Callable[[], None]:
        self.listeners.append(told)
        return lambda: self.listeners.remove(told)


class House:
    """A process that knows keys, and its clocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.books = Books()
        self.now = 1000.0
        self.known: Known
        self.disk: Remembered

    def begin(self) -> None:
        log = structlog.get_logger()
        self.disk = Remembered(self.folder, KEYRING, log)
        config = Config.model_construct(
            directory=self.books,
            changes=None,
            remembered=self.disk,
            ttl=TTL,
            stale=STALE,
            patience=PATIENCE,
            known=100,
            unknown=10,
        )
        self.known = Known(config, log)
        self.known.start()

    async def end(self) -> None:
        await self.known.stop()
        await self.disk.aclose()

    async def restart(self) -> None:
        await self.end()
        self.begin()

    async def show(self, digest: bytes) -> Principal | str | None:
        """What is said of a key; ``unknown`` when nobody knows."""
        seen = self.known.now(digest) or await self.known.look_up(digest)
        return "unknown" if seen is None else seen.principal

    async def idle(self) -> None:
        """Until nothing runs beside."""
        while tasks := list(self.known._tasks._tasks):
            await asyncio.wait(tasks)


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    made = House(tmp_path)
    monkeypatch.setattr(known_keys, "monotonic", lambda: made.now)
    for module in (known_keys, remembered):
        monkeypatch.setattr(module, "time", lambda: made.now + 1e9)
    made.begin()
    yield made
    made.books.gate.set()
    await made.end()


async def test_a_key_in_use_is_asked_for_again_beside_the_requests(house: House) -> None:
    books = house.books
    await house.show(A)
    house.now += TTL / 2
    books.rows[A] = replace(books.rows[A], name="new")
    before = house.known.now(A)  # Nobody waits for it.
    assert before is not None
    assert before.principal is not None
    assert "" == before.principal.name
    await house.idle()
    after = house.known.now(A)
    assert after is not None
    assert after.principal is not None
    assert ("new", 2) == (after.principal.name, len(books.asked))
    assert before.due == 0.0  # Whoever holds the old word is told that it ended.


async def test_an_unchanged_key_keeps_its_principal(house: House) -> None:
    first = await house.show(A)
    house.books.rows[A] = replace(house.books.rows[A])
    house.now += TTL
    assert first is await house.show(A)


async def test_who_asks_for_one_key_at_once_shares_one_question(house: House) -> None:
    house.books.gate.clear()
    asking = [asyncio.create_task(house.show(A)) for _ in range(500)]
    await asyncio.sleep(0)
    asking.pop().cancel()  # One of them leaves.
    house.books.gate.set()
    assert {"key_a"} == {one.key_id for one in await asyncio.gather(*asking)}  # type: ignore[union-attr]
    assert [A] == house.books.asked


async def test_D3_a_known_key_never_waits_for_a_directory_that_hangs(house: House) -> None:
    books = house.books
    await house.show(A)
    books.gate.clear()
    house.now += TTL / 2
    assert house.known.now(A) is not None
    await asyncio.sleep(0)
    assert [A, A] == books.asked
    # That one is given up after its patience; until then, and after, the key is known.
    books.away = True
    books.gate.set()
    await house.idle()
    for seconds in range(100):
        books.gate.clear()
        house.now += seconds / 10
        waited = house.known.now(A) or await asyncio.wait_for(house.known.look_up(A), 20)
        assert waited is not None
    assert "unknown" == await asyncio.wait_for(house.show(C), 20)  # Nor does who is not known.
    books.gate.set()


async def test_a_directory_that_is_away_is_asked_once_a_second(house: House) -> None:
    books = house.books
    await house.show(A)
    await house.show(B)
    books.away = True
    house.now += TTL
    before = len(books.asked)
    for _ in range(50):
        house.now += 0.1
        for digest in (A, B, C):
            await house.show(digest)
            await house.idle()
    assert len(books.asked) - before <= 6
    books.away = False
    house.now += known_keys.PAUSE
    assert None is await house.show(C)


async def test_D6_an_edit_ends_what_is_known_at_once(house: House) -> None:
    books = house.books
    for digest in (A, B):
        await house.show(digest)
    for kind, subject, digest in (
        ("key", "key_a", A),
        ("organisation", "acme", A),
        ("user", "ada", B),
    ):
        held = house.known.now(digest)
        books.rows[digest] = replace(books.rows[digest], name=f"edited {kind}")
        asked = len(books.asked)
        await books.publish(kind, subject)
        await house.idle()
        assert held is not None
        assert (0.0, 0.0) == (held.due, held.stale)
        # It was asked for again without a request; the other key was not.
        assert [digest] == books.asked[asked:]
        seen = house.known.now(digest)
        assert seen is not None
        assert seen.principal == books.rows[digest]


async def test_D6_edits_that_may_have_been_missed_are_looked_for(house: House) -> None:
    await house.show(A)
    del house.books.rows[A]
    await house.books.publish(ANYTHING, ANYTHING)
    await house.idle()
    assert house.known.now(A) is not None  # A moment yet, in which it is asked for.
    await house.idle()
    assert None is await house.show(A)


@pytest.mark.parametrize("hears", [True, False])
async def test_a_second_teller_that_missed_something_is_asked_about_only_if_the_first_cannot_tell(
    hears: bool, house: House
) -> None:
    await house.show(A)
    house.books.hears = hears
    house.known.told_sooner(ANYTHING, ANYTHING)
    await house.idle()
    house.known.now(A)
    await house.idle()
    assert ([A] if hears else [A, A]) == house.books.asked
    house.known.told_sooner("key", "key_a")
    await house.idle()
    assert ([A] if hears else [A, A]) + [A] == house.books.asked


@pytest.mark.parametrize("kind", ["budget", "something new"])
async def test_D6_an_edit_of_what_is_no_part_of_a_name_concerns_all(
    kind: str, house: House
) -> None:
    await house.show(A)
    house.books.rows[A] = replace(house.books.rows[A], name="edited")
    await house.books.publish(kind, "1")
    await house.idle()
    house.known.now(A)
    await house.idle()
    assert "edited" == (await house.show(A)).name  # type: ignore[union-attr]


async def test_D6_an_answer_from_before_the_edit_serves_nobody_after_it(house: House) -> None:
    books = house.books
    books.gate.clear()
    asking = asyncio.create_task(house.show(A))
    other = asyncio.create_task(house.show(B))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert {A, B} == set(books.asked)  # The directory has read the rows, and answers late.
    house.now += 0.5
    books.rows[A] = replace(books.rows[A], disabled=True)
    await books.publish("key", "key_a")
    books.gate.set()
    assert not (await asking).disabled  # type: ignore[union-attr]
    await other
    assert None is house.known.now(A)
    assert (await house.show(A)).disabled  # type: ignore[union-attr]
    assert house.known.now(B) is not None


async def test_D6_who_was_edited_is_not_let_in_by_what_was_known_before(house: House) -> None:
    books = house.books
    for digest in (A, B):
        await house.show(digest)
    books.away = True
    await books.publish("key", "key_a")
    await house.idle()
    assert "unknown" == await house.show(A)
    await house.restart()
    assert "unknown" == await house.show(A)
    assert "key_b" == (await house.show(B)).key_id  # type: ignore[union-attr]


async def test_D3_after_a_start_a_known_key_is_known_a_revoked_one_revoked(house: House) -> None:
    books = house.books
    await house.show(A)
    await house.show(B)
    del books.rows[B]
    await books.publish("key", "key_b")  # Nobody shows that key any more.
    await house.idle()
    await house.restart()
    books.away = True
    assert books.rows[A] == await house.show(A)
    assert None is await house.show(B)
    assert "unknown" == await house.show(C)
    house.now += STALE - 1
    assert books.rows[A] == await house.show(A)
    house.now += 1
    assert ["unknown"] * 3 == [await house.show(digest) for digest in (A, B, C)]


async def test_D3_a_key_found_gone_after_a_start_is_not_found_on_disk_again(house: House) -> None:
    await house.show(A)
    await house.restart()
    del house.books.rows[A]
    assert None is await house.show(A)
    await house.restart()
    house.books.away = True
    assert None is await house.show(A)


async def test_D3_what_one_directory_said_is_not_believed_of_another(house: House) -> None:
    await house.show(A)
    house.books.place = "elsewhere"
    await house.restart()
    house.books.away = True
    assert "unknown" == await house.show(A)


async def test_a_directory_without_a_place_leaves_nothing_on_disk(
    house: House, tmp_path: Path
) -> None:
    house.books.place = ""
    await house.restart()
    await house.show(A)
    await house.end()
    assert [] == list(tmp_path.glob("known*"))


async def test_all_of_a_principal_comes_back_from_disk(house: House) -> None:
    from passy_proxy import Limits, Rate
    from passy_proxy.records import Budget

    budget = Budget("b", "usd", 10**9, "month", True, (50, 90))
    house.books.rows[A] = Principal(
        "key_a",
        "a name",
        "acme",
        Limits(Rate(60, 60.0), Rate(5, 0.5), 3),
        ("gpt-*",),
        expires=2e9,
        tags="a,b",
        budgets=(budget,),
        above=(Level("organisation", "acme", Limits(Rate(1, 1.0)), None, (budget,)),),
        networks=("10.0.0.0/8",),
        upstreams=("echo",),
        byok="own_only",
    )
    await house.show(A)
    await house.restart()
    house.books.away = True
    assert house.books.rows[A] == await house.show(A)
