"""Read and edit a JSON request body without parsing it whole or writing it again.

The gateway steers by a handful of top-level members (`model`, `stream`, limits). They are decoded,
the rest is skipped but checked, and an edit replaces exactly one value: every other byte, spacing
and spelling included, goes upstream as it came.

Two rules:

1. *What we read is what any parser reads.* JSON says nothing about a member given twice, so a body
   is refused when a reader that keeps the first one would see another model than a reader that
   keeps the last one. Escaped spellings (`"\\u006dodel"`) are the same name.
2. *Cost is linear*, whatever is sent, and the usual body costs one decode and one copy.

How both hold at once: the likely place of `"model"` is found by a byte search and *marked*, that
is, renamed to a name nobody can guess, before decoding. When the decoder then finds the mark at
the top level and no `model`, that place is the one and only one: no second look at the body is
needed. Anything else goes to `member_span`, which is exact and slower.
"""

from __future__ import annotations

import re
import secrets
from codecs import utf_8_decode

import msgspec
from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, ValidationError

MAX_DEPTH = 128
MAX_NAMESAKES = 10_000

_MODEL, _STREAM = b'"model"', b'"stream"'
_MARK = secrets.token_hex(8)
_MODEL_NAME, _STREAM_NAME = f"m{_MARK}", f"s{_MARK}"
_MODEL_MARK, _STREAM_MARK = f'"{_MODEL_NAME}"'.encode(), f'"{_STREAM_NAME}"'.encode()
_FRONT, _BACK = 256, 1024
_WINDOW = 1 << 14
_LISTS_UP_TO = 1 << 18

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_RUNS = re.compile(rb"(\[+)(\]*)")
_BYTE = re.compile(r"\(byte (\d+)\)")
_PARAM = re.compile(r"\$\.(\w+)")
_LONE_SURROGATE = re.compile(
    rb"(?i)\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f]"
)
_ESCAPED_LETTER = re.compile(rb"\\u00[567]")
"""No writer escapes the letters of these names, unless to hide one."""
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


class BadBody(ValueError):
    """A request body that is refused: `message` for the client, `param` the member at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class Head(Struct, frozen=True, gc=False):
    """What the gateway needs to know of a request body.

    `max_tokens` is the client's limit on output tokens (None: no limit stated), `n` the number of
    answers asked for (at least 1). `at` is an offset between the key of the model and its value,
    0 when that key is the first `"model"` in the body.
    """

    model: str
    stream: bool
    include_usage: bool
    max_tokens: int | None
    n: int
    at: int
    has_stream_options: bool


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class _Wire(Struct, gc=False, rename={"marked": _MODEL_NAME, "marked_stream": _STREAM_NAME}):
    marked: str | UnsetType = UNSET
    marked_stream: bool | UnsetType | None = UNSET
    model: str | UnsetType = UNSET
    stream: bool | UnsetType | None = UNSET
    stream_options: _StreamOptions | UnsetType | None = UNSET
    max_completion_tokens: int | float | UnsetType | None = UNSET
    max_tokens: int | float | UnsetType | None = UNSET
    max_output_tokens: int | float | UnsetType | None = UNSET
    n: int | float | UnsetType | None = UNSET


class _Lists(Struct, gc=False):
    messages: list[Raw] | str | None = None
    tools: list[Raw] | str | None = None
    input: list[Raw] | str | None = None


class Answer(Struct, frozen=True):
    """The accounting part of a JSON answer; a member that is absent or null is None."""

    model: str | None = None
    usage: dict[str, object] | None = None


_decode_wire = msgspec.json.Decoder(_Wire).decode
_decode_lists = msgspec.json.Decoder(_Lists).decode
_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_answer = msgspec.json.Decoder(Answer).decode
_encode = msgspec.json.Encoder().encode


def read_head(body: bytes) -> Head:
    """The head of a request body; BadBody when it is not JSON, or steers ambiguously."""
    wire, at = _survey(body)
    if not body.isascii():
        _check_utf8(body)
    if not _shallow(body):
        raise _too_deep()
    model = wire.marked
    if not isinstance(model, str):
        raise BadBody("'model' is missing.", "model")
    if not model:
        raise BadBody("'model' must not be empty.", "model")
    options = wire.stream_options
    if options is not UNSET:
        _once(body, "stream_options")
    limit: int | float | None = None
    if wire.max_output_tokens is not UNSET:
        _once(body, "max_output_tokens")
        limit = wire.max_output_tokens
    if wire.max_tokens is not UNSET:
        _once(body, "max_tokens")
        limit = limit if wire.max_tokens is None else wire.max_tokens
    if wire.max_completion_tokens is not UNSET:
        _once(body, "max_completion_tokens")
        limit = limit if wire.max_completion_tokens is None else wire.max_completion_tokens
    many = wire.n
    if many is not UNSET:
        _once(body, "n")
    return Head(
        model,
        wire.marked_stream is True,
        isinstance(options, _StreamOptions) and options.include_usage is True,
        int(limit) if limit is not None and limit >= 0 else None,
        max(1, int(many)) if many else 1,
        at,
        options is not UNSET,
    )


def splice_model(body: bytes, head: Head, name: str) -> bytes:
    """The body with `name` as its model; the same object when that is its model already."""
    if name == head.model:
        return body
    start, end = _model_span(body, head)
    return b"".join((body[:start], _encode(name), body[end:]))


def with_include_usage(body: bytes, head: Head) -> bytes:
    """The body with `stream_options.include_usage` true."""
    return rewrite(body, head, None, include_usage=True)


def rewrite(body: bytes, head: Head, model: str | None, include_usage: bool) -> bytes:
    """Both edits at once. `head` must come from `read_head` of this very body."""
    edits = []
    if model is not None and model != head.model:
        edits.append((*_model_span(body, head), _encode(model)))
    if include_usage and not head.include_usage:
        edits.append(_usage_edit(body, head))
        edits.sort()
    if not edits:
        return body
    parts: list[bytes] = []
    at = 0
    for start, end, new in edits:
        parts += (body[at:start], new)
        at = end
    parts.append(body[at:])
    return b"".join(parts)


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


def usage_of(body: bytes) -> dict[str, object] | None:
    """The top-level `usage` object of a JSON answer, None without one."""
    answer = read_answer(body)
    return None if answer is None else answer.usage


def _survey(body: bytes) -> tuple[_Wire, int]:
    """The decoded head, model and stream under their marks, and `Head.at`.

    A large body is searched near its ends first, where clients put them; else the first are tried.
    """
    try:
        if len(body) > _FRONT + _BACK:
            at = body.find(_MODEL, 0, _FRONT)
            if at < 0:
                at = body.rfind(_MODEL)
            stream_at = body.find(_STREAM, 0, _FRONT)
            if stream_at < 0:
                stream_at = body.rfind(_STREAM, -_BACK)
            wire = _decode_wire(_marked(body, at, stream_at))
            if _settled(wire):
                return wire, at + len(_MODEL)
        wire = _decode_wire(body.replace(_MODEL, _MODEL_MARK, 1).replace(_STREAM, _STREAM_MARK, 1))
        if _settled(wire):
            return wire, 0
        wire = _decode_wire(body)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        raise _refusal(body) from None
    span = member_span(body, "model")
    member_span(body, "stream")
    wire.marked, wire.marked_stream = wire.model, wire.stream
    return wire, span[0] if span else 0


def _once(body: bytes, name: str) -> None:
    """BadBody when a steering member is given twice: two readers may see two values."""
    if body.count(b'"%b"' % name.encode()) > 1 or _ESCAPED_LETTER.search(body) is not None:
        member_span(body, name)


def _settled(wire: _Wire) -> bool:
    """Whether the marks prove that they stand on the only top-level model and stream.

    The last clause is for a model that is called "stream", where the mark fell on its name.
    """
    return (
        wire.marked is not UNSET
        and wire.model is UNSET
        and wire.stream is UNSET
        and wire.marked != _STREAM_NAME
    )


def _marked(body: bytes, at: int, stream_at: int) -> bytes:
    """The body with the two keys renamed; an offset below 0 leaves its key alone."""
    if at < 0:
        return body
    if stream_at < 0:
        return b"".join((body[:at], _MODEL_MARK, body[at + len(_MODEL) :]))
    if at < stream_at:
        between = body[at + len(_MODEL) : stream_at]
        rest = body[stream_at + len(_STREAM) :]
        return b"".join((body[:at], _MODEL_MARK, between, _STREAM_MARK, rest))
    between = body[stream_at + len(_STREAM) : at]
    return b"".join(
        (body[:stream_at], _STREAM_MARK, between, _MODEL_MARK, body[at + len(_MODEL) :])
    )


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


def _model_span(body: bytes, head: Head) -> tuple[int, int]:
    start = body.index(b'"', head.at or body.index(_MODEL) + len(_MODEL))
    end = body.index(b'"', start + 1) + 1
    if body.find(b"\\", start, end) >= 0:
        whole = _STRING.match(body, start)
        assert whole is not None, "the head saw a string here"
        end = whole.end()
    return start, end


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

    `text` begins and ends outside strings. Works in windows, so that a body of a million tiny
    strings never becomes a million objects at once.
    """
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    kept = []
    inside = 0
    for at in range(0, len(text), _WINDOW):
        parts = text[at : at + _WINDOW].split(b'"')
        kept.append(b"".join(parts[inside::2]).translate(_SQUARE, _NOT_BRACKETS))
        inside ^= (len(parts) - 1) & 1
    return b"".join(kept)


def _shallow(body: bytes) -> bool:
    """Whether no value of this valid JSON is nested deeper than MAX_DEPTH.

    Few opening brackets, counted wherever they stand, are proof enough, for the whole body or for
    each element of its long lists. Only what is left is followed bracket by bracket.
    """
    if len(body) <= 2 * MAX_DEPTH:
        return True
    if len(body) - len(body.replace(b"{", b"", 129).replace(b"[", b"", 129)) <= MAX_DEPTH:
        return True
    if len(body) > _LISTS_UP_TO:  # a million elements would be a million objects
        return _depth_within(body)
    try:
        lists = _decode_lists(body)
    except ValidationError:
        return _depth_within(body)
    lengthy = (lists.messages, lists.tools, lists.input)
    elements = [bytes(raw) for raws in lengthy if isinstance(raws, list) for raw in raws]
    inside = _openers(b"".join(elements))
    if _openers(body) - inside > MAX_DEPTH:
        return _depth_within(body)
    limit = MAX_DEPTH - 2
    step = max(1, limit // 2 * len(elements) // max(1, inside))  # on average half of the limit
    for at in range(0, len(elements), step):
        group = elements[at : at + step]
        if _openers(b"".join(group)) > limit and max(map(_openers, group)) > limit:
            return _depth_within(body)
    return True


def _openers(text: bytes) -> int:
    """How many opening brackets stand in the text, strings included.

    Removing them is five times as fast as `bytes.count`, which does not use memchr.
    """
    return len(text) - len(text.replace(b"{", b"").replace(b"[", b""))


def _depth_within(body: bytes) -> bool:
    """Whether the nesting stays within MAX_DEPTH, exactly."""
    brackets = _brackets(body)
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
        if depth + floor > MAX_DEPTH:
            return False
        depth -= run.end(2) - run.start(2)
    return floor <= MAX_DEPTH


def _too_deep() -> BadBody:
    return BadBody(f"The body is nested deeper than {MAX_DEPTH} levels.")


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
        return _too_deep()
    except ValidationError as error:
        if "got `" in str(error) and not _PARAM.search(str(error)):
            return BadBody("The body is not a JSON object.")
        found = _PARAM.search(str(error))
        param = found[1] if found else None
        what = str(error).split(" - at ")[0].replace("`", "").replace("Expected ", "expected ")
        return BadBody(f"'{param}' is not valid: {what}.", param)
    except BadBody as error:
        return error
    except DecodeError as error:
        return BadBody(f"The body is not valid JSON: {_reason(body, str(error))}.")
    return BadBody("The body cannot be read.")


def _reason(body: bytes, text: str) -> str:
    """msgspec's complaint with the place as line and column."""
    found = _BYTE.search(text)
    byte = int(found[1]) if found else len(body)
    if "trailing characters" in text:
        byte -= 1  # counted as read
    lone = _LONE_SURROGATE.search(body)
    if lone and ("hex escape" in text or "surrogate" in text or not found):
        return f"half a surrogate pair at {_place(body, lone.start())}"
    if body[byte : byte + 3] in (b"NaN", b"Inf"):
        return f"NaN and Infinity are not JSON, at {_place(body, byte)}"
    what = text.removeprefix("JSON is malformed: ").split(" (byte")[0]
    return f"{'it ends too early' if not found else what} at {_place(body, byte)}"
