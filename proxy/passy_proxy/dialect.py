"""Dialects: pure translation between a provider's shapes and the client's.

No I/O, no clock, no logging; the same request may be translated for three targets. The hub is
OpenAI's chat shape: a dialect knows itself and the hub. Where both sides speak the same dialect,
bytes pass through, including fields nobody here has heard of.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Protocol

from passy_proxy.event import Reply
from passy_proxy.records import Credential, Usage
from passy_proxy.stores import Room
from passy_proxy.transport import UpstreamRequest

if TYPE_CHECKING:
    from passy_proxy.exchange import Request
    from passy_proxy.upstream import Target


WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


class Untranslatable(Exception):
    """The request cannot be said in the upstream's dialect; the message tells the client why."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Tap(Protocol):
    """Watches, and where needed translates, one answer on its way to the client.

    ``feed`` takes bytes as they came off the socket and gives the bytes for the client: the very
    same object where nothing is to change. Findings are filled in on the way.
    """

    usage: Usage | None
    """What the upstream said; the last word counts."""
    model: str
    """The model that answered, empty until known."""

    @property
    def finish_reason(self) -> str: ...

    text_bytes: int
    """Bytes of generated text seen so far, the ground of an estimate."""
    done: bool
    """The dialect's own end was seen (``[DONE]``, ``message_stop``, a whole JSON body)."""
    error: str
    """An error event inside a 200 answer: its message. Empty when there was none."""
    doubt: bytes
    """The usage as it was told, where something in it is no number of tokens; empty otherwise."""

    @property
    def midway(self) -> bool:
        """The client has the beginning of a message and not its end."""
        ...

    def whole(self, data: bytes) -> bytes:
        """A complete plain answer in one piece: what ``feed`` and ``finish`` give and find."""
        ...

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes:
        """The upstream's answer ended cleanly: bytes still held back, or the end the client
        expects."""
        ...


class Dialect(Protocol):
    """One provider family's way of speaking. ``spoken`` is the client's dialect's name."""

    name: str
    auth_header: bytes
    auth_prefix: bytes
    """How a credential is shown, unless the upstream's settings say otherwise."""
    models_path: bytes
    """Where the list of models is, below an upstream's base URL."""

    def limit_lines(self, rooms: Iterable[tuple[str, Room]], now: float) -> bytes:
        """The header lines that tell what is left of ``requests`` and ``tokens``; ``now`` in Unix
        seconds."""
        ...

    def request(
        self,
        request: Request,
        target: Target,
        credential: Credential | None,
        spoken: str,
    ) -> UpstreamRequest:
        """The request for ``target``, from the pristine one. Raises Untranslatable."""
        ...

    def tap(self, request: Request, streamed: bool, spoken: str) -> Tap:
        """A tap for an answer of 2xx to ``request``: SSE (``streamed``) or a plain body."""
        ...

    def dropped(self, request: Request, spoken: str) -> tuple[str, ...]:
        """Names of the parameters that ``request()`` could not carry."""
        ...

    def problem(self, status: int, body: bytes, spoken: str) -> bytes:
        """A provider's error body in the client's shape; unchanged where both speak the same."""
        ...

    def head(self, request_id: str, elapsed_ms: int) -> bytes:
        """The header lines that every answer in this dialect carries."""
        ...

    def reply(self, reply: Reply, request_id: str) -> tuple[int, bytes]:
        """The gateway's own answer in this dialect's error shape: status and JSON body."""
        ...

    def broken(self, message: str, code: str, request_id: str) -> bytes:
        """An SSE error event: how a stream that cannot go on tells its client so."""
        ...


def uploaded(request: Request) -> bytes | AsyncIterator[bytes]:
    """The body to pass on unchanged: bytes, or the pieces of a streamed upload."""
    if not request.streamed_upload:
        return request.body
    return b"" if bodyless(request) else request.pieces()


def bodyless(request: Request) -> bool:
    """Whether an upload is none: a GET that announces no body is sent on without framing."""
    announced = request.fields.get(b"content-length")
    if announced is not None:
        return not announced.strip(b"0")
    return request.method not in WITH_BODY and b"transfer-encoding" not in request.fields
