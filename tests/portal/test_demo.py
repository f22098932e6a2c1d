"""`passy demo`: books that add up, the same for a seed, and never in the midst of others'."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness.gateway import PASSY, Serve
from harness.office import VARIABLES
from harness.portal import CONFIGURATION as PORTAL
from harness.postgres import Server

from passy_portal.demo.cast import ORGANISATION, PEOPLE, WORK
from passy_portal.demo.command import CONFIGURATION, SIGN_IN, known
from passy_portal.demo.stage import market_of
from passy_portal.demo.traffic import DAY, HOUR, Traffic
from passy_proxy.config.document import load
from passy_proxy.config.legacy import layers
from passy_proxy.issue import ROLES
from passy_proxy.records import Usage, UsageRecord

MARKET = market_of(layers(load(CONFIGURATION, {}), {}), "custom-own")
KEYS = {work.name: (f"key {n}", "org", "", "", "") for n, work in enumerate(WORK)}
NOON = 20_000 * DAY + DAY // 2


def made(days: int, seed: int) -> list[UsageRecord]:
    span = (NOON - days * DAY, NOON)
    traffic = Traffic(MARKET, KEYS, seed)
    hours = range(int(span[0]) // HOUR, NOON // HOUR + 1)
    return [record for hour in hours for record in traffic.hour(WORK, hour * HOUR, span)]


class Shown:
    """A demo in a folder of its own, as the command makes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        done = self.passy("demo", "--days", "4", "--json", "--data", str(folder))
        assert 0 == done.returncode, done.stderr
        self.told: dict[str, Any] = json.loads(done.stdout)
        self.place = ("--config", "demo/gateway.yaml", "--data", "demo")

    def passy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PASSY, *arguments], cwd=self.folder, env={"HOME": str(self.folder)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "demo/passy.db")) as books:
            return books.execute(query).fetchall()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(tmp_path_factory.mktemp("demo"))


def test_a_seed_gives_the_same_days_and_another_one_others() -> None:
    assert made(2, 1) == made(2, 1)
    assert [record.id for record in made(2, 1)] != [record.id for record in made(2, 2)]


def test_M1_every_record_is_one_that_a_gateway_could_have_made() -> None:
    records = made(12, 3)
    assert len(records) == len({record.id for record in records})
    for record in records:
        usage = Usage(*record[14:22])
        assert usage.cached + usage.cache_write + usage.audio_input <= usage.input, record
        assert usage.reasoning + usage.audio_output <= usage.output, record
        assert 0 < record.first_ms <= record.duration_ms, record
        last = 0
        for attempt in record.attempts:
            assert last <= attempt.started_ms, record
            last = attempt.started_ms + attempt.head_ms
        assert last <= record.duration_ms, record
        if record.attempts:
            *failed, final = record.attempts
            assert all(attempt.failure for attempt in failed), record
            assert (record.upstream, record.upstream_model) == final[:2], record
            assert bool(final.failure) == (record.outcome not in ("ok", "client_gone")), record
        price = MARKET.price(record.upstream, record.upstream_model)
        answered = record.status == 200
        expected = price.cost(usage) if price and answered else None
        assert expected == record.cost_nanos, record
    outcomes = {record.outcome for record in records}
    assert {"ok", "client_gone", "upstream_broken", "rate_limit_exceeded", "upstream_error"} <= (
        outcomes
    )
    assert any(len(record.attempts) == 2 and record.status == 200 for record in records)
    assert any(record.status == 200 and record.cost_nanos is None for record in records)
    for kind in ("cached", "cache_write", "reasoning", "audio_input", "audio_output"):
        assert any(getattr(record, kind) for record in records), kind


def test_O8_the_demos_sums_are_those_of_its_rows_and_its_books_verify(shown: Shown) -> None:
    names = "count(*), sum(input), sum(output), sum(cached), sum(cost_nanos), sum(duration_ms)"
    summed = names.replace("count(*)", "sum(requests)")
    [rows] = shown.rows(f"SELECT {names} FROM usage")
    for table in ("usage_hours", "usage_days"):
        assert [rows] == shown.rows(f"SELECT {summed} FROM {table}"), table
    assert rows[0] == shown.told["records"] > 1_000
    assert 0 == shown.passy("verify", *shown.place).returncode


def test_the_demo_has_everybody_and_everything_that_pages_show(shown: Shown) -> None:
    assert [(ORGANISATION,)] == shown.rows("SELECT name FROM organisations")
    assert set(ROLES) == {role for (role,) in shown.rows("SELECT role FROM members")}
    assert {(person.email,) for person in PEOPLE} == set(shown.rows("SELECT email FROM users"))
    assert list(ROLES) == list(shown.told["people"])
    states = shown.rows(
        "SELECT sum(disabled), sum(deleted > 0), sum(expires > 0), sum(old_until > 0),"
        " sum(is_test), sum(is_trial) FROM keys"
    )
    assert [(1, 1, 1, 1, 1, 1)] == states
    for table in ("custom_providers", "credentials", "webhooks", "budgets", "teams"):
        [(count,)] = shown.rows(f"SELECT count(*) FROM {table}")
        assert count, table
    moments = [at for (at,) in shown.rows("SELECT at FROM portal_audit ORDER BY seq")]
    assert moments == sorted(moments)
    assert 0o600 == (shown.folder / "demo/sign-in.json").stat().st_mode & 0o777


def test_a_demo_is_not_mixed_with_traffic_unless_somebody_says_so(shown: Shown) -> None:
    before = shown.rows("SELECT count(*) FROM usage")
    done = shown.passy("demo", "--yes", "--days", "1", "--fill", *shown.place)
    assert 1 == done.returncode
    assert "there is traffic in these books" in done.stderr
    assert before == shown.rows("SELECT count(*) FROM usage")
    # What is there is shown, and not made again.
    again = shown.passy("demo", "--json", "--data", str(shown.folder))
    assert shown.told == json.loads(again.stdout)


@pytest.mark.large
def test_a_demo_goes_into_the_books_of_a_configuration_on_postgresql(
    serve: Serve, postgres: Server
) -> None:
    with postgres.database() as made:
        gateway = serve(PORTAL, start=False, **VARIABLES, DATABASE_URL=made.url)
        done = gateway.passy("demo", "--yes", "--json", "--days", "2")
        assert 0 == done.returncode, done.stderr
        told = json.loads(done.stdout)
        verified = gateway.passy("verify")
        assert 0 == verified.returncode, verified.stdout
        assert f"{told['records']} records" in verified.stdout


@pytest.mark.parametrize("left", ["{}", '{"password": "x", "people": {}}', "[]", "half a fi"])
def test_a_demo_of_another_version_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    sign_in = tmp_path / SIGN_IN
    sign_in.write_text(left)
    with pytest.raises(SystemExit) as ended:
        known(sign_in)
    assert 1 == ended.value.code
    assert f"{tmp_path} is of another version of passy" in capsys.readouterr().err
