"""Reading the request's body: the core's own step in every chain, just before it is first
needed."""

from __future__ import annotations

from collections.abc import Awaitable

from passy_proxy.body import BadBody, read_head
from passy_proxy.body_large import LARGE, read_large
from passy_proxy.dialect import bodyless
from passy_proxy.downstream import BadUpload, BodyTimeout, BodyTooLarge
from passy_proxy.event import Reply
from passy_proxy.exchange import NO_HEAD, Exchange
from passy_proxy.keys import PREFIX
from passy_proxy.tasks import in_turns
from passy_proxy.units import size

HOPS = b"x-passy-hops"
"""How many gateways a request has passed."""
KEY_AS_MODEL = "The model holds a client key; that belongs into the Authorization header."


def read_body(ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
    """Fill ``request.body`` and ``request.head``; a Reply for a body that cannot be taken.

    A streamed upload is left unread: it is passed on as it arrives.
    """
    request = ex.request
    if HOPS in request.fields and (refusal := gone_round(ex)) is not None:
        return refusal
    if request.streamed_upload and not bodyless(request):
        return None
    body = ex.downstream.arrived(request.limit)
    return _awaited(ex) if body is None else _taken(ex, body)


def gone_round(ex: Exchange) -> Reply | None:
    """A Reply for a request that has passed too many gateways: one of them asks itself."""
    most = ex.snapshot.settings.connect.hops
    passed = ex.request.fields[HOPS]
    if passed.isdigit() and len(passed) < 4 and int(passed) < most:
        return None
    message = f"The request has passed {most} gateways; one of them is its own upstream."
    return Reply(508, "loop_detected", message, [(b"x-should-retry", b"false")])


async def _awaited(ex: Exchange) -> Reply | None:
    request = ex.request
    try:
        body = await ex.downstream.body(request.limit)
    except (BodyTooLarge, BodyTimeout) as exc:
        return body_refused(ex, exc)
    if len(body) <= LARGE or not request.operation:
        return _taken(ex, body)
    request.body = body
    try:
        request.head = head = await in_turns(read_large(body, ex.route.json_limits))
    except BadBody as exc:
        return _unreadable(exc)
    return _key_as_model(ex) if PREFIX in head.model else None


def _taken(ex: Exchange, body: bytes) -> Reply | None:
    request = ex.request
    request.body = body
    if request.operation:
        try:
            request.head = head = read_head(body, ex.route.json_limits)
        except BadBody as exc:
            return _unreadable(exc)
        if PREFIX in head.model:
            return _key_as_model(ex)
    return None


def _key_as_model(ex: Exchange) -> Reply:
    ex.request.head = NO_HEAD  # The books and the logs keep the name of a model.
    return Reply(400, "invalid_value", KEY_AS_MODEL, param="model")


def _unreadable(why: BadBody) -> Reply:
    code = "invalid_value" if why.param else "invalid_json"
    return Reply(400, code, str(why), param=why.param)


def body_refused(ex: Exchange, why: BodyTooLarge | BodyTimeout | BadUpload) -> Reply:
    """What the client hears of a body that is too large, comes too slowly, or is no upload."""
    if isinstance(why, BadUpload):
        return Reply(why.status, why.code, why.message)
    if isinstance(why, BodyTooLarge):
        limit = size(ex.request.limit)
        return Reply(413, "request_too_large", f"The body is larger than the limit of {limit}.")
    return Reply(
        408,
        "request_body_timeout",
        "The body arrived too slowly. Send it again.",
        [(b"x-should-retry", b"false")],
    )
