"""Server-sent events: bytes to messages and back, without I/O.

What: a stream is cut at its blank lines. Each piece is a `Message`: its fields as the WHATWG
rules read them, and `raw`, the very bytes it was, blank line included. Whoever changes nothing
sends `raw` on, and the client receives what the provider wrote. The decoder knows no JSON;
dialects know no framing.

Two rules:

1. *The raws of all messages, joined, are the input.* Comments, heartbeats, `id:` and `retry:`
   lines, blank lines too many and a byte order mark ride in the raw of the message they precede;
   a piece with nothing else in it is a message with empty `data`.
2. *How the bytes were split into reads never changes the result*, and no byte is looked at again
   and again: an endless line costs as much per byte as a short one, until it meets the bound.

What is ugly: a line may end in LF, CRLF or CR alone. So a CR that ends a blank line at the very
end of a read may be half of a CRLF, and the message waits for the next byte. Providers send LF
(one search for two bytes) or CRLF; nobody has been seen to send CR alone, who would always wait.
And a browser drops a last message that no blank line ends, but a proxy must tell the cut from the
end: `finish` gives it, marked `terminated=False`.
"""

from __future__ import annotations

import re

from msgspec import Struct

DEFAULT_MAX_MESSAGE_BYTES = 8 << 20

_BOM = b"\xef\xbb\xbf"
_BLANK_LINE = re.compile(rb"\n\n|[\r\n]\r\n?")


class MalformedStream(ValueError):
    """The stream cannot be cut into messages: one of them exceeds the bound."""


class Message(Struct, frozen=True, gc=False):
    """One message: `event` is '' without a name, `data` b'' without a (non-empty) data line."""

    event: str
    data: bytes
    raw: bytes
    terminated: bool = True


class Decoder:
    """Cuts one stream. Feed it what is read, then `finish`; a MalformedStream is final."""

    __slots__ = ("_broken", "_carriage", "_first", "_limit", "_pending")

    def __init__(self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._limit = max_message_bytes
        self._pending = bytearray()  # begins where a message begins, holds no whole one
        self._carriage = False  # a CR was seen: blank lines take the slower search
        self._first = True  # no message yet: a byte order mark may come
        self._broken = False

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by `data`, which may be any number of bytes."""
        if self._broken:
            raise self._too_long()
        seen = 0
        if self._pending:
            seen = len(self._pending) - 2  # the blank line may have begun in the last read
            self._pending += data
            if not self._carriage and b"\r" in data:
                self._carriage = True
            if self._blank_line(self._pending, max(seen, 0)) < 0:
                self._bound(len(self._pending))
                return []
            data = bytes(self._pending)
            self._pending.clear()
        elif not self._carriage and b"\r" in data:
            self._carriage = True
        return self._cut(data, max(seen, 0))

    def finish(self) -> list[Message]:
        """What is left when the stream has ended: nothing, or one message."""
        if self._broken:
            raise self._too_long()
        raw = bytes(self._pending)
        self._pending.clear()
        if not raw:
            return []
        event, data = self._fields(raw)
        return [Message(event, data, raw, terminated=_BLANK_LINE.search(raw) is not None)]

    def _cut(self, data: bytes, seen: int) -> list[Message]:
        messages: list[Message] = []
        start = 0
        end = self._blank_line(data, seen)
        while end >= 0:
            raw = data[start:end]  # the whole of data is not copied
            if len(raw) > self._limit:
                self._broken = True
                break
            if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and not self._carriage:
                messages.append(Message("", raw[6:-2], raw))
            else:
                messages.append(Message(*self._fields(raw), raw))
            self._first = False
            start = end
            end = self._blank_line(data, start)
        if self._broken and not messages:
            raise self._too_long()
        if start < len(data) and not self._broken:
            self._pending += data[start:]
            self._bound(len(data) - start, raises=not messages)
        return messages

    def _blank_line(self, data: bytes | bytearray, start: int) -> int:
        """Where the first blank line at or after `start` ends, -1 when that is not yet known."""
        if not self._carriage:
            return data.find(b"\n\n", start) + 2 or -1
        found = _BLANK_LINE.search(data, start)
        if found is None or (found.end() == len(data) and data.endswith(b"\r")):
            return -1
        return found.end()
