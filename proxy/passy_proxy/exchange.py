"""The nouns of the whole system: one request, and everything that becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from operator import attrgetter
from random import getrandbits
from time import monotonic, time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from passy_proxy import json
from passy_proxy.body import Head as BodyHead
from passy_proxy.dialect import Untranslatable
from passy_proxy.downstream import Downstream
from passy_proxy.event import Head, Reply
from passy_proxy.multipart import counted, is_multipart
from passy_proxy.records import Principal, Usage
from passy_proxy.stash import Stash

if TYPE_CHECKING:
    from passy_proxy.attempt import Attempt
    from passy_proxy.config.snapshot import Snapshot
    from passy_proxy.evidence import Seal
    from passy_proxy.filter import Filter
    from passy_proxy.framing import RequestHead
    from passy_proxy.route import Route
    from passy_proxy.upstream import Target


UNQUOTED = "/:@!$&'()*+,;=~-._"


def new_id(at: float) -> str:
    """A request's id: sorts by ``at`` (Unix seconds), unique for ever."""
    return f"req_{int(at * 1000):012x}{getrandbits(80):020x}"


def below(raw_path: bytes, path: str, root: int) -> str:
    """``path`` from ``root`` on, quoted as it came; ``raw_path`` is no path where it is unknown."""
    raw = raw_path.partition(b"?")[0].decode("ascii", "replace")
    as_it_came = raw.startswith("/") and raw.startswith(path[:root])
    return raw[root:] if as_it_came else quote(path[root:], UNQUOTED)


class Outcome:
    """How an exchange ended. ``kind`` is one of the seven below; ``code`` says more for replies."""

    __slots__ = ("code", "kind")

    def __init__(self, kind: str, code: str = "") -> None:
        self.kind = kind
        self.code = code

    def __repr__(self) -> str:
        return f"Outcome({self.kind}{':' + self.code if self.code else ''})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outcome) and (self.kind, self.code) == (other.kind, other.code)

    def __hash__(self) -> int:
        return hash((self.kind, self.code))

    @classmethod
    def replied(cls, code: str) -> Outcome:
        return cls("replied", code)


PENDING = Outcome("pending")
OK = Outcome("ok")
UPSTREAM_BROKEN = Outcome("upstream_broken")
CLIENT_GONE = Outcome("client_gone")
CLIENT_STALLED = Outcome("client_gone", "write_timeout")
INTERNAL_ERROR = Outcome("internal_error", "internal_error")
FILTER_FAILED = Outcome("internal_error", "filter_failed")
SHUTDOWN = Outcome("shutdown")

NO_HEAD = BodyHead("", False, False, None, 1, 0, False)


class Request:
    """The client's request, never edited: each attempt starts from it."""

    __slots__ = (
        "_json",
        "_told",
        "body",
        "downstream",
        "fields",
        "head",
        "headers",
        "limit",
        "method",
        "operation",
        "parts",
        "path",
        "query",
        "raw_path",
        "root",
        "streamed_upload",
    )

    def __init__(self, head: RequestHead, downstream: Downstream) -> None:
        line = head.line
        self.method = line.method
        self.path = line.path
        self.query = line.query
        self.headers, self.fields = head.public or head.concealed()
        """Lower-case names, as they came, repeated ones too; and the same by name, of repeated ones
        the first. Without those that show who the client is, see `credentials`."""
        self._told = head.fields
        self.raw_path = line.raw_path
        """The path as it came; no path where that is not known."""
        self.root = 0
        """Length of the part of the path (``/v1``) that pass-through routes drop."""
        self.downstream = downstream
        self.body = b""
        """Read before the first filter that needs it; empty for a streamed upload."""
        self.head: BodyHead = NO_HEAD
        """``model``, ``stream`` and their like, read from the body without parsing the rest."""
        self.operation = ""
        """``chat``, ``embeddings``, ``messages`` …; empty on routes that only pass through."""
        self.limit = 0
        """Largest body accepted, in bytes."""
        self.parts = 0
        """Most parts of a multipart upload; 0 is any number."""
        self.streamed_upload = False
        self._json: Any = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header ``name`` (lower case)."""
        return self.fields.get(name)

    @property
    def rest(self) -> str:
        """The path below the API's root, quoted, as pass-through routes send it on."""
        return below(self.raw_path, self.path, self.root)

    @property
    def json(self) -> Any:
        """The body parsed, once, on first use. Filters read it and never change it. Raises
        Untranslatable: not all that is JSON can be a value here (a number of 400 digits)."""
        if self._json is None:
            try:
                self._json = json.loads(self.body)
            except ValueError as exc:
                raise Untranslatable(f"The body cannot be read whole: {exc}.") from None
        return self._json

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives, for uploads that are passed on as a stream. Raises BadUpload."""
        pieces = self.downstream.pieces(self.limit)
        kind = self.fields.get(b"content-type", b"")
        return counted(pieces, kind, self.parts) if self.parts and is_multipart(kind) else pieces


def credentials(filter: Filter) -> Callable[[Request], Mapping[bytes, bytes]]:
    """Reads all headers of a request by name, those too that show who the client is.

    Only for a filter that declares to need ``credentials``; raises LookupError otherwise.
    """
    if "credentials" not in filter.needs:
        raise LookupError(f"{filter.name} does not declare to need credentials")
    return attrgetter("_told")


class Exchange:
    """One downstream request and everything that becomes of it."""

    __slots__ = (
        "at",
        "attempts",
        "depth",
        "downstream",
        "drains",
        "ended",
        "gone",
        "head",
        "id",
        "outcome",
        "principal",
        "reply",
        "request",
        "route",
        "seal",
        "snapshot",
        "started",
        "stash",
        "status",
        "targets",
        "task",
        "usage",
        "written_at",
    )

    def __init__(
        self, snapshot: Snapshot, route: Route, request: Request, downstream: Downstream
    ) -> None:
        self.at = time()
        """Unix seconds of arrival, for the books."""
        self.started = monotonic()
        """Seconds of the monotonic clock, for durations."""
        self.id = new_id(self.at)
        """Sortable by time, unique for ever, and sent back as ``x-request-id``."""
        self.snapshot = snapshot
        self.route = route
        self.request = request
        request.operation = route.operation
        request.limit = route.body_limit
        request.streamed_upload = route.streamed_upload
        request.parts = route.parts
        request.root = route.root
        self.downstream = downstream
        self.principal: Principal | None = None
        self.targets: Sequence[Target] = ()
        """Who could answer, in order of preference."""
        self.attempts: list[Attempt] = []
        """Who was asked."""
        self.usage: Usage | None = None
        """Tokens, once the answer told them."""
        self.outcome = PENDING
        self.reply: Reply | None = None
        """The gateway's own answer, where it gave one."""
        self.head: Head | None = None
        """The head sent to the client, once it was."""
        self.status = 0
        self.stash = Stash()
        self.seal: Seal | None = None
        """Watches the bytes of both sides, where the books shall know them."""
        self.depth = 0
        """How many filters were entered."""
        self.ended = False
        """``on_end`` was called: the outcome is final."""
        self.drains = False
        """Go on without the client, should it leave: to hear from the upstream what it cost."""
        self.gone = False
        """The client hung up while the chain ran."""
        self.task: asyncio.Task[Any] | None = None
        """The task the chain runs in, while it runs."""
        self.written_at = 0.0
        """Monotonic seconds of the first byte of the answer."""

    def conclude(self, outcome: Outcome) -> None:
        """How it ended, unless that is settled."""
        if not self.ended:
            self.outcome = outcome

    def hang_up(self) -> None:
        """The edge's call when the client leaves: stop whatever the exchange waits for, unless it
        ``drains``."""
        self.gone = True
        if self.task is not None and not self.drains:
            self.task.cancel()
