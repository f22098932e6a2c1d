"""Anthropic's answers: watched where the client speaks Anthropic too, else as chat completions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from time import time
from typing import Any

from passy_plugins.dialects.anthropic_request import JSON_TOOL
from passy_plugins.dialects.openai_answer import DONE, PlainTap, count, error_message
from passy_plugins.dialects.watch import USAGE, Watch, loads_object
from passy_proxy import json
from passy_proxy.records import Usage
from passy_proxy.sse import Decoder, MalformedStream, Message

Shape = dict[str, Any]

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STOP_REASON = re.compile(rb'"stop_reason"\s*:\s*"([^"\\]+)"')


def usage_of(said: object) -> Usage | None:
    """What a ``usage`` of Anthropic's says; its ``input_tokens`` leave out what was cached."""
    if not isinstance(said, dict):
        return None
    fresh = count(said.get("input_tokens"))
    written = count(said.get("output_tokens"))
    if fresh is None and written is None:
        return None
    written = written or 0
    cached = count(said.get("cache_read_input_tokens")) or 0
    kept = count(said.get("cache_creation_input_tokens")) or 0
    details = said.get("output_tokens_details")
    thought = count(details.get("thinking_tokens")) if isinstance(details, dict) else 0
    return Usage((fresh or 0) + cached + kept, written, cached, kept, min(thought or 0, written))


def chat_usage(usage: Usage) -> Shape:
    """The same in OpenAI's words."""
    into = {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write}
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": into,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def chat_error(error: object, status: int = 0) -> Shape:
    """OpenAI's error object for Anthropic's."""
    error = error if isinstance(error, dict) else {}
    kind = str(error.get("type") or ("api_error" if status >= 500 else "invalid_request_error"))
    message = str(error.get("message") or f"The upstream answered {status or 'with an error'}.")
    said, code = ERRORS.get(kind, (kind, None))
    if kind == "invalid_request_error" and "prompt is too long" in message:
        code = "context_length_exceeded"
    return {"message": message, "type": said, "param": None, "code": code}


ERRORS: dict[str, tuple[str, str | None]] = {
    "api_error": ("server_error", None),
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "gateway_timeout_error": ("timeout_error", "upstream_timeout"),
    "not_found_error": ("invalid_request_error", "model_not_found"),
    "overloaded_error": ("service_unavailable_error", "server_is_overloaded"),
    "permission_error": ("permission_error", None),
    "rate_limit_error": ("rate_limit_error", "rate_limit_exceeded"),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "timeout_error": ("timeout_error", "upstream_timeout"),
}
"""Anthropic's ``error.type`` → OpenAI's type and code."""


class MessagesTap(Watch):
    """A stream of Anthropic's for a client that speaks it: nothing is changed."""

    __slots__ = ("_told",)

    generated = re.compile(rb'"(?:text|partial_json|thinking)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"')

    def __init__(self) -> None:
        super().__init__()
        self._told: Shape = {}

    def notable(self, data: bytes) -> bool:
        return (
            USAGE.search(data) is not None
            or data.rfind(b"message_stop") >= 0
            or data.rfind(b'"error"') >= 0
        )

    def read(self, data: bytes) -> bool:
        said = loads_object(data)
        kind = said.get("type")
        if kind == "message_start" and isinstance(message := said.get("message"), dict):
            self._tell(message.get("usage"))
        elif kind == "message_delta":
            self._tell(said.get("usage"))
            self.usage = usage_of(self._told)
            delta = said.get("delta")
            if isinstance(delta, dict) and delta.get("stop_reason"):
                self.finish_reason = str(delta["stop_reason"])
        elif kind == "message_stop":
            self.done = True
        elif kind == "error":
            self.error = error_message(said.get("error") or said)
        else:
            self.text_bytes += sum(map(len, self.generated.findall(data)))
        return True

    def read_end(self, start: bytes, end: bytes) -> None:
        """No message that matters is that long."""

    def _tell(self, usage: object) -> None:
        """Counts are totals: a later one takes the place of an earlier one.

        The start of a message tells of its input only, so a stream that is cut has no usage.
        """
        if isinstance(usage, dict):
            self._told |= {name: value for name, value in usage.items() if value is not None}


class MessagePlainTap(PlainTap):
    """A plain answer of Anthropic's for a client that speaks it."""

    __slots__ = ()

    read_usage = staticmethod(usage_of)
    finish_word = STOP_REASON
    generated = MessagesTap.generated


class ChatPlainTap(PlainTap):
    """A plain answer of Anthropic's, translated once it is whole."""

    __slots__ = ("_clock",)

    def __init__(self, clock: Callable[[], float] = time) -> None:
        super().__init__()
        self._clock = clock

    def feed(self, data: bytes) -> bytes:
        self._pieces.append(data)
        return b""

    def finish(self) -> bytes:
        if self.done:
            return b""
        self.done = True
        said = loads_object(b"".join(self._pieces))
        self._pieces = []
        if said.get("type") == "error":
            error = chat_error(said.get("error"))
            self.error = error["message"]
            return json.dumps({"error": error})
        self.model = str(said.get("model") or "")
        self.usage = usage_of(said.get("usage"))
        message = self._message(said.get("content"))
        self.finish_reason = _finish(said.get("stop_reason"), message.get("tool_calls"))
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self.finish_reason,
        }
        answer: Shape = {
            "id": said.get("id"),
            "object": "chat.completion",
            "created": int(self._clock()),
            "model": self.model,
            "choices": [choice],
        }
        if self.usage is not None:
            answer["usage"] = chat_usage(self.usage)
        return json.dumps(answer)

    def _message(self, blocks: Any) -> Shape:  # noqa: ANN401
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[Shape] = []
        for block in blocks if isinstance(blocks, list) else ():
            match block:
                case {"type": "text", "text": str(text)}:
                    texts.append(text)
                case {"type": "thinking", "thinking": str(thought)}:
                    thoughts.append(thought)
                case {"type": "tool_use", "name": name, "input": given} if name == JSON_TOOL:
                    texts.append(json.dumps(given).decode())
                case {"type": "tool_use", "id": ident, "name": name, "input": given}:
                    function = {"name": name, "arguments": json.dumps(given).decode()}
                    calls.append({"id": ident, "type": "function", "function": function})
        self.text_bytes = sum(len(text.encode()) for text in texts + thoughts)
        self.text_bytes += sum(len(call["function"]["arguments"]) for call in calls)
        text = "".join(texts)
        message: Shape = {"role": "assistant", "content": text or None, "refusal": None}
        if not calls and not text:
            message["content"] = ""
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        return message


def _finish(reason: object, calls: object) -> str:
    """OpenAI's finish reason; a tool that was only a way to ask for JSON was not called."""
    finish = FINISH.get(str(reason), "stop")
    return "stop" if finish == "tool_calls" and not calls else finish


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

    def _fail(self, said: object) -> bytes:
        error = chat_error(said)
        self.error = error["message"]
        return b"data: " + json.dumps({"error": error}) + b"\n\n"

    def _begin(self, message: Shape) -> None:
        self.model = str(message.get("model") or "")
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
            self.finish_reason = _finish(reason, self._calls)
            yield self._chunk({}, self.finish_reason)

    def _stop(self) -> Iterator[bytes]:
        self.done = True
        if self._usage_asked and self.usage is not None:
            usage = json.dumps(chat_usage(self.usage))
            yield b'%b,"choices":[],"usage":%b}\n\n' % (self._head, usage)
        yield DONE

    def _tell(self, usage: Shape) -> None:
        self._told |= {name: value for name, value in usage.items() if value is not None}


def _object(said: Shape, name: str) -> Shape:
    value = said.get(name)
    return value if isinstance(value, dict) else {}
