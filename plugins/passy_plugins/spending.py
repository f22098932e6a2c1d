"""What of each budget is used, as the counters and the books have it.

Counters decide, and the books are the truth. A counter that nobody has counted with yet is primed
with what the books have. From then on whoever has used a budget lately reads the books every
``interval`` seconds, and tells the counter what they had the last time: each record in them was
settled in between, unless its settlement was lost, so a counter that has less is raised to it. One
that has more is lowered once it was left alone for as long as a lease, see `Counters.prime`.

So what a process had reserved when it was killed comes back by its lease, what it had spent comes
by its journal and the books, and neither is lost or counted twice. `docs/decisions` has the
reasoning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from passy_plugins.alerts import Alert
from passy_proxy import Allowance, Books, Counters, Principal, StoreUnavailable, Tasks
from passy_proxy.periods import Window, window_at
from passy_proxy.records import Budget

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from passy_plugins.alerts import Teller

Kind = Literal["organisation", "team", "user", "key"]

ROUNDS = 4
"""Intervals for which a budget that nobody uses is still looked at."""
MOST_KEPT = 100_000


class Account:
    """One budget in one of its windows, as this process uses it."""

    __slots__ = (
        "budget",
        "exhausted",
        "key",
        "kind",
        "limit",
        "organisation",
        "read",
        "subject",
        "used_at",
        "window",
    )

    def __init__(
        self,
        budget: Budget,
        kind: Kind,
        subject: str,
        organisation: str | None,
        window: Window,
        lease: float,
    ) -> None:
        self.budget = budget
        self.kind = kind
        self.subject = subject
        self.organisation = organisation
        """Who is told of it."""
        self.window = window
        self.key = f"b:{budget.id}:{budget.unit}:{budget.period}"
        """The counter's name: a budget that is in tokens or by the day from now on has another."""
        self.limit = Allowance(budget.amount, window.name, window.end, budget.hard, lease)
        self.read: int | None = None
        """What the books had when they were last read."""
        self.used_at = 0.0
        """Monotonic seconds."""
        self.exhausted = False
        """A request was refused for it."""

    def __repr__(self) -> str:
        return f"Account({self.budget.id}, {self.window.name})"


class Charge:
    """All accounts that a key's requests are charged to, from the organisation down."""

    __slots__ = ("accounts", "hard", "paid", "principal", "until")

    def __init__(self, principal: Principal, accounts: Sequence[Account]) -> None:
        self.principal = principal
        self.accounts = tuple(accounts)
        self.paid = any(account.budget.unit == "usd" for account in accounts)
        """One of them is in dollars."""
        self.hard = any(account.budget.hard for account in accounts)
        self.until = min((account.window.end for account in accounts), default=inf)
        """Unix seconds; then a new window begins."""


class Accounts:
    """The accounts of a process. ``books`` may be none: then counters begin at nothing."""

    def __init__(
        self,
        counters: Counters,
        books: Books | None,
        teller: Teller,
        lease: float,
        interval: float,
        log: FilteringBoundLogger,
    ) -> None:
        self._counters = counters
        self._books = books
        self._teller = teller
        self._lease = lease
        self._interval = interval
        self._log = log
        self._tasks = Tasks(log)
        self._accounts: dict[str, Account] = {}
        self._charges: dict[str, Charge] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._away = False

    def start(self) -> None:
        self._tasks.start(self._follow())

    async def stop(self) -> None:
        await self._tasks.stop()
        for task in list(self._asking.values()):
            task.cancel()

    def charge(self, principal: Principal, own: Sequence[Budget], at: float) -> Charge:
        """Where what arrives ``at`` (Unix seconds) is charged; ``own`` are the key's budgets."""
        known = self._charges.get(principal.key_id)
        if known is None or known.principal is not principal or known.until <= at:
            if len(self._charges) >= MOST_KEPT:
                self._charges.clear()
            accounts = [
                self._account(budget, level.kind, level.id, principal, at)
                for level in principal.above
                for budget in level.budgets
            ]
            accounts += [
                self._account(budget, "key", principal.key_id, principal, at) for budget in own
            ]
            known = self._charges[principal.key_id] = Charge(principal, accounts)
        if known.accounts:
            now = monotonic()
            for account in known.accounts:
                account.used_at = now
        return known

    def _account(
        self, budget: Budget, kind: Kind, subject: str, principal: Principal, at: float
    ) -> Account:
        known = self._accounts.get(budget.id)
        window = window_at(budget.period, at)
        if known is None or known.window != window or known.budget != budget:
            if len(self._accounts) >= MOST_KEPT:
                self._accounts.clear()
                self._charges.clear()
            known = Account(budget, kind, subject, principal.organisation, window, self._lease)
            self._accounts[budget.id] = known
        return known

    async def prime(self, accounts: Iterable[Account]) -> None:
        """Tell the counters what the books have. `StoreUnavailable` when one of both is away."""
        asking = []
        for account in accounts:
            task = self._asking.get(account.key)
            if task is None:
                loop = asyncio.get_running_loop()
                task = self._asking[account.key] = loop.create_task(self._primed(account))
                task.add_done_callback(looked_at)
            asking.append(asyncio.shield(task))
        for each in asking:
            await each

    async def _primed(self, account: Account) -> None:
        try:
            spent = await self._spent(account)
            await done(self._counters.prime(account.key, account.limit, spent))
        finally:
            self._asking.pop(account.key, None)

    async def _spent(self, account: Account) -> int:
        if self._books is None:
            return 0
        window = account.window
        return await self._books.spent(
            account.kind, account.subject, account.budget.unit, window.start, window.end
        )

    async def _follow(self) -> None:
        """Compare counters with the books, and tell what was crossed, for as long as we live."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.round()
                self._away = False
            except StoreUnavailable as error:
                if not self._away:
                    self._away = True
                    self._log.warning("budgets_not_compared", reason=str(error))
            except Exception:  # A store's mistake must not end what keeps all budgets true.
                self._log.exception("budgets_not_compared")

    async def round(self) -> None:
        """Once for each account in use. `StoreUnavailable` where it had to end early."""
        now = monotonic()
        for account in list(self._accounts.values()):
            if now - account.used_at > ROUNDS * self._interval:
                account.read = None
                continue
            if self._books is not None:
                read = await self._spent(account)
                if account.read is not None:
                    # What a host has spent that is dead, or cut off from the books, is not in
                    # them yet. A counter knows it, and is believed for as long as a lease.
                    await done(
                        self._counters.prime(account.key, account.limit, account.read, self._lease)
                    )
                account.read = read
            await self._tell(account)

    async def _tell(self, account: Account) -> None:
        budget, spent = account.budget, account.read or 0
        for percent in budget.alerts:
            reached = spent * 100 >= percent * budget.amount and (spent or not budget.amount)
            if reached or (account.exhausted and percent <= 100):
                await self._teller.tell(
                    Alert(
                        budget.id,
                        account.window.name,
                        percent,
                        account.organisation,
                        said(account, percent, spent),
                    )
                )


def said(account: Account, percent: int, spent: int) -> dict[str, Any]:
    """What people are told of an account."""
    budget, window = account.budget, account.window
    return {
        "budget": budget.id,
        "kind": account.kind,
        "subject": account.subject,
        "organisation": account.organisation,
        "percent": percent,
        "unit": budget.unit,
        "amount": told(budget, budget.amount),
        "spent": told(budget, spent),
        "hard": budget.hard,
        "period": budget.period,
        "window": window.name,
        "resets": moment(window.end),
        "exhausted": account.exhausted,
    }


def told(budget: Budget, amount: int) -> str | int:
    """Dollars as a decimal text, to the last billionth; tokens as a number."""
    if budget.unit == "tokens":
        return amount
    return f"{Decimal(amount).scaleb(-9).normalize():f}"


def moment(end: float) -> str | None:
    """An ISO 8601 time; ``None`` for never."""
    return None if end == inf else datetime.fromtimestamp(end, UTC).isoformat(timespec="seconds")


async def done(answer: Awaitable[None] | None) -> None:
    """Wait for a store's answer, if it has to be waited for."""
    if answer is not None:
        await answer


def looked_at(task: asyncio.Task[None]) -> None:
    """Who asked may be gone by now, and nobody else minds how it ended."""
    if not task.cancelled():
        task.exception()


async def settled(answer: Awaitable[None]) -> None:
    """A settlement that comes later. One that is lost is made good by the books."""
    with suppress(StoreUnavailable):
        await answer
