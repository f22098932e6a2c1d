"""Keys, and those they belong to: what a command or the portal asks of the store of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from passy_proxy.periods import Period
from passy_proxy.records import Budget, Credential, CustomProvider, Limits, StoredCredential
from passy_proxy.site import Site

EVENTS = ("budget.alert",)
"""What webhooks are told of."""

DEFAULT_ALERTS = (50, 80, 100)


Status = Literal["active", "disabled", "deleted"]
"""Of an organisation, a team or a user. What was deleted stays for the names in the books."""

Role = Literal["owner", "admin", "developer", "viewer", "billing"]
ROLES: tuple[Role, ...] = ("owner", "admin", "developer", "viewer", "billing")

Edited = Callable[[str, str], Awaitable[None]]
"""Told the kind and the id of what was edited, once it is entered."""

Unit = Literal["usd", "tokens"]
"""Of a budget: US dollars, or tokens in and out."""

Kind = Literal["organisation", "team", "user", "key"]
KINDS: tuple[Kind, ...] = ("organisation", "team", "user", "key")
"""What limits and budgets can be set on."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key shall be. Whoever is asked for a test key gets one without an e-mail."""

    name: str = ""
    email: str | None = None
    description: str = ""
    """Empty means: what `described` makes of it."""
    organisation: str | None = None
    team: str | None = None
    """One of the organisation's."""
    user_id: str | None = None
    """May be one that only another service knows."""
    tags: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    """Address ranges it may be used from, such as ``10.0.0.0/8``."""
    upstreams: tuple[str, ...] | None = None
    """The only shared upstreams it may reach; of a test key they are `echo` where this says
    nothing."""
    usage_limit: float | None = None
    """Of ``usage_unit``, what may be used in each ``usage_period``: a hard budget of the key."""
    usage_period: Period = "total"
    usage_unit: Unit = "usd"
    expires: float | None = None
    """Unix seconds."""
    is_test: bool = False
    is_trial: bool = False
    created_by: str | None = None
    """Whoever made it: the id of a user, mostly."""

    def described(self) -> str:
        """The description that callers of the earlier service know."""
        if self.is_test:
            return "Test Key"
        if self.is_trial:
            return "Trial Key"
        return self.description or "Emby-generated API Key"


@dataclass(frozen=True, slots=True)
class NewBudget:
    """How much may be spent on one level."""

    kind: Kind
    subject: str
    """Its id."""
    unit: Unit
    amount: int
    """Billionths of a US dollar, or tokens."""
    period: Period = "month"
    hard: bool = True
    alerts: tuple[int, ...] = DEFAULT_ALERTS
    """Percentages at which somebody is told."""


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
    status: Status = "active"
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] | None = None
    byok: Literal["own_first", "own_only"] = "own_first"


@dataclass(frozen=True, slots=True)
class Team:
    id: str
    organisation: str
    name: str
    created: float
    """Unix seconds."""
    status: Status = "active"
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class User:
    id: str
    email: str | None
    name: str
    created: float
    """Unix seconds."""
    status: Status = "active"
    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A user's place in an organisation."""

    organisation: str
    user_id: str
    role: Role
    created: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class StoredBudget:
    """A budget, and whose it is."""

    budget: Budget
    kind: Kind
    subject: str
    created: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where somebody wants to be told of ``events``. Its secret is shown once."""

    id: str
    organisation: str | None
    """``None``: the operator's, told of everything."""
    url: str
    events: tuple[str, ...]
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
    team: str | None
    user_id: str | None
    tags: tuple[str, ...]
    limits: Limits
    models: tuple[str, ...] | None
    networks: tuple[str, ...] | None
    upstreams: tuple[str, ...] | None
    usage_limit: float | None
    usage_period: Period | None
    usage_unit: Unit | None
    expires: float | None
    disabled: bool
    is_test: bool
    is_trial: bool
    created: float
    """Unix seconds, as are the other moments."""
    created_by: str | None
    old_until: float | None
    """Until when the key that it was rolled from is good."""
    deleted: float | None
    last_used: float | None
    """By the books; ``None`` when it never was."""


class Issuer(Protocol):
    """Makes keys, shows what is known of them, takes them back.

    Raises `StoreUnavailable`, and ValueError for what a key cannot be: a team of another
    organisation, a range of addresses that is none.
    """

    async def create_key(self, wanted: NewKey) -> tuple[IssuedKey, str]:
        """The record, and the key itself: this once."""
        ...

    async def list_keys(self, organisation: str | None = None) -> Sequence[IssuedKey]: ...

    async def get_key(self, key_id: str) -> IssuedKey | None: ...

    async def change_key(self, key_id: str, **changes: Any) -> IssuedKey | None:
        """``changes`` are fields of `NewKey` but for the organisation and what kind it is; of its
        limits each by its name; and ``disabled``. ``None`` when there is no such key."""
        ...

    async def disable_key(self, key_id: str) -> IssuedKey | None:
        """``None`` when there is no such key."""
        ...

    async def roll_key(self, key_id: str, grace: float = 0.0) -> tuple[IssuedKey, str] | None:
        """A new secret for the same key; the one before is good for ``grace`` seconds more."""
        ...

    async def delete_key(self, key_id: str) -> bool:
        """For good. What it has spent stays in the books."""
        ...


class Organiser(Protocol):
    """Enters organisations and what they bring. Raises `StoreUnavailable`, and ValueError for an
    organisation that there is not."""

    async def create_organisation(self, name: str) -> str:
        """Its id."""
        ...

    async def list_organisations(self) -> Sequence[Organisation]: ...

    async def change_organisation(self, organisation: str, **changes: Any) -> bool:
        """``changes`` are ``name``, ``status``, ``requests``, ``tokens``, ``concurrency``,
        ``models`` and ``byok``; whether there is such an organisation."""
        ...

    async def delete_organisation(self, organisation: str) -> bool:
        """With its keys and teams. What was spent stays in the books."""
        ...

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


class Grouper(Protocol):
    """Teams and users, their places and what they may spend. Raises `StoreUnavailable`, and
    ValueError for somebody whom there is not."""

    async def create_team(self, organisation: str, name: str, **fields: Any) -> Team:
        """``fields`` are those of `change_team`."""
        ...

    async def list_teams(self, organisation: str | None = None) -> Sequence[Team]: ...

    async def change_team(self, team: str, **changes: Any) -> bool:
        """``changes`` are ``name``, ``status``, ``requests``, ``tokens``, ``concurrency`` and
        ``models``; whether there is such a team."""
        ...

    async def delete_team(self, team: str) -> bool:
        """With its keys."""
        ...

    async def create_user(self, email: str | None, name: str = "", **fields: Any) -> User:
        """``fields`` are those of `change_user`, and ``id`` for one that another service gave."""
        ...

    async def list_users(self, organisation: str | None = None) -> Sequence[User]: ...

    async def change_user(self, user: str, **changes: Any) -> bool:
        """As `change_team`, and ``email``."""
        ...

    async def delete_user(self, user: str) -> bool:
        """With their keys and places."""
        ...

    async def set_member(self, organisation: str, user: str, role: Role) -> None: ...

    async def remove_member(self, organisation: str, user: str) -> bool: ...

    async def list_members(self, organisation: str) -> Sequence[Member]: ...

    async def add_budget(self, new: NewBudget) -> StoredBudget: ...

    async def list_budgets(
        self, kind: Kind | None = None, subject: str | None = None
    ) -> Sequence[StoredBudget]: ...

    async def change_budget(self, budget: str, **changes: Any) -> bool:
        """``changes`` are ``amount``, ``hard`` and ``alerts``; whether there is such a budget."""
        ...

    async def remove_budget(self, budget: str) -> bool: ...

    async def add_webhook(
        self, organisation: str | None, url: str, events: Sequence[str] = EVENTS
    ) -> tuple[Webhook, str]:
        """And the secret that its messages are signed with: this once."""
        ...

    async def list_webhooks(self, organisation: str | None = None) -> Sequence[Webhook]: ...

    async def change_webhook(self, id: str, events: Sequence[str]) -> bool:
        """What it is told of, which may be nothing; whether there is such a webhook."""
        ...

    async def remove_webhook(self, webhook: str) -> bool: ...


@runtime_checkable
class Issuing(Protocol):
    """A store class that can issue keys without a running store."""

    @classmethod
    def issuer(
        cls, settings: Any, site: Site, edited: Edited | None = None
    ) -> AbstractAsyncContextManager[Issuer]:
        """``settings`` are of the class's own ``Settings``; ``edited`` is told of each edit."""
        ...


@runtime_checkable
class Administered(Protocol):
    """A running store in which people keep order: keys, organisations, providers, the books."""

    def admin(self) -> AbstractAsyncContextManager[Any]:
        """Opens its writing side. Raises `StoreUnavailable`."""
        ...
