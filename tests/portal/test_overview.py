"""Overview and Usage say what the rows say: on both databases, in every figure, file and answer."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import NamedTuple

import pytest
from harness.days import now_within_a_day
from harness.gateway import Gateway, Serve
from harness.office import VARIABLES
from harness.portal import CONFIGURATION, Browser, found, joined, me
from harness.postgres import Database, Server

from passy_portal.figures import count, milliseconds, money, short
from passy_portal.spans import DAY
from passy_proxy.units import dollars

NOW, TODAY = 0, 0
"""Milliseconds: of when the books were filled, and of when that day began."""
PRICE = "2.5 in, 10 out, 1.25 cached per 1M (a list)"
RESCUED = '[["a","m",503,"status: status 503",0,9,false],["b","m",200,"",9,20,false]]'
ONCE = '[["b","m",200,"",0,20,false]]'


class Row(NamedTuple):
    """What differs between the records of these books."""

    day: int
    """Before today."""
    model: str
    key: str
    outcome: str
    status: int
    input: int
    cached: int
    output: int
    price: str
    first_ms: int
    attempts: str

    @property
    def ok(self) -> bool:
        return self.outcome == "ok" and self.status < 400

    @property
    def nanos(self) -> int | None:
        """By the price: half a nanodollar is rounded up."""
        if not self.price:
            return None
        whole = (self.input - self.cached) * 2500 + self.cached * 1250 + self.output * 10_000
        return whole


def rows(first: str, second: str) -> list[Row]:
    made = []
    for n in range(120):
        outcome, status = (("ok", 200), ("ok", 200), ("ok", 200), ("rate_limited", 429),
                           ("upstream_error", 502))[n * 7 % 5]  # fmt: skip
        unpriced = n % 11 == 0
        made.append(
            Row(
                day=n % 40,
                model="house" if unpriced else ("fast", "slow")[n % 2],
                key=(first, second)[n % 3 == 0],
                outcome=outcome,
                status=status,
                input=100 + n,
                cached=n % 50,
                output=n % 17,
                price="" if unpriced else PRICE,
                first_ms=(5, 120, 900, 2_000)[n % 4],
                attempts=RESCUED if n % 5 == 1 else ONCE,
            )
        )
    return made


class Stage(NamedTuple):
    gateway: Gateway
    owner: Browser
    database: Database | None
    rows: list[Row]
    keys: tuple[str, str]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def stage(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Stage]:
    """Records of forty days, entered as an older gateway does; a gateway adds them up."""
    if request.param == "sqlite":
        yield filled(serve(CONFIGURATION, **VARIABLES), None)
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as made:
        gateway = serve(CONFIGURATION, **VARIABLES, DATABASE_URL=made.url)
        yield filled(gateway, made)
        assert 0 == gateway.stop()


def filled(gateway: Gateway, database: Database | None) -> Stage:
    global NOW, TODAY
    NOW = now_within_a_day(120)
    TODAY = NOW // DAY * DAY
    owner, _ = found(gateway)
    empty = owner.look("/").text
    assert "No traffic yet" in empty
    assert "data-live=" in empty
    assert '<noscript><meta http-equiv="refresh"' in empty
    organisation = me(owner)["organisation"]
    one, two = (owner.api("POST", "/keys", {"name": n}).json["id"] for n in ("one", "two"))
    keys = (str(one), str(two))
    made = rows(*keys)
    values = []
    for n, row in enumerate(made):
        at = TODAY - row.day * DAY + (n * 60_000 if row.day else 0)
        cost = "NULL" if row.nanos is None else row.nanos
        values.append(
            f"('req_{n:05}', {at}, '{row.key}', '{organisation}', 'POST /v1/chat/completions',"
            f" '{row.model}', 'b', 'm', '{row.outcome}', {row.status}, 0, {row.input},"
            f" {row.output}, {row.cached}, 0, 0, 0, 0, 0, {cost}, '{row.price}', {row.first_ms},"
            f" {row.first_ms + 10}, '{row.attempts}')"
        )
    entered = (
        "INSERT INTO usage (id, at, key_id, organisation, route, model, upstream, upstream_model,"
        " outcome, status, streamed, input, output, cached, cache_write, reasoning, audio_input,"
        " audio_output, estimated, cost_nanos, price, first_ms, duration_ms, attempts) VALUES "
        + ", ".join(values)
    )
    if database is not None:
        days = {TODAY // DAY - row.day for row in made}
        tables = "".join(
            f"CREATE TABLE IF NOT EXISTS usage_{time.strftime('%Y%m%d', time.gmtime(day * 86400))}"
            f" PARTITION OF usage FOR VALUES FROM ({day * DAY}) TO ({(day + 1) * DAY});"
            for day in days
        )
        database.run(tables + entered)
    else:
        written(gateway, entered)
    return Stage(gateway, owner, database, made, keys)


def written(gateway: Gateway, statement: str) -> None:
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db", timeout=90)) as books, books:
        books.execute(statement)


def within(stage: Stage, days: int, since: int = 0) -> list[Row]:
    return [row for row in stage.rows if since <= row.day < since + days]


def cost(some: list[Row]) -> int:
    return sum(row.nanos or 0 for row in some)


def shown(page: str, name: str) -> str:
    """The large figure of a tile."""
    tile = re.search(rf"<dt>{re.escape(name)}</dt><dd[^>]*>(.*?)</dd>", page)
    assert tile, name
    return tile[1]


def test_every_tile_of_the_overview_is_what_the_rows_say(stage: Stage) -> None:
    for name, days in (("7d", 7), ("30d", 30)):
        page = stage.owner.look(f"/?range={name}").text
        some = within(stage, days)
        good = [row for row in some if row.ok]
        assert count(len(some)) == shown(page, "Requests")
        assert money(cost(some)) == shown(page, "Cost")
        failed = 100 * (len(some) - len(good)) / len(some)
        assert (f"{failed:.1f} %" if failed < 10 else f"{failed:.0f} %") == shown(
            page, "Error rate"
        )
        assert short(sum(row.input + row.output for row in some)) == shown(page, "Tokens")
        saved = sum(row.ok and row.attempts == RESCUED for row in some)
        assert saved
        assert count(saved) == shown(page, "Saved by fallback")
        assert money(cost(within(stage, 1))) == shown(page, "Spent today")
        day = int(time.strftime("%d", time.gmtime(NOW / 1000)))
        month = cost(within(stage, day))
        assert money(month) == shown(page, "Spent this month")
        errors = Counter((row.outcome, row.status) for row in some if not row.ok)
        for (outcome, status), number in errors.items():
            assert re.search(rf">{outcome}</a></th><td class=\"n\">{status}</td>"
                             rf"<td class=\"n\">{number}</td>", page)  # fmt: skip
        told = stage.owner.api("GET", f"/overview?range={name}").json
        assert (len(some), len(good)) == (told["totals"]["requests"], told["totals"]["ok"])
        assert dollars(month) == told["spent_this_month_usd"]
        assert milliseconds(told["p50_first_ms"]) == shown(page, "First byte, p50")
        mean = cost(within(stage, 7, since=1)) // 7
        assert told["forecast_days"] == 7
        assert f"if each day to come costs {money(mean)}, the mean of the last 7 whole days" in page


def test_a_comparison_is_with_as_much_time_before(stage: Stage) -> None:
    page = stage.owner.look("/?range=7d&by=model&show=cost&compare=on").text
    now, before = cost(within(stage, 7)), cost(within(stage, 7, since=7))
    change = 100 * (now - before) / before
    told = "unchanged" if abs(change) < 0.5 else f"{change:+.0f} %"
    assert f'<span class="change">{told}</span>' in page
    assert "the 7 days before" in page
    day = time.strftime("%Y-%m-%d", time.gmtime((TODAY - 2 * DAY) / 1000))
    line = re.search(rf'<th scope="row">{day}</th>(.*?)</tr>', page)
    assert line
    assert line[1].endswith(f'<td class="n">{money(cost(within(stage, 1, since=9)))}</td>')


def test_usage_its_files_and_its_api_agree_with_the_rows(stage: Stage) -> None:
    names = dict(zip(stage.keys, ("one", "two"), strict=True))
    some = within(stage, 30)
    for by, of in (("model", "model"), ("key_id", "key"), ("outcome", "outcome")):
        page = stage.owner.look(f"/usage?by={by}").text
        files = [
            list(csv.DictReader(io.StringIO(stage.owner.look(f"/usage.csv?by={by}").text))),
            [
                json.loads(line)
                for line in stage.owner.look(f"/usage.jsonl?by={by}").text.splitlines()
            ],
        ]
        for value in {getattr(row, of) for row in some}:
            mine = [row for row in some if getattr(row, of) == value]
            title = names.get(value, value)
            line = re.search(rf">{title}</a></th>\s*(.*?)</tr>", page, re.S)
            assert line, (by, value)
            assert f'<td class="n">{money(cost(mine))}' in line[1]
            assert f'<td class="n">{len(mine)}</td>' in line[1]
            for lines in files:
                told = [each for each in lines if each[by] == value]
                assert len(mine) == sum(int(each["requests"]) for each in told)
                assert sum(row.input for row in mine) == sum(int(each["input"]) for each in told)
                nanos = sum(round(float(each["cost_usd"]) * 1e9) for each in told)
                assert cost(mine) == nanos
                assert {row.day for row in mine} == {
                    (TODAY - to_ms(each["day"])) // DAY for each in told
                }
    unpriced = [row for row in some if row.nanos is None and row.ok]
    page = stage.owner.look("/usage").text
    assert "1 model is unpriced (house)" in page
    assert f"the cost of {len(unpriced)} requests is not known" in page
    kinds = dict(re.findall(r"<div><dt>([^<]+)</dt><dd>([^<]+)</dd></div>", page))
    priced = [row for row in some if row.nanos is not None]
    assert kinds == {
        "Input": money(sum((row.input - row.cached) * 2500 for row in priced)),
        "Cached input": money(sum(row.cached * 1250 for row in priced)),
        "Output": money(sum(row.output * 10_000 for row in priced)),
    }
    # The API's own span begins within a day, the pages' with one.
    first = time.strftime("%Y-%m-%d", time.gmtime((TODAY - 29 * DAY) / 1000))
    asked = f"/usage/latency?bucket=total&by=model&since={first}"
    latency = stage.owner.api("GET", asked).json
    assert latency
    for each in latency:
        mine = [row for row in stage.rows if row.model == each["by"]["model"] and row.day < 30]
        assert sum(row.ok for row in mine) == each["ok"]


def to_ms(day: str) -> int:
    import calendar

    return calendar.timegm(time.strptime(day, "%Y-%m-%d")) * 1000


def test_hours_are_for_short_times_and_filters_stay_in_links(stage: Stage) -> None:
    today = time.strftime("%Y-%m-%d", time.gmtime(NOW / 1000))
    link = f"/usage?since={today}&until={today}&unit=hour&by=model&show=requests&status=200"
    page = stage.owner.look(link).text
    good = [row for row in within(stage, 1) if row.status == 200]
    assert count(len(good)) == shown(page, "Requests")
    assert "Requests by hour and model" in page
    assert "Without the filter Status 200" in page
    assert 422 == stage.owner.look("/usage?since=2026-01-01&unit=hour").status
    assert "Nothing matches" in stage.owner.look("/usage?model=nobody").text
    assert 200 == stage.owner.look("/usage?show=latency&by=tag&compare=on").status
    quiet = stage.owner.look("/usage?show=latency&since=2020-01-01&until=2020-01-03")
    assert 200 == quiet.status


def test_W3_a_developer_sees_their_own_figures_alone(stage: Stage) -> None:
    other = joined(stage.owner, "dev@example.com", "developer")
    assert "No traffic yet" in other.look("/").text
    told = other.api("GET", f"/usage/latency?bucket=total&by=key&organisation={'o' * 5}").json
    assert told == []
    assert 0 == other.api("GET", "/overview").json["totals"]["requests"]
    assert [] == other.api("GET", "/overview").json["budgets"]
    lines = other.look("/usage.csv").text.splitlines()
    assert 1 == len(lines)


def test_gateways_whose_records_do_not_come_are_named(stage: Stage) -> None:
    assert "delivered nothing" not in stage.owner.look("/").text
    ago = [int(time.time() * 1000) - hours * 3_600_000 for hours in (1, 2, 3)]
    hosts = zip(("east", "west", "east"), ago, strict=True)
    marks = ", ".join(f"('journal:{n}', '{at} {host}')" for n, (host, at) in enumerate(hosts))
    entered = f"INSERT INTO marks (name, value) VALUES {marks}"
    gone = "DELETE FROM marks WHERE name IN ('journal:0', 'journal:1', 'journal:2')"
    change = stage.database.run if stage.database else partial(written, stage.gateway)
    change(entered)
    try:
        page, told = stage.owner.look("/").text, stage.owner.api("GET", "/overview").json["behind"]
        other = joined(stage.owner, "other@example.com", "viewer")
        veiled = other.look("/").text, other.api("GET", "/overview").json["behind"]
    finally:
        change(gone)
    since = [time.strftime("%Y-%m-%dT%H:%M", time.gmtime(at / 1000)) for at in ago]
    # Of a host it is the process that has come least far.
    assert [("east", since[2]), ("west", since[1])] == [
        (one["host"], one["since"][:16]) for one in told
    ]
    assert re.search(rf"<b>east</b> has delivered nothing since [^.]*{since[2]}", page)
    assert re.search(rf"<b>west</b> has delivered nothing since [^.]*{since[1]}", page)
    assert "A gateway has delivered nothing" in veiled[0]
    assert "east" not in veiled[0]
    assert [None, None] == [one["host"] for one in veiled[1]]
    assert "delivered nothing" not in stage.owner.look("/").text
