"""Issuing client keys: what a command or the portal asks of the store that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from passy_proxy.records import Credential, CustomProvider, Limits, StoredCredential
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
class NewCredential:
    """An organisation's own key for an upstream, as it is entered, but for the key."""

    organisation: str
    upstream: str
    """The name of a shared upstream, or the id of a custom provider."""
    name: str = ""
    priority: int = 0
    status: str = "active"


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

    async def list_providers(self, organisation: str | None = None) -> Sequence[CustomProvider]: ...

    async def change_provider(self, provider: str, **changes: Any) -> bool:
        """``changes`` are fields of `NewProvider`, but for the organisation; whether there is such
        a provider."""
        ...

    async def remove_provider(self, provider: str) -> bool:
        """With its credentials; whether there was one."""
        ...

    async def add_credential(self, new: NewCredential, secret: str) -> str:
        """Its id."""
        ...

    async def list_credentials(
        self, organisation: str | None = None
    ) -> Sequence[StoredCredential]: ...

    async def change_credential(self, credential: str, **changes: Any) -> bool:
        """``changes`` are ``name``, ``priority``, ``status`` and ``secret``; whether there is such
        a credential."""
        ...

    async def remove_credential(self, credential: str) -> bool: ...

    async def open_credential(self, credential: str) -> Credential | None:
        """With its secret, to be tried. Raises `KeyringError`."""
        ...


@dataclass(frozen=True, slots=True)
class Seals:
    """How many secrets are sealed with one key of the ring."""

    key_id: str
    """Empty for what is damaged."""
    given: bool
    """Whether it is among the secret keys, so that they can be opened."""
    first: bool
    """Whether new ones are sealed with it."""
    current: int
    earlier: int
    """Of those, in the earlier format, without a data key of their own."""


@dataclass(slots=True)
class Rotation:
    """What wrapping everything under the first key came to."""

    seen: int = 0
    wrapped: int = 0
    """Are under the first key now, and were not before."""
    failed: dict[str, str] = field(default_factory=dict)
    """Place and id of what could not be opened → why."""


Tell = Callable[[int, int], None]
"""Is told how many secrets were looked at, and how many there are."""


@runtime_checkable
class Sealing(Protocol):
    """An open store whose secrets can be put under another key of the ring."""

    async def seals(self) -> Sequence[Seals]: ...

    async def rotate(self, tell: Tell | None = None) -> Rotation:
        """Wrap under the first key what is not. Beside running gateways and writers: nothing that
        was written meanwhile is lost. What was done stays done, wherever it is interrupted."""
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
