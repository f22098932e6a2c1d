"""A principal of the rows that `statements.PRINCIPAL` finds: one for each budget on its levels."""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest
from typing import Any, Literal, cast

from passy_plugins.stores.sql.database import Row
from passy_plugins.stores.sql.statements import rate_of
from passy_proxy.json import loads
from passy_proxy.records import ECHO_ONLY, Budget, Level, Limits, Principal

LEVELS: tuple[Literal["organisation", "team", "user"], ...] = ("organisation", "team", "user")
KEY, LEVEL = 19, 6
"""Columns of a key; of each level."""


def principal_of(rows: Sequence[Row], digest: bytes) -> Principal | None:
    """``digest`` is what was asked for: the key's own, or of the key before it was rolled."""
    if not rows:
        return None
    row: Sequence[Any] = rows[0]
    key_id, name, own_digest, organisation, team, user = row[:6]
    expires, old_until, disabled, is_test, is_trial, tags, networks, upstreams, byok = row[6:15]
    if not compare_digest(own_digest, digest):
        expires = old_until if expires is None else min(expires, old_until)
    reach = names_of(upstreams)
    if reach is None and is_test:
        reach = ECHO_ONLY
    budgets: dict[str, list[Budget]] = {}
    for each in sorted(rows, key=lambda each: str(each[-6])):
        kind = cast("str | None", each[-7])
        if kind is not None:
            budgets.setdefault(kind, []).append(budget_of(each[-6:]))
    above = []
    for number, level in enumerate(LEVELS):
        at = KEY + number * LEVEL
        status, *limits, models = row[at + 1 : at + LEVEL]
        disabled = disabled or status not in (None, "active")
        found = Level(
            level,
            row[at] or "",
            limits_of(limits),
            names_of(models),
            tuple(budgets.get(level, ())),
        )
        if row[at] is not None and found != Level(level, found.id):
            above.append(found)
    return Principal(
        key_id=key_id,
        name=name,
        organisation=organisation,
        limits=limits_of(row[15:18]),
        models=names_of(row[18]),
        expires=None if expires is None else expires / 1000,
        disabled=bool(disabled),
        is_test=bool(is_test),
        is_trial=bool(is_trial),
        team=team,
        user=user,
        tags=tags,
        budgets=tuple(budgets.get("key", ())),
        above=tuple(above),
        networks=names_of(networks),
        upstreams=reach,
        byok=byok or "own_first",
    )


def budget_of(row: Sequence[Any]) -> Budget:
    """Of the columns id, unit, amount, period, hard and alerts."""
    id, unit, amount, period, hard, alerts = row
    return Budget(id, unit, amount, period, bool(hard), tuple(loads(alerts)))


def limits_of(row: Sequence[Any]) -> Limits:
    """Of the columns requests, tokens and concurrency."""
    requests, tokens, concurrency = row
    return Limits(rate_of(requests), rate_of(tokens), concurrency)


def names_of(text: str | None) -> tuple[str, ...] | None:
    """A JSON list, as models, networks and upstreams are kept."""
    return None if text is None else tuple(loads(text))
