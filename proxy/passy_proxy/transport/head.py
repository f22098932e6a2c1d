"""The head of a request as bytes: validated, joined once, one framing."""

from __future__ import annotations

import re
from operator import itemgetter

from . import TransportError, UpstreamRequest
from .connect import Origin

_NAME = itemgetter(0)
_VALUE = itemgetter(1)
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[!-~]*")
_OURS = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade"))
_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))
ODD = re.compile(rb"[^\t -~\x80-\xff]").search
"""Finds a byte that no value of a header may have."""
SECRET = re.compile(rb"auth|key|token|secret|cookie|passw|credential|session").search
"""Whether a name, in lower case, sounds as if its value were a secret."""
_KEPT_NAMES = 512
_KEPT_FORMS = 128
_KEPT_BYTES = 2048
"""What is remembered as valid, at most: names, forms of heads, and the bytes of one of these."""
_BROKEN = "a header value holds a line break or another control character"
JOINED_BYTES = 65_536
"""Bodies up to this size are copied into one write with the head."""


class HeadWriter:
    """Writes heads for one origin; remembers what it has found valid.

    Clients of one kind send the same names of headers in the same order. So a head is remembered
    as a form, into which the values are put: none of them is kept.
    """

    __slots__ = ("_forms", "_names", "_origin")

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._names: set[bytes] = set()
        self._forms: dict[tuple[object, ...], bytes] = {}

    def message(self, request: UpstreamRequest) -> bytes:
        """The whole head, followed by the body if it is no larger than ``JOINED_BYTES``.

        Raises TransportError ``protocol`` for what must not be sent.
        """
        headers = request.headers
        body = request.body
        form = self._forms.get((request.method, request.target, *map(_NAME, headers)))
        if form is None:
            form = self._form(request)
        values = tuple(map(_VALUE, headers))
        if ODD(b"".join(values)) is not None:
            raise TransportError("protocol", _BROKEN)
        if body and type(body) is bytes and len(body) <= JOINED_BYTES:
            return b"%bcontent-length: %d\r\n\r\n%b" % (form % values, len(body), body)
        framing = self.framing(request)
        end = b"\r\n" if framing is None else b"%b: %b\r\n\r\n" % framing
        return form % values + end

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
        if not _TARGET.fullmatch(target) or not TOKEN.fullmatch(method.encode()):
            raise TransportError("protocol", "the request line is malformed")
        return self._origin.base_path + target

    def check(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Raises like :meth:`message`."""
        for name in map(_NAME, headers):
            if name not in self._names:
                self._admit(name)
        if ODD(b"".join(map(_VALUE, headers))) is not None:
            raise TransportError("protocol", _BROKEN)

    def _form(self, request: UpstreamRequest) -> bytes:
        """The request line and the headers, with a place for the value of each."""
        method, target, headers = request.method, request.target, request.headers
        self.check(headers)
        line = b"%b %b" % (method.encode(), self.target(method, target))
        names = [name.replace(b"%", b"%%") + b": %b\r\n" for name in map(_NAME, headers)]
        form = b"%b HTTP/1.1\r\nhost: %b\r\n%b" % (
            line.replace(b"%", b"%%"), self._origin.host_header, b"".join(names),
        )  # fmt: skip
        if len(form) <= _KEPT_BYTES and SECRET(target.partition(b"?")[2].lower()) is None:
            if len(self._forms) >= _KEPT_FORMS:
                self._forms.clear()
            self._forms[method, target, *map(_NAME, headers)] = form
        return form

    def _admit(self, name: bytes) -> None:
        if not TOKEN.fullmatch(name):
            raise TransportError("protocol", "a header name is not a token")
        if name.lower() in _OURS:
            raise TransportError("protocol", f"{name.decode()} is the transport's to write")
        if len(self._names) < _KEPT_NAMES:
            self._names.add(name)
