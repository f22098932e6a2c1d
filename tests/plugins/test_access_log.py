"""One line an exchange: what it says, and what it never says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from passy_proxy import Exchange, Principal
from passy_proxy.testing import Answer, Bench, Filter, Recorded, ScriptedUpstream

pytestmark = pytest.mark.anyio

CONFIGURATION = """
upstreams:
  echo: {{kind: echo}}
  one: {{dialect: openai, url: "{url}/v1", credential: sk-canary-upstream}}
  shut: {{dialect: openai, url: "http://127.0.0.1:1/v1"}}
models: {{m: {{targets: [one/m], fallback_on: []}}, second: [shut/x, one/m]}}
chains:
  default:
    - access_log: {{format: {format}}}
    - given
    - alias
    - breaker
    - fallback: {{retries: 0}}
routes: [{{match: POST /v1/chat/completions}}]
"""
PRINCIPAL = Principal("key_a", "Ada", "acme")


class Given(Filter):
    name = "given"
    provides = frozenset({"principal"})


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as scripted:
        yield scripted


class Log:
    """Runs exchanges and reads back their lines, which are written when the filter stops."""

    def __init__(self, upstream: ScriptedUpstream, capfd: pytest.CaptureFixture[str]) -> None:
        self._upstream = upstream
        self._capfd = capfd

    async def text(self, *bodies: dict[str, object], format: str = "json", **more: Any) -> str:
        self._capfd.readouterr()
        text = CONFIGURATION.format(url=self._upstream.url, format=format)
        async with Bench(text, filters=[Given]) as bench:
            for body in bodies:
                ex = bench.exchange({"messages": [], **body}, principal=PRINCIPAL, **more)
                await self.run(ex)
        return self._capfd.readouterr().out

    async def run(self, ex: Exchange) -> None:
        await ex.route.chain.run(ex)

    async def line(self, **body: object) -> dict[str, Any]:
        [line] = (await self.text(body)).splitlines()
        fields: dict[str, Any] = json.loads(line)
        return fields


@pytest.fixture
def log(upstream: ScriptedUpstream, capfd: pytest.CaptureFixture[str]) -> Log:
    return Log(upstream, capfd)


async def test_an_answer_is_one_line_of_json(log: Log, upstream: ScriptedUpstream) -> None:
    upstream.chat("one two")
    line = await log.line(model="m")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line.pop("request_id").startswith("req_")
    assert 0 < line.pop("first_ms") <= line.pop("ms") < 60_000
    assert {
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "ok",
        "key": "key_a",
        "organisation": "acme",
        "model": "m",
        "stream": False,
        "upstream": "one/m",
        "attempts": 1,
        "flags": "",
        "input": 9,
        "output": 2,
        "estimated": False,
    } == line


async def test_neither_keys_nor_contents_are_logged(log: Log, upstream: ScriptedUpstream) -> None:
    upstream.chat("canary-answer")
    text = await log.text(
        {"model": "m", "messages": [{"role": "user", "content": "canary-prompt"}]},
        headers=((b"authorization", b"Bearer sk-passy-canary"), (b"cookie", b"canary-cookie")),
    )
    assert 1 == len(text.splitlines())
    assert "canary" not in text


FATES: dict[str, tuple[str, Answer | None, int, str, str]] = {
    "unknown": ("unheard-of", None, 404, "model_not_found", "LR"),
    "second": ("second", Answer(pieces=[b"{}"]), 200, "ok", "UC,FB"),
    "refused": ("m", Answer(500, pieces=[b"{}"]), 500, "upstream_status", ""),
    "cut": ("m", Answer(headers=(), cut=True), 502, "upstream_error", "UC,LR"),
}


@pytest.mark.parametrize("fate", FATES)
async def test_flags_tell_what_went_otherwise(
    log: Log, upstream: ScriptedUpstream, fate: str
) -> None:
    model, answer, status, outcome, flags = FATES[fate]
    if answer:
        upstream.then(answer)
    line = await log.line(model=model)
    assert (status, outcome, flags) == (line["status"], line["outcome"], line["flags"])


async def test_a_target_that_was_passed_over_is_flagged_and_no_attempt(
    log: Log, upstream: ScriptedUpstream
) -> None:
    upstream.chat()
    text = await log.text(*[{"model": "second"}] * 6)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    told = [(line["attempts"], line["flags"]) for line in lines]
    assert [(2, "UC,FB")] * 5 + [(1, "UO,FB")] == told


async def test_a_client_that_left_is_a_499(
    log: Log, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.then(Answer(delay=30))

    async def leaving(ex: Exchange) -> None:
        running = asyncio.create_task(ex.route.chain.run(ex))
        await upstream.seen()
        assert isinstance(ex.downstream, Recorded)
        ex.downstream.leave()
        await running

    monkeypatch.setattr(log, "run", leaving)
    line = await log.line(model="m")
    assert (499, "client_gone", "DC", None) == (
        line["status"],
        line["outcome"],
        line["flags"],
        line["first_ms"],
    )


async def test_a_clients_own_retries_are_told(log: Log, upstream: ScriptedUpstream) -> None:
    upstream.chat()
    for count, told in ((b"2", "2"), (b"0", None), (b"\xff\n", "\ufffd\n")):
        text = await log.text({"model": "m"}, headers=((b"x-stainless-retry-count", count),))
        [line] = text.splitlines()
        assert told == json.loads(line).get("client_retry")


async def test_a_name_of_any_length_and_kind_stays_one_short_line(log: Log) -> None:
    names = ["x" * 1_000_000, "a\nb\r\nc\x1b[2J", "\u2028\u202e", '"},{"status":1']
    bodies = [{"model": name} for name in names]
    lines = (await log.text(*bodies)).split("\n")
    assert len(names) + 1 == len(lines)
    assert [name[:200] for name in names] == [json.loads(line)["model"] for line in lines[:-1]]


async def test_a_line_that_cannot_be_said_silences_no_other(
    log: Log,
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream.chat()
    keys = ["key_a", "key_\ud800", "key_b"]

    async def run(ex: Exchange) -> None:
        ex.principal = Principal(keys[len(upstream.requests)])
        await ex.route.chain.run(ex)

    monkeypatch.setattr(log, "run", run)
    text = await log.text(*[{"model": "m"}] * 3)
    assert ["key_a", "key_b"] == [json.loads(line)["key"] for line in text.splitlines()]
    assert [1] == [int(said.split()[0]) for said in caplog.messages if "dropped" in said]


async def test_people_get_a_line_in_colour_that_no_client_can_spoil(
    log: Log, upstream: ScriptedUpstream
) -> None:
    upstream.chat("one two")
    good, bad = (
        await log.text({"model": "m"}, {"model": "a\x1b[2Jb\nc"}, format="pretty")
    ).splitlines()
    plain = re.sub(r"\x1b\[\d+m", "", good)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d 200 POST /v1/chat/completions m → one/m · 9 in, 2 out · \d+ ms", plain
    )
    assert "\x1b[32m200" in good
    assert "\x1b[33m404" in bad
    assert "\x1b[2J" not in bad
    assert bad.endswith("[LR]")
