"""Writes the demo into books: people and what they have by the portal's and the store's own ways,
each entered in the audit log, and a month of exchanges through the ledger, as a gateway does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import ceil, log10
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, update

from passy_plugins.stores.sql.schema import (
    budgets,
    credentials,
    custom_providers,
    keys,
    members,
    organisations,
    teams,
    users,
    webhooks,
)
from passy_portal.audit import Noted, Who
from passy_portal.demo import cast
from passy_portal.demo.cast import PEOPLE, WORK, Work
from passy_portal.demo.traffic import DAY, HOUR, Alias, Market, Traffic, Whose
from passy_portal.owned import told
from passy_proxy.issue import Kind, NewBudget, NewCredential, NewKey, NewProvider
from passy_proxy.periods import Period, window_at
from passy_proxy.prices import price_of
from passy_proxy.stores import StoreUnavailable

if TYPE_CHECKING:
    from passy_plugins.stores.sql import Sql
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.accounts import Accounts
    from passy_proxy.config.model import GatewayFile

MOST_WAITING = 16 << 20
"""Bytes of records that wait for the database at a time."""
ADDRESS = "203.0.113.7"
"""One of those that documents use: where they changed things from."""
Tell = Callable[[float], None]
"""Is told which share is done."""


@dataclass(frozen=True, slots=True)
class Span:
    """Unix seconds."""

    start: float
    end: float

    def at(self, share: float) -> float:
        """A moment in it; before it where ``share`` is below 0."""
        return self.start + share * (self.end - self.start)


def market_of(file: GatewayFile, own: str) -> Market:
    """What the configuration says of who answers to which name, and what that costs."""
    aliases = {
        name: Alias(
            [(target.upstream, target.model) for target in one.targets],
            frozenset(one.fallback_on or ()) | ({"5xx"} if one.fallback_on is None else set()),
        )
        for name, one in file.models.items()
    }
    prices = {name: price_of(name, one) for name, one in file.settings.prices.items()}
    return Market(aliases, prices, own)


@dataclass(slots=True)
class Made:
    """What there is of the demo."""

    organisation: str = ""
    people: list[str] = field(default_factory=list)
    """Ids, in the order of `PEOPLE`."""
    teams: dict[str, str] = field(default_factory=dict)
    provider: str = ""
    keys: dict[str, Whose] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    """The name of a `Work` → its key."""
    records: int = 0


class Stage:
    """Writes one demo. The store runs, and no gateway has to."""

    def __init__(self, store: Sql, accounts: Accounts, file: GatewayFile, span: Span) -> None:
        self.made = Made()
        self._store = store
        self._accounts = accounts
        self._admin: Admin = accounts.admin
        self._file = file
        self._span = span

    async def people(self, password: str) -> None:
        """Organisation, teams and members, who all have this password; somebody is invited."""
        admin, made, before = self._admin, self.made, self._span.start - 2 * DAY
        made.organisation = await admin.create_organisation(cast.ORGANISATION)
        await self._dated(organisations, made.organisation, before)
        async with self._noting(0, "organisation.found", before) as noted:
            for n, person in enumerate(PEOPLE):
                user = await admin.create_user(person.email, person.name)
                await admin.set_member(made.organisation, user.id, person.role)
                hashed = await self._accounts.passwords.hash(password)
                await self._accounts.set_password(user.id, hashed)
                await self._dated(users, user.id, before + n * HOUR)
                async with self._admin.connected() as connection:
                    change = update(members).where(members.c.user_id == user.id)
                    await connection.execute(change.values(created=_ms(before + n * HOUR)))
                made.people.append(user.id)
            noted.who = Who(made.organisation, made.people[0], ADDRESS)
            noted.subject = made.organisation
            noted.after = {"owner": made.people[0], "name": cast.ORGANISATION}
        for n, (person, id) in enumerate(zip(PEOPLE[1:], made.people[1:], strict=True), 1):
            async with self._noting(n, "member.join", before + n * HOUR) as noted:
                noted.subject, noted.after = id, {"role": person.role}
        for name in cast.TEAMS:
            team = await admin.create_team(made.organisation, name)
            await self._dated(teams, team.id, before + DAY)
            made.teams[name] = team.id

    async def providers(self) -> None:
        """One of their own, and keys of their own for two that are shared."""
        admin, mine = self._admin, self.made.organisation
        own = NewProvider(
            mine, cast.OWN, "https://gpu-rack.halcyon.example/v1", models=cast.OWN_MODELS
        )
        self.made.provider = await admin.add_provider(own, "demo-secret-of-the-rack-7Qd2")
        await self._dated(custom_providers, self.made.provider, self._span.start - DAY)
        for upstream, name, priority in (
            ("openai", "main account", 0), ("openai", "spare account", 1),
            ("anthropic", "research grant", 0),
        ):  # fmt: skip
            new = NewCredential(mine, upstream, name, priority)
            await admin.add_credential(new, f"demo-secret-{upstream}-{priority}-Xk9f")
        for stored in await admin.list_credentials(mine):
            await self._dated(credentials, stored.id, self._span.start - DAY)
        hook, _ = await admin.add_webhook(mine, "https://hooks.halcyon.example/passy/budgets")
        await self._dated(webhooks, hook.id, self._span.start - DAY)

    async def keys(self) -> None:
        """One for each `Work`, and what became of it, in the order in which that happened."""
        events = [(work.first_day, 0, work) for work in WORK]
        events += [(work.last_day, 1, work) for work in WORK if work.state != "active"]
        for share, ends, work in sorted(events, key=lambda event: event[:2]):
            if ends:
                await self._end(work, self._span.at(share))
            else:
                await self._key(work, self._span.at(share) - 1.5 * HOUR)

    async def _key(self, work: Work, at: float) -> None:
        person = self.made.people[work.person]
        team = self.made.teams[work.team] if work.team else None
        wanted = NewKey(
            name=work.name,
            email=PEOPLE[work.person].email,
            description=work.description or work.name,
            organisation=self.made.organisation,
            team=team,
            user_id=person,
            tags=work.tags,
            limits=work.limits,
            models=work.models,
            networks=work.networks,
            is_test=work.kind == "test",
            is_trial=work.kind == "trial",
            created_by=person,
        )
        async with self._noting(work.person, "key.create", at) as noted:
            made, secret = await self._admin.create_key(wanted)
            noted.subject, noted.after = made.id, told(made)
        await self._dated(keys, made.id, at)
        self.made.secrets[work.name] = secret
        self.made.keys[work.name] = (
            made.id, self.made.organisation, team or "", person, ",".join(work.tags)
        )  # fmt: skip

    async def _end(self, work: Work, at: float) -> None:
        id = self.made.keys[work.name][0]
        if work.state == "disabled":
            await self._changed(work, at, "disable", disabled=True)
        elif work.state == "expired":
            await self._changed(work, at - HOUR, "change", expires=at)
        elif work.state == "deleted":
            async with self._noting(work.person, "key.delete", at) as noted:
                noted.subject = id
                await self._admin.delete_key(id)
        else:
            async with self._noting(work.person, "key.roll", at - 8 * HOUR) as noted:
                noted.subject, noted.after = id, {"grace": DAY}
                rolled = await self._admin.roll_key(id, float(DAY))
                assert rolled is not None
                self.made.secrets[work.name] = rolled[1]

    async def traffic(self, seed: int, tell: Tell) -> None:
        """Every exchange, into the ledger. Returns when all of them are in the database."""
        market = market_of(self._file, f"custom-{self.made.provider}")
        traffic = Traffic(market, self.made.keys, seed)
        span = (self._span.start, self._span.end)
        first = int(self._span.start // HOUR)
        last = int(self._span.end // HOUR)
        for hour in range(first, last + 1):
            for record in traffic.hour(WORK, hour * HOUR, span):
                if not self._store.record(record.row()):
                    raise StoreUnavailable("the journal has no room")
                self.made.records += 1
            await self._shipped(MOST_WAITING)
            tell(0.97 * (hour - first) / (last - first + 1))
        await self._shipped(0)
        tell(1.0)

    async def _shipped(self, most: int) -> None:
        """No more than so many bytes of records wait for the database."""
        await asyncio.sleep(0)
        while self._store.waiting > most:  # noqa: ASYNC110  # The ledger has nothing to wait for.
            await asyncio.sleep(0.02)

    async def money(self) -> None:
        """Budgets, each as nearly spent as it shall be: by the books, as gateways reckon. The last
        that was noted before somebody is invited."""
        mine = self.made.organisation
        morning = self._span.end - 5 * HOUR
        for work in WORK:
            if work.budget is not None:
                period, percent = work.budget
                limit = await self._rounded("key", self.made.keys[work.name][0], period, percent)
                await self._changed(work, morning, usage_limit=limit, usage_period=period)
        levels: tuple[tuple[Kind, str, int, bool], ...] = (
            ("organisation", mine, 64, False),
            ("team", self.made.teams["Research"], 88, False),
            ("team", self.made.teams["Customer support"], 57, True),
        )
        for kind, subject, percent, hard in levels:
            limit = await self._rounded(kind, subject, "month", percent)
            new = NewBudget(kind, subject, "usd", int(limit * 1e9), "month", hard)
            stored = await self._admin.add_budget(new)
            await self._dated(budgets, stored.budget.id, self._span.start)
        async with self._noting(1, "member.invite", self._span.end - 2 * HOUR) as noted:
            await self._accounts.invite(
                self.made.organisation, cast.INVITED, "developer", self.made.people[1]
            )
            noted.after = {"email": cast.INVITED, "role": "developer"}

    async def _changed(self, work: Work, at: float, action: str = "change", **changes: Any) -> None:
        id = self.made.keys[work.name][0]
        async with self._noting(work.person, f"key.{action}", at) as noted:
            was = await self._admin.get_key(id)
            now = await self._admin.change_key(id, **changes)
            assert was is not None
            assert now is not None
            before, after = told(was), told(now)
            differ = [name for name in after if before[name] != after[name]]
            noted.subject = id
            noted.before = {name: before[name] for name in differ}
            noted.after = {name: after[name] for name in differ}

    async def _rounded(self, kind: Kind, subject: str, period: Period, percent: int) -> float:
        """Dollars of which about so many percent are spent in the present window."""
        window = window_at(period, self._span.end)
        nanos = await self._store.spent(kind, subject, "usd", window.start, window.end)
        return rounded(nanos / 1e9 * 100 / percent)

    @asynccontextmanager
    async def _noting(self, person: int, action: str, at: float) -> AsyncIterator[Noted]:
        actor = self.made.people[person] if self.made.people else ""
        who = Who(self.made.organisation, actor, ADDRESS)
        async with self._accounts.noting(who, action) as noted:
            noted.at = _ms(at)
            yield noted

    async def _dated(self, table: Table, id: str, at: float) -> None:
        """It was made then."""
        async with self._admin.connected() as connection:
            change = update(table).where(table.c.id == id)
            await connection.execute(change.values(created=_ms(at)))


def rounded(dollars: float) -> float:
    """Up to two figures, as people set budgets."""
    if dollars <= 0:
        return 1.0
    step = 10.0 ** (int(log10(dollars)) - (1 if dollars >= 1 else 2))
    return round(ceil(dollars / step) * step, 6)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
