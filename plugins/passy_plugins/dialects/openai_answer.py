"""What is read in OpenAI's answers on their way to the client: usage above all."""

from __future__ import annotations

import re
from typing import Any

from passy_plugins.dialects.passing import Passing
from passy_plugins.dialects.watch import MODEL, USAGE, Watch, error_message, loads_object, text_of
from passy_proxy.body import MOST, read_answer, read_counts, read_response_counts
from passy_proxy.records import Usage

DONE = b"data: [DONE]\n\n"

GATHERED = 1 << 20
"""A plain answer that comes in pieces is remembered up to this size; beyond it, its end only."""
REMEMBERED = 16 * 1024

NO_OBJECT = "the answer is not a JSON object"
BOM = b"\xef\xbb\xbf"
ANSWERS = frozenset(
    ("choices", "completion", "content", "data", "input_tokens", "output", "results")
)
"""Members of which an answer has at least one, whatever it says of an error beside it."""

LONGEST_DOUBT = 500

INPUT = frozenset(("prompt_tokens", "input_tokens"))
OUTPUT = frozenset(("completion_tokens", "output_tokens"))

FINISH = re.compile(rb'"finish_reason"\s*:\s*"([^"\\]+)"')


def count(value: object) -> int | None:
    """A number of tokens: negative ones are 0, and what is no whole number is ``None``."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        return None
    if 0 <= value <= MOST:
        return value
    return 0 if value < 0 else MOST


def doubtful(said: object) -> bytes:
    """A ``usage`` in which something is no number of tokens, as text; empty for any other.

    What it tells is used all the same, as far as it can be, but somebody should know.
    """
    try:
        if not _is_doubtful(said):
            return b""
        return repr(said).encode("utf-8", "replace")[:LONGEST_DOUBT]
    except ValueError:  # Python writes no number of more than some thousand digits.
        return b"numbers without end"
    except RecursionError:  # JSON may be nested more deeply than we can follow.
        return b"nested without end"


def _is_doubtful(said: object) -> bool:
    if not isinstance(said, dict):
        return said is not None
    return any(
        _is_doubtful(value)
        if isinstance(value, dict)
        else name.endswith("tokens") and value is not None and count(value) != value
        for name, value in said.items()
    )


def usage_of(said: object) -> Usage | None:
    """What a ``usage`` of chat, completions, embeddings or responses says; ``None`` if nothing."""
    if not isinstance(said, dict):
        return None
    get = said.get
    entered = count(get("prompt_tokens", get("input_tokens")))
    written = count(get("completion_tokens", get("output_tokens")))
    if entered is None or written is None:
        total = count(get("total_tokens"))
        missing = INPUT if entered is None else OUTPUT
        if entered is written or (total is None and not missing.isdisjoint(said)):
            return None  # What is absent is nothing, what is there and no number could be anything.
        total = total or 0
        entered = max(total - (written or 0), 0) if entered is None else entered
        written = max(total - entered, 0) if written is None else written
    into = get("prompt_tokens_details", get("input_tokens_details"))
    out = get("completion_tokens_details", get("output_tokens_details"))
    cached = part(into, "cached_tokens", entered) or part(said, "prompt_cache_hit_tokens", entered)
    thought = part(out, "reasoning_tokens", MOST)
    if thought and get("total_tokens") == entered + written + thought:
        written += thought  # some providers count what was thought beside what was said
    return Usage(
        entered,
        written,
        cached,
        part(into, "cache_write_tokens", entered - cached),
        min(thought, written),
        part(into, "audio_tokens", entered),
        part(out, "audio_tokens", written),
    )


def part(details: object, name: str, most: int) -> int:
    """A number of tokens that are contained in ``most`` others; 0 where nothing is said."""
    value = details.get(name) if isinstance(details, dict) else None
    return min(count(value) or 0, most) if value else 0


class PlainTap:
    """Reads a plain JSON answer once it is whole, and passes it on as it is."""

    strict = False
    """Only a JSON object is an answer, and one that says more than an error."""
    read_counts = staticmethod(read_counts)
    read_usage = staticmethod(usage_of)
    finish_word = FINISH
    generated = Watch.generated

    usage: Usage | None = None
    model = ""
    text_bytes = 0
    done = False
    error = ""
    doubt = b""
    midway = False
    _body = b""
    _pieces: list[bytes] | None = None
    _size = 0
    _start = b""
    _passing: Passing | None = None

    @property
    def finish_reason(self) -> str:
        """Looked for when somebody asks: hardly anybody does."""
        finish = self.finish_word.search(self._body)
        return finish[1].decode("utf-8", "replace") if finish else ""

    def whole(self, data: bytes) -> bytes:
        if len(data) > GATHERED or (read := self.read_counts(data)) is None:
            return self.feed(data) + self.finish()
        self.done = True
        self._body = data
        self.model, self.usage = read
        return data

    def feed(self, data: bytes) -> bytes:
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(data)
        self._size += len(data)
        if self._passing is not None:
            self._passing.feed(data)
        elif self._size > GATHERED:
            whole = b"".join(self._pieces)
            self._start = whole[:REMEMBERED]
            self._passing = Passing(1)
            self._passing.feed(whole)
        if self._size > GATHERED:
            self._pieces = [b"".join(self._pieces[-2:])[-REMEMBERED:]]
        return data

    def finish(self) -> bytes:
        if self.done:
            return b""
        self.done = True
        body = b"".join(self._pieces or ())
        self._pieces = None
        if self._passing is not None:
            self._body = body
            self._read_passed(self._start, self._passing.finish())
            if self.strict and not body.rstrip().endswith(b"}"):
                self.error = NO_OBJECT
            return b""
        if (answer := read_answer(body)) is not None:
            self.model = answer.model or ""
            self._tell(answer.usage)
        else:
            said = loads_object(body.removeprefix(BOM))
            if self.strict and not said:
                self.error = NO_OBJECT
                return b""
            self.model = model if isinstance(model := said.get("model"), str) else ""
            self._tell(said.get("usage"))
        self._body = body
        if self.usage is None:
            self._without_usage(body)
        return b""

    def _tell(self, usage: object) -> None:
        self.usage = self.read_usage(usage)
        self.doubt = doubtful(usage)

    def _without_usage(self, body: bytes) -> None:
        self.text_bytes = sum(map(len, self.generated.findall(body)))
        if body.find(b'"error"') >= 0:
            said = loads_object(body)
            if self.strict and ANSWERS.isdisjoint(said):
                self.error = error_message(said.get("error"))

    def _read_passed(self, start: bytes, usage: object) -> None:
        """A long answer, which is gone."""
        self._tell(usage)
        if model := MODEL.search(start):
            self.model = model[1].decode("utf-8", "replace")
        if self.usage is None and self.generated.search(start + b'"'):
            self.text_bytes = self._size  # nearly all of it is text, then


class AnswerTap(PlainTap):
    """The same where it is known what an answer looks like."""

    strict = True


class ResponseTap(AnswerTap):
    """A plain answer of the Responses API."""

    read_counts = staticmethod(read_response_counts)


class StreamTap(Watch):
    """Chat and text completions, and what else comes as ``data:`` lines.

    ``hidden_usage``: the usage chunk was asked for by us and is not for the client.
    ``marked_end``: a complete stream ends with ``[DONE]``.
    """

    __slots__ = ("_hidden_usage", "_marked_end")

    def __init__(self, *, hidden_usage: bool, marked_end: bool) -> None:
        super().__init__()
        self._hidden_usage = hidden_usage
        self._marked_end = marked_end

    def ordinary(self, data: bytes) -> bool:
        ended = data.count(b"\n\n")
        return (
            data.count(b'"finish_reason":null') == ended
            # A chunk with two choices makes up for a message that has none, such as [DONE], or
            # that gives another reason.
            and data.count(b'"choices":[{') == ended == data.count(b'"finish_reason"')
            and data.count(b'"usage"') == data.count(b'"usage":null')
            and self.count_text(data, ended, b'"content":"')
        )

    def notable(self, data: bytes) -> bool:
        return (
            USAGE.search(data) is not None
            or data.rfind(b"[DONE]") >= 0
            or data.rfind(b'"error"') >= 0
            or data.rfind(b'"finish_reason":"') >= 0
            or data.rfind(b'"finish_reason": "') >= 0
        )

    def read(self, data: bytes) -> bool:
        if data.startswith(b"[DONE]"):
            self.done = True
            return True
        for written in self.generated.findall(data):
            self.text_bytes += len(written)
        said = loads_object(data)
        if error := said.get("error"):
            self.error = error_message(error)
        usage = self._tell(said.get("usage"))
        choices = said.get("choices")
        if choices == []:
            return usage is None or not self._hidden_usage
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict) and choice.get("finish_reason"):
                    self.finish_reason = text_of(choice["finish_reason"])
        return True

    def _tell(self, told: object) -> Usage | None:
        self.doubt = doubtful(told) or self.doubt
        usage = usage_of(told)
        if usage is not None:
            self.usage = usage
        return usage

    def is_cut(self, rest: bytes) -> bool:
        """Of events that carry something else, nothing is known."""
        return self._marked_end and super().is_cut(rest)

    def read_end(self, start: bytes, end: bytes, usage: Any) -> None:
        self._tell(usage)
        if finish := FINISH.search(end):
            self.finish_reason = finish[1].decode("utf-8", "replace")

    def ending(self) -> bytes:
        if not self._marked_end:
            self.done = True
        elif self.finish_reason:
            self.done = True
            return DONE
        return b""


class ResponsesTap(Watch):
    """The Responses API: named events, the last of which holds the whole response."""

    __slots__ = ()

    generated = re.compile(rb'"delta"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"')
    usage_depth = 2
    last = re.compile(rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed)|error)"')

    def ordinary(self, data: bytes) -> bool:
        ended = data.count(b"\n\n")
        if data.count(b"event: response.output_text.delta\n") != ended:
            return False
        return self.count_text(data, ended, b'"delta":"')

    def notable(self, data: bytes) -> bool:
        return self.last.search(data) is not None

    def read(self, data: bytes) -> bool:
        said = loads_object(data)
        kind = said.get("type")
        if kind == "error":
            self.error = error_message(said.get("error") or said.get("message") or said)
        elif isinstance(kind, str) and isinstance(response := said.get("response"), dict):
            self._tell(response.get("usage"))
            self.finish_reason = text_of(response.get("status") or kind.removeprefix("response."))
            self.error = error_message(response.get("error"))
            self.done = True
        return True

    def _tell(self, told: object) -> None:
        self.doubt = doubtful(told) or self.doubt
        self.usage = usage_of(told) or self.usage

    def read_end(self, start: bytes, end: bytes, usage: Any) -> None:
        last = self.last.search(start)
        if last is not None:
            self._tell(usage)
            self.finish_reason = last[0].rpartition(b".")[2].strip(b'"').decode()
            self.done = True
