"""``passy usage`` says what the records say, to people and to programs."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from passy_plugins.commands.usage import command, spark
from passy_plugins.stores.sql import Sql, SqlSettings
from passy_proxy.config.settings import Secret
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord
from passy_proxy.site import Site

KEY = "the secret key of these tests: 0123456789"
NOW = time.time()
RECORD = UsageRecord(
    *("req_0", NOW, "key_1", "org_1", "team_1", "user_1", "a,b", "POST /v1/x", "m", "u", "m"),
    *("ok", 200, False, 10, 20, 1, 2, 3, 4, 5, False, 700_000_000, "p", 120, 200, ()),
)
RECORDS = [
    RECORD._replace(
        id=f"req_{n}",
        at=NOW - n % 5 * 86_400,
        model=("small", "large", "\x1b[31mred")[n % 3],
        status=(200, 429)[n % 4 == 1],
        cost_nanos=None if n % 3 == 2 else 700_000_000 + n,
    )
    for n in range(60)
]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("usage")

    async def write() -> None:
        site = Site(folder, Keyring([KEY]))
        store = Sql(SqlSettings(url=Secret(f"sqlite:///{folder}/passy.db")), site)
        await store.start()
        for record in RECORDS:
            store.record(record.row())
        await store.stop()

    asyncio.run(write())
    return folder


def asked(books: Path, *arguments: str) -> Result:
    place = ["--url", f"sqlite:///{books}/passy.db", "--data", str(books)]
    (books / "gateway.yaml").write_text("{}")
    place += ["--config", str(books / "gateway.yaml")]
    variables = {"PASSY_SECRET_KEYS": KEY, "COLUMNS": "120"}
    return CliRunner().invoke(command, [*place, *arguments], env=variables)


def summed(model: str) -> list[UsageRecord]:
    return [record for record in RECORDS if record.model == model]


def test_a_program_is_told_all_of_it(books: Path) -> None:
    told: dict[str, Any] = json.loads(asked(books, "--json").stdout)
    assert (len(RECORDS), "day") == (told["totals"]["requests"], told["unit"])
    assert {"small", "large", "\x1b[31mred"} == {row["value"] for row in told["rows"]}
    for row in told["rows"]:
        mine = summed(row["value"])
        cost = sum(record.cost_nanos or 0 for record in mine)
        assert len(mine) == row["requests"]
        assert cost == round(float(row["cost_usd"]) * 1e9) == sum(row["line"])
        assert len(told["starts"]) == len(row["line"]) == 7
        assert 100 < row["p50_first_ms"] <= 150
    costs = [float(row["cost_usd"]) for row in told["rows"]]
    assert sorted(costs, reverse=True) == costs
    one = json.loads(asked(books, "--json", "--model", "small", "--status", "429").stdout)
    assert sum(r.status == 429 for r in summed("small")) == one["totals"]["requests"]
    hours = json.loads(asked(books, "--json", "--since", "24h").stdout)
    assert ("hour", 24) == (hours["unit"], len(hours["starts"]))


def test_a_file_has_each_day(books: Path) -> None:
    ran = asked(books, "--csv", "--by", "key", "--order", "requests")
    lines = list(csv.DictReader(io.StringIO(ran.stdout)))
    assert len(RECORDS) == sum(int(line["requests"]) for line in lines)
    assert {"key_1"} == {line["key"] for line in lines}
    assert 5 == len({line["day"] for line in lines})


def test_people_are_shown_a_table_with_a_line_of_each(books: Path) -> None:
    shown = asked(books).stdout
    assert "\x1b" not in shown
    [line] = [line for line in shown.splitlines() if line.strip().startswith("small ")]
    cost = sum(record.cost_nanos or 0 for record in summed("small"))
    assert f"${cost / 1e9:,.2f}" in line
    assert "█" in line
    unpriced = sum(r.cost_nanos is None and r.status == 200 for r in RECORDS)
    assert f"+ {unpriced} requests have no known price" in shown
    assert "… and 2 more: --limit 3" in asked(books, "--limit", "1").stdout
    assert "nothing was asked in this time" in asked(books, "--model", "nobody").stdout


@pytest.mark.parametrize("wrong", [["--since", "soon"], ["--until", "7d"], ["--by", "x"],
                                   ["--since", "2026-02-01", "--until", "2026-01-01"]])  # fmt: skip
def test_what_is_no_time_is_said(books: Path, wrong: list[str]) -> None:
    ran = asked(books, *wrong)
    assert 2 == ran.exit_code
    assert wrong[0] in ran.stderr


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([0, 0], "  "), ([1, 8], "▁█"), ([0, 1, 1000], " ▁█"), ([5] * 96, "█" * 48)],
)
def test_little_is_seen_and_nothing_is_a_space(values: list[int], line: str) -> None:
    assert line == spark(values)
