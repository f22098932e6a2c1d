"""What `body_msgspec` does, by the standard library alone: slower, with the same edits.

The body is parsed whole, member by member, so that it is known where each value stands.
"""

from __future__ import annotations

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from math import inf
from typing import Any, NamedTuple, NoReturn

from passy_proxy.records import Usage

__all__ = [
    "MAX_DEPTH",
    "MOST",
    "Answer",
    "BadBody",
    "Head",
    "JsonLimits",
    "bad_depth",
    "check_counts",
    "check_digits",
    "check_text",
    "check_value",
    "marks_of",
    "member_span",
    "read_answer",
    "read_counts",
    "read_head",
    "read_response_counts",
    "rewrite",
    "splice_model",
    "usage_of",
    "with_include_usage",
]

MAX_DEPTH = 128
SAID = {"dict": "object", "int": "number", "bool": "boolean"}
"""Kinds of values as JSON calls them."""
MOST = 1 << 40

_SPACE = re.compile(r"[ \t\n\r]*")


class BadBody(ValueError):
    """A request body that is refused: `message` for the client, `param` the member at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class JsonLimits(NamedTuple):
    """What a body may hold; see `body_msgspec.JsonLimits`."""

    depth: int = MAX_DEPTH
    keys: int = 10_000
    digits: int = 10_000

    @property
    def parts(self) -> int:
        return self.keys * 10


LIMITS = JsonLimits()


class Head(NamedTuple):
    """What the gateway needs to know of a request body; see `body_msgspec.Head`."""

    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    n: int
    at: int
    has_stream_options: bool
    outline: bytes = b""


class Answer(NamedTuple):
    """The accounting part of a JSON answer; a member that is absent or null is None."""

    model: str | None = None
    usage: dict[str, object] | None = None


_STEERING = (
    "model",
    "stream",
    "stream_options",
    "max_completion_tokens",
    "max_tokens",
    "max_output_tokens",
    "n",
)


class _Member(NamedTuple):
    value: Any
    start: int
    end: int


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_constant)


def _members(body: bytes, limits: JsonLimits = LIMITS) -> tuple[str, list[tuple[str, _Member]]]:
    """The body as text, and its top-level members with their places in it."""
    if not body.strip(b" \t\r\n"):
        raise BadBody("The body is empty; a JSON object is expected.")
    try:
        text = body.decode()
        _check_structure(text, limits)
        return text, _read(text)
    except BadBody:
        raise
    except RecursionError:
        raise bad_depth(limits.depth) from None
    except (ValueError, IndexError, StopIteration) as exc:
        raise BadBody(f"The body is not valid JSON: {exc or 'it ends too early'}.") from None


def _read(text: str) -> list[tuple[str, _Member]]:
    found: list[tuple[str, _Member]] = []
    at = _after(text, _skip(text, 0), "{")
    if text[at] == "}":
        at += 1
    else:
        while True:
            name, at = scanstring(text, _after(text, at, '"', space=False))
            at = _after(text, _skip(text, at), ":")
            value, end = _decoder.raw_decode(text, at)
            found.append((name, _Member(value, at, end)))
            at = _skip(text, end)
            if text[at] == "}":
                at += 1
                break
            at = _after(text, at, ",")
    if _skip(text, at) != len(text):
        raise ValueError(f"there is more behind its end, at character {at}")
    return found


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _after(text: str, at: int, expected: str, *, space: bool = True) -> int:
    if text[at] != expected:
        if expected == "{":
            raise BadBody("The body is not a JSON object.")
        raise ValueError(f"{expected} is expected at character {at}")
    return _skip(text, at + 1) if space else at + 1


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, to the end of the text where nothing ends it: were that no match, each quote in the
rest would be tried as the beginning of another."""


def _check_structure(text: str, limits: JsonLimits) -> None:
    check_digits(text.encode(), limits.digits)
    structure = marks_of(text.encode())
    if len(structure) - structure.count(b"]") - structure.count(b"}") > limits.parts:
        message = f"The body has more than {limits.parts} objects, lists and members."
        raise BadBody(message)
    check_counts(structure, limits)


def marks_of(text: bytes) -> bytes:
    """As `body_msgspec.marks_of`."""
    return re.sub(rb"[^][{}:]+", b"", _STRING.sub(b"", text))


def check_digits(text: bytes, most: int) -> None:
    """As `body_msgspec.check_digits`."""
    if re.search(rb"[0-9]{%d}" % (most + 1), _STRING.sub(b"", text)):
        raise BadBody(f"A number has more than {most} digits.")


def check_counts(structure: bytes, limits: JsonLimits) -> None:
    """As `body_msgspec.check_counts`."""
    around: list[int] = []  # members so far of what the present object or list stands in
    members = 0
    for mark in structure:
        if mark == ord(":"):
            members += 1
            if members > limits.keys:
                raise BadBody(f"An object has more than {limits.keys} members.")
        elif mark in b"[{":
            around.append(members)
            members = 0
            if len(around) > limits.depth:
                raise bad_depth(limits.depth)
        elif around:
            members = around.pop()


def bad_depth(most: int = MAX_DEPTH) -> BadBody:
    """As `body_msgspec.bad_depth`."""
    return BadBody(f"The body is nested deeper than {most} levels.")


def _once(members: list[tuple[str, _Member]], name: str) -> _Member | None:
    found = [member for known, member in members if known == name]
    if len(found) > 1:
        raise BadBody(f"'{name}' is given {len(found)} times; give it once.", name)
    return found[0] if found else None


def _typed(members: dict[str, Any], name: str, *kinds: type) -> Any:
    value = members.get(name)
    if value in (inf, -inf):
        raise BadBody(f"'{name}' is not valid: Number out of range.", name)
    if value is None or (isinstance(value, kinds) and (bool in kinds or value is not bool(value))):
        return value
    raise BadBody(f"'{name}' is not valid: expected {SAID[kinds[0].__name__]}.", name)


def read_head(body: bytes, limits: JsonLimits = LIMITS) -> Head:
    """The head of a request body; BadBody as from `body_msgspec.read_head`."""
    _, listed = _members(body, limits)
    for name in _STEERING:
        _once(listed, name)
    members = {name: member.value for name, member in listed}
    model = members.get("model")
    if model is None:
        raise BadBody("'model' is missing.", "model")
    if not isinstance(model, str) or not _whole(model):
        raise BadBody("'model' is not valid: expected string.", "model")
    if not model:
        raise BadBody("'model' must not be empty.", "model")
    options = _typed(members, "stream_options", dict)
    said = [
        _typed(members, name, int, float)
        for name in ("max_completion_tokens", "max_tokens", "max_output_tokens")
    ]
    limit = next((one for one in said if one is not None), None)
    many = _typed(members, "n", int, float)
    return Head(
        model,
        _typed(members, "stream", bool) is True,
        options is not None and options.get("include_usage") is True,
        int(limit) if limit is not None and limit >= 0 else None,
        1 if many is None else max(1, int(many)),
        0,
        "stream_options" in members,
    )


def check_text(text: bytes) -> None:
    """BadBody as from `body_msgspec.check_text`."""
    try:
        json.loads(b'"%b"' % text)
    except ValueError:
        raise BadBody("The body holds what is no text.") from None


def check_value(text: bytes) -> None:
    """BadBody as from `body_msgspec.check_value`."""
    try:
        _decoder.decode(text.decode())
    except RecursionError:
        raise bad_depth() from None
    except ValueError:
        raise BadBody("The body is not valid JSON.") from None


def _whole(text: str) -> bool:
    """Whether it has no half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def member_span(body: bytes, name: str) -> tuple[int, int] | None:
    """Where the value of the top-level member `name` stands, in bytes; None without one."""
    text, listed = _members(body)
    member = _once(listed, name)
    if member is None:
        return None
    start = len(text[: member.start].encode())
    return start, start + len(text[member.start : member.end].encode())


def splice_model(body: bytes, head: Head, name: str) -> bytes:
    """The body with `name` as its model; the same object when that is its model already."""
    return rewrite(body, head, name, include_usage=False)


def with_include_usage(body: bytes, head: Head) -> bytes:
    """The body with `stream_options.include_usage` true."""
    return rewrite(body, head, None, include_usage=True)


def rewrite(body: bytes, head: Head, model: str | None, include_usage: bool) -> bytes:
    """Both edits at once. `head` must come from `read_head` of this very body."""
    edits: list[tuple[int, int, bytes]] = []
    if model is not None and model != head.model:
        span = member_span(body, "model")
        assert span is not None
        edits.append((*span, json.dumps(model, ensure_ascii=False).encode()))
    if include_usage and not head.include_usage:
        edits.append(_usage_edit(body))
    for start, end, new in sorted(edits, reverse=True):
        body = body[:start] + new + body[end:]
    return body


def _usage_edit(body: bytes) -> tuple[int, int, bytes]:
    span = member_span(body, "stream_options")
    if span is None:
        end = body.rindex(b"}")
        return end, end, b',"stream_options":{"include_usage":true}'
    options = json.loads(body[slice(*span)]) or {}
    return *span, json.dumps({**options, "include_usage": True}).encode()


def read_answer(body: bytes) -> Answer | None:
    """Model and usage of a JSON answer (or of one event's data); None when it is none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    model, usage = said.get("model"), said.get("usage")
    if not isinstance(model, str | None) or not isinstance(usage, dict | None):
        return None
    return Answer(model, usage)


def read_counts(body: bytes) -> tuple[str, Usage] | None:
    """No shorter way to `read_answer` here: see `body_msgspec.read_counts`."""
    return None


read_response_counts = read_counts


def usage_of(body: bytes) -> dict[str, object] | None:
    """The top-level `usage` object of a JSON answer, None without one."""
    answer = read_answer(body)
    return None if answer is None else answer.usage
