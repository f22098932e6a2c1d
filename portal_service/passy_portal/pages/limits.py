"""Limits and budgets as a tree: what holds on each level, what is used of it and how long it lasts.

It is edited where it stands, after a look at what it would have refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import APIRouter, Query, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.words import Id, UserId
from passy_plugins.stores.sql.issued import NANOS
from passy_plugins.stores.sql.reports import Asked
from passy_portal import fields
from passy_portal.door import Form
from passy_portal.levels import Preview, Wanted, WantedBudget, change, held_on, node_of, preview
from passy_portal.pages.reading import now
from passy_portal.replay import MOST
from passy_portal.standing import DAYS, Standing, standings
from passy_portal.tree import EACH, Node, OrganisationLimits, Tree, amount_told, tree_of
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy.issue import Kind, Unit
from passy_proxy.periods import PERIODS, Period
from passy_proxy.records import Limits

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_plugins.stores.sql.admin import Admin

router = APIRouter()

PATHS: Mapping[Kind, str] = {
    "organisation": "/limits/organisation",
    "team": "/limits/team/{}",
    "user": "/limits/member/{}",
    "key": "/limits/key/{}",
}
SHOWN = 25
"""Keys below one level that have limits of their own."""
NAMED = 20
"""Keys below one level that have none, by name."""
MEASURED = 30
"""Levels whose use of their rates is looked up."""
UNITS = ("usd", "tokens")


@dataclass(slots=True)
class Editing:
    """The form that is open."""

    node: Node
    values: dict[str, str]
    error: str = ""
    at: str = ""
    seen: Preview | None = None


@dataclass(slots=True)
class Drawn:
    """The tree with what is used of it."""

    tree: Tree
    standings: dict[str, Standing]
    rates: dict[tuple[str, str], int]
    """Id and ``requests`` or ``tokens`` → what was used in the last period of that rate."""
    groups: list[tuple[Node | None, list[Node], list[Node], int]] = field(default_factory=list)
    """A team, or what has none → its keys with limits, some of those without, and how many those
    are."""


def policy_of(request: Request) -> OrganisationLimits:
    policy: OrganisationLimits = request.app.state.office.settings.organisation_limits
    return policy


@router.get("/limits")
async def limits(
    request: Request,
    edit: Annotated[Kind | None, Query()] = None,
    id: Annotated[UserId | None, Query()] = None,
) -> Response:
    """The tree; with the form of one level where that is asked for."""
    accounts, visitor = await accounts_of(request), visitor_of(request)
    editing = None
    if edit is not None:
        wanted = visitor.organisation if edit == "organisation" else id or ""
        node = await node_of(accounts.admin, visitor, policy_of(request), edit, wanted)
        editing = Editing(node, values_of(held_on(node)))
    return await _page(request, editing)


@router.post("/limits/organisation")
async def change_organisation(request: Request) -> Response:
    """What holds for all of it."""
    return await _changed(request, "organisation", visitor_of(request).organisation)


@router.post("/limits/team/{id}")
async def change_team(request: Request, id: Id) -> Response:
    """What holds for all keys of a team."""
    return await _changed(request, "team", id)


@router.post("/limits/member/{user_id}")
async def change_member(request: Request, user_id: UserId) -> Response:
    """What holds for all keys of a member."""
    return await _changed(request, "user", user_id)


@router.post("/limits/key/{id}")
async def change_key(request: Request, id: Id) -> Response:
    """What holds for a key."""
    return await _changed(request, "key", id)


async def _changed(request: Request, kind: Kind, id: str) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    node = await node_of(accounts.admin, visitor, policy_of(request), kind, id)
    form: Form = request.state.form
    editing = Editing(node, dict(form))
    try:
        does = fields.one_of(form, "do", ("preview", "save"))
        wanted = wanted_of(form, node)
        form.end()
        if does == "preview":
            editing.seen = await preview(accounts.admin, node, wanted, now())
            return await _page(request, editing)
        await change(accounts, visitor, node, wanted)
    except Denied as error:
        editing.error, editing.at = str(error), error.param or ""
        return await _page(request, editing, error.status)
    return moved(request, "/limits", "limits")


async def _page(request: Request, editing: Editing | None, status: int = 200) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    tree = await tree_of(accounts.admin, visitor, policy_of(request))
    drawn = await drawn_of(accounts.admin, tree, editing.node if editing else None)
    return page(
        request, "limits.html", status=status, drawn=drawn, tree=tree, editing=editing,
        paths=PATHS, each=EACH, amount_told=amount_told, rate_told=fields.rate_told,
        days=DAYS, most=MOST, periods=PERIODS,
        bare=all(node.is_bare for node in tree),
    )  # fmt: skip


async def drawn_of(admin: Admin, tree: Tree, open: Node | None) -> Drawn:
    """``open`` is shown whatever is held on it."""
    shown = [tree.organisation, *tree.teams, *tree.members]
    groups = []
    for team in (*tree.teams, None):
        keys = tree.keys_of(team.id if team else None)
        held = [one for one in keys if not one.is_bare or (open and open.id == one.id)]
        rest = [one for one in keys if one not in held]
        if team is not None or keys:
            groups.append((team, held[:SHOWN], rest[:NAMED], len(keys) - len(held[:SHOWN])))
            shown += held[:SHOWN]
    seen = [one for one in shown if one.counts]
    budgets = [budget for one in seen for budget in one.budgets]
    moment = now()
    stand = await standings(admin, budgets, moment)
    return Drawn(tree, stand, await _rates(admin, seen, moment), groups)


async def _rates(admin: Admin, nodes: Sequence[Node], moment: int) -> dict[tuple[str, str], int]:
    found = {}
    rated = [one for one in nodes if one.limits.requests or one.limits.tokens]
    for node in rated[:MEASURED]:
        for what, rate in (("requests", node.limits.requests), ("tokens", node.limits.tokens)):
            if rate is not None:
                begin = moment - round(rate.seconds * 1000)
                sums = await admin.reports.totals(Asked(begin, moment, {node.kind: node.id}))
                found[node.id, what] = sums.requests if what == "requests" else sums.tokens
    return found


def values_of(wanted: Wanted) -> dict[str, str]:
    """As the fields of its form."""
    held = wanted.limits
    values = {
        "requests": fields.rate_typed(held.requests),
        "tokens": fields.rate_typed(held.tokens),
        "concurrency": str(held.concurrency or ""),
        "models": ", ".join(wanted.models or ()),
        "amount-new": "", "unit-new": "usd", "period-new": "month", "hard-new": "hard",
        "alerts-new": "50, 80, 100",
    }  # fmt: skip
    for one in wanted.budgets:
        values |= {
            f"amount-{one.id}": amount_typed(one.amount, one.unit),
            f"hard-{one.id}": "hard" if one.hard else "soft",
            f"alerts-{one.id}": ", ".join(map(str, one.alerts)),
        }
    return values


def amount_typed(amount: int, unit: str) -> str:
    if unit == "tokens":
        return str(amount)
    return f"{amount // NANOS}.{amount % NANOS:09}".rstrip("0").rstrip(".")


def wanted_of(form: Form, node: Node) -> Wanted:
    """What a form says of a level. A budget without an amount is removed."""
    limits = Limits(
        fields.rate(form, "requests"),
        fields.rate(form, "tokens"),
        fields.whole(form, "concurrency"),
    )
    models = tuple(form.lines("models")) or None
    budgets = []
    for one in node.budgets:
        budget = one.budget
        found = _budget(form, budget.id, budget.unit, budget.period)
        if found is not None:
            budgets.append(found)
    unit = fields.one_of(form, "unit-new", UNITS)
    period = fields.one_of(form, "period-new", PERIODS)
    added = _budget(form, "new", cast(Unit, unit), cast(Period, period))
    if added is not None:
        budgets.append(added)
    return Wanted(limits, models, tuple(budgets))


def _budget(form: Form, id: str, unit: Unit, period: Period) -> WantedBudget | None:
    amount: int | None
    if unit == "tokens":
        amount = fields.tokens(form, f"amount-{id}")
    else:
        dollars = fields.dollars(form, f"amount-{id}")
        amount = None if dollars is None else round(dollars * NANOS)
    hard = fields.one_of(form, f"hard-{id}", ("hard", "soft")) == "hard"
    alerts = fields.percents(form, f"alerts-{id}")
    if amount is None:
        return None
    return WantedBudget(unit, amount, period, hard, alerts, "" if id == "new" else id)


def told_of(seen: Preview) -> dict[str, Any]:
    """What a page says of a preview."""
    by = [(name if name in ("requests", "tokens", "concurrency") else "budgets", n)
          for name, n in seen.wanted.by.items()]  # fmt: skip
    sums: dict[str, int] = {}
    for name, n in by:
        sums[name] = sums.get(name, 0) + n
    return {"refused": seen.wanted.refused, "today": seen.today.refused, "by": sums}
