"""A model provider that costs next to nothing: fixed answers in OpenAI's shape.

Any POST is answered. Without `"stream": true` the answer is about 500 bytes of JSON. With it,
`max_tokens` says how many chunks of about 260 bytes follow and `seed` how many milliseconds lie
between them: those two fields reach the mock through any gateway, a header or a query might not.
No pause means one burst. Each paced chunk carries the time it was sent (`fp_` and 20 digits of
CLOCK_MONOTONIC in ns), so that the load generator can tell how long it was under way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from functools import lru_cache
from typing import cast

import httptools
import orjson
import uvloop

CHUNK_BYTES = 260
_USAGE = {"prompt_tokens": 190, "completion_tokens": 40, "total_tokens": 230}


def _response(kind: str, framing: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{framing}\r\n\r\n".encode()


def _completion() -> bytes:
    text = "The gateway forwards this answer unchanged. " * 4
    body = orjson.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "gpt-4o-mini",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text.strip(), "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
            "system_fingerprint": "fp_bench",
        }
    )
    return _response("application/json", f"content-length: {len(body)}") + body


def _framed(event: bytes) -> bytes:
    """One server-sent event as one HTTP chunk."""
    event = b"data: " + event + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _event(choices: list[object], usage: object = None) -> bytes:
    return orjson.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "gpt-4o-mini",
            "system_fingerprint": f"fp_{0:020d}",
            "choices": choices,
            "usage": usage,
        }
    )


def _chunk() -> bytes:
    def event(text: str) -> bytes:
        return _event([{"index": 0, "delta": {"content": text}, "finish_reason": None}])

    missing = CHUNK_BYTES - len(event("")) - len(b"data: \n\n")
    return _framed(event("token ".ljust(missing, ".")))


_COMPLETION = _completion()
_HEAD = _response("text/event-stream", "transfer-encoding: chunked")
_CHUNK = _chunk()
_BEFORE, _, _AFTER = _CHUNK.partition(b"%020d" % 0)
_LAST_USAGE = _framed(_event([], _USAGE))
_LAST = _framed(b"[DONE]") + b"0\r\n\r\n"


@lru_cache(maxsize=16)
def _burst(chunks: int, usage: bool) -> bytes:
    return _HEAD + _CHUNK * chunks + (_LAST_USAGE if usage else b"") + _LAST


class Provider(asyncio.Protocol):
    """One connection; one request at a time on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.timer: asyncio.TimerHandle | None = None
        self.left = 0
        self.pause = 0.0
        self.due = 0.0
        self.usage = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class, no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if b'"stream":true' in body or b'"stream": true' in body:
            self.stream(orjson.loads(body))
        else:
            self.transport.write(_COMPLETION)

    def stream(self, request: dict[str, object]) -> None:
        chunks = int(str(request.get("max_tokens", 100)))
        self.pause = int(str(request.get("seed", 0))) / 1000
        options = request.get("stream_options")
        self.usage = isinstance(options, dict) and options.get("include_usage") is True
        if self.pause == 0:
            self.transport.write(_burst(chunks, self.usage))
            return
        self.left, self.due = chunks, self.loop.time()
        self.transport.write(_HEAD)
        self.send()

    def send(self) -> None:
        if self.left == 0:
            self.timer = None
            self.transport.write(_LAST_USAGE + _LAST if self.usage else _LAST)
            return
        self.left -= 1
        self.transport.write(b"%s%020d%s" % (_BEFORE, time.monotonic_ns(), _AFTER))
        self.due += self.pause
        self.timer = self.loop.call_at(self.due, self.send)


async def serve(port: int) -> None:
    """Answer on 127.0.0.1:`port` until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(loop), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


def main() -> None:
    arguments = argparse.ArgumentParser(description="Mock provider of passy bench.")
    arguments.add_argument("--port", type=int, required=True)
    port = arguments.parse_args().port
    gc.disable()  # a connection is all that is ever allocated in cycles
    uvloop.run(serve(port))


if __name__ == "__main__":
    main()
