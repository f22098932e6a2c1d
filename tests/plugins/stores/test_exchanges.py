"""Single exchanges are found page by page, however the time is cut, and by what became of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from harness.postgres import Server

from passy_plugins.stores.sql import exchanges
from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.driver import driver_for
from passy_plugins.stores.sql.exchanges import ENDED, Exchanges, Wanted
from passy_proxy.json import dumps
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, UsageRecord

pytestmark = pytest.mark.anyio

RING = Keyring(["the secret key of these tests: 0123456789"])
NOW = 1_795_430_994_913
TRIES = (
    (AttemptRecord("a", "m", 200, "", 0, 1, False),),
    (AttemptRecord("a", "m", 503, 'stream: [["],["b"],[1]]', 0, 1, False),),
    (AttemptRecord("a", "m", 503, "status 503", 0, 1, False),
     AttemptRecord("b", "m", 200, "", 2, 1, False)),
)  # fmt: skip


def records() -> list[UsageRecord]:
    """Some hundreds over a month, several of them at the same millisecond."""
    dice, made = random.Random(5), []
    for number in range(400):
        at = (NOW - dice.choice((0, 3_000, 3_600_000, 86_400_000 * dice.randrange(30)))) / 1000
        outcome, status = dice.choice((
            ("ok", 200), ("ok", 200), ("ok", 404), ("ok", 503), ("client_gone", 200),
            ("rate_limit_exceeded", 429), ("upstream_error", 502), ("upstream_broken", 200),
        ))  # fmt: skip
        made.append(UsageRecord(
            f"req_{number:03}", at, f"key_{dice.randrange(3)}", f"org_{dice.randrange(2)}", "team",
            f"user_{dice.randrange(2)}", dice.choice(("", "a", "a,b", "ab")), "POST /v1/x",
            dice.choice(("m_1", "m%1", "M_1")), "u", "m", outcome, status, False,
            1, 2, 0, 0, 0, 0, 0, False, 7, "p", 1, dice.randrange(3_000), dice.choice(TRIES),
        ))  # fmt: skip
    return made


RECORDS = records()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def books(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Exchanges]:
    async def filled(url: str) -> AsyncIterator[Exchanges]:
        async with Admin.opened(url, RING) as admin:
            writer = driver_for(url, "write")
            await writer.record([dumps(record.row()) for record in RECORDS], [], RING)
            await writer.close()
            yield admin.exchanges

    if request.param == "sqlite":
        folder: Path = tmp_path_factory.mktemp("books")
        async for found in filled(f"sqlite:///{folder}/books.db"):
            yield found
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as made:
        async for found in filled(made.url):
            yield found


def questions() -> list[Wanted]:
    dice, asked = random.Random(7), [Wanted(0, NOW + 1)]
    for _ in range(13):
        values: dict[Any, str] = {"organisation": "org_1"}
        for name, choices in (
            ("key", ("key_1", "key_9")), ("tag", ("a", "b")), ("model", ("m%1",)),
            ("outcome", ("ok", "upstream_broken")),
        ):  # fmt: skip
            if dice.random() < 0.25:
                values[name] = dice.choice(choices)
        since = NOW - 86_400_000 * dice.choice((1, 8, 40))
        asked.append(Wanted(
            since, NOW + 1 - dice.choice((0, 5_000)), values, dice.choice(("", "", "m%", "req_1")),
            dice.choice((None, *ENDED)), dice.choice((0, 1_500)), dice.random() < 0.3,
        ))  # fmt: skip
    return asked


async def test_W6_what_is_found_is_what_is_wanted(
    books: Exchanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without patience: then each page is the beginning of one."""
    matched = 0
    for number, wanted in enumerate(questions()):
        monkeypatch.setattr(exchanges, "FIRST_PIECE", (60_000, 3_600_000, 10**12)[number % 3])
        expected = sorted(
            (r for r in RECORDS
             if wanted.since <= r.at * 1000 + 0.5 and r.at * 1000 < wanted.until
             and wanted.holds(r)),
            key=lambda r: (r.at, r.id), reverse=True,
        )  # fmt: skip
        found: list[UsageRecord] = []
        cursor, limit, patience = None, (20, 60, 1_000)[number % 3], (0.0, 5.0)[number % 2]
        while True:
            page = await books.find(wanted, limit, cursor, patience if cursor is None else 5.0)
            assert len(page.rows) <= limit
            found += page.rows
            if (cursor := page.cursor) is None:
                break
            assert page.reached <= (found[-1].at * 1000 + 1 if found else NOW + 1)
        assert expected == found, wanted
        assert expected == [r async for rows in books.all(wanted) for r in rows]
        matched += len(expected)
    assert matched > 200


async def test_one_is_found_by_its_id_whatever_time_that_tells(books: Exchanges) -> None:
    assert RECORDS[3] == await books.exchange("req_003")
    assert await books.exchange("req_" + "0" * 32) is None
