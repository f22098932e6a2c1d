"""Bring your own key: an organisation's own upstreams and its own credentials for shared ones.

An organisation's *own upstreams* that serve the asked model win over the routing table. Its *own
credentials* for an upstream take the operator's place at each attempt, one after the other as they
are refused. While an organisation has a credential for an upstream, the operator's is never shown
for it: not when theirs is refused, and not when the vault cannot be asked; and once one of theirs
was refused, the operator's is shown nowhere in that exchange. With ``own_only`` it never is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import NamedTuple, TypeVar

from passy_plugins.retrying import brought, key_refused, seconds_to_wait
from passy_proxy import (
    Attempt,
    Changes,
    Connections,
    Credential,
    CustomProvider,
    Duration,
    Exchange,
    Failure,
    Filter,
    Principal,
    Reply,
    Settings,
    StoreUnavailable,
    Target,
    Vault,
    hookimpl,
    serves,
    setting,
)


class Config(Settings):
    vault: Vault = setting(..., "The store that holds the organisations' upstreams and keys.")
    changes: Changes | None = setting(
        None, "The store that tells at once what was edited; without one, ttl is how long it takes."
    )
    connections: Connections = setting("connections", "Where connections to them are made.")
    ttl: Duration = setting("30s", "How long an answer of the vault is used.", ge=0)
    stale: Duration = setting(
        "15m", "How long it is still used while the vault cannot be asked.", ge=0
    )
    known: int = setting(10_000, "How many organisations are remembered at most.", ge=1)
    rest: Duration = setting(
        "10s", "How long a key that was refused stands behind an organisation's others.", ge=0
    )


class Own(NamedTuple):
    """An organisation's own credentials for one upstream."""

    usable: tuple[Credential, ...]
    """In the order in which they are shown."""
    trouble: str
    """Why another one is not among them; empty when all are."""


class Brought(NamedTuple):
    """What an organisation brought, and until when that may be used."""

    providers: Sequence[CustomProvider]
    """Those that are active, best first."""
    own: Mapping[str, Own]
    """By the upstream's key."""
    fresh: float
    stale: float


class Byok(Filter):
    name = "byok"
    vouches = True
    needs = frozenset({"principal", "body"})
    config: Config

    async def start(self) -> None:
        self._known: dict[str, Brought] = {}
        self._resting: dict[tuple[str, str], float] = {}
        """Organisation and credential → until when."""
        self._sweeper: asyncio.TimerHandle | None = None
        changes = self.config.changes
        self._deaf: Callable[[], None] | None = None
        if changes is not None:
            self._deaf = changes.listen(self.told)

    async def stop(self) -> None:
        if self._deaf is not None:
            self._deaf()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._known.clear()

    def on_request(self, ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
        principal = ex.principal
        assert principal is not None
        organisation = principal.organisation
        if organisation is None:
            return None
        known = self._known.get(organisation)
        if known is None or known.fresh <= monotonic():
            return self.asked(ex, organisation, known)
        return self.choose(ex, known) if known.providers else None

    async def asked(self, ex: Exchange, organisation: str, known: Brought | None) -> Reply | None:
        """``on_request`` where the vault has to be asked."""
        try:
            known = await self.look_up(organisation, known)
        except StoreUnavailable:
            return UNDECIDED
        return self.choose(ex, known)

    def choose(self, ex: Exchange, known: Brought) -> Reply | None:
        """Their own upstreams, if any serves what is asked for."""
        asked = ex.request.head.model
        targets = []
        wrong: Reply | None = None
        for provider in known.providers:
            if serves(provider.models, asked):
                try:
                    upstream = self.config.connections.custom(provider)
                except ValueError as exc:
                    wrong = wrong or unreachable(provider, exc)
                else:
                    targets.append(Target.at(upstream, asked))
        if targets:
            ex.targets = tuple(targets)
            return None
        return wrong  # Not the operator's upstreams instead: theirs was meant.

    async def look_up(self, organisation: str, known: Brought | None) -> Brought:
        """Ask the vault for what they brought; an earlier answer serves while it is away, and
        those who come meanwhile."""
        now = monotonic()
        if known is not None and known.stale > now:
            known = known._replace(fresh=min(now + PATIENCE, known.stale))
            self._known[organisation] = known
        vault = self.config.vault
        try:
            providers = await vault.providers(organisation)
            credentials = await vault.credentials(organisation)
        except StoreUnavailable:
            if known is not None and known.stale > now:
                return known
            raise
        active = [provider for provider in providers if provider.active]
        active.sort(key=lambda provider: provider.priority)
        fresh, stale = now + self.config.ttl, now + self.config.stale
        known = Brought(active, by_upstream(credentials), fresh, stale)
        remember(self._known, organisation, known, self.config.known)
        if self._sweeper is None:
            self._sweep_in(self.config.stale)
        return known

    def told(self, kind: str, subject: str) -> None:
        """Something was edited: who it may concern is asked anew, and served from what is known
        where the vault is away."""
        if kind and kind != ORGANISATION:
            return
        for organisation in [subject] if kind else list(self._known):
            if (known := self._known.get(organisation)) is not None:
                self._known[organisation] = known._replace(fresh=0.0)

    def _sweep_in(self, seconds: float) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(seconds + 0.01, self._sweep)

    def _sweep(self) -> None:
        """No key stays in memory for longer than it may be shown."""
        self._sweeper = None
        now = monotonic()
        for organisation, known in list(self._known.items()):
            if known.stale <= now:
                del self._known[organisation]
        if self._known:
            self._sweep_in(min(known.stale for known in self._known.values()) - now)

    def on_attempt(
        self, ex: Exchange, attempt: Attempt
    ) -> Failure | Awaitable[Failure | None] | None:
        principal = ex.principal
        assert principal is not None
        organisation = principal.organisation
        if organisation is None:
            return None
        upstream = attempt.target.upstream
        if upstream.dialect is None:
            return None
        known = self._known.get(organisation)
        if known is None:
            return self.read(ex, attempt, principal, organisation)
        own = known.own.get(upstream.key)
        if own is None:
            return without(ex, attempt, principal)
        return self.show(ex, attempt, organisation, own)

    async def read(
        self, ex: Exchange, attempt: Attempt, principal: Principal, organisation: str
    ) -> Failure | None:
        """``on_attempt`` where what was read for the request is forgotten by now."""
        try:
            known = await self.look_up(organisation, None)
        except StoreUnavailable:
            return Failure("refused", UNDECIDED.message, reply=UNDECIDED)
        own = known.own.get(attempt.target.upstream.key)
        if own is None:
            return without(ex, attempt, principal)
        return self.show(ex, attempt, organisation, own)

    def show(self, ex: Exchange, attempt: Attempt, organisation: str, own: Own) -> Failure | None:
        """Their credential in place of the operator's: the first that was not refused."""
        left = own.usable
        if not left:
            return Failure("refused", own.trouble, reply=unreadable(attempt, own.trouble))
        if len(ex.attempts) > 1:
            left = self.not_refused(ex, attempt, organisation, left)
        if len(left) > 1:
            if self._resting:
                left = self.rested(organisation, left)
            attempt.spare = len(left) > 1
        attempt.credential = left[0]
        return None

    def not_refused(
        self, ex: Exchange, attempt: Attempt, organisation: str, usable: tuple[Credential, ...]
    ) -> tuple[Credential, ...]:
        """Without those that this exchange has shown in vain, which are given a rest; all of them
        where that leaves none."""
        refused = set()
        upstream = attempt.target.upstream
        for one in ex.attempts[:-1]:
            if one.target.upstream is upstream and key_refused(one) and one.credential is not None:
                refused.add(one.credential.id)
                wait = max(self.config.rest, min(seconds_to_wait(one) or 0.0, LONGEST_REST))
                until = monotonic() + wait
                remember(self._resting, (organisation, one.credential.id), until, self.config.known)
        return tuple(one for one in usable if one.id not in refused) or usable

    def rested(self, organisation: str, usable: tuple[Credential, ...]) -> tuple[Credential, ...]:
        """Without those that rest; where all do, the one that has rested longest."""
        now = monotonic()
        until = [self._resting.get((organisation, one.id), 0.0) for one in usable]
        rested = tuple(one for one, end in zip(usable, until, strict=True) if end <= now)
        return rested or (usable[until.index(min(until))],)


def by_upstream(credentials: Iterable[Credential]) -> dict[str, Own]:
    """What can be shown, by what it is for."""
    found: dict[str, Own] = {}
    for one in credentials:
        usable, trouble = found.get(one.upstream, NOTHING)
        if one.trouble:
            trouble = trouble or one.trouble
        elif one.secret.isascii() and one.secret.isprintable():
            usable = (*usable, one)
        else:
            trouble = trouble or "it has characters that no header can carry"
        found[one.upstream] = Own(usable, trouble)
    return found


def without(ex: Exchange, attempt: Attempt, principal: Principal) -> Failure | None:
    """They have no credential for this upstream."""
    if attempt.target.upstream.owner != "operator":
        attempt.credential = None  # Their upstream without a key: it gets none, least of all ours.
        return None
    name = attempt.target.upstream.name
    if principal.byok == "own_only":
        why = f"your organisation uses its own keys only, and has none for {name}"
        return Failure("refused", why, reply=Reply(403, "own_key_missing", f"For this, {why}."))
    if len(ex.attempts) > 1 and (reply := withheld(ex)) is not None:
        return Failure("refused", "the operator's key is not shown after yours failed", reply=reply)
    return None


def withheld(ex: Exchange) -> Reply | None:
    """What is said in place of the operator's key, where one of theirs has failed."""
    for one in ex.attempts[:-1]:
        if one.failure is None:
            continue
        if one.failure.reply is not None and one.failure.reply.status == 503:
            return one.failure.reply
        if brought(one) and key_refused(one):  # 429: after the others nobody else is asked
            message = (
                f"{one.target.label} refused your organisation's key ({one.failure.message}). The "
                "operator's is not used in its place."
            )
            headers = [(name, value) for name, value in one.fields.items() if name in RETRY]
            return Reply(429, "own_key_refused", message, headers, "provider_error")
    return None


K = TypeVar("K")
V = TypeVar("V")


def remember(entries: dict[K, V], key: K, value: V, most: int) -> None:
    """Put ``value`` last; of more than ``most`` entries the first is forgotten."""
    entries.pop(key, None)
    entries[key] = value
    if len(entries) > most:
        del entries[next(iter(entries))]


def unreachable(provider: CustomProvider, why: ValueError) -> Reply:
    message = f"Your provider custom-{provider.id} cannot be used: {why}."
    return Reply(502, "upstream_error", message, [NO_RETRY], "provider_error")


def unreadable(attempt: Attempt, trouble: str) -> Reply:
    message = (
        f"Your organisation's key for {attempt.target.upstream.name} cannot be used: {trouble}."
    )
    return Reply(503, "own_key_unreadable", message, [NO_RETRY])


ORGANISATION = "organisation"
"""The kind of change that an edit of providers and credentials is told as."""
PATIENCE = 1.0
"""Seconds for which an answer is used that somebody is asking about."""
LONGEST_REST = 60.0
"""Seconds, whatever an upstream says in Retry-After."""
NOTHING = Own((), "")
RETRY = frozenset((b"retry-after", b"retry-after-ms"))
NO_RETRY = (b"x-should-retry", b"false")
UNDECIDED = Reply(
    503,
    "vault_unavailable",
    "Your organisation's providers cannot be read now. Try again shortly.",
    [(b"retry-after", b"1")],
)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Byok]
