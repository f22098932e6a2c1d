"""A record of the books in words and in parts of time, for pages and for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from passy_proxy.meanings import OUTCOMES, REPLIES
from passy_proxy.records import AttemptRecord, UsageRecord

Ending = Literal["ok", "refused", "failed", "left"]
"""As the sums have it: ``refused`` is a 4xx, ``left`` the client did, ``failed`` all else but
``ok``."""

INTERRUPTED = "interrupted"
NOTHING: Mapping[str, str] = MappingProxyType({})
FLAGS = {
    "UC": "The connection to a provider failed, or broke off.",
    "UT": "A provider did not answer in time.",
    "UO": "A provider was passed over: it had failed too often, or all its connections were busy.",
    "UH": "No provider of the model could be asked.",
    "FB": "It fell back: more than one target was asked.",
    "RL": "A limit on requests, tokens or concurrency refused it.",
    "BL": "A budget refused it.",
    "LR": "The gateway answered by itself.",
    "DC": "The client left before the end.",
}
"""After Envoy's response flags."""
_OF_FAILURES = {
    "connect": "UC",
    "broken": "UC",
    "protocol": "UC",
    "timeout": "UT",
    "pool": "UO",
    "ejected": "UO",
}
_OF_CODES = {
    "client_gone": "DC",
    "write_timeout": "DC",
    "upstream_broken": "UC",
    "rate_limit_exceeded": "RL",
    "insufficient_quota": "BL",
    "no_healthy_target": "UH",
}
_REASONS = {
    "connect": "no connection could be made",
    "pool": "all connections to it stayed busy",
    "timeout": "it was too slow",
    "broken": "the connection broke off",
    "protocol": "what it sent is no HTTP",
    "status": "it answered with an error",
    "stream": "its stream began with an error",
    "refused": "a filter said no; it was not asked",
    "ejected": "it had failed too often and is left alone for a while; it was not asked",
    "untranslatable": "its dialect has no counterpart for the request; it was not asked",
    INTERRUPTED: "the gateway's process ended meanwhile",
    "failed": "how is not known: the gateway's process ended meanwhile",
}
_LINK = re.compile(r" \(see \[[^]]*\]\([^)]*\)\)|\[([^]]*)\]\([^)]*\)")


def ending(record: UsageRecord) -> Ending:
    """How it ended, in one of four words."""
    if record.outcome == "client_gone":
        return "left"
    if record.outcome == "ok" and record.status < 400:
        return "ok"
    return "refused" if 400 <= record.status <= 499 else "failed"


def flags(record: UsageRecord) -> tuple[str, ...]:
    """What went otherwise than usual: some of `FLAGS`."""
    found = [_OF_FAILURES.get(kind(attempt)) for attempt in record.attempts]
    if len({attempt[:2] for attempt in record.attempts}) > 1:
        found.append("FB")
    if record.outcome in _OF_CODES:
        found.append(_OF_CODES[record.outcome])
    elif record.outcome in REPLIES and record.outcome not in OUTCOMES:
        found.append("LR")
    return tuple(dict.fromkeys(flag for flag in found if flag))


def meaning(record: UsageRecord, names: Mapping[str, str] = NOTHING) -> str:
    """A sentence on how it ended; with code in backticks. ``names``: what people call upstreams."""
    if ending(record) == "ok" and len(record.attempts) > 1:
        upstream, count = record.attempts[-1].upstream, len(record.attempts) - 1
        failed = "one try that failed" if count == 1 else f"{count} tries that failed"
        return f"Answered by {names.get(upstream, upstream)}, after {failed}."
    if record.outcome == INTERRUPTED:
        return (
            "The gateway's process ended before the exchange did. Tokens are a guess of the"
            " prompt's: the provider may have been asked."
        )
    known = OUTCOMES.get(record.outcome) or REPLIES.get(record.outcome)
    if known is None:
        return "A filter of yours answered: the code is its own."
    return _LINK.sub(lambda found: found[1] or "", known)


def kind(attempt: AttemptRecord) -> str:
    """What sort of failure it was; empty for the try that answered."""
    return attempt.failure.partition(":")[0]


def detail(attempt: AttemptRecord) -> str:
    """What was said of the failure, where it is more than the status."""
    _, _, said = attempt.failure.partition(": ")
    return "" if said == f"status {attempt.status}" else said


def reason(attempt: AttemptRecord) -> str:
    """The failure in words; empty for the try that answered."""
    return _REASONS.get(kind(attempt), kind(attempt))


def route(attempts: Sequence[AttemptRecord], names: Mapping[str, str] = NOTHING) -> str:
    """``openai✗429 → anthropic✓``."""
    return " → ".join(f"{names.get(each.upstream, each.upstream)}{mark(each)}" for each in attempts)


def mark(attempt: AttemptRecord) -> str:
    """``✓``, or ``✗`` with the status or the sort of failure."""
    if not attempt.failure:
        return "✓"
    if kind(attempt) == "status" and attempt.status:
        return f"✗{attempt.status}"
    return f"✗{kind(attempt)}"


class Part(NamedTuple):
    """A part of an attempt's time, in milliseconds since the exchange began."""

    name: Literal["queue", "connect", "head", "stream", "failed"]
    start: int
    end: int


def parts(record: UsageRecord, place: int) -> list[Part]:
    """What an attempt spent its time with, as far as it was measured: in the queue for a
    connection, making one, waiting for the head of the answer (``failed`` if none that is good
    came), and the answer itself."""
    attempt = record.attempts[place]
    at, end = attempt.started_ms, attempt.started_ms + attempt.head_ms
    found = []
    for name, took in (("queue", attempt.queue_ms), ("connect", attempt.connect_ms)):
        if took > 0:
            found.append(Part(name, at, min(at + took, end)))  # type: ignore[arg-type]  # one of the names
            at = min(at + took, end)
    if attempt.failure:
        found.append(Part("failed", at, end))
    else:
        found.append(Part("head", at, end))
        if place == len(record.attempts) - 1 and record.duration_ms > end:
            found.append(Part("stream", end, record.duration_ms))
    return found


def end_of(record: UsageRecord) -> int:
    """Milliseconds from the beginning to the end of all that is known of it."""
    ends = [attempt.started_ms + attempt.head_ms for attempt in record.attempts]
    return max([record.duration_ms, record.first_ms, *ends, 1])


_TIME = re.compile(r" ([^ =]+)=([0-9]+\.[0-9]{3})(?= |$)")


class Took(NamedTuple):
    """One filter of an exchange that was timed."""

    filter: str
    ms: float


def what_ran(attempt: AttemptRecord) -> tuple[str, list[Took]]:
    """Chain and hash, and apart from that what each filter took, where that was timed."""
    chain, at, rest = attempt.ran.rpartition("@")  # Names of chains may have spaces.
    took = [Took(name, float(ms)) for name, ms in _TIME.findall(rest)]
    return f"{chain}{at}{rest.partition(' ')[0]}", took


def attempts_of(record: UsageRecord) -> list[AttemptRecord]:
    """Its attempts, of which ``ran`` tells chain and hash alone."""
    return [attempt._replace(ran=what_ran(attempt)[0]) for attempt in record.attempts]


def filters_of(record: UsageRecord) -> list[Took]:
    """What each filter took; nothing where that was not timed."""
    return what_ran(record.attempts[-1])[1] if record.attempts else []
