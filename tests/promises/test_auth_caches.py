"""S2: what is remembered of keys is remembered by the whole key, and random ones fill nothing.
S3: how long a key takes says nothing of it, and no comparison in the code could tell."""

from __future__ import annotations

import ast
import gc
import math
import os
import random
import statistics
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple

import pytest

from passy_plugins.auth import Auth
from passy_proxy import Exchange, Principal, keys
from passy_proxy.testing import KEYRING, Bench

if TYPE_CHECKING:
    from harness.figures import Note

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PATH = "/v1/chat/completions"
GATEWAY = """
stores: {books: {kind: memory}}
chains: {default: [{auth: {directory: books}}, {static: {status: 204}}]}
routes: [{match: POST /v1/chat/completions}]
"""


class Directory:
    """Knows some keys, and counts what it is asked."""

    def __init__(self) -> None:
        self.keys = [keys.new_key() for _ in range(20)]
        self._known = {
            keys.digest(KEYRING.pepper, key.encode()): Principal(f"key_{number}")
            for number, key in enumerate(self.keys)
        }
        self.asked = 0

    async def principal(self, digest: bytes) -> Principal | None:
        self.asked += 1
        return self._known.get(digest)


class Door(NamedTuple):
    """`auth` alone, before a directory that was made for it."""

    bench: Bench
    filter: Auth
    directory: Directory

    async def shown(self, value: bytes, header: bytes = b"authorization") -> Exchange:
        ex = self.bench.exchange(headers=((header, value),), path=PATH)
        await ex.route.chain.run(ex)
        return ex


@pytest.fixture
async def door(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    async with Bench(GATEWAY) as bench:
        directory, store = Directory(), bench.snapshot.stores["books"]
        monkeypatch.setattr(store, "principal", directory.principal)
        monkeypatch.setattr(store, "takes_any_key", False, raising=False)
        (filter,) = [one for one in bench.snapshot.filters if isinstance(one, Auth)]
        await filter.stop()
        await filter.start()  # Once more, now that the directory is this one.
        yield Door(bench, filter, directory)


def well_formed(body: str) -> str:
    return keys.PREFIX + body + keys.checksum(body)


def neighbours(key: str) -> Iterator[str]:
    """Well-formed keys that are the same but for a part: in one place, beyond the first 20
    characters, before the last 20, in another order or in other letters."""
    body = key[len(keys.PREFIX) : -6]
    for place in range(32):
        letter = keys.ALPHABET[(keys.ALPHABET.index(body[place]) + 1) % 62]
        yield well_formed(body[:place] + letter + body[place + 1 :])
    other = keys.new_key()[len(keys.PREFIX) : -6]
    for size in (1, 11, 16, 20, 31):  # 11 of the body and the prefix are the first 20.
        yield well_formed(body[:size] + other[size:])
        yield well_formed(other[:-size] + body[-size:])
    yield well_formed(body[::-1])
    yield well_formed(body.swapcase())


async def test_S2_a_key_is_remembered_by_all_of_it(door: Door) -> None:
    good = door.directory.keys[0]
    for header, scheme in ((b"authorization", b"Bearer "), (b"x-api-key", b"")):
        for _ in range(3):
            ex = await door.shown(scheme + good.encode(), header)
            assert ex.principal is not None
            assert (204, "key_0") == (ex.status, ex.principal.key_id)
        for wrong in {*neighbours(good)} - {good}:
            asked = door.directory.asked
            for turn in range(3):
                ex = await door.shown(scheme + wrong.encode(), header)
                assert (401, None) == (ex.status, ex.principal)
                if header == b"authorization":
                    assert door.directory.asked == asked + 1, f"once, not {turn}"
        assert 204 == (await door.shown(scheme + good.encode(), header)).status


async def test_S2_each_of_many_keys_is_itself_however_they_are_mixed(door: Door) -> None:
    random.seed(2)
    for _ in range(400):
        number = random.randrange(20)
        ex = await door.shown(b"Bearer " + door.directory.keys[number].encode())
        assert ex.principal is not None
        assert f"key_{number}" == ex.principal.key_id
    assert 20 == door.directory.asked


def memory() -> int:
    """Bytes of this process that are resident."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def random_tokens(door: Door, count: int) -> int:
    """Shows so many random tokens, half of them such as could have been issued; how much more
    memory that took, in bytes."""
    source = random.Random(7)

    async def some(number: int) -> None:
        for turn in range(number):
            token = well_formed("".join(source.choices(keys.ALPHABET, k=32)))
            if turn % 2:
                token = token[:-1] + ("a" if token[-1] != "a" else "b")
            ex = door.bench.exchange(headers=((b"authorization", b"Bearer " + token.encode()),))
            answer = door.filter.on_request(ex)
            reply = await answer if hasattr(answer, "__await__") else answer
            assert reply is not None
            assert 401 == reply.status

    await some(25_000)  # Until what may be remembered is.
    before = memory()
    asked = door.directory.asked
    await some(count)
    assert asked + (count + 1) // 2 == door.directory.asked
    known = door.filter._known
    assert (0, 10_000) == (len(known._known), len(known._unknown))
    assert 0 == len(door.filter._bearers) == len(door.filter._bare)
    return memory() - before


async def test_S2_random_tokens_fill_no_memory(door: Door, figure: Note) -> None:
    for _ in range(4):  # A leak grows each time; other threads of this process take some once.
        if (grown := await random_tokens(door, 30_000)) < 4 << 20:
            break
    figure("MiB more after 30,000 tokens", grown / 2**20)
    assert grown < 4 << 20


@pytest.mark.large
async def test_S2_a_million_random_tokens_fill_no_memory(door: Door, figure: Note) -> None:
    grown = await random_tokens(door, 1_000_000)
    figure("MiB more after 1,000,000 tokens", grown / 2**20)
    assert grown < 4 << 20


# S3


def welch(first: list[int], second: list[int]) -> float:
    """Student's t of two samples whose variances may differ."""
    means = statistics.fmean(first), statistics.fmean(second)
    variances = statistics.variance(first, means[0]), statistics.variance(second, means[1])
    return (means[0] - means[1]) / math.sqrt(variances[0] / len(first) + variances[1] / len(second))


async def timed(door: Door, samples: int) -> float:
    """|t| between tokens that begin as a good key does and tokens that do not, by how long it takes
    to refuse them. Half of the time the caches hold the good key's digest, as they would."""
    source = random.Random(3)
    good = door.directory.keys[0]
    assert 204 == (await door.shown(b"Bearer " + good.encode())).status
    body = good[len(keys.PREFIX) : -6]

    def token(alike: bool) -> bytes:
        # Both are made in the same way: what goes before would be measured as well.
        first = [body[:16], "".join(source.choices(keys.ALPHABET, k=16))][not alike]
        return (
            b"Bearer " + well_formed(first + "".join(source.choices(keys.ALPHABET, k=16))).encode()
        )

    kinds = [source.random() < 0.5 for _ in range(samples)]
    shown_ones = [token(alike) for alike in kinds]
    times: list[int] = []
    digest, known, remembered = door.filter._digest, door.filter._known, door.filter._bearers
    gc.disable()
    try:
        for shown in shown_ones:
            begun = perf_counter_ns()
            # What is done with a header that nobody has seen, up to the directory.
            seen = remembered.get(shown)
            key = shown[7:]
            found = keys.well_formed(key) and known.now(digest(key))
            times.append(perf_counter_ns() - begun)
            assert seen is None
            assert not found
    finally:
        gc.enable()
    # What interrupts us is slow, and has nothing to do with the key.
    cut = sorted(times)[int(samples * 0.95)]
    measured = list(zip(kinds, times, strict=True))
    sides = [[took for alike, took in measured if alike == kind and took <= cut] for kind in (0, 1)]
    return abs(welch(*sides))


async def least_of(door: Door, samples: int, tries: int) -> float:
    """The least of some runs: a machine that does other things as well may trouble one of them, a
    difference would be in all."""
    return min([await timed(door, samples) for _ in range(tries)])


async def test_S3_how_long_a_refusal_takes_says_nothing_of_the_key(
    door: Door, figure: Note
) -> None:
    found = await least_of(door, 20_000, 3)
    figure("|t| of 20,000 samples", found)
    assert found < 4.5


@pytest.mark.large
async def test_S3_how_long_200_000_refusals_take_says_nothing_of_the_key(
    door: Door, figure: Note
) -> None:
    found = await least_of(door, 200_000, 3)
    figure("|t| of 200,000 samples", found)
    assert found < 4.5


def test_S3_the_test_of_times_can_tell_a_difference() -> None:
    """A comparison that ends at the first difference is found out by the same means."""
    source = random.Random(4)
    secret = bytes(source.randrange(256) for _ in range(64))

    def careless(shown: bytes) -> bool:
        return all(a == b for a, b in zip(shown, secret, strict=True))

    times: dict[bool, list[int]] = {False: [], True: []}
    for _ in range(20_000):
        alike = source.random() < 0.5
        rest = bytes(source.randrange(256) for _ in range(48))
        shown = (secret if alike else secret[::-1])[:16] + rest
        begun = perf_counter_ns()
        careless(shown)
        times[alike].append(perf_counter_ns() - begun)
    cut = sorted(times[False] + times[True])[19_000]
    assert abs(welch(*([t for t in times[kind] if t <= cut] for kind in (False, True)))) > 4.5


# What secrets are called in the code, and what is not compared but by compare_digest.
SECRETS = frozenset(
    {
        "attestation",
        "csrf",
        "digest",
        "hmac",
        "mac",
        "password",
        "pepper",
        "secret",
        "signature",
        "token",
    }
)
HARMLESS = {
    # whether they are there
    "plugins/passy_plugins/stores/memory.py": {"(self.key is None) == (self.digest is None)"},
    # checksums of rows that are there already
    "plugins/passy_plugins/stores/sql/evidence.py": {"last == (digest(row),)"},
    "plugins/passy_plugins/stores/sql/verify.py": {"record != digest(row)"},
    # columns, looked up by the digest of a random text
    "portal_service/passy_portal/accounts.py": {"sessions.c.digest == digest(cookie)"},
    "portal_service/passy_portal/factors.py": {"recovery.c.digest == _digest(user, typed)"},
    "portal_service/passy_portal/links.py": {"tokens.c.digest == digest(token)"},
}


def compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where the code compares what has a secret's name, by a means that may end early."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, sides, sides[1:], strict=False):
            if not isinstance(operator, ast.Eq | ast.NotEq):
                continue
            if any(constant(side) for side in (left, right)):
                continue  # with a word that stands in the code: none of it is secret
            if any(secretive(side) for side in (left, right)):
                yield node.lineno, ast.unparse(node)


def constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) or (
        isinstance(node, ast.Call) and ast.unparse(node.func) == "len"
    )


def secretive(node: ast.expr) -> bool:
    names = [
        each.id if isinstance(each, ast.Name) else each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Name | ast.Attribute)
    ]
    return any(part in SECRETS for name in names for part in name.strip("_").lower().split("_"))


def test_S3_no_secret_is_compared_by_equality() -> None:
    found = []
    for folder in ("proxy", "plugins", "portal_service"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            for line, text in compared(ast.parse(file.read_text())):
                if text not in HARMLESS.get(name, ()):
                    found.append(f"{name}:{line}: {text}")
    assert [] == found


@pytest.mark.parametrize(
    ("code", "caught"),
    [
        ("if shown == self._token: pass", True),
        ("if admin_token != shown: pass", True),
        ("ok = digest(key) == row.digest", True),
        ("ok = credential.secret == other.secret", True),
        ("ok = compare_digest(shown, token)", False),
        ("ok = token == ''", False),
        ("ok = len(secret) == 32", False),
        ("ok = tokens == 7 and tokens == limit", False),
    ],
)
def test_S3_the_search_for_comparisons_finds_them(code: str, caught: bool) -> None:
    assert caught == bool(list(compared(ast.parse(code))))
