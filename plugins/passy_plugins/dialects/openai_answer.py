"""What is read in OpenAI's answers on their way to the client: usage above all."""

from __future__ import annotations

import re

from passy_plugins.dialects.watch import MODEL, USAGE, Watch, last_usage, loads_object
from passy_proxy.body import MOST, read_answer, read_counts, read_response_counts
from passy_proxy.records import Usage

DONE = b"data: [DONE]\n\n"

GATHERED = 1 << 20
"""A plain answer that comes in pieces is remembered up to this size; beyond it, its end only."""
REMEMBERED = 16 * 1024

NO_OBJECT = "the answer is not a JSON object"
ANSWERS = frozenset(
    ("choices", "completion", "content", "data", "input_tokens", "output", "results")
)
"""Members of which an answer has at least one, whatever it says of an error beside it."""

FINISH = re.compile(rb'"finish_reason"\s*:\s*"([^"\\]+)"')


def count(value: object) -> int | None:
    """A number of tokens: negative ones are 0, and what is no whole number is ``None``."""
    if type(value) is not int:
        return None
    if 0 <= value <= MOST:
        return value
    return 0 if value < 0 else MOST


def usage_of(said: object) -> Usage | None:
    """What a ``usage`` of chat, completions, embeddings or responses says; ``None`` if nothing."""
    if not isinstance(said, dict):
        return None
    get = said.get
    entered = count(get("prompt_tokens", get("input_tokens")))
    written = count(get("completion_tokens", get("output_tokens")))
    if entered is None or written is None:
        if entered is written:
            return None
        total = count(get("total_tokens")) or 0
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


def error_message(error: object) -> str:
    """The words of an ``error``; empty for ``null``."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error.get("type") or "unnamed error"
    return str(error) if error else ""


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
    _body = b""
    _pieces: list[bytes] | None = None
    _size = 0
    _start = b""

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
        if self._size > GATHERED:
            self._start = self._start or b"".join(self._pieces)[:REMEMBERED]
            self._pieces = [b"".join(self._pieces[-2:])[-REMEMBERED:]]
        return data

    def finish(self) -> bytes:
        if self.done:
            return b""
        self.done = True
        body = b"".join(self._pieces or ())
        self._pieces = None
        if self._size > GATHERED:
            self._body = body
            self._read_ends(self._start, body)
            if self.strict and not body.rstrip().endswith(b"}"):
                self.error = NO_OBJECT
            return b""
        if (answer := read_answer(body)) is not None:
            self.model = answer.model or ""
            self.usage = self.read_usage(answer.usage)
        elif self.strict and not loads_object(body):
            self.error = NO_OBJECT
            return b""
        self._body = body
        if self.usage is None:
            self._without_usage(body)
        return b""

    def _without_usage(self, body: bytes) -> None:
        self.text_bytes = sum(map(len, self.generated.findall(body)))
        if body.find(b'"error"') >= 0:
            said = loads_object(body)
            if self.strict and ANSWERS.isdisjoint(said):
                self.error = error_message(said.get("error"))

    def _read_ends(self, start: bytes, end: bytes) -> None:
        """A long answer, of which the middle is gone: usage may stand at either end."""
        self.usage = self.read_usage(last_usage(end)) or self.read_usage(last_usage(start))
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
            # A chunk with two choices makes up for a message that has none, such as [DONE].
            and data.count(b'"choices":[{') == ended
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
        usage = usage_of(said.get("usage"))
        if usage is not None:
            self.usage = usage
        choices = said.get("choices")
        if choices == []:
            return usage is None or not self._hidden_usage
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict) and choice.get("finish_reason"):
                    self.finish_reason = str(choice["finish_reason"])
        return True

    def read_end(self, start: bytes, end: bytes) -> None:
        usage = usage_of(last_usage(end))
        if usage is not None:
            self.usage = usage
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
            self.usage = usage_of(response.get("usage")) or self.usage
            self.finish_reason = str(response.get("status") or kind.removeprefix("response."))
            self.error = error_message(response.get("error"))
            self.done = True
        return True

    def read_end(self, start: bytes, end: bytes) -> None:
        last = self.last.search(start)
        if last is not None:
            self.usage = usage_of(last_usage(end)) or self.usage
            self.finish_reason = last[0].rpartition(b".")[2].strip(b'"').decode()
            self.done = True
