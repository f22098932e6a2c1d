"""Read the head of a body of megabytes in small steps, so that nobody waits for it.

What makes a body large is almost always a few long texts: images in base64, documents. So they are
looked through piece by piece, and the rest, each of them cut down to a short one, is read as any
body is; if that is still large, as a list of a million numbers, after it went through `thinned`.
Pieces that may stand in a string make a string, so nothing is taken here that is not taken in one
go. What is wrong is read again as a whole, which knows how to say it, unless that would take long.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect
from collections.abc import Callable, Generator
from itertools import accumulate

from passy_proxy.body import BadBody, Head, JsonLimits, check_text, read_head
from passy_proxy.body_windows import Cuts, thinned

LARGE = 1 << 22
"""Bytes; what is smaller takes a moment as a whole."""
SHORT = 1 << 20
"""Bytes of what is left of it; more than that is looked through before it is read."""
LONG = 1 << 10
"""Bytes of a text that is cut down."""
PIECE = 1 << 18
WINDOW = 1 << 15
"""Bytes that are passed in one go where all texts are short."""
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
_NAMES: Callable[[bytes, int], object] = re.compile(rb"[ \t\r\n]*:").match
"""Whether the string that ends here is a name."""
_PLACE = re.compile(r" (?:at|near) (?:byte|line|character) .*(?=\.)")
"""It would be one in the outline, which the client does not have."""
_UNFINISHED = re.compile(rb"\\u(?:.{0,3}|[dD][89abAB]..)", re.DOTALL).fullmatch
"""A part of an escape, or the first half of a pair."""


def read_large(body: bytes, limits: JsonLimits) -> Generator[None, None, Head]:
    """As `read_head`, with a turn for others at each ``yield``."""
    try:
        outline, ends, removed = yield from _shortened(body)
        cuts: list[Cuts] = [(ends, removed)]
        allowed = limits
        if len(outline) > SHORT:
            outline, thin = yield from thinned(outline, limits)
            cuts.insert(0, thin)
            allowed = JsonLimits(limits.depth, len(outline), limits.digits)  # They were looked at.
        head = read_head(outline, allowed)
        if _CUT.decode() in head.model:
            raise BadBody("'model' is too long.", "model")
    except BadBody as error:
        if len(body) <= LARGE:
            return read_head(body, limits)
        if error.param:
            raise
        raise BadBody(_PLACE.sub("", error.message)) from None
    at = head.at or outline.find(_MODEL) + len(_MODEL)
    for ends, removed in cuts:
        if before := bisect(ends, at):
            at += removed[before - 1]
    counts = head.max_tokens, head.n
    return Head(
        head.model, head.stream, head.include_usage, *counts, at, head.has_stream_options, outline
    )


def _shortened(body: bytes) -> Generator[None, None, tuple[bytes, list[int], list[int]]]:
    """The body with its long texts cut down; where each of these ends there, and how many bytes are
    missing up to there. Raises BadBody where that leads nowhere."""
    kept: list[bytes] = []
    ends: list[int] = []
    sizes: list[int] = []
    size = start = at = texts = looked = 0
    while texts < MOST and (quote := body.find(b'"', at)) >= 0:
        if at >= looked:
            looked = at + WINDOW
            passed, count = _all_short(body[at:looked])
            if passed:
                at += passed
                texts += count
                yield
                continue
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
        if _NAMES(body, at + 1):  # Names stay, so that it can be told which are alike.
            at += 1
            continue
        kept += (body[start:begin], _CUT)
        size += begin - start + len(_CUT)
        ends.append(size)
        sizes.append(at - begin - len(_CUT))
        start, at = at, at + 1
    kept.append(body[start:])
    return b"".join(kept), ends, list(accumulate(sizes))


def _all_short(window: bytes) -> tuple[int, int]:
    """How many bytes of ``window``, which begins outside of a text, can be passed because there are
    only short texts in it, and how many these are. Of texts with escapes nothing is said."""
    parts = window.split(b'"')
    if b"\\" in window or max(map(len, parts)) >= LONG - 1:
        return 0, 0
    if len(parts) & 1:
        return len(window), len(parts) >> 1
    return len(window) - len(parts[-1]) - 1, len(parts) >> 1  # The last one goes on behind it.


def _checked(body: bytes, begin: int, at: int) -> Generator[None, None, int]:
    """The end of a very long text, all of which may stand in a string; ``at`` is a place in it.
    Raises BadBody."""
    while body[at : at + 1] != b'"':
        end = _between(body, begin, at)
        check_text(body[begin:end])
        yield
        begin, before = end, at
        at = _text_from(body, at, at + PIECE).end()
        if at == before:
            raise BadBody("It has no end.")
    check_text(body[begin:at])
    return at


def _between(body: bytes, begin: int, end: int) -> int:
    """A place at ``end`` or a little before which is neither within a character or an escape nor
    between the halves of a pair."""
    while begin < end < len(body) and body[end] & 0xC0 == 0x80:
        end -= 1
    while _UNFINISHED(body, at := max(begin, body.rfind(b"\\u", max(begin, end - 6), end)), end):
        before = body[begin:at]
        if (len(before) - len(before.rstrip(b"\\"))) & 1:
            break  # It is a backslash that stands for itself.
        end = at
    return end
