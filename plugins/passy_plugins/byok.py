"""Bring your own key: an organisation's own upstreams and its own credentials for shared ones.

An organisation's *own upstream* that serves the asked model wins over the routing table. Its *own
credential* for a shared upstream takes the operator's place at each attempt. While an organisation has
a credential for an upstream, the operator's is never shown for it: not when theirs is refused, and not when
the vault cannot be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from passy_proxy import Attempt, Connections, Credential, CredentialRef, CustomProvider, Duration
from passy_proxy import Exchange, Failure, Filter, Reply, Settings, StoreUnavailable, Target, Vault
from passy_proxy import hookimpl, serves, setting


class Config(Settings):
    vault: Vault = setting(..., "The store that holds the organisations' upstreams and keys.")
    connections: Connections = setting("connections", "Where connections to them are made.")
    ttl: Duration = setting("30s", "How long an answer of the vault is used.", ge=0)
    stale: Duration = setting(
        "15m", "How long it is still used while the vault cannot be asked.", ge=0
    )
    known: int = setting(10_000, "How many organisations are remembered at most.", ge=1)


class Owned(NamedTuple):
    """What the vault said of an organisation, and until when that may be used."""

    providers: Sequence[CustomProvider]
    credentials: dict[str, Credential | None]
    """By upstream; filled as it is asked for. ``None``: they have none, the operator's is used."""
    fresh: float
    stale: float


class Byok(Filter):
    name = "byok"
    needs = frozenset({"principal", "body"})
    config: Config

    async def start(self) -> None:
        self._owned: dict[str, Owned] = {}

    async def on_request(self, ex: Exchange) -> Reply | None:
        assert ex.principal is not None
        organisation = ex.principal.organisation
        if organisation is None:
            return None
        try:
            owned = await self.owned(organisation)
        except StoreUnavailable:
            return UNDECIDED
        asked = ex.request.head.model
        for provider in owned.providers:
            if provider.active and serves(provider.models, asked):
                upstream = self.config.connections.custom(provider)
                ex.targets = (Target.at(upstream, asked),)
                break
        return None

    async def owned(self, organisation: str) -> Owned:
        """The organisation's upstreams, best first; a stale answer serves while the vault is away."""
        now = monotonic()
        owned = self._owned.get(organisation)
        if owned is not None and owned.fresh > now:
            return owned
        try:
            providers = await self.config.vault.providers(organisation)
        except StoreUnavailable:
            if owned is not None and owned.stale > now:
                return owned
            raise
        ordered = sorted(providers, key=lambda provider: provider.priority)
        owned = Owned(ordered, {}, now + self.config.ttl, now + self.config.stale)
        self._owned.pop(organisation, None)
        self._owned[organisation] = owned
        if len(self._owned) > self.config.known:
            del self._owned[next(iter(self._owned))]
        return owned

    async def on_attempt(self, ex: Exchange, attempt: Attempt) -> Failure | None:
        assert ex.principal is not None
        organisation = ex.principal.organisation
        upstream = attempt.target.upstream
        if organisation is None or upstream.dialect is None:
            return None
        name = upstream.key
        owned = self._owned.get(organisation)
        if owned is not None and name in owned.credentials and owned.fresh > monotonic():
            credential = owned.credentials[name]
        else:
            try:
                credential = await self.credential(organisation, name, owned)
            except StoreUnavailable:
                return Failure("refused", "the organisation's own key cannot be read now")
        if credential is not None:
            attempt.credential = credential
        elif upstream.owner != "operator":
            attempt.credential = None  # Their upstream without a key: it gets none, least of all ours.
        return None

    async def credential(
        self, organisation: str, name: str, owned: Owned | None
    ) -> Credential | None:
        """Ask the vault; an earlier answer serves while it is away."""
        try:
            credential = await self.config.vault.credential(CredentialRef(organisation, name))
        except StoreUnavailable:
            if owned is not None and name in owned.credentials and owned.stale > monotonic():
                return owned.credentials[name]
            raise
        if owned is not None:
            owned.credentials[name] = credential
        return credential


UNDECIDED = Reply(
    503,
    "vault_unavailable",
    "Your organisation's providers cannot be read now. Try again shortly.",
    [(b"retry-after", b"1")],
)


@hookimpl
def passy_filters() -> Sequence[type[Filter]]:
    return [Byok]
