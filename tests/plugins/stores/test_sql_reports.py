"""Sums and lists from the books, against a plain reckoning of the same rows, on both databases."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from passy_plugins.stores.sql import counted, reports
from passy_plugins.stores.sql.engine import engine_for
from passy_plugins.stores.sql.reports import Asked, Group, Reports, Sums, TooLong
from passy_plugins.stores.sql.schema import metadata, usage
from passy_plugins.stores.sql.sums import BOUNDS, add, by_day, grouped
from passy_proxy.json import dumps, loads
from passy_proxy.stores import StoreUnavailable

pytestmark = pytest.mark.anyio

DAY, HOUR = 86_400_000, 3_600_000
BEGIN = 20_000 * DAY
ALL = Asked(BEGIN, BEGIN + 10 * DAY)
DIMENSIONS: Sequence[reports.Dimension] = (
    "model", "upstream", "upstream_model", "key", "team", "user", "organisation", "tag", "route",
    "outcome", "status", "price",
)  # fmt: skip
ORDERS: Sequence[reports.Order] = ("time", "requests", "tokens", "cost")
COLUMN = {"key": "key_id", "user": "user_id", "tag": "tags"}


ONCE = [["echo", "echo", 200, "", 0, 3, 0]]
TWICE = [["echo", "echo", 503, "status: ],[", 0, 1, 0], *ONCE]
SAVED = [["openai", "echo", 503, "status: 503", 0, 1, 0], *ONCE]


def rows(count: int) -> list[dict[str, Any]]:
    """Usage as it comes: few values in each column, many at the edges of hours and days."""
    draw = random.Random(4)
    made = []
    for number in range(count):
        hour = BEGIN + draw.randrange(3 * 24) * HOUR
        at = hour + draw.choice((0, 1, HOUR - 1, draw.randrange(HOUR)))
        tokens = draw.choice((0, draw.randrange(1000)))
        made.append(
            {
                "id": f"req_{number:06}",
                "at": at,
                "key_id": draw.choice(("", "key_1", "key_2", "key_3")),
                "organisation": draw.choice(("", "org_1", "org_2")),
                "route": draw.choice(("POST /v1/chat/completions", "POST /v1/embeddings")),
                "model": draw.choice(("echo", "gpt-4o", "100%", "a_b", "a\\b", "Ünï,cödé")),
                "upstream": draw.choice(("echo", "openai", "")),
                "upstream_model": draw.choice(("echo", "gpt-4o-2024")),
                "outcome": draw.choice(("ok", "ok", "rate_limited", "client_gone")),
                "status": draw.choice((200, 429, 499)),
                "streamed": draw.randrange(2),
                "input": tokens,
                "output": draw.randrange(500),
                "cached": draw.randrange(50),
                "cache_write": draw.randrange(5),
                "reasoning": draw.randrange(7),
                "audio_input": draw.randrange(3),
                "audio_output": draw.randrange(2),
                "estimated": draw.randrange(2),
                "cost_nanos": draw.choice((None, 0, 13_500, draw.randrange(10**14))),
                "price": draw.choice(("", "1 in, 2 out per 1M (a list)")),
                "first_ms": draw.choice((0, 10, 11, 150, 3000, 31_000, draw.randrange(9000))),
                "duration_ms": draw.randrange(5000),
                "attempts": dumps(draw.choice((ONCE, TWICE, SAVED))).decode(),
                "team": draw.choice(("", "team_1")),
                "user_id": draw.choice(("", "user_1", "user_2")),
                "tags": draw.choice(("", "prod", "prod,eu", "eu", "e_", "100%")),
                "summed": draw.randrange(2),
            }
        )
    return made


ROWS = rows(300)


@pytest.fixture(scope="module")
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[
    dict[str, str]
]:  # fmt: skip
    """Where the databases are."""
    file = tmp_path_factory.mktemp("books") / "passy.db"
    with request.getfixturevalue("postgres").database() as made:
        server = made.url.replace("postgresql://", "postgresql+asyncpg://")
        yield {"sqlite": f"sqlite:///{file}", "postgres": server}


FILLED: set[str] = set()


async def engine_of(kind: str, places: dict[str, str]) -> AsyncEngine:
    url = places[kind]
    engine = engine_for(url) if kind == "sqlite" else create_async_engine(url)
    if url not in FILLED:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(insert(usage), ROWS)
            hours = grouped("usage WHERE summed = 1", engine.dialect.name)
            days = by_day("usage_hours")
            # Made of the metadata, and not by migrations, they have the same key on both.
            await connection.execute(text(add("usage_hours", hours, "sqlite")))
            await connection.execute(text(add("usage_days", days, "sqlite")))
        FILLED.add(url)
    return engine


class Connected:
    """Connections as `Admin` gives them, counted."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.count = 0

    def __call__(self) -> AbstractAsyncContextManager[AsyncConnection]:
        self.count += 1
        return self.engine.begin()


@pytest.fixture(params=["sqlite", "postgres"])
async def connected(
    request: pytest.FixtureRequest, places: dict[str, str]
) -> AsyncIterator[Connected]:
    engine = await engine_of(request.param, places)
    yield Connected(engine)
    await engine.dispose()


@pytest.fixture
def books(connected: Connected) -> Reports:
    return Reports(connected)


def matching(asked: Asked) -> list[dict[str, Any]]:
    """The rows that are meant, found without a database."""

    def meant(row: dict[str, Any]) -> bool:
        for dimension, value in asked.values.items():
            held = row[COLUMN.get(dimension, dimension)]
            if value not in held.split(",") if dimension == "tag" else value != str(held):
                return False
        found = row["id"].startswith(asked.search) or asked.search in row["model"]
        return asked.since <= row["at"] < asked.until and found

    return [row for row in ROWS if meant(row)]


def summed(found: Sequence[dict[str, Any]]) -> Sums:
    def total(name: str) -> int:
        return sum(row[name] or 0 for row in found)

    good = [row for row in found if row["outcome"] == "ok" and row["status"] < 400]
    priced = {"requests": len(found), "ok": len(good)}
    answered = [row for row in found if row in good or row["outcome"] == "client_gone"]
    unpriced = [row for row in answered if row["cost_nanos"] is None]
    saved = sum(loads(row["attempts"]) == SAVED for row in good)
    names = set(Sums._fields) - {"requests", "ok", "unpriced", "saved"}
    return Sums(
        **priced, unpriced=len(unpriced), saved=saved, **{name: total(name) for name in names}
    )


def reckoned_keys(
    row: dict[str, Any], by: Sequence[reports.Dimension], asked: Asked
) -> Iterator[tuple[str, ...]]:
    """Its values in each dimension, once for each of its tags."""
    values = [str(row[COLUMN.get(name, name)]) for name in by]
    choices = [v.split(",") if n == "tag" else [v] for n, v in zip(by, values, strict=True)]
    wanted = asked.values.get("tag")
    for key in itertools.product(*choices):
        if "tag" not in by or wanted is None or key[list(by).index("tag")] == wanted:
            yield key


def reckoned(
    asked: Asked, bucket: reports.Bucket, by: Sequence[reports.Dimension], order: reports.Order
) -> list[Group]:
    groups = defaultdict(list)
    for row in matching(asked):
        span = {"hour": HOUR, "day": DAY, "total": 0}[bucket]
        at = row["at"] - row["at"] % span if span else None
        for key in reckoned_keys(row, by, asked):
            groups[at, key].append(row)
    found = [Group(at, key, summed(some)) for (at, key), some in groups.items()]
    measure = {
        "time": lambda g: 0,
        "requests": lambda g: g.sums.requests,
        "tokens": lambda g: g.sums.input + g.sums.output,
        "cost": lambda g: g.sums.cost_nanos,
    }[order]
    return sorted(found, key=lambda g: (-measure(g), g.at or 0, [k.encode() for k in g.by]))


async def pages(books: Reports, limit: int, asked: Asked, *what: Any) -> list[Group]:
    found: list[Group] = []
    cursor: str | None = None
    while True:
        page = await books.groups(asked, *what, limit, cursor)
        assert len(page.rows) <= limit
        found += page.rows
        if (cursor := page.cursor) is None:
            return found


QUESTIONS = [
    (ALL, ()),
    (Asked(BEGIN + HOUR // 2, BEGIN + 2 * DAY + 5 * HOUR // 2), ("model", "tag")),
    (Asked(BEGIN + HOUR, BEGIN + HOUR + 1), ()),
    (Asked(BEGIN + 5, BEGIN + 6 * HOUR - 5, {"key": "key_2", "user": "user_1"}), ("team",)),
    (Asked(BEGIN + DAY, BEGIN + 2 * DAY, {"organisation": "org_1"}), ("upstream",)),
    (ALL, ("model",)),
    (ALL, ("key", "upstream")),
    (ALL, ("tag",)),
    (ALL, ("tag", "model")),
    (Asked(BEGIN + HOUR, BEGIN + DAY + 1), ("user", "team")),
    (Asked(ALL.since, ALL.until, {"key": "key_1", "outcome": "ok"}), ("organisation",)),
    (Asked(ALL.since, ALL.until, {"tag": "eu"}), ("tag", "route")),
    (Asked(ALL.since, ALL.until, {"tag": "e_"}), ("tag",)),
    (Asked(ALL.since, ALL.until, {"tag": "100%", "team": "team_1"}), ("upstream_model",)),
    (Asked(ALL.since, ALL.until, {"status": "429", "route": "POST /v1/embeddings"}), ("price",)),
    (ALL, ("outcome", "status")),
    (Asked(ALL.since, ALL.until, {}, "%"), ("model",)),
    (Asked(ALL.since, ALL.until, {}, "a_"), ("model",)),
    (Asked(ALL.since, ALL.until, {}, "a\\"), ("model",)),
    (Asked(ALL.since, ALL.until, {}, "req_0000"), ("outcome",)),
    (Asked(BEGIN - DAY, BEGIN, {}), ("model",)),
]


@pytest.mark.crossed("bucket", "order")
@pytest.mark.parametrize("bucket", ["hour", "day", "total"])
@pytest.mark.parametrize("order", ORDERS)
async def test_O8_sums_are_those_of_the_rows_on_every_page(
    books: Reports, bucket: reports.Bucket, order: reports.Order
) -> None:
    for number, (asked, by) in enumerate(QUESTIONS):
        expected = reckoned(asked, bucket, by, order)
        assert expected == await pages(books, (1000, 11, 53)[number % 3], asked, bucket, by, order)


async def test_O8_sums_over_any_split_are_the_totals(books: Reports) -> None:
    total = await books.totals(ALL)
    assert summed(ROWS) == total
    for dimension in DIMENSIONS:
        if dimension == "tag":
            continue  # What has two tags is in both.
        for bucket in ("hour", "day", "total"):
            found = await pages(books, 1000, ALL, bucket, (dimension,), "time")
            added = Sums()
            for group in found:
                added = added.plus(group.sums)
            assert total == added


@pytest.mark.parametrize("bucket", ["hour", "day", "total"])
async def test_percentiles_are_those_of_the_rows_but_for_the_width_of_a_step(
    books: Reports, bucket: reports.Bucket
) -> None:
    for asked, by in QUESTIONS:
        found = await books.pace(asked, bucket, by)
        rows = defaultdict(list)
        for row in matching(asked):
            span = {"hour": HOUR, "day": DAY, "total": 0}[bucket]
            at = row["at"] - row["at"] % span if span else None
            good = row["outcome"] == "ok" and row["status"] < 400
            for key in reckoned_keys(row, by, asked):
                rows[at, key] += [row["first_ms"]] if good else []
        for key, all_ms in rows.items():
            pace = found.pop(key)
            assert len(all_ms) == pace.ok
            for part in (0.5, 0.95):
                told = pace.percentile(part)
                if not all_ms:
                    assert told is None
                    continue
                exact = sorted(all_ms)[max(0, math.ceil(part * len(all_ms)) - 1)]
                above = next((bound for bound in BOUNDS if exact <= bound), BOUNDS[-1])
                below = ([0, 0, *BOUNDS])[BOUNDS.index(above) + 1]
                assert told is not None
                assert below <= told <= above, (exact, told)
        assert not any(pace.ok for pace in found.values())


async def test_totals_of_nothing_are_zero(books: Reports) -> None:
    assert Sums() == await books.totals(Asked(0, 1))


@pytest.mark.parametrize("limit", [1, 9, 1000])
async def test_exchanges_come_latest_first_and_each_once(books: Reports, limit: int) -> None:
    asked = Asked(BEGIN, BEGIN + DAY, {"key": "key_1"})
    expected = sorted(matching(asked), key=lambda row: (row["at"], row["id"]), reverse=True)
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await books.exchanges(asked, limit, cursor)
        found += [record.id for record in page.rows]
        if (cursor := page.cursor) is None:
            break
    assert [row["id"] for row in expected] == found


async def test_one_exchange_comes_with_its_attempts(books: Reports) -> None:
    record = await books.exchange("req_000007")
    assert record is not None
    row = ROWS[7]
    assert (row["id"], row["at"], row["tags"]) == (record.id, record.at * 1000, record.tags)
    assert [("echo", "echo", 200, 3)] == [
        (one.upstream, one.model, one.status, one.head_ms) for one in record.attempts
    ]
    assert await books.exchange("req_") is None


async def test_an_export_is_all_pages(books: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST", 50)
    found = [record.id async for page in books.all_exchanges(ALL) for record in page]
    assert sorted(row["id"] for row in ROWS) == sorted(found)
    groups = [g async for page in books.all_groups(ALL, "hour", ("model",), "cost") for g in page]
    assert reckoned(ALL, "hour", ("model",), "cost") == groups


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "e30",
        "WzFd",
        "WyJhIiwiYiJd",
        "WzEsIlx1MDAwMCJd",
        "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0",
    ],
)
async def test_W6_a_cursor_of_somebody_else_s_making_is_refused(
    books: Reports, cursor: str
) -> None:
    with pytest.raises(ValueError, match="no cursor"):
        await books.groups(ALL, "day", ("model",), "time", 10, cursor)
    with pytest.raises(ValueError, match="no cursor"):
        await books.exchanges(ALL, 10, cursor or "é")


STRINGS = ["'", "''; DROP TABLE usage; --", '"', "\\", "%", "_" * 50, "${x}", "a\nb", "😀", "1=1"]


@pytest.mark.parametrize("hostile", STRINGS)
async def test_W6_values_are_values_whatever_they_say(books: Reports, hostile: str) -> None:
    for dimension in DIMENSIONS:
        asked = Asked(ALL.since, ALL.until, {dimension: hostile})
        assert len(matching(asked)) == (await books.totals(asked)).requests
    asked = Asked(ALL.since, ALL.until, {}, hostile)
    assert len(matching(asked)) == (await books.totals(asked)).requests


async def test_W6_a_thousand_wildcards_are_no_work(books: Reports) -> None:
    began = time.monotonic()
    for search in ("%" * 1000, "_" * 1000, "%_" * 500):
        assert 0 == (await books.totals(Asked(ALL.since, ALL.until, {}, search))).requests
    assert time.monotonic() - began < 30


async def test_W6_a_question_that_takes_too_long_ends(
    books: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clause that is never done stands for a table that is too large."""
    endless = {
        "sqlite": "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) "
        "SELECT count(*) FROM n) > 0",
        "postgresql": "(SELECT count(*) FROM pg_sleep(60)) > 0",
    }
    connected = books._connected
    assert isinstance(connected, Connected)
    clause = endless[connected.engine.dialect.name]
    monkeypatch.setattr(reports, "PATIENCE", 0.5)
    monkeypatch.setattr(counted, "conditions", lambda table, asked: [text(clause)])
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await Reports(lambda: failing(connected)).totals(ALL)
    assert isinstance(caught.value, TooLong)
    assert time.monotonic() - began < 40


def failing(connected: Connected) -> AbstractAsyncContextManager[AsyncConnection]:
    """As `Admin` does, what fails in the database is that it cannot answer."""
    from contextlib import asynccontextmanager

    from sqlalchemy.exc import DBAPIError

    @asynccontextmanager
    async def within() -> AsyncIterator[AsyncConnection]:
        try:
            async with connected() as connection:
                yield connection
        except DBAPIError as error:
            raise StoreUnavailable(str(error.orig)) from None

    return within()


def test_the_places_are_not_the_same(places: dict[str, str]) -> None:
    assert 2 == len(set(places.values()))


@pytest.mark.parametrize(
    ("asked", "by"),
    [
        (Asked(BEGIN + 5, ALL.until - 5), ("model",)),
        (Asked(BEGIN, ALL.until, {"organisation": "org_1"}), ("key",)),
        (Asked(BEGIN, ALL.until, {"key": "key_1"}), ("outcome",)),
        (Asked(BEGIN, ALL.until, {"user": "user_1", "tag": "eu"}), ("tag",)),
    ],
)
def test_no_sum_looks_through_all_records(asked: Asked, by: Sequence[reports.Dimension]) -> None:
    """By SQLite's own word: of the records it takes those of a short time, of one subject, or that
    are in no sum yet."""
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    statement = reports._grouped(asked, "day", by)
    compiled = statement.compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True})
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all()
    engine.dispose()
    steps = [row[3] for row in plan if " usage " in f"{row[3]} "]
    assert steps
    whole = asked.since % HOUR == 0
    for step in steps:
        assert step.startswith("SEARCH"), plan
        assert not (whole and "ix_usage_at" in step), plan
