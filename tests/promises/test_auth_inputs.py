"""S1: what a client shows as its key, with exact results, and what it costs the directory."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from harness.catalogue import cases, raw
from harness.client import send
from harness.people import People

from passy_proxy import Principal, keys
from passy_proxy.testing import KEYRING, Bench, Recorded

if TYPE_CHECKING:
    from harness.gateway import Gateway, Serve

pytestmark = pytest.mark.anyio

GATEWAY = """
stores: {books: {kind: %s}}
chains: {default: [{auth: {directory: books}}, {static: {status: 204}}]}
routes: [{match: POST /v1/chat/completions}]
"""
SQL = 'sql, url: "sqlite:///.passy/passy.db"'


def words(good: str, expired: str, disabled: str, key_id: str, pepper: bytes) -> dict[str, str]:
    """What the catalogue's words in braces stand for."""
    digest = keys.digest(pepper, good.encode())
    body = good[len(keys.PREFIX) : -6]
    end = keys.ALPHABET[(keys.ALPHABET.index(good[-1]) + 1) % 62]
    first = keys.ALPHABET[(keys.ALPHABET.index(body[0]) + 1) % 62]
    same = good[len(keys.PREFIX) : 20] + keys.new_key()[len(keys.PREFIX) :][20 - len(keys.PREFIX) :]
    same = same[: len(body)]
    shaped = "".join(keys.ALPHABET[byte % 62] for byte in digest)
    return {
        "good": good,
        "other": keys.new_key(),
        "expired": expired,
        "disabled": disabled,
        "typo": good[:-1] + end,
        "first_off": keys.PREFIX + first + body[1:] + good[-6:],
        "same20": keys.PREFIX + same + keys.checksum(same),
        "short": good[:-1],
        "good_spaced": good[:20] + " " + good[20:],
        "upper": good.upper(),
        "shown": keys.shown(good).encode().decode("latin-1"),
        "id": key_id,
        "sha256": hashlib.sha256(good.encode()).hexdigest(),
        "digest": digest.hex(),
        "digest_shaped": keys.PREFIX + shaped + keys.checksum(shaped),
        "percent": "".join(f"%{byte:02x}" for byte in good.encode()),
        "base64": base64.b64encode(good.encode()).decode(),
        "basic": base64.b64encode(f"key:{good}".encode()).decode(),
    }


def filled(text: bytes, words: dict[str, str]) -> bytes:
    for name, word in words.items():
        text = text.replace(b"{%b}" % name.encode(), word.encode("latin-1"))
    return text


def lines(case: dict[str, Any], words: dict[str, str]) -> list[bytes]:
    return [filled(raw(line), words) for line in case["lines"]]


# As a client meets it.


@pytest.fixture(scope="module")
def gateway(serve: Serve) -> Gateway:
    return serve(GATEWAY % SQL)


@pytest.fixture(scope="module")
def shown(gateway: Gateway) -> dict[str, str]:
    good, expired, disabled = (People(gateway).key(None, name) for name in ("g", "e", "d"))
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db")) as books, books:
        books.execute("UPDATE keys SET expires = 1000 WHERE name = 'e'")
        books.execute("UPDATE keys SET disabled = 1 WHERE name = 'd'")
        ((key_id,),) = books.execute("SELECT id FROM keys WHERE name = 'g'").fetchall()
    return words(good, expired, disabled, key_id, b"another pepper than the one in use")


@pytest.mark.parametrize("case", cases("auth-inputs"))
def test_S1_what_a_client_shows(
    case: dict[str, Any], gateway: Gateway, shown: dict[str, str]
) -> None:
    path = b"/v1/chat/completions" + filled(case.get("path", "").encode(), shown)
    host = [] if any(line.startswith(b"Host:") for line in lines(case, shown)) else [b"Host: x"]
    head = b"\r\n".join(
        [b"POST %b HTTP/1.1" % path, *host, b"Content-Length: 2", *lines(case, shown)]
    )
    for _ in range(2):  # What is remembered of the first one changes nothing.
        told = send(gateway.url, head + b"\r\nConnection: close\r\n\r\n{}", patience=20).answer(
            "POST"
        )
        assert case["status"] == told.status, told.body
        if told.status == 204:
            continue
        error = json.loads(told.body)["error"]
        assert case["code"] == error["code"]
        assert case.get("says", "") in error["message"]
        assert ("Bearer" == told.headers.get("www-authenticate")) == (told.status == 401)
        seen = told.body + "".join(told.headers.values()).encode()
        assert not [name for name, word in shown.items() if word.encode("latin-1") in seen]


# And what it costs.


class Directory:
    """Knows three keys, and counts how often it is asked."""

    def __init__(self) -> None:
        self.good, self.expired, self.disabled = (keys.new_key() for _ in range(3))
        people = {
            self.good: Principal("key_good"),
            self.expired: Principal("key_expired", expires=1.0),
            self.disabled: Principal("key_disabled", disabled=True),
        }
        self._known = {keys.digest(KEYRING.pepper, k.encode()): p for k, p in people.items()}
        self.asked = 0

    async def principal(self, digest: bytes) -> Principal | None:
        self.asked += 1
        return self._known.get(digest)


@pytest.mark.parametrize(
    "case", [case for case in cases("auth-inputs") if "wire" not in case.values[0]]
)
async def test_S1_what_the_directory_is_asked(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bench(GATEWAY % "memory") as bench:
        directory, store = Directory(), bench.snapshot.stores["books"]
        monkeypatch.setattr(store, "principal", directory.principal)
        monkeypatch.setattr(store, "takes_any_key", False, raising=False)
        for filter in bench.snapshot.filters:
            await filter.start()  # Once more, now that the directory is this one.
        known = words(
            directory.good, directory.expired, directory.disabled, "key_good", KEYRING.pepper
        )
        headers = [line.split(b":", 1) for line in lines(case, known)]
        for _ in range(3):
            ex = bench.exchange(
                headers=tuple((name.lower(), value.strip(b" \t")) for name, value in headers),
                path="/v1/chat/completions",
            )
            await ex.route.chain.run(ex)
            assert case["status"] == ex.status
            assert (204 == ex.status) == (ex.principal is not None)
            if ex.status != 204:
                assert isinstance(ex.downstream, Recorded)
                assert case["says"] in ex.downstream.json["error"]["message"]
        assert case["asked"] == directory.asked, "once, and then it is remembered"


async def test_S1_random_tokens_cost_the_directory_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Bench(GATEWAY % "memory") as bench:
        directory, store = Directory(), bench.snapshot.stores["books"]
        monkeypatch.setattr(store, "principal", directory.principal)
        monkeypatch.setattr(store, "takes_any_key", False, raising=False)
        for filter in bench.snapshot.filters:
            await filter.start()
        for number in range(2000):
            token = keys.PREFIX + hashlib.sha256(b"%d" % number).hexdigest()[:38]
            ex = bench.exchange(
                headers=((b"authorization", b"Bearer " + token.encode()),),
                path="/v1/chat/completions",
            )
            await ex.route.chain.run(ex)
            assert 401 == ex.status
        assert 0 == directory.asked
