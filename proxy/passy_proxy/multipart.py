"""Multipart uploads on their way through: their parts are counted, and nothing else is read."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from passy_proxy.downstream import BadUpload

_BOUNDARY = re.compile(rb'(?i);[\t ]*boundary=(?:"([^"\\]*)"|([^\s;"]*))')
_LONGEST = 70  # bytes; RFC 2046


def is_multipart(content_type: bytes) -> bool:
    return content_type[:10].lower() == b"multipart/"


def counted(pieces: AsyncIterator[bytes], content_type: bytes, most: int) -> AsyncIterator[bytes]:
    """``pieces`` as they come, until there are more than ``most`` parts. Raises BadUpload; at once
    where it is not clear what separates the parts."""
    found = [quoted or plain for quoted, plain in _BOUNDARY.findall(content_type)]
    if len(found) != 1 or not 0 < len(found[0]) <= _LONGEST:
        raise BadUpload(400, "invalid_multipart", "The Content-Type has not one proper boundary.")
    return _counted(pieces, found[0], most)


async def _counted(
    pieces: AsyncIterator[bytes], boundary: bytes, most: int
) -> AsyncIterator[bytes]:
    # By LF alone, as the sloppiest reader behind us would see it.
    mark = b"\n--" + boundary
    opening = re.compile(re.escape(mark) + rb"(?!--)").finditer
    kept = len(mark) + 1  # bytes in which a mark may begin of which it is not known what follows
    tail = b"\n"
    parts = 0
    async for piece in pieces:
        text = tail + piece
        tail = text[-kept:]
        if text.find(mark) >= 0:
            certain = len(text) - kept
            parts += sum(1 for found in opening(text) if found.start() < certain)
            if parts > most:
                message = f"The body has more than {most} parts."
                raise BadUpload(413, "too_many_parts", message)
        yield piece
