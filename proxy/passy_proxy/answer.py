"""The heads of answers: which of an upstream's headers pass, and which the gateway adds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress, islice
from math import ceil
from operator import itemgetter
from time import monotonic

from passy_proxy.attempt import Attempt
from passy_proxy.event import Head, Reply
from passy_proxy.exchange import Exchange
from passy_proxy.framing import unnamed

Headers = list[tuple[bytes, bytes]]
NAME = itemgetter(0)

HOP_BY_HOP = (
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
)
OURS = (b"content-length", b"server", b"date", b"cache-control", b"x-accel-buffering")
ACCOUNT = (
    b"set-cookie",
    b"set-cookie2",
    b"openai-organization",
    b"openai-project",
    b"anthropic-organization-id",
    b"anthropic-workspace-id",
    b"x-account-id",
    b"x-organization-id",
    b"x-org-id",
    b"x-project-id",
    b"x-team-id",
    b"x-user-id",
)
"""What would tell one tenant about the account it shares with others."""
ORIGIN = (
    b"alt-svc",
    b"strict-transport-security",
    b"report-to",
    b"nel",
    b"access-control-allow-origin",
    b"location",
    b"openai-version",
)
"""What is true of the upstream's origin and not of ours."""

ENDING = (*HOP_BY_HOP, *OURS, *ACCOUNT, *ORIGIN)
"""Upstream headers that end here."""

RENAMED = {
    b"x-request-id": b"x-upstream-request-id",
    b"request-id": b"x-upstream-request-id",
    b"openai-processing-ms": b"x-upstream-processing-ms",
}
"""Upstream header → its name downstream, where ours has that name already."""


class _Passing(dict[bytes, bool]):
    """Upstream header → whether it goes on as it is: all do that are not listed above.

    Those seen are remembered, some of them, so that the usual ones are told apart without a call.
    """

    MOST = 1_000

    def __missing__(self, name: bytes) -> bool:
        if len(self) < self.MOST:
            self[name] = True
        return True


PASSING = _Passing(dict.fromkeys((*ENDING, *RENAMED), False))

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")

DESCRIBING = (b"content-type", b"content-encoding", b"etag", b"digest")
"""What is true of a body only as long as it is not made anew."""

TOLD = (
    b"x-passy-upstream: %b\r\n"
    b"x-passy-attempts: %d\r\n"
    b"x-passy-upstream-ms: %d\r\n"
    b"x-passy-overhead-ms: %.1f\r\n"
    b"x-passy-config: %b\r\n"
)

STREAM = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def carried(headers: Headers, fields: Mapping[bytes, bytes]) -> Headers:
    """The upstream's headers that go on to the client; ``fields`` are the same by name."""
    if b"connection" in fields:
        named = b",".join([value for name, value in headers if name == b"connection"])
        if named.lower() not in (b"keep-alive", b"close"):
            headers = unnamed(headers, named)
    passing = list(compress(headers, map(PASSING.__getitem__, map(NAME, headers))))
    if not RENAMED.keys().isdisjoint(fields):
        passing += [(RENAMED[name], value) for name, value in headers if name in RENAMED]
    return passing


def relayed_head(ex: Exchange, attempt: Attempt) -> Head:
    """The head of an upstream's answer, as the client gets it."""
    leg = attempt.leg
    assert leg is not None
    headers = attempt.veiled(carried(leg.headers, attempt.fields))
    elapsed = monotonic() - ex.started
    upstream = attempt.head_at - attempt.started
    waited = upstream if len(ex.attempts) == 1 else sum(map(to_head, ex.attempts))
    lines = ex.route.dialect.head(ex.id, int(elapsed * 1000)) + TOLD % (
        attempt.target.header,
        made(ex),
        upstream * 1000,
        (elapsed - waited) * 1000,
        ex.snapshot.hash,
    )
    if attempt.streamed:
        headers += STREAM
    if attempt.dropped:
        headers.append((b"x-passy-dropped", named(attempt.dropped)))
    if not attempt.whole and attempt.failure is None and ex.request.method == "HEAD":
        # It tells the length of what a GET would bring; there is no body here to be counted.
        headers += [pair for pair in leg.headers if pair[0] == b"content-length"]
    return Head(leg.status, headers, lines)


def to_head(attempt: Attempt) -> float:
    """Seconds spent waiting for the head of an upstream's answer."""
    return attempt.head_at - attempt.started


def named(parameters: Iterable[str]) -> bytes:
    """Names of the client's own choice as a header's value: no other byte of theirs, no more than
    a line of them."""
    kept = [NOT_IN_NAMES.sub("", name)[:64] for name in islice(parameters, 32)]
    return ", ".join(filter(None, kept)).encode()


def problem_head(ex: Exchange, attempt: Attempt) -> Head:
    """The head of an upstream's refusal, whose body is JSON by now, whatever it was."""
    head = relayed_head(ex, attempt)
    assert attempt.failure is not None
    head.status = attempt.failure.status
    if head.status >= 400:
        kept = [pair for pair in head.headers if pair[0] not in DESCRIBING]
        if attempt.failure.final or made(ex) > 1:
            # We have tried again ourselves; a client's retry only adds to it.
            kept = [pair for pair in kept if pair[0] != NO_RETRY[0]] + [NO_RETRY]
        head.headers = [*kept, (b"content-type", b"application/json")]
    return head


def replied_head(ex: Exchange, reply: Reply) -> tuple[Head, bytes]:
    """Head and body of the gateway's own answer."""
    if reply.body is None:
        status, body = ex.route.dialect.reply(reply, ex.id)
    else:
        status, body = reply.status, reply.body
    lines = ex.route.dialect.head(ex.id, int((monotonic() - ex.started) * 1000))
    lines += b"x-passy-config: %b\r\n" % ex.snapshot.hash
    if ex.attempts:
        lines += b"x-passy-attempts: %d\r\n" % made(ex)
    return Head(status, [(b"content-type", reply.content_type), *reply.headers], lines), body


NO_RETRY = (b"x-should-retry", b"false")


def made(ex: Exchange) -> int:
    """How many tries there were: a target that was passed over was not asked."""
    attempts = ex.attempts
    if len(attempts) == 1 and attempts[0].failure is None:
        return 1
    return sum(not passed_over(one) for one in attempts)


def passed_over(attempt: Attempt) -> bool:
    """Whether a filter kept the target from being tried at all."""
    return attempt.failure is not None and attempt.failure.kind == "ejected"


def single(ex: Exchange) -> bool:
    """Whether all tries were at one target."""
    tried = [one for one in ex.attempts if not passed_over(one)]
    return all(one.target is tried[0].target for one in tried)


def failed_reply(ex: Exchange) -> Reply:
    """What the client hears when every attempt failed without an answer of its own to pass on."""
    last = ex.attempts[-1]
    failure = last.failure
    assert failure is not None
    if not made(ex):
        return resting(ex)
    if failure.reply is not None:
        return failure.reply
    once, alone = made(ex) == 1, single(ex)
    if failure.kind == "untranslatable" and alone:
        return Reply(400, "unsupported_parameter", failure.message, param=failure.param)
    tried = list(told(ex))
    # The same here, and when the one try may have been billed.
    sent = any(one.failure and one.failure.sent for one in ex.attempts)
    headers = [] if once and not sent else [NO_RETRY]
    named = last.target.fallback_on or ()
    if failure.kind == "timeout" and alone and "timeout" not in named:
        message = f"{last.target.label} did not answer in time: {failure.message}"
        return Reply(504, "upstream_timeout", message, headers, attempts=tried)
    reasons = "; ".join(f"{one['provider']}: {one['reason']}" for one in tried)
    unasked = {target.label for target in ex.targets} - {one.target.label for one in ex.attempts}
    message = f"{'No provider answered' if unasked else 'All providers failed'}: {reasons}"
    return Reply(502, "upstream_error", message, headers, "provider_error", attempts=tried)


def resting(ex: Exchange) -> Reply:
    """Nobody was asked: everybody has failed too often, and has been given a rest."""
    after = min(one.failure.after for one in ex.attempts if one.failure)
    message = "Every provider of this model has failed too often and is left alone for a while."
    headers = [(b"retry-after", b"%d" % max(ceil(after), 1))]
    return Reply(503, "no_healthy_target", message, headers, attempts=list(told(ex)))


def told(ex: Exchange) -> Iterator[dict[str, object]]:
    """The attempts, which failed, as the error tells the client."""
    following = (*(attempt.started for attempt in ex.attempts[1:]), monotonic())
    for attempt, end in zip(ex.attempts, following, strict=True):
        failure = attempt.failure
        after_head = attempt.status and failure is not None and failure.kind != "status"
        yield {
            "provider": attempt.target.upstream.name,
            "model": attempt.target.model,
            "status": attempt.status or None,
            "reason": failure.message if failure else "",
            "ms": round(((end if after_head else attempt.head_at) - attempt.started) * 1000),
        }
