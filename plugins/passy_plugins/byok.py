"""Bring your own key: an organisation's own upstreams and its own credentials for shared ones.

An organisation's *own upstreams* that serve the asked model win over the routing table. Its *own
credentials* for an upstream take the operator's place at each attempt, one after the other as they
are refused. While an organisation has a credential for an upstream, the operator's is never shown
for it: not when theirs is refused, and not when the vault cannot be asked; and once one of theirs
was refused, the operator's is shown nowhere in that exchange. With ``own_only`` it never is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import TypeVar

from passy_plugins.brought import Brought, Memory, Own
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
    Keyring,
    Principal,
    Remembered,
    Reply,
    Settings,
    Target,
    Vault,
    duration,
    hookimpl,
    serves,
    setting,
)


class Config(Settings):
    vault: Vault = setting(..., "The store that holds the organisations' upstreams and keys.")
    changes: Changes | None = setting(
        None, "A store that tells of edits sooner than the vault does, such as a Redis."
    )
    connections: Connections = setting("connections", "Where connections to them are made.")
    keyring: Keyring = setting("keyring", "The secret keys of this installation.")
    remembered: Remembered = setting("remembered", "What is known, on disk.")
    ttl: Duration = setting("30s", "How long an answer of the vault is used.", ge=0)
    stale: Duration = setting(
        "15m", "How long it is still used while the vault cannot be asked.", ge=0
    )
    patience: Duration = setting(
        "2s", "How long the vault may take to answer, before it counts as away.", ge=0.001
    )
    known: int = setting(10_000, "How many organisations are remembered at most.", ge=1)
    rest: Duration = setting(
        "10s", "How long a key that was refused stands behind an organisation's others.", ge=0
    )


class Byok(Filter):
    name = "byok"
    vouches = True
    needs = frozenset({"principal", "body"})
    config: Config

    @property
    def when_away(self) -> str:
        stale = duration(self.config.stale)
        return f"what organisations brought is used for {stale}, 503 for them after that"

    async def start(self) -> None:
        self._resting: dict[tuple[str, str], float] = {}
        """Organisation and credential → until when."""
        self._memory = Memory(self.config, self.log)
        self._memory.start()
        self._known = self._memory.get

    async def stop(self) -> None:
        if (memory := getattr(self, "_memory", None)) is not None:
            await memory.stop()

    def on_request(self, ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
        principal = ex.principal
        assert principal is not None
        organisation = principal.organisation
        if organisation is None:
            return None
        known = self._known(organisation)
        if known is None or known.due <= monotonic():
            return self.asked(ex, organisation)
        return self.choose(ex, known) if known.providers else None

    async def asked(self, ex: Exchange, organisation: str) -> Reply | None:
        """``on_request`` where the vault is to be asked."""
        known = await self._memory.look_up(organisation)
        return UNDECIDED if known is None else self.choose(ex, known)

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
        known = self._known(organisation)
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
        known = await self._memory.look_up(organisation)
        if known is None:
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


LONGEST_REST = 60.0
"""Seconds, whatever an upstream says in Retry-After."""
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
