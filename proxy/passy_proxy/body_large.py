"""Read the head of a body of megabytes in small steps, so that nobody waits for it.

What makes a body large is almost always a few long texts: images in base64, documents. So they are
looked through piece by piece, and the rest, each of them cut down to a short one, is read as any
body is. Pieces that may stand in a string make a string, so nothing is taken here that is not taken
in one go. Whatever looks wrong or unusual is read again as a whole, which knows how to say it.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect
from collections.abc import Callable, Generator
from itertools import accumulate

from passy_proxy.body import BadBody, Head, JsonLimits, check_text, read_head

LARGE = 1 << 22
"""Bytes; what is smaller takes a moment as a whole."""
LONG = 1 << 10
"""Bytes of a text that is cut down."""
PIECE = 1 << 18
MOST = 250_000
"""Texts; what is behind them is left as it is: such a body is large for another reason."""
OFTEN = 8
"""Texts in one step."""

_CUT = secrets.token_hex(8).encode()
_MODEL = b'"model":'
_text_from: Callable[[bytes, int, int], re.Match[bytes]] = re.compile(
    rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL
).match  # type: ignore[assignment]
"""The rest of a string from a place in it, as far as its end or that of the bytes looked at."""
_FIRST_HALF = re.compile(rb"\\u[dD][89abAB]..").fullmatch


def read_large(body: bytes, limits: JsonLimits) -> Generator[None, None, Head]:
    """As `read_head`, with a turn for others at each ``yield``."""
    try:
        short, ends, removed = yield from _shortened(body)
        head = read_head(short, limits)
    except BadBody:
        return read_head(body, limits)
    if _CUT.decode() in head.model:
        return read_head(body, limits)
    at = head.at or short.find(_MODEL) + len(_MODEL)
    before = bisect(ends, at)
    if before:
        at += removed[before - 1]
    counts = head.max_tokens, head.n
    return Head(head.model, head.stream, head.include_usage, *counts, at, head.has_stream_options)


def _shortened(body: bytes) -> Generator[None, None, tuple[bytes, list[int], list[int]]]:
    """The body with its long texts cut down; where each of these ends there, and how many bytes are
    missing up to there. Raises BadBody where that leads nowhere."""
    kept: list[bytes] = []
    ends: list[int] = []
    sizes: list[int] = []
    size = start = at = texts = 0
    while texts < MOST and (quote := body.find(b'"', at)) >= 0:
        texts += 1
        begin = quote + 1
        at = _text_from(body, begin, begin + LONG).end()
        if not texts % OFTEN:
            yield
        if at - begin < LONG - 1:  # It may stop before an escape.
            at += 1
            continue
        at = _text_from(body, begin, begin + PIECE).end()
        if body[at : at + 1] == b'"':
            check_text(body[begin:at])
        else:
            at = yield from _checked(body, begin, at)
        kept += (body[start:begin], _CUT)
        size += begin - start + len(_CUT)
        ends.append(size)
        sizes.append(at - begin - len(_CUT))
        start, at = at, at + 1
        if body[at : at + 1] in b": \t\r\n":
            raise BadBody("A long text may be a name.")
    kept.append(body[start:])
    return b"".join(kept), ends, list(accumulate(sizes))


def _checked(body: bytes, begin: int, at: int) -> Generator[None, None, int]:
    """The end of a very long text, all of which may stand in a string; ``at`` is a place in it.
    Raises BadBody."""
    while body[at : at + 1] != b'"':
        # Neither within a character nor between the halves of a pair.
        end = at
        while begin < end < len(body) and body[end] & 0xC0 == 0x80:
            end -= 1
        if _FIRST_HALF(body, max(end - 6, begin), end):
            end -= 6
        check_text(body[begin:end])
        yield
        begin, before = end, at
        at = _text_from(body, at, at + PIECE).end()
        if at == before:
            raise BadBody("It has no end.")
    check_text(body[begin:at])
    return at
