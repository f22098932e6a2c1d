"""Requests, tokens and concurrency per key, organisation, model or any mix of them.

Tokens are reserved on the way in, from the size of the prompt and the longest answer asked for, and
settled with what the answer really used. A key's own limits are counted for that key; where this
filter counts keys they replace its limits, elsewhere (``per: [organisation]``) both hold.

A counter's name holds its rate, so a chain may limit the same key twice (10/s and 1000/day), and
two chains with limits of their own do not spend each other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, inf
from operator import itemgetter
from typing import Literal, NamedTuple

from passy_proxy import (
    Claim,
    Count,
    Counters,
    Exchange,
    Filter,
    Grant,
    Head,
    Limits,
    Principal,
    Rate,
    RateSetting,
    Reply,
    Room,
    Settings,
    StashKey,
    StoreUnavailable,
    duration,
    hookimpl,
    prompt_estimate,
    setting,
)

Dimension = Literal["key", "organisation", "model"]

NAME = itemgetter(0)
NO_LIMITS = Limits()
REMEMBERED = 10_000
_new = tuple.__new__
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


class Measure(NamedTuple):
    """One limit to be held: its kind, what its counters' names begin with, how much it is."""

    kind: str
    prefix: str
    limit: Rate | int


class Counted(NamedTuple):
    """What exchanges of a key are counted under: name, limit, whether tokens; and the kinds."""

    principal: Principal
    counters: list[tuple[str, Rate | int, bool]]
    kinds: list[str]


class Held(NamedTuple):
    """What an exchange was granted: one kind of limit for each claim."""

    grant: Grant
    kinds: list[str]


OWN: StashKey[bool] = StashKey("rate_limit.own")
"""The key's own limits are counted, by this filter or one before it."""
SHOWN: StashKey[dict[str, Room]] = StashKey("rate_limit.shown")
"""What the client is told of each kind: the one with least room."""


class RateLimit(Filter):
    name = "rate_limit"
    needs = frozenset({"principal", "body"})
    config: Config

    async def start(self) -> None:
        config = self.config
        self._own = Limits(config.requests, config.tokens, config.concurrency)
        self._measures = lru_cache(1_000)(measures)
        self._always = measures(self._own)
        self._mix = "+".join(config.per) + ":"
        self._by_key = config.per == ("key",)
        self._guess = config.output_guess
        self._counted: dict[str, Counted] = {}
        self._held: StashKey[Held] = StashKey("rate_limit.held")

    async def on_request(self, ex: Exchange) -> Reply | None:
        principal = ex.principal
        assert principal is not None
        known = self._counted.get(principal.key_id)
        if known is None or known.principal is not principal:
            known = self.counted(ex, principal)
        claims = [
            _new(Claim, (key, limit, self.reservation(ex, limit) if tokens else 1))
            for key, limit, tokens in known.counters
        ]
        if not claims:
            return None
        kinds = known.kinds
        try:
            grant = await self.config.counters.take(claims)
        except StoreUnavailable:
            return self.undecided()
        if not grant.admitted:
            return refused(ex, kinds, grant)
        ex.stash[self._held] = Held(grant, kinds)
        return None

    def counted(self, ex: Exchange, principal: Principal) -> Counted:
        """The counters of an exchange; remembered where they are the same for each of a key's."""
        theirs = principal.limits
        if theirs == NO_LIMITS:
            held = [(self.subject(ex), self._always)]
        else:
            held = [(self.subject(ex), self._measures(self.beside(theirs)))]
            if OWN not in ex.stash:
                ex.stash[OWN] = True
                held.append(("key:" + principal.key_id, self._measures(theirs)))
        found = [
            (kind, prefix + subject, limit)
            for subject, all_ in held
            for kind, prefix, limit in all_
        ]
        known = Counted(
            principal,
            [(key, limit, kind == "tokens") for kind, key, limit in found],
            [kind for kind, _, _ in found],
        )
        if self._by_key and theirs == NO_LIMITS:
            if len(self._counted) >= REMEMBERED:
                self._counted.clear()
            self._counted[principal.key_id] = known
        return known

    def beside(self, theirs: Limits) -> Limits:
        """This filter's limits for a key that has some of its own."""
        own = self._own
        if "key" not in self.config.per:
            return own
        return Limits(
            own.requests if theirs.requests is None else None,
            own.tokens if theirs.tokens is None else None,
            own.concurrency if theirs.concurrency is None else None,
        )

    def subject(self, ex: Exchange) -> str:
        """What this exchange is counted under: one part per dimension, in the order of ``per``."""
        principal = ex.principal
        assert principal is not None
        if self._by_key:
            return "key:" + principal.key_id
        part = {
            "key": principal.key_id,
            "organisation": principal.organisation or "",
            "model": ex.request.head.model,
        }
        # Escaped, so that no client's model name can look like another organisation's counter.
        parts = [part[one].replace("%", "%25").replace(":", "%3A") for one in self.config.per]
        return self._mix + ":".join(parts)

    def reservation(self, ex: Exchange, limit: Rate | int) -> int:
        """Tokens to hold back until the answer tells: never more than the limit could ever
        admit."""
        head = ex.request.head
        longest = self._guess if head.max_tokens is None else head.max_tokens
        wanted = prompt_estimate(ex.request.body) + longest * head.n
        most = limit if isinstance(limit, int) else limit.amount
        return wanted if wanted < most else most

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
        held = ex.stash.get(self._held)
        if held is not None:
            show(ex, head, held.kinds, held.grant.rooms)

    async def on_complete(self, ex: Exchange) -> None:
        held = ex.stash.get(self._held)
        if held is None:
            return
        usage = ex.usage
        used = usage.input + usage.output if usage else 0
        actual = [used if kind == "tokens" else None for kind in held.kinds]
        try:
            await self.config.counters.settle(held.grant, actual)
        except StoreUnavailable:
            self.log.warning("rate_limit_unsettled", request_id=ex.id)


def measures(limits: Limits) -> tuple[Measure, ...]:
    """What is to be counted to hold ``limits``."""
    found: tuple[tuple[str, str, Rate | int | None], ...] = (
        ("requests", f"r{limits.requests}:", limits.requests),
        ("tokens", f"t{limits.tokens}:", limits.tokens),
        ("concurrency", "c:", limits.concurrency),
    )
    return tuple(Measure(kind, prefix, limit) for kind, prefix, limit in found if limit is not None)


def refused(ex: Exchange, kinds: Sequence[str], grant: Grant) -> Reply:
    """429, with the truth about when to come back."""
    kind, room = max(zip(kinds, grant.rooms, strict=True), key=lambda pair: pair[1].retry)
    head = Head(429, [])
    show(ex, head, kinds, grant.rooms)
    message = f"Rate limit reached: {SUBJECT[kind]}, limit {room.limit}."
    if room.retry == inf:
        head.headers.append((b"x-should-retry", b"false"))
        message += " It admits none."
    else:
        wait_ms = max(1, ceil(room.retry * 1000))
        head.headers += (
            (b"retry-after", b"%d" % ceil(wait_ms / 1000)),
            (b"retry-after-ms", b"%d" % wait_ms),
        )
        message += f" Try again in {duration(wait_ms / 1000)}."
    return Reply(429, "rate_limit_exceeded", message, head.headers)


def show(ex: Exchange, head: Head, kinds: Sequence[str], rooms: Sequence[Room]) -> None:
    """Our own numbers, in place of any the provider sent; of several limits the tightest."""
    dialect = ex.route.dialect
    shown = ex.stash.setdefault(SHOWN, {})
    for kind, room in zip(kinds, rooms, strict=True):
        known = shown.get(kind)
        if known is None or room.remaining < known.remaining:
            shown[kind] = room
    headers = head.headers
    if b"\n".join(map(NAME, headers)).find(b"ratelimit-") >= 0:
        headers = head.headers = [pair for pair in headers if pair[0].find(b"ratelimit-") < 0]
    for kind, room in shown.items():
        if kind != "concurrency":
            headers += dialect.limit_lines(kind, room, ex.at)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [RateLimit]
