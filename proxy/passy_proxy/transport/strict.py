"""What h11 forgives and we do not: judged on the bytes, before h11 sees them. No I/O.

h11 takes a bare LF for a line's end, joins folded lines, lets control bytes pass and makes one
length of several that agree. Most of it is a way for two parsers to differ about where a message
ends, so the answers of both transports are held to the same rules. It also reads interim answers
without end.
"""

from __future__ import annotations

import re

from .answer import HEAD_BYTES

_VERSION = re.compile(rb"HTTP/1\.[01] ")
_VERSION_BYTES = 9
_ODD = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding)[ \t]*:([^\r]*)", re.IGNORECASE)
_END = b"\r\n\r\n"


class HeadCheck:
    """Judges one answer, its interim ones included, up to the end of its head."""

    __slots__ = ("_head", "_size", "over")

    def __init__(self) -> None:
        self._head = bytearray()
        self._size = 0
        self.over = False
        """The head has come whole; what follows is not looked at."""

    def feed(self, data: bytes) -> str:
        """Why the answer is refused; empty while it need not be."""
        head = self._head
        seen = len(head)
        head += data
        while head:
            end = head.find(_END, max(seen - len(_END), 0))
            size = len(head) if end < 0 else end + len(_END)
            if self._size + size > HEAD_BYTES:
                return "too large a head"
            if size >= _VERSION_BYTES and not _VERSION.match(head):
                return "another version or none"
            if _ODD.search(head, max(seen - 2, 0), size):
                return "a control byte, a folded line, or one that does not end with CRLF"
            if end < 0:
                break
            if fault := self._whole(bytes(head[:size])):
                return fault
            if self.over:
                head.clear()
            self._size += size
            del head[:size]
            seen = 0
        return ""

    def _whole(self, head: bytes) -> str:
        if head.startswith(b"1", _VERSION_BYTES) and not head.startswith(b"101", _VERSION_BYTES):
            return ""
        self.over = True
        framing = _FRAMING.findall(head)
        if len(framing) > 1 or any(b"," in value for _, value in framing):
            return "more than one framing header"
        if framing and framing[0][0].lower() == b"transfer-encoding" and b"HTTP/1.0" in head[:8]:
            return "a transfer coding, which its version does not know"
        return ""
