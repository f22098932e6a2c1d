"""Usage over HTTP: sums of what was really asked, page by page and as files, on both databases."""

from __future__ import annotations

import csv
import io
import itertools
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from harness.gateway import Serve, until
from harness.office import CONFIGURATION, TOKEN, VARIABLES, Office

from passy_plugins.api.files import cell
from passy_proxy.units import dollars


class Asked(NamedTuple):
    """One request as it was made."""

    key: str
    organisation: str
    team: str
    user: str
    tags: tuple[str, ...]
    model: str
    ok: bool


class Traffic(NamedTuple):
    office: Office
    asked: list[Asked]


FORMULA = "=HYPERLINK(1)"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def traffic(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Traffic]:
    """A few dozen requests of several organisations, in the books."""
    variables = dict(VARIABLES)
    if request.param == "sqlite":
        gateway = serve(CONFIGURATION, start=False, **variables)
        gateway.start()
        yield made(Office(gateway))
    else:
        with request.getfixturevalue("postgres").database() as database:
            gateway = serve(CONFIGURATION, start=False, DATABASE_URL=database.url, **variables)
            gateway.start()
            yield made(Office(gateway))
            assert 0 == gateway.stop(), gateway.complaints()
            return
    assert 0 == gateway.stop(), gateway.complaints()


def made(office: Office) -> Traffic:
    asked: list[Asked] = []
    for number in range(3):
        organisation = office.made("/organisations", {"name": f"Acme {number}"})["id"]
        team = office.made(f"/organisations/{organisation}/teams", {"name": "Team"})["id"]
        tags = (("prod",), ("prod", "eu"), ())[number]
        user = f"user-{number}"
        body = {"organisation": organisation, "team": team, "user": user, "tags": list(tags)}
        key = office.made("/keys", body)
        for model, times in (("one", 2 + number), ("pattern-x", 1), ("none", 1), (FORMULA, 1)):
            for _ in range(times):
                answer = office.chat(key["key"], model)
                ok = answer.status == 200
                assert ok is (model in ("one", "pattern-x")), answer.body
                asked.append(Asked(key["id"], organisation, team, user, tags, model, ok))
    total = len(asked)
    until(lambda: office.admin("GET", "/usage").json["totals"]["requests"] == total or None)
    return Traffic(office, asked)


def pages(office: Office, path: str, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = office.admin("GET", f"{path}&limit={limit}{cursor}").json
        rows += page["rows"]
        if page["cursor"] is None:
            return rows
        cursor = f"&cursor={page['cursor']}"


@pytest.mark.parametrize(
    ("dimension", "attribute"),
    [("key", "key"), ("organisation", "organisation"), ("team", "team"), ("user", "user"),
     ("model", "model")],
)  # fmt: skip
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_sums_are_those_of_what_was_asked(
    traffic: Traffic, dimension: str, attribute: str, limit: int
) -> None:
    rows = pages(traffic.office, f"/usage?bucket=total&by={dimension}", limit)
    counted = Counter(getattr(one, attribute) for one in traffic.asked)
    good = Counter(getattr(one, attribute) for one in traffic.asked if one.ok)
    assert counted == {row["by"][dimension]: row["requests"] for row in rows}
    assert {name: good[name] for name in counted} == {
        row["by"][dimension]: row["ok"] for row in rows
    }
    assert sorted(counted) == [row["by"][dimension] for row in rows]


def test_what_has_two_tags_counts_for_each_and_once_in_the_totals(traffic: Traffic) -> None:
    told = traffic.office.admin("GET", "/usage?bucket=total&by=tag").json
    counted = Counter(tag for one in traffic.asked for tag in one.tags or ("",))
    assert counted == {row["by"]["tag"]: row["requests"] for row in told["rows"]}
    assert len(traffic.asked) == told["totals"]["requests"]
    only = traffic.office.admin("GET", "/usage?bucket=total&tag=eu&by=tag&by=model").json
    wanted = [one for one in traffic.asked if "eu" in one.tags]
    assert Counter(one.model for one in wanted) == {
        row["by"]["model"]: row["requests"] for row in only["rows"]
    }
    assert len(wanted) == only["totals"]["requests"]


@pytest.mark.parametrize("bucket", ["hour", "day", "total"])
def test_O8_buckets_are_of_utc_and_add_up(traffic: Traffic, bucket: str) -> None:
    told = traffic.office.admin("GET", f"/usage?bucket={bucket}&by=model").json
    for name in ("requests", "ok", "input", "output", "unpriced", "estimated"):
        assert told["totals"][name] == sum(row[name] for row in told["rows"]), name
    cost = sum((Decimal(row["cost_usd"]) for row in told["rows"]), Decimal(0))
    assert cost == Decimal(told["totals"]["cost_usd"]) > 0
    for row in told["rows"]:
        if bucket == "total":
            assert row["at"] is None
            continue
        at = datetime.fromisoformat(row["at"])
        assert (0, 0, 0) == (at.minute, at.second, at.microsecond)
        assert timedelta(0) == at.utcoffset()
        assert bucket == "hour" or at.hour == 0


def test_money_is_exact(traffic: Traffic) -> None:
    """A millionth of a dollar for a token read, two for one written."""
    for row in traffic.office.admin("GET", "/exchanges?limit=1000").json["rows"]:
        if row["outcome"] == "ok":
            cost = Decimal(row["input"] + 2 * row["output"]) / 1_000_000
            assert cost == Decimal(row["cost_usd"])
            assert "e" not in row["cost_usd"].lower()


@pytest.mark.parametrize("order", ["requests", "tokens", "cost"])
def test_the_most_come_first(traffic: Traffic, order: str) -> None:
    path = f"/usage?bucket=total&by=key&by=model&order={order}"
    whole = traffic.office.admin("GET", path).json["rows"]
    measure = {
        "requests": lambda row: row["requests"],
        "tokens": lambda row: row["input"] + row["output"],
        "cost": lambda row: Decimal(row["cost_usd"]),
    }[order]
    values = [measure(row) for row in whole]
    assert sorted(values, reverse=True) == values
    assert len(set(values)) > 1
    assert whole == pages(traffic.office, path, 2)


def test_exchanges_come_latest_first_each_once(traffic: Traffic) -> None:
    rows = pages(traffic.office, "/exchanges?outcome=ok", 4)
    assert sum(one.ok for one in traffic.asked) == len({row["id"] for row in rows}) == len(rows)
    assert sorted(rows, key=lambda row: (row["at"], row["id"]), reverse=True) == rows
    one = traffic.office.admin("GET", f"/exchanges/{rows[0]['id']}").json
    whole = {"attempts", "filters"}
    assert rows[0] == {name: value for name, value in one.items() if name not in whole}
    [attempt] = one["attempts"]
    assert ("echo", "echo", 200, "") == tuple(
        attempt[name] for name in ("upstream", "model", "status", "failure")
    )


def test_filters_hold_together(traffic: Traffic) -> None:
    for one in (traffic.asked[0], traffic.asked[-1]):
        wanted = [a for a in traffic.asked if (a.key, a.model) == (one.key, "one")]
        path = f"key_id={one.key}&model=one&organisation={one.organisation}&user={one.user}"
        told = traffic.office.admin("GET", f"/usage?{path}&team={one.team}").json["totals"]
        assert len(wanted) == told["requests"]
        rows = traffic.office.admin("GET", f"/exchanges?{path}").json["rows"]
        assert len(wanted) == len(rows)
        assert {(one.organisation, one.team, one.user)} == {
            (row["organisation"], row["team"], row["user"]) for row in rows
        }


def test_a_time_before_and_after_has_nothing(traffic: Traffic) -> None:
    now = datetime.now(UTC)
    later, earlier = (now + timedelta(days=1)).date(), (now - timedelta(days=2)).date()
    for query in (f"since={later}&until=9999-01-01", f"since=1970-01-01&until={earlier}"):
        told = traffic.office.admin("GET", f"/usage?{query}").json
        assert ([], 0) == (told["rows"], told["totals"]["requests"])
    whole = traffic.office.admin("GET", "/usage?since=1970-01-01").json["totals"]["requests"]
    assert len(traffic.asked) == whole


# Files


@pytest.mark.parametrize("what", ["usage", "exchanges"])
def test_a_file_has_all_that_the_pages_have(traffic: Traffic, what: str) -> None:
    query = "bucket=total&by=model&by=key" if what == "usage" else "since=1970-01-01"
    rows = pages(traffic.office, f"/{what}?{query}", 3)
    asked = traffic.office.admin("GET", f"/{what}/export?format=jsonl&{query}")
    assert "application/jsonl" == asked.headers["content-type"]
    assert f'attachment; filename="{what}.jsonl"' == asked.headers["content-disposition"]
    lines = [json.loads(line) for line in asked.body.splitlines()]
    flat = [{"at": row["at"], **row["by"], **row} for row in rows] if what == "usage" else rows
    assert lines == [{k: v for k, v in row.items() if k != "by"} for row in flat]
    asked = traffic.office.admin("GET", f"/{what}/export?{query}")
    assert "text/csv; charset=utf-8" == asked.headers["content-type"]
    table = list(csv.DictReader(io.StringIO(asked.body.decode())))
    assert [str(line["model"]) for line in lines] == [
        row["model"].removeprefix("'") for row in table
    ]
    assert list(lines[0]) == list(table[0])
    assert f"'{FORMULA}".encode() in asked.body
    assert f",{FORMULA}".encode() not in asked.body


def test_a_reader_who_leaves_a_file_leaves_nothing_behind(traffic: Traffic) -> None:
    host, _, port = traffic.office.gateway.admin_url.rpartition("//")[2].partition(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"GET /admin/api/exchanges/export HTTP/1.1\r\nhost: x\r\n"
                b"authorization: Bearer %b\r\n\r\n" % TOKEN.encode()
            )
            client.recv(10)
    until(lambda: traffic.office.admin("GET", "/status").json["running"] == 1 or None)
    assert 200 == traffic.office.admin("GET", "/usage").status


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("by=modl", "query.by.0"),
        ("by=model&by=model", "query.by"),
        ("by=model&by=key&by=team&by=user&by=tag", "query.by"),
        ("bucket=week", "query.bucket"),
        ("order=id;DROP", "query.order"),
        ("since=yesterday", "query.since"),
        ("since=2026-13-01", "query.since"),
        ("since=2026-02-01&until=2026-01-01", "query.since"),
        ("limit=0", "query.limit"),
        ("limit=1001", "query.limit"),
        ("modell=x", "query.modell"),
        ("model=%0a", "query.model"),
        ("model=" + "x" * 201, "query.model"),
        ("cursor=!", "query.cursor"),
        ("cursor=e30", None),
    ],
)
def test_W6_a_question_that_is_none_is_told_where(
    traffic: Traffic, query: str, param: str | None
) -> None:
    asked = traffic.office.admin("GET", f"/usage?{query}")
    error = asked.json["error"]
    assert (422, param) == (asked.status, error["param"]), error


HOSTILE = ["'", "' OR 1=1 --", "%25", "_", "%5C", "1;SELECT", "😀", "%E2%80%AE", "NULL", "\\x00"]


@pytest.mark.parametrize("value", HOSTILE)
def test_W6_whatever_is_asked_for_is_a_value(traffic: Traffic, value: str) -> None:
    from urllib.parse import quote

    value = value if value.startswith("%") else quote(value)
    began = time.monotonic()
    for name in ("model", "upstream", "key_id", "team", "user", "organisation", "tag", "search"):
        asked = traffic.office.admin("GET", f"/usage?{name}={value}")
        assert (200, 0) == (asked.status, asked.json["totals"]["requests"]), (name, asked.body)
    assert time.monotonic() - began < 60


# Words


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0"), (1, "0.000000001"), (13_500, "0.0000135"), (1_000_000_000, "1"),
     (12_345_678_901, "12.345678901"), (-500_000_000, "-0.5"), (10**18, "1000000000")],
)  # fmt: skip
def test_dollars_survive(nanos: int, text: str) -> None:
    assert text == dollars(nanos)
    assert Decimal(nanos) / 10**9 == Decimal(text)


def test_no_cell_is_a_formula() -> None:
    begins = ("=", "+", "-", "@", "\t", "\r")
    for begin, rest in itertools.product(begins, ("", "1+1", "cmd|' /C calc'!A0")):
        assert f"'{begin}{rest}" == cell(begin + rest)
    assert ["", 0, 7, "a=b"] == [cell(value) for value in (None, False, 7, "a=b")]
