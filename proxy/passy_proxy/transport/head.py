"""The head of a request as bytes: validated, joined once, one framing."""

from __future__ import annotations

import re
from operator import itemgetter

from . import TransportError, UpstreamRequest
from .connect import Origin

_COLON = b": ".join
_NAME = itemgetter(0)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[!-~]*")
_OURS = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade"))
_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))
_KEPT = 512
"""Request lines and header names remembered as valid, at most."""


class HeadWriter:
    """Writes heads for one origin; remembers what it has found valid."""

    __slots__ = ("_lines", "_names", "_origin")

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._lines: dict[tuple[str, bytes], bytes] = {}
        self._names: set[bytes] = set()

    def head(self, request: UpstreamRequest) -> bytes:
        """The whole head. Raises TransportError ``protocol`` for what must not be sent."""
        line = self._lines.get((request.method, request.target))
        if line is None:
            line = self._line(request.method, request.target)
        block = self.block(request.headers)
        body = request.body
        if body and isinstance(body, bytes):
            return b"%b%bcontent-length: %d\r\n\r\n" % (line, block, len(body))
        framing = self.framing(request)
        if framing is None:
            return b"%b%b\r\n" % (line, block)
        return b"%b%b%b: %b\r\n\r\n" % (line, block, *framing)

    def framing(self, request: UpstreamRequest) -> tuple[bytes, bytes] | None:
        """The one header which says where the body ends; none for a request without a body."""
        body = request.body
        if isinstance(body, bytes):
            if body or request.method in _BODY_METHODS:
                return b"content-length", b"%d" % len(body)
            return None
        if request.length is not None:
            return b"content-length", b"%d" % request.length
        return b"transfer-encoding", b"chunked"

    def target(self, method: str, target: bytes) -> bytes:
        """The target below the origin's base path. Raises like :meth:`head`."""
        if not _TARGET.fullmatch(target) or not _TOKEN.fullmatch(method.encode()):
            raise TransportError("protocol", "the request line is malformed")
        return self._origin.base_path + target

    def block(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The header lines. Raises like :meth:`head`."""
        if not headers:
            return b""
        if not self._names.issuperset(map(_NAME, headers)):
            for name in map(_NAME, headers):
                self._admit(name)
        block = b"\r\n".join(map(_COLON, headers))
        breaks = len(headers) - 1
        if block.count(b"\n") != breaks or block.count(b"\r") != breaks or 0 in block:
            raise TransportError("protocol", "a header value holds a line break or NUL")
        return block + b"\r\n"

    def _line(self, method: str, target: bytes) -> bytes:
        path = self.target(method, target)
        line = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (
            method.encode(), path, self._origin.host_header,
        )  # fmt: skip
        if len(self._lines) < _KEPT:
            self._lines[method, target] = line
        return line

    def _admit(self, name: bytes) -> None:
        if not _TOKEN.fullmatch(name):
            raise TransportError("protocol", "a header name is not a token")
        if name.lower() in _OURS:
            raise TransportError("protocol", f"{name.decode()} is the transport's to write")
        if len(self._names) < _KEPT:
            self._names.add(name)
