"""Keys of an organisation for people: found by what they are, in the order that is asked for, with
what they cost in a while. In pages, each key once, however many come meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, FromClause, Select, and_, func, literal, or_, select, text

from passy_plugins.stores.sql.counted import source
from passy_plugins.stores.sql.issued import KEYS, issued
from passy_plugins.stores.sql.pages import Page, paged, position_of, searched
from passy_plugins.stores.sql.reports import Asked
from passy_plugins.stores.sql.schema import keys, usage_days
from passy_plugins.stores.sql.writing import now
from passy_proxy.issue import IssuedKey

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

Order = Literal["oldest", "newest", "name", "spent", "used", "unused", "expires"]
State = Literal["active", "disabled", "expired"]
KeyKind = Literal["normal", "test", "trial"]

NEVER = (1 << 62) - 1
"""Milliseconds: when a key without an end expires, for its place in an order."""


@dataclass(frozen=True, slots=True)
class KeysAsked:
    organisation: str
    since: int
    """Milliseconds of Unix time, as is ``until``: what was spent in between is told."""
    until: int
    user: str | None = None
    team: str | None = None
    """``""``: those of no team."""
    state: State | None = None
    kind: KeyKind | None = None
    search: str = ""
    order: Order = "oldest"


class Listed(NamedTuple):
    key: IssuedKey
    nanos: int
    """Spent, in billionths of a dollar."""


async def listed(
    connected: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
    asked: KeysAsked,
    limit: int,
    cursor: str | None = None,
) -> Page:
    """`Listed`. ValueError for a cursor that is none of this order."""
    statement, place, descends = ordered(asked)
    if cursor is not None:
        kind = str if asked.order == "name" else int
        value, id = position_of(cursor, (kind, str))
        further = place < value if descends else place > value
        statement = statement.where(or_(further, and_(place == value, keys.c.id > id)))
    by = place.desc() if descends else place.asc()
    async with connected() as connection:
        found = await connection.execute(statement.order_by(by, keys.c.id).limit(limit + 1))
        rows = found.all()

    def position(row: Row[Any]) -> tuple[Any, str]:
        return row.place if asked.order == "name" else int(row.place), row.id

    page = paged(rows, limit, position)
    return Page([Listed(issued(row), int(row.nanos)) for row in page.rows], page.cursor)


def ordered(asked: KeysAsked) -> tuple[Select[Any], ColumnElement[Any], bool]:
    """What is looked for, what says the place of a row, and whether the most comes first."""
    rows = source(Asked(asked.since, asked.until, {"organisation": asked.organisation}), "total",
                  ["key"])  # fmt: skip
    spent = (
        select(rows.c.key_id, func.sum(rows.c.cost_nanos).label("nanos"))
        .group_by(rows.c.key_id)
        .subquery()
    )
    nanos = func.coalesce(spent.c.nanos, 0)
    wanted = KEYS.outerjoin(spent, spent.c.key_id == keys.c.id)
    places: Mapping[Order, tuple[ColumnElement[Any], bool]] = {
        "oldest": (keys.c.created, False),
        "newest": (keys.c.created, True),
        "name": (
            func.lower(func.coalesce(func.nullif(keys.c.name, ""), keys.c.description)),
            False,
        ),
        "spent": (nanos, True),
        "expires": (func.coalesce(keys.c.expires, literal(NEVER)), False),
    }
    if asked.order in ("used", "unused"):
        last = _last_days(asked.organisation)
        wanted = wanted.outerjoin(last, last.c.key_id == keys.c.id)
        places = {asked.order: (func.coalesce(last.c.day, 0), asked.order == "used")}
    place, descends = places[asked.order]
    statement = wanted.add_columns(nanos.label("nanos"), place.label("place"))
    conditions = [keys.c.organisation == asked.organisation, keys.c.deleted.is_(None),
                  *_conditions(asked)]  # fmt: skip
    named = (keys.c.id, keys.c.shown, keys.c.name, keys.c.description, keys.c.email)
    return searched(statement.where(*conditions), asked.search, *named), place, descends


def _last_days(organisation: str) -> FromClause:
    """The day each key was used last, by the sums: enough for an order, and little to read."""
    c = usage_days.c
    return (
        select(c.key_id, func.max(c.start).label("day"))
        .where(c.organisation == organisation, text("usage_days.organisation <> ''"))
        .group_by(c.key_id)
        .subquery()
    )


def _conditions(asked: KeysAsked) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if asked.user is not None:
        found.append(keys.c.user_id == asked.user)
    if asked.team is not None:
        found.append(keys.c.team == asked.team if asked.team else keys.c.team.is_(None))
    expired = and_(keys.c.expires.is_not(None), keys.c.expires <= now())
    if asked.state == "disabled":
        found.append(keys.c.disabled)
    elif asked.state is not None:
        found.append(~keys.c.disabled)
        found.append(expired if asked.state == "expired" else ~expired)
    if asked.kind == "normal":
        found.append(~or_(keys.c.is_test, keys.c.is_trial))
    elif asked.kind is not None:
        found.append(keys.c.is_test if asked.kind == "test" else keys.c.is_trial)
    return found
