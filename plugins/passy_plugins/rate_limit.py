"""Requests, tokens and concurrency per key, organisation, model or any mix of them.

Tokens are reserved on the way in, from the size of the prompt and the longest answer asked for, and
settled with what the answer really used. A limit of the key's own (or its organisation's) replaces the one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal, NamedTuple

from passy_proxy import Claim, Count, Counters, Exchange, Filter, Grant, Head, Limits, Rate, Reply
from passy_proxy import RateSetting, Room, Settings, StashKey, StoreUnavailable
from passy_proxy import duration, hookimpl, prompt_estimate, setting

Dimension = Literal["key", "organisation", "model"]

NO_LIMITS = Limits()
SUBJECT = {"requests": "requests", "tokens": "tokens", "concurrency": "requests at once"}


class Config(Settings):
    counters: Counters = setting(..., "The store that counts.")
    per: tuple[Dimension, ...] = setting(
        ("key",), "What is counted together: each distinct mix of these has its own counters."
    )
    requests: RateSetting | None = setting(None, "Requests, such as 60/min.")
    tokens: RateSetting | None = setting(None, "Tokens in and out, such as 100k/min.")
    concurrency: Count | None = setting(None, "Requests in flight at once.", ge=1)
    output_guess: Count = setting(
        256, "Output tokens reserved for a request that sets no maximum.", ge=0
    )
    when_unavailable: Literal["allow", "refuse"] = setting(
        "allow", "Without an answer from the store: let requests pass unlimited, or refuse them."
    )


class Held(NamedTuple):
    """What an exchange was granted: one kind of limit for each claim."""

    grant: Grant
    kinds: list[str]


HELD: StashKey[Held] = StashKey("rate_limit.held")


class RateLimit(Filter):
    name = "rate_limit"
    needs = frozenset({"principal", "body"})
    config: Config

    async def start(self) -> None:
        config = self.config
        self._own = Limits(config.requests, config.tokens, config.concurrency)
        self._by_key = config.per == ("key",)

    async def on_request(self, ex: Exchange) -> Reply | None:
        limits = self.limits(ex)
        claims: list[Claim] = []
        kinds: list[str] = []
        subject = self.subject(ex)
        if limits.requests is not None:
            claims.append(Claim("r" + subject, limits.requests, 1))
            kinds.append("requests")
        if limits.tokens is not None:
            cost = min(self.reservation(ex), limits.tokens.amount)
            claims.append(Claim("t" + subject, limits.tokens, cost))
            kinds.append("tokens")
        if limits.concurrency is not None:
            claims.append(Claim("c" + subject, limits.concurrency, 1))
            kinds.append("concurrency")
        if not claims:
            return None
        try:
            grant = await self.config.counters.take(claims)
        except StoreUnavailable:
            return self.undecided()
        if not grant.admitted:
            return refused(ex, kinds, grant)
        ex.stash[HELD] = Held(grant, kinds)
        return None

    def limits(self, ex: Exchange) -> Limits:
        """The key's own limits, each where it has one; else this filter's."""
        own = self._own
        theirs = ex.principal.limits if ex.principal else NO_LIMITS
        if theirs == NO_LIMITS:
            return own
        return Limits(
            theirs.requests or own.requests,
            theirs.tokens or own.tokens,
            theirs.concurrency or own.concurrency,
        )

    def subject(self, ex: Exchange) -> str:
        """What this exchange is counted under: one part per dimension, in the order of ``per``."""
        principal = ex.principal
        assert principal is not None
        if self._by_key:
            return ":" + principal.key_id
        part = {
            "key": principal.key_id,
            "organisation": principal.organisation or "",
            "model": ex.request.head.model,
        }
        return ":" + ":".join([part[dimension] for dimension in self.config.per])

    def reservation(self, ex: Exchange) -> int:
        """Tokens to hold back until the answer tells."""
        head = ex.request.head
        longest = self.config.output_guess if head.max_tokens is None else head.max_tokens
        return prompt_estimate(ex.request.body) + longest * max(1, head.n)

    def undecided(self) -> Reply | None:
        if self.config.when_unavailable == "allow":
            return None
        return Reply(
            503,
            "rate_limit_unavailable",
            "The rate limit cannot be checked now. Try again shortly.",
            [(b"retry-after", b"1")],
        )

    def on_response(self, ex: Exchange, head: Head) -> None:
        held = ex.stash.get(HELD)
        if held is not None:
            show(ex, head, held.kinds, held.grant.rooms)

    async def on_complete(self, ex: Exchange) -> None:
        held = ex.stash.get(HELD)
        if held is None:
            return
        usage = ex.usage
        used = usage.input + usage.output if usage else 0
        actual = [used if kind == "tokens" else None for kind in held.kinds]
        try:
            await self.config.counters.settle(held.grant, actual)
        except StoreUnavailable:
            self.log.warning("rate_limit_unsettled", request_id=ex.id)


def refused(ex: Exchange, kinds: Sequence[str], grant: Grant) -> Reply:
    """429, with the truth about when to come back."""
    kind, room = max(zip(kinds, grant.rooms, strict=True), key=lambda pair: pair[1].retry)
    wait_ms = max(1, ceil(room.retry * 1000))
    message = (
        f"Rate limit reached: {SUBJECT[kind]}, limit {room.limit}. "
        f"Try again in {duration(wait_ms / 1000)}."
    )
    head = Head(429, [])
    show(ex, head, kinds, grant.rooms)
    head.headers += (
        (b"retry-after", b"%d" % ceil(wait_ms / 1000)),
        (b"retry-after-ms", b"%d" % wait_ms),
    )
    return Reply(429, "rate_limit_exceeded", message, head.headers)


def show(ex: Exchange, head: Head, kinds: Sequence[str], rooms: Sequence[Room]) -> None:
    """The key's own numbers, in place of any the provider sent."""
    dialect = ex.route.dialect
    prefix = dialect.limit_prefix
    headers = [pair for pair in head.headers if not pair[0].startswith(prefix)]
    for kind, room in zip(kinds, rooms, strict=True):
        if kind != "concurrency":
            headers += dialect.limit_lines(kind, room, ex.at)
    head.headers = headers


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [RateLimit]
