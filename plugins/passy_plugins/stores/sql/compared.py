"""Whether the sums by hour and day are those of the records that say that they are in them.

Only of times of which no records were dropped for their age. A price that became known later is in
the sums of those without one, so prices are not told apart here.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any

from passy_plugins.stores.sql import statements
from passy_plugins.stores.sql.blocking import Connection
from passy_plugins.stores.sql.sums import AMOUNTS, COUNTS, DIMENSIONS, SPANS, grouped
from passy_proxy.evidence import Verdict, WrongSum

TOLD = tuple(name for name in DIMENSIONS if name != "price")
NUMBERS = (*COUNTS, *AMOUNTS)
UNITS = {"usage_hours": "hour", "usage_days": "day"}
FORMS = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d"}


def compare(connection: Connection, verdict: Verdict) -> None:
    """Enter in ``verdict`` how many sums were looked at, and which are wrong. The last question of
    a transaction: where a column holds what it should not, it may end it."""
    try:
        _compare(connection, verdict)
    except (sqlite3.Error, ValueError, OverflowError) as error:
        verdict.wrong_sums.append(WrongSum("", "", "", f"they cannot be compared: {error}"))


def _compare(connection: Connection, verdict: Verdict) -> None:
    # What evidence says of it is under our key; the mark is anybody's.
    since = verdict.dropped_before or kept_from(connection)
    for table in SPANS:
        count = f"SELECT count(*) FROM {table} WHERE start >= {since}"
        ((found,),) = connection.execute(count).fetchall()
        verdict.sums += found
        wrong: dict[tuple[Any, ...], list[Any]] = {}
        for place, statement in enumerate(_differing(connection, table, since)):
            for row in connection.execute(statement):
                numbers = row[1 + len(TOLD) :]
                wrong.setdefault(row[: 1 + len(TOLD)], [None, None])[place] = numbers
        for key in sorted(wrong, key=str):
            verdict.wrong_sums.append(_told(UNITS[table], key, *wrong[key]))


def kept_from(connection: Connection) -> int:
    """From which moment on all records are there, in milliseconds."""
    found = connection.execute(statements.MARK, (statements.KEPT_FROM,)).fetchone()
    return int(found[0]) if found else 0


def _differing(connection: Connection, table: str, since: int) -> tuple[str, str]:
    """What the sums say and the records do not; and what the records say and the sums do not."""
    dialect = "sqlite" if isinstance(connection, sqlite3.Connection) else "postgresql"
    dimensions, by = ", ".join(TOLD), ", ".join(map(str, range(1, 2 + len(TOLD))))
    added = ", ".join(f"sum({name})" for name in NUMBERS)
    records = grouped(f"usage WHERE summed = 1 AND at >= {since}", dialect)
    span = SPANS[table]
    kept = f"SELECT start, {dimensions}, {added} FROM {table} WHERE start >= {since} GROUP BY {by}"
    reckoned = (
        f"SELECT start - start % {span}, {dimensions}, {added} FROM ({records}) AS r GROUP BY {by}"
    )
    return f"{kept} EXCEPT {reckoned}", f"{reckoned} EXCEPT {kept}"


def _told(unit: str, key: tuple[Any, ...], kept: Any, reckoned: Any) -> WrongSum:
    at, *values = key
    nothing = (0,) * len(NUMBERS)
    differing = [
        f"{name} {said}, the records come to {meant}"
        for name, said, meant in zip(NUMBERS, kept or nothing, reckoned or nothing, strict=True)
        if said != meant
    ]
    return WrongSum(
        unit,
        _moment(at, FORMS[unit]),
        ", ".join(f"{name} {each}" for name, each in zip(TOLD, values, strict=True) if each != ""),
        "; ".join(differing),
    )


def _moment(at: Any, form: str) -> str:
    """What stands there, where it is no moment."""
    try:
        return f"{datetime.fromtimestamp(at / 1000, UTC):{form}}"
    except (TypeError, ValueError, OverflowError, OSError):
        return str(at)
