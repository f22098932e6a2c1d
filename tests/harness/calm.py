"""A stream that has nothing to do with what is tried, and how long its client hears nothing.

Both of its ends are a process of their own: in the one that tries something absurd, they would wait
for that, and not for the gateway.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from urllib.parse import urlsplit

PAUSE = 0.01
"""Seconds between two pieces."""
EVENT = b"data: {}\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Calm:
    """``with Calm() as calm``: ``url`` is its provider's; `silences` asks a gateway for it."""

    def __enter__(self) -> Calm:
        command = [sys.executable, "-P", __file__]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.url = f"http://127.0.0.1:{self._line()}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, url: str, body: dict[str, object]) -> None:
        """Ask at ``url``; returns once it has heard something."""
        self._say(json.dumps([url, body]))
        assert "begun" == self._line()

    def silences(self) -> list[float]:
        """Seconds between two pieces, since it began; it ends now."""
        self._say("")
        found: list[float] = json.loads(self._line())
        return found

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


async def provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD)
    try:
        while True:
            writer.write(PIECE)
            await writer.drain()
            await asyncio.sleep(PAUSE)
    except OSError:
        writer.close()


async def listen(url: str, body: dict[str, object], ended: asyncio.Event) -> list[float]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    said = json.dumps(body).encode()
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: {len(said)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + said)
    await reader.readuntil(EVENT)
    print("begun", flush=True)
    found, last = [], time.monotonic()
    while not ended.is_set():
        if not await reader.read(1 << 16):
            found.append(1e9)  # It was not to end.
            break
        now = time.monotonic()
        found.append(now - last)
        last = now
    writer.close()
    return found


async def main() -> None:
    server = await asyncio.start_server(provide, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while asked := await asyncio.to_thread(sys.stdin.readline):
        ended = asyncio.Event()
        listening = asyncio.create_task(listen(*json.loads(asked), ended))
        await asyncio.to_thread(sys.stdin.readline)
        ended.set()
        print(json.dumps(await listening), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
