"""Units of an answer: what came from an upstream (Event) and what the gateway says itself
(Reply)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from passy_proxy import json


class Event:
    """One unit of the answer in the client's dialect: an SSE message, or the whole plain body.

    ``raw`` are the bytes ready for the client; meaning is read on demand, so an event that nobody
    looks at is never parsed.
    """

    __slots__ = ("__dict__", "data", "final", "raw")

    def __init__(self, raw: bytes, data: bytes | None = None, *, final: bool = False) -> None:
        self.raw = raw
        self.data = raw if data is None else data
        """The payload: the SSE message's data, or the body."""
        self.final = final

    @cached_property
    def json(self) -> Any:
        """The payload as JSON, or ``None`` where it is not (``[DONE]``, comments)."""
        try:
            return json.loads(self.data)
        except ValueError:
            return None


@dataclass(slots=True)
class Reply:
    """The gateway's own answer; the route's dialect gives it the client's error shape.

    ``code`` is stable and documented. ``body`` replaces the error shape (health, model lists).
    """

    status: int
    code: str
    message: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    type: str = ""
    """OpenAI's ``error.type``; empty means the usual one for the status."""
    param: str | None = None
    attempts: list[dict[str, object]] | None = None
    body: bytes | None = None
    content_type: bytes = b"application/json"


@dataclass(slots=True)
class Head:
    """Status and headers of an answer on its way down; ``on_response`` may edit both."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """What came from elsewhere, and what filters add: checked before it is sent."""
    lines: bytes = b""
    """The gateway's own, rendered, each with the end of its line. They are sent as they are, so
    nothing a client or an upstream wrote may get in unchecked."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt is no answer.

    ``kind``: ``connect``, ``pool``, ``timeout``, ``broken``, ``protocol`` (the transport's),
    ``status`` (a head that is not 2xx), ``stream`` (an error event before any content),
    ``refused`` (a filter said no), ``ejected`` (a filter passes the target over for now: it was not
    tried, and counts as no try).
    """

    kind: str
    message: str
    status: int = 0
    sent: bool = False
    """Bytes of the request may have reached the upstream."""
    after: float = 0.0
    """Seconds until it may be tried again, where that is known."""
    final: bool = False
    """The client's own retry would only add to the trouble."""
    reply: Reply | None = None
    """What the client is told, where nobody else answers: of a filter that refused."""
    param: str | None = None
    """What in the request is at fault, where that is known."""
