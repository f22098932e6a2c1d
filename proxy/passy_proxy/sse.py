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

from passy_proxy.structs import Struct

DEFAULT_MAX_MESSAGE_BYTES = 8 << 20

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANK_LINE = re.compile(rb"[\n\r](?:\r\n?|(?<=\n)\n)")


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
        """The messages completed by `data`, which may be any number of bytes.

        When the bound is met after some of them, these are returned and the next call raises.
        """
        if self._broken:
            raise self._too_long()
        if b"\r" in data:
            self._carriage = True
        elif not self._pending and _is_plain(data) and len(data) <= self._limit:  # the usual read
            self._first = False
            return [Message("", data[6:-2], data)]
        seen = 0
        if self._pending:
            seen = max(len(self._pending) - 2, 0)  # the blank line may have begun before
            self._pending += data
            if self._blank_line(self._pending, seen) < 0:
                self._broken = len(self._pending) > self._limit
                if self._broken:
                    raise self._too_long()
                return []
            data = bytes(self._pending)
            self._pending.clear()
        return self._cut(data, seen)

    def finish(self) -> list[Message]:
        """What is left when the stream has ended: nothing, or one message."""
        if self._broken:
            raise self._too_long()
        raw = bytes(self._pending)
        self._pending.clear()
        if not raw:
            return []
        return [Message(*self._fields(raw), raw, terminated=bool(_BLANK_LINE.search(raw)))]

    def _cut(self, data: bytes, seen: int) -> list[Message]:
        messages: list[Message] = []
        start = 0
        end = self._blank_line(data, seen)
        while end >= 0:
            raw = data[start:end]
            if len(raw) > self._limit:
                break
            messages.append(Message(*self._fields(raw), raw))
            self._first = False
            start = end
            end = self._blank_line(data, start)
        self._broken = (end if end >= 0 else len(data)) - start > self._limit
        if not self._broken:
            self._pending += data[start:]
        elif not messages:
            raise self._too_long()
        return messages

    def _blank_line(self, data: bytes | bytearray, start: int) -> int:
        """Where the first blank line at or after `start` ends, -1 when that is not yet known."""
        if not self._carriage:
            found = data.find(b"\n\n", start)
            return found + 2 if found >= 0 else -1
        match = _BLANK_LINE.search(data, start)
        if match is None or (match.end() == len(data) and data.endswith(b"\r")):
            return -1
        return match.end()

    def _fields(self, raw: bytes) -> tuple[str, bytes]:
        """Event name and data of one piece."""
        if not self._carriage and _is_plain(raw):
            return "", raw[6:-2]
        if self._first and raw.startswith(_BOM):
            raw = raw.removeprefix(_BOM)
        event = ""
        lines = []
        for line in raw.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                lines.append(value.removeprefix(b" "))
            elif name == b"event":
                event = value.removeprefix(b" ").decode("utf-8", "replace")
        return event, b"\n".join(lines)

    def _too_long(self) -> MalformedStream:
        self._pending.clear()
        return MalformedStream(f"a message of the stream exceeds {self._limit} bytes")


def _is_plain(raw: bytes) -> bool:
    """Whether this, free of CR, is nothing but one data line and a blank one."""
    return raw.startswith(b"data: ") and raw.endswith(b"\n\n") and raw.find(b"\n") == len(raw) - 2


def encode(data: bytes, event: str | None = None) -> bytes:
    """The bytes of one message; `data` with line ends becomes several data lines."""
    head = b""
    if event is not None:
        if "\n" in event or "\r" in event:
            raise ValueError(f"an event name must be one line, not {event!r}")
        head = b"event: %b\n" % event.encode()
    if b"\n" not in data and b"\r" not in data:
        return b"%bdata: %b\n\n" % (head, data)
    lines = b"".join(b"data: %b\n" % line for line in _LINE_END.split(data))
    return b"%b%b\n" % (head, lines)
