"""Who gets in at all: looked at before anything else of a request is, its path included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from hmac import compare_digest
from typing import Any

from passy_proxy import json
from passy_proxy.application import Asgi, Message, Receive, Send

Scope = MutableMapping[str, Any]
Look = Callable[[Mapping[bytes, list[bytes]]], str | None]
"""Headers by name, each with all its values → who asks; ``None`` for a stranger."""


class Gate:
    """Lets in who ``look`` knows, and tells the rest nothing but that."""

    def __init__(self, served: Asgi, look: Look, message: str, challenge: bytes) -> None:
        """``message`` and ``challenge`` (``www-authenticate``) are for who is refused."""
        self._served = served
        self._look = look
        self._message = message
        self._challenge = challenge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers: dict[bytes, list[bytes]] = {}
            for name, value in scope["headers"]:
                headers.setdefault(name, []).append(value)
            caller = self._look(headers)
            if caller is None:
                await self._refuse(scope, send)
                return
            scope["state"]["caller"] = caller
            send = unkept(send)
        await self._served(scope, receive, send)

    def _refuse(self, scope: Scope, send: Send) -> Awaitable[None]:
        error = said("invalid_credentials", self._message, scope["state"]["request_id"])
        return answer(send, 401, error, [(b"www-authenticate", self._challenge)])


def bearer(token: bytes, caller: str) -> Look:
    """Knows ``caller`` by a token; an empty one is nobody's."""

    def look(headers: Mapping[bytes, list[bytes]]) -> str | None:
        shown = headers.get(b"authorization", [])
        if len(shown) != 1 or not token:
            return None
        scheme, _, rest = shown[0].partition(b" ")
        known = compare_digest(rest.strip(), token)
        return caller if known and scheme.lower() == b"bearer" else None

    return look


def header(name: bytes, secret: bytes, caller: str) -> Look:
    """Knows ``caller`` by a secret in a header; an empty one is nobody's."""

    def look(headers: Mapping[bytes, list[bytes]]) -> str | None:
        shown = headers.get(name, [])
        if len(shown) != 1 or not secret:
            return None
        return caller if compare_digest(shown[0], secret) else None

    return look


def said(code: str, message: str, request_id: str, param: str | None = None) -> dict[str, Any]:
    """An error, as every part of the gateway says it."""
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error" if code != "internal_error" else "server_error",
            "param": param,
            "code": code,
            "request_id": request_id,
        }
    }


def unkept(send: Send) -> Send:
    """Whatever is answered here is for who asked, and for no cache on the way."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"cache-control", b"no-store")]
        await send(message)

    return told


async def answer(send: Send, status: int, body: object, headers: list[tuple[bytes, bytes]]) -> None:
    """A whole answer in JSON."""
    content = json.dumps(body)
    told = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(content)),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": content})
