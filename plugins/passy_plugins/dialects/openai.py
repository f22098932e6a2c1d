"""OpenAI's dialect, also the hub: requests pass through with another model name and key."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from passy_plugins.dialects.forwarding import (
    CONDITIONS,
    IDEMPOTENT,
    JSON,
    declared_length,
    headers_for,
    path_below,
)
from passy_plugins.dialects.openai_answer import (
    AnswerTap,
    PlainTap,
    ResponsesTap,
    ResponseTap,
    StreamTap,
)
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
    from passy_proxy.upstream import Target

PATHS = {
    "chat": b"/chat/completions",
    "completions": b"/completions",
    "embeddings": b"/embeddings",
    "responses": b"/responses",
    "moderations": b"/moderations",
}
"""Operations whose body is JSON with a model in it. Anything else keeps its own path."""

PLAIN = dict.fromkeys(PATHS, AnswerTap) | {"responses": ResponseTap}
"""What reads their plain answers."""

TEXT = frozenset(("chat", "completions"))
"""Operations that end their streams with ``[DONE]`` and tell their usage when asked."""

REPLAY_SAFE = frozenset(("chat", "completions", "embeddings", "moderations", "models", "audio"))

KEEPING = ("store", "background", "conversation")
KEEPING_BYTES = tuple(f'"{member}"'.encode() for member in KEEPING)
"""Members by which a Responses request asks that something be kept or done later."""

KEPT = frozenset((b"accept", b"user-agent", b"openai-beta", b"idempotency-key"))
KEPT_BELOW = KEPT | CONDITIONS | {b"content-type"}

TYPES = {
    402: "insufficient_quota",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


HEAD = (
    b"x-request-id: %b\r\n"
    b"openai-processing-ms: %d\r\n"
    b"openai-version: 2020-10-01\r\n"
)  # fmt: skip

LIMITS = {
    "requests": (
        b"x-ratelimit-limit-requests: %d\r\n"
        b"x-ratelimit-remaining-requests: %d\r\n"
        b"x-ratelimit-reset-requests: %b\r\n"
    ),
    "tokens": (
        b"x-ratelimit-limit-tokens: %d\r\n"
        b"x-ratelimit-remaining-tokens: %d\r\n"
        b"x-ratelimit-reset-tokens: %b\r\n"
    ),
}


def whole(seconds: float) -> bytes:
    """A second or more as OpenAI writes it: ``1s``, ``6m0s``, ``1h0m0s``; never too short."""
    minutes, rest = divmod(ceil(seconds), 60)
    if minutes < 60:
        return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
    return b"%dh%dm%ds" % (*divmod(minutes, 60), rest)


def error_type(status: int) -> str:
    """OpenAI's ``error.type`` for a status."""
    return TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")


class OpenAI:
    """Speaks OpenAI to upstreams and clients. Requests of other dialects are refused."""

    name = "openai"
    auth_header = b"authorization"
    auth_prefix = b"Bearer "
    models_path = b"/models"

    def limit_lines(self, rooms: Iterable[tuple[str, Room]], now: float) -> bytes:
        lines = b""
        for kind, room in rooms:
            seconds = room.reset
            reset = b"%dms" % ceil(seconds * 1000) if 0 < seconds < 1 else whole(seconds)
            lines += LIMITS[kind] % (room.limit, room.remaining, reset)
        return lines

    def request(
        self, request: Request, target: Target, credential: Credential | None, spoken: str
    ) -> UpstreamRequest:
        if spoken != "openai":
            raise Untranslatable(f"A request in the dialect {spoken!r} cannot be put to OpenAI.")
        operation = request.operation
        suffix = PATHS.get(operation)
        if suffix is None:
            return self._passed(request, target, credential)
        upstream = target.upstream
        head = request.head
        headers = headers_for(request, upstream, credential, KEPT)
        headers.append(JSON)
        return UpstreamRequest(
            request.method,
            (upstream.paths and upstream.paths.get(operation)) or upstream.path + suffix,
            headers,
            rewrite(request.body, head, target.model or None, head.stream and operation in TEXT),
            None,
            _replay_safe(request),
            target.timeouts,
        )

    def _passed(
        self, request: Request, target: Target, credential: Credential | None
    ) -> UpstreamRequest:
        """A request of which nothing is known but its path."""
        body = uploaded(request)
        head = request.head
        if target.model and head.model and target.model != head.model and isinstance(body, bytes):
            body = rewrite(body, head, target.model, False)
        headers = headers_for(request, target.upstream, credential, KEPT_BELOW)
        return UpstreamRequest(
            request.method,
            path_below(request, target.upstream),
            headers,
            body,
            declared_length(request),
            _replay_safe(request),
            target.timeouts,
        )

    def tap(self, request: Request, streamed: bool, spoken: str) -> Tap:
        operation = request.operation
        if not streamed:
            return PLAIN.get(operation, PlainTap)()
        if operation == "responses":
            return ResponsesTap()
        head = request.head
        text = operation in TEXT
        hidden = text and head.stream and not head.include_usage
        return StreamTap(hidden_usage=hidden, marked_end=text)

    def dropped(self, request: Request, spoken: str) -> tuple[str, ...]:
        return ()

    def problem(self, status: int, body: bytes, spoken: str) -> bytes:
        said = loads_object(body)
        if _is_envelope(said.get("error")):
            return body
        try:
            return json.dumps({"error": _normalised(status, body, said)})
        except TypeError:  # Nested too deeply to be said again.
            return json.dumps({"error": _normalised(status, b"", {})})

    def head(self, request_id: str, elapsed_ms: int) -> bytes:
        return HEAD % (request_id.encode(), elapsed_ms)

    def reply(self, reply: Reply, request_id: str) -> tuple[int, bytes]:
        if reply.body is not None:
            return reply.status, reply.body
        kind = reply.type or (
            "insufficient_quota" if reply.code == "insufficient_quota" else error_type(reply.status)
        )
        error: dict[str, object] = {
            "message": reply.message,
            "type": kind,
            "param": reply.param,
            "code": reply.code or None,
        }
        if request_id:
            error["request_id"] = request_id
        if reply.attempts is not None:
            error["attempts"] = reply.attempts
        return reply.status, json.dumps({"error": error})

    def broken(self, message: str, code: str, request_id: str) -> bytes:
        error = {
            "message": message,
            "type": "server_error",
            "param": None,
            "code": code,
            "request_id": request_id,
        }
        return b"data: " + json.dumps({"error": error}) + b"\n\n"


def _replay_safe(request: Request) -> bool:
    """Whether asking twice does no harm: nothing is kept, and the client did not say "once"."""
    if b"idempotency-key" in request.fields or request.streamed_upload:
        return False
    if request.operation in REPLAY_SAFE or request.method in IDEMPOTENT:
        return True
    return request.operation == "responses" and not _kept_or_queued(request)


def _kept_or_queued(request: Request) -> bool:
    """Whether a Responses request leaves something behind at the provider."""
    body = request.head.outline or request.body
    if all(body.find(member) < 0 for member in KEEPING_BYTES):
        return False
    if request.head.outline:
        said: Any = loads_object(body)
        return any(map(said.get, KEEPING))
    try:
        said = request.json
    except Untranslatable:
        return True
    return any(map(said.get, KEEPING)) if isinstance(said, dict) else True


def _is_envelope(error: object) -> bool:
    return (
        isinstance(error, dict)
        and isinstance(error.get("message"), str)
        and isinstance(error.get("type"), str)
    )


def _normalised(status: int, body: bytes, said: dict[str, Any]) -> dict[str, object]:
    """OpenAI's error object from whatever an upstream made of it; the code and the rest stay."""
    error = said.get("error", said)
    error = {"message": error} if isinstance(error, str) else error
    error = error if isinstance(error, dict) else {}
    message = next((error[name] for name in ("message", "detail", "msg") if error.get(name)), None)
    if message is None:
        message = said.get("message") or plain_words(body) or f"The upstream answered {status}."
    kind = error.get("type")
    return {
        "message": message if isinstance(message, str) else json.dumps(message).decode(),
        "type": kind if isinstance(kind, str) and kind else error_type(status),
        "param": error.get("param"),
        "code": error.get("code"),
    }


def plain_words(body: bytes, most: int = 500) -> str:
    """A short text answer as it is; nothing of HTML, JSON or anything long."""
    text = body[: most + 1].decode("utf-8", "replace").strip()
    return "" if len(text) > most or text[:1] in ("<", "{", "[") else text


@hookimpl
def passy_dialects() -> list[Dialect]:
    return [OpenAI()]
