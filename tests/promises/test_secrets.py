"""K3: no secret in anything that comes out. K4: a key that an upstream repeats is hidden."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.canary import Canaries
from harness.client import send
from harness.people import People
from harness.upstream import Hit, RawUpstream, Step

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

GATEWAY = """
log: {level: debug, format: json}
connect: {tenants_may_reach: [127.0.0.1]}
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  openai:
    dialect: openai
    url: "%(url)s/v1"
    credential: "${OPERATORS_KEY}"
    headers: {x-extra-token: "${EXTRA_TOKEN}"}
    timeouts: {first_byte: 2s, idle: 2s}
  anthropic: {dialect: anthropic, url: "%(url)s", credential: "${OPERATORS_KEY}"}
  second: {dialect: openai, url: "%(url)s/v1", credential: "${OPERATORS_KEY}"}
models:
  m: [openai/x]
  twice: {targets: [openai/x, second/x], fallback_on: [5xx, 4xx, timeout, rate_limit]}
  claude: [anthropic/x]
chains:
  default:
    - access_log
    - usage: {ledger: books}
    - auth: {directory: books}
    - byok: {vault: books}
    - alias
    - fallback: {first_event: 2s}
  through:
    - access_log
    - auth: {directory: books}
    - byok: {vault: books}
    - direct: {upstream: openai}
routes:
  - {match: POST /v1/chat/completions}
  - {match: POST /v1/responses}
  - {match: POST /v1/messages, dialect: anthropic}
  - {match: GET /admin/routing, chain: [routing: {token: "${ADMIN_TOKEN}"}]}
  - {match: "* /v1/*", chain: through, body: stream, root: /v1}
"""
OK = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END: Step = {"send": "0\r\n\r\n"}
BAD = "HTTP/1.1 %s\r\ncontent-type: %s\r\n%scontent-length: %d\r\n\r\n%s"


def told(status: str, body: str, kind: str = "application/json", more: str = "") -> list[Step]:
    return [{"send": BAD % (status, kind, more, len(body), body)}]


def event(text: str) -> str:
    said = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return f"data: {json.dumps(said)}\n\n"


def streamed(*chunks: str, end: Step = END) -> list[Step]:
    return [{"send": SSE}, *({"chunk": chunk} for chunk in chunks), end]


DONE = "data: [DONE]\n\n"
ERROR = '{"error":{"message":"Incorrect key: %s","type":"invalid_request_error","code":"%s"}}'

ECHOES: dict[str, Callable[[str], list[Step]]] = {
    "in an error": lambda k: told("401 Unauthorized", ERROR % (k, k)),
    "in an error of 500": lambda k: told("500 Oh", ERROR % (k, k)),
    "in an error of 429": lambda k: told("429 Oh", ERROR % (k, k), more=f"x-limit-of: {k}\r\n"),
    "in text": lambda k: told("403 Forbidden", f"No access for {k}.", "text/plain"),
    "in HTML": lambda k: told("502 Bad Gateway", f"<html>{k}</html>", "text/html"),
    "in odd JSON": lambda k: told("400 Bad", json.dumps({"detail": [{"key": k}]})),
    "in a header": lambda k: told("200 OK", "{}", more=f"x-echo: Bearer {k}\r\n"),
    "in many headers": lambda k: told("200 OK", "{}", more=f"x-a: {k}\r\nx-b: {k}{k}\r\n"),
    "in a cookie": lambda k: told("200 OK", "{}", more=f"set-cookie: key={k}\r\n"),
    "in the reason": lambda k: told(f"418 {k}", "{}"),
    "in a location": lambda k: told("302 Found", f"see {k}", more=f"location: http://x/?k={k}\r\n"),
    "in an answer": lambda k: told("200 OK", json.dumps({"choices": [], "echo": {"headers": k}})),
    "in an answer of pieces": lambda k: [
        {"send": OK + "transfer-encoding: chunked\r\n\r\n"},
        *({"chunk": piece} for piece in ('{"choices":[],"k":"', k[:9], k[9:20], k[20:], '"}')),
        END,
    ],
    "in a large answer": lambda k: [
        {"send": OK + "transfer-encoding: chunked\r\n\r\n"},
        {"chunk": '{"choices":[],"a":"' + "x" * (1 << 20)},
        {"chunk": "y" * 70_000 + k[:11]},
        {"wait": 0.05},
        {"chunk": k[11:] + k[:30]},
        {"wait": 0.05},
        {"chunk": k[30:] + '"}'},
        END,
    ],
    "in a compressed answer": lambda k: told(
        "200 OK",
        gzip.compress(json.dumps({"choices": [], "k": k}).encode()).decode("latin-1"),
        more="content-encoding: gzip\r\n",
    ),
    "in a stream": lambda k: streamed(event("a"), event(f"your key is {k}"), DONE),
    "in the first event": lambda k: streamed(event(k), DONE),
    "in a stream, cut in two": lambda k: streamed(event("a") + event(k)[:90], event(k)[90:], DONE),
    "in a stream, byte by byte": lambda k: streamed(event("a"), *event(k), DONE),
    "in a comment": lambda k: streamed(event("a"), f": {k}\n\n", DONE),
    "in a huge event": lambda k: streamed(
        event("a"), 'data: {"x":"' + "z" * 90_000 + k[:7], k[7:] + '"}\n\n', DONE
    ),
    "in an error event": lambda k: streamed(event("a"), "data: " + ERROR % (k, k) + "\n\n"),
    "in an error event at once": lambda k: streamed("data: " + ERROR % (k, k) + "\n\n"),
    "in a usage": lambda k: streamed(
        event("a"), f'data: {{"choices":[],"usage":{{"prompt_tokens":"{k}"}}}}\n\n', DONE
    ),
    "in a stream that breaks": lambda k: streamed(event("a"), f"data: {k}", end="reset"),
    "in a model": lambda k: told("200 OK", json.dumps({"model": k, "choices": []})),
    "in what is no HTTP": lambda k: [{"send": f"{k}\r\n\r\n"}, "close"],
    "in a broken length": lambda k: [{"send": f"{OK}content-length: {k}\r\n\r\n"}, "close"],
    "in a broken header": lambda k: [{"send": f"HTTP/1.1 200 OK\r\nx {k}: a\r\n\r\n"}, "close"],
    "in a broken chunk": lambda k: [{"send": f"{SSE}{k}\r\n"}, "close"],
    "in a chunk's extension": lambda k: [
        {"send": f"{SSE}3;k={k}\r\n: \n\r\n"}, {"chunk": DONE}, END
    ],
    "in a trailer": lambda k: [
        {"send": SSE}, {"chunk": DONE}, {"send": f"0\r\nx-key: {k}\r\n\r\n"}
    ],
    "in an interim answer": lambda k: [
        {"send": f"HTTP/1.1 103 Early Hints\r\nlink: {k}\r\n\r\n"}, *told("200 OK", "{}")
    ],
    "in a body that ends early": lambda k: [
        {"send": f"{OK}content-length: 999\r\n\r\n{k}"}, "close"
    ],
    "in silence": lambda k: ["hold"],
    "in nothing": lambda k: ["reset"],
}  # fmt: skip
PATHS = {
    "/v1/chat/completions": ["m", "twice", "own"],
    "/v1/responses": ["m"],
    "/v1/messages": ["claude"],
    "/v1/files/f": ["m"],
}
SLOW = ("in silence",)


@pytest.fixture(scope="module")
def secrets() -> Canaries:
    return Canaries()


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    def echo(hit: Hit) -> list[Step]:
        name = (hit.header("user-agent") or "").removesuffix(" extra")
        shown = hit.header("authorization") or hit.header("x-api-key") or ""
        if (hit.header("user-agent") or "").endswith(" extra"):
            shown = hit.header("x-extra-token") or shown
        return ECHOES.get(name, ECHOES["in nothing"])(shown.removeprefix("Bearer "))

    with RawUpstream(script=echo) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: RawUpstream, serve: Serve, secrets: Canaries) -> Gateway:
    return serve(
        GATEWAY % {"url": upstream.url},
        OPERATORS_KEY=secrets.word("the operator's key", "sk-proj-"),
        EXTRA_TOKEN=secrets.word("the extra token", "xtra_"),
        ADMIN_TOKEN=secrets.word("the admin token"),
        PASSY_SECRET_KEYS=secrets.word("the secret key") + "0123456789",
    )


@pytest.fixture(scope="module")
def clients(gateway: Gateway, upstream: RawUpstream, secrets: Canaries) -> list[str]:
    """Keys of a stranger and of an organisation that brought a key and an upstream of its own."""
    people = People(gateway)
    acme = people.organisation("acme")
    brought = secrets.word("the key that acme brought", "brought-")
    people.brings(acme, "second", brought)
    people.provider(acme, "own", f"{upstream.url}/v1", brought)
    return [
        secrets.known("the stranger's key", people.key()),
        secrets.known("acme's key", people.key(acme)),
    ]


@pytest.fixture(scope="module")
def heard(gateway: Gateway, clients: list[str]) -> dict[tuple[str, ...], bytes]:
    """All that clients are told, by path, model and echo."""
    asked = []
    for path, models in PATHS.items():
        for name in ECHOES:
            for model in models:
                if name not in SLOW or (path, model) == ("/v1/chat/completions", "m"):
                    asked.append((path, model, name))
                    if model == "m":
                        asked.append((path, model, f"{name} extra"))
    with ThreadPoolExecutor(8) as pool:
        told = pool.map(lambda one: tell(gateway, *one, clients[one[1] in ("twice", "own")]), asked)
        return dict(zip(asked, told, strict=True))


def tell(gateway: Gateway, path: str, model: str, agent: str, key: str) -> bytes:
    stream = "stream" in agent or "event" in agent or "comment" in agent or "usage" in agent
    body = json.dumps({"model": model, "stream": stream, "messages": []}).encode()
    shown = "x-api-key" if model == "claude" else "authorization"
    value = key if model == "claude" else f"Bearer {key}"
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncookie: session={key}\r\n"
        f"{shown}: {value}\r\nuser-agent: {agent}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return send(gateway.url, head.encode() + body, patience=90, quiet=90).data


def test_K4_what_an_upstream_repeats_is_hidden_from_the_client(
    heard: dict[tuple[str, ...], bytes], secrets: Canaries, upstream: RawUpstream
) -> None:
    for asked, data in heard.items():
        assert data.startswith(b"HTTP/1.1 "), asked
        secrets.search(data, " ".join(asked))
    redacted = [asked for asked, data in heard.items() if b"[redacted]" in data]
    assert len(redacted) > 60, "the upstream did repeat it"


def test_K4_a_clients_key_never_goes_upstream(
    heard: dict[tuple[str, ...], bytes], clients: list[str], upstream: RawUpstream
) -> None:
    assert len(upstream.hits) >= len(heard)
    known = Canaries()
    for number, key in enumerate(clients):
        known.known(f"key {number}", key)
    for hit in upstream.hits:
        known.search(repr((hit.method, hit.target, hit.headers, hit.body)).encode(), "upstream")


def test_K4_nobodys_key_is_shown_in_place_of_anothers(
    heard: dict[tuple[str, ...], bytes], secrets: Canaries, upstream: RawUpstream
) -> None:
    brought = secrets.word("the key that acme brought")
    operators = secrets.word("the operator's key")
    own = [hit for hit in upstream.hits if json.loads(hit.body)["model"] == "own"]
    assert own
    assert {f"Bearer {brought}"} == {hit.header("authorization") for hit in own}
    rest = [hit for hit in upstream.hits if json.loads(hit.body)["model"] == "m"]
    assert {f"Bearer {operators}"} == {hit.header("authorization") for hit in rest}


def test_K4_a_key_in_a_url_goes_nowhere(
    gateway: Gateway, clients: list[str], upstream: RawUpstream
) -> None:
    before = len(upstream.hits)
    key = clients[0]
    spelled = "".join(f"%{byte:02x}" for byte in key.encode())
    for path in (f"files/{key}", f"files/{spelled}", f"files?x={key}", f"files?key={spelled}"):
        assert gateway.ask(f"/v1/{path}", x_api_key=key).status in (400, 401)
    assert before == len(upstream.hits)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_K3_a_key_as_a_model_goes_nowhere(
    path: str, gateway: Gateway, clients: list[str], upstream: RawUpstream
) -> None:
    before, key = len(upstream.hits), clients[1]
    known = Canaries()
    known.known("the key", key)
    spelled = key.replace("sk-", "\\u0073k-")
    for model in (key, f"openai/{key}", f"own {key}", f"own:{spelled}", f"{key}{'x' * 300}"):
        body = f'{{"model":"{model}","messages":[],"input":"x"}}'.encode()
        asked = gateway.ask(path, body, method="POST", authorization=f"Bearer {key}")
        assert 400 == asked.status
        known.search(asked.body + str(asked.headers).encode(), model)
        known.search(repr(gateway.record(asked.headers["x-request-id"])).encode(), "the books")
    assert before == len(upstream.hits)


@pytest.mark.usefixtures("heard")
def test_K3_no_secret_in_anything_that_comes_out(
    gateway: Gateway, secrets: Canaries, clients: list[str], tmp_path: Path
) -> None:
    # Every command that shows something, every page there is, and a configuration that is wrong.
    for command in (["keys", "list", "--json"], ["providers", "list"], ["check"], ["explain", "m"]):
        shown = gateway.passy(*command)
        secrets.search(shown.stdout.encode() + shown.stderr.encode(), " ".join(command))
    for path in ("/", "/livez", "/readyz", "/metrics", "/v1/models", "/admin/routing", "/nothing"):
        for shown_key in ("sk-x", clients[0], secrets.word("the admin token")):
            told = gateway.ask(path, authorization=f"Bearer {shown_key}")
            secrets.search(told.body + str(told.headers).encode(), path)
    broken = gateway.file.read_text() + '\nupstreams2: {x: {credential: "${OPERATORS_KEY}"}}\n'
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(broken)
    gateway.file.write_text(broken)
    until_refused(gateway)
    process = Path(f"/proc/{gateway.process.pid}")
    secrets.search((process / "cmdline").read_bytes(), "the process's arguments")
    secrets.search((gateway.folder / "out").read_bytes(), "standard output")
    secrets.search((gateway.folder / "err").read_bytes(), "standard error")
    search_books(gateway.folder / ".passy/passy.db", secrets)
    files = [file for file in gateway.folder.rglob("*") if file.is_file()]
    assert len(files) >= 4
    secrets.search_files(files)


def until_refused(gateway: Gateway) -> None:
    from harness.gateway import until

    until(lambda: "reload_refused" in gateway.complaints() or None)


def search_books(path: Path, secrets: Canaries) -> None:
    """All tables, also what is still in no file but the database's log."""
    with closing(sqlite3.connect(path)) as books:
        tables = [
            row[0] for row in books.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        assert {"usage", "keys", "credentials"} <= set(tables)
        for table in tables:
            rows = books.execute(f'SELECT * FROM "{table}"').fetchall()
            secrets.search(repr(rows).encode(), f"the table {table}")
