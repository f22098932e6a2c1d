"""Anthropic's streams as chat completion chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import time

from passy_plugins.dialects.anthropic_answer import (
    TOO_DEEP,
    Shape,
    chat_error,
    chat_usage,
    finish_of,
    usage_of,
)
from passy_plugins.dialects.anthropic_request import JSON_TOOL
from passy_plugins.dialects.openai_answer import DONE, doubtful
from passy_plugins.dialects.watch import loads_object, text_of
from passy_proxy import json
from passy_proxy.records import Usage
from passy_proxy.sse import Decoder, MalformedStream, Message


class ChatStreamTap:
    """A stream of Anthropic's as chat completion chunks, one event at a time."""

    __slots__ = (
        "_arguments",
        "_block",
        "_calls",
        "_clock",
        "_decoder",
        "_head",
        "_tail",
        "_told",
        "_usage_asked",
        "done",
        "doubt",
        "error",
        "finish_reason",
        "model",
        "text_bytes",
        "usage",
    )

    def __init__(self, usage_asked: bool, clock: Callable[[], float] = time) -> None:
        self.usage: Usage | None = None
        self.model = ""
        self.finish_reason = ""
        self.text_bytes = 0
        self.done = False
        self.error = ""
        self.doubt = b""
        self._usage_asked = usage_asked
        self._clock = clock
        self._decoder = Decoder()
        self._told: Shape = {}
        self._calls = 0
        self._block: Shape = {}
        self._arguments = False
        self._head = b""
        self._tail = (b',"usage":null' if usage_asked else b"") + b"}\n\n"
        self._begin({})

    midway = False

    def whole(self, data: bytes) -> bytes:
        return self.feed(data) + self.finish()

    def feed(self, data: bytes) -> bytes:
        if self.error:
            return b""
        try:
            messages = self._decoder.feed(data)
        except MalformedStream as exc:
            return self._fail({"type": "api_error", "message": str(exc)})
        return b"".join([piece for message in messages for piece in self._read(message)])

    def finish(self) -> bytes:
        if self.error:
            self.done = True
            return b""
        pieces = [piece for message in self._decoder.finish() for piece in self._read(message)]
        if self.error:
            self.done = True
        elif self.finish_reason and not self.done:
            pieces += self._stop()
        return b"".join(pieces)

    def _read(self, message: Message) -> Iterator[bytes]:
        if not message.data or self.done or self.error:
            return
        said = loads_object(message.data)
        try:
            match said.get("type"):
                case "content_block_delta":
                    yield from self._delta(_object(said, "delta"))
                case "content_block_start":
                    yield from self._start_block(_object(said, "content_block"))
                case "content_block_stop":
                    yield from self._stop_block()
                case "message_start":
                    self._begin(_object(said, "message"))
                    yield self._chunk({"role": "assistant", "content": ""})
                case "message_delta":
                    yield from self._ended(_object(said, "delta"), _object(said, "usage"))
                case "message_stop":
                    yield from self._stop()
                case "error":
                    yield self._fail(said.get("error"))
        except TypeError:
            yield self._fail({"type": "api_error", "message": TOO_DEEP})

    def _fail(self, said: object) -> bytes:
        error = chat_error(said)
        self.error = error["message"]
        return b"data: " + json.dumps({"error": error}) + b"\n\n"

    def _begin(self, message: Shape) -> None:
        self.model = text_of(message.get("model") or "")
        self._tell(_object(message, "usage"))
        head = {
            "id": message.get("id"),
            "object": "chat.completion.chunk",
            "created": int(self._clock()),
            "model": self.model,
        }
        self._head = b"data: " + json.dumps(head)[:-1]

    def _chunk(self, delta: Shape, finish: str = "") -> bytes:
        return b'%b,"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b' % (
            self._head,
            json.dumps(delta),
            b'"%b"' % finish.encode() if finish else b"null",
            self._tail,
        )

    def _delta(self, delta: Shape) -> Iterator[bytes]:
        match delta:
            case {"type": "text_delta", "text": str(text)} if text:
                self.text_bytes += len(text.encode())
                yield self._chunk({"content": text})
            case {"type": "thinking_delta", "thinking": str(thought)} if thought:
                self.text_bytes += len(thought.encode())
                yield self._chunk({"reasoning_content": thought})
            case {"type": "input_json_delta", "partial_json": str(part)} if part:
                yield from self._argue(part)

    def _start_block(self, block: Shape) -> Iterator[bytes]:
        self._block = block
        self._arguments = False
        if block.get("type") == "text":
            yield from self._delta({"type": "text_delta", "text": block.get("text")})
        elif block.get("type") == "tool_use" and block.get("name") != JSON_TOOL:
            self._calls += 1
            call = {
                "index": self._calls - 1,
                "id": block.get("id"),
                "type": "function",
                "function": {"name": block.get("name"), "arguments": ""},
            }
            yield self._chunk({"tool_calls": [call]})

    def _argue(self, part: str) -> Iterator[bytes]:
        """A piece of a tool's arguments; those of server tools are not the client's."""
        if self._block.get("type") != "tool_use":
            return
        self._arguments = True
        self.text_bytes += len(part.encode())
        if self._block.get("name") == JSON_TOOL:
            yield self._chunk({"content": part})
        else:
            call = {"index": self._calls - 1, "function": {"arguments": part}}
            yield self._chunk({"tool_calls": [call]})

    def _stop_block(self) -> Iterator[bytes]:
        if self._block.get("type") == "tool_use" and not self._arguments:
            yield from self._argue(json.dumps(self._block.get("input") or {}).decode())
        self._block = {}

    def _ended(self, delta: Shape, usage: Shape) -> Iterator[bytes]:
        self._tell(usage)
        self.usage = usage_of(self._told)
        reason = delta.get("stop_reason")
        if reason and not self.finish_reason:
            self.finish_reason = finish_of(reason, self._calls)
            yield self._chunk({}, self.finish_reason)

    def _stop(self) -> Iterator[bytes]:
        self.done = True
        if self._usage_asked and self.usage is not None:
            usage = json.dumps(chat_usage(self.usage))
            yield b'%b,"choices":[],"usage":%b}\n\n' % (self._head, usage)
        yield DONE

    def _tell(self, usage: Shape) -> None:
        self.doubt = doubtful(usage) or self.doubt
        self._told |= {name: value for name, value in usage.items() if value is not None}


def _object(said: Shape, name: str) -> Shape:
    value = said.get(name)
    return value if isinstance(value, dict) else {}
