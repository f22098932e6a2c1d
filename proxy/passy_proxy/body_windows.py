"""Look through JSON of megabytes window by window, and keep of it what steers.

A window ends behind a comma that stands between two values, so what is open there is known: some
objects and lists. With these opened before it, and those closed behind it that are open at its end,
a window is JSON of its own; all of them are, exactly if the whole is. What lies two levels deep or
deeper is of no interest beyond that, so such windows are left out, and what is left has the same
members at its top.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator

from passy_proxy.body import (
    BadBody,
    JsonLimits,
    bad_depth,
    check_counts,
    check_digits,
    check_value,
    marks_of,
)

WINDOW = 1 << 17
TOP = 1
"""Levels of which everything is kept."""

_BLANKS = b" \t\r\n"
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_CLOSER = {ord("["): b"]", ord("{"): b"}"}
_string_from: Callable[[bytes, int], re.Match[bytes]] = re.compile(
    rb'[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL
).match  # type: ignore[assignment]
"""The rest of a string from a place in it that is not behind a backslash."""

Cuts = tuple[list[int], list[int]]
"""Places in what was kept, and how many bytes are missing before each, by the last one as well."""

Piece = tuple[bytes, int]
"""A part of a window, and how many blanks behind it are left out."""


class Thinned:
    """What was kept so far, and where something is missing."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.ends: list[int] = []
        self.missing: list[int] = []
        self.lost = 0
        """Bytes left out so far, less those put in."""

    def keep(self, text: bytes) -> None:
        self.parts.append(text)
        self.size += len(text)

    def leave_out(self, size: int, instead: bytes = b"") -> None:
        self.keep(instead)
        self.lost += size - len(instead)
        self.ends.append(self.size)
        self.missing.append(self.lost)


def thinned(body: bytes, limits: JsonLimits) -> Generator[None, None, tuple[bytes, Cuts]]:
    """What steers in ``body``, with a turn for others at each ``yield``. Raises BadBody."""
    found = Thinned()
    counted: list[bytes] = []
    parts = limits.parts
    open = left = lowest = b""  # what is open now, where windows began to be left out, and since
    out = at = 0
    while at < len(body):
        start = at
        pieces: list[Piece] = []
        at = yield from _end(body, at, pieces)
        text = pieces[0][0] if len(pieces) == 1 else b" ".join([text for text, _ in pieces])
        marks = marks_of(text)
        counted.append(marks)
        parts -= len(marks.translate(None, b"]}"))
        if parts < 0:
            raise BadBody(f"The body has more than {limits.parts} objects, lists and members.")
        after, low = _opened(open, marks)
        if len(after) > limits.depth:
            raise bad_depth(limits.depth)
        last = at >= len(body)
        if not after and not last:
            raise BadBody("The body is not valid JSON: it goes on behind its end.")
        check_value(b"".join((_before(open), text, b"" if last else _behind(after))))
        check_digits(text, limits.digits)
        if low > TOP:
            if not out:
                left = lowest = open
            lowest = min(lowest, open[:low], key=len)
            out += at - start
        else:
            if out:
                found.leave_out(out, _bridge(left, open, len(lowest)))
                out = 0
            for piece, blanks in pieces:
                found.keep(piece)
                if blanks:
                    found.leave_out(blanks, b" ")
        open = after
        yield
    check_counts(b"".join(counted), limits)
    return b"".join(found.parts), (found.ends, found.missing)


def _end(body: bytes, at: int, pieces: list[Piece]) -> Generator[None, None, int]:
    """Where the window ends that begins at ``at``, and what is in it."""
    start = at
    at += WINDOW
    inside = _quotes(body[start:at]) & 1
    if inside:
        while body[at - 1 : at] == b"\\":
            at -= 1
        at = _string_from(body, at).end()
    while at < len(body):
        comma = body.find(b",", at, at + WINDOW)
        quote = body.find(b'"', at, at + WINDOW if comma < 0 else comma)
        if quote >= 0:
            at = _string_from(body, quote + 1).end()
        elif comma >= 0:
            pieces.append((body[start : comma + 1], 0))
            return comma + 1
        else:
            behind = at + WINDOW
            if not body[at:behind].strip(_BLANKS):
                behind = min(behind, len(body))
                pieces.append((body[start:at], behind - at))
                start = behind
            at = behind
            yield
    pieces.append((body[start:], 0))
    return len(body)


def _quotes(text: bytes) -> int:
    """How many strings begin or end in ``text``, which begins outside of them."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text.count(b'"')


def _opened(open: bytes, marks: bytes) -> tuple[bytes, int]:
    """What is open behind a window with these brackets, and how many of those open before it stay
    open all the while. Raises BadBody."""
    marks = marks.translate(None, b":")
    size = len(marks) + 1
    while len(marks) < size:
        size = len(marks)
        marks = marks.replace(b"[]", b"").replace(b"{}", b"")
    openers = marks.translate(None, b"]}")
    closers = marks[: len(marks) - len(openers)]
    low = len(open) - len(closers)
    if low < 0 or closers != _closing(open[low:]) or marks != closers + openers:
        raise BadBody("The body is not valid JSON: its brackets do not match.")
    return open[:low] + openers, low


def _closing(open: bytes) -> bytes:
    return b"".join([_CLOSER[each] for each in reversed(open)])


def _before(open: bytes) -> bytes:
    """What opens the same, and ends with a comma between two values there."""
    if not open:
        return b""
    outer = open[:-1].replace(b"{", b'{"":')
    return outer + (b'{"":0,' if open.endswith(b"{") else b"[0,")


def _behind(open: bytes) -> bytes:
    """What closes it all behind a comma."""
    return (b'"":0' if open.endswith(b"{") else b"0") + _closing(open)


def _bridge(left: bytes, open: bytes, low: int) -> bytes:
    """What leads from a comma in ``left`` to a comma in ``open``: only ``low`` of it all stays."""
    text = b""
    if len(left) > low:
        text = _behind(left)[: -low or None] + b","
    if len(open) > low:
        inner = _before(open[low:])
        text += b'"":' + inner if open[low - 1 : low] == b"{" else inner
    return text
