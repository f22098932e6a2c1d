"""Bring your own key: an organisation's own upstreams and its own credentials for shared ones.

An organisation's *own upstream* that serves the asked model wins over the routing table. Its *own
credential* for a shared upstream takes the operator's place at each attempt. While an organisation
has a credential for an upstream, the operator's is never shown for it: not when theirs is refused,
and not when the vault cannot be asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import NamedTuple, TypeVar

from passy_proxy import (
    Attempt,
    Connections,
    Credential,
    CredentialRef,
    CustomProvider,
    Duration,
    Exchange,
    Failure,
    Filter,
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
    connections: Connections = setting("connections", "Where connections to them are made.")
    ttl: Duration = setting("30s", "How long an answer of the vault is used.", ge=0)
    stale: Duration = setting(
        "15m", "How long it is still used while the vault cannot be asked.", ge=0
    )
    known: int = setting(10_000, "How many answers of the vault are remembered at most.", ge=1)


class Owned(NamedTuple):
    """The organisation's own active upstreams, best first, and until when they may be used."""

    providers: Sequence[CustomProvider]
    fresh: float
    stale: float


class Shown(NamedTuple):
    """Its own credential for an upstream, and until when that may be used."""

    credential: Credential | None
    """``None``: it has none, so the operator's is used."""
    fresh: float
    stale: float
    fit: bool
    """A header can carry it."""


class Byok(Filter):
    name = "byok"
    vouches = True
    needs = frozenset({"principal", "body"})
    config: Config

    async def start(self) -> None:
        self._owned: dict[str, Owned] = {}
        self._shown: dict[tuple[str, str], Shown] = {}

    def on_request(self, ex: Exchange) -> Reply | Awaitable[Reply | None] | None:
        principal = ex.principal
        assert principal is not None
        organisation = principal.organisation
        if organisation is None:
            return None
        owned = self._owned.get(organisation)
        if owned is None or owned.fresh <= monotonic():
            return self.asked(ex, organisation, owned)
        return self.choose(ex, owned) if owned.providers else None

    async def asked(self, ex: Exchange, organisation: str, owned: Owned | None) -> Reply | None:
        """``on_request`` where the vault has to be asked."""
        try:
            owned = await self.look_up(organisation, owned)
        except StoreUnavailable:
            return UNDECIDED
        return self.choose(ex, owned)

    def choose(self, ex: Exchange, owned: Owned) -> Reply | None:
        """Their own upstream, if one serves what is asked for."""
        asked = ex.request.head.model
        for provider in owned.providers:
            if serves(provider.models, asked):
                try:
                    upstream = self.config.connections.custom(provider)
                except ValueError as exc:  # Not the operator's upstreams instead: theirs was meant.
                    return unreachable(provider, exc)
                ex.targets = (Target.at(upstream, asked),)
                break
        return None

    async def look_up(self, organisation: str, owned: Owned | None) -> Owned:
        """Ask the vault for their upstreams; an earlier answer serves while it is away."""
        now = monotonic()
        try:
            providers = await self.config.vault.providers(organisation)
        except StoreUnavailable:
            if owned is not None and owned.stale > now:
                return owned
            raise
        active = [provider for provider in providers if provider.active]
        active.sort(key=lambda provider: provider.priority)
        owned = Owned(active, now + self.config.ttl, now + self.config.stale)
        remember(self._owned, organisation, owned, self.config.known)
        return owned

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
        shown = self._shown.get((organisation, upstream.key))
        if shown is None or shown.fresh <= monotonic():
            return self.read(attempt, organisation, shown)
        return show(attempt, shown)

    async def read(
        self, attempt: Attempt, organisation: str, shown: Shown | None
    ) -> Failure | None:
        """``on_attempt`` where the vault has to be asked."""
        try:
            shown = await self.credential(organisation, attempt.target.upstream.key, shown)
        except StoreUnavailable:
            return Failure("refused", "the organisation's own key cannot be read now")
        return show(attempt, shown)

    async def credential(self, organisation: str, upstream: str, shown: Shown | None) -> Shown:
        """Ask the vault for their key; an earlier answer serves while it is away."""
        now = monotonic()
        try:
            credential = await self.config.vault.credential(CredentialRef(organisation, upstream))
        except StoreUnavailable:
            if shown is not None and shown.stale > now:
                return shown
            raise
        fit = credential is None or (
            (secret := credential.secret).isascii() and secret.isprintable()
        )
        shown = Shown(credential, now + self.config.ttl, now + self.config.stale, fit)
        remember(self._shown, (organisation, upstream), shown, self.config.known)
        return shown


def show(attempt: Attempt, shown: Shown) -> Failure | None:
    """Their credential in place of the operator's."""
    credential = shown.credential
    if not shown.fit:
        return Failure("refused", "the organisation's own key has characters no header can carry")
    if credential is not None:
        attempt.credential = credential
    elif attempt.target.upstream.owner != "operator":
        attempt.credential = None  # Their upstream without a key: it gets none, least of all ours.
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
