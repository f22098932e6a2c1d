"""The data model that proxy, stores and portal share: what a fact means, not where it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from passy_proxy.units import Rate


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key or organisation may use; ``None`` is no limit of its own."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent in each ``period`` (UTC; weeks begin on Monday), or ever."""

    id: str
    unit: Literal["usd", "tokens"]
    amount: int
    """Billionths of a US dollar, or tokens."""
    period: Literal["day", "week", "month", "total"]
    hard: bool = True
    """Whether it refuses when it is used up, or only tells."""
    alerts: tuple[int, ...] = ()
    """Percentages at which somebody is told."""


@dataclass(frozen=True, slots=True)
class Level:
    """What a key hangs below: its limits, budgets and models hold beside the key's own."""

    kind: Literal["organisation", "team", "user"]
    id: str
    limits: Limits = Limits()
    models: tuple[str, ...] | None = None
    budgets: tuple[Budget, ...] = ()


ECHO_ONLY = ("echo",)
"""The upstreams of a test key of which nobody said otherwise."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. ``models`` are exact names or patterns with ``*``; ``None`` allows all."""

    key_id: str
    name: str = ""
    organisation: str | None = None
    limits: Limits = Limits()
    models: tuple[str, ...] | None = None
    expires: float | None = None
    """Unix seconds."""
    disabled: bool = False
    """The key, or a level above it."""
    is_test: bool = False
    is_trial: bool = False
    team: str | None = None
    user: str | None = None
    tags: str = ""
    """Of the key, separated by commas, as the books keep them."""
    budgets: tuple[Budget, ...] = ()
    """Of the key itself."""
    above: tuple[Level, ...] = ()
    """From the organisation down, without the key and those on which nothing is held."""
    networks: tuple[str, ...] | None = None
    """Address ranges it may be used from; ``None`` is any."""
    upstreams: tuple[str, ...] | None = None
    """The only shared upstreams it may reach, by name or patterns with ``*``; ``None`` is any. Of a
    test key it is `ECHO_ONLY`, unless somebody said otherwise."""
    byok: Literal["own_first", "own_only"] = "own_first"
    """Whether the operator's credentials serve where the organisation has none of its own."""
    whose: tuple[str, str, str, str, str] = field(init=False, repr=False, compare=False)
    """``key_id``, ``organisation``, ``team``, ``user_id`` and ``tags`` as every record has them."""

    def __post_init__(self) -> None:
        whose = (self.key_id, self.organisation or "", self.team or "", self.user or "", self.tags)
        object.__setattr__(self, "whose", whose)


@dataclass(frozen=True, slots=True)
class Credential:
    """What is shown to an upstream. Its text form never holds the secret."""

    secret: str
    owner: str = "operator"
    """``operator``, or the id of the organisation whose key it is."""
    id: str = ""
    """Of one that an organisation brought, as the vault calls it."""
    upstream: str = ""
    """What that one is for: the name of a shared upstream, or the id of a custom provider."""
    trouble: str = ""
    """Why it cannot be shown, such as a secret key that is missing; ``secret`` is empty then."""

    def __repr__(self) -> str:
        return f"Credential(owner={self.owner!r}, id={self.id!r})"


@dataclass(frozen=True, slots=True)
class StoredCredential:
    """What is known of a credential of an organisation's own, but for the secret."""

    id: str
    organisation: str
    upstream: str
    """The name of a shared upstream, or the id of a custom provider."""
    name: str = ""
    priority: int = 0
    """Of several for one upstream, the lowest is shown first."""
    active: bool = True
    shown: str = ""
    """The last four characters, where that gives little of it away; empty where nobody knows."""
    version: int = 1
    """Grows with each new secret."""
    created: float = 0.0
    """Unix seconds."""


class SetPrice(NamedTuple):
    """What somebody set a price to, before what the configuration and the price list say."""

    target: str
    """``upstream/model``."""
    rates: dict[str, float]
    """US dollars for a million tokens, by the names of `PriceSettings`."""
    by: str
    """The id of a user; empty for whoever holds the admin token."""
    at: float
    """Unix seconds."""


SwitchState = Literal["pinned", "disabled"]
"""It is asked before all others, or never."""


class Switch(NamedTuple):
    """What somebody decided of one target of an alias, beside what the configuration says."""

    model: str
    """The alias, as it is written."""
    target: str
    """``upstream/model``, as it is written."""
    state: SwitchState
    by: str
    """The id of a user; empty for whoever holds the admin token."""
    at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class CustomProvider:
    """An organisation's own upstream. It serves ``models`` (``*`` is any) while ``active``."""

    id: str
    organisation: str
    name: str
    dialect: str
    url: str
    models: tuple[str, ...]
    active: bool = True
    priority: int = 0
    version: int = 0
    """Grows with each edit, so that a connection pool is never reused for changed settings."""


class Usage(NamedTuple):
    """Tokens of one answer. ``input`` contains ``cached`` and ``cache_write``."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_output: int = 0
    estimated: bool = False


class AttemptRecord(NamedTuple):
    """One try, as the books keep it."""

    upstream: str
    model: str
    status: int
    """0 when no head came."""
    failure: str
    """Empty for the try that answered."""
    started_ms: int
    """Since the start of the exchange."""
    head_ms: int
    """Time to the head of the answer, or to the failure."""
    maybe_billed: bool
    queue_ms: int = 0
    """Of that, spent in the queue for a connection."""
    connect_ms: int = 0
    """Of that, spent to make one; 0 where one was at hand, or the transport cannot tell."""
    credential: str = ""
    """The id of the organisation's own key that was shown; empty where it was the operator's, or
    none."""
    ran: str = ""
    """The chain it ran through and the hash of its configuration: ``default@4f2a91c0``. Behind
    that, of an exchange that was timed, what each filter took; see `passy_proxy.clocks`."""


UsageRow = tuple[Any, ...]
"""A usage record on its way into the books: the values of `UsageRecord` in their order, with ``at``
in milliseconds, truth as 0 and 1 or as itself, and ``attempts`` as a list of plain tuples.

Databases take them as they are. One is made for each exchange, and a named tuple costs more.
"""


class UsageRecord(NamedTuple):
    """One exchange, as the books keep it. Exactly one per exchange; ``id`` is unique for ever."""

    id: str
    at: float
    """Unix seconds, UTC, of the request's arrival."""
    key_id: str
    organisation: str
    team: str
    user_id: str
    tags: str
    """Of the key, separated by commas."""
    route: str
    model: str
    """As asked; the beginning alone of one that is no name."""
    upstream: str
    upstream_model: str
    outcome: str
    status: int
    streamed: bool
    input: int
    output: int
    cached: int
    cache_write: int
    reasoning: int
    audio_input: int
    audio_output: int
    estimated: bool
    cost_nanos: int | None
    """Billionths of a US dollar; ``None`` means no price is known, never zero."""
    price: str
    """The price used, as text, with its source."""
    first_ms: int
    """To the first byte of the answer."""
    duration_ms: int
    attempts: tuple[AttemptRecord, ...]

    def row(self) -> UsageRow:
        """As ledgers take it."""
        values = self._asdict() | {
            "at": int(self.at * 1000 + 0.5),
            "streamed": int(self.streamed),
            "estimated": int(self.estimated),
            "attempts": [tuple(attempt) for attempt in self.attempts],
        }
        return tuple(values.values())

    @classmethod
    def of(cls, row: Sequence[Any]) -> UsageRecord:
        """What `row` was made of, to the millisecond."""
        record = cls._make(row)
        return record._replace(
            at=record.at / 1000,
            streamed=bool(record.streamed),
            estimated=bool(record.estimated),
            attempts=tuple([AttemptRecord(*each) for each in record.attempts]),
        )


class BegunRow(NamedTuple):
    """An attempt that begins, as a journal keeps it should nothing follow."""

    id: str
    at: int
    """Milliseconds."""
    size: int
    """Bytes of the body where it costs tokens."""
    started_ms: int
    asked: Sequence[Any]
    """``key_id``, ``organisation``, ``team``, ``user_id``, ``tags``, ``route``, ``model`` and
    ``streamed`` (0 or 1) as in `UsageRecord`; the attempt's ``upstream`` and ``model``; and what a
    million tokens cost to be read there, in billionths of a dollar, with the price as text, or
    ``None`` and nothing."""
    before: Sequence[Sequence[Any]]
    """Of each earlier attempt its ``upstream``, ``model`` and ``started_ms``."""
