"""The portal in a process of its own: on the same database, and in nobody's way."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from harness.gateway import PASSY, PATIENCE, Gateway, Serve, until
from harness.office import CONFIGURATION, TOKEN, VARIABLES, Office
from harness.portal import APART, Apart, Browser, books, found

MARKS = "SELECT name, value FROM marks WHERE name LIKE 'journal:%'"
BEHIND = APART.replace("store: books,", "store: books, trusted_proxies: [127.0.0.1, 10.0.0.0/8],")


@pytest.fixture(scope="module")
def gateway(serve: Serve) -> Gateway:
    """Without a portal."""
    return serve(CONFIGURATION, **VARIABLES)


@pytest.fixture(scope="module")
def apart(gateway: Gateway) -> Iterator[Apart]:
    portal = Apart(gateway, BEHIND)
    portal.start()
    yield portal
    portal.kill()


@pytest.fixture(scope="module")
def owner(apart: Apart) -> Browser:
    return found(apart)[0]


def test_what_is_done_there_holds_at_the_gateway(
    gateway: Gateway, apart: Apart, owner: Browser
) -> None:
    owner.look("/keys/new")
    page = owner.send("/keys/new", {"name": "by the portal", "usage_period": "month"})
    assert f"{gateway.url}/v1/chat/completions" in page.body.decode()
    made = owner.api("POST", "/keys", {"name": "another"}).json
    office = Office(gateway)
    assert 200 == office.chat(made["key"]).status
    usage = "/usage?bucket=total"
    assert until(lambda: owner.api("GET", usage).json["totals"]["requests"] == 1 or None)
    assert 204 == owner.api("DELETE", f"/keys/{made['id']}").status
    assert until(lambda: office.chat(made["key"]).status == 401 or None)
    # And nothing of the gateway's is here, but for what tells an orchestrator that it lives.
    assert 404 == Office(apart).chat(made["key"]).status
    assert (200, 200) == (apart.ask("/healthz").status, apart.ask("/readyz").status)


def test_sessions_outlive_the_gateway_and_traffic_the_portal(
    gateway: Gateway, apart: Apart, owner: Browser
) -> None:
    key = owner.api("POST", "/keys", {"name": "busy"}).json["key"]
    office, statuses, done = Office(gateway), [], threading.Event()

    def ask() -> None:
        while not done.is_set():
            statuses.append(office.chat(key).status)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until(lambda: len(statuses) > 10 or None)
        apart.kill()
        killed = len(statuses)
        until(lambda: len(statuses) > killed + 30 or None)
        apart.start()
        assert 200 == owner.api("GET", "/me").status  # Its session is a row.
        apart.process.send_signal(signal.SIGSTOP)  # Nor does it matter that it hangs.
        hung = len(statuses)
        until(lambda: len(statuses) > hung + 30 or None)
        apart.process.send_signal(signal.SIGCONT)
    finally:
        done.set()
        asking.join()
    assert {200} == set(statuses)
    assert 0 == gateway.stop()
    assert [] == books(gateway, MARKS)  # All that it recorded is there.
    assert 200 == owner.look("/keys").status  # The portal works without any gateway.
    gateway.start()
    assert 200 == owner.api("GET", "/me").status
    assert 200 == office.chat(key).status


def test_a_gateway_that_ended_before_it_delivered_is_named_until_it_has(
    gateway: Gateway, apart: Apart, owner: Browser
) -> None:
    # The portal has a store of the same kind, and nothing to deliver.
    ((name, _),) = until(lambda: books(gateway, MARKS) or None)
    gateway.kill()
    hour_ago = int(time.time() * 1000) - 3_600_000
    aged = f"{hour_ago:013} {os.uname().nodename}"
    books(gateway, "UPDATE marks SET value = ? WHERE name = ?", aged, name)
    assert f"<b>{os.uname().nodename}</b> has delivered nothing since" in owner.look("/").text
    gateway.start()  # It takes over what it left.
    until(lambda: not books(gateway, f"{MARKS} AND name = ?", name) or None)
    assert "delivered nothing" not in owner.look("/").text


def test_it_ends_when_it_is_told_to_and_leaves_the_gateways_files_alone(
    gateway: Gateway, apart: Apart
) -> None:
    assert 0 == apart.stop()
    assert "Traceback" not in apart.complaints()
    assert (gateway.data / "last-good.yaml").read_text() == gateway.file.read_text()
    assert (gateway.data / "portal/last-good.yaml").read_text() == apart.file.read_text()
    apart.start()


def test_the_address_behind_a_proxy_is_believed_of_those_that_are_trusted(
    gateway: Gateway, apart: Apart, owner: Browser
) -> None:
    """In the list of sessions, in the audit log, and for who guesses."""
    far = Browser(apart)
    far.look("/login")
    ends = {"x_forwarded_for": "6.6.6.6, 203.0.113.9, 10.0.0.7"}
    fields = {"email": "ada@example.com", "then": "", "password": "wrong password"}
    statuses: list[int] = []
    for n in range(27):  # After twenty the wait is a second, and doubles for each that is late.
        told = {"x_forwarded_for": f"{n}.6.6.6, 203.0.113.9, 10.0.0.7"}
        email = f"u{n}@example.com"
        statuses.append(far.send("/login", {**fields, "email": email}, **told).status)
        if statuses[-1] == 429:
            break
    assert [401] * 20 == statuses[:20]
    assert 429 == statuses[-1]  # All of them are 203.0.113.9, whatever it said before.
    near = Browser(apart)
    assert 303 == near.sign_in("ada@example.com").status
    assert "127.0.0.1" in near.look("/account").body.decode()
    made = near.api("POST", "/keys", {"name": "from afar"}, **ends).json["id"]
    path = gateway.folder / ".passy/passy.db"
    with closing(sqlite3.connect(path, timeout=90)) as books:
        wanted = "SELECT address FROM portal_audit WHERE subject = ?"
        assert [("203.0.113.9",)] == books.execute(wanted, (made,)).fetchall()
        books.execute("DELETE FROM portal_attempts")
        books.commit()
    nonsense = near.api("POST", "/keys", {"name": "x"}, x_forwarded_for="'; DROP TABLE, unknown")
    assert 201 == nonsense.status
    with closing(sqlite3.connect(path, timeout=90)) as books:
        assert [("127.0.0.1",)] == books.execute(wanted, (nonsense.json["id"],)).fetchall()


def test_its_configuration_has_no_routes_and_is_checked(gateway: Gateway, apart: Apart) -> None:
    file = apart.folder / "other.yaml"

    def said(text: str) -> tuple[int, str]:
        file.write_text(text)
        ran = subprocess.run(
            [PASSY, "portal", "--check", "--config", file, "--data", apart.data],
            env=apart.variables, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        return ran.returncode, ran.stderr

    assert (0, "") == said(APART)
    code, told = said(APART.replace("gateway_url", "gatway_url"))
    assert 78 == code
    assert "gateway_url" in told
    code, told = said(
        APART + "chains: {default: [static: {status: 204}]}\nroutes: [{match: GET /x}]\n"
    )
    assert 78 == code
    assert re.search(r"other\.yaml:\d+:\d+: error: the portal carries no traffic", told)
    admin = f"/admin/api: {{app: admin, store: books, token: {TOKEN}}}"
    code, told = said(APART.replace("apps: {", f"apps: {{{admin}, "))
    assert 78 == code
    assert re.search(r"other\.yaml:3:\d+: error: the portal has one listener", told)
