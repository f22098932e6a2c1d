"""What filters may make of heads, replies and requests: nothing that another reader of the bytes
could take for something else.

Names of headers are tokens and go out in lower case, since that is how they are compared; values
hold no line break and no NUL; how a body is framed is the edge's and the transport's to say. All of
these raise IllegalEdit. They look only at what a filter has touched.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from passy_proxy.event import Event, Head, Reply
from passy_proxy.records import Credential
from passy_proxy.transport import UpstreamRequest

if TYPE_CHECKING:
    from passy_proxy.attempt import Attempt
    from passy_proxy.exchange import Exchange

Headers = list[tuple[bytes, bytes]]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_BREAK = re.compile(rb"[\r\n\0]").search
_LINES = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*\r\n)*").fullmatch
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"trailer", b"upgrade"))
_OURS = _FRAMING | {b"host", b"connection"}
"""Of a request, what the transport writes itself."""
_TARGET = re.compile(rb"/[!-~]*").fullmatch


class IllegalEdit(Exception):
    """A filter left something that must not be sent."""


def legal(
    headers: Any,
    before: Sequence[tuple[bytes, bytes]] = (),
    reserved: frozenset[bytes] = _FRAMING,
) -> Headers:
    """``headers`` as they may be sent; those of ``before`` are not looked at again."""
    if not isinstance(headers, list | tuple):
        raise IllegalEdit(f"headers are a list, not {type(headers).__name__}")
    return [pair if pair in before else _legal_pair(pair, reserved) for pair in headers]


def _legal_pair(pair: Any, reserved: frozenset[bytes] = _FRAMING) -> tuple[bytes, bytes]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise IllegalEdit("a header is a pair of bytes")
    name, value = pair
    if type(name) is not bytes or type(value) is not bytes:
        raise IllegalEdit("the name and the value of a header are bytes")
    if _TOKEN(name) is None:
        raise IllegalEdit("the name of a header is not a token")
    if _BREAK(value) is not None:
        raise IllegalEdit("the value of a header holds a line break or NUL")
    name = name.lower()
    if name in reserved:
        raise IllegalEdit(f"{name.decode()} is not a filter's to set")
    return name, value


def _legal_status(status: Any) -> None:
    if type(status) is not int or not 200 <= status <= 599:
        raise IllegalEdit("a status is a number from 200 to 599")


def legal_reply(reply: Reply) -> None:
    """Looks at a whole reply, and writes the names of its headers as they are sent."""
    _legal_status(reply.status)
    if type(reply.code) is not str or type(reply.message) is not str:
        raise IllegalEdit("the code and the message of a reply are text")
    if reply.body is not None and type(reply.body) is not bytes:
        raise IllegalEdit("the body of a reply is bytes")
    _legal_pair((b"content-type", reply.content_type))
    if reply.headers:
        headers = legal(reply.headers)
        if headers != reply.headers:
            reply.headers = headers


def watched(hook: Callable[[Exchange, Head], Any]) -> Callable[[Exchange, Head], Any]:
    """``on_response`` of a filter that does not vouch for its headers: what it makes of the head is
    looked at, and undone if it cannot be sent or the filter fails."""

    def on_response(ex: Exchange, head: Head) -> Any:
        before = _Before(head)
        try:
            answer = hook(ex, head)
            if answer is not None and isinstance(answer, Awaitable):
                return on_response_awaited(answer, before)
            before.compare(head)
        except BaseException:
            before.restore(head)
            raise
        return None if answer is head else answer

    async def on_response_awaited(answer: Awaitable[Any], before: _Before) -> Any:
        head = before.head
        try:
            result = await answer
            before.compare(head)
        except BaseException:
            before.restore(head)
            raise
        return None if result is head else result

    return on_response


def watched_attempt(hook: Callable[[Exchange, Attempt], Any]) -> Callable[[Exchange, Attempt], Any]:
    """``on_attempt`` of a filter that does not vouch for what it makes of the request: the same."""

    def on_attempt(ex: Exchange, attempt: Attempt) -> Any:
        credential = attempt.credential
        try:
            answer = hook(ex, attempt)
            if answer is not None and isinstance(answer, Awaitable):
                return on_attempt_awaited(answer, attempt, credential)
            legal_attempt(attempt, credential)
        except BaseException:
            attempt.built, attempt.credential = None, credential
            raise
        return answer

    async def on_attempt_awaited(
        answer: Awaitable[Any], attempt: Attempt, credential: Credential | None
    ) -> Any:
        try:
            result = await answer
            legal_attempt(attempt, credential)
        except BaseException:
            attempt.built, attempt.credential = None, credential
            raise
        return result

    return on_attempt


class _Before:
    """A head as it was."""

    __slots__ = ("head", "headers", "lines", "status")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.status = head.status
        self.headers = head.headers[:]
        self.lines = head.lines

    def compare(self, head: Head) -> None:
        if head.status is not self.status:
            _legal_status(head.status)
        if head.headers != self.headers:
            head.headers = legal(head.headers, self.headers)
        lines = head.lines
        if lines is not self.lines and (type(lines) is not bytes or _LINES(lines) is None):
            raise IllegalEdit("the lines of a head are whole lines of headers")

    def restore(self, head: Head) -> None:
        head.status, head.headers, head.lines = self.status, self.headers, self.lines


def legal_events(events: Any) -> Sequence[Event]:
    """What an ``on_event`` returned. Raises TypeError where that cannot be sent."""
    if not isinstance(events, tuple | list):
        if asyncio.iscoroutine(events):
            events.close()
        raise TypeError(f"on_event returned {type(events).__name__}, which is no event")
    for event in events:
        if not isinstance(event, Event) or type(event.raw) is not bytes:
            raise TypeError("on_event left something other than events of bytes")
    return events


def legal_attempt(attempt: Attempt, credential: Credential | None) -> None:
    """Looks at what an ``on_attempt`` left: ``credential`` is the one from before it."""
    shown = attempt.credential
    if shown is not credential and shown is not None and not isinstance(shown, Credential):
        raise IllegalEdit(f"a credential is a Credential, not {type(shown).__name__}")
    request = attempt.built
    if request is None:
        return
    if not isinstance(request, UpstreamRequest):
        raise IllegalEdit("the request of an attempt is an UpstreamRequest")
    if type(request.method) is not str or _TOKEN(request.method.encode()) is None:
        raise IllegalEdit("a method is a token")
    if type(request.target) is not bytes or _TARGET(request.target) is None:
        raise IllegalEdit("the target of a request is a path, in bytes")
    if type(request.body) is not bytes and not isinstance(request.body, AsyncIterator):
        raise IllegalEdit("the body of a request is bytes, or an iterator of them")
    if request.length is not None and (type(request.length) is not int or request.length < 0):
        raise IllegalEdit("the length of a body is a number")
    request.headers = legal(request.headers, reserved=_OURS)
