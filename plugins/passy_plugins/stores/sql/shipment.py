"""A batch of usage on its way into PostgreSQL.

It goes there as the JSON that it is: the server takes it apart, in a process that is not ours.
Reading it here, to send rows, would hold up the event loop and cost six times as much (decision
0013).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from passy_plugins.stores.sql.evidence import Chain
from passy_proxy.json import dumps, loads
from passy_proxy.records import UsageRecord

if TYPE_CHECKING:
    import asyncpg

    from passy_plugins.stores.sql.blocking import Blocking
    from passy_proxy.keyring import Keyring

_NUMBERS = {
    "status": "integer",
    "streamed": "smallint",
    "estimated": "smallint",
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


_COLUMNS = ", ".join(UsageRecord._fields)
_VALUES = ", ".join(_read(place, column) for place, column in enumerate(UsageRecord._fields))

RECORDS = f"""
INSERT INTO usage ({_COLUMNS}) SELECT {_VALUES}
FROM jsonb_array_elements($1::jsonb) AS r ON CONFLICT DO NOTHING
"""
RECORDS_TOLD = RECORDS.replace("$1", "?") + f"RETURNING {_COLUMNS}"
PRICES = """
UPDATE usage SET cost_nanos = told.nanos, price = told.price
FROM (
  SELECT DISTINCT ON (r->>2) (r->>0)::bigint AS nanos, r->>1 AS price, r->>2 AS id
  FROM jsonb_array_elements($1::jsonb) AS r
) AS told
WHERE usage.id = told.id AND usage.cost_nanos IS NULL
"""


async def enter(
    connection: asyncpg.Connection, records: Sequence[bytes], prices: Sequence[bytes]
) -> None:
    """Within somebody's transaction."""
    if records:
        await connection.execute(RECORDS, listed(records))
    if prices:
        await connection.execute(PRICES, listed(prices))


def has_proof(record: bytes) -> bool:
    """Whether a `Proof` stands behind the row: a list that ends with a list of texts, where the
    attempts end with a list that ends with a truth value, or with nothing."""
    return record.endswith((b'"]]]', b"[]]]"))


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
