"""The grammar of an HTTP/1.1 request, without input or output: its head and its chunked body.

Each line of a head is inside the grammar or the request is refused, so there is no second reading
of it: no bare LF, no folded line, no space before a colon, no control byte. A proxy in front of us
that reads the same bytes differently is thereby contradicted instead of believed.

Clients repeat themselves: of twenty lines of a head, eighteen were seen a moment ago. So lines that
passed are remembered by their exact bytes, and a remembered line costs one look-up. Lines that hold
a secret are never among them; a connection remembers its own latest head whole (`Alike`), which is
gone with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from types import MappingProxyType
from typing import NamedTuple, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

Headers = list[tuple[bytes, bytes]]
Remembered = TypeVar("Remembered")

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_NAME = re.compile(_TOKEN)
_NOT_IN_VALUE = re.compile(rb"[^\t -~\x80-\xff]")
_TRAILER = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*")
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]++) HTTP/([0-9]\.[0-9])")
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_FIRST_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\r"
_PATH = re.compile(rb"(/(?:[\w.~!$&'()*+,;=:@/\-]|%[0-9A-Fa-f]{2})*+)(?:\?([!\"$-~]*+))?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
# Of what RFC 9110 allows as a host, what names have: no escapes, no sub-delimiters.
_HOST = re.compile(rb"([\w.~\-]++)(?::([0-9]{0,5}))?")
_HOST_V6 = re.compile(rb"\[([0-9A-Fa-f:.]+)\](?::([0-9]{0,5}))?")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_ASKED = re.compile(rb"(?:\r\n)?[A-Za-z]+ (?:https?://[^/?# ]+)?(/[^?# \r\n]*)")
_ONCE = (b"content-type", b"authorization", b"x-api-key", b"api-key")
"""What is sent, and who asks: of two answers to that, another reader may take the other one."""
_SINGLE = (b"host", b"content-length", b"transfer-encoding", b"expect", *_ONCE)
_SECRET = re.compile(rb"auth|key|token|secret|cookie|passw|credential|session")
_CHECKED = frozenset((b"host", b"upgrade", b"transfer-encoding", b"expect", b"content-encoding"))
_LIKE_FRAMING = frozenset((b"content_length", b"transfer_encoding"))
_PORTS = 1 << 16
_ALONE = (b"", b"keep-alive", b"close")
_REFUSED_METHODS = (b"CONNECT", b"TRACE")
_KEY_NAMES = frozenset(
    b"key api_key api-key apikey x-api-key x-goog-api-key access_token auth_token token "
    b"authorization bearer secret client_secret password".split()
)
_OUR_KEY = b"sk-passy-"
_LENGTH = re.compile(rb"\r\ncontent-length:[\t ]*+([0-9]++)", re.IGNORECASE)
_MAX_DIGITS = 18
_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_LINE = 256

CREDENTIALS = frozenset(
    b"authorization x-api-key api-key x-goog-api-key proxy-authorization cookie".split()
)
"""Headers that show who a client is. Only filters that declare it can read them."""
Public = tuple[tuple[tuple[bytes, bytes], ...], Mapping[bytes, bytes]]

CHUNKED = -1
"""The length of a body whose end is told by its last chunk."""


class Refused(Exception):
    """A request that no application may see. The answer to it ends the connection."""

    def __init__(self, status: int, code: str, message: str, path: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.path = path
        """Where it asked, as far as that is known: what its client speaks depends on it."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """What a head may measure: ``head`` and ``target`` in bytes, ``fields`` in lines."""

    head: int = 32 * 1024
    fields: int = 100
    target: int = 8 * 1024


class RequestLine(NamedTuple):
    """The first line of a request. ``path`` is the decoded ``raw_path``, segment by segment."""

    method: str
    raw_path: bytes
    path: str
    query: bytes
    minor: int
    """The version: HTTP/1.``minor``, 0 or 1."""
    authority: bytes | None
    """The host in a URL that was given in its absolute form."""


class RequestHead:
    """The head of one request, checked. Names of headers are in lower case. Nobody edits it: the
    same object may stand for a later request that is the same to the byte."""

    __slots__ = (
        "at",
        "expects_continue",
        "fields",
        "headers",
        "keep_alive",
        "length",
        "line",
        "public",
    )

    line: RequestLine
    headers: Headers
    """As they came, repeated ones too."""
    fields: dict[bytes, bytes]
    """The same by name; of repeated ones the first."""
    length: int
    """Of the body, in bytes, or ``CHUNKED``."""
    keep_alive: bool
    expects_continue: bool
    public: Public | None
    """See `concealed`; kept, since the next head may be this one again."""
    at: int
    """Where ``content-length`` is among its headers; -1 where it is not."""

    def concealed(self) -> Public:
        """``headers`` and ``fields`` for all to see: without what shows who the client is."""
        fields = self.fields
        headers: Sequence[tuple[bytes, bytes]] = self.headers
        if not CREDENTIALS.isdisjoint(fields):
            headers = [pair for pair in headers if pair[0] not in CREDENTIALS]
            fields = fields.copy()
            for name in CREDENTIALS.intersection(fields):
                del fields[name]
        self.public = public = (tuple(headers), MappingProxyType(fields))
        names = [name for name, _ in headers]
        self.at = names.index(b"content-length") if b"content-length" in names else -1
        return public

    def resized(self, length: bytes) -> RequestHead:
        """The same head with another ``content-length``."""
        head = RequestHead()
        if self.public is None or self.at < 0:
            head.public, head.at = None, -1
        else:
            at, (headers, fields) = self.at, self.public
            shown = (*headers[:at], (b"content-length", length), *headers[at + 1 :])
            head.public = (shown, MappingProxyType({**fields, b"content-length": length}))
            head.at = at
        head.line = self.line
        head.headers = [
            pair if pair[0] != b"content-length" else (pair[0], length) for pair in self.headers
        ]
        head.fields = self.fields | {b"content-length": length}
        head.length = int(length)
        head.keep_alive = self.keep_alive
        head.expects_continue = (
            head.length != 0 and b"expect" in self.fields and self.line.minor == 1
        )
        return head


def told(
    method: str, path: str, query: bytes, headers: Headers, raw_path: bytes = b"%"
) -> RequestHead:
    """A head that somebody else has read: another server, a test. ``raw_path`` is no path where it
    is not known."""
    head = RequestHead()
    head.public, head.at = None, -1
    head.line = RequestLine(method, raw_path, path, query, 1, None)
    head.headers = headers
    head.fields = fields = dict(reversed(headers))
    if b"connection" in fields:
        named = b",".join([value for name, value in headers if name == b"connection"])
        if named.lower() not in _ALONE:
            head.headers = unnamed(headers, named)
    return head


def check_told(query: bytes, headers: Headers) -> None:
    """Raises Refused for what another server has let in, and would have been refused here for more
    than its grammar."""
    for name, value in headers:
        if name == b"content-encoding":
            _check_field(name, value)
    if query:
        _refuse_keys(query, dict(headers))


class Alike:
    """The latest head of a connection, to tell the next one by: a client that stays sends the same
    lines again, but for the number in ``content-length``. No byte of a head is taken on trust:
    what is not equal to a byte that was read and checked is a digit of that number."""

    __slots__ = ("_after", "_before", "_head", "_text", "_window")

    @classmethod
    def of(cls, raw: bytes, head: RequestHead, limit: int) -> Alike | None:
        """``raw`` was read as ``head``; ``None`` where there is no length that could change, or
        where a longer one might exceed the ``limit`` in bytes."""
        if head.length < 0 or len(raw) + _MAX_DIGITS > limit:
            return None
        found = _LENGTH.search(raw)
        return None if found is None else cls(raw, head, found)

    def __init__(self, raw: bytes, head: RequestHead, found: re.Match[bytes]) -> None:
        self._head = head
        self._text = found[1]
        self._before = raw[: found.start(1)]
        self._after = raw[found.end(1) :]
        self._window = found.start(1) + _MAX_DIGITS + len(self._after)

    def read(self, data: bytes) -> tuple[RequestHead, int] | None:
        """The head that ``data`` begins with and its size, if it is another one of these."""
        before = self._before
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(self._after, start, self._window)
        text = data[start:end]
        if end < 0 or not text.isdigit():
            return None
        head = self._head
        if text != self._text:
            self._head = head = head.resized(text)
            self._text = text
        return head, end + len(self._after)


class HeadReader:
    """Reads the heads of all the requests of one worker."""

    __slots__ = ("_fields", "_lines", "_names", "limits")

    def __init__(self, limits: HeadLimits) -> None:
        self.limits = limits
        self._names: dict[bytes, tuple[bytes, bool]] = {}  # as spelled -> lower case, kept?
        self._fields = _Fields(self._names)
        self._lines: dict[bytes, RequestLine] = {}

    def read(self, raw: bytes) -> RequestHead:
        """Parse ``raw``, which ends with its first empty line. Raises Refused."""
        try:
            return self._read(raw)
        except Refused as refusal:
            refusal.path = asked_for(raw)
            raise

    def _read(self, raw: bytes) -> RequestHead:
        if len(raw) > self.limits.head:
            raise Refused(431, "headers_too_large", f"The head exceeds {self.limits.head} bytes.")
        lines = raw.split(b"\r\n")
        if not lines[0]:  # one empty line before a request is customarily overlooked
            del lines[0]
        head = RequestHead()
        head.public, head.at = None, -1
        head.line = line = self._lines.get(lines[0]) or self._read_line(lines[0])
        known = self._fields
        headers = list(map(known.__getitem__, lines[1:-2]))
        if len(headers) > self.limits.fields:
            message = f"There are more than {self.limits.fields} headers."
            raise Refused(431, "too_many_headers", message)
        head.headers = headers
        head.fields = fields = dict(headers)
        if len(fields) != len(headers):
            head.fields = dict(reversed(headers))
            _join_repeated(headers, fields)
        if known.underscore:
            known.underscore = False
            _refuse_twins(fields)
        host = fields.get(b"host")
        if host is None and line.minor:
            raise Refused(400, "invalid_host", "The Host header is missing.")
        if line.authority is not None and (host is None or line.authority != host.lower()):
            raise Refused(400, "invalid_host", "The URL names another host than the Host header.")
        if line.query:
            _refuse_keys(line.query, fields)
        _read_framing(head, fields, line.minor)
        return head

    def check_unfinished(self, raw: bytes | bytearray, seen: int = 0) -> None:
        """Refuse a head before it has ended, if it cannot end well any more. Raises Refused.

        The first ``seen`` bytes were looked at before: a head may come byte by byte.
        """
        if raw[0] not in _FIRST_BYTES:
            raise Refused(400, "invalid_request", "This is not an HTTP request.")
        if raw.count(b"\n", seen) != raw.count(b"\r\n", max(0, seen - 1)):
            _refuse_text(b"\n")
        limit = self.limits.target + 64  # the method and the version
        if len(raw) > limit and raw.find(b"\r\n", 2, limit) < 0:
            raise Refused(414, "url_too_long", f"The URL exceeds {self.limits.target} bytes.")
        if len(raw) > self.limits.head:
            raise Refused(431, "headers_too_large", f"The head exceeds {self.limits.head} bytes.")
        end = raw.find(b"\r\n", 2)
        if end >= 0 and end + 2 > seen:  # HTTP/0.9 ends here, and would wait for us
            line = bytes(raw[2 if raw.startswith(b"\r\n") else 0 : end])
            if line not in self._lines:
                self._read_line(line)

    def _read_line(self, text: bytes) -> RequestLine:
        match = _REQUEST_LINE.fullmatch(text)
        if match is None:
            _refuse_text(text)
        method, target, version = match.groups()
        if version not in (b"1.1", b"1.0"):
            raise Refused(505, "version_not_supported", "Only HTTP/1.1 and 1.0 are supported.")
        if method in _REFUSED_METHODS:
            raise Refused(400, "method_not_supported", "This method is not supported.")
        if method not in _METHODS:
            raise Refused(501, "method_not_supported", "This method is not supported.")
        if len(target) > self.limits.target:
            raise Refused(414, "url_too_long", f"The URL exceeds {self.limits.target} bytes.")
        authority = None
        if (absolute := _ABSOLUTE.fullmatch(target)) is not None:
            authority = absolute[1].lower()
            target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        raw_path, path, query = _read_target(target)
        line = RequestLine(
            method.decode("ascii"), raw_path, path, query, int(version[2:]), authority
        )
        if not query:  # which may hold a secret
            _remember(self._lines, text, line)
        return line


class _Fields(dict[bytes, tuple[bytes, bytes]]):
    """Header lines by their exact bytes; one that is looked up for the first time is read."""

    __slots__ = ("_names", "underscore")

    def __init__(self, names: dict[bytes, tuple[bytes, bool]]) -> None:
        self._names = names
        self.underscore = False
        """A name of the head at hand holds one."""

    def __missing__(self, text: bytes) -> tuple[bytes, bytes]:
        spelled, colon, value = text.partition(b":")
        name, kept = self._names.get(spelled) or self._read_name(spelled)
        if not colon or _NOT_IN_VALUE.search(value) is not None:
            _refuse_text(text)
        field = (name, value.strip(b" \t"))
        if kept:
            if name in _CHECKED:
                _check_field(*field)
            _remember(self, text, field)
        elif name.find(b"_") >= 0:
            if name in _LIKE_FRAMING:
                raise Refused(400, "ambiguous_header", "A header of framing is spelled with '_'.")
            self.underscore = True
        return field

    def _read_name(self, spelled: bytes) -> tuple[bytes, bool]:
        """A name in lower case, and whether its lines are remembered: not those with a secret,
        as far as one can tell, nor those that have to be seen in every head."""
        if _NAME.fullmatch(spelled) is None:
            _refuse_text(spelled)
        name = spelled.lower()
        known = (name, name.find(b"_") < 0 and _SECRET.search(name) is None)
        _remember(self._names, spelled, known)
        return known


def _remember(known: dict[bytes, Remembered], key: bytes, value: Remembered) -> None:
    if len(key) <= _MAX_REMEMBERED_LINE:
        if len(known) >= _MAX_REMEMBERED:
            known.clear()
        known[key] = value


def _read_framing(head: RequestHead, fields: dict[bytes, bytes], minor: int) -> None:
    """How the body is delimited, and whether the connection may live on."""
    length = fields.get(b"content-length")
    if b"transfer-encoding" in fields:
        if length is not None:
            raise Refused(400, "invalid_framing", "Content-Length and Transfer-Encoding together.")
        if not minor:
            raise Refused(400, "invalid_framing", "HTTP/1.0 has no Transfer-Encoding.")
        head.length = CHUNKED
    elif length is None:
        head.length = 0
    elif not length.isdigit() or len(length) > _MAX_DIGITS:
        raise Refused(400, "invalid_framing", "The Content-Length is not a number.")
    else:
        head.length = int(length)
    connection = fields.get(b"connection", b"").lower()
    head.keep_alive = minor == 1 and connection.find(b"close") < 0
    head.expects_continue = b"expect" in fields and minor == 1 and head.length != 0
    if connection not in _ALONE:
        head.headers = unnamed(head.headers, connection)


def unnamed(headers: Headers, connection: bytes) -> Headers:
    """``headers`` without those that ``connection`` names: the sender meant them for us alone."""
    named = {name.strip(b" \t") for name in connection.lower().split(b",")}
    return [pair for pair in headers if pair[0] not in named]


def _refuse_keys(query: bytes, fields: dict[bytes, bytes]) -> None:
    """URLs are logged everywhere, and passed on: what opens a door has no place in one."""
    parameters = [part.partition(b"=")[0] for part in re.split(rb"[&;]", query)]
    names = {unquote_to_bytes(name).lower().strip() for name in parameters}
    if names.isdisjoint(_KEY_NAMES) and _OUR_KEY not in unquote_to_bytes(query):
        return
    message = "A key is in the URL. Send it as 'Authorization: Bearer sk-passy-…' only."
    if not CREDENTIALS.isdisjoint(fields):
        raise Refused(400, "key_in_url", message)
    raise Refused(401, "invalid_api_key", message)


def _join_repeated(headers: Headers, fields: dict[bytes, bytes]) -> None:
    """Refuse what may appear once only; of the list that steers us, see all the lines."""
    names = [name for name, _ in headers]
    for name in _SINGLE:
        if names.count(name) > 1:
            message = f"The header {name.decode()} is repeated."
            if name == b"host":
                raise Refused(400, "invalid_host", message)
            if name in _ONCE:
                raise Refused(400, "ambiguous_header", message)
            raise Refused(400, "invalid_framing", message)
    if b"connection" in fields:
        lines = [value for name, value in headers if name == b"connection"]
        fields[b"connection"] = b",".join(lines)


def _refuse_twins(fields: dict[bytes, bytes]) -> None:
    """CGI-like software reads ``a_b`` and ``a-b`` as one name: an attacker writes the other one."""
    plain = [name.replace(b"_", b"-") for name in fields]
    if len(set(plain)) != len(plain):
        raise Refused(400, "ambiguous_header", "Two header names differ only in '_' and '-'.")


def _check_field(name: bytes, value: bytes) -> None:
    if name == b"host":
        _check_host(value)
    elif name == b"upgrade":
        raise Refused(400, "upgrade_not_supported", "Protocol upgrades are not supported.")
    elif name == b"transfer-encoding" and value.lower() != b"chunked":
        raise Refused(400, "invalid_framing", "This Transfer-Encoding is not supported.")
    elif name == b"expect" and value.lower() != b"100-continue":
        raise Refused(417, "expectation_not_supported", "This expectation is not supported.")
    elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
        # Unpacked, a body may be a thousand times as large, and whoever reads it decides so.
        raise Refused(415, "encoding_not_supported", "Send the body without Content-Encoding.")


def _check_host(host: bytes) -> None:
    found = _HOST.fullmatch(host)
    if found is None and (found := _HOST_V6.fullmatch(host)) is not None:
        try:
            IPv6Address(found[1].decode("ascii"))
        except AddressValueError:
            found = None
    if found is None or int(found[2] or b"0") >= _PORTS:
        raise Refused(400, "invalid_host", "The Host header is not a host name.")


def _read_target(target: bytes) -> tuple[bytes, str, bytes]:
    """The path as it is, the path decoded, the query."""
    match = _PATH.fullmatch(target)
    if match is None:
        raise Refused(400, "invalid_path", "The path is malformed.")
    raw, query = match[1], match[2] or b""
    decoded = unquote_to_bytes(raw)
    again = unquote_to_bytes(decoded)  # what software behind us would see that decodes twice
    if b"\\" in again or _CONTROL.search(again) or again.count(b"/") != raw.count(b"/"):
        raise Refused(400, "invalid_path", "The path hides a separator or a control byte.")
    segments = again.split(b"/")[1:]
    if b"" in segments[:-1]:
        raise Refused(400, "invalid_path", "The path has an empty segment.")
    if any(segment.partition(b";")[0] in (b".", b"..") for segment in segments):
        raise Refused(400, "invalid_path", "The path has a dot segment.")
    try:
        return raw, decoded.decode(), query
    except UnicodeDecodeError:
        raise Refused(400, "invalid_path", "The path is not UTF-8.") from None


def asked_for(raw: bytes | bytearray) -> str:
    """The path that a head seems to ask for, which may be anything; empty where there is none."""
    found = _ASKED.match(raw)
    return "" if found is None else found[1].decode("latin-1")


def check_path(raw_path: bytes) -> None:
    """Raises Refused for a path that two readers could take for two different ones."""
    _read_target(raw_path)


def _refuse_text(text: bytes) -> NoReturn:
    """Why a line is outside the grammar."""
    if b"\n" in text or b"\r" in text:
        message = "A line ends in something else than CR LF."
    elif text.startswith((b" ", b"\t")):
        message = "A header is folded over lines."
    else:
        message = "A line of the head is malformed."
    raise Refused(400, "invalid_request", message)


_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?")
_NEXT_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,7})\r\n").match
_MAX_SIZE_LINE = 256
_MAX_TRAILERS = 8 * 1024


class Chunks:
    """Decodes one chunked body. Extensions and trailers are checked and dropped."""

    __slots__ = ("_left", "_start", "_trailers", "_unread", "done", "rest")

    def __init__(self) -> None:
        self.done = False
        """The body has ended; ``rest`` is what came after it."""
        self.rest = b""
        self._unread = b""
        self._left = 0  # bytes that the current chunk still lacks
        self._start = True  # no chunk before, so no CR LF that would end it
        self._trailers = -1  # bytes of trailers seen, -1 before the last chunk

    @property
    def announced(self) -> int:
        """Bytes that are still to come of the chunk at hand."""
        return self._left

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the body in ``data``. Raises Refused."""
        if self._unread:
            data = self._unread + data
            self._unread = b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if not (self._left or self._start) and self._trailers < 0:
                at = self._whole_ones(data, at, pieces)
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                pieces.append(piece)
            elif (line_end := self._line_end(data, at)) >= 0:
                at = self._line(data, at, line_end)
            else:
                self._unread = data[at:]
                break
        if self.done:
            self.rest = data[at:]
        return pieces

    def _whole_ones(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Take the chunks that begin at ``at`` and are all there; where the next one begins.

        Nothing else is done here that is not done below: somebody may send them a byte long.
        """
        while (line := _NEXT_CHUNK(data, at)) is not None:
            start = line.end()
            end = start + int(line[1], 16)
            if end == start or end > len(data):
                break
            pieces.append(data[start:end])
            at = end
        return at

    def _line_end(self, data: bytes, at: int) -> int:
        """Where the framing line at ``at`` ends, -1 if it has not ended yet."""
        skip = 0
        if self._trailers < 0 and not self._start:
            if not b"\r\n".startswith(data[at : at + 2]):
                raise Refused(400, "invalid_framing", "A chunk is longer than it said.")
            skip = 2
        end = data.find(b"\r\n", at + skip)
        length = (end if end >= 0 else len(data)) - at
        if length > (_MAX_SIZE_LINE if self._trailers < 0 else _MAX_TRAILERS - self._trailers):
            raise Refused(400, "invalid_framing", "A chunk's size or trailer line is too long.")
        return end

    def _line(self, data: bytes, at: int, end: int) -> int:
        """Read one framing line; where the next thing begins."""
        if self._trailers < 0:
            match = _SIZE.fullmatch(data, at if self._start else at + 2, end)
            if match is None:
                raise Refused(400, "invalid_framing", "The size of a chunk is malformed.")
            self._start = False
            self._left = int(match[1], 16)
            if not self._left:
                self._trailers = 0
        elif end == at:
            self.done = True
        elif _TRAILER.fullmatch(data, at, end) is None:
            raise Refused(400, "invalid_framing", "A trailer is malformed.")
        else:
            self._trailers += end - at + 2
        return end + 2
