"""The echo's answer in the shape of each API: a plain body, or the messages of a stream."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator
from hashlib import shake_128
from math import sqrt
from typing import Any

from passy_plugins.echo_question import BadQuestion, Question, Said, texts, words
from passy_proxy import json

Shape = dict[str, Any]

DIMENSIONS = 256
MOST_DIMENSIONS = 4096
MOST_INPUTS = 2048
MOST_NUMBERS = MOST_INPUTS * DIMENSIONS
"""A body of a few megabytes could ask for gigabytes."""

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def _data(value: Shape) -> bytes:
    return b"data: " + json.dumps(value) + b"\n\n"


def _named(value: Shape) -> bytes:
    return b"event: %s\n" % value["type"].encode() + _data(value)


def _usage(said: Said) -> Shape:
    return {
        "prompt_tokens": said.entered,
        "completion_tokens": said.written,
        "total_tokens": said.entered + said.written,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _finish(said: Said) -> str:
    if said.call is not None:
        return "tool_calls"
    return "length" if said.cut_short else "stop"


class Chat:
    """``/chat/completions``."""

    def __init__(self, said: Said) -> None:
        self.said = said

    def shape(self, kind: str, choices: list[Shape], **more: object) -> Shape:
        return {
            "id": f"chatcmpl-{self.said.id}",
            "object": kind,
            "created": self.said.created,
            "model": self.said.model,
            "choices": choices,
            **more,
        }

    def tool_call(self, arguments: str) -> Shape:
        call = self.said.call
        assert call is not None
        function = {"name": call.name, "arguments": arguments}
        return {"id": f"call_{self.said.id}", "type": "function", "function": function}

    def plain(self) -> Shape:
        said = self.said
        message: Shape = {"role": "assistant", "content": said.text, "refusal": None}
        if said.call is not None:
            message |= {"content": None, "tool_calls": [self.tool_call(said.text)]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(said)}
        return self.shape("chat.completion", [choice], usage=_usage(said))

    def stream(self, usage_asked: bool) -> Iterator[bytes]:
        said = self.said
        none = {"usage": None} if usage_asked else {}

        def chunk(delta: Shape, finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return _data(self.shape("chat.completion.chunk", [choice], **none))

        if said.call is None:
            yield chunk({"role": "assistant", "content": ""})
            for word in said.words:
                yield chunk({"content": word})
        else:
            call = {"index": 0, **self.tool_call("")}
            yield chunk({"role": "assistant", "content": None, "tool_calls": [call]})
            for word in said.words:
                yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": word}}]})
        yield chunk({}, _finish(said))
        if usage_asked:
            yield _data(self.shape("chat.completion.chunk", [], usage=_usage(said)))
        yield b"data: [DONE]\n\n"


class Completions:
    """``/completions``."""

    def __init__(self, said: Said) -> None:
        self.said = said

    def shape(self, choices: list[Shape], **more: object) -> Shape:
        return {
            "id": f"cmpl-{self.said.id}",
            "object": "text_completion",
            "created": self.said.created,
            "model": self.said.model,
            "choices": choices,
            **more,
        }

    def choice(self, text: str, finish: str | None) -> Shape:
        return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}

    def plain(self) -> Shape:
        said = self.said
        return self.shape([self.choice(said.text, _finish(said))], usage=_usage(said))

    def stream(self, usage_asked: bool) -> Iterator[bytes]:
        none = {"usage": None} if usage_asked else {}
        for word in self.said.words:
            yield _data(self.shape([self.choice(word, None)], **none))
        yield _data(self.shape([self.choice("", _finish(self.said))], **none))
        if usage_asked:
            yield _data(self.shape([], usage=_usage(self.said)))
        yield b"data: [DONE]\n\n"


class Responses:
    """``/responses``."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.ended = "incomplete" if said.cut_short else "completed"

    def item(self, status: str, text: str) -> Shape:
        said = self.said
        if said.call is not None:
            return {
                "id": f"fc_{said.id}",
                "type": "function_call",
                "status": status,
                "call_id": f"call_{said.id}",
                "name": said.call.name,
                "arguments": text,
            }
        return {
            "id": f"msg_{said.id}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self.part(text)] if status != "in_progress" else [],
        }

    def part(self, text: str) -> Shape:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def shape(self, status: str, output: list[Shape]) -> Shape:
        said = self.said
        usage = {
            "input_tokens": said.entered,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": said.written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.entered + said.written,
        }
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{said.id}",
            "object": "response",
            "created_at": said.created,
            "status": status,
            "error": None,
            "incomplete_details": reason,
            "instructions": None,
            "metadata": {},
            "model": said.model,
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage if status != "in_progress" else None,
        }

    def plain(self) -> Shape:
        return self.shape(self.ended, [self.item(self.ended, self.said.text)])

    def stream(self, usage_asked: bool) -> Iterator[bytes]:
        for number, (kind, members) in enumerate(self.events()):
            yield _named({"type": f"response.{kind}", "sequence_number": number, **members})

    def events(self) -> Iterator[tuple[str, Shape]]:
        said, ended = self.said, self.ended
        text = said.text
        begun = {"response": self.shape("in_progress", [])}
        yield "created", begun
        yield "in_progress", begun
        yield "output_item.added", {"output_index": 0, "item": self.item("in_progress", "")}
        if said.call is not None:
            place = {"item_id": f"fc_{said.id}", "output_index": 0}
            for word in said.words:
                yield "function_call_arguments.delta", {**place, "delta": word}
            yield "function_call_arguments.done", {**place, "arguments": text}
        else:
            place = {"item_id": f"msg_{said.id}", "output_index": 0, "content_index": 0}
            yield "content_part.added", {**place, "part": self.part("")}
            for word in said.words:
                yield "output_text.delta", {**place, "delta": word, "logprobs": []}
            yield "output_text.done", {**place, "text": text, "logprobs": []}
            yield "content_part.done", {**place, "part": self.part(text)}
        item = self.item(ended, text)
        yield "output_item.done", {"output_index": 0, "item": item}
        yield ended, {"response": self.shape(ended, [item])}


class Messages:
    """Anthropic's ``/v1/messages``."""

    def __init__(self, said: Said) -> None:
        self.said = said

    def shape(self, content: list[Shape], reason: str | None, written: int) -> Shape:
        return {
            "id": f"msg_{self.said.id}",
            "type": "message",
            "role": "assistant",
            "model": self.said.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": self.said.entered,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": written,
            },
        }

    @property
    def reason(self) -> str:
        if self.said.call is not None:
            return "tool_use"
        return "max_tokens" if self.said.cut_short else "end_turn"

    def block(self, whole: bool) -> Shape:
        said = self.said
        if said.call is None:
            return {"type": "text", "text": said.text if whole else ""}
        given = json.loads(said.text) if whole else {}
        return {
            "type": "tool_use",
            "id": f"toolu_{said.id}",
            "name": said.call.name,
            "input": given,
        }

    def plain(self) -> Shape:
        return self.shape([self.block(True)], self.reason, self.said.written)

    def stream(self, usage_asked: bool) -> Iterator[bytes]:
        said = self.said
        kind, member = ("text_delta", "text")
        if said.call is not None:
            kind, member = ("input_json_delta", "partial_json")
        yield _named({"type": "message_start", "message": self.shape([], None, 0)})
        start = {"index": 0, "content_block": self.block(False)}
        yield _named({"type": "content_block_start", **start})
        yield _named({"type": "ping"})
        for word in said.words:
            delta = {"type": kind, member: word}
            yield _named({"type": "content_block_delta", "index": 0, "delta": delta})
        yield _named({"type": "content_block_stop", "index": 0})
        ended = {"stop_reason": self.reason, "stop_sequence": None}
        written = {"output_tokens": said.written}
        yield _named({"type": "message_delta", "delta": ended, "usage": written})
        yield _named({"type": "message_stop"})


def embeddings(question: Question) -> Shape:
    """Vectors of length 1 that depend on nothing but the text."""
    asked = question.said.get("input")
    if isinstance(asked, str) or (isinstance(asked, list) and asked and type(asked[0]) is int):
        asked = [asked]
    if not isinstance(asked, list) or not asked:
        raise BadQuestion("'input' is missing or empty.", "input")
    if not all(isinstance(one, str | list) for one in asked):
        raise BadQuestion("'input' holds something else than text and tokens.", "input")
    size = question.said.get("dimensions", DIMENSIONS)
    if type(size) is not int or not 1 <= size <= MOST_DIMENSIONS:
        raise BadQuestion(f"'dimensions' is not within 1 and {MOST_DIMENSIONS}.", "dimensions")
    if len(asked) * size > MOST_NUMBERS:
        raise BadQuestion(f"More than {MOST_NUMBERS} numbers in all are asked for.", "input")
    packed = question.said.get("encoding_format") == "base64"
    try:
        vectors = [_vector(json.dumps(one), size) for one in asked]
    except TypeError:
        raise BadQuestion("'input' is nested too deeply.", "input") from None
    tokens = sum(len(words(one)) if isinstance(one, str) else len(one) for one in asked)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _packed(v) if packed else v}
            for index, v in enumerate(vectors)
        ],
        "model": question.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vector(text: bytes, size: int) -> list[float]:
    raw = struct.unpack(f"<{size}i", shake_128(text).digest(4 * size))
    length = sqrt(sum(number * number for number in raw)) or 1.0
    return [number / length for number in raw]


def _packed(vector: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def moderations(question: Question) -> Shape:
    """Nothing is ever flagged."""
    asked = question.said.get("input")
    asked = asked if isinstance(asked, list) else [asked]
    if len(asked) > MOST_INPUTS:
        raise BadQuestion(f"More than {MOST_INPUTS} inputs are asked about.", "input")
    result = {
        "flagged": False,
        "categories": dict.fromkeys(CATEGORIES, False),
        "category_scores": dict.fromkeys(CATEGORIES, 0.0),
        "category_applied_input_types": {category: ["text"] for category in CATEGORIES},
    }
    results = [result for _ in asked]
    return {"id": f"modr-{question.id}", "model": question.model, "results": results}


def counted(question: Question) -> Shape:
    """Anthropic's ``count_tokens``."""
    asked = [*question.turns("messages"), question.said.get("system")]
    return {"input_tokens": sum(len(words(piece)) for piece in texts(asked))}
