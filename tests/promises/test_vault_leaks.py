"""K3, K4 for what organisations bring: with every fault of an upstream, at DEBUG, with a plugin
that fails while it holds a key, through rotation, trials and a start with the wrong key."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from harness.canary import Canaries
from harness.catalogue import entries
from harness.client import send
from harness.gateway import until
from harness.people import People
from harness.plugin import installed
from harness.upstream import Hit, RawUpstream, Step

from passy_proxy.keyring import Keyring

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

FAULTS = {
    case["name"]: case
    for case in entries("upstream-faults")
    if "upstream" not in case and not case.get("within")
}
PRYING = '''
from passy_proxy import Filter, hookimpl


class Prying(Filter):
    """Fails with a key in its hands."""

    name = "prying"
    on_error = "open"

    def on_attempt(self, ex, attempt):
        if ex.request.header(b"x-pry") is not None:
            credential = attempt.credential
            secret = credential.secret
            held = {"secret": secret, "request": attempt.request}
            raise RuntimeError(f"with {credential!r} in its hands, of {len(held)} things")


@hookimpl
def passy_filters():
    return [Prying]
'''
GATEWAY = """
log: {level: debug, format: %(format)s}
connect: {tenants_may_reach: [127.0.0.1]}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai:
    dialect: openai
    url: "%(url)s/v1"
    credential: "${OPERATORS_KEY}"
    timeouts: {first_byte: 2s, idle: 2s}
models: {m: {targets: [openai/x], fallback_on: [5xx, 4xx, timeout, rate_limit]}}
chains:
  default:
    - access_log
    - usage: {ledger: books}
    - auth: {directory: books}
    - byok: {vault: books, ttl: 1s}
    - alias
    - prying
    - breaker
    - fallback: {first_event: 2s}
routes:
  - {match: POST /v1/chat/completions}
  - {match: GET /metrics, chain: [metrics_page: {public: on}]}
"""


class Stage(NamedTuple):
    gateway: Gateway
    upstream: RawUpstream
    secrets: Canaries
    keys: dict[str, str]
    """Of clients of: a stranger, acme, and house, which has an upstream of its own."""
    stored: dict[str, str]
    """What was brought → its id."""
    rings: tuple[str, str]
    """Before and after."""
    format: str
    """Of its log."""


@pytest.fixture(scope="module", params=["json", "pretty"])
def stage(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    secrets = Canaries()

    def answer(hit: Hit) -> Sequence[Step]:
        case = FAULTS.get(hit.header("user-agent") or "", {})
        shown = (hit.header("authorization") or "").removeprefix("Bearer ")
        if not case:
            body = f'{{"error":{{"message":"Incorrect API key provided: {shown}"}}}}'
            head = "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\n"
            return [{"send": f"{head}content-length: {len(body)}\r\n\r\n{body}"}]
        steps: Sequence[Step] = case.get("steps") or case.get("plain") or case["stream"]
        return steps

    with RawUpstream(script=answer) as upstream:
        old, new = (secrets.word(f"the {age} secret key") + "0123456789" for age in ("old", "new"))
        gateway = serve(
            GATEWAY % {"url": upstream.url, "format": request.param},
            faulty=True,
            PYTHONPATH=installed(tmp_path_factory.mktemp("plugin"), "prying", PRYING),
            OPERATORS_KEY=secrets.word("the operator's key", "sk-proj-"),
            PASSY_SECRET_KEYS=old,
        )
        people = People(gateway)
        acme, house = people.organisation("acme"), people.organisation("house")
        stored = {
            "first": people.brings(acme, "openai", secrets.word("acme's first key"), 1),
            "second": people.brings(
                acme, "openai", secrets.word("acme's second key", "sk-ant-"), 2
            ),
            "own": people.provider(house, "own", f"{upstream.url}/v1", secrets.word("house's key")),
        }
        clients = {"acme": acme, "house": house, "stranger": None}
        keys = {name: people.key(organisation) for name, organisation in clients.items()}
        for name, key in keys.items():
            secrets.known(f"the client key of {name}", key)
        yield Stage(gateway, upstream, secrets, keys, stored, (old, new), request.param)


def told(stage: Stage, agent: str, who: str, *more: str) -> bytes:
    body = b'{"model":"%b","messages":[]}' % (b"own" if who == "house" else b"m")
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: x",
        "connection: close",
        f"authorization: Bearer {stage.keys[who]}",
        f"user-agent: {agent}",
        f"content-length: {len(body)}",
        *more,
    ]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return send(stage.gateway.url, head.encode() + body, patience=90, quiet=90).data


@pytest.fixture(scope="module")
def heard(stage: Stage) -> dict[str, bytes]:
    """What clients are told: with every fault, by every owner of a key."""
    asked = [(name, who) for name in (*FAULTS, "an echo") for who in stage.keys]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: told(stage, *one), asked))
    heard = {" ".join(one): data for one, data in zip(asked, answers, strict=True)}
    for who in stage.keys:
        heard[f"prying {who}"] = told(stage, "an echo", who, "x-pry: 1")
    return heard


def test_K4_no_client_hears_a_key_whatever_the_upstream_does(
    heard: dict[str, bytes], stage: Stage
) -> None:
    assert len(heard) > 150
    for asked, data in heard.items():
        stage.secrets.search(data, asked)
    # The breaker, too, had its say: the rest reached an upstream that repeated what it was shown.
    assert sum(b"[redacted]" in data for data in heard.values()) >= 2


def test_K4_each_upstream_is_shown_the_keys_of_who_asks_and_no_clients(
    heard: dict[str, bytes], stage: Stage
) -> None:
    clients = Canaries()
    for who, key in stage.keys.items():
        clients.known(who, key)
    shown = set()
    for hit in stage.upstream.hits:
        clients.search(repr((hit.target, hit.headers, hit.body)).encode(), "upstream")
        shown.add(hit.header("authorization"))
    words = ("the operator's key", "acme's first key", "acme's second key", "house's key")
    assert {f"Bearer {stage.secrets.word(word)}" for word in words} == shown
    assert heard


def commanded(stage: Stage) -> None:
    """Commands show no secret, and the last of them leave all sealed with a new one."""
    gateway, secrets = stage.gateway, stage.secrets
    old, new = stage.rings

    def run(command: tuple[str, ...]) -> None:
        shown = gateway.passy(*command)
        secrets.search(shown.stdout.encode() + shown.stderr.encode(), " ".join(command))
        if command[:2] == ("providers", "test"):
            assert 1 == shown.returncode
            assert "[redacted]" in shown.stdout, shown

    commands = [
        ("providers", "list", "--json"),
        ("providers", "test", stage.stored["first"], "--json"),
        ("providers", "test", stage.stored["own"]),
        ("secrets", "status"),
        ("secrets", "retire", "nothing"),
    ]
    first = gateway.variables["PASSY_SECRET_KEYS"]
    gateway.variables["PASSY_SECRET_KEYS"] = f"{new},{old}"
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(run, commands))
        run(("secrets", "rotate"))
        run(("secrets", "status", "--json"))
        # What is sealed with the new key opens for nobody who has the old one only.
        gateway.variables["PASSY_SECRET_KEYS"] = old
        refused = gateway.passy("serve", "--listen", "127.0.0.1:0")
        assert 78 == refused.returncode
        assert Keyring([new]).first in refused.stderr
        secrets.search(refused.stdout.encode() + refused.stderr.encode(), "a refused start")
    finally:
        gateway.variables["PASSY_SECRET_KEYS"] = first
    without(stage)


def test_K3_no_secret_of_a_vault_in_anything_that_comes_out(
    heard: dict[str, bytes], stage: Stage
) -> None:
    assert heard
    gateway, secrets = stage.gateway, stage.secrets
    if stage.format == "json":
        commanded(stage)
    for path in ("/", "/livez", "/readyz", "/status", "/metrics", "/nothing"):
        for key in ("sk-x", stage.keys["acme"]):
            answer = gateway.ask(path, authorization=f"Bearer {key}")
            secrets.search(answer.body + str(answer.headers).encode(), path)
    complaints = gateway.complaints() + (gateway.folder / "out").read_text()
    assert "in its hands" in complaints, "a plugin did fail"
    assert "RuntimeError" in complaints
    secrets.search((Path(f"/proc/{gateway.process.pid}") / "cmdline").read_bytes(), "arguments")
    until(lambda: (gateway.folder / "data/known.db").is_file() or None)
    files = [file for file in gateway.folder.rglob("*") if file.is_file()]
    assert {"known.db", "passy.db", "out", "err"} <= {file.name for file in files}
    secrets.search_files(files)
    for base in ("data/known.db", ".passy/passy.db"):
        with closing(sqlite3.connect(gateway.folder / base)) as books:
            for (table,) in books.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
                rows = books.execute(f'SELECT * FROM "{table}"').fetchall()
                secrets.search(repr(rows).encode(), f"the table {table} of {base}")


def without(stage: Stage) -> None:
    """Waits until the running gateway, which has the old key only, opens nothing of acme's."""

    def refused() -> bool | None:
        key = f"Bearer {stage.keys['acme']}"
        answer = stage.gateway.ask("/v1/chat/completions", {"model": "m"}, authorization=key)
        stage.secrets.search(answer.body, "an answer without the key")
        return answer.status == 503 or None

    until(refused)
