"""What a dialect's request takes from the client's, apart from the body: headers and path."""

from __future__ import annotations

from itertools import compress
from operator import itemgetter
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from passy_proxy.dialect import Untranslatable
from passy_proxy.keys import PREFIX
from passy_proxy.request_body import HOPS

if TYPE_CHECKING:
    from passy_proxy.exchange import Request
    from passy_proxy.records import Credential
    from passy_proxy.upstream import Upstream

Headers = list[tuple[bytes, bytes]]

_NAME = itemgetter(0)

JSON = (b"content-type", b"application/json")
IDENTITY = (b"accept-encoding", b"identity")
"""Usage can be read in answers that are not compressed, and only there."""

FIRST_HOP = (HOPS, b"1")

PRIVATE = frozenset(
    (
        b"accept-encoding",
        b"api-key",
        b"authorization",
        b"connection",
        b"content-length",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
        b"x-goog-api-key",
    )
)
"""Never passed on, whatever the configuration lists: the client's secrets and its connection."""
PRIVATE_PREFIXES = (b"x-stainless-", b"x-passy-", b"x-forwarded-", b"proxy-")

PATH_SAFE = "/%:@!$&'()*+,;=~-._"

IDEMPOTENT = frozenset(("GET", "HEAD"))

CONDITIONS = frozenset((b"range", b"if-range", b"if-none-match", b"if-modified-since"))
"""Which part of a stored file is asked for, or whether at all: for requests passed through."""


def headers_for(
    request: Request, upstream: Upstream, credential: Credential | None, kept: frozenset[bytes]
) -> Headers:
    """The headers for ``upstream``: its own, the client's that are ``kept``, and the credential."""
    if upstream.headers or upstream.forward_headers:
        kept = _narrowed(upstream, kept)
    theirs = request.headers
    passed = request.fields.get(HOPS)
    headers = [
        IDENTITY,
        FIRST_HOP if passed is None else next_hop(passed),
        *upstream.headers,
        *compress(theirs, map(kept.__contains__, map(_NAME, theirs))),
    ]
    if credential is not None:
        headers.append((upstream.auth_header, upstream.auth_prefix + credential.secret.encode()))
    return headers


def next_hop(passed: bytes) -> tuple[bytes, bytes]:
    """One more gateway; what is no number was refused before, if anybody looked."""
    return HOPS, b"%d" % (int(passed) + 1 if passed.isdigit() else 1)


def _narrowed(upstream: Upstream, kept: frozenset[bytes]) -> frozenset[bytes]:
    """``kept`` and what the upstream wants forwarded, less what it sets itself."""
    more = {
        name
        for name in upstream.forward_headers
        if name not in PRIVATE and not name.startswith(PRIVATE_PREFIXES)
    }
    return (kept | more).difference(name for name, _ in upstream.headers)


def path_below(request: Request, upstream: Upstream) -> bytes:
    """Where a request that is only passed through goes: the same path below the upstream's root."""
    path = upstream.paths.get(request.operation)
    if path is None:
        path = upstream.path + quoted(request.rest)
    return path + b"?" + request.query if request.query else path


def quoted(path: str) -> bytes:
    """A path for the request line; what is quoted already stays as it is. Raises Untranslatable for
    one that holds a client's key."""
    if PREFIX in unquote(path):
        raise Untranslatable("A key has no place in a URL.")
    return quote(path, PATH_SAFE).encode()


def declared_length(request: Request) -> int | None:
    """The ``content-length`` of a streamed upload; ``None`` for a body of unknown length."""
    if not request.streamed_upload:
        return None
    declared = request.header(b"content-length")
    return int(declared) if declared is not None and declared.isdigit() else None
