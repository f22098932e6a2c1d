"""Read and edit a JSON request body without parsing it whole or writing it again.

The gateway steers by a handful of top-level members (`model`, `stream`, limits). They are decoded,
the rest is skipped but checked, and an edit replaces exactly one value: every other byte, spacing
and spelling included, goes upstream as it came.

Two rules:

1. *What we read is what any parser reads.* JSON says nothing about a member given twice, so a body
   is refused when a reader that keeps the first one would see another model than a reader that
   keeps the last one. Escaped spellings (`"\\u006dodel"`) are the same name.
2. *Cost is linear*, whatever is sent, and the usual body costs one decode and one copy.

How both hold at once: the likely place of `"model":` is found by a byte search and *marked*, that
is, renamed to a name nobody can guess, before decoding. When the decoder then finds the mark at
the top level and no `model`, that place is the one and only one: no second look at the body is
needed. Anything else goes to `member_span`, which is exact and slower. The members beside it that
steer are looked for a second time only where they were given.
"""

from __future__ import annotations

import re
import secrets
from codecs import utf_8_decode
from collections.abc import Callable, Iterator
from itertools import compress
from typing import Annotated

import msgspec
from msgspec import UNSET, DecodeError, Meta, Raw, Struct, UnsetType, ValidationError, field

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
MOST = 1 << 40
"""No answer has as many tokens: a larger number is taken for this one, and fits every column."""
MAX_NAMESAKES = 2_000

_MODEL, _STREAM = b'"model":', b'"stream":'
"""With the colon: behind a value stands none, so that no value is ever taken for a key."""
_MODEL_SIZE = len(_MODEL)
_MARK = secrets.token_hex(8)
_MODEL_MARK, _STREAM_MARK = f'"model{_MARK}":'.encode(), f'"stream{_MARK}":'.encode()
_FRONT, _BACK = 256, 1024
_SHORT = _FRONT + _BACK
_WINDOW = 1 << 14
_LISTS_UP_TO = 1 << 18

_string_from: Callable[[bytes, int], re.Match[bytes]] = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
).search  # type: ignore[assignment]
"""The next string in JSON from a place on that is outside of strings, where there is one."""
_RUNS = re.compile(rb"(\[+)(\]*)")
_BYTE = re.compile(r"\(byte (\d+)\)")
_PARAM = re.compile(r"\$\.(\w+)")
_KIND = re.compile("`([^`]*)`")
SAID = {"str": "string", "bool": "boolean", "int": "integer", "float": "number"}
_LONE_SURROGATE = re.compile(
    rb"(?i)\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f]"
)
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_NOT_MARKS = bytes(sorted(set(range(256)) - set(b"[{:")))
_NOT_STRUCTURE = bytes(sorted(set(range(256)) - set(b"[]{}:")))
_COLON, _OPENERS = b":"[0], b"[{"
_SMALL_ONES = [*(b"{%b}" % (b":" * count) for count in range(7)), b"[]"]
_TWO_DIGITS = re.compile(rb"[0-9](?=[0-9])")


class BadBody(ValueError):
    """A request body that is refused: `message` for the client, `param` the member at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class JsonLimits:
    """What a body may hold: values nested ``depth`` levels deep, ``keys`` members in one object,
    numbers of ``digits`` digits; and of objects, lists and members together ``parts``, so that the
    time it takes to find this out is bounded, too."""

    __slots__ = ("depth", "digits", "keys", "large", "parts")

    def __init__(self, depth: int = MAX_DEPTH, keys: int = 10_000, digits: int = 10_000) -> None:
        self.depth = depth
        self.keys = keys
        self.digits = digits
        self.parts = keys * 10
        self.large = keys * len('"":0,')
        """Bytes; a body that is no larger cannot have too many keys."""


LIMITS = JsonLimits()


class Head(Struct, frozen=True, gc=False):
    """What the gateway needs to know of a request body.

    `max_tokens` is the client's limit on output tokens (None: no limit stated), `n` the number of
    answers asked for (at least 1). `at` is an offset between the key of the model and its value,
    0 when that key is the first `"model":` in the body. `outline` is JSON with the same members as
    a body of megabytes, in short; empty for any other.
    """

    model: str
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    n: int = 1
    at: int = 0
    has_stream_options: bool = False
    outline: bytes = b""


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


_Positive = Annotated[int, Meta(ge=1)]
_LIMITS = ("stream_options", "max_output_tokens", "max_tokens", "max_completion_tokens", "n")
_RENAMED = {name: (f'"{name}"'.encode(), f'"{"_" * len(name)}"'.encode()) for name in _LIMITS}
_OTHER = b'"_"'


class _Usual(
    Head,
    frozen=True,
    gc=False,
    rename={name: name + _MARK for name in Head.__struct_fields__}
    | {f"given_{name}": name for name in ("model", "stream", *_LIMITS)},
):
    """A head as it is decoded from a marked body that says what is usual, and says it once.

    Its own members stand under marks, the other ones under their names in the body. Of these,
    a model or stream is refused, and what was given is true; null and zero are unusual.
    """

    model: Annotated[str, Meta(min_length=1)]
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    n: int = 1
    at: int = 0
    has_stream_options: bool = False
    outline: bytes = b""
    given_model: UnsetType = UNSET
    given_stream: UnsetType = UNSET
    given_stream_options: _StreamOptions | UnsetType = UNSET
    given_max_output_tokens: _Positive = 0
    given_max_tokens: _Positive = 0
    given_max_completion_tokens: _Positive = 0
    given_n: _Positive = 0


class _Wire(Struct, gc=False):
    """The steering members of any body."""

    model: str | UnsetType = UNSET
    stream: bool | UnsetType | None = UNSET
    stream_options: _StreamOptions | UnsetType | None = UNSET
    max_completion_tokens: int | float | UnsetType | None = UNSET
    max_tokens: int | float | UnsetType | None = UNSET
    max_output_tokens: int | float | UnsetType | None = UNSET
    n: int | float | UnsetType | None = UNSET


class _NoModel(Struct, gc=False):
    """A body without these members; with one it is refused."""

    model: UnsetType = UNSET
    stream: UnsetType = UNSET


class _NoLimits(Struct, gc=False):
    """The same for the other steering members."""

    stream_options: UnsetType = UNSET
    max_output_tokens: UnsetType = UNSET
    max_tokens: UnsetType = UNSET
    max_completion_tokens: UnsetType = UNSET
    n: UnsetType = UNSET


class _Lists(Struct, gc=False):
    messages: list[Raw] | str | None = None
    tools: list[Raw] | str | None = None
    input: list[Raw] | str | None = None


class Answer(Struct, frozen=True):
    """The accounting part of a JSON answer; a member that is absent or null is None."""

    model: str | None = None
    usage: dict[str, object] | None = None


_Count = Annotated[int, Meta(ge=0, le=MOST)]


class _Into(Struct, frozen=True, gc=False):
    cached_tokens: _Count = 0
    cache_write_tokens: _Count = 0
    audio_tokens: _Count = 0


class _Out(Struct, frozen=True, gc=False):
    reasoning_tokens: _Count = 0
    audio_tokens: _Count = 0


_NO_INTO, _NO_OUT = _Into(), _Out()


class _Counts(Struct, gc=False):
    """The usage of a chat, a completion or embeddings. What would be read instead of a member that
    is absent is refused."""

    entered: _Count = field(name="prompt_tokens")
    total: _Count = field(name="total_tokens")
    written: _Count = field(name="completion_tokens", default=0)
    into: _Into | None = field(name="prompt_tokens_details", default=None)
    out: _Out | None = field(name="completion_tokens_details", default=None)
    hit: _Count = field(name="prompt_cache_hit_tokens", default=0)
    output_tokens: UnsetType = UNSET
    input_tokens_details: UnsetType = UNSET
    output_tokens_details: UnsetType = UNSET


class _ResponseCounts(Struct, gc=False):
    """The same of a response, in the words of that API."""

    entered: _Count = field(name="input_tokens")
    total: _Count = field(name="total_tokens")
    written: _Count = field(name="output_tokens", default=0)
    into: _Into | None = field(name="input_tokens_details", default=None)
    out: _Out | None = field(name="output_tokens_details", default=None)
    hit: _Count = field(name="prompt_cache_hit_tokens", default=0)
    prompt_tokens: UnsetType = UNSET
    completion_tokens: UnsetType = UNSET
    prompt_tokens_details: UnsetType = UNSET
    completion_tokens_details: UnsetType = UNSET


class _Counted(Struct, gc=False):
    usage: _Counts
    model: str | None = None


class _CountedResponse(Struct, gc=False):
    usage: _ResponseCounts
    model: str | None = None


_decode_usual = msgspec.json.Decoder(_Usual).decode
_decode_wire = msgspec.json.Decoder(_Wire).decode
_decode_no_model = msgspec.json.Decoder(_NoModel).decode
_decode_no_limits = msgspec.json.Decoder(_NoLimits).decode
_decode_lists = msgspec.json.Decoder(_Lists).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_raw = msgspec.json.Decoder(Raw).decode
_encode = msgspec.json.Encoder().encode
_new = tuple.__new__
_UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError)


def read_head(body: bytes, limits: JsonLimits = LIMITS) -> Head:
    """The head of a request body; BadBody when it is not JSON, steers ambiguously, or is built in
    a way that costs whoever reads it whole too much."""
    at = 0
    try:
        if len(body) > _SHORT:
            marked, at = _marked(body)
        else:
            marked = body.replace(_MODEL, _MODEL_MARK, 1).replace(_STREAM, _STREAM_MARK, 1)
        head = _decode_usual(marked)
    except _UNREADABLE:
        return _unusual(body, limits)
    if not body.isascii():
        _check_utf8(body)
    _check_structure(body, limits)
    if (
        head.given_max_tokens
        or head.given_stream_options
        or head.given_max_completion_tokens
        or head.given_n
        or head.given_max_output_tokens
        or at
    ):
        return _fuller(body, head, at)
    return head


def splice_model(body: bytes, head: Head, name: str) -> bytes:
    """The body with `name` as its model; the same object when that is its model already."""
    return rewrite(body, head, name, False)


def with_include_usage(body: bytes, head: Head) -> bytes:
    """The body with `stream_options.include_usage` true."""
    return rewrite(body, head, None, include_usage=True)


def rewrite(body: bytes, head: Head, model: str | None, include_usage: bool) -> bytes:
    """Both edits at once. `head` must come from `read_head` of this very body."""
    if include_usage and not head.include_usage:
        return _with_usage(body, head, model)
    if model is None or model == head.model:
        return body
    start, end = _string_from(body, head.at or body.index(_MODEL) + _MODEL_SIZE).span()
    if head.outline:  # copied once, not twice
        return b"".join((body[:start], _encode(model), memoryview(body)[end:]))
    return b"".join((body[:start], _encode(model), body[end:]))


def member_span(body: bytes, name: str) -> tuple[int, int] | None:
    """Where the value of the top-level member `name` (an identifier) stands, None without one.

    Exact for every spelling of the key. BadBody when `body` is no JSON object or has it twice.
    """
    try:
        members = _decode_members(body)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        raise _refusal(body) from None
    starts = _values_of(body, name)
    if not starts:
        return None
    if len(starts) > 1:
        raise BadBody(f"'{name}' is given {len(starts)} times; give it once.", name)
    return starts[0], starts[0] + len(memoryview(members[name]))


def read_answer(body: bytes) -> Answer | None:
    """Model and usage of a JSON answer (or of one event's data); None when it is none."""
    try:
        return _decode_answer(body)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _counter(
    decode: Callable[[bytes], _Counted | _CountedResponse],
) -> Callable[[bytes], tuple[str, Usage] | None]:
    def counts(body: bytes) -> tuple[str, Usage] | None:
        try:
            answer = decode(body)
        except _UNREADABLE:
            return None
        if not body.isascii() and not body[body.rfind(b'"usage"') :].isascii():
            return None  # Bytes that are no text are let pass in what is skipped.
        said = answer.usage
        entered, written = said.entered, said.written
        into, out = said.into or _NO_INTO, said.out or _NO_OUT
        cached, kept = into.cached_tokens or said.hit, into.cache_write_tokens
        heard, thought, spoken = into.audio_tokens, out.reasoning_tokens, out.audio_tokens
        if (
            entered + written != said.total
            or cached + kept > entered
            or heard > entered
            or thought > written
            or spoken > written
        ):
            return None
        parts = (entered, written, cached, kept, thought, heard, spoken, False)
        return answer.model or "", _new(Usage, parts)

    return counts


read_counts = _counter(msgspec.json.Decoder(_Counted).decode)
"""Model and usage of a plain JSON answer, where the usage is as everybody tells it: counts that are
whole numbers and add up, and parts no larger than what they are part of. Of anything else ``None``
is said, and ``read_answer`` is to be asked."""

read_response_counts = _counter(msgspec.json.Decoder(_CountedResponse).decode)
"""The same for the Responses API."""


def usage_of(body: bytes) -> dict[str, object] | None:
    """The top-level `usage` object of a JSON answer, None without one."""
    answer = read_answer(body)
    return None if answer is None else answer.usage


def check_text(text: bytes) -> None:
    """BadBody unless ``text`` may stand in a JSON string as it is."""
    try:
        _decode_raw(b'"%b"' % text)
    except _UNREADABLE:
        raise BadBody("The body holds what is no text.") from None
    if not text.isascii():
        _check_utf8(text)


def check_value(text: bytes) -> None:
    """BadBody unless ``text`` is JSON."""
    try:
        _decode_raw(text)
    except RecursionError:
        raise bad_depth() from None
    except _UNREADABLE:
        raise BadBody("The body is not valid JSON.") from None
    if not text.isascii():
        _check_utf8(text)


def marks_of(text: bytes) -> bytes:
    """The brackets and colons of a part of valid JSON which begins and ends outside of strings."""
    return b"".join([part.translate(None, _NOT_STRUCTURE) for part in _outside(text)])


def _marked(body: bytes) -> tuple[bytes, int]:
    """A long body with model and stream under their marks, and `Head.at` for it.

    Clients put them at the beginning, or behind the messages.
    """
    at = body.find(_MODEL, 0, _FRONT)
    if at < 0:
        at = body.rfind(_MODEL)
    if at < 0:
        return body, 0
    value = at + len(_MODEL)
    stream_at = body.find(_STREAM, 0, _FRONT)
    if stream_at < 0:
        stream_at = body.rfind(_STREAM, -_BACK)
    if stream_at < 0:
        parts: tuple[bytes, ...] = body[:at], _MODEL_MARK, body[value:]
    elif at < stream_at:
        rest = body[stream_at + len(_STREAM) :]
        parts = body[:at], _MODEL_MARK, body[value:stream_at], _STREAM_MARK, rest
    else:
        between = body[stream_at + len(_STREAM) : at]
        parts = body[:stream_at], _STREAM_MARK, between, _MODEL_MARK, body[value:]
    return b"".join(parts), value


def _fuller(body: bytes, head: _Usual, at: int) -> Head:
    """The head of a usual body that says more than model and stream, or is long."""
    options, several, many = head.given_stream_options, head.given_max_tokens, head.given_n
    output, completion = head.given_max_output_tokens, head.given_max_completion_tokens
    names = [*compress(_LIMITS, (options, output, several, completion, many))]
    if names:
        _once(body, names)
    return Head(
        head.model,
        head.stream,
        isinstance(options, _StreamOptions) and options.include_usage is True,
        completion or several or output or None,
        many or 1,
        at,
        options is not UNSET,
    )


def _unusual(body: bytes, limits: JsonLimits) -> Head:
    """The head of any other body: spelled or ordered in another way, with nulls in it, or wrong."""
    try:
        wire = _decode_wire(body)
    except _UNREADABLE:
        raise _refusal(body) from None
    at = _only_place(body)
    if not body.isascii():
        _check_utf8(body)
    _check_structure(body, limits)
    model, options, many = wire.model, wire.stream_options, wire.n
    if model is UNSET:
        raise BadBody("'model' is missing.", "model")
    if not model:
        raise BadBody("'model' must not be empty.", "model")
    names = [name for name in _LIMITS if getattr(wire, name) is not UNSET]
    if names:
        _once(body, names)
    said = wire.max_completion_tokens, wire.max_tokens, wire.max_output_tokens
    limit = next((limit for limit in said if limit is not None and limit is not UNSET), None)
    return Head(
        model,
        wire.stream is True,
        isinstance(options, _StreamOptions) and options.include_usage is True,
        int(limit) if limit is not None and limit >= 0 else None,
        max(1, int(many)) if many else 1,
        at,
        options is not UNSET,
    )


def _only_place(body: bytes) -> int:
    """`Head.at` for any JSON; BadBody when model or stream is given twice.

    When none is left after the first of each was renamed, then those were the only ones.
    """
    try:
        _decode_no_model(body.replace(b'"model"', _OTHER, 1).replace(b'"stream"', _OTHER, 1))
    except ValidationError:
        span = member_span(body, "model")
        member_span(body, "stream")
        return span[0] if span else 0
    return body.find(b'"model"') + len(b'"model"')


def _once(body: bytes, names: list[str]) -> None:
    """BadBody when one of these members, which were given, is given twice: two readers may see
    two values. It is found out in the same way, at the places where clients put them."""
    renamed = bytearray(body)
    for name in names:
        key, other = _RENAMED[name]
        at = body.find(key, 0, _FRONT)
        if at < 0:
            at = body.rfind(key)
        if at >= 0:
            renamed[at : at + len(key)] = other
    try:
        _decode_no_limits(renamed)
    except DecodeError:
        for name in names:
            member_span(body, name)


def _values_of(body: bytes, name: str) -> list[int]:
    """Where values of top-level members called `name` begin, in valid JSON.

    Outside strings JSON has no backslash, and inside strings no bare quote. So a quote without a
    backslash before it, followed by an identifier, opens a string; with a colon after it, a key.
    """
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(f"{name!r} is not an ASCII identifier")
    spelling = "".join(rf"(?:{char}|\\u(?i:{ord(char):04x}))" for char in name)
    starts = []
    depth = at = 0
    for seen, key in enumerate(re.finditer(rf'"(?<!\\"){spelling}"\s*:\s*'.encode(), body)):
        if seen == MAX_NAMESAKES:
            raise BadBody(f"More than {MAX_NAMESAKES} members are called '{name}'.", name)
        brackets = _brackets(body[at : key.start()])
        depth += brackets.count(b"[") - brackets.count(b"]")
        at = key.end()
        if depth == 1:
            starts.append(at)
    return starts


def _with_usage(body: bytes, head: Head, model: str | None) -> bytes:
    """The body with usage asked for, and with another model where one is given."""
    edits = [_usage_edit(body, head)]
    if model is not None and model != head.model:
        span = _string_from(body, head.at or body.index(_MODEL) + _MODEL_SIZE).span()
        edits.append((*span, _encode(model)))
        edits.sort()
    parts: list[bytes | memoryview] = []
    at = 0
    whole = memoryview(body)
    for start, end, new in edits:
        parts += (whole[at:start], new)
        at = end
    parts.append(whole[at:])
    return b"".join(parts)


def _usage_edit(body: bytes, head: Head) -> tuple[int, int, bytes]:
    """Start, end and replacement that make `stream_options` include usage."""
    if not head.has_stream_options:
        brace = body.index(b"{") + 1
        return brace, brace, b'"stream_options":{"include_usage":true},'
    span = member_span(body, "stream_options")
    assert span is not None, "the head saw stream_options"
    start, end = span
    options = body[start:end]
    if options == b"null":
        return start, end, b'{"include_usage":true}'
    inner = member_span(options, "include_usage")
    if inner is not None:
        return start + inner[0], start + inner[1], b"true"
    comma = b"" if not options[1:-1].strip() else b","
    return start + 1, start + 1, b'"include_usage":true' + comma


def _brackets(text: bytes) -> bytes:
    """The brackets of valid JSON in order, all of them square, those inside strings left out.

    `text` begins and ends outside strings.
    """
    if text.find(b'"') < 0:
        return text.translate(_SQUARE, _NOT_BRACKETS)
    return b"".join([part.translate(_SQUARE, _NOT_BRACKETS) for part in _outside(text)])


def _outside(text: bytes) -> Iterator[bytes]:
    """Valid JSON without its strings, which begins and ends outside of them.

    In windows, so that a body of a million tiny strings never becomes a million objects at once.
    """
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    inside = 0
    for at in range(0, len(text), _WINDOW):
        parts = text[at : at + _WINDOW].split(b'"')
        yield b"".join(parts[inside::2])
        inside ^= (len(parts) - 1) & 1


def _check_structure(body: bytes, limits: JsonLimits) -> None:
    """BadBody when this valid JSON exceeds a limit.

    Few brackets and colons, wherever they stand, are proof enough. Only what has more of them is
    looked at for where they stand.
    """
    size, depth = len(body), limits.depth
    if size > limits.digits:
        check_digits(body, limits.digits)
    if size <= limits.large:
        most = depth + 1
        if size - len(body.replace(b"{", b"", most).replace(b"[", b"", most)) > depth:
            _check_depth(body, depth, _openers(body))
        return
    marks = body.translate(None, _NOT_MARKS)
    colons = marks.count(b":")
    if colons > limits.keys or len(marks) > limits.parts:
        _check_exactly(body, limits)
    elif len(marks) - colons > depth:
        _check_depth(body, depth, len(marks) - colons)


def _check_exactly(body: bytes, limits: JsonLimits) -> None:
    """BadBody when this valid JSON is nested too deeply, an object of it has too many members, or
    all of it too many."""
    kept = []
    left = limits.parts
    for text in _outside(body):
        kept.append(text.translate(None, _NOT_STRUCTURE))
        left -= len(kept[-1].translate(None, b"]}"))
        if left < 0:
            message = f"The body has more than {limits.parts} objects, lists and members."
            raise BadBody(message)
    check_counts(b"".join(kept), limits)


def check_counts(structure: bytes, limits: JsonLimits) -> None:
    """BadBody when JSON of these brackets and colons is nested too deeply, or an object of it has
    too many members."""
    if not _within(structure.translate(_SQUARE, b":"), limits.depth):
        raise bad_depth(limits.depth)
    for small in _SMALL_ONES * 3:  # what is left holds the large ones, and is mostly nothing
        if len(small) <= limits.keys:
            structure = structure.replace(small, b"")
    around: list[int] = []  # members so far of what the present object or list stands in
    members = 0
    for byte in structure if structure.count(b":") > limits.keys else ():
        if byte == _COLON:
            members += 1
            if members > limits.keys:
                raise BadBody(f"An object has more than {limits.keys} members.")
        elif byte in _OPENERS:
            around.append(members)
            members = 0
        else:
            members = around.pop()


def check_digits(body: bytes, most: int) -> None:
    """BadBody when a number of this valid JSON has more than ``most`` digits in a row.

    Where digits follow each other for so long, every so many bytes there is one of them.
    """
    step = max(1, most // 2)
    for pair in _TWO_DIGITS.finditer(body[::step]):
        at = pair.start() * step
        if body[at : at + step].isdigit():
            break
    else:
        return
    if re.search(rb"[0-9]{%d}" % (most + 1), b"".join(_outside(body))) is not None:
        raise BadBody(f"A number has more than {most} digits.")


def _check_depth(body: bytes, limit: int, openers: int) -> None:
    """BadBody when a value of this valid JSON is nested deeper than ``limit``."""
    if not _shallow(body, limit, openers):
        raise bad_depth(limit)


def _shallow(body: bytes, most: int, openers: int) -> bool:
    """Whether no value of this valid JSON, of ``openers`` in all, is nested deeper than ``most``.

    Few opening brackets, counted wherever they stand, are proof enough, for the whole body or for
    each element of its long lists. Only what is left is followed bracket by bracket.
    """
    if openers <= most:
        return True
    if len(body) > _LISTS_UP_TO:  # a million elements would be a million objects
        return _depth_within(body, most)
    try:
        lists = _decode_lists(body)
    except ValidationError:
        return _depth_within(body, most)
    lengthy = (lists.messages, lists.tools, lists.input)
    elements = [bytes(raw) for raws in lengthy if isinstance(raws, list) for raw in raws]
    inside = _openers(b"".join(elements))
    if openers - inside > most:
        return _depth_within(body, most)
    limit = most - 2
    step = max(1, limit // 2 * len(elements) // max(1, inside))  # on average half of the limit
    for at in range(0, len(elements), step):
        group = elements[at : at + step]
        if _openers(b"".join(group)) > limit and max(map(_openers, group)) > limit:
            return _depth_within(body, most)
    return True


def _openers(text: bytes) -> int:
    """How many opening brackets stand in the text, strings included.

    Removing them is five times as fast as `bytes.count`, which does not use memchr.
    """
    return len(text) - len(text.replace(b"{", b"").replace(b"[", b""))


def _depth_within(body: bytes, most: int) -> bool:
    """Whether the nesting stays within ``most`` levels, exactly."""
    return _within(_brackets(body), most)


def _within(brackets: bytes, most: int) -> bool:
    """The same of brackets that are all square."""
    floor = 0
    while True:  # the innermost pairs go together, as long as that is worth a pass
        shorter = brackets.replace(b"[]", b"")
        if len(shorter) >= len(brackets) * 7 // 8:
            break
        brackets = shorter
        floor += 1
    depth = 0
    for run in _RUNS.finditer(brackets):
        depth += run.end(1) - run.start(1)
        if depth + floor > most:
            return False
        depth -= run.end(2) - run.start(2)
    return floor <= most


def bad_depth(most: int = MAX_DEPTH) -> BadBody:
    return BadBody(f"The body is nested deeper than {most} levels.")


def _check_utf8(body: bytes) -> None:
    """Refuse invalid UTF-8. In windows: one emoji would make a string of four times the body."""
    view = memoryview(body)
    at = 0
    try:
        while at < len(body):
            final = at + _WINDOW >= len(body)
            at += utf_8_decode(view[at : at + _WINDOW], "strict", final)[1]
    except UnicodeDecodeError as error:
        place = _place(body, at + error.start)
        raise BadBody(f"The body is not valid UTF-8 at {place}.") from None


def _place(body: bytes, byte: int) -> str:
    line = body.count(b"\n", 0, byte) + 1
    column = byte - body.rfind(b"\n", 0, byte)
    return f"byte {byte} (line {line}, column {column})"


def _refusal(body: bytes) -> BadBody:
    """Why the decoder refused this body, told in terms of the body as it came."""
    if not body.strip(b" \t\r\n"):
        return BadBody("The body is empty; a JSON object is expected.")
    if body.startswith(b"\xef\xbb\xbf"):
        return BadBody("The body begins with a byte order mark; send plain UTF-8.")
    try:
        _check_utf8(body)
        _decode_wire(body)
    except RecursionError:
        return bad_depth()
    except ValidationError as error:
        if "got `" in str(error) and not _PARAM.search(str(error)):
            return BadBody("The body is not a JSON object.")
        found = _PARAM.search(str(error))
        param = found[1] if found else None
        what = _KIND.sub(_said, str(error).split(" - at ")[0]).replace("Expected ", "expected ")
        return BadBody(f"'{param}' is not valid: {what}.", param)
    except BadBody as error:
        return error
    except DecodeError as error:
        return BadBody(f"The body is not valid JSON: {_reason(body, str(error))}.")
    return BadBody("The body cannot be read.")


def _said(found: re.Match[str]) -> str:
    """Kinds of values as JSON calls them, and not Python."""
    words = found[1].replace("int | float", "number").split(" | ")
    return " or ".join(SAID.get(word, word) for word in words)


def _reason(body: bytes, text: str) -> str:
    """msgspec's complaint with the place as line and column."""
    found = _BYTE.search(text)
    byte = int(found[1]) if found else len(body)
    if "trailing characters" in text:
        byte -= 1  # counted as read
    if "hex escape" in text or "surrogate" in text or not found:
        escaped = body.find(b"\\u")
        far = escaped + (1 << 16)  # it is a kindness, and not worth a search of any length
        lone = _LONE_SURROGATE.search(body, escaped, far) if escaped >= 0 else None
    else:
        lone = None
    if lone:
        return f"half a surrogate pair at {_place(body, lone.start())}"
    if body[byte : byte + 3] in (b"NaN", b"Inf"):
        return f"NaN and Infinity are not JSON, at {_place(body, byte)}"
    what = text.removeprefix("JSON is malformed: ").split(" (byte")[0]
    return f"{'it ends too early' if not found else what} at {_place(body, byte)}"
