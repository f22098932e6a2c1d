"""The store protocols: what a filter may ask of a place that keeps state.

A filter names a store in its settings by one of these types and receives the live object. Whether
an unreachable store means *allow* or *deny* is the filter's setting; a store that cannot answer
raises :class:`StoreUnavailable` and decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from math import inf
from typing import Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from passy_proxy.config.settings import Secret
from passy_proxy.evidence import Proof
from passy_proxy.records import (
    Credential,
    CustomProvider,
    Principal,
    SetPrice,
    Switch,
    UsageRow,
)
from passy_proxy.structs import Struct
from passy_proxy.units import Rate

T = TypeVar("T")
Now: TypeAlias = T | Awaitable[T]
"""An answer, or what can be awaited for it: a store in this process need not make its callers
wait."""


class StoreUnavailable(Exception):
    """The store cannot answer now."""


class StoreRefuses(StoreUnavailable):
    """Nor will it, before somebody changes something: its password, its name, its version."""


class Allowance(Struct, frozen=True):
    """So much in one window of time; nothing refills within it. What budgets count with."""

    amount: int
    window: str
    """Names the window (``2026-11``)."""
    ends: float
    """Unix seconds; ``inf`` for a window that never ends. A counter knows one window, that which
    ends last; who is late by his clock takes from that one."""
    hard: bool
    """Whether it refuses what does not fit. What a soft one counts it admits."""
    lease: float
    """Seconds after which what was taken and never settled is given back: its taker is gone."""


class Claim(Struct, gc=False):
    """One limit to be taken from: ``key`` names the counter."""

    key: str
    limit: Rate | Allowance | int
    """A :class:`Rate` refills continuously; an ``int`` is a concurrency limit, given back at
    settle."""
    cost: int


class Room(Struct, gc=False):
    """What one claim's counter looked like just after the decision.

    Of an allowance ``reset`` is 0 and ``retry`` 0 or ``inf``: its window says when it ends.
    """

    limit: int
    remaining: int
    reset: float
    """Seconds until the counter is full again."""
    retry: float
    """Seconds until this claim would be admitted; 0 when it was."""


class Grant(Struct):
    """The answer to a take: admitted, or refused with nothing taken from any counter."""

    admitted: bool
    rooms: Sequence[Room]
    """One per claim, in order."""
    claims: Sequence[Claim]
    token: object = None
    """Private to the store."""
    unknown: Sequence[Claim] = ()
    """Claims on allowances that were never counted here in this window. Nothing was decided:
    `Counters.prime` tells of what was spent before, then take again."""


@runtime_checkable
class Counters(Protocol):
    """Rate limits, budgets, concurrency. All claims of one take are decided at once."""

    def take(self, claims: Sequence[Claim]) -> Now[Grant]:
        """All or none. What was taken for somebody who no longer waits for it is given back."""
        ...

    def settle(self, grant: Grant, actual: Sequence[int | None]) -> Now[None]:
        """Replace each claim's cost by what was used, in the order of the claims. ``None``, and a
        number that is missing at the end, leave it as taken.

        Concurrency claims are given back whatever ``actual`` says. Once per grant: a second
        settle, or one of a refused grant, changes nothing.
        """
        ...

    def prime(self, key: str, limit: Allowance, used: int, quiet: float = inf) -> Now[None]:
        """So much of an allowance was settled in its window, by the books.

        It makes an unknown counter known. One that has less is raised to it: what the books have
        was spent. One that has more is lowered to it only after ``quiet`` seconds without a take
        or a settle: what is missing may be on its way into the books. What is open stays open.
        """
        ...


@runtime_checkable
class Shared(Protocol):
    """`Counters` that other processes take from as well."""

    @property
    def workers(self) -> int:
        """How many do, this one among them, as far as is known."""
        ...


@runtime_checkable
class Directory(Protocol):
    """Who a key belongs to. ``digest`` is ``keys.digest`` of the whole key."""

    async def principal(self, digest: bytes) -> Principal | None: ...


@runtime_checkable
class Vault(Protocol):
    """An organisation's own upstreams and credentials."""

    async def providers(self, organisation: str) -> Sequence[CustomProvider]:
        """By priority, those that are not active among them."""
        ...

    async def credentials(self, organisation: str) -> Sequence[Credential]:
        """Its active ones, those for one upstream in the order in which they are to be shown.

        One that cannot be opened has no secret, and says why in ``trouble``: it must not be taken
        for one that is not there.
        """
        ...


@runtime_checkable
class Ledger(Protocol):
    """The books. Nothing here raises or waits for a database."""

    @property
    def full(self) -> bool:
        """Whether a record of what begins now could not be kept."""
        ...

    def begin(self, id: str, note: bytes) -> None:
        """An attempt of exchange ``id`` is about to begin. Should the process end within it,
        ``note``, the JSON of a `BegunRow`, is what the books are made from."""
        ...

    def record(self, row: UsageRow, proof: Proof | None = None) -> Now[bool]:
        """The exchange is over; true when its record is kept, whatever happens to this process.
        Once per id: a second record of one changes nothing.

        `UsageRecord.of` says what is in ``row``. ``proof`` is kept with it, in such a way that
        later changes of either are found, where the store can do that.
        """
        ...

    def price(self, id: str, nanos: int, price: str) -> None:
        """What exchange ``id`` has cost, when that was not known at its end: billionths of a
        dollar, and the price as text."""
        ...


@runtime_checkable
class Books(Protocol):
    """What was recorded, added up."""

    async def spent(
        self,
        kind: Literal["organisation", "team", "user", "key"],
        subject: str,
        unit: Literal["usd", "tokens"],
        start: float,
        end: float,
    ) -> int:
        """What one of a ``kind`` has used of requests that came from ``start`` on and before
        ``end`` (Unix seconds; ``end`` may be ``inf``): billionths of a US dollar, or tokens in and
        out.

        Records that a ledger has taken and not yet entered may be missing.
        """
        ...


@runtime_checkable
class Switchboard(Protocol):
    """What people decided of the targets of aliases. An edit is told as a change of the kind
    ``switch``."""

    async def switches(self) -> Sequence[Switch]:
        """All of them; there are few."""
        ...


@runtime_checkable
class Tariff(Protocol):
    """Prices that people have set. An edit is told as a change of the kind ``price``."""

    async def tariff(self) -> Sequence[SetPrice]:
        """All of them; there are few."""
        ...


class Hook(Struct, frozen=True):
    """Where somebody wants to be told, and what the messages are signed with."""

    id: str
    url: str
    secret: Secret


@runtime_checkable
class Alerts(Protocol):
    """What was told of budgets, so that all workers of all hosts together tell it once."""

    async def raise_alert(self, budget: str, window: str, percent: int, patience: float) -> bool:
        """Whether it is for the caller to tell that so much of a budget was used in a window.

        False where somebody has told it, or began to less than ``patience`` seconds ago.
        """
        ...

    async def alerted(self, budget: str, window: str, percent: int) -> None:
        """It was told."""
        ...

    async def hooks(self, organisation: str | None, event: str) -> Sequence[Hook]:
        """Where ``event`` of an organisation is to be told: its own, and the operator's."""
        ...


ANYTHING = ""
"""As a kind and a subject of a change: something may have changed that nobody told of."""

Told: TypeAlias = Callable[[str, str], None]
"""Called in the event loop with the kind (``key``, ``organisation`` …) and the id of what was
edited; with `ANYTHING` twice when changes may have been missed."""


@runtime_checkable
class Changes(Protocol):
    """Tells every worker of every host what was edited, as it happens. Nothing is kept for those
    who are not there: the books are the truth, this only hurries."""

    async def publish(self, kind: str, subject: str) -> None:
        """Tell all who listen. `StoreUnavailable` when that cannot be done now."""
        ...

    def listen(self, told: Told) -> Callable[[], None]:
        """Call ``told`` for each change from now on, until the result is called.

        Whenever listening begins to work, at first or again, `ANYTHING` is told.
        """
        ...

    @property
    def hears(self) -> bool:
        """Whether changes reach this process now. While not, its listeners have to look for
        themselves."""
        ...


class Store:
    """Life cycle that every store shares. ``kind`` is the word in gateway.yaml."""

    kind: str = ""

    @property
    def state(self) -> str:
        """``ok``, or in a few words what is wrong, for the status page: without secrets."""
        return "ok"

    def meet(self, others: Iterable[Store]) -> None:
        """The other stores of a configuration that begins to serve."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
