"""The live tail tells each request once: whoever writes, and whoever comes back."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.books import enter
from harness.figures import Note
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES
from harness.portal import CONFIGURATION, Browser, found, me
from harness.postgres import Server
from harness.tail import Watch

from passy_proxy.records import AttemptRecord, UsageRecord

ATTEMPT = AttemptRecord("echo", "echo", 200, "", 0, 1, False)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def gateway(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Gateway]:
    if request.param == "sqlite":
        yield serve(CONFIGURATION, **VARIABLES)
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as made:
        gateway = serve(CONFIGURATION, **VARIABLES, DATABASE_URL=made.url)
        yield gateway
        assert 0 == gateway.stop()


@pytest.fixture(scope="module")
def owner(gateway: Gateway) -> tuple[Browser, str]:
    return found(gateway)


def record(id: str, organisation: str, model: str) -> UsageRecord:
    return UsageRecord(
        id, time.time(), "key_1", organisation, "", "", "", "POST /v1/chat/completions", model,
        "echo", "echo", "ok", 200, False, 1, 2, 0, 0, 0, 0, 0, False, 7, "p", 1, 2, (ATTEMPT,),
    )  # fmt: skip


def place_of(browser: Browser) -> str:
    place: str = browser.api("GET", "/requests/arrived").json["place"]
    return place


def test_nothing_is_missed_and_nothing_comes_twice(
    gateway: Gateway, owner: tuple[Browser, str]
) -> None:
    """Four writers at once, of whom some are days late; four who watch, of whom three keep coming
    back, and one of those only when half of it is over."""
    browser, _ = owner
    mine = me(browser)["organisation"]
    place = place_of(browser)
    watches = [Watch(browser, {"model": "m"}, place, most) for most in (0, 1, 3)]
    for watch in watches:
        watch.start()
    late = Watch(browser, {"model": "m"}, place, 2)

    def write(name: int) -> list[str]:
        dice, expected = random.Random(name), []
        for batch in range(12):
            records = [
                record(f"req_{name}_{batch}_{n}", dice.choice((mine, "org_other")), model)
                for n, model in enumerate(dice.choices("mm-", k=dice.randrange(1, 30)))
            ]
            if dice.random() < 0.3:
                records = [one._replace(at=one.at - 3 * 86_400) for one in records]
            enter(gateway, *records)
            if name == 0 and batch == 6:
                late.start()
            expected += [r.id for r in records if r.organisation == mine and r.model == "m"]
        return expected

    with ThreadPoolExecutor(4) as threads:
        expected = sorted(id for ids in threads.map(write, range(4)) for id in ids)
    for watch in (*watches, late):
        until(lambda w=watch: len(w.ids) >= len(expected) or None)
        watch.stop()
        assert expected == sorted(watch.ids)
        assert not watch.lost
    assert watches[1].came_back


def test_W2_the_tail_ends_with_its_session(gateway: Gateway, owner: tuple[Browser, str]) -> None:
    browser, _ = owner
    second = Browser(gateway)
    second.sign_in("ada@example.com")
    watch = Watch(second, {}, place_of(second))
    watch.start()
    enter(gateway, record("req_before", me(browser)["organisation"], "m"))
    until(lambda: "req_before" in watch.ids or None)
    second.look("/account")
    assert 303 == second.send("/logout").status
    ended = time.monotonic()
    until(lambda: watch.ended or None)
    assert "session" == watch.ended
    assert time.monotonic() - ended < 25  # It is looked at every two seconds.
    enter(gateway, record("req_after", me(browser)["organisation"], "m"))
    assert ["req_before"] == watch.ids
    watch.stop()
    assert 406 == browser.look("/requests/tail").status


def test_O2_a_gateway_that_ends_waits_for_nobody_who_watches(serve: Serve) -> None:
    gateway = serve(CONFIGURATION, start=False, **VARIABLES)
    gateway.start()
    browser, _ = found(gateway)
    watch = Watch(browser, {}, place_of(browser))
    watch.start()
    enter(gateway, record("req_0", me(browser)["organisation"], "m"))
    until(lambda: watch.ids or None)
    began = time.monotonic()
    assert 0 == gateway.stop()
    assert time.monotonic() - began < 25  # Others have 30 seconds to end.
    watch.stop()


RATE, SECONDS, WATCHING = 200, 30, 5


@pytest.mark.large
def test_200_requests_a_second_are_told_without_falling_behind(
    gateway: Gateway, owner: tuple[Browser, str], figure: Note
) -> None:
    """Real requests through the gateway, and five who watch."""
    browser, key = owner
    place = place_of(browser)
    watches = [Watch(browser, {}, place) for _ in range(WATCHING)]
    for watch in watches:
        watch.start()
    ended: dict[str, float] = {}
    refused: list[bytes] = []
    """By a gateway that has too much to do, on a machine that has."""
    lock, threads = threading.Lock(), 8
    began = time.monotonic()

    def ask(number: int) -> None:
        host = gateway.url.partition("//")[2]
        connection = http.client.HTTPConnection(host, timeout=90)
        body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "hi"}]})
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        for turn in range(RATE * SECONDS // threads):
            due = began + (turn * threads + number) / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            said = answer.read()
            with lock:
                if answer.status == 200:
                    ended[answer.headers["x-request-id"]] = time.monotonic()
                else:
                    refused.append(said[:80])
        connection.close()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, range(threads)))
    rate = len(ended) / (time.monotonic() - began)
    figure("requests a second", rate)
    assert rate > RATE * 0.9, refused[:3]
    for number, watch in enumerate(watches):
        until(lambda w=watch: ended.keys() <= w.at.keys() or None)
        watch.stop()
        assert len(watch.at) == len(watch.ids)
        lags = sorted(watch.at[id] - at for id, at in ended.items())
        last = [watch.at[id] - at for id, at in list(ended.items())[-RATE:]]
        if number == 0:
            figure("seconds behind, median", lags[len(lags) // 2])
            figure("p99", lags[len(lags) * 99 // 100])
            figure("at the end, most", max(last))
        assert max(last) < 3
