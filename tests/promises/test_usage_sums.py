"""O8: what the books keep of time is UTC, whatever the zone of the machine; so any split of them
adds up to the whole, over a change of clocks and the end of a month too.

No code of ours adds usage up yet: these are the sums that will be asked for, asked of the books.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passy_plugins.stores.sql import Sql, SqlSettings
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord
from passy_proxy.site import Site

pytestmark = pytest.mark.anyio

EDGES = [
    datetime(2026, 3, 29, 1, tzinfo=UTC),  # clocks go forward in Europe
    datetime(2026, 10, 25, 1, tzinfo=UTC),  # and back
    datetime(2026, 3, 8, 7, tzinfo=UTC),  # New York
    datetime(2026, 11, 1, 6, tzinfo=UTC),
    datetime(2026, 4, 4, 15, tzinfo=UTC),  # Lord Howe, by half an hour
    *(datetime(2026, month, 1, tzinfo=UTC) for month in (1, 3, 5, 12)),
    datetime(2028, 2, 29, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
]
ZONES = ("UTC", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Europe/Berlin")
NAMES = ("key_1", "org_1", "", "", "", "POST /v1/chat/completions", "m", "u", "m", "ok")
SUMS = "count(*), coalesce(sum(input), 0), coalesce(sum(output), 0), coalesce(sum(cost_nanos), 0)"


def records() -> list[UsageRecord]:
    """Some around each of those moments, to the millisecond."""
    chance = random.Random(8)
    made = []
    for edge in EDGES:
        for shift in (-3_600_000, -1_800_001, -1, 0, 1, 1_800_000, chance.randrange(10**7)):
            at = (int(edge.timestamp() * 1000) + shift) / 1000
            tokens = (chance.randrange(1 << 40), chance.randrange(1 << 40), 0, 0, 0, 0, 0)
            cost = chance.randrange(1 << 48)
            rest = (*tokens, False, cost, "p", 1, 2, ())
            made.append(UsageRecord(f"req_{len(made)}", at, *NAMES, 200, False, *rest))
    return made


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


async def kept(folder: Path, zone: pytest.MonkeyPatch) -> Path:
    """The books, written by a process that lives in several zones."""
    path = folder / "passy.db"
    site = Site(folder, Keyring(["the secret key of these tests: 0123456789"]))
    store = Sql(SqlSettings(url=Secret(f"sqlite:///{path}")), site)
    await store.start()
    for number, record in enumerate(records()):
        zone.setenv("TZ", ZONES[number % len(ZONES)])
        time.tzset()
        store.record(record.row())
    await store.stop()
    return path


def sums(books: sqlite3.Connection, start: int, end: int) -> Sequence[int]:
    found = books.execute(f"SELECT {SUMS} FROM usage WHERE at >= ? AND at < ?", [start, end])
    return tuple(found.fetchone())


async def test_O8_any_split_of_the_books_adds_up_to_the_whole(
    tmp_path: Path, zone: pytest.MonkeyPatch
) -> None:
    path = await kept(tmp_path, zone)
    everything = records()
    exact = {record.id: record.row()[1] for record in everything}
    with closing(sqlite3.connect(path)) as books:
        assert exact == dict(books.execute("SELECT id, at FROM usage"))
        whole = sums(books, 0, 1 << 60)
        totals = ("input", "output", "cost_nanos")
        told = [sum(getattr(record, name) for record in everything) for name in totals]
        assert (len(everything), *told) == whole

        moments = st.sampled_from(sorted(exact.values())) | st.integers(0, 1 << 42)

        @settings(max_examples=200, deadline=None)
        @given(st.lists(moments, max_size=12))
        def split(cuts: list[int]) -> None:
            ends = [0, *sorted(cuts), 1 << 60]
            parts = [sums(books, a, b) for a, b in pairwise(ends)]
            assert whole == tuple(map(sum, zip(*parts, strict=True)))

        split()


@pytest.mark.parametrize("here", ZONES)
@pytest.mark.parametrize(("bucket", "text"), [("%Y-%m-%d %H", 13), ("%Y-%m-%d", 10), ("%Y-%m", 7)])
async def test_O8_hours_days_and_months_are_those_of_utc(
    tmp_path: Path, zone: pytest.MonkeyPatch, here: str, bucket: str, text: int
) -> None:
    path = await kept(tmp_path, zone)
    zone.setenv("TZ", here)
    time.tzset()
    expected: Counter[str] = Counter()
    for record in records():
        moment = datetime.fromtimestamp(record.row()[1] / 1000, UTC)
        expected[moment.isoformat(" ")[:text]] += record.input
    query = f"SELECT strftime('{bucket}', at / 1000, 'unixepoch'), sum(input) FROM usage GROUP BY 1"
    with closing(sqlite3.connect(path)) as books:
        found = dict(books.execute(query))
        whole = sums(books, 0, 1 << 60)[1]
    assert expected == found
    assert whole == sum(found.values())
