"""Whatever upstreams do: what the client gets, what the books say, how often anybody was asked."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from harness.catalogue import cases, entries
from harness.client import Answer, Told, send
from harness.upstream import Hit, RawUpstream, Step, black_hole, refusing, slamming

if TYPE_CHECKING:
    from harness.figures import Note
    from harness.gateway import Gateway, Serve

CASES = {case["name"]: case for case in entries("upstream-faults")}
SLACK = 20.0
"""Seconds beyond those stated: machines of CI are noisy. The large run tells the strict figure."""

CONFIGURATION = """
stores: {{books: {{kind: sql, url: "sqlite:///.passy/passy.db"}}}}
upstreams:
{upstreams}
models:
{models}
chains:
  default:
    - usage: {{ledger: books}}
    - alias
    - fallback: {{retries: 0}}
routes:
  - {{match: POST /v1/chat/completions}}
"""
HELLO = '"messages":[{"role":"user","content":"hello"}]'
JSON = (
    '{"id":"b","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"from b"},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
CHUNK = (
    '{"id":"b","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    '"delta":{"content":"from b"},"finish_reason":"stop"}]}'
)
WELL: dict[str, Sequence[Step]] = {
    "plain": [
        {
            "send": "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            f"content-length: {len(JSON)}\r\n\r\n{JSON}"
        }
    ],
    "stream": [
        {
            "send": "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            "transfer-encoding: chunked\r\n\r\n"
        },
        {"chunk": f"data: {CHUNK}\n\n"},
        {"chunk": "data: [DONE]\n\n"},
        {"send": "0\r\n\r\n"},
    ],
}
SLOWLY: Sequence[Step] = [
    WELL["stream"][0],
    *[step for _ in range(20) for step in ({"chunk": f"data: {CHUNK}\n\n"}, {"wait": 0.02})],
    *WELL["stream"][2:],
]


@dataclass
class Played:
    """One request and its answer."""

    case: dict[str, Any]
    mode: str
    """``plain`` or ``stream``."""
    alias: str
    """``alone`` or ``both``: whether somebody else could answer."""
    mark: str
    """What its requests are known by, upstream too."""
    told: Told
    asked: list[int] = field(default_factory=list)
    """How often each of the two upstreams was."""
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> Answer:
        assert self.told.data, f"{self}: nothing, {self.told.end} after {self.told.seconds:.1f} s"
        return self.told.answer("POST")

    @property
    def id(self) -> str:
        return self.answer.headers["x-request-id"]

    @property
    def answered(self) -> bool:
        """Whether the second upstream is to answer."""
        return self.alias == "both" and self.case["both"] == "answered"

    def __str__(self) -> str:
        return f"{self.case['name']}, {self.mode}, {self.alias}"


class Stage:
    """A gateway in front of an upstream that does as a case says, and one that is well."""

    def __init__(self, serve: Serve, stack: ExitStack) -> None:
        self._count = 0
        self._lock = threading.Lock()
        self.first = stack.enter_context(RawUpstream(script=self.script))
        self.second = stack.enter_context(RawUpstream(script=lambda hit: WELL[said(hit)[1]]))
        urls = {
            "a": self.first.url,
            "hasty": self.first.url,
            "stalled": self.first.url,
            "b": self.second.url,
            "refused": stack.enter_context(refusing()),
            "hole": stack.enter_context(black_hole()),
            "slamming": stack.enter_context(slamming()),
        }
        # Only where time is to run out there is little of it.
        # And no connection is used twice: what is different then is the table of replays' matter.
        little = {"hasty": "first_byte", "stalled": "idle", "hole": "connect"}
        limits = {
            name: f"keep_alive: 0s, timeouts: {{{timer}: {500 if name == 'hole' else 700}ms}}"
            for name, timer in little.items()
        }
        upstreams = [
            f'  {n}: {{dialect: openai, url: "{url}/v1", {limits.get(n, "keep_alive: 0s")}}}'
            for n, url in urls.items()
        ]
        models = [f"  {n}-alone: [{n}/m]\n  {n}-both: [{n}/m, b/m]" for n in urls]
        self.gateway: Gateway = serve(
            CONFIGURATION.format(upstreams="\n".join(upstreams), models="\n".join(models))
        )

    @staticmethod
    def script(hit: Hit) -> Sequence[Step]:
        name, mode, _ = said(hit)
        if name == "background":
            return SLOWLY
        case = CASES[name]
        steps: Sequence[Step] = case.get(mode) or case["steps"]
        return steps

    def play(self, case: dict[str, Any], mode: str, alias: str) -> Played:
        """Ask once, on a connection of its own."""
        with self._lock:
            self._count += 1
            mark = f"{case['name']};{mode};{self._count}"
        asked = f'{{"model":"{case.get("upstream", "a")}-{alias}",{HELLO}'
        asked += ',"stream":true}' if mode == "stream" else "}"
        told = send(
            self.gateway.url,
            (
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                f"content-type: application/json\r\nuser-agent: {mark}\r\n"
                f"content-length: {len(asked)}\r\n\r\n{asked}"
            ).encode(),
            quiet=90.0,
            patience=90.0,
        )
        return Played(case, mode, alias, mark, told)

    def enter_hits(self, plays: Sequence[Played]) -> None:
        """What the ledgers of the upstreams say of each."""
        firsts = [play.mark for play in plays if play.case.get("hits", 1)]
        # Who was given up in time may yet have to read what it was asked.
        with suppress(AssertionError):  # Whose it is that is missing is told by `check_hits`.
            self.first.until(lambda: {named(hit) for hit in self.first.hits}.issuperset(firsts))
        ledgers = [Counter(map(named, upstream.hits)) for upstream in (self.first, self.second)]
        for play in plays:
            play.asked = [ledger[play.mark] for ledger in ledgers]

    def enter_records(self, plays: Sequence[Played]) -> None:
        """What the books say of each, once they say it."""
        wanted = {play.id: play for play in plays}
        assert len(plays) == len(wanted)
        end = time.monotonic() + 90
        while True:
            with closing(sqlite3.connect(self.gateway.folder / ".passy/passy.db")) as books:
                books.row_factory = sqlite3.Row
                rows = [dict(row) for row in books.execute("SELECT * FROM usage")]
            found = [row for row in rows if row["id"] in wanted]
            if len(found) >= len(wanted):
                break
            assert time.monotonic() < end, f"{len(found)} of {len(wanted)} records"
            time.sleep(0.05)
        assert len(found) == len(wanted), "an exchange has two records"
        for row in found:
            wanted[row["id"]].record = {**row, "attempts": json.loads(row["attempts"])}


def named(hit: Hit) -> str:
    return hit.header("user-agent") or ""


def said(hit: Hit) -> list[str]:
    return named(hit).split(";")


def modes(case: dict[str, Any]) -> list[str]:
    """As what it is asked for: as either, unless its steps are for one."""
    named = [mode for mode in ("plain", "stream") if mode in case]
    return named or ["plain", "stream"]


def plays_of(stage: Stage, times: int, workers: int) -> list[Played]:
    jobs = [
        (case, mode, alias)
        for _ in range(times)
        for case in CASES.values()
        for mode in modes(case)
        for alias in ("alone", "both")
    ]
    with ThreadPoolExecutor(workers) as pool:
        plays = list(pool.map(lambda job: stage.play(*job), jobs))
    stage.enter_hits(plays)
    stage.enter_records(plays)
    return plays


@pytest.fixture(scope="module")
def stage(serve: Serve) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(serve, stack)


@pytest.fixture(scope="module")
def played(stage: Stage) -> dict[str, list[Played]]:
    """Every case, as often as it can be asked for."""
    found: dict[str, list[Played]] = {name: [] for name in CASES}
    for play in plays_of(stage, 1, 12):
        found[play.case["name"]].append(play)
    return found


def test_there_are_as_many_cases_as_promised() -> None:
    assert len(CASES) >= 42


# What is expected of one play


def check_answer(play: Played) -> None:
    case, answer = play.case, play.answer
    if play.answered:
        assert (200, True) == (answer.status, answer.whole)
        assert b"from b" in answer.body
        assert ("b/m", "2") == (
            answer.headers["x-passy-upstream"],
            answer.headers["x-passy-attempts"],
        )
        return
    assert case["status"] == answer.status, answer.body[:500]
    assert "1" == answer.headers["x-passy-attempts"]
    end = case.get("end", "whole")
    assert (end != "cut") == answer.whole, (play.told.end, answer.body[:500])
    if end in ("done", "error_event"):
        last = answer.body.rstrip().rpartition(b"\n\n")[2]
        assert (end == "done") == (b"data: [DONE]" == last), answer.body
        assert (end == "error_event") == (b'"error":' in answer.body)
        assert (end == "done") == (b"[DONE]" in answer.body)
    if answer.status >= 400:
        error = json.loads(answer.body)["error"]
        assert case["code"] == (error["code"] or ""), error
        assert error["message"]
        assert "application/json" == answer.headers["content-type"]
    for name, value in case.get("passes", {}).items():
        assert value == answer.headers[name]


def check_record(play: Played) -> None:
    case, record = play.case, play.record
    attempts = record["attempts"]
    name = case.get("upstream", "a")
    assert [[name, "m"], ["b", "m"]][: 1 + play.answered] == [each[:2] for each in attempts]
    assert play.answer.status == record["status"]
    assert ("ok" if play.answered else case["outcome"]) == record["outcome"]
    _, _, status, why, began, head, billed, *_ = attempts[0]
    kind = why.partition(":")[0]
    assert kind in case["failure"].split("|"), why
    assert began <= began + head
    if "billed" in case:
        assert case["billed"] == billed
    if case["failure"] == "status" or not case["failure"]:
        assert status
    if play.answered:
        assert (200, "", False) == (attempts[1][2], attempts[1][3], attempts[1][6])
    elif case["outcome"] == "ok":
        assert case.get("estimated", False) == bool(record["estimated"])


def check_hits(play: Played) -> None:
    assert [play.case.get("hits", 1), int(play.answered)] == play.asked


def check_time(play: Played, slack: float) -> None:
    assert play.told.seconds <= play.case.get("within", 0) + slack


@pytest.mark.parametrize("case", cases("upstream-faults"))
def test_U1_the_client_gets_what_is_stated_in_time(
    played: dict[str, list[Played]], case: dict[str, Any]
) -> None:
    for play in played[case["name"]]:
        check_answer(play)
        check_time(play, SLACK)


@pytest.mark.parametrize("case", cases("upstream-faults"))
def test_U1_M8_one_record_holds_each_attempt_and_whether_it_may_be_billed(
    played: dict[str, list[Played]], case: dict[str, Any]
) -> None:
    for play in played[case["name"]]:
        check_record(play)


@pytest.mark.parametrize("case", cases("upstream-faults"))
def test_U1_U4_nobody_is_asked_more_often_than_stated(
    played: dict[str, list[Played]], case: dict[str, Any]
) -> None:
    for play in played[case["name"]]:
        check_hits(play)


@pytest.mark.large
def test_U1_each_fifty_times_beside_twenty_streams(stage: Stage, figure: Note) -> None:
    stop = threading.Event()
    streams: list[Told] = []

    def listen() -> None:
        background = {"name": "background", "both": "same"}
        while not stop.is_set():
            streams.append(stage.play(background, "stream", "alone").told)

    listeners = [threading.Thread(target=listen) for _ in range(20)]
    for listener in listeners:
        listener.start()
    try:
        plays = plays_of(stage, 50, 16)
    finally:
        stop.set()
        for listener in listeners:
            listener.join()
    for play in plays:
        try:
            check_answer(play)
            check_record(play)
            check_hits(play)
        except AssertionError as error:
            raise AssertionError(f"{play}: {error}") from error
    assert all(b"data: [DONE]" in told.data for told in streams)
    late = Counter(
        play.case["name"] for play in plays if play.told.seconds > play.case.get("within", 0) + 0.25
    )
    figure("answers", len(plays))
    figure("streams beside them", len(streams))
    figure("later than stated + 250 ms", late.total())
    assert late.total() <= len(plays) // 100, late
