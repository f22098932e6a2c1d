"""Requests, tokens and concurrency per key, organisation, model or any mix of them.

Tokens are reserved on the way in, from the size of the prompt and the longest answer asked for, and
settled with what the answer really used. A key's own limits are counted for that key; where this
filter counts keys they replace its limits, elsewhere (``per: [organisation]``) both hold. The
limits of its organisation, team and user hold beside all others: one decision for all of them.

A counter's name holds its rate, so a chain may limit the same key twice (10/s and 1000/day), and
two chains with limits of their own do not spend each other's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from math import ceil, inf
from operator import itemgetter
from typing import Literal, NamedTuple

from passy_plugins.shares import Shares
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
    Vitals,
    duration,
    hookimpl,
    prompt_estimate,
    setting,
)
from passy_proxy.structs import Struct

Dimension = Literal["key", "organisation", "model"]

NAME = itemgetter(0)
REMEMBERED = 10_000
LONGEST_NAME = 200
"""Of a model or a header, worth remembering."""
MOST_NAMES = 1_000
"""Of headers."""
SUBJECT = {"requests": "requests", "tokens": "tokens", "concurrency": "requests at once"}
UNDECIDED = "limits_undecided"
"""Table of requests that the store did not decide, by what was done instead."""
ORDER = ("tokens", "requests", "concurrency")
"""Of the claims of an exchange: first what is settled, last what no header tells."""


WHEN_AWAY = {
    "local": "local: each worker holds its share of the limits",
    "allow": "allow: requests pass unlimited, and are counted",
    "refuse": "refuse: 503",
}


EACH = (
    "each worker counts rates and requests at once for itself, so together they admit up to so many"
    " times what is written. To share them, let the store count in a Redis or a Valkey (REDIS_URL"
    " in the shipped file)"
)


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
    when_unavailable: Literal["local", "allow", "refuse"] = setting(
        "local",
        "Without an answer from the store: each worker holds its share of the limits, lets requests"
        " pass unlimited, or refuses them.",
    )
    vitals: Vitals = setting("vitals", "Where the process counts.")


class Measure(NamedTuple):
    """One limit to be held: its kind, what its counters' names begin with, how much it is."""

    kind: str
    prefix: str
    limit: Rate | int


class Counted:
    """What exchanges of a key are counted under, as far as it is the same for each of them."""

    __slots__ = (
        "fixed",
        "kinds",
        "lone",
        "metered",
        "principal",
        "shared",
        "tokens",
        "told",
        "whose",
    )

    def __init__(
        self,
        principal: Principal,
        found: Iterable[tuple[str, str, Rate | int, str]],
        shared: Counted | None = None,
    ) -> None:
        """``found``: kind, name and limit of each counter, and whose limit it is."""
        ordered = sorted(found, key=lambda one: ORDER.index(one[0]))
        self.principal = principal
        self.tokens = tuple(
            (name, limit, limit.amount)
            for kind, name, limit, _ in ordered
            if kind == "tokens" and isinstance(limit, Rate)
        )
        self.metered = len(self.tokens)
        self.fixed = [Claim(name, limit, 1) for kind, name, limit, _ in ordered if kind != "tokens"]
        """The claims that cost the same each time; those of tokens come before them."""
        self.kinds = tuple(kind for kind, _, _, _ in ordered)
        self.whose = tuple(whose for _, _, _, whose in ordered)
        """Of each claim the level above the key that sets the limit, or nothing."""
        self.told = tuple(kind for kind in self.kinds if kind != "concurrency")
        self.lone = len(self.told) == len(set(self.told))
        """No two limits of one kind."""
        self.shared = shared
        """The same without the limits of the key and of what is above it; ``None`` where there are
        none."""


class Held(Struct, gc=False):
    """What a filter was granted for an exchange."""

    filter: RateLimit
    counted: Counted
    counters: Counters | Shares
    grant: Grant
    before: Held | None
    """What another one before it was."""


HELD: StashKey[Held] = StashKey("rate_limit.held")
OWN: StashKey[bool] = StashKey("rate_limit.own")
"""The limits of the key and above it are counted, by this filter or one before it."""


class RateLimit(Filter):
    name = "rate_limit"
    vouches = True
    needs = frozenset({"principal", "body"})
    config: Config

    @property
    def when_several(self) -> str:
        return EACH if getattr(self.config.counters, "alone", False) else ""

    @property
    def when_away(self) -> str:
        return WHEN_AWAY[self.config.when_unavailable]

    async def start(self) -> None:
        config = self.config
        self._counters = config.counters
        self._shares = Shares(config.counters)
        self._undecided = config.vitals.row(UNDECIDED, (config.when_unavailable,), 1)
        self._own = Limits(config.requests, config.tokens, config.concurrency)
        self._measures = lru_cache(1_000)(measures)
        self._mix = "+".join(config.per) + ":"
        self._by_key = config.per == ("key",)
        self._by_model = "model" in config.per
        self._guess = config.output_guess
        self._counted: dict[str | tuple[str, str], Counted] = {}
        self._others: set[bytes] = set()
        """Names of headers that are known to tell of no limit: answers bring the same each time."""

    def on_request(self, ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
        principal = ex.principal
        assert principal is not None
        known = None if self._by_model else self._counted.get(principal.key_id)
        if known is None or known.principal is not principal:
            known = self.counted(ex, principal)
        if known.shared is not None:
            if OWN in ex.stash:
                known = known.shared
            else:
                ex.stash[OWN] = True
        claims = known.fixed
        if known.tokens:
            request = ex.request
            head = request.head
            longest = self._guess if head.max_tokens is None else head.max_tokens
            wanted = prompt_estimate(request.body) + longest * head.n
            claims = []
            for name, limit, most in known.tokens:
                # Never more than the limit could ever admit.
                claims.append(Claim(name, limit, wanted if wanted < most else most))
            claims += known.fixed
        if not claims:
            return None
        try:
            grant = self._counters.take(claims)
        except StoreUnavailable:
            return self.undecided(ex, known, claims)
        if isinstance(grant, Grant):
            return self.decided(ex, known, self._counters, grant)
        return self.asked(ex, known, claims, grant)

    async def asked(
        self, ex: Exchange, known: Counted, claims: Sequence[Claim], answer: Awaitable[Grant]
    ) -> Reply | None:
        """``on_request`` with a store that answers later."""
        try:
            grant = await answer
        except StoreUnavailable:
            return self.undecided(ex, known, claims)
        return self.decided(ex, known, self._counters, grant)

    def decided(
        self, ex: Exchange, known: Counted, by: Counters | Shares, grant: Grant
    ) -> Reply | None:
        ex.stash[HELD] = Held(self, known, by, grant, ex.stash.get(HELD))
        return None if grant.admitted else refused(known, grant.rooms)

    def counted(self, ex: Exchange, principal: Principal) -> Counted:
        """The counters of an exchange; remembered where they are the same for each of a key's."""
        name: str | tuple[str, str] = principal.key_id
        if self._by_model:
            model = ex.request.head.model
            name = (principal.key_id, model)
            known = self._counted.get(name)
            if known is not None and known.principal is principal:
                return known
            if len(model) > LONGEST_NAME:
                return self.counters(ex, principal)
        if len(self._counted) >= REMEMBERED:
            self._counted.clear()
        known = self._counted[name] = self.counters(ex, principal)
        return known

    def counters(self, ex: Exchange, principal: Principal) -> Counted:
        theirs, subject = principal.limits, self.subject(ex)
        held = [
            (kind, prefix + subject, limit, "")
            for kind, prefix, limit in self._measures(self.beside(theirs))
        ]
        own = [
            (kind, f"{prefix}key:{principal.key_id}", limit, "")
            for kind, prefix, limit in self._measures(theirs)
        ]
        for level in principal.above:
            # Named apart from what this filter may count for an organisation: both hold.
            own += [
                (kind, f"{prefix}above:{level.kind}:{level.id}", limit, level.kind)
                for kind, prefix, limit in self._measures(level.limits)
            ]
        return Counted(principal, held + own, Counted(principal, held) if own else None)

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

    def undecided(self, ex: Exchange, known: Counted, claims: Sequence[Claim]) -> Reply | None:
        self._undecided[0] += 1
        if self.config.when_unavailable == "local":
            return self.decided(ex, known, self._shares, self._shares.take(claims))
        if self.config.when_unavailable == "allow":
            return None
        return Reply(
            503,
            "rate_limit_unavailable",
            "The rate limit cannot be checked now. Try again shortly.",
            [(b"retry-after", b"1")],
        )

    def on_response(self, ex: Exchange, head: Head) -> None:
        """Our own numbers, in place of any the provider sent; of several limits the tightest."""
        held = ex.stash.get(HELD)
        if held is None or held.filter is not self:
            return  # The last one that holds something tells for all.
        if not self._others.issuperset(map(NAME, head.headers)):
            head.headers = self.without_theirs(head.headers)
        counted = held.counted
        if held.before is None and counted.lone:
            rooms: Iterable[tuple[str, Room]] = zip(counted.told, held.grant.rooms, strict=False)
        else:
            rooms = tightest(held).items()
        head.lines += ex.route.dialect.limit_lines(rooms, ex.at)

    def without_theirs(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """``headers`` but for the limits that a provider tells. Other names are remembered."""
        kept, others = [], self._others
        for pair in headers:
            name = pair[0]
            if name not in others:
                if b"ratelimit-" in name:
                    continue
                if len(others) >= MOST_NAMES:
                    others.clear()
                if len(name) <= LONGEST_NAME:
                    others.add(name)
            kept.append(pair)
        return kept

    def on_complete(self, ex: Exchange) -> Awaitable[None] | None:
        held = ex.stash.get(HELD)
        while held is not None and held.filter is not self:
            held = held.before
        if held is None:
            return None
        usage = ex.usage
        used = 0 if usage is None else usage.input + usage.output
        try:
            done = held.counters.settle(held.grant, [used] * held.counted.metered)
        except StoreUnavailable:
            return None  # What was taken stays taken, and heals.
        return None if done is None else settled(done)


async def settled(done: Awaitable[None]) -> None:
    """``on_complete`` with a store that answers later."""
    with suppress(StoreUnavailable):
        await done


def measures(limits: Limits) -> tuple[Measure, ...]:
    """What is to be counted to hold ``limits``."""
    found: tuple[tuple[str, str, Rate | int | None], ...] = (
        ("requests", f"r{limits.requests}:", limits.requests),
        ("tokens", f"t{limits.tokens}:", limits.tokens),
        ("concurrency", "c:", limits.concurrency),
    )
    return tuple(Measure(kind, prefix, limit) for kind, prefix, limit in found if limit is not None)


def refused(counted: Counted, rooms: Sequence[Room]) -> Reply:
    """429, with the truth about when to come back."""
    found = zip(counted.kinds, counted.whose, rooms, strict=True)
    ordered = sorted(found, key=lambda one: one[0] == "tokens")
    kind, whose, room = max(ordered, key=lambda one: one[2].retry)
    of = f" of the {whose}" if whose else ""
    message = f"Rate limit reached: {SUBJECT[kind]}{of}, limit {room.limit}."
    if room.retry == inf:
        message += " It admits none."
        return Reply(429, "rate_limit_exceeded", message, [(b"x-should-retry", b"false")])
    wait_ms = max(1, ceil(room.retry * 1000))
    message += f" Try again in {duration(wait_ms / 1000)}."
    headers = [
        (b"retry-after", b"%d" % ceil(wait_ms / 1000)),
        (b"retry-after-ms", b"%d" % wait_ms),
    ]
    return Reply(429, "rate_limit_exceeded", message, headers)


def tightest(held: Held | None) -> dict[str, Room]:
    """What the client is told of each kind: of all that is held the one with least room."""
    shown: dict[str, Room] = {}
    while held is not None:
        for kind, room in zip(held.counted.told, held.grant.rooms, strict=False):
            known = shown.get(kind)
            if known is None or room.remaining < known.remaining:
                shown[kind] = room
        held = held.before
    return shown


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [RateLimit]
