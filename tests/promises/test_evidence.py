"""F6: the books tell what was said on both sides and by whom it was changed, and every later change
of the books is found."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from harness.client import send
from harness.figures import Note
from harness.gateway import Gateway, Serve, until
from harness.plugin import installed
from harness.upstream import Hit, RawUpstream, Step, refusing

from passy_plugins.stores.sql import Sql, SqlSettings, migrate
from passy_plugins.stores.sql.verify import verify, verify_within
from passy_proxy.config.settings import Secret
from passy_proxy.evidence import Proof, Verdict
from passy_proxy.keyring import Keyring
from passy_proxy.records import AttemptRecord, UsageRecord
from passy_proxy.site import Site

KEY = "the secret key of these tests: 0123456789"
OTHER = "a newer secret key of these tests: 9876543210"
RING = Keyring([KEY])
ATTEMPT = AttemptRecord("echo", "echo", 200, "", 0, 1, False)
NAMES = ("key_1", "", "", "", "", "/v1/chat/completions", "écho \ud83d", "echo", "echo", "ok")
RECORD = UsageRecord(
    "", 1.5, *NAMES, 200, False, 1, 2, 0, 0, 0, 0, 0, False, 0, "free", 1, 2, (ATTEMPT,)
)


# The books


def store_at(path: Path, ring: Keyring = RING) -> Sql:
    return Sql(SqlSettings(url=Secret(f"sqlite:///{path}")), Site(path.parent, ring))


def proof_of(number: int) -> Proof:
    names = (("filter", "gateway"), (), ("gateway",))[number % 3]
    return Proof(sha256(b"%d" % number).hexdigest(), sha256(b"-%d" % number).hexdigest(), names)


def numbered(first: int, last: int) -> list[UsageRecord]:
    return [
        RECORD._replace(
            id=f"req_{number:06}",
            at=1_700_000_000 + number,
            input=number,
            cost_nanos=None if number % 5 == 0 else number,
            price="" if number % 5 == 0 else "by hand",
        )
        for number in range(first, last)
    ]


def write(path: Path, first: int, last: int, ring: Keyring = RING, *, proofs: bool = True) -> None:
    """One life of a process: its records, each fifth of them priced later."""

    async def live() -> None:
        store = store_at(path, ring)
        await store.start()
        for number, record in enumerate(numbered(first, last), start=first):
            store.record(record.row(), proof_of(number) if proofs and number % 7 else None)
            if number % 10 == 0:
                store.price(record.id, 1_000 + number, "found later")
            if number % 40 == 0:
                await asyncio.sleep(0)
        await store.stop()

    asyncio.run(live())


def said(verdict: Verdict) -> list[Any]:
    return verdict.findings[:5]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three lives, the first one without evidence."""
    path = tmp_path_factory.mktemp("books") / "passy.db"
    write(path, 0, 10, proofs=False)
    write(path, 10, 40)
    write(path, 40, 70, Keyring([OTHER, KEY]))
    return path


def test_F6_nothing_is_found_in_books_that_nobody_touched(books: Path) -> None:
    verdict = verify(books, Keyring([OTHER, KEY]))
    assert [] == said(verdict)
    assert (10, 60) == (verdict.before, verdict.proved + verdict.bare)
    assert 60 + 6 == verdict.entries
    assert verdict.proved > 45


USAGE = tuple(UsageRecord._fields)
FRESH = Path(migrate.__file__).with_name("fresh.sql")
EVIDENCE = ("chain", "seq", "id", "kind", "record", "upstream", "client", "modified_by", "link")


class Vandal:
    """Does one thing to the books that a seeded die chooses; nothing may be left as it was."""

    def __init__(self, database: sqlite3.Connection, dice: random.Random) -> None:
        self.database = database
        self.dice = dice
        self.acts: list[Callable[[], str]] = [
            *[self.edit] * 12,
            self.delete,
            self.delete_entry,
            self.delete_both,
            self.swap,
            self.swap_entries,
            self.insert,
            self.insert_with_entry,
            self.truncate,
            self.truncate_with_mark,
            self.edit_mark,
            self.delete_mark,
            self.forge_chain,
        ]

    def run(self) -> str:
        return self.dice.choice(self.acts)()

    def one(self, table: str, where: str = "1") -> int:
        """The rowid of some row; of the sealed ones, in ``usage``."""
        if table == "usage":
            where = f"id >= 'req_000010' AND {where}"
        found = self.database.execute(f"SELECT rowid FROM {table} WHERE {where}").fetchall()
        return int(self.dice.choice(found)[0])

    def edit(self) -> str:
        table = self.dice.choice(("usage", "evidence"))
        column = self.dice.choice(USAGE if table == "usage" else EVIDENCE)
        row = self.one(table)
        question = f"SELECT quote({column}) FROM {table} WHERE rowid = ?"
        ((before,),) = self.database.execute(question, (row,))
        ((value,),) = self.database.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,))
        for _ in range(50):
            statement = f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid = ?"
            self.database.execute(statement, (self.other(value), row))
            ((after,),) = self.database.execute(question, (row,))
            if after != before:
                return f"{table}.{column} of {row}: {before} → {after}"
        raise AssertionError(f"{table}.{column} cannot be changed")

    def other(self, value: Any) -> Any:
        dice = self.dice
        if isinstance(value, int):
            return dice.choice((value + 1, value - 1, -value, 0, 2**62, value + 0.5, "x", b"\xff"))
        text = value or ""
        at = dice.randrange(len(text) + 1)
        return dice.choice(
            (
                text + " ",
                text[:-1],
                text[:at] + chr(dice.randrange(32, 127)) + text[at + 1 :],
                text.swapcase(),
                text.encode(errors="replace"),
                text + "\0",
                "",
                "[]",
                7,
            )
        )

    def delete(self) -> str:
        return self.gone("usage", self.one("usage"))

    def delete_entry(self) -> str:
        return self.gone("evidence", self.one("evidence"))

    def gone(self, table: str, row: int) -> str:
        self.database.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
        return f"{table} without {row}"

    def delete_both(self) -> str:
        row = self.one("usage")
        mine = "SELECT id FROM usage WHERE rowid = ?"
        self.database.execute(f"DELETE FROM evidence WHERE id = ({mine})", (row,))
        return "entry and " + self.gone("usage", row)

    def swap(self) -> str:
        """Two records change their ids."""
        return self.swapped("usage", "id")

    def swap_entries(self) -> str:
        """Two entries change their places."""
        return self.swapped("evidence", "seq")

    def swapped(self, table: str, column: str) -> str:
        first = self.one(table)
        second = self.one(table, f"rowid <> {first}")
        values = [
            self.database.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,))
            for row in (first, second)
        ]
        (a,), (b,) = (cursor.fetchone() for cursor in values)
        statement = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
        for value, row in (("passing" if table == "usage" else -1, first), (a, second), (b, first)):
            self.database.execute(statement, (value, row))
        return f"{table}.{column} of {first} and {second} swapped"

    def insert(self) -> str:
        row = self.one("usage")
        columns = ", ".join(USAGE[1:])
        self.database.execute(
            f"INSERT INTO usage (id, {columns}) SELECT 'req_forged', {columns} FROM usage"
            " WHERE rowid = ?",
            (self.dice.choice((row, 1)),),
        )
        return f"a copy of {row}"

    def insert_with_entry(self) -> str:
        done = self.insert()
        columns = ", ".join(EVIDENCE[3:])
        self.database.execute(
            f"INSERT INTO evidence (chain, seq, id, {columns}) SELECT chain,"
            f" (SELECT max(seq) + 1 FROM evidence), 'req_forged', {columns} FROM evidence"
            " WHERE rowid = ?",
            (self.one("evidence"),),
        )
        return f"{done}, with an entry"

    def truncate(self) -> str:
        """The end is cut off, records and all."""
        ((last,),) = self.database.execute("SELECT max(seq) FROM evidence")
        left = last - self.dice.randrange(1, last + 1)
        ids = "SELECT id FROM evidence WHERE seq > ?"
        self.database.execute(f"DELETE FROM usage WHERE id IN ({ids})", (left,))
        self.database.execute("DELETE FROM evidence WHERE seq > ?", (left,))
        return f"cut behind {left}"

    def truncate_with_mark(self) -> str:
        """And the mark is made to fit, as well as one can without the key."""
        done = self.truncate()
        found = self.database.execute("SELECT seq, link FROM evidence ORDER BY seq DESC LIMIT 1")
        seq, link = found.fetchone() or (0, "")
        ((text,),) = self.database.execute("SELECT value FROM marks WHERE name = 'evidence:1'")
        value = json.dumps([seq, link, *json.loads(text)[2:]], separators=(",", ":"))
        self.database.execute("UPDATE marks SET value = ? WHERE name = 'evidence:1'", (value,))
        return f"{done}, and its mark"

    def edit_mark(self) -> str:
        ((text,),) = self.database.execute("SELECT value FROM marks WHERE name = 'evidence:1'")
        value = text
        while value == text:
            value = self.other(text)
        self.database.execute("UPDATE marks SET value = ? WHERE name = 'evidence:1'", (value,))
        return f"the mark is {value!r}"

    def delete_mark(self) -> str:
        self.database.execute("DELETE FROM marks WHERE name = 'evidence:1'")
        return "no mark"

    def forge_chain(self) -> str:
        number = self.dice.choice((2, 3, 999_999_999_999))
        self.database.execute(
            "INSERT INTO marks SELECT ?, value FROM marks WHERE name = 'evidence:1'",
            (f"evidence:{number}",),
        )
        return f"a mark of chain {number}"


@pytest.mark.parametrize(
    "count", [1_000, pytest.param(20_000, id="large", marks=pytest.mark.large)]
)
def test_F6_every_change_at_a_seeded_place_is_found(
    books: Path, tmp_path: Path, figure: Note, count: int
) -> None:
    ring = Keyring([OTHER, KEY])
    path = tmp_path / "passy.db"
    shutil.copy(books, path)
    unseen = []
    kinds: dict[str, int] = {}
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA synchronous = OFF")
        for seed in range(count):
            database.execute("BEGIN")
            vandal = Vandal(database, random.Random(seed))
            done = vandal.run()
            verdict = verify_within(database, ring)
            if verdict.ok:
                unseen.append((seed, done))
            for finding in verdict.findings:
                kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
            database.execute("ROLLBACK")
    assert [] == unseen
    assert {"edited", "removed", "added"} <= set(kinds)
    assert [] == said(verify(path, ring))
    figure(f"changes of the books that were found, of {count}", count - len(unseen))


def test_F6_of_a_second_key_only_what_it_sealed_is_known(books: Path) -> None:
    verdict = verify(books, RING)
    assert {"unknown"} == {finding.kind for finding in verdict.findings}


def test_F6_an_older_copy_of_the_books_is_found_by_a_noted_head(tmp_path: Path) -> None:
    path, copy = tmp_path / "passy.db", tmp_path / "copy.db"
    write(path, 0, 30)
    shutil.copy(path, copy)
    write(path, 30, 60)
    noted = verify(path, RING).head
    assert verify(path, RING, noted=noted).ok
    write(path, 60, 70)
    assert verify(path, RING, noted=noted).ok
    assert verify(copy, RING).ok
    assert ["removed"] == [each.kind for each in verify(copy, RING, noted=noted).findings]


@pytest.mark.parametrize("spoil", ["NO MARK", "MARK", "TAIL"])
def test_F6_who_goes_on_writing_does_not_make_good_what_was_done(
    tmp_path: Path, spoil: str
) -> None:
    path = tmp_path / "passy.db"
    write(path, 0, 30)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        if spoil == "TAIL":
            database.execute(
                "DELETE FROM usage WHERE id IN (SELECT id FROM evidence WHERE seq > 20)"
            )
            database.execute("DELETE FROM evidence WHERE seq > 20")
        elif spoil == "MARK":
            database.execute("UPDATE marks SET value = value || ' ' WHERE name = 'evidence:1'")
        else:
            database.execute("DELETE FROM marks WHERE name LIKE 'evidence:%'")
    assert not verify(path, RING).ok
    write(path, 30, 60)
    verdict = verify(path, RING)
    assert not verdict.ok
    assert {"", *(record.id for record in numbered(0, 30))} >= {
        finding.id for finding in verdict.findings
    }
    with closing(sqlite3.connect(path)) as database:
        found = {row[0] for row in database.execute("SELECT id FROM evidence")}
    assert {record.id for record in numbered(30, 60)} <= found


WRITER = f"""
import sys
sys.path[:0] = {sys.path!r}
import asyncio
from pathlib import Path
from passy_proxy.json import dumps
from promises.test_evidence import numbered, proof_of, store_at


async def live():
    store = store_at(Path(sys.argv[1]))
    await store.start()
    first = int(sys.argv[2])
    for number, record in enumerate(numbered(first, first + 100_000), start=first):
        asked = [*[""] * 7, 0, "echo", "echo", None, ""]
        store.begin(record.id, dumps([record.id, 0, 1, 0, asked, []]))
        if number == first:
            continue  # It is under way when this one is killed.
        if number % 50 == 49:
            await asyncio.sleep(0.01)
            print(number, flush=True)
        store.record(record.row(), proof_of(number) if number % 7 else None)
        if number % 10 == 0:
            store.price(record.id, 1_000 + number, "found later")

asyncio.run(live())
"""


def test_F6_no_kill_leaves_anything_to_be_found(tmp_path: Path) -> None:
    path = tmp_path / "passy.db"
    dice = random.Random(6)
    write(path, 0, 10)
    for turn in range(3):
        lives = []
        for side in range(2):
            first = 1_000_000 * (2 * turn + side + 1)
            command = [sys.executable, "-c", WRITER, str(path), str(first)]
            lives.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for life in lives:
            with life:
                assert life.stdout is not None
                for _ in range(dice.randrange(4, 20)):
                    assert life.stdout.readline()
                assert verify(path, RING).ok
                life.kill()
        assert [] == said(verify(path, RING))
    write(path, 10, 20)  # It takes over what was left behind.
    verdict = verify(path, RING)
    assert [] == said(verdict)
    with closing(sqlite3.connect(path)) as database:
        ((count,),) = database.execute("SELECT count(*) FROM usage")
        ((cut,),) = database.execute("SELECT count(*) FROM usage WHERE outcome = 'interrupted'")
    assert (count, 0) == (verdict.proved + verdict.bare, verdict.before)
    assert count > 6 * 4 * 49
    assert cut >= 6


def test_F6_an_entry_in_the_way_costs_no_record(tmp_path: Path) -> None:
    path = tmp_path / "passy.db"
    write(path, 0, 10)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(
            "INSERT INTO evidence SELECT chain, seq + 1, id, kind, record, upstream, client,"
            " modified_by, link FROM evidence ORDER BY seq DESC LIMIT 1"
        )
    write(path, 10, 20)
    with closing(sqlite3.connect(path)) as database:
        assert [(20,)] == database.execute("SELECT count(*) FROM usage").fetchall()
    assert not verify(path, RING).ok


def test_F6_a_price_does_not_make_good_an_edited_record(tmp_path: Path) -> None:
    path = tmp_path / "passy.db"
    write(path, 0, 4)
    statement = "UPDATE usage SET cost_nanos = NULL, price = '' WHERE id = 'req_000003'"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement)

    async def price() -> None:
        store = store_at(path)
        await store.start()
        store.price("req_000003", 1, "cheap")
        await store.stop()

    asyncio.run(price())
    assert ["req_000003"] == [finding.id for finding in verify(path, RING).findings]


def test_F6_a_record_written_twice_is_entered_once(tmp_path: Path) -> None:
    path = tmp_path / "passy.db"
    write(path, 0, 30)
    write(path, 0, 40)
    verdict = verify(path, RING)
    assert [] == said(verdict)
    assert (40, 40 + 4) == (verdict.proved + verdict.bare, verdict.entries)


def test_F6_books_of_the_version_before_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "passy.db"
    first, _, _ = FRESH.read_text(encoding="utf-8").partition("CREATE TABLE evidence")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript(first)
        columns = [name for name in USAGE if name not in ("team", "user_id", "tags")]
        places = ", ".join("?" * len(columns))
        for record in numbered(0, 5):
            row = record._replace(model="écho")._asdict() | {"attempts": "[]"}
            values = [row[name] for name in columns]
            database.execute(f"INSERT INTO usage ({', '.join(columns)}) VALUES ({places})", values)
    write(path, 5, 12)
    verdict = verify(path, RING)
    assert [] == said(verdict)
    assert (5, 7) == (verdict.before, verdict.proved + verdict.bare)


# The gateway

SHOUT = '''
from passy_proxy import Event, Filter, hookimpl


class Shout(Filter):
    """Changes what x-shout asks for."""

    name = "shout"

    def on_event(self, ex, event):
        if ex.request.header(b"x-shout"):
            return Event(event.raw.replace(b"Hello", b"HELLO"), final=event.final)

    def on_end(self, ex):
        if ex.request.header(b"x-refuse"):
            raise ValueError("not this one")


class Whisper(Filter):
    name = "whisper"

    def on_event(self, ex, event):
        if ex.request.header(b"x-whisper"):
            event.raw = event.raw.replace(b"world", b"w0rld")


@hookimpl
def passy_filters():
    return [Shout, Whisper]
'''

CONFIGURATION = """
overload: {{loop_lag: 0s}}
stores:
  books: {{kind: sql, url: "sqlite:///.passy/passy.db"}}
upstreams:
  gpt: {{dialect: openai, url: "{url}/v1", credential: sk-of-the-operator}}
  other: {{dialect: openai, url: "{url}/other", credential: sk-of-the-operator}}
  claude: {{dialect: anthropic, url: "{url}", credential: sk-of-the-operator}}
  dead: {{dialect: openai, url: "{dead}/v1", credential: sk-of-the-operator}}
models: {{gpt: [gpt/m], claude: [claude/m], late: [dead/m, other/m], none: [dead/m]}}
chains:
  default:
    - usage: {{ledger: books, evidence: {evidence}}}
    - shout
    - whisper
    - alias
    - fallback: {{retries: 0, first_event: 5s, heartbeat: 400ms}}
  passing:
    - usage: {{ledger: books, evidence: {evidence}}}
    - shout
    - direct: {{upstream: gpt}}
routes:
  - {{match: POST /v1/chat/completions, chain: default}}
  - {{match: "* /v1/*", chain: passing}}
"""
HELLO = [{"role": "user", "content": "hello"}]
COMPLETION = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, world"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
)
MESSAGE = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hello, world"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }
)
PROBLEM = json.dumps({"error": {"message": "no such thing", "type": "invalid_request_error"}})


def delta(text: str) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n"


EVENTS = [
    delta("Hello"),
    delta(", world"),
    'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    "data: [DONE]\n\n",
]


class Told:
    """An upstream's script, and the body bytes that it sent."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.over = threading.Event()
        """What is endless may end."""

    def __call__(self, hit: Hit) -> Iterator[Step]:
        yield "read"
        if hit.method != "POST":
            yield from self.passed(hit)
            return
        asked = json.loads(hit.body)
        case = hit.header("user-agent") or ""
        if asked.get("stream") and case != "packed-stream":
            yield from self.stream(case)
            return
        body = MESSAGE if hit.target.startswith("/v1/messages") else COMPLETION
        status = "200 OK"
        if case == "problem":
            body, status = PROBLEM, "400 Bad Request"
        elif case == "secret":
            body = body.replace("world", "sk-of-the-operator")
        elif case == "huge":
            body = body.replace("world", "world" * (600 << 10))
        data, kind = body.encode(), "application/json"
        if case == "packed-stream":
            data, kind = "".join(EVENTS).encode(), "text/event-stream"
        if case.startswith("packed"):
            data, kind = gzip.compress(data), f"{kind}\r\ncontent-encoding: gzip"
        self.bodies[case] = data
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n"
        yield {"send": f"{head}content-length: {len(data)}\r\n\r\n" + data.decode("latin-1")}

    def passed(self, hit: Hit) -> Iterator[Step]:
        if hit.target.endswith("/nothing"):
            yield {"send": "HTTP/1.1 204 No Content\r\n\r\n"}
            return
        body = bytes(range(256)).decode("latin-1") * 100
        yield {"send": f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n"}
        if hit.method != "HEAD":
            yield {"send": body}

    def stream(self, case: str) -> Iterator[Step]:
        kind = "application/json" if case == "mislabelled" else "text/event-stream"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n"
        yield {"send": f"{head}transfer-encoding: chunked\r\n\r\n"}
        events = EVENTS[:2] if case == "cut" else EVENTS
        self.bodies[case] = "".join(events).encode()
        pauses: dict[str, Any] = {"slow": 1.2, "endless": self.over}
        for number, event in enumerate(events):
            yield {"chunk": event}
            yield {"wait": pauses.get(case, 0.01) if number == 1 else 0.01}
        if case == "cut":
            yield "close"
        else:
            yield {"send": "0\r\n\r\n"}


CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    # Name, which is its user agent: request, more headers, and who changed something.
    "plain": ({"model": "gpt"}, "", []),
    "huge": ({"model": "gpt"}, "", []),
    "shouted": ({"model": "gpt"}, "x-shout: 1\r\n", ["shout"]),
    "both": ({"model": "gpt"}, "x-shout: 1\r\nx-whisper: 1\r\n", ["whisper", "shout"]),
    "secret": ({"model": "gpt"}, "", ["gateway"]),
    "problem": ({"model": "gpt"}, "", []),
    "translated": ({"model": "claude"}, "", ["gateway"]),
    "translated-and-shouted": ({"model": "claude"}, "x-shout: 1\r\n", ["shout", "gateway"]),
    "fallen-back": ({"model": "late"}, "", []),
    "refused": ({"model": "none"}, "", ["gateway"]),
    "unknown": ({"model": "nobody's"}, "", ["gateway"]),
    "streamed": (
        {"model": "gpt", "stream": True, "stream_options": {"include_usage": True}},
        "",
        [],
    ),
    "mislabelled": (
        {"model": "gpt", "stream": True, "stream_options": {"include_usage": True}},
        "",
        [],
    ),
    "packed": ({"model": "gpt"}, "", ["gateway"]),
    "packed-and-shouted": ({"model": "gpt"}, "x-shout: 1\r\n", ["shout", "gateway"]),
    "packed-stream": ({"model": "gpt", "stream": True}, "", ["gateway"]),
    "refused-late": ({"model": "gpt"}, "x-refuse: 1\r\n", []),
    "hidden": ({"model": "gpt", "stream": True}, "", ["gateway"]),
    "slow": (
        {"model": "gpt", "stream": True, "stream_options": {"include_usage": True}},
        "",
        ["gateway"],
    ),
    "cut": ({"model": "gpt", "stream": True}, "", ["gateway"]),
    "streamed-and-shouted": (
        {"model": "gpt", "stream": True},
        "x-shout: 1\r\n",
        ["shout", "gateway"],
    ),
    "only-shouted": (
        {"model": "gpt", "stream": True, "stream_options": {"include_usage": True}},
        "x-shout: 1\r\n",
        ["shout"],
    ),
}


def question(case: str) -> bytes:
    asked, more, _ = CASES[case]
    body = json.dumps({**asked, "messages": HELLO})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nuser-agent: {case}\r\n{more}"
    return f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    return installed(tmp_path_factory.mktemp("shout"), "shout", SHOUT)


def evidence(gateway: Gateway) -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db")) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM evidence ORDER BY seq")
        return {row["id"]: dict(row) for row in rows}


def hexed(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_F6_the_digests_are_those_of_what_both_sides_saw(serve: Serve, plugin: str) -> None:
    told = Told()
    with RawUpstream(script=told) as upstream, refusing() as dead:
        settings = CONFIGURATION.format(url=upstream.url, dead=dead, evidence="true")
        gateway = serve(settings, faulty=True, PYTHONPATH=plugin)  # refused-late
        seen = {case: send(gateway.url, question(case)).answer("POST") for case in CASES}
        ids = {case: answer.headers["x-request-id"] for case, answer in seen.items()}
        until(lambda: set(ids.values()) <= set(evidence(gateway)) or None)
        # While it runs.
        looked = gateway.passy("verify", "--json")
        assert 0 == looked.returncode, looked.stdout + looked.stderr
        entries = evidence(gateway)
        for case, (_, _, names) in CASES.items():
            entry, answer = entries[ids[case]], seen[case]
            upstreams = told.bodies.get(case)
            late = case == "refused-late"
            assert ("" if late else hexed(answer.body)) == entry["client"], case
            assert ("" if upstreams is None else hexed(upstreams)) == entry["upstream"], case
            changed = json.loads(entry["modified_by"])
            if b": keep-alive" in answer.body and "gateway" not in names:
                changed = [one for one in changed if one != "gateway"]  # It beat: a busy machine.
            assert names == changed, case
            assert "proved" == entry["kind"]
        for method, path in (("GET", "file"), ("HEAD", "file"), ("GET", "nothing")):
            asked = f"{method} /v1/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            passed = send(gateway.url, asked.encode()).answer(method)
            id = passed.headers["x-request-id"]
            entry = until(lambda: evidence(gateway).get(id))  # noqa: B023
            assert entry["client"] == entry["upstream"] == hexed(passed.body), (method, path)
            assert (25_600 if path == "file" and method == "GET" else 0) == len(passed.body)
        assert seen["slow"].body.count(b": keep-alive") >= 1
        assert b"HELLO" in seen["shouted"].body
        # It is killed within a stream, and what follows takes its books over.
        hits = len(upstream.hits)
        with ThreadPoolExecutor(1) as pool:
            endless = question("slow").replace(b"user-agent: slow", b"user-agent: endless")
            within = pool.submit(send, gateway.url, endless)
            upstream.until(lambda: len(upstream.hits) > hits)
            last = send(gateway.url, question("plain")).answer("POST")
            gateway.process.kill()
            gateway.process.wait()
            within.result()
            told.over.set()
        gateway.start()
        send(gateway.url, question("plain"))
        until(lambda: gateway.records("WHERE outcome = 'interrupted'") or None)
        assert "ok" == gateway.record(last.headers["x-request-id"])["outcome"]
        assert 0 == gateway.stop()
    found = gateway.passy("verify")
    assert 0 == found.returncode, found.stdout + found.stderr
    assert "1 records as they were written, without digests" in found.stdout
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db")) as database:
        database.execute("UPDATE usage SET output = output + 1 WHERE id = ?", (ids["plain"],))
        database.commit()
    found = gateway.passy("verify")
    assert 1 == found.returncode
    assert f"edited   {ids['plain']} (chain 1, 1)" in found.stdout
    found = gateway.passy("verify", "--json")
    assert 1 == found.returncode
    assert [ids["plain"]] == [each["id"] for each in json.loads(found.stdout)["findings"]]


def test_F6_without_the_setting_there_is_no_evidence(serve: Serve, plugin: str) -> None:
    told = Told()
    with RawUpstream(script=told) as upstream, refusing() as dead:
        settings = CONFIGURATION.format(url=upstream.url, dead=dead, evidence="false")
        gateway = serve(settings, PYTHONPATH=plugin)
        answer = send(gateway.url, question("shouted")).answer("POST")
        gateway.record(answer.headers["x-request-id"])
        assert 0 == gateway.stop()
    assert {} == evidence(gateway)
    found = gateway.passy("verify", "--json")
    assert (0, 1) == (found.returncode, json.loads(found.stdout)["before"])
