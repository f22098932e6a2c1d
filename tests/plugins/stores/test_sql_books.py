"""The books of the SQL store, on both databases: sums, retention, and who knows of neither."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections import Counter
from contextlib import closing
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from harness.days import now_within_a_day
from harness.postgres import Database
from hypothesis import given
from hypothesis import strategies as st

from passy_plugins.stores.sql import Sql, SqlSettings, sums
from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.driver import driver_for
from passy_plugins.stores.sql.sums import DAY, HOUR
from passy_proxy.config.settings import Secret
from passy_proxy.evidence import Proof, Verdict
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, UsageRecord
from passy_proxy.site import Site

pytestmark = pytest.mark.anyio

RING = Keyring(["the secret key of these tests: 0123456789"])
RECORD = UsageRecord(
    *("req_0", 1_795_430_994.913, "key_1", "org_1", "team_1", "user_1", "a,b", "POST /v1/x"),
    *("m", "u", "m", "ok", 200, False, 10, 20, 1, 2, 3, 4, 5, False, 700, "p", 1, 2, ()),
)
TRIED = (
    AttemptRecord("v", "m", 503, "status: [[503],[0]]", 0, 5, False),
    AttemptRecord("u", "m", 200, "", 6, 9, False),
)
NOW, TODAY = 0, 0
"""Milliseconds, and the number of the day: of the test that runs."""


@pytest.fixture(autouse=True)
def today() -> None:
    global NOW, TODAY
    NOW = now_within_a_day()
    TODAY = NOW // DAY


class Books:
    """A database of either kind, to look into."""

    def __init__(self, folder: Path, database: Database | None) -> None:
        self.folder = folder
        self.database = database
        self.path = folder / "passy.db"
        self.dialect = "sqlite" if database is None else "postgresql"
        self.url = f"sqlite:///{self.path}" if database is None else database.url

    def store(self, keep: int | None = None, name: str = "host") -> Sql:
        settings = SqlSettings(url=Secret(self.url), keep=keep)
        return Sql(settings, Site(self.folder / name, RING))

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        if self.database is not None:
            return self.database.rows(statement)
        with closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement).fetchall()

    async def tend(self, keep: int | None = None, now: int | None = None) -> int:
        now = NOW if now is None else now
        driver = driver_for(self.url, "test")
        oldest = None if keep is None else (now // DAY - keep) * DAY
        try:
            return await driver.tend(now, oldest, RING)
        finally:
            await driver.close()

    async def verify(self) -> Verdict:
        async with Admin.opened(self.url, RING) as admin:
            return await admin.verify()

    def wrong_sums(self) -> list[tuple[Any, ...]]:
        """Where the sums are not those of the records that say that they are in them."""
        found = []
        for table, span in sums.SPANS.items():
            # A price that came later is of a record that was entered without one.
            told = [each for each in sums.DIMENSIONS if each != "price"]
            names = ", ".join((*sums.COUNTS, *sums.AMOUNTS))
            added = ", ".join(
                f"CAST(sum({each}) AS BIGINT)"
                for each in (
                    *sums.counts(self.dialect).values(),
                    *(f"coalesce({name}, 0)" for name in sums.AMOUNTS),
                )
            )
            groups = ", ".join(map(str, range(1, len(told) + 2)))
            wanted = (
                f"SELECT at - at % {span}, {', '.join(told)}, {added}"
                f" FROM usage WHERE summed = 1 GROUP BY {groups}"
            )
            sum_of = ", ".join(f"CAST(sum({name}) AS BIGINT)" for name in names.split(", "))
            kept = f"SELECT start, {', '.join(told)}, {sum_of} FROM {table} GROUP BY {groups}"
            found += self.rows(f"{wanted} EXCEPT {kept}") + self.rows(f"{kept} EXCEPT {wanted}")
        return found


@pytest.fixture(params=["sqlite", "postgres"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Books:
    kind = request.param
    return Books(tmp_path, request.getfixturevalue("database") if kind == "postgres" else None)


async def shipped(store: Sql) -> None:
    for _ in range(6_000):
        if not store.waiting:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it is never entered")


def some(count: int, seed: int = 1) -> list[UsageRecord]:
    """Records of many kinds over the last three days."""
    dice = random.Random(seed)
    return [
        RECORD._replace(
            id=f"req_{seed}_{number}",
            at=(NOW - dice.randrange(3 * DAY)) / 1000,
            key_id=dice.choice(("", "key_1", "key_2")),
            organisation=dice.choice(("", "org_1")),
            team=dice.choice(("", "team_1")),
            model=dice.choice(("m", "n")),
            outcome=dice.choice(("ok", "ok", "client_gone", "rate_limited")),
            status=dice.choice((200, 429, 500)),
            streamed=dice.random() < 0.5,
            input=dice.randrange(1_000),
            cost_nanos=dice.choice((None, dice.randrange(1 << 40))),
            estimated=dice.random() < 0.2,
            first_ms=dice.choice((0, 10, 11, 900, 40_000)),
            attempts=dice.choice(((), TRIED[1:], TRIED, (TRIED[1], TRIED[1]))),
        )
        for number in range(count)
    ]


# Sums


async def test_a_sum_that_is_not_that_of_its_records_is_found(books: Books) -> None:
    """In either table, in whatever number of it, and also one that is gone or that nobody made."""
    store = books.store()
    await store.start()
    for record in some(300):
        store.record(record.row())
    for number in range(10):
        store.price(f"req_1_{number}", 77, "late")
    await store.stop()
    verdict = await books.verify()
    assert [] == verdict.wrong_sums
    [(hours,)], [(days,)] = (books.rows(f"SELECT count(*) FROM {table}") for table in sums.SPANS)
    assert hours + days == verdict.sums
    [first, *_] = books.rows("SELECT start, model FROM usage_hours ORDER BY 1, 2 LIMIT 1")
    where = f"start = {first[0]} AND model = '{first[1]}'"
    books.rows(f"UPDATE usage_hours SET cost_nanos = cost_nanos + 1 WHERE {where} RETURNING 1")
    [(latest,)] = books.rows("SELECT max(start) FROM usage_days")
    gone = books.rows(f"DELETE FROM usage_days WHERE start = {latest} RETURNING requests")
    verdict = await books.verify()
    assert not verdict.ok
    assert verdict.findings == []
    of_hours = [each for each in verdict.wrong_sums if each.unit == "hour"]
    of_days = [each for each in verdict.wrong_sums if each.unit == "day"]
    moment = time.strftime("%Y-%m-%d %H:00", time.gmtime(first[0] / 1000))
    assert {moment} == {each.at for each in of_hours}
    assert all(each.why.startswith("cost_nanos ") for each in of_hours)
    assert all(f"model {first[1]}" in each.of for each in of_hours)
    assert {time.strftime("%Y-%m-%d", time.gmtime(latest / 1000))} == {e.at for e in of_days}
    told = [int(each.why.split("come to ")[1].split(";")[0]) for each in of_days]
    assert sum(int(requests) for (requests,) in gone) == sum(told)


async def test_sums_are_kept_as_long_as_they_are_asked_to(books: Books) -> None:
    store = books.store()
    await store.start()
    for record in some(300):
        store.record(record.row())
    await store.stop()
    oldest = (TODAY - 1) * DAY
    driver = driver_for(books.url, "test")
    await driver.tend(NOW, oldest, RING)
    assert [] == (await books.verify()).wrong_sums
    for table in sums.SPANS:
        assert books.rows(f"SELECT 1 FROM {table} WHERE start < {oldest} LIMIT 1")
    await driver.tend(NOW, oldest, RING, oldest)
    await driver.close()
    for table in sums.SPANS:
        assert [] == books.rows(f"SELECT 1 FROM {table} WHERE start < {oldest} LIMIT 1")
        assert books.rows(f"SELECT 1 FROM {table} LIMIT 1")
    verdict = await books.verify()
    assert verdict.sums
    assert [] == verdict.wrong_sums


@pytest.mark.parametrize(("keep", "sums_kept"), [(None, "90d"), ("90d", "30d")])
def test_sums_outlast_their_records(keep: str | None, sums_kept: str) -> None:
    with pytest.raises(ValueError, match="keep_sums must be at least keep"):
        SqlSettings.model_validate({"url": "sqlite:///a.db", "keep": keep, "keep_sums": sums_kept})


@pytest.mark.parametrize("proved", [False, True])
async def test_the_sums_are_those_of_the_records(books: Books, proved: bool) -> None:
    """Also of those that come twice, and of prices that come later, of several hosts at once."""
    stores = [books.store(name=f"host_{number}") for number in range(2)]
    for store in stores:
        await store.start()
    proof = Proof("a", "b", ()) if proved else None
    records = some(1_500)
    for number, record in enumerate(records):
        stores[number % 2].record(record.row(), proof)
    for store in stores:
        await shipped(store)
    unpriced = [record for record in records if record.cost_nanos is None][:40]
    for number, record in enumerate(records[:300]):
        stores[number % 2].record(record._replace(input=99_999).row(), proof)
    for number, record in enumerate(unpriced):
        for nanos in (1_000 + number, 5):
            stores[number % 2].price(record.id, nanos, "late")
    for store in stores:
        await store.stop()
    assert [] == books.wrong_sums()
    total = "SELECT sum(requests), sum(cost_nanos), sum(unpriced), sum(input) FROM usage_days"
    costs = sum(record.cost_nanos or 0 for record in records)
    costs += sum(1_000 + number for number in range(len(unpriced)))
    [found] = books.rows(total)
    left = sum(record.cost_nanos is None for record in records) - len(unpriced)
    told = sum(record.input for record in records)
    assert (1_500, costs, left, told) == tuple(map(int, found))
    assert proved == bool(books.rows("SELECT 1 FROM evidence LIMIT 1"))
    if proved:
        assert [] == (await books.verify()).findings


async def test_O8_what_was_spent_is_the_same_of_any_split(books: Books) -> None:
    """Of records, of their sums, and of what nobody has added yet."""
    store = books.store()
    await store.start()
    records = some(900)
    for record in records:
        store.record(record.row())
    await shipped(store)
    marked = "UPDATE usage SET summed = 0 WHERE id LIKE 'req_1_1%' RETURNING 1"
    for table in sums.SPANS:
        books.rows(f"DELETE FROM {table} WHERE 1 = 1 RETURNING 1")
    late = len(books.rows(marked))
    assert 0 < late < 900
    for table in sums.SPANS:
        added = f"({sums.grouped('usage WHERE summed = 1', books.dialect)}) AS added"
        # An ON would be taken for that of a join, without it.
        source = (
            sums.by_day(added) if table == "usage_days" else f"SELECT * FROM {added} WHERE 1 = 1"
        )
        books.rows(f"{sums.add(table, source, books.dialect)} RETURNING 1")
    assert [] == books.wrong_sums()
    dice = random.Random(8)
    edges = [NOW // HOUR * HOUR, TODAY * DAY, (TODAY - 1) * DAY, (TODAY - 2) * DAY + 1]
    for kind, subject in (("key", "key_1"), ("organisation", "org_1"), ("team", "team_1")):
        mine = [r for r in records if getattr(r, sums.SUBJECTS[kind]) == subject]
        for unit in ("usd", "tokens"):
            for _ in range(12):
                cuts = sorted(dice.sample([*edges, *(NOW - dice.randrange(3 * DAY),)], 3))
                ends = [0.0, *(cut / 1000 for cut in cuts), inf]
                for start, end in pairwise(ends):
                    within = [r for r in mine if start * 1000 <= r.row()[1] < (end * 1000)]
                    wanted = sum(
                        (r.cost_nanos or 0) if unit == "usd" else r.input + r.output for r in within
                    )
                    assert wanted == await store.spent(kind, subject, unit, start, end)
    await store.stop()


async def test_M1_the_longest_names_and_tags_there_may_be_lose_nothing(books: Books) -> None:
    """16 tags of 64 characters beside a model and a user of 200, of which none can be packed."""
    dice = random.Random(4)

    def text(length: int) -> str:
        return "".join(chr(dice.randrange(0x1F300, 0x1F5FF)) for _ in range(length))

    tags = [text(64) for _ in range(16)]
    long = RECORD._replace(
        at=NOW / 1000, tags=",".join(tags), model=text(200), upstream_model=text(200),
        user_id=text(200), team="t" * 128, upstream="u" * 128,
    )  # fmt: skip
    other = long._replace(tags=",".join([*tags[:-1], tags[-1][:-1] + "."]))
    # What separates and quotes is none of it: these are not the same either.
    quoted = [long._replace(model=f"a{mark}b", upstream=f"c{mark}d") for mark in ("','", "'',''")]
    store = books.store()
    await store.start()
    for number, record in enumerate([long, other, *quoted, RECORD._replace(at=NOW / 1000)]):
        store.record(record._replace(id=f"req_{number}").row())
    await shipped(store)
    store.record(long._replace(id="req_5").row())  # It is added to what is there.
    await shipped(store)
    await store.stop()
    assert [(6,)] == books.rows("SELECT count(*) FROM usage")
    assert [] == books.wrong_sums()
    for table in sums.SPANS:
        told = books.rows(f"SELECT tags, requests FROM {table} WHERE model = '{long.model}'")
        assert {(long.tags, 2), (other.tags, 1)} == set(told)
        assert [(5,)] == books.rows(f"SELECT count(*) FROM {table}")
    verdict = await books.verify()
    assert [] == verdict.wrong_sums


@given(st.integers(0, 40 * HOUR), st.integers(0, 80 * HOUR))
def test_O8_a_span_is_asked_for_without_gap_and_without_overlap(start: int, length: int) -> None:
    whole = sums.ranges(start, start + length)
    *_, hours, more_hours, days, late = whole
    parts = sorted(part for part in whole[:-1] if part[0] < part[1])
    at = start
    for first, last in parts:
        assert at == first
        at = last
    assert at == start + length
    assert all(
        not edge % HOUR for part in (hours, more_hours) for edge in part if part[0] < part[1]
    )
    assert all(not edge % DAY for edge in days if days[0] < days[1])
    summed = [part for part in (hours, more_hours, days) if part[0] < part[1]]
    if summed:
        assert late == (min(a for a, _ in summed), max(b for _, b in summed))


async def test_enormous_numbers_stop_nobody(books: Books) -> None:
    store = books.store()
    await store.start()
    enormous = 2**63 - 1
    for number in range(40):
        id = f"req_{number}"
        store.record(RECORD._replace(id=id, input=enormous, cost_nanos=enormous).row())
    await store.stop()
    assert 0 == store._shipper.refused
    assert [(40,)] == books.rows("SELECT count(*) FROM usage")
    [(total,)] = books.rows("SELECT input FROM usage_days")
    assert 40 * sums.MOST_EACH == total


# A gateway of the version before, which knows of no sums

COLUMNS = ", ".join(UsageRecord._fields)


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else f"'{value}'"


def as_before(record: UsageRecord) -> str:
    """What it writes."""
    values = ", ".join(map(literal, (*record.row()[:-1], "[]")))
    return f"INSERT INTO usage ({COLUMNS}) VALUES ({values}) ON CONFLICT DO NOTHING RETURNING id"


async def test_W12_what_an_older_gateway_enters_is_counted_at_once_and_added_later(
    books: Books,
) -> None:
    store = books.store()
    await store.start()
    await books.tend()
    fresh = RECORD._replace(at=NOW / 1000)
    for number in range(20):
        store.record(fresh._replace(id=f"req_new_{number}").row())
        books.rows(as_before(fresh._replace(id=f"req_old_{number}")))
    books.rows(as_before(fresh._replace(id="req_unpriced", cost_nanos=None)))
    await shipped(store)
    assert 28_000 == await store.spent("key", "key_1", "usd", 0, inf)
    await books.tend()
    # Whoever has entered the last one may still come with its price, and tells nobody.
    assert [("req_unpriced",)] == books.rows("SELECT id FROM usage WHERE summed = 0")
    books.rows("UPDATE usage SET cost_nanos = 5, price = 'p' WHERE id = 'req_unpriced' RETURNING 1")
    assert 28_005 == await store.spent("key", "key_1", "usd", 0, inf)
    await books.tend()
    assert [] == books.rows("SELECT id FROM usage WHERE summed = 0")
    assert [] == books.wrong_sums()
    assert 28_005 == await store.spent("key", "key_1", "usd", 0, inf)
    await store.stop()


# Retention


@pytest.mark.parametrize("proved", [False, True])
async def test_old_records_are_dropped_and_their_sums_stay(books: Books, proved: bool) -> None:
    store = books.store()
    await store.start()
    proof = Proof("a", "b", ()) if proved else None
    for number in range(30):
        for age in (*range(number % 20, 20), *range(number % 20)):
            at = ((TODAY - age) * DAY + number * HOUR // 2) / 1000
            record = RECORD._replace(id=f"req_{age}_{number}", at=at)
            store.record(record.row(), proof if number % 2 else None)
    await shipped(store)
    assert 300 == await books.tend(keep=9)
    assert 0 == await books.tend(keep=9)
    [(oldest,)] = books.rows("SELECT min(at) FROM usage")
    assert (TODAY - 9) * DAY == oldest
    assert 600 * 700 == await store.spent("key", "key_1", "usd", 0, inf)
    verdict = await books.verify()
    assert [] == verdict.findings
    if proved:
        assert (300, (TODAY - 9) * DAY) == (verdict.dropped, verdict.dropped_before)
        assert 300 == verdict.entries
    # It goes on.
    store.record(RECORD._replace(id="req_late", at=((TODAY - 15) * DAY) / 1000).row(), proof)
    store.record(RECORD._replace(id="req_new", at=NOW / 1000).row(), proof)
    await shipped(store)
    assert 602 * 700 == await store.spent("key", "key_1", "usd", 0, inf)
    assert [] == (await books.verify()).findings
    assert 1 + 30 == await books.tend(keep=8)
    assert [] == (await books.verify()).findings
    assert 602 * 700 == await store.spent("key", "key_1", "usd", 0, inf)
    await store.stop()


async def test_F6_retention_hides_nothing_that_somebody_else_took_away(books: Books) -> None:
    store = books.store()
    await store.start()
    for age in range(10):
        for number in range(10):
            at = ((TODAY - age) * DAY + number) / 1000
            record = RECORD._replace(id=f"req_{age}_{number}", at=at)
            store.record(record.row(), Proof("a", "b", ()))
    await shipped(store)
    assert 50 == await books.tend(keep=4)
    await store.stop()
    assert [] == (await books.verify()).findings
    # A record that is not old, with all that is known of it.
    books.rows("DELETE FROM usage WHERE id = 'req_2_3' RETURNING 1")
    books.rows("DELETE FROM evidence WHERE id = 'req_2_3' RETURNING 1")
    assert {"removed"} == {each.kind for each in (await books.verify()).findings}
    # And a mark that says that it was, made of one that is there.
    [(value,)] = books.rows("SELECT value FROM marks WHERE name LIKE 'dropped:%'")
    [(seq,)] = books.rows("SELECT max(seq) FROM evidence WHERE id = 'req_2_2'")
    forged = value.replace("[1,51,100", f"[1,{seq + 1},{seq + 1}")
    assert forged != value
    books.rows(
        f"INSERT INTO marks (name, value) VALUES ('dropped:1:{seq + 1}', '{forged}') RETURNING 1"
    )
    found = (await books.verify()).findings
    assert {"removed", "edited"} == {each.kind for each in found}


async def test_a_day_that_begins_has_its_place_before_it_does(database: Database) -> None:
    books = Books(Path(), database)
    driver = driver_for(books.url, "test")
    await driver.make()
    await driver.close()
    await books.tend()
    names = "SELECT relname::text FROM pg_class WHERE relname ~ '^usage_[0-9]+$' AND relkind = 'r'"
    tables = [name for (name,) in books.rows(f"{names} ORDER BY 1")]
    days = range(TODAY - 1, TODAY + 7)
    assert [time.strftime("usage_%Y%m%d", time.gmtime(day * 86_400)) for day in days] == tables


async def test_records_of_days_that_have_no_table_are_entered(
    database: Database, tmp_path: Path
) -> None:
    """Of several hosts that come back at once, and from before anybody kept books."""
    books = Books(tmp_path, database)
    stores = [books.store(name=f"host_{number}") for number in range(3)]
    await asyncio.gather(*(store.start() for store in stores))
    for number in range(300):
        at = (TODAY - number % 40) * 86_400.0 + number
        stores[number % 3].record(RECORD._replace(id=f"req_{number}", at=at).row())
    stores[0].record(RECORD._replace(id="req_first", at=0.001).row())
    await asyncio.gather(*(store.stop() for store in stores))
    assert [0, 0, 0] == [store._shipper.refused for store in stores]
    counted = Counter(day for (day,) in books.rows(f"SELECT at / {DAY} FROM usage"))
    assert 41 == len(counted)
    assert 301 == sum(counted.values())
    assert [] == books.wrong_sums()


CHANGES = (
    "UPDATE usage SET {column} = {value} WHERE id = '{id}'",
    "DELETE FROM usage WHERE id = '{id}'",
    "UPDATE evidence SET {field} = {field} || 'x' WHERE id = '{id}'",
    "DELETE FROM evidence WHERE id = '{id}'",
    "UPDATE evidence SET seq = seq + 1000 WHERE id = '{id}'",
    "UPDATE marks SET value = replace(value, ',', ', ') WHERE name = 'evidence:1'",
    "DELETE FROM marks WHERE name = 'evidence:1'",
    "DELETE FROM evidence WHERE seq > 90",
)


async def test_F6_every_change_of_the_books_in_postgresql_is_found(
    database: Database, tmp_path: Path
) -> None:
    books = Books(tmp_path, database)
    store = books.store()
    await store.start()
    for record in some(100):
        store.record(record.row(), Proof("a", "b", ()))
    await store.stop()
    assert [] == (await books.verify()).findings
    dice = random.Random(6)
    numbers = ("status", "streamed", "input", "output", "cost_nanos", "duration_ms")
    texts = ("key_id", "team", "model", "upstream", "outcome", "attempts")
    kept = "CREATE SCHEMA kept; " + "; ".join(
        f"CREATE TABLE kept.{table} AS TABLE {table}" for table in ("usage", "evidence", "marks")
    )
    database.run(kept)
    undo = "; ".join(
        f"DELETE FROM {table}; INSERT INTO {table} TABLE kept.{table}"
        for table in ("usage", "evidence", "marks")
    )
    for turn in range(48):
        number = dice.random() < 0.5
        change = CHANGES[turn % len(CHANGES)].format(
            id=f"req_1_{dice.randrange(100)}",
            column=dice.choice(numbers if number else texts),
            value="3" if number else "'other'",
            field=dice.choice(("kind", "record", "upstream", "client", "modified_by", "link")),
        )
        database.run(change)
        assert [] != (await books.verify()).findings, change
        database.run(undo)
    assert [] == (await books.verify()).findings
