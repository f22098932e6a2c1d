"""What is held on an organisation, its teams, its members and their keys, and where a level allows
more than one above it: then that one wins, since all of them hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from passy_plugins.api.keys_routes import state
from passy_portal.access import KEEPERS, LEADERS
from passy_portal.accounts import Visitor
from passy_portal.fields import rate_told
from passy_portal.figures import count, money
from passy_portal.owned import sees, title
from passy_portal.playing import TAG
from passy_proxy.issue import IssuedKey, Kind, Role, StoredBudget
from passy_proxy.periods import PERIODS
from passy_proxy.records import Limits
from passy_proxy.units import Rate

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

What = Literal["requests", "tokens", "concurrency", "models", "budgets"]
OrganisationLimits = Literal["owners", "operator"]
CALLED: Mapping[Kind, str] = {
    "organisation": "the organisation",
    "team": "the team",
    "user": "the member",
    "key": "the key",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One level, and what is held on it."""

    kind: Kind
    id: str
    name: str
    status: str
    limits: Limits
    models: tuple[str, ...] | None
    budgets: tuple[StoredBudget, ...]
    above: tuple[Node, ...] = ()
    """The levels whose limits hold for it, too, from the organisation down."""
    changes: bool = False
    """Whether who looks may change it."""
    counts: bool = True
    """Whether who looks may see what is used of it."""
    key: IssuedKey | None = None

    @property
    def is_bare(self) -> bool:
        """Nothing is held on it."""
        return self.limits == Limits() and self.models is None and not self.budgets

    @property
    def conflicts(self) -> list[Conflict]:
        """Where it allows more than a level above does."""
        return [found for one in self.above for found in compared(self, one)]


@dataclass(frozen=True, slots=True)
class Conflict:
    """``wins`` is the level above, which holds."""

    what: What
    message: str
    wins: Node


@dataclass(frozen=True, slots=True)
class Tree:
    organisation: Node
    teams: Sequence[Node]
    members: Sequence[Node]
    guests: Sequence[str]
    """Names of members that are in other organisations, too: what holds for them is an operator's
    to say."""
    keys: Sequence[Node]

    def __iter__(self) -> Iterator[Node]:
        yield self.organisation
        yield from self.teams
        yield from self.members
        yield from self.keys

    def find(self, kind: Kind, id: str) -> Node | None:
        return next((one for one in self if one.kind == kind and one.id == id), None)

    def keys_of(self, team: str | None) -> list[Node]:
        return [one for one in self.keys if one.key is not None and one.key.team == team]


async def tree_of(admin: Admin, visitor: Visitor, policy: OrganisationLimits) -> Tree:
    """As who looks may see it: a developer their own keys, and what is above those."""
    mine = visitor.organisation
    found = await admin.get_organisation(mine)
    assert found is not None
    budgets: dict[tuple[Kind, str], list[StoredBudget]] = {}
    for budget in await admin.budgets_within(mine):
        budgets.setdefault((budget.kind, budget.subject), []).append(budget)

    def held(kind: Kind, id: str) -> tuple[StoredBudget, ...]:
        return tuple(budgets.get((kind, id), ()))

    leads, alone = visitor.role in LEADERS, visitor.role == "developer"
    top = Node(
        "organisation", mine, found.name, found.status, found.limits, found.models,
        held("organisation", mine), (), visitor.role == "owner" and policy == "owners", not alone,
    )  # fmt: skip
    keys = [
        key for key in await admin.keys_within(mine) if sees(visitor, key) and TAG not in key.tags
    ]
    teams = {
        team.id: Node("team", team.id, team.name, team.status, team.limits, team.models,
                      held("team", team.id), (top,), leads, not alone)
        for team in await admin.list_teams(mine)
        if not alone or any(key.team == team.id for key in keys)
    }  # fmt: skip
    roles: dict[str, Role] = {one.user_id: one.role for one in await admin.list_members(mine)}
    guests = await admin.guests_of(mine)
    users = [user for user in await admin.list_users(mine)
             if user.id in roles and (not alone or user.id == visitor.user)]  # fmt: skip
    members = {
        user.id: Node("user", user.id, user.email or user.name or user.id, user.status,
                      user.limits, user.models, held("user", user.id), (top,),
                      limits_member(visitor, user.id, roles[user.id]))
        for user in users
        if user.id not in guests
    }  # fmt: skip
    return Tree(
        top,
        list(teams.values()),
        list(members.values()),
        [user.email or user.name or user.id for user in users if user.id in guests],
        [
            Node("key", key.id, title(key), state(key), key.limits, key.models,
                 held("key", key.id), above(key, top, teams, members),
                 visitor.role in KEEPERS, True, key)
            for key in keys
        ],
    )  # fmt: skip


def above(
    key: IssuedKey, top: Node, teams: Mapping[str, Node], members: Mapping[str, Node]
) -> tuple[Node, ...]:
    found = [teams.get(key.team or ""), members.get(key.user_id or "")]
    return (top, *(one for one in found if one is not None))


def limits_member(visitor: Visitor, user: str, role: Role) -> bool:
    """Whether one may say what holds for a member: nobody but an owner does so for an owner, or for
    themselves."""
    if visitor.role == "owner":
        return True
    return visitor.role in LEADERS and role != "owner" and user != visitor.user


def compared(node: Node, other: Node) -> Iterator[Conflict]:
    """Where ``node`` allows more than ``other``, which is above it."""
    wins = f"{CALLED[other.kind]} {other.name}"
    rates: tuple[What, ...] = ("requests", "tokens")
    for what in rates:
        mine: Rate | None = getattr(node.limits, what)
        theirs: Rate | None = getattr(other.limits, what)
        if mine and theirs and mine.amount * theirs.seconds > theirs.amount * mine.seconds:
            message = (
                f"{rate_told(mine)} {what} here, and {rate_told(theirs)} for {wins}, which wins."
            )
            yield Conflict(what, message, other)
    at_once, most = node.limits.concurrency, other.limits.concurrency
    if at_once and most and at_once > most:
        message = f"{at_once} requests at once here, and {most} for {wins}, which wins."
        yield Conflict("concurrency", message, other)
    for one in node.budgets:
        for wider in other.budgets:
            if never_reached(one, wider):
                message = f"{told(one)} here, and {told(wider)} for {wins}, which wins."
                yield Conflict("budgets", message, other)
    if node.models is not None and other.models is not None:
        refused = [name for name in node.models if not allowed(name, other.models)]
        if refused:
            message = f"{', '.join(refused[:5])} is allowed here, and not by {wins}, which wins."
            yield Conflict("models", message, other)


def never_reached(one: StoredBudget, wider: StoredBudget) -> bool:
    """Whether a budget above is spent before ``one`` can be: it is less, for as long or longer."""
    mine, theirs = one.budget, wider.budget
    longer = PERIODS.index(theirs.period) >= PERIODS.index(mine.period)
    return theirs.hard and mine.unit == theirs.unit and longer and mine.amount > theirs.amount


def allowed(name: str, models: Sequence[str]) -> bool:
    """Whether a name, or all that a pattern stands for, is among ``models``."""
    return name in models or any("*" in each and fnmatchcase(name, each) for each in models)


def told(one: StoredBudget) -> str:
    """``$500.00 a month``."""
    return f"{amount_told(one.budget.amount, one.budget.unit)} {EACH[one.budget.period]}"


def amount_told(amount: int, unit: str) -> str:
    return f"{count(amount)} tokens" if unit == "tokens" else money(amount)


EACH = {"day": "a day", "week": "a week", "month": "a month", "total": "in all"}


def with_limits(node: Node, limits: Limits, budgets: Sequence[StoredBudget]) -> Node:
    """As it would be."""
    return replace(node, limits=limits, budgets=tuple(budgets))
