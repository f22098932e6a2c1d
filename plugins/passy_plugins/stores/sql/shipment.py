"""A batch of usage on its way into PostgreSQL.

It goes there as the JSON that it is: the server takes it apart, in a process that is not ours.
Reading it here, to send rows, would hold up the event loop and cost several times as much (decision
0018).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from passy_plugins.stores.sql import arrivals, sums
from passy_plugins.stores.sql.blocking import numbered
from passy_plugins.stores.sql.evidence import Chain
from passy_proxy.json import dumps, loads
from passy_proxy.records import UsageRecord

if TYPE_CHECKING:
    import asyncpg

    from passy_plugins.stores.sql.blocking import Blocking
    from passy_proxy.keyring import Keyring

_NUMBERS = {
    "status": "integer",
    # Written as truth or as a number.
    "streamed": "boolean::integer",
    "estimated": "boolean::integer",
    "first_ms": "integer",
    "duration_ms": "integer",
} | dict.fromkeys(
    (
        "at",
        "input",
        "output",
        "cached",
        "cache_write",
        "reasoning",
        "audio_input",
        "audio_output",
        "cost_nanos",
    ),
    "bigint",
)


def _read(place: int, column: str) -> str:
    kind = _NUMBERS.get(column)
    return f"(r->>{place})::{kind}" if kind else f"r->>{place}"


_PROOF = re.compile(rb'\],\["[^"]*","[^"]*",\[[^][]*\]\]\]\Z').search
_COLUMNS = ", ".join(UsageRecord._fields)
_VALUES = ", ".join(_read(place, column) for place, column in enumerate(UsageRecord._fields))


def summed(change: str, source: str, *, priced: bool = False) -> str:
    """``change``, of which ``new`` are the rows, and the sums of them."""
    hours = sums.add("usage_hours", "SELECT * FROM added", "postgresql")
    days = sums.add("usage_days", sums.by_day("added"), "postgresql")
    added = sums.grouped(source, "postgresql", priced=priced)
    return f"WITH {change}, added AS ({added}), hours AS ({hours}), days AS ({days})"


_ENTERED = summed(
    f"new AS (INSERT INTO usage ({_COLUMNS}, summed) SELECT {_VALUES}, 1"
    " FROM jsonb_array_elements(?::jsonb) AS r ON CONFLICT DO NOTHING RETURNING *),"
    f" arrived AS ({arrivals.NOTE} FROM new HAVING count(*) > 0)",
    "new",
)
RECORDS, RECORDS_TOLD = (f"{_ENTERED} SELECT {what} FROM new" for what in ("count(*)", _COLUMNS))
_PRICED = """
told AS (
  SELECT DISTINCT ON (r->>2) (r->>0)::bigint AS nanos, r->>1 AS price, r->>2 AS id
  FROM jsonb_array_elements(?::jsonb) WITH ORDINALITY AS listed (r, place)
  ORDER BY r->>2, place
),
new AS (
  UPDATE usage SET cost_nanos = told.nanos, price = told.price
  FROM told WHERE usage.id = told.id AND usage.cost_nanos IS NULL
  RETURNING usage.*
)
"""
PRICES = f"{summed(_PRICED, 'new WHERE summed = 1', priced=True)} SELECT count(*) FROM new"
_LATE = f"""
late AS (
  SELECT id, at FROM usage WHERE summed = 0 AND (cost_nanos IS NOT NULL OR at < ?)
  ORDER BY at LIMIT {sums.AT_ONCE} FOR UPDATE SKIP LOCKED
),
new AS (
  UPDATE usage SET summed = 1 FROM late WHERE usage.id = late.id AND usage.at = late.at
  RETURNING usage.*
)
"""
LATE = f"{summed(_LATE, 'new')} SELECT count(*) FROM new".replace("?", "$1")
"""Adds records that somebody has entered who knows of no sums; at most so many at once."""


async def enter(
    connection: asyncpg.Connection, records: Sequence[bytes], prices: Sequence[bytes]
) -> None:
    """Within somebody's transaction."""
    if records:
        await connection.fetch(numbered(RECORDS), listed(records))
    if prices:
        await connection.fetch(numbered(PRICES), listed(prices))


def has_proof(record: bytes) -> bool:
    """Whether a `Proof` stands behind the row: two texts and a list of texts, behind the attempts'
    list. Within a text there would be a backslash before a quotation mark."""
    return record.endswith((b'"]]]', b"[]]]")) and _PROOF(record) is not None


def prove(
    connection: Blocking, records: Sequence[bytes], prices: Sequence[bytes], keyring: Keyring
) -> None:
    """`enter`, and each row in the chain of evidence. Within a transaction that is alone with the
    chains."""
    chain = Chain.last(connection, keyring) or Chain.begun(connection, keyring)
    if records:
        told = connection.execute(RECORDS_TOLD, (listed(records),)).fetchall()
        rows = (loads(record) for record in records if has_proof(record))
        proofs: dict[str, Sequence[Any]] = {}
        for row in rows:
            proofs.setdefault(row[0], row[-1])
        chain.enter_all(told, proofs)
    for price in prices:
        nanos, text, id = loads(price)
        chain.price(id, (nanos, text, id))
    chain.close()


def listed(each: Sequence[bytes]) -> str:
    """As one JSON list, without what PostgreSQL keeps in no text: NUL."""
    whole = b"[%b]" % b",".join(each)
    if b"\\u0000" in whole:
        whole = dumps(_kept(loads(whole)))
    return whole.decode()


def _kept(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return [_kept(each) for each in value] if isinstance(value, list) else value
