"""Exchanges whose tokens are known by their number, and clients that count what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import suppress

from harness.upstream import Hit, Step


def tokens(number: int) -> tuple[int, int]:
    """In and out, as the upstream tells them of request ``number``."""
    return 100 + number % 700, 1 + number % 13


def number_of(hit: Hit) -> int:
    return int(json.loads(hit.body)["model"].removeprefix("m-"))


def usage_of(number: int) -> dict[str, int]:
    read, written = tokens(number)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def answer(hit: Hit, gap: float = 0.0) -> Iterator[Step]:
    """A chat completion as it was asked for, its usage in the answer."""
    yield "read"
    yield from steps_of(hit, gap)


def steps_of(hit: Hit, gap: float = 0.0) -> list[Step]:
    number = number_of(hit)
    if not json.loads(hit.body).get("stream"):
        message = {"role": "assistant", "content": "Hello!"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"id": "x", "choices": [choice], "usage": usage_of(number)})
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        return [{"wait": gap}, {"send": f"{head}content-length: {len(body)}\r\n\r\n{body}"}]
    deltas = [{"choices": [{"index": 0, "delta": {"content": f"word {n} "}}]} for n in range(4)]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    told = {"choices": [], "usage": usage_of(number)}
    events = [f"data: {json.dumps(each)}\n\n" for each in (*deltas, end, told)]
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    steps: list[Step] = [{"send": head}]
    for event in (*events, "data: [DONE]\n\n"):
        steps += [{"chunk": event}, {"wait": gap}]
    return [*steps, {"send": "0\r\n\r\n"}]


def question(number: int, stream: bool, key: str = "") -> bytes:
    body = json.dumps(
        {"model": f"m-{number}", "messages": [], **({"stream": True} if stream else {})}
    )
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += f"authorization: Bearer {key}\r\n" if key else ""
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


class Clients:
    """Asks with so many at once; a ledger of what each of them saw."""

    def __init__(self, url: str, count: int, parallel: int, seed: int, key: str = "") -> None:
        self.complete: set[int] = set()
        self.failed: set[int] = set()
        self.seconds: list[float] = []
        self._address = url.partition("//")[2].split(":")
        self._numbers = iter(range(count))
        self._parallel = parallel
        self._key = key
        self._dice = random.Random(seed)

    async def run(self, over: float = 0.0) -> None:
        """All of them, spread over so many seconds."""
        pause = over * self._parallel / (self._numbers.__length_hint__() or 1)
        await asyncio.gather(*(self._one(pause) for _ in range(self._parallel)))

    async def _one(self, pause: float) -> None:
        for number in self._numbers:
            began = time.monotonic()
            seen = False
            with suppress(OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(60):
                    seen = await self._ask(number, self._dice.random() < 0.6)
            (self.complete if seen else self.failed).add(number)
            self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(
                max(0.0, pause * self._dice.uniform(0.5, 1.5) - (time.monotonic() - began))
            )

    async def _ask(self, number: int, stream: bool) -> bool:
        """Whether the answer came whole."""
        reader, writer = await asyncio.open_connection(self._address[0], int(self._address[1]))
        try:
            writer.write(question(number, stream, self._key))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                return False
            if length := re.search(rb"content-length: (\d+)", head):
                await reader.readexactly(int(length[1]))
                return True
            body = await reader.readuntil(b"0\r\n\r\n")
            return b"data: [DONE]\n\n" in body
        finally:
            writer.close()
