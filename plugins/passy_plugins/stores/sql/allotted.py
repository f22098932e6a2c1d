"""The writing side of budgets, and of the webhooks that are told when they run out."""

from __future__ import annotations

import secrets
from asyncio import to_thread
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, and_, delete, insert, or_, select, update

from passy_plugins.stores.sql.principal import budget_of
from passy_plugins.stores.sql.schema import (
    budgets,
    keys,
    members,
    organisations,
    teams,
    users,
    webhooks,
)
from passy_plugins.stores.sql.sealed import hook_owner
from passy_plugins.stores.sql.writing import Coder, Writing, coded, new_id, now
from passy_proxy.config.settings import Secret
from passy_proxy.issue import EVENTS, KINDS, Kind, NewBudget, StoredBudget, Webhook
from passy_proxy.json import dumps, loads
from passy_proxy.periods import PERIODS
from passy_proxy.stores import Hook
from passy_proxy.transport.origin import parse_origin

MOST = 9_000_000_000_000_000
"""Of a budget: nine million dollars, or as many tokens. Counters tell these apart to the last."""


class Allotted(Writing):
    """Part of `Admin`."""

    async def add_budget(self, new: NewBudget) -> StoredBudget:
        """ValueError where there is nobody to have it, or for what cannot be one."""
        if new.kind not in KINDS:
            raise ValueError(f"no kind {new.kind!r}; write {', '.join(KINDS)}")
        if new.unit not in ("usd", "tokens"):
            raise ValueError(f"no unit {new.unit!r}; write usd or tokens")
        if new.period not in PERIODS:
            raise ValueError(f"no period {new.period!r}; write {', '.join(PERIODS)}")
        table = TABLES[new.kind]
        if not await self._read(select(table.c.id).where(table.c.id == new.subject)):
            raise ValueError(f"there is no {new.kind} {new.subject[:80]}")
        id = new_id("bud")
        values = {
            "id": id,
            "kind": new.kind,
            "subject": new.subject,
            "unit": new.unit,
            "period": new.period,
            "created": now(),
        }
        fields = {"amount": new.amount, "hard": new.hard, "alerts": new.alerts}
        values |= coded(fields, BUDGET)
        await self._change(new.kind, new.subject, insert(budgets).values(values))
        made = await self.get_budget(id)
        assert made is not None
        return made

    async def list_budgets(
        self, kind: Kind | None = None, subject: str | None = None
    ) -> list[StoredBudget]:
        """Oldest first; of one subject where it is named."""
        wanted = select(budgets).order_by(budgets.c.created, budgets.c.id)
        if kind is not None:
            wanted = wanted.where(budgets.c.kind == kind)
        if subject is not None:
            wanted = wanted.where(budgets.c.subject == subject)
        return [stored(row) for row in await self._read(wanted)]

    async def budgets_within(self, organisation: str) -> list[StoredBudget]:
        """Its own, those of its teams and members, and those of its keys; oldest first."""
        within = {
            "team": select(teams.c.id).where(teams.c.organisation == organisation),
            "user": select(members.c.user_id).where(members.c.organisation == organisation),
            "key": select(keys.c.id).where(keys.c.organisation == organisation),
        }
        own = and_(budgets.c.kind == "organisation", budgets.c.subject == organisation)
        below = [
            and_(budgets.c.kind == kind, budgets.c.subject.in_(ids)) for kind, ids in within.items()
        ]
        wanted = select(budgets).where(or_(own, *below))
        ordered = wanted.order_by(budgets.c.created, budgets.c.id)
        return [stored(row) for row in await self._read(ordered)]

    async def get_budget(self, id: str) -> StoredBudget | None:
        rows = await self._read(select(budgets).where(budgets.c.id == id))
        return stored(rows[0]) if rows else None

    async def change_budget(self, budget: str, **changes: Any) -> bool:
        """See `Grouper`. What was spent stays spent."""
        values = coded(changes, BUDGET)
        known = await self.get_budget(budget)
        if known is None:
            return False
        if values:
            mine = update(budgets).where(budgets.c.id == budget)
            await self._change(known.kind, known.subject, mine.values(values))
        return True

    async def remove_budget(self, budget: str) -> bool:
        known = await self.get_budget(budget)
        if known is None:
            return False
        gone = delete(budgets).where(budgets.c.id == budget)
        return bool(await self._change(known.kind, known.subject, gone))

    # Webhooks

    async def add_webhook(
        self, organisation: str | None, url: str, events: Sequence[str] = EVENTS
    ) -> tuple[Webhook, str]:
        """And the secret that its messages are signed with: this once."""
        id, secret = new_id("hook"), f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"
        values = {
            "id": id,
            "organisation": organisation,
            "url": url_of(url),
            "sealed": self._keyring.seal(secret, *hook_owner(organisation, id)),
            "events": dumps(events_of(events)).decode(),
            "created": now(),
        }
        try:
            await self._change("webhook", id, insert(webhooks).values(values))
        except ValueError:
            raise ValueError(f"there is no organisation {(organisation or '')[:80]}") from None
        made = await self.get_webhook(id)
        assert made is not None
        return made, secret

    async def list_webhooks(self, organisation: str | None = None) -> list[Webhook]:
        """Oldest first; of all where no organisation is named."""
        wanted = select(webhooks).order_by(webhooks.c.created, webhooks.c.id)
        if organisation is not None:
            wanted = wanted.where(webhooks.c.organisation == organisation)
        return [webhook(row) for row in await self._read(wanted)]

    async def get_webhook(self, id: str) -> Webhook | None:
        rows = await self._read(select(webhooks).where(webhooks.c.id == id))
        return webhook(rows[0]) if rows else None

    async def change_webhook(self, id: str, events: Sequence[str]) -> bool:
        """What it is told of from now on, which may be nothing; whether there is such a webhook."""
        values = {"events": dumps(events_of(events) if events else []).decode()}
        mine = update(webhooks).where(webhooks.c.id == id)
        return bool(await self._change("webhook", id, mine.values(values)))

    async def open_webhook(self, id: str) -> Hook | None:
        """With its secret, to be tried. Raises `KeyringError`."""
        rows = await self._read(select(webhooks).where(webhooks.c.id == id))
        if not rows:
            return None
        row = rows[0]
        owner = hook_owner(row.organisation, row.id)
        return Hook(id, row.url, Secret(await to_thread(self._keyring.open, row.sealed, *owner)))

    async def remove_webhook(self, webhook: str) -> bool:
        gone = delete(webhooks).where(webhooks.c.id == webhook)
        return bool(await self._change("webhook", webhook, gone))


def amount_of(amount: int) -> int:
    if not 0 <= amount <= MOST:
        raise ValueError("a budget is between 0 and 9,000,000 dollars, or 9e15 tokens")
    return amount


def alerts_of(percents: Sequence[int]) -> str:
    for percent in percents:
        if not 1 <= percent <= 1_000:
            raise ValueError("an alert is at 1 to 1000 percent of the budget")
    return dumps(sorted(set(percents))).decode()


def url_of(url: str) -> str:
    try:
        parse_origin(url)
    except ValueError as error:
        raise ValueError(f"the webhook's URL cannot be used: {error}") from None
    return url


def events_of(events: Sequence[str]) -> list[str]:
    if unknown := [event for event in events if event not in EVENTS]:
        raise ValueError(f"no event {unknown[0]!r}; there are {', '.join(EVENTS)}")
    if not events:
        raise ValueError(f"name an event: {', '.join(EVENTS)}")
    return list(events)


BUDGET: Mapping[str, Coder] = {"amount": amount_of, "hard": bool, "alerts": alerts_of}
TABLES = {"organisation": organisations, "team": teams, "user": users, "key": keys}


def stored(row: Row[Any]) -> StoredBudget:
    budget = budget_of((row.id, row.unit, row.amount, row.period, row.hard, row.alerts))
    return StoredBudget(budget, row.kind, row.subject, row.created / 1000)


def webhook(row: Row[Any]) -> Webhook:
    events = tuple(loads(row.events))
    return Webhook(row.id, row.organisation, row.url, events, row.created / 1000)
