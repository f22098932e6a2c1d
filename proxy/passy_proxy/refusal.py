"""The answer to a request that no route sees, in the shape its client can parse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from time import time
from typing import TYPE_CHECKING

from passy_proxy.event import Reply
from passy_proxy.exchange import new_id

if TYPE_CHECKING:
    from passy_proxy.dialect import Dialect
    from passy_proxy.framing import Refused

Said = tuple[int, bytes, bytes]
"""Status, JSON body, and header lines rendered as a Head's ``lines`` are."""

_KINDS: Mapping[int, str] = {
    408: "timeout_error",
    500: "server_error",
    503: "service_unavailable_error",
}


def plainly(refusal: Refused, request_id: str = "") -> Said:
    """As OpenAI's clients parse it: for whom nothing better is known."""
    request_id = request_id or new_id(time())
    error = {
        "message": refusal.message,
        "type": _KINDS.get(refusal.status, "invalid_request_error"),
        "param": None,
        "code": refusal.code,
        "request_id": request_id,
    }
    lines = b"x-request-id: %b\r\n" % request_id.encode()
    return refusal.status, json.dumps({"error": error}).encode(), lines + _more(refusal)


def spoken(refusal: Refused, dialect: Dialect) -> Said:
    """As the clients of a route parse it."""
    request_id = new_id(time())
    reply = Reply(refusal.status, refusal.code, refusal.message)
    status, body = dialect.reply(reply, request_id)
    return status, body, dialect.head(request_id, 0) + _more(refusal)


def _more(refusal: Refused) -> bytes:
    if refusal.status == 401:
        return b"www-authenticate: Bearer\r\n"
    return b"retry-after: 1\r\n" if refusal.status == 503 else b""
