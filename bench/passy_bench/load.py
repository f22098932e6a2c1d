"""The load generator: one measurement per process.

A `Load` comes in as JSON on standard input (it may hold a key, so never on the command line), an
`Outcome` goes out as JSON on standard output. The CPU clock of the target is read here, at the very
moments at which counting starts and ends.

Connections are asyncio protocols on uvloop with just enough HTTP to know where an answer ends.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import time
from collections import deque
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from passy_bench.machine import cpu_ns, waited_ns

_CHUNK: Final = b"data: {"
_STREAM_END: Final = b"\r\n0\r\n\r\n"
_TAIL: Final = len(_STREAM_END) - 1
_CONNECT_LIMIT: Final = 10.0
_FAILURE_LIMIT: Final = 500  # a target that refuses is not hammered on
_PATIENCE: Final = 20.0  # for a first answer, where the machine is busy elsewhere


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to send: `connections` in a closed loop, or `rate` requests a second when it is not 0.

    `warmup` and `seconds` bound the time, `limit` the number of answers, warm-up included.
    """

    url: str
    body: str
    headers: dict[str, str] = {}
    stream: bool = False
    connections: int = 1
    rate: float = 0.0
    spread: float = 0.0  # seconds over which the connections make their first request
    warmup: float = 0.0
    seconds: float = 1.0
    limit: int = 1_000_000
    pids: list[int] = []


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of a set of durations, in microseconds."""

    count: int
    p50: float
    p95: float
    p99: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came back while counting.

    `cpu_ns` and `waited_ns` are how long the target ran and waited to run; 0 without its pids.
    """

    seconds: float
    answers: int
    chunks: int
    failed: int
    first_failure: str
    cpu_ns: int
    waited_ns: int
    latency: Spread | None
    first_chunk: Spread | None
    chunk: Spread | None


def spread(nanoseconds: list[int]) -> Spread | None:
    """Percentiles of durations in ns; None when there is none."""
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    p50, p95, p99 = (ordered[round(last * share)] / 1000 for share in (0.5, 0.95, 0.99))
    return Spread(len(ordered), p50, p95, p99)


class Tally:
    """Everything counted, shared by the connections."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.full = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        self.answers = 0
        self.chunks = 0
        self.failed = 0
        self.first_failure = ""
        self.latency: list[int] = []
        self.first_chunk: list[int] = []
        self.chunk: list[int] = []

    def lacks(self, stream: bool) -> bool:
        """Whether something is still to come that there is a figure of."""
        if self.full.is_set() or self.failed:
            return False
        return not (self.answers and (self.first_chunk or not stream))

    def answered(self) -> None:
        self.answers += 1
        self.left -= 1
        if self.left <= 0:
            self.full.set()

    def fail(self, why: str) -> None:
        self.failed += 1
        self.first_failure = self.first_failure or why
        if self.failed >= _FAILURE_LIMIT:
            self.full.set()


class Generator:
    """Opens the connections and keeps them asking until it is closed."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.loop = asyncio.get_running_loop()
        self.tally = Tally(load.limit)
        self.request = request_bytes(load)
        self.closed = False
        self.open: set[Connection] = set()
        self.idle: list[Connection] = []
        self.waiting: deque[int] = deque()
        self.reconnects: set[asyncio.Task[None]] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.due = 0.0

    async def connect(self) -> Connection:
        kind = Stream if self.load.stream else Connection
        url = urlsplit(self.load.url)
        secure = url.scheme == "https"
        opening = self.loop.create_connection(
            lambda: kind(self),
            url.hostname or "",
            url.port or (443 if secure else 80),
            ssl=ssl.create_default_context() if secure else None,
        )
        return (await asyncio.wait_for(opening, _CONNECT_LIMIT))[1]

    async def start(self) -> None:
        ready = [await self.connect() for _ in range(self.load.connections)]
        if self.load.rate:
            self.idle = ready
            self.due = self.loop.time()
            self.tick()
            return
        for number, connection in enumerate(ready):
            self.loop.call_later(self.load.spread * number / len(ready), connection.ask)

    def tick(self) -> None:
        """Open loop: one request is due now, whether or not earlier ones are answered."""
        now = time.monotonic_ns()
        if self.idle:
            self.idle.pop().ask(now)
        else:
            self.waiting.append(now)
        self.due += 1 / self.load.rate
        self.timer = self.loop.call_at(self.due, self.tick)

    def free(self, connection: Connection) -> None:
        """Open loop: this connection can take the next request."""
        if self.waiting:
            connection.ask(self.waiting.popleft())
        else:
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if not self.closed and not self.tally.full.is_set():
            task = self.loop.create_task(self.reconnect())
            self.reconnects.add(task)
            task.add_done_callback(self.reconnects.discard)

    async def reconnect(self) -> None:
        try:
            connection = await self.connect()
        except OSError as problem:
            self.tally.fail(f"cannot reconnect: {problem}")
            return
        if self.load.rate:
            self.free(connection)
        else:
            connection.ask()

    def close(self) -> None:
        self.closed = True
        if self.timer is not None:
            self.timer.cancel()
        for task in self.reconnects:
            task.cancel()
        for connection in self.open:
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """One kept-alive connection whose answers are plain bodies."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.tally = generator.tally
        self.request = generator.request
        self.timed = generator.load.rate > 0
        self.asked = 0  # ns; 0 when no answer is awaited
        self.kept = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class, no subclass
        self.generator.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.asked and not self.generator.closed:
            self.tally.fail(f"connection closed before the answer: {exc or 'end of file'}")
        self.generator.lost(self)

    def ask(self, due: int = 1) -> None:
        if not self.transport.is_closing():
            self.asked = due
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.kept:
            data = self.kept + data
            self.kept = b""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.kept = data
            return
        head = data[:end].lower()
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            complete = len(data) >= end + 4 + int(head[at + 17 :].partition(b"\r")[0])
        else:
            complete = data.endswith(_STREAM_END)
        if complete:
            self.complete(head, data)
        else:
            self.kept = data

    def complete(self, head: bytes, answer: bytes) -> None:
        """Count the answer and ask again."""
        if head[9:12] != b"200":
            self.tally.fail(answer[:300].decode(errors="replace"))
        else:
            self.tally.answered()
            if self.timed:
                self.tally.latency.append(time.monotonic_ns() - self.asked)
        self.asked = 0
        if b"\r\nconnection: close" in head:
            self.transport.close()
        elif self.timed:
            self.generator.free(self)
        else:
            self.ask()


class Stream(Connection):
    """One kept-alive connection whose answers are server-sent events, counted as they pass."""

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator)
        self.head = b""
        self.tail = b""

    def ask(self, due: int = 1) -> None:
        self.head = self.tail = b""
        super().ask(time.monotonic_ns())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.head:
            data = self.kept + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.kept = data
                return
            self.kept = b""
            self.head = data[:end].lower()
            data = data[end + 2 :]
            if self.head[9:12] != b"200" or b"text/event-stream" not in self.head:
                self.tally.fail((self.head + data[:300]).decode(errors="replace"))
                self.asked = 0
                self.transport.close()
                return
        seen = self.tail + data  # a mark may lie across two reads
        if count := seen.count(_CHUNK):
            self.tally.chunks += count
            self.time(now, data)
        if seen.endswith(_STREAM_END):
            self.complete(self.head, b"")
        else:
            self.tail = seen[-_TAIL:]

    def time(self, now: int, data: bytes) -> None:
        """Note the age of the oldest chunk in this read, and of the stream if it is its first."""
        if self.asked > 1:
            self.tally.first_chunk.append(now - self.asked)
            self.asked = 1
        at = data.find(b"fp_")
        sent = data[at + 3 : at + 23]
        if at >= 0 and len(sent) == 20 and sent.isdigit() and (stamp := int(sent)):
            self.tally.chunk.append(now - stamp)


def request_bytes(load: Load) -> bytes:
    """The whole request, head and body, as it goes out each time."""
    url = urlsplit(load.url)
    body = load.body.encode()
    lines = [
        f"POST {url.path or '/'} HTTP/1.1",
        f"host: {url.netloc}",
        "user-agent: passy-bench",
        "accept: */*",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in load.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def run(load: Load) -> Outcome:
    """Warm up, then count for `load.seconds` or until `load.limit` answers; longer where nothing
    has come by then."""
    generator = Generator(load)
    tally = generator.tally
    await generator.start()
    try:
        await _until(tally.full, load.warmup)
        tally.reset()
        waited, cpu, start = waited_ns(load.pids), cpu_ns(load.pids), time.perf_counter()
        await _until(tally.full, load.seconds)
        last = start + load.seconds + _PATIENCE
        while tally.lacks(load.stream) and time.perf_counter() < last:
            await _until(tally.full, 0.02)
        cpu, seconds = cpu_ns(load.pids) - cpu, time.perf_counter() - start
        return Outcome(
            seconds=seconds,
            answers=tally.answers,
            chunks=tally.chunks,
            failed=tally.failed,
            first_failure=tally.first_failure,
            cpu_ns=cpu,
            waited_ns=waited_ns(load.pids) - waited,
            latency=spread(tally.latency),
            first_chunk=spread(tally.first_chunk),
            chunk=spread(tally.chunk),
        )
    finally:
        generator.close()


async def _until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def main() -> None:
    gc.disable()  # nothing here lives in cycles, and a collection would show as latency
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(load))))


if __name__ == "__main__":
    main()
