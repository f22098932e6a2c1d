"""What is asked of the echo, and what it says: read from a body of any of the APIs it speaks.

Tokens are counted alike everywhere: one word with the space after it is one token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from passy_proxy import json

WORD = re.compile(r"\S+\s*|\s+")
DEEPEST = 8
"""Levels of a schema that an instance follows."""
MOST_PARTS = 10_000
"""Values of one instance: a few short members that refer to each other ask for any number."""
PART = 64
"""Characters of a text that count as one of them."""
LONGEST_TEXT = 10_000
DEEPEST_CONSTANT = 64

FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "email": "echo@example.com",
    "time": "00:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class BadQuestion(ValueError):
    """A body the echo cannot answer; ``param`` is the member at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def words(text: str) -> list[str]:
    """``text`` in pieces of one word each; joined they are the text again."""
    return WORD.findall(text)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: its arguments are JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """The echo's answer, before it takes an API's shape."""

    id: str
    model: str
    created: int
    words: list[str]
    call: Call | None
    entered: int
    """Tokens of the question."""
    cut_short: bool
    """``max_tokens`` was reached."""

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def written(self) -> int:
        return len(self.words)


class Question:
    """One request's body, as far as the echo understands it. Raises BadQuestion."""

    def __init__(self, body: bytes) -> None:
        try:
            said = json.loads(body)
        except ValueError:
            raise BadQuestion("The body is not valid JSON.", "") from None
        if not isinstance(said, dict):
            raise BadQuestion("The body is not a JSON object.", "")
        self.said: dict[str, Any] = said
        self.id = blake2b(body, digest_size=12).hexdigest()
        model = said.get("model")
        if not isinstance(model, str) or not model:
            raise BadQuestion("'model' is missing.", "model")
        self.model = model
        self.streamed = said.get("stream") is True
        options = said.get("stream_options")
        self.usage_asked = isinstance(options, dict) and options.get("include_usage") is True

    def turns(self, operation: str) -> list[Any]:
        """Messages, input items or prompts: whatever this API calls a conversation."""
        name = {"completions": "prompt", "responses": "input"}.get(operation, "messages")
        asked = self.said.get(name)
        if isinstance(asked, str):
            return [asked]
        if not isinstance(asked, list) or not asked:
            raise BadQuestion(f"'{name}' is missing or empty.", name)
        return asked

    def answer(self, operation: str, created: int) -> Said:
        """What the echo says to this."""
        turns = self.turns(operation)
        variant = self.model.partition(":")[2] if self.model.startswith("echo:") else ""
        text = _last_text(turns)
        call = self.call(turns, text, variant)
        if call is not None:
            spoken = words(call.arguments)
        elif variant == "json":
            spoken = words(json.dumps(self.instance(text)).decode())
        else:
            spoken = words(text)
        most = self.most()
        cut_short = call is None and most is not None and len(spoken) > most
        beside = [self.said.get("system"), self.said.get("instructions")]
        entered = sum(len(words(piece)) for piece in texts([*turns, *beside]))
        spoken = spoken[:most] if cut_short else spoken
        return Said(self.id, self.model, created, spoken, call, entered, cut_short)

    def most(self) -> int | None:
        """The client's limit on generated tokens."""
        for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
            limit = self.said.get(name)
            if type(limit) is int and limit > 0:
                return limit
        return None

    def call(self, turns: list[Any], text: str, variant: str) -> Call | None:
        """A tool call where one is forced, or ``echo:tool`` may make one; never after a result.

        An agent asks again and again as long as tools are called. So a free choice is taken by
        ``echo:tool`` only, and the answer to a tool's result is always text.
        """
        given = self.said.get("tools")
        declared = map(_tool, given if isinstance(given, list) else ())
        tools = [tool for tool in declared if tool is not None]
        if not tools or _is_result(turns[-1]):
            return None
        wanted = _forced(self.said.get("tool_choice"))
        if wanted is None and (variant != "tool" or self.said.get("tool_choice") == "none"):
            return None
        name, schema = next((tool for tool in tools if tool[0] == wanted), tools[0])
        return Call(name, json.dumps(Instance(schema, text).value()).decode())

    def instance(self, text: str) -> Any:
        """The smallest value that the asked schema allows; without one, the text in an object."""
        for places in (
            ("response_format", "json_schema", "schema"),
            ("text", "format", "schema"),
            ("output_config", "format", "schema"),
        ):
            found: Any = self.said
            for place in places:
                found = found.get(place) if isinstance(found, dict) else None
            if isinstance(found, dict):
                return Instance(found, text).value()
        return {"echo": text}


def _tool(tool: object) -> tuple[str, dict[str, Any]] | None:
    """Name and schema of a tool, in any API's way of declaring it."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        return None
    schema = function.get("parameters", function.get("input_schema"))
    return name, schema if isinstance(schema, dict) else {}


def _forced(choice: object) -> str | None:
    """The tool that must be called; empty for any of them, ``None`` when none must."""
    if choice == "required":
        return ""
    if not isinstance(choice, dict):
        return None
    if choice.get("type") in ("any", "required"):
        return ""
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return name if isinstance(name, str) else None


def _is_result(turn: object) -> bool:
    if not isinstance(turn, dict):
        return False
    if turn.get("role") == "tool" or turn.get("type") == "function_call_output":
        return True
    content = turn.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_result" for part in content
    )


def _last_text(turns: list[Any]) -> str:
    """The text of the last turn that is not the assistant's own."""
    for turn in reversed(turns):
        if not (isinstance(turn, dict) and turn.get("role") == "assistant"):
            return "\n".join(texts(turn))
    return ""


def texts(value: object) -> Iterator[str]:
    """All text in a conversation, in order, whichever way it is wrapped."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)
    elif isinstance(value, dict):
        for name in ("text", "content", "output", "arguments"):
            yield from texts(value.get(name))
        yield from texts(value.get("tool_calls"))
        yield from texts(value.get("function"))


class Instance:
    """A small valid value for a JSON schema, with ``text`` where a string is wanted."""

    def __init__(self, schema: dict[str, Any], text: str) -> None:
        self.schema = schema
        self.text = text
        self._parts = 0

    def value(self) -> Any:
        """The instance. Raises BadQuestion for what is no schema."""
        try:
            return self.of(self.schema, 0)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise BadQuestion("The JSON schema cannot be followed.", "") from None

    def of(self, schema: object, depth: int) -> Any:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ValueError("too large an instance")
        if not isinstance(schema, dict) or depth > DEEPEST:
            return None
        if "const" in schema or schema.get("enum"):
            return constant(schema["const"] if "const" in schema else schema["enum"][0])
        if isinstance(reference := schema.get("$ref"), str):
            return self.of(self.referred(reference), depth + 1)
        if several := schema.get("anyOf") or schema.get("oneOf"):
            return self.of(several[0], depth + 1)
        if several := schema.get("allOf"):
            return self.of({key: part[key] for part in several for key in part}, depth + 1)
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        return self.of_type(str(kind), schema, depth)

    def of_type(self, kind: str, schema: dict[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                members = schema.get("properties") or {}
                names = schema.get("required") or ()
                return {name: self.of(members.get(name, {}), depth + 1) for name in names}
            case "array":
                size = schema.get("minItems") or 0
                return [self.of(schema.get("items", {}), depth + 1) for _ in range(min(size, 100))]
            case "integer" | "number":
                lowest = schema.get("minimum")
                above = schema.get("exclusiveMinimum")
                number = lowest if lowest is not None else above + 1 if above is not None else 0
                return min(number, schema.get("maximum", number))
            case "boolean":
                return False
            case "string":
                sample = FORMATS.get(schema.get("format", ""), self.text)
                shortest = min(schema.get("minLength") or 0, LONGEST_TEXT)
                sample = sample.ljust(shortest, ".")[: schema.get("maxLength")]
                self._parts += len(sample) // PART
                return sample
            case _:
                return None

    def referred(self, reference: str) -> object:
        found: Any = self.schema
        for step in filter(None, reference.removeprefix("#").split("/")):
            found = found.get(step) if isinstance(found, dict) else None
        return found


def constant(value: Any, levels: int = DEEPEST_CONSTANT) -> Any:
    """``value``, of a schema. Raises ValueError where it is nested too deeply to be said."""
    if not levels:
        raise ValueError("a constant nested without end")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            constant(inner, levels - 1)
    return value
