"""W8 at its size: ten thousand tries at passwords, from ten thousand addresses and from one."""

from __future__ import annotations

import itertools
import json
import random
import re
import sqlite3
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import anyio
import pytest
from harness.figures import Note
from harness.gateway import Gateway, Serve
from harness.office import VARIABLES
from harness.portal import CONFIGURATION, PASSWORD, Browser, books, found, joined

from passy_portal.passwords import Passwords

pytestmark = pytest.mark.large

TRIES = 10_000
ACCOUNTS = 300
"""Of each kind, for the times."""
WRONG = "a guess that is wrong"


@pytest.fixture
def gateway(serve: Serve) -> Gateway:
    """Whoever asks may say where from, as behind a proxy."""
    told = json.dumps({"app": "portal", "store": "books", "trusted_proxies": ["127.0.0.1"]})
    return serve(CONFIGURATION.replace("{app: portal, store: books}", told, 1), **VARIABLES)


class Guesser(Browser):
    """Somebody, from wherever they like."""

    def guess(self, email: str, address: str, password: str = WRONG) -> tuple[int, float, str]:
        """Status, seconds, and what the page says."""
        fields = {"email": email, "password": password, "then": ""}
        began = time.perf_counter()
        asked = self.send("/login", fields, x_forwarded_for=address)
        took = time.perf_counter() - began
        page = asked.text.replace(email, "…")
        return asked.status, took, re.sub(r'"[0-9a-f]{64}"|req_\w+|\?v=\w+', "…", page)


def test_W8_ten_thousand_tries_open_nothing_and_keep_nobody_out(
    gateway: Gateway, figure: Note
) -> None:
    owner, _ = found(gateway)
    joined(owner, "bystander@example.com", "viewer")
    known = Browser(gateway)
    assert 303 == known.sign_in("ada@example.com").status
    books(gateway, "DELETE FROM portal_attempts")
    statuses: dict[str, Counter[int]] = {"known": Counter(), "unknown": Counter()}
    emails = {"known": "ada@example.com", "unknown": "nobody@example.com"}
    numbers, lock, done = itertools.count(), threading.Lock(), threading.Event()
    local = threading.local()

    def attack(n: int) -> None:
        if not hasattr(local, "guesser"):
            local.guesser = Guesser(gateway)
            local.guesser.look("/login")
        kind = ("known", "unknown")[n % 2]
        number = next(numbers)
        address = f"198.18.{number >> 8 & 255}.{number & 255}"
        status, _, _ = local.guesser.guess(emails[kind], address)
        with lock:
            statuses[kind][status] += 1

    others: list[tuple[str, int, float]] = []

    def live() -> None:
        """Who has nothing to do with it goes on signing in, from browsers old and new."""
        turns = itertools.count()
        while not done.is_set():
            turn = next(turns)
            for name, email, browser in (
                ("the owner's browser", "ada@example.com", known),
                ("another account", "bystander@example.com", Browser(gateway)),
            ):
                if turn == 0 or name == "another account":
                    browser.look("/login")
                began = time.monotonic()
                if name == "another account":
                    fields = {"email": email, "password": PASSWORD, "then": ""}
                    asked = browser.send(
                        "/login", fields, x_forwarded_for=f"203.0.113.{turn % 250}"
                    )
                else:
                    asked = browser.sign_in(email)
                others.append((name, asked.status, time.monotonic() - began))
            done.wait(0.5)

    began = time.monotonic()
    bystanders = threading.Thread(target=live)
    bystanders.start()
    try:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(attack, range(TRIES)))
    finally:
        done.set()
        bystanders.join()
    took = time.monotonic() - began
    # Five for nothing, some while the wait doubles, then one in 30 s: of each account.
    most = 5 + 6 + took / 30
    for kind in emails:
        assert {401, 429} == set(statuses[kind]), statuses
        assert statuses[kind][401] <= most, (statuses, took)
    assert abs(statuses["known"][401] - statuses["unknown"][401]) <= 2
    # And nobody else has noticed.
    assert {303} == {status for _, status, _ in others}, Counter(others)
    figure("tries", f"{TRIES} in {took:.0f} s")
    figure("passwords that were looked at", statuses["known"][401] + statuses["unknown"][401])
    slow = sorted(seconds for _, _, seconds in others)
    figure("others who signed in meanwhile", f"{len(others)}, median {slow[len(slow) // 2]:.2f} s, longest {slow[-1]:.2f} s")  # fmt: skip  # noqa: E501


def test_W8_an_address_is_left_with_few_of_ten_thousand(gateway: Gateway, figure: Note) -> None:
    found(gateway)
    guesser = Guesser(gateway)
    guesser.look("/login")
    began = time.monotonic()
    # A /64 of IPv6 is one place, whatever comes after.
    said = Counter(
        guesser.guess(f"user{n}@example.com", f"2001:db8:0:1::{n:x}")[0] for n in range(TRIES)
    )
    took = time.monotonic() - began
    assert {401, 429} == set(said)
    assert said[401] <= 20 + 10 + took / 900, said
    figure("passwords that were looked at", said[401])
    figure("a refusal", f"{took / TRIES * 1000:.1f} ms")


def test_W8_who_is_there_cannot_be_told_by_time_or_text(gateway: Gateway, figure: Note) -> None:
    """Each e-mail is tried once, from an address of its own, the kinds in a random order."""
    found(gateway)
    hashed = anyio.run(Passwords().hash, PASSWORD)
    now = int(time.time() * 1000)
    names = [f"person{n}@example.com" for n in range(ACCOUNTS)]
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db", timeout=90)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(users)")]
        template = dict(zip(columns, connection.execute("SELECT * FROM users").fetchone(), strict=True))  # fmt: skip  # noqa: E501
        for n, email in enumerate(names):
            row = template | {"id": f"user_guessed{n}", "email": email}
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO users ({', '.join(row)}) VALUES ({marks})", [*row.values()])  # fmt: skip  # noqa: E501
            connection.execute("INSERT INTO portal_passwords VALUES (?, ?, ?)", (row["id"], hashed, now))  # fmt: skip  # noqa: E501
        connection.commit()
    tried = [(email, True) for email in names]
    tried += [(f"absent{n}@example.com", False) for n in range(ACCOUNTS)]
    random.Random(8).shuffle(tried)
    guesser = Guesser(gateway)
    guesser.look("/login")
    for n in range(20):
        guesser.guess(f"warm{n}@example.com", f"198.19.0.{n}")
    times: dict[bool, list[float]] = {True: [], False: []}
    texts = set()
    for n, (email, there) in enumerate(tried):
        status, took, text = guesser.guess(email, f"198.18.{n >> 8}.{n & 255}")
        assert 401 == status
        times[there].append(took)
        texts.add(text)
    assert 1 == len(texts)
    medians = {there: statistics.median(each) for there, each in times.items()}
    difference = abs(medians[True] - medians[False])
    # What chance makes of the same numbers, when who is there is drawn by lot.
    dice, mixed = random.Random(9), times[True] + times[False]
    chance = []
    for _ in range(500):
        dice.shuffle(mixed)
        chance.append(
            abs(statistics.median(mixed[:ACCOUNTS]) - statistics.median(mixed[ACCOUNTS:]))
        )
    noise = sorted(chance)[int(len(chance) * 0.998)]
    figure("median", f"{medians[True] * 1000:.2f} ms known, {medians[False] * 1000:.2f} ms unknown")
    figure("difference", f"{difference * 1e6:.0f} µs, of which chance makes {noise * 1e6:.0f} µs")
    assert difference <= noise
