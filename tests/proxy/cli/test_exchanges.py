"""`passy tail` and `passy request`: what the books say of single requests, in a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.books import enter
from harness.gateway import Gateway, Serve, until
from harness.office import CONFIGURATION, VARIABLES, Office

from passy_proxy import retold
from passy_proxy.records import AttemptRecord, UsageRecord

MODELS = CONFIGURATION.replace(
    "models:\n",
    "models:\n  two: {targets: [echo/echo:500, echo/echo], fallback_on: [5xx]}\n",
)
RECORD = UsageRecord(
    "req_x", 1_795_430_994.913, "", "org_1", "", "", "a,b", "POST /v1/chat/completions",
    "m\x1b[31m", "anthropic", "claude", "ok", 200, True, 1200, 34, 100, 0, 0, 0, 0, False,
    13_500, "p", 900, 2_000,
    (AttemptRecord("openai", "gpt", 429, "status: status 429", 2, 100, False),
     AttemptRecord("azure", "gpt", 0, "ejected: failed 5 times in a row", 103, 0, False),
     AttemptRecord("anthropic", "claude", 200, "", 104, 700, False, 50, 30)),
)  # fmt: skip


@pytest.fixture(scope="module")
def gateway(serve: Serve) -> Gateway:
    return serve(MODELS, **VARIABLES)


def test_requests_are_told_as_they_end_and_each_of_them_is_drawn(
    gateway: Gateway, tmp_path: Path
) -> None:
    office = Office(gateway)
    made = office.made("/keys", {"name": "builds"})
    other = office.made("/keys", {"name": "other"})["key"]
    lines = tmp_path / "lines"
    with lines.open("wb") as file:
        tail = subprocess.Popen(
            [Path(sys.executable).with_name("passy"), "tail", "--json", "--key", "builds",
             "--model", "t*", "--data", "data"],
            cwd=gateway.folder, stdout=file, env=gateway.variables,
        )  # fmt: skip
        try:
            asked: list[str] = []

            def told() -> list[str] | None:
                # Until it listens: from then on none may be missing.
                office.chat(other, "two")
                office.chat(made["key"], "one")
                asked.append(office.chat(made["key"], "two").headers["x-request-id"])
                time.sleep(0.3)
                return lines.read_text().splitlines() or None

            until(told)
            last = office.chat(made["key"], "two").headers["x-request-id"]
            until(lambda: last in lines.read_text() or None)
        finally:
            tail.terminate()
            tail.wait(90)
    shown = [json.loads(line) for line in lines.read_text().splitlines()]
    ids = [one["id"] for one in shown]
    assert ids == [*asked, last][-len(ids) :]
    assert {"two"} == {one["model"] for one in shown}
    whole = gateway.passy("request", last, "--json")
    assert shown[-1] == json.loads(whole.stdout)
    drawn = gateway.passy("request", last).stdout
    assert "echo ✗500" in drawn
    assert "Answered by echo, after one try that failed." in drawn
    assert "key builds" in drawn
    missing = gateway.passy("request", "req_none")
    assert (1, True) == (missing.returncode, "no request req_none" in missing.stderr)
    enter(gateway, RECORD)
    assert "\x1b[31m" not in gateway.passy("request", "req_x").stdout


def test_a_record_in_words_and_in_parts_of_time() -> None:
    assert "openai✗429 → azure✗ejected → anthropic✓" == retold.route(RECORD.attempts)
    assert ("UO", "FB") == retold.flags(RECORD)
    assert "Answered by anthropic, after 2 tries that failed." == retold.meaning(RECORD)
    assert ["failed"] == [part.name for part in retold.parts(RECORD, 0)]
    assert [
        ("queue", 104, 154),
        ("connect", 154, 184),
        ("head", 184, 804),
        ("stream", 804, 2_000),
    ] == [*retold.parts(RECORD, 2)]
    refused = RECORD._replace(outcome="model_not_found", status=404, attempts=())
    assert ("refused", ("LR",)) == (retold.ending(refused), retold.flags(refused))
    assert "Nothing answers to this model" in retold.meaning(refused)
    left = RECORD._replace(outcome="client_gone")
    assert ("left", "DC") == (retold.ending(left), retold.flags(left)[-1])
    assert "its own" in retold.meaning(RECORD._replace(outcome="a_filters_word", status=418))
    broken = RECORD._replace(outcome="interrupted", status=0)
    assert ("failed", True) == (retold.ending(broken), "process ended" in retold.meaning(broken))
