"""The writing side of keys: made, changed, rolled, taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Row,
    Select,
    delete,
    func,
    insert,
    null,
    select,
    text,
    update,
)

from passy_plugins.stores.sql.principal import limits_of, names_of
from passy_plugins.stores.sql.schema import budgets, keys, teams, usage
from passy_plugins.stores.sql.writing import (
    LIMITS,
    Coder,
    Writing,
    coded,
    limits_in,
    list_of,
    milliseconds,
    networks_of,
    new_id,
    now,
    seconds,
    tags_of,
    text_of,
)
from passy_proxy import keys as client_keys
from passy_proxy.issue import DEFAULT_ALERTS, IssuedKey, NewKey
from passy_proxy.json import dumps
from passy_proxy.periods import PERIODS

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

NANOS = 1_000_000_000
"""In a dollar."""
MOST_DOLLARS, MOST_TOKENS = 9_000_000, 9_000_000_000_000_000
"""Of a budget: what counters can tell apart to the last billionth, and to the last token."""


class Issued(Writing):
    """Part of `Admin`. ValueError for what a key cannot be."""

    async def create_key(self, wanted: NewKey) -> tuple[IssuedKey, str]:
        """The record, and the key itself: this once."""
        key, key_id = client_keys.new_key(), new_id("key")
        fields = {name: getattr(wanted, name) for name in MADE}
        values = coded(fields | limits_in(wanted.limits), CODERS) | {
            "id": key_id,
            "digest": client_keys.digest(self._keyring.pepper, key.encode()),
            "shown": client_keys.shown(key),
            "email": None if wanted.is_test else wanted.email,
            "description": wanted.described(),
            "organisation": wanted.organisation,
            "is_test": wanted.is_test,
            "is_trial": wanted.is_trial,
            "created_by": wanted.created_by,
            "disabled": False,
            "created": now(),
        }
        limit = _usage_limit(key_id, wanted.usage_limit, wanted.usage_period, wanted.usage_unit)
        async with self._connected() as connection:
            await self._check_place(connection, wanted.organisation, wanted.team)
            await connection.execute(insert(keys).values(values))
            for statement in limit:
                await connection.execute(statement)
            await self._note(connection, "key", key_id)
        record = await self.get_key(key_id)
        assert record is not None
        return record, key

    async def list_keys(
        self, organisation: str | None = None, *, deleted: bool = False
    ) -> list[IssuedKey]:
        """All keys, or those of an organisation, oldest first; those that were deleted only where
        asked for."""
        wanted = KEYS.order_by(keys.c.created, keys.c.id)
        if organisation is not None:
            wanted = wanted.where(keys.c.organisation == organisation)
        if not deleted:
            wanted = wanted.where(keys.c.deleted.is_(None))
        return [issued(row) for row in await self._read(wanted)]

    async def keys_within(self, organisation: str) -> list[IssuedKey]:
        """As `list_keys`, without when they were used last: that takes a look into the books for
        each of them."""
        wanted = _keys(null()).where(keys.c.organisation == organisation, ALIVE)
        ordered = wanted.order_by(keys.c.created, keys.c.id)
        return [issued(row) for row in await self._read(ordered)]

    async def get_key(self, key_id: str) -> IssuedKey | None:
        """Also one that was deleted."""
        rows = await self._read(KEYS.where(keys.c.id == key_id))
        return issued(rows[0]) if rows else None

    async def change_key(self, key_id: str, **changes: Any) -> IssuedKey | None:
        """The record as it is now; ``None`` when there is no such key. See `Issuer`."""
        limit = {name: changes.pop(name) for name in LIMIT if name in changes}
        values = coded(changes, {**CODERS, "disabled": bool})
        async with self._connected() as connection:
            known = (await connection.execute(KEYS.where(keys.c.id == key_id, ALIVE))).first()
            if known is None:
                return None
            if "team" in values:
                await self._check_place(connection, known.organisation, values["team"])
            if values:
                mine = keys.c.id == key_id
                await connection.execute(update(keys).where(mine).values(values))
            if limit:
                was = issued(known)
                amount = limit.get("usage_limit", was.usage_limit)
                period = limit.get("usage_period", was.usage_period or "total")
                unit = limit.get("usage_unit", was.usage_unit or "usd")
                for statement in _usage_limit(key_id, amount, period, unit):
                    await connection.execute(statement)
            await self._note(connection, "key", key_id)
        return await self.get_key(key_id)

    async def disable_key(self, key_id: str) -> IssuedKey | None:
        return await self.change_key(key_id, disabled=True)

    async def roll_key(self, key_id: str, grace: float = 0.0) -> tuple[IssuedKey, str] | None:
        """See `Issuer`. Of several that are rolled within one grace only the last is good, and the
        one before it."""
        if not 0 <= grace <= LONGEST_GRACE:
            raise ValueError(f"a grace period is between 0 and {LONGEST_GRACE // 86_400} days")
        key, until = client_keys.new_key(), now() + int(grace * 1000)
        change = update(keys).where(keys.c.id == key_id, ALIVE)
        values = {
            "old_digest": keys.c.digest if grace else null(),
            "old_until": until if grace else None,
            "digest": client_keys.digest(self._keyring.pepper, key.encode()),
            "shown": client_keys.shown(key),
        }
        if not await self._change("key", key_id, change.values(values)):
            return None
        record = await self.get_key(key_id)
        assert record is not None
        return record, key

    async def delete_key(self, key_id: str) -> bool:
        """For good; whether there was one. Its record stays for the names in the books."""
        change = update(keys).where(keys.c.id == key_id, ALIVE).values(deleted=now())
        return bool(await self._change("key", key_id, change))

    async def _check_place(
        self, connection: AsyncConnection, organisation: str | None, team: str | None
    ) -> None:
        """ValueError for an organisation or a team that there is not, or not there."""
        if organisation is not None:
            found = await connection.execute(_ORGANISATION, {"id": organisation})
            if found.first() is None:
                raise ValueError(f"there is no organisation {organisation[:80]}")
        if team is not None:
            wanted = select(teams.c.organisation).where(teams.c.id == team)
            row = (await connection.execute(wanted.where(teams.c.status != "deleted"))).first()
            if row is None or row.organisation != organisation:
                raise ValueError(f"there is no team {team[:80]} in this organisation")


def _usage_limit(
    key_id: str, limit: float | None, period: str | None, unit: str
) -> list[Executable]:
    """What makes it the key's budget, in place of the one there was."""
    id = USAGE_LIMIT + key_id
    gone = delete(budgets).where(budgets.c.id == id)
    if limit is None:
        return [gone]
    values = {"id": id, "kind": "key", "subject": key_id, "unit": unit, "hard": True}
    values |= {"amount": amount_in(unit, limit), "period": period_of(period), "created": now()}
    return [gone, insert(budgets).values(values | {"alerts": dumps(DEFAULT_ALERTS).decode()})]


def amount_in(unit: str, limit: float) -> int:
    """As the books count it. ValueError for what is no amount of ``unit``."""
    if unit == "usd":
        return nanos_of(limit)
    if unit != "tokens":
        raise ValueError(f"no unit {unit!r}; write usd or tokens")
    if not 0 <= limit <= MOST_TOKENS or limit != int(limit):
        raise ValueError(f"a budget is between 0 and {MOST_TOKENS:,} whole tokens")
    return int(limit)


def nanos_of(dollars: float) -> int:
    """Billionths. ValueError for what is no amount of money."""
    if not 0 <= dollars <= MOST_DOLLARS:  # Which nan is not, either.
        raise ValueError(f"a budget is between 0 and {MOST_DOLLARS:,} dollars")
    return round(dollars * NANOS)


def period_of(period: str | None) -> str:
    if period not in PERIODS:
        raise ValueError(f"no period {period!r}; write {', '.join(PERIODS)}")
    return period


USAGE_LIMIT = "bud_"
"""Before a key's id: the id of the budget that its usage limit is."""
LIMIT = ("usage_limit", "usage_period", "usage_unit")
LONGEST_GRACE = 90 * 86_400

CODERS: Mapping[str, Coder] = {
    **LIMITS,
    "name": text_of,
    "email": lambda value: None if value is None else text_of(value),
    "description": text_of,
    "team": lambda team: team,
    "user_id": lambda user: user,
    "tags": tags_of,
    "networks": networks_of,
    "upstreams": list_of,
    "expires": milliseconds,
}
MADE = ("name", "team", "user_id", "tags", "models", "networks", "upstreams", "expires")

ALIVE = keys.c.deleted.is_(None)
_ORGANISATION = text("SELECT 1 FROM organisations WHERE id = :id AND status <> 'deleted'")

BY_KEY = text("usage.key_id <> ''")
"""What the index of usage by key is limited to; a query that does not say it is not given it."""
_LAST_USED = (
    select(func.max(usage.c.at)).where(usage.c.key_id == keys.c.id, BY_KEY).scalar_subquery()
)
_LIMIT = budgets.alias("usage_limit")


def _keys(last_used: ColumnElement[Any]) -> Select[Any]:
    return select(
        keys,
        last_used.label("last_used"),
        _LIMIT.c.amount.label("usage_limit"),
        _LIMIT.c.period.label("usage_period"),
        _LIMIT.c.unit.label("usage_unit"),
    ).outerjoin_from(keys, _LIMIT, _LIMIT.c.id == USAGE_LIMIT + keys.c.id)


KEYS = _keys(_LAST_USED)


def issued(row: Row[Any]) -> IssuedKey:
    """Of a row of `KEYS`."""
    rolled = row.old_until is not None and row.old_until > now()
    return IssuedKey(
        id=row.id,
        digest=row.digest,
        shown=row.shown,
        name=row.name,
        email=row.email,
        description=row.description,
        organisation=row.organisation,
        team=row.team,
        user_id=row.user_id,
        tags=_tags(row.tags),
        limits=limits_of((row.requests, row.tokens, row.concurrency)),
        models=names_of(row.models),
        networks=names_of(row.networks),
        upstreams=names_of(row.upstreams),
        usage_limit=_limit(row.usage_limit, row.usage_unit),
        usage_period=row.usage_period,
        usage_unit=row.usage_unit,
        expires=seconds(row.expires),
        disabled=row.disabled,
        is_test=row.is_test,
        is_trial=row.is_trial,
        created=row.created / 1000,
        created_by=row.created_by,
        old_until=seconds(row.old_until) if rolled else None,
        deleted=seconds(row.deleted),
        last_used=seconds(row.last_used),
    )


def _limit(amount: int | None, unit: str | None) -> float | None:
    return None if amount is None else amount / NANOS if unit == "usd" else float(amount)


def _tags(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
