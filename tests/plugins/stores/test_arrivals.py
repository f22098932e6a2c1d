"""What arrives in the books is told once and in full, whoever writes at the same time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness.postgres import Server

from passy_plugins.stores.sql.arrivals import KEPT_MS, Arrivals, is_snapshot, without
from passy_plugins.stores.sql.driver import driver_for, is_postgres
from passy_plugins.stores.sql.ready import make_ready
from passy_proxy.json import dumps
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, UsageRecord

pytestmark = pytest.mark.anyio

RING = Keyring(["the secret key of these tests: 0123456789"])
ATTEMPT = AttemptRecord("echo", "echo", 200, "", 0, 1, False, 2, 3)
RECORD = UsageRecord(
    *("req_0", 1_795_430_994.913, "key_1", "org_1", "team_1", "user_1", "a,b", "POST /v1/x"),
    *("m", "u", "m", "ok", 200, False, 1, 2, 0, 0, 0, 0, 0, False, 7, "p", 1, 2, (ATTEMPT,)),
)


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/books.db"
        await ready(url)
        yield url
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as made:
        await ready(made.url)
        yield made.url


async def ready(url: str) -> None:
    database = driver_for(url, "ready")
    await make_ready(database, url)
    await database.close()


@pytest.fixture
async def arrivals(url: str) -> AsyncIterator[Arrivals]:
    arrivals = Arrivals(driver_for(url, "tail"), postgres=is_postgres(url))
    yield arrivals
    await arrivals.close()


async def entered(url: str, *records: UsageRecord) -> None:
    writer = driver_for(url, "write")
    await writer.record([dumps(record.row()) for record in records], [], RING)
    await writer.close()


async def test_every_record_of_concurrent_writers_is_told_once(
    url: str, arrivals: Arrivals
) -> None:
    """Records of any time, some of them days late and some shipped twice, from six writers."""
    place = await arrivals.place()
    told: list[str] = []
    done = False

    async def write(name: int) -> list[str]:
        dice, ids = random.Random(name), []
        writer = driver_for(url, f"write{name}")
        for batch in range(8):
            now = RECORD.at - dice.choice((0, 0, 0, 3_600, 3 * 86_400))
            rows = [
                RECORD._replace(
                    id=f"req_{name}_{batch}_{n}", at=now + dice.random(),
                    organisation=f"org_{dice.randrange(3)}",
                )
                for n in range(dice.randrange(1, 40))
            ]  # fmt: skip
            for _ in range(dice.choice((1, 1, 2))):
                await writer.record([dumps(row.row()) for row in rows], [], RING)
            ids += [row.id for row in rows if row.organisation != "org_2"]
        await writer.close()
        return ids

    async def read() -> None:
        nonlocal place
        while True:
            last = done
            found = await arrivals.after(place, ["org_0", "org_1"])
            assert not found.lost
            told.extend(record.id for record in found.records)
            place = found.place
            if last and not found.more:
                return
            await asyncio.sleep(0)

    reading = asyncio.create_task(read())
    written = await asyncio.gather(*(write(name) for name in range(6)))
    done = True
    await reading
    assert sorted(id for ids in written for id in ids) == sorted(told)


async def test_a_place_is_a_text_that_another_reader_goes_on_from(
    url: str, arrivals: Arrivals
) -> None:
    before = await arrivals.place()
    await entered(url, RECORD._replace(id="req_a"))
    middle = (await arrivals.after(before, None)).place
    await entered(url, RECORD._replace(id="req_b", organisation="org_2"), RECORD)
    other = Arrivals(driver_for(url, "other"), postgres=is_postgres(url))
    assert {"req_a", "req_b", "req_0"} == {r.id for r in (await other.after(before, None)).records}
    assert [RECORD] == (await other.after(middle, ["org_1"])).records
    assert [] == (await other.after((await other.after(middle, [])).place, None)).records
    await other.close()


async def test_who_is_far_behind_is_told_in_parts(url: str, arrivals: Arrivals) -> None:
    place, ids = await arrivals.place(), []
    for batch in range(11):
        rows = [RECORD._replace(id=f"req_{batch:02}_{n:03}") for n in range(200)]
        await entered(url, *rows)
        ids += [row.id for row in rows]
    told, more, parts = [], True, 0
    while more:
        found = await arrivals.after(place, None)
        told += [record.id for record in found.records]
        place, more, parts = found.place, found.more, parts + 1
    assert (ids, 2 <= parts) == (told, True)


async def test_a_place_that_is_none_is_told_to_be_lost(arrivals: Arrivals) -> None:
    for place in ("", "x", "1_", "99_req_none", "1_1:0:", "1_1:9:8,7", "1_9:9:1", "\0_\0"):
        found = await arrivals.after(place, None)
        assert found.lost, place
        assert not (await arrivals.after(found.place, None)).lost


async def test_a_row_that_took_the_number_of_a_dropped_one_is_no_place(
    url: str, arrivals: Arrivals
) -> None:
    if is_postgres(url):
        pytest.skip("rows have no numbers there")
    await entered(url, RECORD)
    place = await arrivals.place()
    keeper = driver_for(url, "keeper")
    await keeper.fetch("DELETE FROM usage")
    await entered(url, RECORD._replace(id="req_1"))
    assert (await arrivals.after(place, None)).lost
    await keeper.close()


async def test_lines_are_forgotten_after_a_while(url: str, arrivals: Arrivals) -> None:
    if not is_postgres(url):
        pytest.skip("there are no lines there")
    place = await arrivals.place()
    await entered(url, RECORD)
    keeper = driver_for(url, "keeper")
    await keeper.tend(int(RECORD.at * 1000), None, RING)
    assert [RECORD] == (await arrivals.after(place, None)).records
    await keeper.fetch("UPDATE arrivals SET at = at - ?", KEPT_MS + 1000)
    await keeper.tend(int(RECORD.at * 1000), None, RING)
    assert [(0,)] == await keeper.fetch("SELECT count(*) FROM arrivals")
    at, _, snapshot = place.partition("_")
    assert (await arrivals.after(f"{int(at) - KEPT_MS - 1000}_{snapshot}", None)).lost
    await keeper.close()


def test_a_snapshot_without_some_transactions_is_one() -> None:
    assert "5:9:5,7,8" == without("7:9:7", [5, 8])
    assert "7:9:" == without("7:9:", [])
    for good in ("7:9:", "7:9:7,8", "9:9:"):
        assert is_snapshot(good)
    for bad in ("", "7:9", "9:7:", "7:9:9", "7:9:6", "7:9:8,8", "a:9:", "0:9:", "7:9:7,"):
        assert not is_snapshot(bad), bad
