"""F5: nothing of one organisation's reaches another: no content, no cookie, no account."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest
from harness.people import People
from harness.upstream import Hit, RawUpstream, Step

from passy_proxy.answer import ACCOUNT

if TYPE_CHECKING:
    from harness.figures import Note
    from harness.gateway import Gateway, Serve

GATEWAY = """
stores: {books: {kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  shared:
    dialect: openai
    url: "%(url)s/v1"
    credential: sk-shared-by-all
    max_connections: 8
    timeouts: {pool: 60s}
models: {m: [shared/m]}
chains:
  default:
    - usage: {ledger: books}
    - auth: {directory: books}
    - byok: {vault: books}
    - alias
    - fallback
  through: [{auth: {directory: books}}, {byok: {vault: books}}, {direct: {upstream: shared}}]
routes:
  - {match: POST /v1/chat/completions}
  - {match: "* /v1/*", chain: through, body: stream, root: /v1}
"""
WORDS = {"acme": "ACME-CANARY", "umbra": "UMBRA-CANARY"}


def answer(hit: Hit) -> list[Step]:
    """The question's word comes back in many pieces, with what would follow a client around."""
    word, _, number = (hit.header("user-agent") or "").partition("/")
    cookies = "".join(f"{name.decode()}: {word}-account\r\n" for name in ACCOUNT)
    head = f"HTTP/1.1 200 OK\r\nset-cookie: who={word}; path=/\r\n{cookies}etag: {word}{number}\r\n"
    dice = random.Random(number)
    texts = [f"{word} {number} {n} " * dice.randint(1, 200) for n in range(dice.randint(1, 6))]
    if dice.random() < 0.5:
        body = json.dumps({"choices": [], "text": texts}).encode().decode("latin-1")
        kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        at = dice.randrange(len(body))
        return [{"send": head + kind + body[:at]}, {"wait": 0.001}, {"send": body[at:]}]
    kind = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = 'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
    chunks: list[Step] = [{"chunk": chunk % text} for text in texts]
    return [{"send": head + kind}, *chunks, {"chunk": "data: [DONE]\n\n"}, {"send": "0\r\n\r\n"}]


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream(script=answer) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: RawUpstream, serve: Serve) -> Gateway:
    return serve(GATEWAY % {"url": upstream.url})


@pytest.fixture(scope="module")
def keys(gateway: Gateway) -> dict[str, str]:
    found = {}
    for name in WORDS:
        people = People(gateway)
        found[name] = people.key(people.organisation(name))
    return found


class Heard:
    """What the organisations' clients were told."""

    def __init__(self) -> None:
        self.data: dict[str, list[bytes]] = {name: [] for name in WORDS}
        self.whole = self.left = 0
        self.lock = threading.Lock()


def client(url: str, name: str, key: str, seed: int, count: int, heard: Heard) -> None:
    """One client of an organisation: asks, and sometimes leaves in the middle."""
    dice = random.Random(f"{name}{seed}")
    word, told, whole, left = WORDS[name], [], 0, 0
    connection = HTTPConnection(url.partition("//")[2], timeout=90)
    for number in range(count):
        agent = f"{word}/{seed}-{number}"
        body = json.dumps({"model": "m", "stream": dice.random() < 0.5, "messages": [agent]})
        path = dice.choice(["/v1/chat/completions"] * 3 + ["/v1/files/f"])
        headers = {"authorization": f"Bearer {key}", "user-agent": agent, "cookie": f"a={word}"}
        connection.request("POST", path, body, headers)
        if dice.random() < 0.1:
            connection.close()
            left += 1
            continue
        response = connection.getresponse()
        head = str(response.headers).encode()
        if dice.random() < 0.15:
            told.append(head + response.read1(dice.choice([1, 50, 3000])))
            connection.close()
            left += 1
            continue
        data = response.read()
        assert 200 == response.status, data
        assert f"{word} {seed}-{number} 0 ".encode() in data, "its own answer, not another one's"
        assert f"{word}{seed}-{number}" == response.headers["etag"]
        told.append(head + data)
        whole += 1
    connection.close()
    with heard.lock:
        heard.data[name] += told
        heard.whole += whole
        heard.left += left


@pytest.mark.parametrize("count", [800, pytest.param(20_000, marks=pytest.mark.large)])
def test_F5_no_content_crosses_tenants(
    count: int, gateway: Gateway, upstream: RawUpstream, keys: dict[str, str], figure: Note
) -> None:
    heard, clients = Heard(), 8
    upstream.hits.clear()
    with ThreadPoolExecutor(2 * clients) as pool:
        running = [
            pool.submit(client, gateway.url, name, keys[name], seed, count // 2 // clients, heard)
            for seed in range(clients)
            for name in WORDS
        ]
        for one in running:
            one.result()
    for name, word in WORDS.items():
        other = next(one for one in WORDS.values() if one != word)
        assert not [data for data in heard.data[name] if other.encode() in data]
    figure("answers whole", heard.whole)
    figure("clients that left", heard.left)
    figure("connections to the upstream", upstream.connections)
    assert heard.whole > count // 2
    assert heard.left > count // 10
    # They did share connections, and the upstream was told nothing that would tie them together.
    assert upstream.connections < len(upstream.hits)
    for hit in upstream.hits:
        word = (hit.header("user-agent") or "").partition("/")[0]
        other = next(one for one in WORDS.values() if one != word)
        assert other not in repr((hit.target, hit.headers, hit.body))
        assert hit.header("cookie") is None
        assert "Bearer sk-shared-by-all" == hit.header("authorization")


def test_F5_cookies_and_accounts_end_at_the_gateway(
    gateway: Gateway, keys: dict[str, str], upstream: RawUpstream
) -> None:
    for path in ("/v1/chat/completions", "/v1/files/f"):
        for name, key in keys.items():
            asked = {"model": "m", "messages": []}
            told = gateway.ask(
                path, asked, x_api_key=key, user_agent=f"{WORDS[name]}/1", cookie="a=b"
            )
            assert 200 == told.status
            passed = {header.lower() for header in told.headers}
            assert passed.isdisjoint(name.decode() for name in ACCOUNT)
            assert f"{WORDS[name]}-account" not in str(told.headers)
            assert upstream.hits[-1].header("cookie") is None


def test_F5_the_same_question_is_asked_anew(
    gateway: Gateway, keys: dict[str, str], upstream: RawUpstream
) -> None:
    """No answer is kept for the next one who asks."""
    before = len(upstream.hits)
    for key in [*keys.values(), *keys.values()]:
        asked = {"model": "m", "messages": [{"role": "user", "content": "the same"}]}
        gateway.ask("/v1/chat/completions", asked, x_api_key=key, user_agent="X/1")
    with closing(HTTPConnection(gateway.url.partition("//")[2], timeout=90)) as connection:
        connection.request("GET", "/v1/files/f", headers={"x-api-key": keys["acme"]})
        connection.getresponse().read()
    assert before + 5 == len(upstream.hits)
