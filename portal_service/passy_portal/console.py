"""What the gateway says of itself, and does when it is asked: its admin API, wherever that is.

A portal that lives in a gateway asks within the process, one that runs by itself asks over HTTP
with the admin token. The answers are the same, so that no page knows the difference.
"""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from passy_plugins.api.admin_routes import made
from passy_plugins.api.denied import Denied
from passy_plugins.api.framework import asked_once
from passy_proxy import json

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.api.desk import Desk
    from passy_proxy.application import Message
    from passy_proxy.gateway import Gateway

PATIENCE = 120.0
"""Seconds: a provider that is tried may take thrice thirty."""

Ask = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]
"""Method, path with its query, and body → status and body."""


class GatewayAway(Denied):
    """The gateway cannot be asked. Traffic is not affected by that."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            503, "gateway_unavailable", f"The gateway cannot be asked now: {reason}."
        )  # fmt: skip
        self.reason = reason


class Console:
    """Asks the admin API. What that refuses is raised as `Denied`, in its words; where there is no
    answer it is `GatewayAway`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.trying: set[str] = set()
        """Organisations that try a key at this moment."""

    async def get(self, path: str, **query: str) -> Any:
        """What is at a path, as it was read from JSON."""
        return await self._asked("GET", f"{path}?{urlencode(query)}" if query else path, b"")

    async def post(self, path: str, body: object = None) -> Any:
        return await self._asked("POST", path, b"" if body is None else json.dumps(body))

    async def _asked(self, method: str, path: str, body: bytes) -> Any:
        status, said = await self._ask(method, path, body)
        try:
            told: Any = json.loads(said) if said else None
            if status < 400:
                return told
            error = told["error"]
            code, message, param = error["code"], error["message"], error["param"]
            problems = [(one["param"], one["message"]) for one in error.get("problems", ())]
        except (ValueError, TypeError, KeyError):
            raise GatewayAway(f"it answers {status}, and not as an admin API does") from None
        if status == 401:
            raise GatewayAway("it does not take this portal's admin token")
        if code == "unknown_url":
            raise GatewayAway("it has no admin API there, or an older one")
        if status >= 500:
            raise GatewayAway(str(message).rstrip("."))
        raise Denied(status, code, message, param, problems)


def within(desk: Desk, log: FilteringBoundLogger, living: Callable[[], Gateway]) -> Console:
    """Of the gateway that the portal lives in. In a thread: it takes a moment, so that no page
    does."""
    app = made(desk, log, living)
    asked_once(app)

    async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        bare, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": bare,
            "query_string": query.encode(),
            "headers": [(b"content-type", b"application/json")],
            "state": {"request_id": "portal"},
        }
        sent = [{"type": "http.request", "body": body}]
        said: list[Message] = []

        async def receive() -> Message:
            return sent.pop() if sent else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            said.append(message)

        await app(scope, receive, send)
        return said[0]["status"], b"".join(each.get("body", b"") for each in said[1:])

    return Console(ask)


def over_http(url: str, token: str) -> Console:
    """Of another process: ``url`` is where its admin API is, such as
    ``https://10.0.0.7:9901/admin/api``."""
    parts = urlsplit(url.rstrip("/"))
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}

    def asked(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        with closing(kind(parts.netloc, timeout=PATIENCE)) as connection:
            connection.request(method, parts.path + path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            return await asyncio.to_thread(asked, method, path, body)
        except (OSError, http.client.HTTPException) as error:
            raise GatewayAway(f"{parts.netloc}: {error or type(error).__name__}") from None

    return Console(ask)


async def _untold(method: str, path: str, body: bytes) -> tuple[int, bytes]:
    raise GatewayAway("this portal was not told where it is")


NOBODY = Console(_untold)
"""Of a portal that was told of no gateway."""
