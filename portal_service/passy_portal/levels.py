"""Changing what is held on a level, and what that would have refused: for pages and the JSON API.

It is written with what the admin API writes with, so there is one rule book.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from passy_plugins.api.budgets import budget as budget_shown
from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.levels import limits_shown
from passy_plugins.stores.sql.issued import NANOS, USAGE_LIMIT
from passy_plugins.stores.sql.reports import Dimension
from passy_portal.accounts import Accounts, Visitor
from passy_portal.replay import History, Refusals, history, replayed, spent_before
from passy_portal.tree import Node, OrganisationLimits, tree_of
from passy_proxy.issue import Kind, NewBudget, StoredBudget, Unit
from passy_proxy.periods import Period
from passy_proxy.records import Budget, Limits

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

MOST_BUDGETS = 20
"""Of one level."""


@dataclass(frozen=True, slots=True)
class WantedBudget:
    """``id``: of one that is there; its unit and period stay."""

    unit: Unit
    amount: int
    """Billionths of a dollar, or tokens."""
    period: Period
    hard: bool
    alerts: tuple[int, ...]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be held on a level. Budgets that it does not name are removed."""

    limits: Limits
    models: tuple[str, ...] | None
    budgets: tuple[WantedBudget, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """What limits that somebody wants would have refused, and what those of today would have."""

    wanted: Refusals
    today: Refusals
    history: History


def held_on(node: Node) -> Wanted:
    """As it is."""
    return Wanted(node.limits, node.models, tuple(map(as_wanted, node.budgets)))


async def node_of(
    admin: Admin, visitor: Visitor, policy: OrganisationLimits, kind: Kind, id: str
) -> Node:
    """404 for one that is not there for who asks, 403 for one that they may not change."""
    node = (await tree_of(admin, visitor, policy)).find(kind, id)
    if node is None:
        raise absent("member" if kind == "user" else kind)
    if not node.changes:
        raise Denied(403, "not_allowed", WHY[kind])
    return node


WHY = {
    "organisation": "What holds for the whole organisation is its operator's to say.",
    "team": "Owners and admins say what holds for a team.",
    "user": "Only an owner says what holds for an owner, or for themselves.",
    "key": "Your role changes no keys.",
}


async def change(accounts: Accounts, visitor: Visitor, node: Node, wanted: Wanted) -> None:
    """All of it, or nothing."""
    check(node, wanted)
    admin = accounts.admin
    async with accounts.noting(visitor.who, f"limits.{node.kind}", node.id) as noted:
        fields = {
            "requests": wanted.limits.requests,
            "tokens": wanted.limits.tokens,
            "concurrency": wanted.limits.concurrency,
            "models": wanted.models,
        }
        writes: dict[Kind, Any] = {
            "organisation": admin.change_organisation,
            "team": admin.change_team,
            "user": admin.change_user,
            "key": admin.change_key,
        }
        if not await writes[node.kind](node.id, **fields):
            raise absent(node.kind)
        was = {one.budget.id: one for one in node.budgets}
        for budget in wanted.budgets:
            if budget.id:
                if budget != as_wanted(was.pop(budget.id)):
                    await admin.change_budget(
                        budget.id, amount=budget.amount, hard=budget.hard, alerts=budget.alerts
                    )
            else:
                await add(admin, node, budget)
        for id in was:
            await admin.remove_budget(id)
        now = await budgets_of(admin, node)
        before = shown(node.limits, node.models, node.budgets)
        after = shown(wanted.limits, wanted.models, now)
        differ = [name for name in after if before[name] != after[name]]
        noted.before = {name: before[name] for name in differ}
        noted.after = {name: after[name] for name in differ}


async def add(admin: Admin, node: Node, budget: WantedBudget) -> None:
    """The first one of a key is its usage limit, as pages and APIs of keys have it."""
    limit = f"{USAGE_LIMIT}{node.id}"
    if node.kind == "key" and await admin.get_budget(limit) is None:
        dollars = budget.amount / NANOS if budget.unit == "usd" else float(budget.amount)
        fields = {"usage_limit": dollars, "usage_unit": budget.unit, "usage_period": budget.period}
        await admin.change_key(node.id, **fields)
        await admin.change_budget(limit, hard=budget.hard, alerts=budget.alerts)
        return
    new = NewBudget(
        node.kind, node.id, budget.unit, budget.amount, budget.period, budget.hard, budget.alerts
    )
    await admin.add_budget(new)


async def budgets_of(admin: Admin, node: Node) -> Sequence[StoredBudget]:
    found: Sequence[StoredBudget] = await admin.list_budgets(node.kind, node.id)
    return found


def check(node: Node, wanted: Wanted) -> None:
    """`Denied` for budgets of somebody else's, too many, or of another unit or period."""
    if len(wanted.budgets) > MOST_BUDGETS:
        raise Denied(422, "invalid_value", f"No more than {MOST_BUDGETS} budgets.", "budgets")
    known = {one.budget.id: one.budget for one in node.budgets}
    named = [one.id for one in wanted.budgets if one.id]
    if len(named) != len(set(named)):
        raise Denied(422, "invalid_value", "A budget is named twice.", "budgets")
    for one in wanted.budgets:
        if not one.id:
            continue
        was = known.get(one.id)
        if was is None:
            raise Denied(422, "invalid_value", "There is no such budget here.", "budgets")
        if (was.unit, was.period) != (one.unit, one.period):
            message = "The unit and the period of a budget stay: remove it, and add another."
            raise Denied(422, "invalid_value", message, "budgets")


async def preview(admin: Admin, node: Node, wanted: Wanted, now: int) -> Preview:
    """Of the last seven days before ``now``, in milliseconds."""
    check(node, wanted)
    dimension: Dimension = node.kind
    past = await history(admin, dimension, node.id, now)
    would = [budget_of(one, f"new{place}") for place, one in enumerate(wanted.budgets)]
    is_now = [one.budget for one in node.budgets]
    before = await spent_before(admin, dimension, node.id, [*would, *is_now], past.since)

    def both() -> tuple[Refusals, Refusals]:
        return (
            replayed(past.requests, wanted.limits, would, before),
            replayed(past.requests, node.limits, is_now, before),
        )

    # In a thread: the loop may be that of a gateway, whose requests wait for nobody's preview.
    return Preview(*await asyncio.to_thread(both), past)


def budget_of(one: WantedBudget, id: str) -> Budget:
    return Budget(one.id or id, one.unit, one.amount, one.period, one.hard, one.alerts)


def as_wanted(one: StoredBudget) -> WantedBudget:
    budget = one.budget
    return WantedBudget(
        budget.unit, budget.amount, budget.period, budget.hard, budget.alerts, budget.id
    )


def shown(
    limits: Limits, models: tuple[str, ...] | None, budgets: Sequence[StoredBudget]
) -> dict[str, Any]:
    """What the audit log holds of a level."""
    told = [budget_shown(one).model_dump(exclude={"created_at"}) for one in budgets]
    return {
        **limits_shown(limits).model_dump(),
        "models": None if models is None else list(models),
        "budgets": told,
    }
