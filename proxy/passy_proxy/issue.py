"""Issuing client keys: what a command or the portal asks of the store that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from passy_proxy.records import CredentialRef, CustomProvider, Limits
from passy_proxy.site import Site


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key shall be. Whoever is asked for a test key gets one without an e-mail."""

    name: str = ""
    email: str | None = None
    description: str = ""
    """Empty means: what `described` makes of it."""
    organisation: str | None = None
    user_id: str | None = None
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] | None = None
    usage_limit: float | None = None
    """Kept as given; what it counts is for the budget to say."""
    expires: float | None = None
    """Unix seconds."""
    is_test: bool = False
    is_trial: bool = False

    def described(self) -> str:
        """The description that callers of the earlier service know."""
        if self.is_test:
            return "Test Key"
        if self.is_trial:
            return "Trial Key"
        return self.description or "Emby-generated API Key"


@dataclass(frozen=True, slots=True)
class NewProvider:
    """An organisation's own upstream, as it is entered."""

    organisation: str
    name: str
    url: str
    dialect: str = "openai"
    models: tuple[str, ...] = ("*",)
    status: str = "active"
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Organisation:
    id: str
    name: str
    created: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key as the store keeps it: everything but the key."""

    id: str
    digest: bytes
    shown: str
    """The part that may be shown again."""
    name: str
    email: str | None
    description: str
    organisation: str | None
    user_id: str | None
    limits: Limits
    models: tuple[str, ...] | None
    usage_limit: float | None
    expires: float | None
    disabled: bool
    is_test: bool
    is_trial: bool
    created: float
    """Unix seconds, as are ``expires`` and ``last_used``."""
    last_used: float | None
    """By the books; ``None`` when it never was."""


class Issuer(Protocol):
    """Makes keys, shows what is known of them, takes them back. Raises `StoreUnavailable`."""

    async def create_key(self, wanted: NewKey) -> tuple[IssuedKey, str]:
        """The record, and the key itself: this once."""
        ...

    async def list_keys(self) -> Sequence[IssuedKey]: ...

    async def get_key(self, key_id: str) -> IssuedKey | None: ...

    async def disable_key(self, key_id: str) -> IssuedKey | None:
        """``None`` when there is no such key."""
        ...


class Organiser(Protocol):
    """Enters organisations and what they bring. Raises `StoreUnavailable`, and ValueError for an
    organisation that there is not."""

    async def create_organisation(self, name: str) -> str:
        """Its id."""
        ...

    async def list_organisations(self) -> Sequence[Organisation]: ...

    async def add_provider(self, new: NewProvider, credential: str | None = None) -> str:
        """Its id."""
        ...

    async def list_providers(self) -> Sequence[CustomProvider]: ...

    async def set_status(self, provider: str, status: str) -> bool:
        """``active`` or ``inactive``; whether there is such a provider."""
        ...

    async def set_credential(self, organisation: str, upstream: str, credential: str) -> None:
        """For a shared upstream, by its name."""
        ...

    async def list_credentials(self) -> Sequence[CredentialRef]:
        """Whose there are for which shared upstream."""
        ...


@runtime_checkable
class Issuing(Protocol):
    """A store class that can issue keys without a running store."""

    @classmethod
    def issuer(cls, settings: Any, site: Site) -> AbstractAsyncContextManager[Issuer]:
        """``settings`` are of the class's own ``Settings``."""
        ...


@runtime_checkable
class Administered(Protocol):
    """A running store in which people keep order: keys, organisations, providers, the books."""

    def admin(self) -> AbstractAsyncContextManager[Any]:
        """Opens its writing side. Raises `StoreUnavailable`."""
        ...
