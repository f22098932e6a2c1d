"""K1, K2, K5, K6, K7: what a stolen database is worth, keys that change under load, and secrets
that are refused at the start. With real gateways, each a process of its own."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.gateway import PATIENCE, until
from harness.upstream import Hit, RawUpstream, Step

from passy_plugins.stores.sql.admin import Admin
from passy_plugins.stores.sql.rotation import BATCH
from passy_proxy import keys
from passy_proxy.issue import NewCredential, NewKey
from passy_proxy.keyring import Keyring, KeyringError

if TYPE_CHECKING:
    from harness.figures import Note
    from harness.gateway import Gateway, Serve

OLD = "the old secret key of these tests: 0123456789"
NEW = "a newer secret key of these tests: 9876543210"
THIRD = "a third secret key of these tests: 5647382910"
OLD_ID, NEW_ID = Keyring([OLD]).first, Keyring([NEW]).first

CONFIGURATION = """
log: {level: warning, format: json}
stores: {books: {kind: sql, url: "sqlite:///%(books)s", when_key_missing: %(missing)s}}
upstreams: {openai: {dialect: openai, url: "%(url)s/v1", credential: sk-operator}}
models: {m: [openai/m]}
chains:
  default:
    - usage: {ledger: books}
    - auth: {directory: books, ttl: 1s}
    - byok: {vault: books, ttl: 1s}
    - alias
    - fallback
routes: [{match: POST /v1/chat/completions}]
"""
ANSWER = '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    def answer(hit: Hit) -> list[Step]:
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        return [{"send": f"{head}content-length: {len(ANSWER)}\r\n\r\n{ANSWER}"}]

    with RawUpstream(script=answer) as upstream:
        yield upstream


class House:
    """Databases, and gateways on them."""

    def __init__(self, folder: Path, upstream: RawUpstream, serve: Serve) -> None:
        self.books = folder / "books.db"
        self.upstream = upstream
        self._serve = serve

    def gateway(
        self, *ring: str, missing: str = "refuse", start: bool = True, books: Path | None = None
    ) -> Gateway:
        values = {"url": self.upstream.url, "books": books or self.books, "missing": missing}
        variables = {"PASSY_SECRET_KEYS": ",".join(ring)}
        return self._serve(CONFIGURATION % values, start=start, **variables)

    def done(self, ring: list[str], work: Callable[[Admin], Any]) -> Any:
        async def within() -> Any:
            async with Admin.opened(f"sqlite:///{self.books}", Keyring(ring)) as books:
                return await work(books)

        return asyncio.run(within())

    def people(self, *ring: str) -> tuple[str, str]:
        """The client key of a stranger, and of an organisation that brought a key for openai."""

        async def work(books: Admin) -> tuple[str, str]:
            acme = await books.create_organisation("Acme")
            await books.add_credential(NewCredential(acme, "openai"), "sk-of-acme-0123456789")
            wanted = NewKey(organisation=acme)
            return (await books.create_key(NewKey()))[1], (await books.create_key(wanted))[1]

        found: tuple[str, str] = self.done(list(ring), work)
        return found

    def sealed(self) -> list[tuple[str, str, str, int, str]]:
        columns = "organisation, upstream, id, version, sealed"
        with closing(sqlite3.connect(self.books)) as books:
            return books.execute(f"SELECT {columns} FROM credentials").fetchall()


@pytest.fixture
def house(tmp_path: Path, upstream: RawUpstream, serve: Serve) -> House:
    return House(tmp_path, upstream, serve)


def chat(gateway: Gateway, key: str) -> Any:
    return gateway.ask("/v1/chat/completions", {"model": "m"}, authorization=f"Bearer {key}")


def ends(gateway: Gateway) -> tuple[int, str]:
    """The exit code of a gateway that refuses to start, and what it says."""
    said = gateway.passy("serve", "--listen", "127.0.0.1:0")
    return said.returncode, said.stderr


# K1


def texts(path: Path) -> Iterator[str]:
    """Everything in a database that could be shown as a key."""
    with closing(sqlite3.connect(path)) as books:
        tables = [name for (name,) in books.execute("SELECT name FROM sqlite_master")]
        for table in tables:
            if table.startswith(("sqlite_", "ix_")):
                continue
            for row in books.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    if isinstance(value, bytes):
                        yield value.hex()
                        yield base64.b64encode(value).decode()
                        body = "".join(keys.ALPHABET[byte % 62] for byte in value[:32])
                        yield keys.PREFIX + body + keys.checksum(body)
                    elif isinstance(value, str) and value:
                        yield value


def test_K1_a_stolen_database_lets_nobody_in(house: House, tmp_path: Path) -> None:
    mine = house.people(OLD)
    gateway = house.gateway(OLD)
    assert [200, 200] == [chat(gateway, key).status for key in mine]
    shown = {text for text in texts(house.books) if text.isascii() and text.isprintable()}
    for key in mine:
        digest = hashlib.sha256(key.encode())
        shown |= {digest.hexdigest(), base64.b64encode(digest.digest()).decode()}
        shown |= {keys.digest(b"", key.encode()).hex()}
        assert not [text for text in shown if key in text or key[9:41] in text]
    assert len(shown) > 20
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda text: chat(gateway, text.strip()).status, sorted(shown)))
    assert {401} == set(told)

    stolen = tmp_path / "stolen.db"
    with closing(sqlite3.connect(house.books)) as books, closing(sqlite3.connect(stolen)) as copy:
        books.backup(copy)
    thief = house.gateway(THIRD, start=False, books=stolen)
    code, said = ends(thief)
    assert (78, True) == (code, "made under another secret key" in said)
    with closing(sqlite3.connect(stolen)) as copy, copy:  # The thief can write to the copy.
        copy.execute("DELETE FROM marks WHERE name = 'pepper'")
        copy.execute("DELETE FROM credentials")
    thief.start()
    for key in mine:
        assert 401 == chat(thief, key).status


def test_K1_client_keys_are_long_random_and_checked() -> None:
    made = [keys.new_key() for _ in range(10_000)]
    assert len(set(made)) == 10_000
    counts = dict.fromkeys(keys.ALPHABET, 0)
    for key in made:
        assert re.fullmatch(r"sk-passy-[0-9A-Za-z]{38}", key)
        assert keys.well_formed(key.encode())
        for letter in key[9:41]:
            counts[letter] += 1
    # 32 of 62 letters, each as likely as the next: 190 bits. Six standard deviations may pass.
    assert all(abs(count - 320_000 / 62) < 6 * (320_000 / 62) ** 0.5 for count in counts.values())


# K2


def nonces_of(count: int) -> None:
    ring = Keyring([OLD])
    seen: set[bytes] = set()
    for _ in range(count):
        _, _, wrapped, text = ring.seal("sk", "acme", "openai", "credential", "1").split(":")
        seen.add(base64.urlsafe_b64decode(wrapped)[:12])
        seen.add(base64.urlsafe_b64decode(text + "==")[:12])
    assert 2 * count == len(seen)


def test_K2_no_nonce_is_used_twice() -> None:
    nonces_of(100_000)


@pytest.mark.large
def test_K2_no_nonce_is_used_twice_in_a_million_writes() -> None:
    nonces_of(1_000_000)


# K5


class Load:
    """So many requests a second to the gateway of the moment, by clients that keep connections."""

    def __init__(self, gateway: Gateway, shown: tuple[str, ...], rate: float = 100) -> None:
        self.gateway = gateway
        self.failures: list[str] = []
        self.answered = 0
        self._shown = shown
        self._rate = rate
        self._asked = [gateway] * CLIENTS
        """The gateway to which each client is connected."""
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        key = self._shown[number % len(self._shown)]
        body = json.dumps({"model": "m", "user": str(number)})
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        gateway, connection = self.gateway, None
        due = time.monotonic()
        while not self._ended.is_set():
            if connection is None or gateway is not self.gateway:
                if connection is not None:
                    connection.close()
                gateway = self._asked[number] = self.gateway
                connection = http.client.HTTPConnection(gateway.url.partition("//")[2], timeout=90)
            try:
                connection.request("POST", "/v1/chat/completions", body, headers)
                answer = connection.getresponse()
                said = answer.read()
                if answer.status != 200:
                    self.failures.append(f"{answer.status}: {said[:200]!r}")
            except OSError as error:
                self.failures.append(repr(error))
                connection = None
            self.answered += 1
            due += CLIENTS / self._rate
            time.sleep(max(due - time.monotonic(), 0))
        if connection is not None:
            connection.close()

    def turn(self, gateway: Gateway) -> None:
        """Everybody asks that one from now on; nobody asks another one when this returns."""
        self.gateway = gateway
        end = time.monotonic() + PATIENCE
        while any(each is not gateway for each in self._asked):
            assert time.monotonic() < end, self.failures
            time.sleep(0.02)

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        goal, end = self.answered + count, time.monotonic() + PATIENCE
        while self.answered < goal:
            assert time.monotonic() < end, self.failures
            time.sleep(0.02)


CLIENTS = 10


def rotated_under_load(house: House, each: int) -> tuple[int, list[str]]:
    """A new key, everything under it, the old one retired: gateways take turns, and a client is
    never sent away. How many requests there were, and what failed."""
    shown = house.people(OLD)
    house.done([OLD], others)
    first = house.gateway(OLD)
    with Load(first, shown) as load:
        load.more(each)
        second = house.gateway(NEW, OLD)
        load.turn(second)
        assert 0 == first.stop()
        load.more(each)
        turned = second.passy("secrets", "rotate", "--json")
        assert 0 == turned.returncode, turned.stderr
        assert json.loads(turned.stdout)["wrapped"] == len(house.sealed())
        load.more(each)
        entry = second.passy("secrets", "retire", OLD_ID).stdout.strip()
        assert entry.startswith(f"retired:{OLD_ID}:")
        third = house.gateway(NEW, entry)
        load.turn(third)
        assert 0 == second.stop()
        load.more(each)
    old = Keyring([OLD])
    for organisation, upstream, id, version, sealed in house.sealed():
        assert sealed.startswith(f"v2:{NEW_ID}:")
        with pytest.raises(KeyringError, match=NEW_ID):
            old.open(sealed, organisation, upstream, f"credential {id}", str(version))
    assert 0 == third.passy("secrets", "status").returncode
    return load.answered, load.failures


async def others(books: Admin) -> None:
    """More than one transaction wraps."""
    organisation = await books.create_organisation("Other")
    for number in range(BATCH + 20):
        await books.add_credential(NewCredential(organisation, f"u{number}"), f"sk-{number}")


def test_K5_a_secret_key_is_replaced_and_retired_under_load(
    house: House, upstream: RawUpstream, figure: Note
) -> None:
    before = len(upstream.hits)
    answered, failures = rotated_under_load(house, 80)
    figure("requests", answered)
    figure("failed", len(failures))
    assert [] == failures
    assert answered > 300
    shown = {hit.header("authorization") for hit in upstream.hits[before:]}
    assert {"Bearer sk-operator", "Bearer sk-of-acme-0123456789"} == shown


@pytest.mark.large
def test_K5_a_secret_key_is_replaced_and_retired_under_load_for_a_minute(
    house: House, figure: Note
) -> None:
    answered, failures = rotated_under_load(house, 1_500)
    figure("requests", answered)
    figure("failed", len(failures))
    assert [] == failures


# K6


def test_K6_a_start_with_the_wrong_key_is_refused_in_words(house: House) -> None:
    house.people(NEW, OLD)
    for ring, said in (
        ([OLD], f"1 credential is sealed with {NEW_ID}"),
        ([THIRD], "made under another secret key"),
        ([THIRD, OLD], f"sealed with {NEW_ID}"),
        ([NEW], "made under another secret key"),
    ):
        code, told = ends(house.gateway(*ring, start=False))
        assert (78, True) == (code, said in told), told
        assert "Traceback" not in told
        for secret in (OLD, NEW, THIRD):
            assert secret not in told


def test_K6_who_brought_no_key_is_served_without_it_where_that_is_wanted(
    house: House, upstream: RawUpstream
) -> None:
    stranger, member = house.people(NEW, OLD)
    gateway = house.gateway(OLD, missing="serve")
    before = len(upstream.hits)
    assert 200 == chat(gateway, stranger).status
    refused = chat(gateway, member)
    assert 503 == refused.status
    error = refused.json["error"]
    assert "own_key_unreadable" == error["code"]
    assert NEW_ID in error["message"]
    assert before + 1 == len(upstream.hits), "no other key was shown in its place"
    until(lambda: NEW_ID in gateway.complaints() + (gateway.folder / "out").read_text() or None)
    assert 1 == gateway.passy("secrets", "status").returncode
    whole = house.gateway(NEW, OLD)
    assert [200, 200] == [chat(whole, key).status for key in (stranger, member)]


def test_K6_a_copy_of_the_database_works_with_the_key_and_not_without(
    house: House, tmp_path: Path
) -> None:
    stranger, member = house.people(OLD)
    copy = tmp_path / "elsewhere" / "books.db"
    copy.parent.mkdir()
    shutil.copy(house.books, copy)
    restored = house.gateway(OLD, books=copy)
    assert [200, 200] == [chat(restored, key).status for key in (stranger, member)]
    code, told = ends(house.gateway(NEW, start=False, books=copy))
    assert (78, True) == (code, "give the one it was made with" in told)


def test_K6_what_is_edited_is_seen_by_a_running_gateway(
    house: House, upstream: RawUpstream
) -> None:
    """A key that is replaced, put aside and removed, and a policy: none of it needs a restart."""
    _, member = house.people(OLD)
    gateway = house.gateway(OLD)

    def shown() -> str | None:
        before = len(upstream.hits)
        status = chat(gateway, member).status
        return (
            upstream.hits[-1].header("authorization")
            if before < len(upstream.hits)
            else str(status)
        )

    def edited(work: Callable[[Admin], Any], expected: str) -> None:
        house.done([OLD], work)
        until(lambda: shown() == expected or None)

    [(acme, _, mine, _, _)] = house.sealed()
    assert "Bearer sk-of-acme-0123456789" == shown()
    edited(lambda books: books.change_credential(mine, secret="sk-new"), "Bearer sk-new")
    edited(lambda books: books.change_credential(mine, status="disabled"), "Bearer sk-operator")
    edited(lambda books: books.change_organisation(acme, byok="own_only"), "403")
    edited(lambda books: books.change_credential(mine, status="active"), "Bearer sk-new")
    edited(lambda books: books.remove_credential(mine), "403")


# K7

GUARDED = """
stores: {books: {kind: sql, url: "sqlite:///books.db"}}
upstreams: {echo: {kind: echo}}
chains: {default: [{usage: {ledger: books}}, {auth: {directory: books}}, alias, fallback]}
routes:
  - {match: POST /v1/chat/completions}
  - {match: GET /admin/routing, chain: [routing: {token: "${PASSY_ADMIN_TOKEN-off}"}]}
  - {match: GET /metrics, chain: [metrics_page: {token: "${PASSY_METRICS_TOKEN-off}"}]}
"""
WEAK = {
    "empty": ("", "empty|holds no key"),
    "short": (secrets.token_urlsafe(48)[:31], "has 31 bytes"),
    "repeated": ("x" * 64, "not random"),
    "counted": ("0123456789abcdefghijklmnopqrstuvwxyz", "not random"),
    "a placeholder": ("change-me-to-something-long-please-1", "the default of an example"),
    "an example's": ("your-secret-key-of-at-least-32-bytes", "the default of an example"),
}


@pytest.mark.parametrize(
    ("variable", "cases"),
    [
        ("PASSY_SECRET_KEYS", tuple(WEAK)),
        ("PASSY_ADMIN_TOKEN", ("empty", "short", "a placeholder")),
        ("PASSY_METRICS_TOKEN", ("empty", "short", "repeated")),
    ],
)
def test_K7_a_weak_secret_is_refused_at_the_start(
    variable: str, cases: tuple[str, ...], serve: Serve
) -> None:
    def refused(case: str) -> None:
        value, said = WEAK[case]
        code, told = ends(serve(GUARDED, start=False, **{variable: value}))
        assert 78 == code, (case, told)
        assert re.search(said, told), (case, told)
        assert not value or value not in told
        if variable != "PASSY_SECRET_KEYS":
            assert re.search(r"gateway\.yaml:[78]:\d+", told), told

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(refused, cases))


def test_K7_a_weak_key_behind_a_good_one_is_refused_too(serve: Serve) -> None:
    weak, _ = WEAK["short"]
    code, told = ends(serve(GUARDED, start=False, PASSY_SECRET_KEYS=f"{OLD},{weak}"))
    assert (78, True) == (code, "key 2 of PASSY_SECRET_KEYS" in told)


def test_K7_a_good_secret_is_taken_and_none_at_all_lets_nobody_in(serve: Serve) -> None:
    token = secrets.token_urlsafe(36)
    gateway = serve(GUARDED, PASSY_SECRET_KEYS=OLD, PASSY_ADMIN_TOKEN=token)
    assert 200 == gateway.ask("/admin/routing", authorization=f"Bearer {token}").status
    for shown in ("", "Bearer ", "Bearer off", f"Bearer {token[:-1]}", "Bearer None"):
        assert 401 == gateway.ask("/admin/routing", authorization=shown).status
        assert 403 == gateway.ask("/metrics", authorization=shown).status
