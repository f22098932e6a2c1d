"""An upstream in our own process: it needs no key, and says what it was told.

It speaks every API the gateway does and goes wrong on demand, by the model's name:

- ``echo:slow``  waits before the answer and between words
- ``echo:429``, ``echo:500``  answer with that status
- ``echo:cut``  breaks off in the middle of the answer
- ``echo:tool``  calls the first tool it is given
- ``echo:json``  answers with JSON, after the request's schema if it has one

Ids depend on the request alone, and a word is a token, in plain answers and in streams.
"""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Callable, Iterator
from time import time
from typing import Any

from passy_plugins.dialects.openai import error_type
from passy_plugins.echo_question import BadQuestion, Question
from passy_plugins.echo_shapes import (
    Chat,
    Completions,
    Messages,
    Responses,
    counted,
    embeddings,
    moderations,
)
from passy_proxy import json
from passy_proxy.config.settings import Settings, setting
from passy_proxy.hookspecs import hookimpl
from passy_proxy.transport import Leg, Sink, Timeouts, TransportError, UpstreamRequest, relayed
from passy_proxy.units import Duration

VARIANTS = ("slow", "429", "500", "cut", "tool", "json")
NAMES = ("echo", *(f"echo:{variant}" for variant in VARIANTS))

JSON = (b"content-type", b"application/json")
SSE = (b"content-type", b"text/event-stream; charset=utf-8")

CONVERSATIONS: dict[str, tuple[str, type[Chat | Completions | Responses | Messages]]] = {
    "/chat/completions": ("chat", Chat),
    "/completions": ("completions", Completions),
    "/responses": ("responses", Responses),
    "/messages": ("messages", Messages),
}
SHAPES: dict[str, Callable[[Question], dict[str, Any]]] = {
    "/embeddings": embeddings,
    "/moderations": moderations,
    "/messages/count_tokens": counted,
}
LARGEST = 64 << 20


class EchoSettings(Settings):
    """What can be set of an upstream of kind ``echo``."""

    head_pause: Duration = setting("2s", "How long echo:slow waits before it answers.", ge=0)
    word_pause: Duration = setting("200ms", "How long echo:slow waits before each word.", ge=0)


class EchoLeg:
    """One answer, ready before it is read; a stream is read message by message."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.headers = [*headers, (b"x-request-id", b"echo")]
        self.complete = True
        self._pieces: Iterator[bytes] = iter((body,))

    async def read(self) -> bytes:
        return next(self._pieces, b"")

    async def read_all(self, limit: int) -> bytes:
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
            limit -= len(piece)
            if limit < 0:
                raise TransportError("protocol", "the answer is too large", sent=True)
        return b"".join(pieces)

    async def relay(self, sink: Sink) -> bool:
        return await relayed(self, sink)

    def close(self) -> None:
        self._pieces = iter(())


class EchoStream(EchoLeg):
    """An answer in pieces, with pauses between them, that may break off."""

    def __init__(
        self, header: tuple[bytes, bytes], pieces: list[bytes], pause: float, idle: float | None
    ) -> None:
        super().__init__(200, [header], b"")
        self.complete = False
        self._pieces = iter(pieces)
        self._left = len(pieces)
        self._pause = pause
        self._idle = idle

    async def read(self) -> bytes:
        if self._idle is not None and self._pause > self._idle:
            await sleep(self._idle)
            raise TransportError("timeout", "silent for too long", phase="idle", sent=True)
        await sleep(self._pause)
        piece = next(self._pieces, b"")
        self._left -= 1
        self.complete = self._left <= 0
        return piece


class EchoCut(EchoStream):
    """An answer that ends before its end."""

    async def read(self) -> bytes:
        piece = await super().read()
        self.complete = False
        if not piece:
            raise TransportError("broken", "the connection was cut in mid-answer", sent=True)
        return piece


class Echo:
    """The transport of upstreams of kind ``echo``: it answers instead of sending."""

    Settings = EchoSettings
    free = True
    """Nobody has to be paid."""

    def __init__(self, settings: EchoSettings, clock: Callable[[], float] = time) -> None:
        self._settings = settings
        self._clock = clock
        self._opened = 0

    async def open(self, request: UpstreamRequest) -> Leg:
        self._opened += 1
        path = request.target.partition(b"?")[0].decode("ascii", "replace").rstrip("/")
        operation = path[path.rfind("/v1/") + 3 :] if "/v1/" in path else path
        if request.method in ("GET", "HEAD"):
            return self._listed(operation)
        try:
            question = Question(await _body_of(request))
            variant = question.model[5:] if question.model.startswith("echo:") else ""
            if variant == "slow":
                await self._wait(request.timeouts)
            elif variant and variant not in VARIANTS:
                return _unknown(operation, question.model)
            elif variant in ("429", "500"):
                return _fault(operation, variant)
            return self._answer(operation, question, variant, request.timeouts)
        except BadQuestion as exc:
            return _refusal(operation, 400, None, str(exc), exc.param or None)

    async def aclose(self) -> None:
        pass

    def stats(self) -> dict[str, int]:
        return {"open": 0, "idle": 0, "waiting": 0, "opened": self._opened, "reused": 0}

    async def _wait(self, timeouts: Timeouts) -> None:
        pause, longest = self._settings.head_pause, timeouts.first_byte
        if longest is None or pause < longest:
            await sleep(pause)
            return
        await sleep(longest)
        raise TransportError("timeout", "no answer in time", phase="first_byte", sent=True)

    def _answer(
        self, operation: str, question: Question, variant: str, timeouts: Timeouts
    ) -> EchoLeg:
        if (shape := SHAPES.get(operation)) is not None:
            return EchoLeg(200, [JSON], json.dumps(shape(question)))
        if operation not in CONVERSATIONS:
            message = f"The echo has nothing at {operation}."
            return _refusal(operation, 404, "unknown_url", message)
        name, speaks = CONVERSATIONS[operation]
        answer = speaks(question.answer(name, int(self._clock())))
        pause = self._settings.word_pause if variant == "slow" else 0.0
        if question.streamed:
            header, pieces = SSE, list(answer.stream(question.usage_asked))
        else:
            header, pieces = JSON, [json.dumps(answer.plain())]
        if variant == "cut":
            whole = b"".join(pieces)
            pieces = pieces[: len(pieces) // 2] or [whole[: len(whole) // 2]]
            return EchoCut(header, pieces, pause, timeouts.idle)
        if question.streamed:
            return EchoStream(header, pieces, pause, timeouts.idle)
        return EchoLeg(200, [header], pieces[0])

    def _listed(self, operation: str) -> EchoLeg:
        """``/models`` and ``/models/{id}``."""
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "passy"} for name in NAMES
        ]
        if operation == "/models":
            return EchoLeg(200, [JSON], json.dumps({"object": "list", "data": models}))
        for model in models:
            if operation == f"/models/{model['id']}":
                return EchoLeg(200, [JSON], json.dumps(model))
        if operation.startswith("/models/"):
            return _unknown(operation, operation.removeprefix("/models/"))
        return _refusal(operation, 404, "unknown_url", f"The echo has nothing at {operation}.")


async def _body_of(request: UpstreamRequest) -> bytes:
    if isinstance(request.body, bytes):
        return request.body
    body = bytearray()
    async for piece in request.body:
        body += piece
        if len(body) > LARGEST:
            raise BadQuestion("The body is too large for the echo.", "")
    return bytes(body)


def _unknown(operation: str, model: str) -> EchoLeg:
    message = f"The echo has no model {model!r}. It has {', '.join(NAMES)}."
    return _refusal(operation, 404, "model_not_found", message, "model")


def _fault(operation: str, variant: str) -> EchoLeg:
    if variant == "500":
        return _refusal(operation, 500, "internal_error", "echo:500 always fails.")
    leg = _refusal(operation, 429, "rate_limit_exceeded", "echo:429 is always over its limit.")
    leg.headers.append((b"retry-after", b"1"))
    return leg


def _refusal(
    operation: str, status: int, code: str | None, message: str, param: str | None = None
) -> EchoLeg:
    """An error in the shape of the API that was asked."""
    if operation.startswith("/messages"):
        kinds = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}
        error = {"type": kinds.get(status, "api_error"), "message": message}
        return EchoLeg(status, [JSON], json.dumps({"type": "error", "error": error}))
    kind = error_type(status)
    shape = {"message": message, "type": kind, "param": param, "code": code}
    return EchoLeg(status, [JSON], json.dumps({"error": shape}))


@hookimpl
def passy_upstreams() -> dict[str, type[Echo]]:
    return {"echo": Echo}
