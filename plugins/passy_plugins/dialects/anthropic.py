"""Anthropic's dialect: passed through where the client speaks it, else translated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import ceil
from time import gmtime
from typing import TYPE_CHECKING

from passy_plugins.dialects.anthropic_answer import (
    ChatPlainTap,
    MessagePlainTap,
    MessagesTap,
    MessageTap,
    Shape,
    chat_error,
)
from passy_plugins.dialects.anthropic_request import Translation
from passy_plugins.dialects.anthropic_stream import ChatStreamTap
from passy_plugins.dialects.forwarding import (
    CONDITIONS,
    IDEMPOTENT,
    JSON,
    declared_length,
    headers_for,
    quoted,
)
from passy_plugins.dialects.openai import plain_words
from passy_plugins.dialects.watch import loads_object
from passy_proxy import json
from passy_proxy.body import rewrite
from passy_proxy.dialect import Dialect, Tap, Untranslatable, uploaded
from passy_proxy.event import Reply
from passy_proxy.hookspecs import hookimpl
from passy_proxy.transport import UpstreamRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from passy_proxy.exchange import Request
    from passy_proxy.records import Credential
    from passy_proxy.stores import Room
    from passy_proxy.upstream import Target, Upstream

VERSION = "2023-06-01"
VERSION_HEADER = b"anthropic-version"

KEPT = frozenset((b"accept", b"user-agent", b"idempotency-key"))
KEPT_NATIVE = KEPT | {VERSION_HEADER, b"anthropic-beta"}
KEPT_BELOW = KEPT_NATIVE | CONDITIONS | {b"content-type"}

PATHS = {"messages": b"/v1/messages", "count_tokens": b"/v1/messages/count_tokens"}
"""Operations whose body is JSON with a model in it. Anything else keeps its own path and type."""

REPLAY_SAFE = frozenset(("chat", "messages", "count_tokens", "models"))

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "gateway_timeout_error",
    529: "overloaded_error",
}


HEAD = b"x-request-id: %b\r\nrequest-id: %b\r\n"

LIMITS = (
    b"anthropic-ratelimit-%b-limit: %d\r\n"
    b"anthropic-ratelimit-%b-remaining: %d\r\n"
    b"anthropic-ratelimit-%b-reset: %d-%02d-%02dT%02d:%02d:%02dZ\r\n"
)


class Anthropic:
    """Speaks Anthropic's Messages API, version 2023-06-01 unless a native client names another."""

    name = "anthropic"
    auth_header = b"x-api-key"
    auth_prefix = b""
    models_path = b"/v1/models"

    def limit_lines(self, rooms: Iterable[tuple[str, Room]], now: float) -> bytes:
        lines = b""
        for kind, room in rooms:
            named = kind.encode()
            full = gmtime(ceil(now + room.reset))
            lines += LIMITS % (named, room.limit, named, room.remaining, named, *full[:6])
        return lines

    def request(
        self, request: Request, target: Target, credential: Credential | None, spoken: str
    ) -> UpstreamRequest:
        upstream = target.upstream
        body: bytes | AsyncIterator[bytes]
        if spoken == "anthropic":
            body, path = _native_body(request, target), _native_path(request, upstream)
            kept = KEPT_NATIVE if request.operation in PATHS else KEPT_BELOW
            headers = headers_for(request, upstream, credential, kept)
        elif spoken == "openai" and request.operation == "chat":
            body = _said(_translated(request, target).sent)
            path = upstream.paths.get("messages") or upstream.path + PATHS["messages"]
            headers = headers_for(request, upstream, credential, KEPT)
        else:
            asked = request.operation or request.path
            raise Untranslatable(f"Anthropic has no counterpart of {asked!r} in {spoken!r}.")
        names = {name for name, _ in headers}
        if VERSION_HEADER not in names:
            headers.append((VERSION_HEADER, (upstream.api_version or VERSION).encode()))
        if body and b"content-type" not in names and not request.streamed_upload:
            headers.append(JSON)
        safe = request.operation in REPLAY_SAFE or request.method in IDEMPOTENT
        return UpstreamRequest(
            request.method,
            path,
            headers,
            body,
            declared_length(request),
            safe and not request.streamed_upload and b"idempotency-key" not in names,
            target.timeouts,
        )

    def tap(self, request: Request, streamed: bool, spoken: str) -> Tap:
        if spoken == "anthropic":
            if streamed:
                return MessagesTap()
            return MessageTap() if request.operation in PATHS else MessagePlainTap()
        return ChatStreamTap(request.head.include_usage) if streamed else ChatPlainTap()

    def dropped(
        self, request: Request, spoken: str, target: Target | None = None
    ) -> tuple[str, ...]:
        if spoken != "openai":
            return ()
        return tuple(_translated(request, target).dropped)

    def problem(self, status: int, body: bytes, spoken: str) -> bytes:
        said = loads_object(body)
        error = said.get("error")
        proper = isinstance(error, dict) and isinstance(error.get("message"), str)
        if spoken != "openai":
            if proper and said.get("type") == "error":
                return body
            words = plain_words(body) or f"The upstream answered {status}."
            return self._error(_error_type(status), words)
        if not proper:
            words = error if isinstance(error, str) else plain_words(body)
            error = {"type": _error_type(status), "message": words}
        return json.dumps({"error": chat_error(error, status)})

    def head(self, request_id: str, elapsed_ms: int) -> bytes:
        named = request_id.encode()
        return HEAD % (named, named)

    def reply(self, reply: Reply, request_id: str) -> tuple[int, bytes]:
        if reply.body is not None:
            return reply.status, reply.body
        status = 529 if reply.status == 503 else reply.status
        if reply.code == "insufficient_quota":
            status = 402
        details: Shape = {"error_code": reply.code} if reply.code else {}
        if reply.attempts is not None:
            details["attempts"] = reply.attempts
        return status, self._error(_error_type(status), reply.message, request_id, details)

    def broken(self, message: str, code: str, request_id: str) -> bytes:
        said = self._error("api_error", message, request_id, {"error_code": code})
        return b"event: error\ndata: " + said + b"\n\n"

    def _error(
        self,
        kind: str,
        message: str,
        request_id: str = "",
        details: dict[str, object] | None = None,
    ) -> bytes:
        error: dict[str, object] = {"type": kind, "message": message}
        if details:
            error["details"] = details
        said: Shape = {"type": "error", "error": error}
        if request_id:
            said["request_id"] = request_id
        return json.dumps(said)


def _error_type(status: int) -> str:
    return TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def _translated(request: Request, target: Target | None) -> Translation:
    """The finished translation. Raises Untranslatable, also for shapes no translation foresees."""
    model = target.model if target is not None else ""
    translation = Translation(request.json, model or request.head.model)
    try:
        translation.body()
    except (TypeError, AttributeError, LookupError, ValueError):
        message = "A member of the request has a type that cannot be said to Anthropic."
        raise Untranslatable(message) from None
    return translation


def _said(sent: Shape) -> bytes:
    """The body of a translation. Raises Untranslatable."""
    try:
        return json.dumps(sent)
    except TypeError:  # The arguments of a call are text, which nobody has looked into so far.
        message = "A member of the request is nested too deeply to be said to Anthropic."
        raise Untranslatable(message) from None


def _native_body(request: Request, target: Target) -> bytes | AsyncIterator[bytes]:
    head = request.head
    if request.streamed_upload or not target.model or not head.model:
        return uploaded(request)
    if target.model == head.model:
        return request.body
    return rewrite(request.body, head, target.model, False)


def _native_path(request: Request, upstream: Upstream) -> bytes:
    path = upstream.paths.get(request.operation)
    if path is None:
        below = PATHS.get(request.operation) or b"/v1" + quoted(request.rest)
        path = upstream.path + below
    return path + b"?" + request.query if request.query else path


@hookimpl
def passy_dialects() -> list[Dialect]:
    return [Anthropic()]
