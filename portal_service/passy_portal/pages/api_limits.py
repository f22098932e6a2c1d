"""Limits and budgets in JSON: the tree, its edits, and what they would have refused."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from passy_plugins.api.budgets import BudgetHeld, BudgetTerms, held, nanos, told
from passy_plugins.api.errors import responses
from passy_plugins.api.levels import Level, LimitsShown, fields, limits_shown
from passy_plugins.api.words import Id, Shown, UserId, shown_at
from passy_portal import levels
from passy_portal.levels import Wanted, WantedBudget, held_on, node_of
from passy_portal.pages.limits import policy_of
from passy_portal.pages.reading import now
from passy_portal.replay import MOST, Refusals
from passy_portal.standing import Standing, standings
from passy_portal.tree import Node, What, tree_of
from passy_portal.view import accounts_of, visitor_of
from passy_proxy.issue import Kind
from passy_proxy.records import Limits

router = APIRouter(tags=["limits"])

CHANGE = responses(400, 401, 403, 404, 413, 415, 422, 503)


class BudgetSent(BudgetTerms):
    """``id`` is that of one that is there, whose unit and period stay."""

    id: Id | None = None


class LevelChange(Level):
    """What is not named stays."""

    budgets: Annotated[list[BudgetSent], Field(max_length=levels.MOST_BUDGETS)] = Field(
        default=[], description="All that there shall be: one that is left out is removed."
    )


class BudgetStanding(BudgetHeld):
    used: float | None = Field(description="In its window, by the books; null: not yours to see.")
    window: str | None = Field(description="2026-11-26, 2026-W48, 2026-11 or total.")
    per_day: float | None = Field(description="The average of the last seven whole days.")
    spent_at: str | None = Field(
        description="When it is used up at that pace; null where that is not in its window."
    )


class ConflictShown(Shown):
    """It allows more than a level above, which wins."""

    what: What
    message: str
    wins: str = Field(description="The id of that level.")


class NodeShown(Shown):
    kind: Kind
    id: str
    name: str
    status: str
    above: list[str] = Field(description="Ids of the levels that hold for it, too.")
    limits: LimitsShown
    models: list[str] | None
    budgets: list[BudgetStanding]
    conflicts: list[ConflictShown]


class TreeShown(Shown):
    rows: list[NodeShown] = Field(
        description="The organisation, its teams, its members, and the keys that have limits."
    )


class RefusalsShown(Shown):
    refused: int
    by: dict[str, int] = Field(
        description="requests, tokens, concurrency or a budget's id → how many that refused."
    )


class PreviewShown(Shown):
    """The requests of the last seven days, one by one, through the counters that gateways hold
    limits with; each with the tokens and the cost that it came to."""

    asked: int
    since: str
    whole: bool = Field(description=f"false: only the latest {MOST} requests were looked at.")
    wanted: RefusalsShown
    today: RefusalsShown = Field(description="With the limits of this level as they are.")


@router.get("/api/limits", responses=responses(401, 503))
async def limits(request: Request) -> TreeShown:
    """What holds on each level, and what is used of its budgets."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    tree = await tree_of(accounts.admin, visitor, policy_of(request))
    nodes = [one for one in tree if one.kind != "key" or not one.is_bare]
    seen = [budget for one in nodes if one.counts for budget in one.budgets]
    stand = await standings(accounts.admin, seen, now())
    return TreeShown(rows=[shown(one, stand) for one in nodes])


@router.patch("/api/limits/organisation", responses=CHANGE)
async def limit_organisation(request: Request, change: LevelChange) -> NodeShown:
    """What holds for all of it."""
    return await _changed(request, "organisation", visitor_of(request).organisation, change)


@router.patch("/api/limits/team/{id}", responses=CHANGE)
async def limit_team(request: Request, id: Id, change: LevelChange) -> NodeShown:
    """What holds for all keys of a team."""
    return await _changed(request, "team", id, change)


@router.patch("/api/limits/member/{user_id}", responses=CHANGE)
async def limit_member(request: Request, user_id: UserId, change: LevelChange) -> NodeShown:
    """What holds for all keys of a member."""
    return await _changed(request, "user", user_id, change)


@router.patch("/api/limits/key/{id}", responses=CHANGE)
async def limit_key(request: Request, id: Id, change: LevelChange) -> NodeShown:
    """What holds for a key."""
    return await _changed(request, "key", id, change)


@router.post("/api/limits/organisation/preview", responses=CHANGE)
async def preview_organisation(request: Request, change: LevelChange) -> PreviewShown:
    """What a change would have refused. Nothing is changed."""
    return await _seen(request, "organisation", visitor_of(request).organisation, change)


@router.post("/api/limits/team/{id}/preview", responses=CHANGE)
async def preview_team(request: Request, id: Id, change: LevelChange) -> PreviewShown:
    """What a change would have refused. Nothing is changed."""
    return await _seen(request, "team", id, change)


@router.post("/api/limits/member/{user_id}/preview", responses=CHANGE)
async def preview_member(request: Request, user_id: UserId, change: LevelChange) -> PreviewShown:
    """What a change would have refused. Nothing is changed."""
    return await _seen(request, "user", user_id, change)


@router.post("/api/limits/key/{id}/preview", responses=CHANGE)
async def preview_key(request: Request, id: Id, change: LevelChange) -> PreviewShown:
    """What a change would have refused. Nothing is changed."""
    return await _seen(request, "key", id, change)


async def _changed(request: Request, kind: Kind, id: str, change: LevelChange) -> NodeShown:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    node = await node_of(accounts.admin, visitor, policy_of(request), kind, id)
    await levels.change(accounts, visitor, node, wanted_of(node, change))
    node = await node_of(accounts.admin, visitor, policy_of(request), kind, id)
    stand = await standings(accounts.admin, node.budgets, now())
    return shown(node, stand)


async def _seen(request: Request, kind: Kind, id: str, change: LevelChange) -> PreviewShown:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    node = await node_of(accounts.admin, visitor, policy_of(request), kind, id)
    seen = await levels.preview(accounts.admin, node, wanted_of(node, change), now())
    return PreviewShown(
        asked=len(seen.history.requests),
        since=str(shown_at(seen.history.since / 1000)),
        whole=seen.history.whole,
        wanted=refusals(seen.wanted),
        today=refusals(seen.today),
    )


def wanted_of(node: Node, change: LevelChange) -> Wanted:
    """What is held on a level, with what a change names in its place."""
    named, was = fields(change), held_on(node)
    budgets = was.budgets
    if "budgets" in named:
        budgets = tuple(
            WantedBudget(one.unit, nanos(one.amount, one.unit), one.period, one.hard,
                         tuple(sorted(set(one.alerts))), one.id or "")
            for one in change.budgets
        )  # fmt: skip
    limits = Limits(
        named.get("requests", was.limits.requests),
        named.get("tokens", was.limits.tokens),
        named.get("concurrency", was.limits.concurrency),
    )
    models = was.models
    if "models" in named:
        models = None if change.models is None else tuple(change.models)
    return Wanted(limits, models, budgets)


def refusals(found: Refusals) -> RefusalsShown:
    return RefusalsShown(refused=found.refused, by=found.by)


def shown(node: Node, stand: dict[str, Standing]) -> NodeShown:
    conflicts = [
        ConflictShown(what=one.what, message=one.message, wins=one.wins.id)
        for one in node.conflicts
    ]
    return NodeShown(
        kind=node.kind,
        id=node.id,
        name=node.name,
        status=node.status,
        above=[one.id for one in node.above],
        limits=limits_shown(node.limits),
        models=None if node.models is None else list(node.models),
        budgets=[BudgetStanding(**standing(one.budget, stand)) for one in node.budgets],
        conflicts=conflicts,
    )


def standing(budget: Any, stand: dict[str, Standing]) -> dict[str, Any]:
    """The fields of `BudgetStanding`."""
    found = stand.get(budget.id)
    return {
        **held(budget),
        "used": told(found.used, budget.unit) if found else None,
        "window": found.window.name if found else None,
        "per_day": told(found.pace, budget.unit) if found else None,
        "spent_at": shown_at(found.spent_at) if found else None,
    }
