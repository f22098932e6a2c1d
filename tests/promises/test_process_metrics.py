"""What a gateway counts: rightly, over all workers, and never by a client's words."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import string
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from harness.again import spared
from harness.figures import Note
from harness.gateway import Gateway, Serve, until

CONFIGURATION = """
overload: {loop_lag: 0s}
stores: {books: {kind: sql, url: "sqlite:///books.db"}}
upstreams: {echo: {kind: echo, models: [echo]}}
models: {known: [echo/echo], "wild-*": [echo/echo], refused: ["echo/echo:429"]}
chains: {default: [access_log, metrics, usage: {ledger: books}, alias, fallback]}
routes:
  - {match: POST /v1/chat/completions}
  - {match: GET /metrics, chain: [metrics_page: {public: true}]}
  - {match: GET /closed, chain: [metrics_page]}
  - {match: GET /token, chain: [metrics_page: {token: a-token-of-some-length-0123456789}]}
"""
CHAT = "/v1/chat/completions"
SAMPLE = re.compile(r'^(passy_\w+?)(\{(?:\w+="[^"\n]*",?)+\})? (\d+(?:\.\d+)?(?:e-\d+)?)$')


@pytest.fixture(scope="module")
def gateway(serve: Serve) -> Iterator[Gateway]:
    gateway = serve(CONFIGURATION, "--workers", "2", start=False)
    gateway.start()
    yield gateway
    assert 0 == gateway.stop()


def page(gateway: Gateway) -> dict[str, float]:
    """Sample → value; each line is as it has to be."""
    asked = gateway.ask("/metrics")
    assert (200, "text/plain; version=0.0.4; charset=utf-8") == (
        asked.status,
        asked.headers["content-type"],
    )
    samples: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in asked.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            found = SAMPLE.match(line)
            assert found, line
            name, labels, value = found.groups()
            family = re.sub("_(bucket|sum|count)$", "", name)
            assert name in kinds or "histogram" == kinds[family], line
            assert f"{name}{labels}" not in samples
            samples[f"{name}{labels or ''}"] = float(value)
    return samples


def total(samples: dict[str, float], name: str, *labels: str) -> float:
    """The sum over all series of a metric that have the labels."""
    return sum(
        value
        for sample, value in samples.items()
        if sample.partition("{")[0] == name and all(label in sample for label in labels)
    )


def ask(connection: http.client.HTTPConnection, model: str, stream: bool = False) -> int:
    messages = [{"role": "user", "content": "hello"}]
    body = json.dumps({"model": model, "messages": messages, "stream": stream})
    try:
        connection.request("POST", CHAT, body, {"content-type": "application/json"})
        answer = connection.getresponse()
    except (ConnectionResetError, BrokenPipeError):  # A busy gateway closes idle connections.
        connection.close()
        connection.request("POST", CHAT, body, {"content-type": "application/json"})
        answer = connection.getresponse()
    answer.read()
    return answer.status


def test_O7_all_workers_are_counted_once_and_a_count_never_falls(gateway: Gateway) -> None:
    until(lambda: True if 2 == page(gateway).get("passy_configuration_current") else None)
    before = page(gateway)
    kept = [http.client.HTTPConnection(gateway.url[7:], timeout=90) for _ in range(16)]
    for connection in kept:
        with closing(connection):
            for stream in (False, True, True):
                assert 200 == ask(connection, "known", stream)
            assert 429 == ask(connection, "refused")
    # What one worker says of another is a second old at most.
    labels = ('model="known"', 'upstream="echo"', 'status="2xx"', 'outcome="ok"')
    count = total(before, "passy_requests_total", *labels) + 48

    def counted() -> dict[str, float] | None:
        samples = page(gateway)
        answered = total(samples, "passy_requests_total", *labels)
        refused = total(samples, "passy_requests_total", 'model="refused"', 'status="4xx"')
        return samples if (count, 16) == (answered, refused) else None

    samples = until(counted)
    assert count == total(samples, "passy_request_duration_seconds_count", *labels)
    assert count == total(samples, "passy_request_duration_seconds_bucket", *labels, 'le="+Inf"')
    first = "passy_first_byte_seconds_count"
    assert 32 == total(samples, first, *labels) - total(before, first, *labels)  # of streams
    assert 0 < total(samples, "passy_tokens_total", 'model="known"', 'kind="output"')
    assert 2 == samples["passy_configuration_current"]

    children = f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children"
    with open(children) as file:
        victim = int(file.read().split()[0])
    os.kill(victim, signal.SIGKILL)
    until(lambda: True if 1 <= total(page(gateway), "passy_worker_restarts_total") else None)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        after = page(gateway)
        fallen = [
            sample
            for sample, value in samples.items()
            if "_total" in sample and after.get(sample, 0) < value
        ]
        assert [] == fallen
        time.sleep(0.05)


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.large)])
def test_O7_no_word_of_a_client_becomes_a_label(gateway: Gateway, count: int, figure: Note) -> None:
    dice = random.Random(7)
    letters = string.ascii_letters + string.digits + '-_./:{}"\\\n\x00é\u2028 '

    def word() -> str:
        return "".join(dice.choices(letters, k=dice.randint(1, 40)))

    def storm(connection: http.client.HTTPConnection, requests: int) -> None:
        for number in range(requests):
            model = (word, lambda: "wild-" + word(), lambda: "echo/" + word(), lambda: "known")[
                number % 4
            ]()
            ask(connection, model, stream=number % 8 == 0)
            if number % 50 == 0:
                connection.close()
                connection.request(
                    "".join(dice.choices(string.ascii_uppercase, k=6)),
                    "/" + "".join(dice.choices(string.ascii_letters, k=9)),
                    headers={"x-request-id": "".join(dice.choices(string.ascii_letters, k=20))},
                )
                connection.getresponse().read()
                connection.close()

    with closing(http.client.HTTPConnection(gateway.url[7:], timeout=90)) as connection:
        storm(connection, 400)
        time.sleep(1.2)
        until(lambda: total(page(gateway), "passy_requests_total", 'model="other"') or None)
        until(lambda: total(page(gateway), "passy_requests_total", 'model="wild-*"') or None)
        before = page(gateway)

        def grown_by() -> int:
            began = memory(gateway)
            storm(connection, count)
            time.sleep(1.2)
            return memory(gateway) - began

        # What an allocator takes in advance it takes once, words that are kept grow each time.
        grown = spared(grown_by, lambda grown: grown < 16 * 1024, 4)
        after = page(gateway)
    # Every value of a label is one of the configuration's, or of a few that the gateway has. More
    # of those may be seen by chance, as on a busy machine.
    values: dict[str, set[str]] = {}
    for label, value in re.findall(r'(\w+)="([^"]*)"', "\n".join(after)):
        values.setdefault(label, set()).add(value)
    assert values["model"] <= {"known", "wild-*", "other", "echo", "none", "refused"}
    assert values["upstream"] <= {"echo", "none"}
    assert values["status"] <= {"2xx", "4xx", "5xx", "none"}
    assert all(re.fullmatch("[a-z_]+", outcome) for outcome in values["outcome"])
    assert len(values["outcome"]) <= 10, values["outcome"]
    figure("models; samples before, after", f"{count}; {len(before)}, {len(after)}")
    figure("memory grown (KiB)", grown)
    assert grown < 16 * 1024


def memory(gateway: Gateway) -> int:
    """KiB of all workers."""
    children = f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children"
    with open(children) as file:
        pids = file.read().split()
    kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/status") as file:
            kib += int(re.findall(r"VmRSS:\s+(\d+)", file.read())[0])
    return kib


def test_O7_the_page_is_not_for_everybody(gateway: Gateway) -> None:
    closed = gateway.ask("/closed")
    assert (403, "metrics_disabled") == (closed.status, closed.json["error"]["code"])
    wrong = gateway.ask("/token", authorization="Bearer another-token-of-length-0123456789")
    assert (401, "invalid_metrics_token") == (wrong.status, wrong.json["error"]["code"])
    assert (
        200
        == gateway.ask("/token", authorization="Bearer a-token-of-some-length-0123456789").status
    )


def test_O7_the_page_can_be_asked_for_under_load(gateway: Gateway) -> None:
    stop = threading.Event()

    def load() -> None:
        with closing(http.client.HTTPConnection(gateway.url[7:], timeout=90)) as connection:
            while not stop.is_set():
                ask(connection, "known")

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        before = total(page(gateway), "passy_requests_total")
        for _ in range(20):
            page(gateway)
            time.sleep(0.02)
        # Of the others it knows what they published last, so it may only ever be late.
        until(lambda: total(page(gateway), "passy_requests_total") > before or None)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
