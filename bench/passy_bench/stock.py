"""The usual stack as a plain proxy: stock uvicorn, ASGI, httpcore's pool. No key, no metering."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

import httpcore
import uvicorn

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"host"))


class Proxy:
    """An ASGI app that forwards each request to one upstream and streams the answer back."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        # Limits above anything the bench has in flight: lower ones make it queue or reconnect.
        self.pool = httpcore.AsyncConnectionPool(
            max_connections=2000, max_keepalive_connections=2000
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [pair for pair in scope["headers"] if pair[0] not in _HOP]
        url = self.upstream + scope["path"]
        async with self.pool.stream(
            scope["method"], url, headers=headers, content=body
        ) as response:
            kept = [(k, v) for k, v in response.headers if k.lower() not in _HOP]
            await send({"type": "http.response.start", "status": response.status, "headers": kept})
            async for part in response.aiter_stream():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def main() -> None:
    arguments = argparse.ArgumentParser(description="Stock proxy of passy bench.")
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--upstream", required=True)
    given = arguments.parse_args()
    uvicorn.run(
        Proxy(given.upstream),
        port=given.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
