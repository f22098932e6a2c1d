"""Anthropic's answers: watched for clients that speak it; plain ones as chat completions."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import time
from typing import Any

from passy_plugins.dialects.anthropic_request import JSON_TOOL
from passy_plugins.dialects.openai_answer import PlainTap, count, doubtful
from passy_plugins.dialects.watch import USAGE, Watch, error_message, loads_object, text_of
from passy_proxy import json
from passy_proxy.records import Usage

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
TOO_DEEP = "the answer is nested too deeply"
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
    kind = text_of(error.get("type") or ("api_error" if status >= 500 else "invalid_request_error"))
    message = text_of(error.get("message") or f"The upstream answered {status or 'with an error'}.")
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

    def ordinary(self, data: bytes) -> bool:
        ended = data.count(b"\n\n")
        if data.count(b"event: content_block_delta\n") != ended:
            return False
        return self.count_text(data, ended, b'"text":"')

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
                self.finish_reason = text_of(delta["stop_reason"])
        elif kind == "message_stop":
            self.done = True
        elif kind == "error":
            self.error = error_message(said.get("error") or said)
        else:
            self.text_bytes += sum(map(len, self.generated.findall(data)))
        return True

    def read_end(self, start: bytes, end: bytes, usage: Any) -> None:
        if b'"message_delta"' in start:
            self._tell(usage)
            self.usage = usage_of(self._told)

    def _tell(self, usage: object) -> None:
        """Counts are totals: a later one takes the place of an earlier one.

        The start of a message tells of its input only, so a stream that is cut has no usage.
        """
        self.doubt = doubtful(usage) or self.doubt
        if isinstance(usage, dict):
            self._told |= {name: value for name, value in usage.items() if value is not None}


class MessagePlainTap(PlainTap):
    """A plain answer of Anthropic's for a client that speaks it."""

    read_usage = staticmethod(usage_of)
    finish_word = STOP_REASON
    generated = MessagesTap.generated

    def whole(self, data: bytes) -> bytes:
        return self.feed(data) + self.finish()


class MessageTap(MessagePlainTap):
    """The same where it is known what an answer looks like."""

    strict = True


class ChatPlainTap(PlainTap):
    """A plain answer of Anthropic's, translated once it is whole."""

    read_usage = staticmethod(usage_of)
    finish_reason = ""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock

    def whole(self, data: bytes) -> bytes:
        return self.feed(data) + self.finish()

    def feed(self, data: bytes) -> bytes:
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(data)
        return b""

    def finish(self) -> bytes:
        if self.done:
            return b""
        self.done = True
        said = loads_object(b"".join(self._pieces or ()))
        self._pieces = None
        try:
            return self._translated(said)
        except TypeError:
            self.error = TOO_DEEP
            return b""

    def _translated(self, said: Shape) -> bytes:
        if said.get("type") == "error":
            error = chat_error(said.get("error"))
            self.error = error["message"]
            return json.dumps({"error": error})
        if said.get("type") != "message" or not isinstance(said.get("content"), list):
            self.error = error_message(said.get("error")) or "the answer is no message"
            return b""
        self.model = text_of(said.get("model") or "")
        self._tell(said.get("usage"))
        message = self._message(said.get("content"))
        self.finish_reason = finish_of(said.get("stop_reason"), message.get("tool_calls"))
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

    def _message(self, blocks: Any) -> Shape:
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


def finish_of(reason: object, calls: object) -> str:
    """OpenAI's finish reason; a tool that was only a way to ask for JSON was not called."""
    finish = FINISH.get(text_of(reason), "stop")
    return "stop" if finish == "tool_calls" and not calls else finish
