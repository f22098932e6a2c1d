"""The audit log: who changed what, when, from what to what. Entries are added, never changed.

Each entry is attested together with the one before it, by a key that the database does not hold:
whoever edits, removes, moves or adds a row there cannot make the rest fit again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select

from passy_portal.tables import audit
from passy_proxy.json import dumps, loads
from passy_proxy.keyring import KeyringError

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from passy_proxy.keyring import Keyring

TURN = "portal audit"
"""What `Admin.together` is given by all who enter something."""
_FACTS = ("seq", "at", "organisation", "actor", "address", "action", "subject", "before", "after")
_PIECE = 1_000


@dataclass(frozen=True, slots=True)
class Who:
    """Whose change it is, and from where."""

    organisation: str
    actor: str
    """A user's id; empty where nobody had signed in."""
    address: str


@dataclass(frozen=True, slots=True)
class Entry:
    seq: int
    at: float
    """Unix seconds."""
    actor: str
    address: str
    action: str
    """``key.create``: what it is about, and what was done."""
    subject: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(slots=True)
class Noted:
    """What is said of a change: whose, of what, and from what to what, without a secret."""

    who: Who
    subject: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    at: int = field(default_factory=lambda: int(time.time() * 1000))
    """When, in milliseconds."""
    left_out: bool = False
    """Nothing was changed after all."""


async def enter(
    connection: AsyncConnection,
    keyring: Keyring,
    action: str,
    noted: Noted,
) -> None:
    """Within `Admin.together` of `TURN`."""
    last = (
        await connection.execute(
            select(audit.c.seq, audit.c.link).order_by(audit.c.seq.desc()).limit(1)
        )
    ).first()
    row = {
        "seq": last.seq + 1 if last else 1,
        "at": noted.at,
        "organisation": noted.who.organisation,
        "actor": noted.who.actor,
        "address": noted.who.address,
        "action": action,
        "subject": noted.subject,
        "before": dumps(dict(noted.before)).decode(),
        "after": dumps(dict(noted.after)).decode(),
    }
    link = keyring.attest(_sealed(last.link if last else "", row))
    await connection.execute(insert(audit).values(**row, link=link))


async def entries(
    connection: AsyncConnection, organisation: str, before: int | None, limit: int
) -> list[Entry]:
    """Those of an organisation, latest first, from before an entry on."""
    wanted = select(audit).where(audit.c.organisation == organisation)
    if before is not None:
        wanted = wanted.where(audit.c.seq < before)
    rows = (await connection.execute(wanted.order_by(audit.c.seq.desc()).limit(limit))).all()
    return [_entry(row) for row in rows]


async def broken(connection: AsyncConnection, keyring: Keyring) -> int | None:
    """The first place in the log that is not as it was written; ``None`` where there is none. What
    is cut off at its end cannot be seen from within."""
    link, seq = "", 0
    while True:
        wanted = select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(_PIECE)
        rows = (await connection.execute(wanted)).all()
        for row in rows:
            facts = {name: row._mapping[name] for name in _FACTS}
            if row.seq != seq + 1 or not _attested(keyring, _sealed(link, facts), row.link):
                return seq + 1
            link, seq = row.link, row.seq
        if len(rows) < _PIECE:
            return None


async def length(connection: AsyncConnection) -> int:
    """Entries of all organisations."""
    return int((await connection.execute(select(func.count()).select_from(audit))).scalar_one())


def _sealed(link: str, facts: Mapping[str, Any]) -> bytes:
    return b"portal/audit/v1" + dumps([link, *(facts[name] for name in _FACTS)])


def _attested(keyring: Keyring, data: bytes, link: str) -> bool:
    try:
        return keyring.attested(data, link)
    except KeyringError:
        return False


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        row.seq, row.at / 1000, row.actor, row.address, row.action, row.subject,
        loads(row.before), loads(row.after),
    )  # fmt: skip
