"""Watching server-sent events on their way through, without touching or parsing most of them.

A stream is nearly always one chunk after another that carries some text and nothing else. A dialect
says by a few counts whether a read holds only such chunks (``ordinary``), however many; then it is
passed on as it is; the next read is first held against the last such chunk. What is not ordinary
is searched for the few words that matter, and only a message that has one of them is decoded.

Half a message is held back until the rest has come: a client can do nothing with it, and what ends
a broken stream must not land in the middle of a line. A message beyond ``HELD`` bytes is passed on
as it arrives, and its usage is read as it passes.
"""

from __future__ import annotations

import re
from typing import Any

from passy_plugins.dialects.passing import Passing
from passy_proxy import json
from passy_proxy.records import Usage
from passy_proxy.sse import Decoder, Message

HELD = 64 * 1024
REMEMBERED = 16 * 1024
LAST = 4
"""Messages in which a stream tells how it ended: the last text, the reason, the usage, the mark."""
ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
BLANK = (b"\n\n", b"\n\r\n", b"\r\r")
"""What stands between two messages, whatever ends a line."""
USAGE = re.compile(rb'"usage"(?!\s*:\s*null)')
"""Perhaps a usage; between its name and its value may stand what begins another data line."""
NAMED_ERROR = re.compile(rb"(?:^|[\r\n])event: ?error[\r\n]")
BEGINS_AS_ERROR = re.compile(
    rb'(?:^|[\r\n])(?:event: ?error[\r\n]|data: ?\{\s*"error"\s*:\s*(?!null))'
)
MODEL = re.compile(rb'"model"\s*:\s*"([^"\\\x00-\x1f]+)"')
TEXT = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*')
PADDING = b'"obfuscation":"'
"""OpenAI ends each chunk with a string of random length, so that sizes tell nothing."""
PADDED = b'"}\n\n'
NOTHING = b"\0"


def messages(data: bytes) -> list[Message]:
    """The messages in ``data``, which begins and ends between two of them."""
    decoder = Decoder(len(data))
    return decoder.feed(data) + decoder.finish()


def loads_object(data: bytes) -> dict[str, Any]:
    """``data`` as a JSON object; an empty one when it is none."""
    try:
        said = json.loads(data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


class Watch:
    """The part of a stream's tap that is the same in every dialect."""

    __slots__ = (
        "_after",
        "_at",
        "_carry",
        "_line",
        "_long",
        "_long_bytes",
        "_opened",
        "_opening",
        "_padding",
        "_passing",
        "_start",
        "done",
        "doubt",
        "error",
        "finish_reason",
        "model",
        "text_bytes",
        "usage",
    )

    generated = re.compile(
        rb'"(?:content|reasoning_content|reasoning|arguments|refusal|text)"\s*:\s*'
        rb'"([^"\\]*(?:\\.[^"\\]*)*)"'
    )
    """Finds what the model wrote; group 1 is the text, still escaped."""
    usage_depth = 1
    """How many brackets are open around the usage of a long message."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.model = ""
        self.finish_reason = ""
        self.text_bytes = 0
        self.done = False
        self.error = ""
        self.doubt = b""
        self._forget()
        self._carry = bytearray()
        self._long = False
        self._long_bytes = 0
        self._start = b""
        self._passing = NO_PASSING

    def ordinary(self, data: bytes) -> bool:
        """Whether ``data`` is whole messages with text and nothing else; if so, counts the text.

        False is never wrong, only slower.
        """
        raise NotImplementedError

    def notable(self, data: bytes) -> bool:
        """Whether some message in ``data`` may have to be decoded."""
        raise NotImplementedError

    def read(self, data: bytes) -> bool:
        """Take what matters from one message's data; false when the client must not see it."""
        raise NotImplementedError

    def read_end(self, start: bytes, end: bytes, usage: Any) -> None:
        """The same for a message too long to be held: its first and its last bytes, its usage."""
        raise NotImplementedError

    def is_cut(self, rest: bytes) -> bool:
        """Whether a stream that ends with ``rest`` was cut within a message."""
        return not all(_is_complete(message.data) for message in messages(rest))

    @property
    def midway(self) -> bool:
        """The client has the beginning of a message and not its end."""
        return self._long

    def ending(self) -> bytes:
        """What is to be added to an answer that ended without its end marker."""
        return b""

    def _forget(self) -> None:
        """No chunk is like the last one."""
        self._at = 1 << 62
        self._after = b"\n\n"
        self._padding = NOTHING
        self._line = -1
        self._opening = b""
        self._opened = 0

    def whole(self, data: bytes) -> bytes:
        return self.feed(data) + self.finish()

    def feed(self, data: bytes) -> bytes:
        at, line = self._at, self._line
        end = data.find(b'"', at)
        if (
            (
                data[end:] == self._after
                or (data.startswith(self._padding, end) and self._padded(data, end))
            )
            and data.startswith(self._opening, self._opened)
            and data.rfind(b"\n", 0, end) == line
            and (line < 0 or data.find(b"\n\n", 0, line + 1) < 0)
        ):
            # Another chunk like the last one: one message with the same end (but for its padding),
            # the same place where the text begins, and from there to the end nothing but text.
            self.text_bytes += end - at
            return data
        if self._carry or self._long:
            return self._continue(data)
        if self.done:
            return data
        if data.endswith(b"\n\n") and data.find(b"\r") < 0 and self.ordinary(data):
            if not self.model:
                self._name(data)
            return data
        if data.endswith(ENDS):
            return self._whole(data)
        return self._continue(data)

    def _padded(self, data: bytes, end: int) -> bool:
        """Whether padding is all that follows behind the same end."""
        padding = end + len(self._padding)
        size = len(data)
        return (
            data.find(b'"', padding) == size - len(PADDED)
            and data.endswith(PADDED)
            and data.find(b"\n", padding) == size - 2
        )

    def finish(self) -> bytes:
        rest = bytes(self._carry)
        self._carry.clear()
        blank = b"" if rest.endswith(ENDS) or not rest else b"\n\n"
        if self._long:
            usage = self._passing.finish()
            if not self._passing.closed():
                return b""
            self._end_long(rest, usage)
            rest = b""
        elif rest and self.is_cut(rest):
            # Half a message is nothing to a client that will be told so; one that has the end of
            # its answer gets all that there is.
            return rest if self.done else b""
        elif rest:
            rest = self._whole(rest)
        if self.error:
            self.done = True
        if self.done:
            return rest
        end = self.ending()
        return rest + blank + end if end else rest

    def _whole(self, data: bytes) -> bytes:
        """``data`` is one or more complete messages."""
        if self.done:
            return data
        if self.notable(data) or NAMED_ERROR.search(data):
            # What matters comes at the end: what is before it may be as ordinary as ever.
            front = data[: _before_last(data)]
            if front and self._unremarkable(front):
                if not self.model:
                    self._name(front)
                self._forget()  # What is like its last chunk need not begin where a message does.
                return front + self._one_by_one(data[len(front) :])
            return self._one_by_one(data)
        if not self.model:
            self._name(data)
        self._count(data)
        return data

    def _unremarkable(self, data: bytes) -> bool:
        """Whether no message in ``data`` has to be decoded; if so, counts the text."""
        if data.find(b"\r") < 0 and self.ordinary(data):
            return True
        if self.notable(data) or NAMED_ERROR.search(data):
            return False
        self._count(data)
        return True

    def _name(self, data: bytes) -> None:
        if model := MODEL.search(data):
            self.model = model[1].decode("utf-8", "replace")

    def _one_by_one(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        for message in messages(data):
            raw = message.raw
            if not (self.model or self.done):
                self._name(raw)
            if self.done:
                pass  # The books are closed with the end mark.
            elif self.notable(raw):
                if not self.read(message.data):
                    raw = raw[: len(raw) - len(raw.lstrip(b"\r\n"))]  # what belongs to no message
            else:
                self._count(raw)
            if message.event == "error" and not (self.error or self.done):
                self.error = error_message(loads_object(message.data)) or "unnamed error"
            kept.append(raw)
        if self.done:
            self._forget()  # What comes now is passed on, and nothing of it counts.
        return data if sum(map(len, kept)) == len(data) else b"".join(kept)

    def _count(self, data: bytes) -> None:
        self.text_bytes += sum(map(len, self.generated.findall(data)))

    def count_text(self, data: bytes, ended: int, opening: bytes) -> bool:
        """Count the text of ``ended`` messages, each with one text that ``opening`` precedes.

        False when some message has no such text.
        """
        if ended > 1:
            _, *texts = data.split(opening)
            if len(texts) != ended or b"\\" in data:
                return False
            self.text_bytes += sum([text.find(b'"') for text in texts])
            return True
        at = data.find(opening) + len(opening)
        end = data.find(b'"', at)
        if not len(opening) <= at <= end:
            return False
        if data[end - 1] == 0x5C:
            end = _closing(data, at)
        else:
            self._at, self._after, self._line = at, data[end:], data.rfind(b"\n", 0, at)
            self._opening, self._opened = opening, at - len(opening)
            padding = data.find(PADDING, end)
            self._padding = data[end : padding + len(PADDING)] if padding >= 0 else NOTHING
        self.text_bytes += end - at
        return True

    def _continue(self, data: bytes) -> bytes:
        """``data`` begins or ends in the middle of a message."""
        if self._long:
            return self._past_long(data)
        self._forget()
        carry = self._carry
        searched = max(len(carry) - 3, 0)
        carry += data
        cuts = [at + len(blank) for blank in BLANK if (at := carry.rfind(blank, searched)) >= 0]
        out = b""
        if cuts:
            cut = max(cuts)
            out = self._whole(bytes(carry[:cut]))
            del carry[:cut]
        if len(carry) > HELD:
            out += carry
            self._long = True
            self._long_bytes = len(carry)
            self._start = bytes(carry[:512])
            self._passing = Passing(self.usage_depth)
            self._passing.feed(bytes(carry))
            del carry[:-REMEMBERED]
        return out

    def _past_long(self, data: bytes) -> bytes:
        """Pass on the rest of a message that was too long to be held."""
        carry = self._carry
        overlap = bytes(carry[-3:])
        boundary = _boundary(overlap + data)
        if boundary < 0:
            carry += data
            del carry[:-REMEMBERED]
            self._passing.feed(data)
            self._long_bytes += len(data)
            return data
        end = max(boundary - len(overlap), 0)
        carry += data[:end]
        self._passing.feed(data[:end])
        self._long_bytes += end
        self._end_long(bytes(carry[-REMEMBERED:]), self._passing.finish())
        carry.clear()
        return data[:end] + self.feed(data[end:]) if end < len(data) else data

    def _end_long(self, end: bytes, usage: Any) -> None:
        start, self._start = self._start, b""
        self._long = False
        self._passing = NO_PASSING
        if self.done:
            return
        if self.generated.search(start + b'"'):
            self.text_bytes += self._long_bytes  # nearly all of it is text, then
        if BEGINS_AS_ERROR.search(start):
            self.error = "an error too long to be read"
        self.read_end(start, end, usage)


NO_PASSING = Passing(0)


def error_message(error: object) -> str:
    """The words of an ``error``; empty for ``null``."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error.get("type") or "unnamed error"
    return text_of(error) if error else ""


def text_of(said: object) -> str:
    """What was ``said`` where a text is due, and may be anything, as a text."""
    try:
        return str(said)
    except RecursionError:  # JSON may be nested more deeply than Python follows.
        return "nested without end"


def _before_last(data: bytes) -> int:
    """Where the last few messages in ``data`` begin, which ends with one; 0 where there are no
    more."""
    at = len(data) - 2
    for _ in range(LAST):
        at = max(data.rfind(blank, 0, at) for blank in BLANK)
        if at < 0:
            return 0
    return at + (3 if data.startswith(b"\n\r\n", at) else 2)


def _boundary(data: bytes) -> int:
    """Where the first message in ``data`` ends; -1 where none does."""
    ends = [at + len(blank) for blank in BLANK if (at := data.find(blank)) >= 0]
    return min(ends, default=-1)


def _closing(data: bytes, start: int) -> int:
    """Where the JSON string ends whose text begins at ``start``."""
    text = TEXT.match(data, start)
    return text.end() if text else len(data)


def _is_complete(data: bytes) -> bool:
    if not data or data.startswith(b"[DONE]"):
        return True
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
