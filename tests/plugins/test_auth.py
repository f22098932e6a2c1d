"""Who is asking: which keys are taken, what each refusal says, and what it costs the directory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest

from passy_plugins import auth, known_keys
from passy_plugins.stores.memory import Memory
from passy_proxy import Exchange, Principal, StoreUnavailable, keys
from passy_proxy.testing import KEYRING, Bench, Recorded, Wire

pytestmark = pytest.mark.anyio

CONFIGURATION = """
stores: {books: {kind: memory}}
chains:
  default: [auth: {directory: books, ttl: 30s, stale: 15m, known: 100, unknown: 50}, static]
routes: [{match: POST /v1/chat/completions}, {match: POST /v1/messages, dialect: anthropic}]
"""
NO_KEY = "No API key was given. "
NO_SCHEME = "No API key was given: the Authorization header does not begin with 'Bearer '. "
UNKNOWN = "is not known"
DISABLED = "was disabled"
EXPIRED = "has expired"
NOW = 1_800_000_000.0


class Books:
    """A directory that counts its queries and can be away. It holds four keys."""

    def __init__(self) -> None:
        self.good, self.disabled, self.expired, self.ending = (keys.new_key() for _ in range(4))
        people = {
            self.good: Principal("key_good", "Ada", "acme"),
            self.disabled: Principal("key_disabled", disabled=True),
            self.expired: Principal("key_expired", expires=NOW - 1),
            self.ending: Principal("key_ending", expires=NOW + 5),
        }
        self.known = {keys.digest(KEYRING.pepper, k.encode()): p for k, p in people.items()}
        self.queries = 0
        self.away = False

    async def principal(self, digest: bytes) -> Principal | None:
        self.queries += 1
        if self.away:
            raise StoreUnavailable
        return self.known.get(digest)

    def change(self, key: str, **changes: object) -> None:
        digest = keys.digest(KEYRING.pepper, key.encode())
        self.known[digest] = replace(self.known[digest], **changes)  # type: ignore[arg-type]


@dataclass
class Door:
    """A chain that begins with auth, its directory, and both of its clocks."""

    bench: Bench
    books: Books
    now: float = 1000.0
    today: float = NOW

    async def knock(self, *headers: tuple[bytes, bytes], path: str = "") -> Exchange:
        ex = self.bench.exchange(headers=headers, path=path or "/v1/chat/completions")
        await ex.route.chain.run(ex)
        return ex

    async def show(self, key: str) -> Exchange:
        return await self.knock((b"authorization", b"Bearer " + key.encode()))


@pytest.fixture
async def door(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    async with Bench(CONFIGURATION) as bench:
        books = Books()
        store = bench.snapshot.stores["books"]
        monkeypatch.setattr(store, "principal", books.principal)
        monkeypatch.setattr(store, "takes_any_key", False, raising=False)
        for filter in bench.snapshot.filters:
            await filter.start()  # Once more, now that the directory is this one.
        made = Door(bench, books)
        for module in (auth, known_keys):
            monkeypatch.setattr(module, "monotonic", lambda: made.now)
            monkeypatch.setattr(module, "time", lambda: made.today)
        yield made


def said(ex: Exchange) -> str:
    """The message of a refusal, whose form is checked on the way."""
    assert isinstance(ex.downstream, Recorded)
    assert 401 == ex.status
    error = ex.downstream.json["error"]
    assert "invalid_api_key" == error["code"]
    assert "invalid_request_error" == error["type"]
    assert b"Bearer" == ex.downstream.header(b"www-authenticate")
    assert ex.principal is None
    message: str = error["message"]
    return message


BEARER = b"authorization"
GOOD, OTHER, TYPO, SAME_START = b"<good>", b"<other>", b"<typo>", b"<same start>"
STRANGE = "\N{LATIN SMALL LETTER E WITH ACUTE}".encode()

# What is shown, what the answer says ("" lets in), how often the directory is asked for it.
CASES: dict[str, tuple[Wire, str, int]] = {
    "nothing": ((), NO_KEY, 0),
    "bearer": (((BEARER, b"Bearer <good>"),), "", 1),
    "lower-case bearer": (((BEARER, b"bearer <good>"),), "", 1),
    "upper-case bearer": (((BEARER, b"BEARER <good>"),), "", 1),
    "two spaces": (((BEARER, b"Bearer  <good>"),), "", 1),
    "trailing whitespace": (((BEARER, b"Bearer <good> \t"),), "", 1),
    "x-api-key": (((b"x-api-key", GOOD),), "", 1),
    "api-key": (((b"api-key", GOOD),), "", 1),
    "x-api-key with whitespace": (((b"x-api-key", b" <good> "),), "", 1),
    "both, the same": (((BEARER, b"Bearer <good>"), (b"x-api-key", GOOD)), "", 1),
    "authorization wins": (((b"x-api-key", OTHER), (BEARER, b"Bearer <good>")), "", 1),
    "authorization wins, also when it is wrong": (
        ((BEARER, b"Bearer <other>"), (b"x-api-key", GOOD)),
        UNKNOWN,
        1,
    ),
    "the first authorization counts": (
        ((BEARER, b"Bearer <other>"), (BEARER, b"Bearer <good>")),
        UNKNOWN,
        1,
    ),
    "empty authorization": (((BEARER, b""),), NO_KEY, 0),
    "only the scheme": (((BEARER, b"Bearer"),), NO_KEY, 0),
    "the scheme and a space": (((BEARER, b"Bearer "),), NO_KEY, 0),
    "whitespace for a key": (((BEARER, b"Bearer  \t "),), NO_KEY, 0),
    "no scheme": (((BEARER, GOOD),), NO_SCHEME, 0),
    "basic": (((BEARER, b"Basic <good>"),), NO_SCHEME, 0),
    "another scheme beside a key": (((BEARER, b"Basic x"), (b"x-api-key", GOOD)), NO_SCHEME, 0),
    "a tab after the scheme": (((BEARER, b"Bearer\t<good>"),), NO_SCHEME, 0),
    "a comma": (((BEARER, b"Bearer <good>,<good>"),), UNKNOWN, 0),
    "scheme twice": (((BEARER, b"Bearer Bearer <good>"),), UNKNOWN, 0),
    "quoted": (((BEARER, b'Bearer "<good>"'),), UNKNOWN, 0),
    "empty x-api-key": (((b"x-api-key", b""),), NO_KEY, 0),
    "x-api-key with a scheme": (((b"x-api-key", b"Bearer <good>"),), UNKNOWN, 0),
    "well formed but unknown": (((BEARER, b"Bearer <other>"),), UNKNOWN, 1),
    "wrong checksum": (((BEARER, b"Bearer <typo>"),), UNKNOWN, 0),
    "same first characters": (((BEARER, b"Bearer <same start>"),), UNKNOWN, 1),
    "cut short": (((BEARER, b"Bearer sk-passy-abc"),), UNKNOWN, 0),
    "one more character": (((BEARER, b"Bearer <good>0"),), UNKNOWN, 0),
    "somebody else's make": (((BEARER, b"Bearer sk-proj-0123456789abcdef"),), UNKNOWN, 0),
    "ten thousand characters": (((BEARER, b"Bearer " + b"A" * 10_000),), UNKNOWN, 0),
    "a NUL inside": (((BEARER, b"Bearer sk-passy-\x00" + b"a" * 37),), UNKNOWN, 0),
    "not ASCII": (((BEARER, b"Bearer sk-passy-" + STRANGE * 19),), UNKNOWN, 0),
    "not UTF-8": (((BEARER, b"Bearer sk-passy-" + b"\xff" * 38),), UNKNOWN, 0),
    "SQL": (((BEARER, b"Bearer ' OR 1=1 --"),), UNKNOWN, 0),
    "the digest as a key": (((BEARER, b"Bearer <digest>"),), UNKNOWN, 0),
    "disabled": (((BEARER, b"Bearer <disabled>"),), DISABLED, 1),
    "expired": (((BEARER, b"Bearer <expired>"),), EXPIRED, 1),
}


def written(value: bytes, books: Books) -> bytes:
    body = books.good[len(keys.PREFIX) : -6]
    other = body[:20] + body[20:][::-1]
    typo = books.good[:-1] + ("a" if books.good[-1] != "a" else "b")
    names = {
        GOOD: books.good,
        OTHER: keys.new_key(),
        TYPO: typo,
        SAME_START: keys.PREFIX + other + keys.checksum(other),
        b"<digest>": keys.digest(KEYRING.pepper, books.good.encode()).hex(),
        b"<disabled>": books.disabled,
        b"<expired>": books.expired,
    }
    for name, key in names.items():
        value = value.replace(name, key.encode())
    return value


@pytest.mark.parametrize("case", CASES)
async def test_each_input_is_taken_or_refused_as_it_should_be(door: Door, case: str) -> None:
    shown, message, queries = CASES[case]
    ex = await door.knock(*((name, written(value, door.books)) for name, value in shown))
    if message:
        assert message in said(ex)
    else:
        assert 200 == ex.status
        assert ex.principal is not None
        assert "key_good" == ex.principal.key_id
    assert queries == door.books.queries
    assert isinstance(ex.downstream, Recorded)
    assert door.books.good.encode() not in ex.downstream.answer


async def test_unknown_disabled_and_expired_have_a_message_each(door: Door) -> None:
    shown = (keys.new_key(), door.books.disabled, door.books.expired)
    assert 3 == len({said(await door.show(key)) for key in shown})


async def test_a_client_of_anthropic_is_refused_in_its_own_words(door: Door) -> None:
    ex = await door.knock((b"x-api-key", b"nonsense"), path="/v1/messages")
    assert isinstance(ex.downstream, Recorded)
    assert 401 == ex.status
    assert "authentication_error" == ex.downstream.json["error"]["type"]


async def test_a_known_key_is_asked_for_once_in_its_time_to_live(door: Door) -> None:
    for _ in range(5):
        assert 200 == (await door.show(door.books.good)).status
    assert 1 == door.books.queries
    door.now += 30
    await door.show(door.books.good)
    assert 2 == door.books.queries


async def test_an_unknown_key_is_asked_for_once_in_its_time_to_live(door: Door) -> None:
    key = keys.new_key()
    for _ in range(5):
        said(await door.show(key))
    assert 1 == door.books.queries


async def test_a_disabled_key_is_refused_once_the_time_to_live_is_over(door: Door) -> None:
    assert 200 == (await door.show(door.books.good)).status
    door.books.change(door.books.good, disabled=True)
    door.now += 29.9
    assert 200 == (await door.show(door.books.good)).status
    door.now += 0.1
    assert DISABLED in said(await door.show(door.books.good))


async def test_a_deleted_key_is_unknown_once_the_time_to_live_is_over(door: Door) -> None:
    assert 200 == (await door.show(door.books.good)).status
    door.books.known.clear()
    door.now += 30
    assert UNKNOWN in said(await door.show(door.books.good))


async def test_a_key_expires_on_time_whatever_is_remembered(door: Door) -> None:
    assert 200 == (await door.show(door.books.ending)).status
    door.today += 5
    assert EXPIRED in said(await door.show(door.books.ending))
    assert 1 == door.books.queries


async def test_a_known_key_outlives_its_directory_for_a_while(door: Door) -> None:
    assert 200 == (await door.show(door.books.good)).status
    door.books.away = True
    door.now += 15 * 60 - 1
    assert 200 == (await door.show(door.books.good)).status
    door.now += 1
    assert 503 == (await door.show(door.books.good)).status
    door.books.away = False
    assert 503 == (await door.show(door.books.good)).status
    door.now += known_keys.PAUSE
    assert 200 == (await door.show(door.books.good)).status


async def test_a_disabled_key_is_not_revived_when_the_directory_is_away(door: Door) -> None:
    said(await door.show(door.books.disabled))
    door.books.away = True
    door.now += 60
    assert DISABLED in said(await door.show(door.books.disabled))


async def test_a_key_that_cannot_be_checked_is_not_called_wrong(door: Door) -> None:
    door.books.away = True
    for key in (door.books.good, keys.new_key()):
        ex = await door.show(key)
        assert 503 == ex.status
        assert "directory_unavailable" == ex.outcome.code
        assert isinstance(ex.downstream, Recorded)
        assert b"1" == ex.downstream.header(b"retry-after")


async def test_what_could_not_be_issued_is_refused_also_without_a_directory(door: Door) -> None:
    door.books.away = True
    assert UNKNOWN in said(await door.show("sk-passy-nonsense"))


async def test_many_unknown_keys_neither_grow_the_memory_nor_push_out_known_ones(
    door: Door,
) -> None:
    await door.show(door.books.good)
    [filter] = [one for one in door.bench.snapshot.filters if isinstance(one, auth.Auth)]
    for _ in range(1_000):
        await filter._known.look_up(keys.new_key().encode())
    assert 50 == len(filter._known._unknown)
    assert 1 == len(filter._known._known)
    queries = door.books.queries
    assert 200 == (await door.show(door.books.good)).status
    assert queries == door.books.queries


@pytest.fixture
def hashed(door: Door, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys that were hashed, in order."""
    [filter] = [one for one in door.bench.snapshot.filters if isinstance(one, auth.Auth)]
    found: list[bytes] = []
    digest = filter._digest
    monkeypatch.setattr(filter, "_digest", lambda key: found.append(key) or digest(key))
    return found


@pytest.mark.parametrize(
    ("name", "before"), [(b"authorization", b"Bearer "), (b"x-api-key", b""), (b"api-key", b"")]
)
async def test_a_key_shown_again_is_not_read_again(
    door: Door, hashed: list[bytes], name: bytes, before: bytes
) -> None:
    key = door.books.good.encode()
    for _ in range(5):
        assert 200 == (await door.knock((name, before + key))).status
    assert [key] * 2 == hashed  # Asked about, then found known; from there on remembered.


async def test_what_lets_in_by_one_header_does_not_by_another(door: Door) -> None:
    key = door.books.good.encode()
    for _ in range(3):
        assert 200 == (await door.knock((BEARER, b"Bearer " + key))).status
        assert 200 == (await door.knock((b"x-api-key", key))).status
    assert UNKNOWN in said(await door.knock((b"x-api-key", b"Bearer " + key)))
    assert NO_SCHEME in said(await door.knock((BEARER, key)))


async def test_what_is_remembered_of_a_header_ends_with_the_directorys_word(door: Door) -> None:
    for _ in range(3):
        assert 200 == (await door.show(door.books.ending)).status
    door.books.change(door.books.ending, disabled=True)
    door.now += 30
    for _ in range(3):
        assert DISABLED in said(await door.show(door.books.ending))
    door.books.change(door.books.ending, disabled=False)
    door.now += 30
    for _ in range(3):
        assert 200 == (await door.show(door.books.ending)).status
    door.today += 5
    assert EXPIRED in said(await door.show(door.books.ending))
    door.today -= 5
    door.books.known.clear()
    door.now += 30
    for _ in range(3):
        assert UNKNOWN in said(await door.show(door.books.ending))


async def test_neither_strangers_nor_spaces_fill_the_memory_of_headers(door: Door) -> None:
    [filter] = [one for one in door.bench.snapshot.filters if isinstance(one, auth.Auth)]
    for number in range(20):
        await door.show(keys.new_key())
        await door.knock((BEARER, b"Bearer" + b" " * (number + 2) + door.books.good.encode()))
    assert (0, 0) == (len(filter._bearers), len(filter._bare))
    for _ in range(3):
        await door.show(door.books.good)
        await door.show(door.books.disabled)
    assert (1, 0) == (len(filter._bearers), len(filter._bare))


def made_up() -> Iterator[bytes]:
    for number in range(100_000):
        yield b"%032d" % number


async def test_a_hundred_thousand_keys_leave_as_many_entries_as_are_allowed() -> None:
    memory = auth.Memory(10_000)
    for digest in made_up():
        memory.put(digest, auth.NEVER_SEEN)
    assert 10_000 == len(memory)
    assert memory.get(b"%032d" % 99_999) is not None
    assert memory.get(b"%032d" % 89_999) is None


async def test_a_key_of_the_file_need_not_be_one_of_our_make() -> None:
    text = CONFIGURATION.replace(
        "{kind: memory}", '{kind: memory, keys: [{key: "${MINE}", id: mine}]}'
    )
    async with Bench(text, {"MINE": "a-key-that-was-made-elsewhere"}) as bench:
        assert isinstance(bench.snapshot.stores["books"], Memory)
        for key, status in ((b"a-key-that-was-made-elsewhere", 200), (b"another", 401)):
            ex = bench.exchange(headers=((b"x-api-key", key),))
            await ex.route.chain.run(ex)
            assert status == ex.status
