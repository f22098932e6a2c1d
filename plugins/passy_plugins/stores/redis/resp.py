"""RESP2, the protocol of Redis: commands as bytes, and replies from bytes.

By hiredis where it is installed; without it the same in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast


class Refused(Exception):
    """A reply that is an error: its text, which begins with a word in capitals."""

    def __init__(self, text: object) -> None:
        text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        super().__init__(text[:300])


class Reader(Protocol):
    def feed(self, data: bytes) -> None: ...

    def gets(self) -> Any:
        """The next reply, ``False`` when there is none yet. Raises at what is no RESP."""
        ...


def plain_pack(words: tuple[bytes, ...]) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


class PlainReader:
    """`Reader` in Python."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def gets(self) -> Any:
        try:
            reply, end = self._read(0)
        except _Short:
            return False
        del self._data[:end]
        return reply

    def _read(self, at: int) -> tuple[Any, int]:
        end = self._data.find(b"\r\n", at)
        if end < 0:
            if len(self._data) - at > 1 << 16:
                raise ValueError("a line without an end")
            raise _Short
        kind, text, end = self._data[at], bytes(self._data[at + 1 : end]), end + 2
        if kind == ord("+"):
            return text, end
        if kind == ord("-"):
            return Refused(text), end
        number = int(text)
        if kind == ord(":"):
            return number, end
        if kind == ord("$"):
            if number < 0:
                return None, end
            if len(self._data) < end + number + 2:
                raise _Short
            return bytes(self._data[end : end + number]), end + number + 2
        if kind != ord("*"):
            raise ValueError(f"no reply begins with {chr(kind)!r}")
        items = []
        for _ in range(number):
            item, end = self._read(end)
            items.append(item)
        return items, end


class _Short(Exception):
    """More has to come."""


pack: Callable[[tuple[bytes, ...]], bytes]
NO_RESP: tuple[type[Exception], ...] = (ValueError,)
"""What `Reader.gets` raises."""
try:
    import hiredis
except ImportError:
    pack = plain_pack

    def reader() -> Reader:
        return PlainReader()
else:
    pack = cast(Any, hiredis.pack_command)
    NO_RESP = (ValueError, hiredis.HiredisError)

    def reader() -> Reader:
        made: Reader = hiredis.Reader(replyError=Refused)
        return made


__all__ = ["NO_RESP", "PlainReader", "Reader", "Refused", "pack", "plain_pack", "reader"]
