"""Records that are dropped because they are old, and what the chains of evidence say instead.

Sums of them stay (``sums.py``). Where there is evidence, the entries of what is dropped go with it,
and in their place stands a mark for each run of them: which they were, and the link that the next
entry was made upon, under the same key as the chain. So a chain is whole around what was dropped,
and nobody who has not the key can say of a record that he took away that it was old.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from passy_plugins.stores.sql import statements
from passy_plugins.stores.sql.blocking import Connection
from passy_plugins.stores.sql.evidence import Chain, canonical
from passy_proxy.json import loads
from passy_proxy.keyring import Keyring, KeyringError

GAP, TOTAL = "dropped:", "dropped"
"""Marks: of a run of entries (``dropped:<chain>:<first>``), and of all that was dropped."""


class Gap(NamedTuple):
    """A run of entries that were dropped."""

    chain: int
    first: int
    last: int
    link: str
    """Of the last one."""

    @property
    def name(self) -> str:
        return f"{GAP}{self.chain}:{self.first}"


class Total(NamedTuple):
    """All that was dropped since there is evidence."""

    records: int
    before: int
    """Unix milliseconds: they were of a time before that."""


def gaps_of(connection: Connection, keyring: Keyring) -> tuple[dict[tuple[int, int], Gap], bool]:
    """By chain and first entry; and whether there are others, which are not ours."""
    found, strange = {}, False
    for name, text in connection.execute(statements.GAPS).fetchall():
        try:
            gap = Gap(*_unsealed("gap", text, keyring))
            found[gap.chain, gap.first] = gap
            strange |= gap.name != name
        except (ValueError, TypeError, KeyringError):
            strange = True
    return found, strange


def total_of(connection: Connection, keyring: Keyring) -> Total | None:
    """``None`` when the mark of it is not ours."""
    row = connection.execute(statements.MARK, (TOTAL,)).fetchone()
    if row is None:
        return Total(0, 0)
    try:
        return Total(*_unsealed("total", row[0], keyring))
    except (ValueError, TypeError, KeyringError):
        return None


def forget(
    connection: Connection, keyring: Keyring, source: str, values: Sequence[Any], oldest: int
) -> None:
    """Take what is known of the records of ``source`` (a table, and its WHERE) out of the chains:
    within the transaction that drops them, of a time before ``oldest``."""
    chain = Chain.last(connection, keyring)
    if chain is None:
        return
    execute = connection.execute
    ((records,),) = execute(f"SELECT count(*) FROM {source}", values).fetchall()
    ((bare,),) = execute(statements.without_entries(source), values).fetchall()
    gaps, _ = gaps_of(connection, keyring)
    by_end = {(gap.chain, gap.last): gap for gap in gaps.values()}
    for number, first, last, link in execute(statements.runs_of(source), values).fetchall():
        gap = Gap(number, first, last, link)
        if (before := by_end.pop((number, first - 1), None)) is not None:
            gap = gap._replace(first=before.first)
        if (behind := gaps.pop((number, last + 1), None)) is not None:
            by_end.pop((number, behind.last))
            gap = gap._replace(last=behind.last, link=behind.link)
            execute(statements.DROP_MARK, (behind.name,)).fetchall()
        gaps[number, gap.first] = by_end[number, gap.last] = gap
        value = _sealed("gap", gap, keyring)
        execute(statements.MOVE_MARK, (gap.name, value)).fetchall()
    execute(statements.drop_entries(source), values).fetchall()
    total = total_of(connection, keyring) or Total(0, 0)
    total = Total(total.records + records, max(total.before, oldest))
    execute(statements.MOVE_MARK, (TOTAL, _sealed("total", total, keyring))).fetchall()
    chain.drop(bare)
    chain.close()


def _sealed(kind: str, said: Sequence[Any], keyring: Keyring) -> str:
    return canonical([*said, keyring.attest(canonical([kind, *said]))]).decode()


def _unsealed(kind: str, text: Any, keyring: Keyring) -> Sequence[Any]:
    """ValueError when it is not ours."""
    said: list[Any]
    *said, made = loads(text)
    if not keyring.attested(canonical([kind, *said]), made):
        raise ValueError("not ours")
    return said
