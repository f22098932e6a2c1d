"""W9: those who run the gateway have a listener of their own, and clients do not reach it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness.gateway import PASSY, PATIENCE, Asked, Gateway, Serve, Shipped, until
from harness.office import CONFIGURATION, SECRET, TOKEN, VARIABLES, Office
from harness.ports import free_port

MORE = """
  - {match: GET /metrics, listener: admin, chain: [metrics_page: {public: true}]}
edge: {lame_duck: LAME}
"""
TEXT = CONFIGURATION.replace(
    "  - {match: POST /v1/embeddings}\n", "  - {match: POST /v1/embeddings}" + MORE
).replace("loop_lag: 0s", "loop_lag: 0s, max_requests: MOST")
BEARER = f"Bearer {TOKEN}"
PLACES = ("/status", "/organisations", "/keys", "/nothing", "/openapi.json", "")
CHAT = {"model": "one", "messages": [{"role": "user", "content": "hello"}]}


CANARY = "sk-canary-of-the-operator-51c7aa"


def text(*, most: int = 4096, lame: str = "5s") -> str:
    return TEXT.replace("MOST", str(most)).replace("LAME", lame)


@pytest.fixture(scope="module")
def office(serve: Serve) -> Office:
    """Two workers, and an upstream that nobody is at."""
    gone = f"  gone: {{url: http://127.0.0.1:{free_port()}/v1, credential: {CANARY}}}\n"
    changes = {
        "upstreams:\n": f"upstreams:\n{gone}",
        "default: [usage": "default: [metrics, breaker, usage",
        "  one: [echo/echo]": "  one: [gone/any, echo/echo]",
    }
    configuration = text()
    for before, after in changes.items():
        configuration = configuration.replace(before, after)
    return Office(serve(configuration, "--workers", "2", **VARIABLES))


def test_W9_the_listener_of_clients_knows_nothing_of_the_admin_api(office: Office) -> None:
    """Not even for who holds the token: what is not there needs no guard."""
    gateway = office.gateway
    for place in PLACES:
        asked = gateway.ask(f"/admin/api{place}", authorization=BEARER)
        other = gateway.ask(f"/nowhere{place}", authorization=BEARER)
        assert (404, "unknown_url") == (asked.status, asked.json["error"]["code"])
        assert (
            asked.json["error"]["message"].replace("/admin/api", "/nowhere")
            == (other.json["error"]["message"])
        )
    assert 404 == gateway.ask("/metrics").status


def test_W9_data_key_on_admin(office: Office) -> None:
    gateway = office.gateway
    key = f"Bearer {office.keys('POST', '/api', {}).json['key']}"
    assert 200 == gateway.ask("/v1/chat/completions", CHAT, authorization=key).status
    for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/models", "/keys/api", "/portal"):
        for body in (CHAT, None):
            for shown in (key, BEARER):
                asked = gateway.ask(path, body, admin=True, authorization=shown)
                assert (404, "unknown_url") == (asked.status, asked.json["error"]["code"])
    for place in PLACES:
        assert 401 == office.admin("GET", place, authorization=key).status
    service = {"x_emby_secure_key": SECRET, "x_authenticated_user": "user-1"}
    assert 404 == gateway.ask("/keys/api", {}, admin=True, **service).status


def test_W9_there_are_the_admin_api_numbers_and_health(office: Office) -> None:
    gateway = office.gateway
    assert 200 == office.admin("GET", "/status").status
    assert b"passy_requests_total" in gateway.ask("/metrics", admin=True).body
    for path in ("/livez", "/readyz"):
        assert 200 == gateway.ask(path, admin=True).status
    assert {"passy": "LLM gateway", "listener": "admin"} == gateway.ask("/", admin=True).json
    assert "/v1" == gateway.ask("/").json["base_url"]


def test_W9_who_wants_them_together_says_so(serve: Serve) -> None:
    together = CONFIGURATION.replace("{app: admin,", "{app: admin, listener: main,")
    apart = CONFIGURATION.replace("  /keys:\n", "  /keys:\n    listener: admin\n")
    one = serve(together, **VARIABLES)
    assert 200 == one.ask("/admin/api/status", authorization=BEARER).status
    assert "administration" not in one.complaints()
    service = {"x_emby_secure_key": SECRET, "x_authenticated_user": "user-1"}
    two = serve(apart, **VARIABLES)
    assert 404 == two.ask("/keys/api", {}, **service).status
    assert 422 == two.ask("/keys/api", {"is": "x"}, admin=True, **service).status


def test_W9_without_a_token_nothing_listens_there(serve: Serve, shipped: Shipped) -> None:
    assert "administration" not in serve(shipped()).complaints()


def test_what_is_where_is_explained_and_one_address_for_both_is_refused(serve: Serve) -> None:
    gateway = serve(text(), start=False, **VARIABLES)
    for path, what in (("/admin/api/status", "app"), ("/metrics", "route")):
        told = json.loads(gateway.passy("explain", "GET", path, "--json").stdout)
        assert ("admin", True) == (told["listener"], what in told)
    assert "of those who run the gateway" in gateway.passy("explain", "GET", "/metrics").stdout
    both = "listen: 127.0.0.1:9901\nadmin: {listen: 127.0.0.1:9901}\n"
    gateway.file.write_text(both + text())
    refused = gateway.passy("check")
    assert 78 == refused.returncode
    assert "gateway.yaml:2:17: error: clients and those who run the gateway cannot" in (
        refused.stderr
    )


def test_a_port_that_is_taken_is_said(office: Office, serve: Serve) -> None:
    taken = office.gateway.admin_url.removeprefix("http://")
    gateway = serve(text(), start=False, **VARIABLES | {"PASSY_ADMIN_LISTEN": taken})
    refused = gateway.passy("serve", "--listen", "127.0.0.1:0")
    assert 1 == refused.returncode
    assert f"cannot listen on {taken} for administration" in refused.stderr
    assert "--admin-listen" in refused.stderr


def test_C8_an_overloaded_gateway_is_still_administered(serve: Serve) -> None:
    office = Office(serve(text(most=1), **VARIABLES))
    key = f"Bearer {office.keys('POST', '/api', {}).json['key']}"
    host = office.gateway.url.partition("//")[2]
    # A word takes a fifth of a second: it is not said to its end.
    messages = [{"role": "user", "content": "hello " * 1000}]
    slow = json.dumps({"model": "echo/echo:slow", "stream": True, "messages": messages})
    headers = {"authorization": key, "content-type": "application/json"}
    with closing(http.client.HTTPConnection(host, timeout=PATIENCE)) as busy:

        def begun() -> http.client.HTTPResponse | None:
            """What came before may still be a request."""
            busy.request("POST", "/v1/chat/completions", slow, headers)
            answer = busy.getresponse()
            return answer if answer.status == 200 else answer.read() and None

        assert until(begun).read(1)
        refused = office.gateway.ask("/v1/chat/completions", CHAT, authorization=key)
        assert (503, "overloaded") == (refused.status, refused.json["error"]["code"])
        assert 200 == office.admin("GET", "/status").status


def test_O2_both_listeners_end_alike(serve: Serve) -> None:
    """While a gateway is a lame duck who administers it is let in as well, and told to go."""
    gateway = serve(text(lame="60s"), "--workers", "2", start=False, **VARIABLES)
    gateway.start()
    office = Office(gateway)
    gateway.process.send_signal(signal.SIGTERM)

    def leaving() -> Any:
        told = office.admin("GET", "/status")
        return told if told.json["draining"] else None

    assert "close" == until(leaving).headers["connection"]
    until(lambda: 503 == gateway.ask("/readyz", admin=True).status or None)
    gateway.process.send_signal(signal.SIGTERM)
    assert 0 == gateway.process.wait(PATIENCE), gateway.complaints()
    with pytest.raises(ConnectionRefusedError):
        office.admin("GET", "/status")


# What is about the gateway alone, under the names that operators know


def at_root(office: Office, method: str, path: str) -> Asked:
    return office.ask(method, path, None, {"authorization": BEARER}, admin=True)


def test_W9_config_upstreams_stats_and_drain_are_at_the_root_of_the_admin_listener(
    office: Office,
) -> None:
    key = office.made("/keys", {})["key"]
    for _ in range(6):
        assert 200 == office.chat(key).status
    for path in ("/config", "/upstreams", "/stats", "/drain"):
        assert 200 == at_root(office, "GET", path).status
        assert 401 == office.gateway.ask(path, admin=True).status
        assert 401 == office.gateway.ask(path, admin=True, authorization=f"Bearer {key}").status
        assert 404 == office.gateway.ask(path, authorization=BEARER).status
    config = at_root(office, "GET", "/config")
    assert CANARY.encode() not in config.body
    assert "credential: •••" in config.json["text"]
    assert office.admin("GET", "/config").json == config.json
    written = {(one["kind"], one["name"]): one["written"] for one in config.json["origins"]}
    assert f"{office.gateway.file}:" in written["upstream", "gone"]
    assert ("model", "one") in written
    upstreams = at_root(office, "GET", "/upstreams")
    assert CANARY.encode() not in upstreams.body
    rows = {row["name"]: row for row in upstreams.json["rows"]}
    # What one worker says of another may be old.
    failure = until(lambda: last_failure_of(office, "gone"))
    assert {"in_use": 0, "idle": 0, "waiting": 0, "opened": 0, "reused": 0} == (
        rows["gone"]["connections"]
    )
    assert ("connect", None) == tuple(failure[one] for one in ("kind", "status"))
    assert rows["echo"]["last_failure"] is None


def last_failure_of(office: Office, name: str) -> dict[str, Any] | None:
    rows = at_root(office, "GET", "/upstreams").json["rows"]
    found: list[dict[str, Any] | None] = [
        row["last_failure"] for row in rows if row["name"] == name
    ]
    return found[0]


def test_stats_are_of_all_workers_in_json_and_in_lines(office: Office) -> None:
    key = office.made("/keys", {})["key"]

    def answered() -> float:
        found = at_root(office, "GET", "/stats").json["counters"]
        named = [one for one in found if one["name"] == "passy_requests_total"]
        of = [one["value"] for one in named if one["labels"]["model"] == "pattern-*"]
        return float(sum(of))

    assert 0 == answered()  # Nobody else here asks for it: what is told late changes nothing.
    for _ in range(10):
        assert 200 == office.chat(key, "pattern-a").status
    until(lambda: answered() == 10 or None)
    lines = at_root(office, "GET", "/stats?format=text").text.splitlines()
    assert any(line.startswith('passy_requests_total{model="pattern-*"') for line in lines)
    assert any(line.startswith("passy_requests_in_flight: ") for line in lines)
    assert 422 == at_root(office, "GET", "/stats?format=xml").status


def test_O2_drain_is_a_lame_duck_of_all_workers_that_can_be_taken_back(office: Office) -> None:
    gateway, key = office.gateway, office.made("/keys", {})["key"]

    def ready() -> set[int]:
        return {gateway.ask("/readyz").status for _ in range(12)}

    assert {200} == ready()
    drained = at_root(office, "POST", "/drain")
    assert (200, True, False, 2) == (
        drained.status, *(drained.json[one] for one in ("draining", "ending", "workers"))
    )  # fmt: skip
    try:
        assert {503} == ready()
        assert {200} == {gateway.ask("/livez").status for _ in range(4)}
        answers = [office.chat(key) for _ in range(6)]
        assert {(200, "close")} == {(one.status, one.headers["connection"]) for one in answers}
        assert at_root(office, "GET", "/drain").json["draining"]
        # Who takes the place of one that died is told as well.
        [victim, *_] = workers_of(gateway)
        os.kill(victim, signal.SIGKILL)
        until(lambda: (victim not in (now := workers_of(gateway)) and len(now) == 2) or None)
        assert {503} == ready()
    finally:
        back = at_root(office, "DELETE", "/drain")
    assert (200, False) == (back.status, back.json["draining"])
    assert {200} == ready()
    assert "close" != office.chat(key).headers["connection"]


def workers_of(gateway: Gateway) -> list[int]:
    main = Path(f"/proc/{gateway.process.pid}")
    return [int(one) for one in (main / f"task/{main.name}/children").read_text().split()]


# A reload of all workers


def run_by(office: Office) -> set[str]:
    """What the workers run: each connection may be another one's."""
    return {office.admin("GET", "/status").json["configuration"]["hash"] for _ in range(12)}


def test_O1_a_reload_is_one_of_all_workers(office: Office) -> None:
    file = office.gateway.file
    text = file.read_text()
    # Of a file that is what it was they notice nothing themselves.
    unchanged = office.admin("POST", "/reload")
    assert (200, 2) == (unchanged.status, unchanged.json["workers"])
    for turn in range(3):
        file.write_text(text.replace("one: [", f"one-{turn}: ["))
        taken = office.admin("POST", "/reload")
        assert (200, 2) == (taken.status, taken.json["workers"])
        assert {taken.json["hash"]} == run_by(office)
    file.write_text(text.replace("alias, fallback", "alias, fallbak"))
    refused = office.admin("POST", "/reload")
    error = refused.json["error"]
    assert (409, "configuration_refused") == (refused.status, error["code"])
    [problem] = error["problems"]
    assert f"{file}:" in problem["param"]
    line, column = problem["param"].removeprefix(f"{file}:").split(":")
    assert "fallbak" == file.read_text().splitlines()[int(line) - 1][int(column) - 1 :][:7]
    assert "did you mean 'fallback'?" in problem["message"]
    assert {taken.json["hash"]} == run_by(office)
    file.write_text(text)
    assert 200 == office.admin("POST", "/reload").status


def test_up_has_a_port_more_once_there_is_a_token(serve: Serve) -> None:
    gateway = serve(CONFIGURATION, start=False, **VARIABLES)
    command = [PASSY, "up", "--json", "--listen", "127.0.0.1:0", "--config", gateway.file]
    with subprocess.Popen(
        [*command, "--data", gateway.folder / "data"],
        cwd=gateway.folder,
        env=gateway.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            said = next(line for line in process.stdout if line.startswith(b'{"url"'))
            there = json.loads(said)["admin_url"].removeprefix("http://")
            with closing(http.client.HTTPConnection(there, timeout=PATIENCE)) as client:
                client.request("GET", "/admin/api/status", headers={"authorization": BEARER})
                assert 200 == client.getresponse().status
        finally:
            process.kill()
