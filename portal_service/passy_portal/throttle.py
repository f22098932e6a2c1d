"""How often somebody may fail to sign in: less and less often, by account and by address.

An account is the e-mail that was typed, whether anybody has it or not. A browser that has signed in
to it before counts for itself, so that a stranger who hammers at it does not keep its owner out.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from ipaddress import IPv6Address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import delete, text

from passy_portal.tables import attempts
from passy_proxy.addresses import address_of

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin


class Patience(NamedTuple):
    """``free`` failures cost nothing, then the wait doubles from a second up to ``longest``."""

    free: int
    longest: int
    """Seconds."""


ACCOUNT = Patience(5, 30)
ADDRESS = Patience(20, 900)
SECOND = Patience(5, 900)
"""Of codes: there are a million, and three are right."""
FORGOTTEN = 86_400_000
"""Milliseconds after which a failure counts no more."""

_FAILED = text(
    "INSERT INTO portal_attempts (subject, failures, at) VALUES (:subject, 1, :at)"
    " ON CONFLICT (subject) DO UPDATE SET failures = portal_attempts.failures + 1, at = :at"
)
_LOOK = text("SELECT failures, at FROM portal_attempts WHERE subject = :subject")


class Throttle:
    """Counts in the database: for all workers, and over restarts. Raises `StoreUnavailable`."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._turn = asyncio.Lock()

    async def enter(
        self, email: str, address: str, browser: str = "", *, second: bool = False
    ) -> float:
        """Seconds to wait before this may be tried; 0: try it now. It counts as a failure at once,
        so that a thousand at the same moment are not one; `forgive` takes that back. ``browser``:
        the id of one that is known to the account. ``second``: a code, and not a password."""
        subjects = _subjects(email, address, browser, second=second)
        now = int(time.time() * 1000)
        # One after the other, and in turn: of many who wait for SQLite's lock, some wait too long,
        # and a flood of tries would take the connections that pages need.
        async with (
            self._turn,
            self._admin.together("portal attempts"),
            self._admin.connected() as connection,
        ):
            wait = 0.0
            for subject, patience in subjects:
                row = (await connection.execute(_LOOK, {"subject": subject})).first()
                if row is not None and row.at > now - FORGOTTEN:
                    wait = max(wait, row.at / 1000 + _pause(row.failures, patience) - now / 1000)
            if wait > 0:
                return wait
            await connection.execute(delete(attempts).where(attempts.c.at <= now - FORGOTTEN))
            for subject, _ in subjects:
                await connection.execute(_FAILED, {"subject": subject, "at": now})
        return 0.0

    async def forgive(
        self, email: str, address: str, browser: str = "", *, second: bool = False
    ) -> None:
        """It was them. The address is forgiven this one try only: who owns an account must not get
        to guess at others for ever."""
        (account, _), (place, _) = _subjects(email, address, browser, second=second)
        one = text("UPDATE portal_attempts SET failures = failures - 1 WHERE subject = :subject")
        async with self._admin.connected() as connection:
            await connection.execute(delete(attempts).where(attempts.c.subject == account))
            await connection.execute(one, {"subject": place})


def _pause(failures: int, patience: Patience) -> float:
    over = failures - patience.free
    return 0.0 if over < 0 else float(min(2 ** min(over, 20), patience.longest))


def _subjects(
    email: str, address: str, browser: str, *, second: bool
) -> tuple[tuple[bytes, Patience], tuple[bytes, Patience]]:
    kind, patience = ("second", SECOND) if second else ("account", ACCOUNT)
    return (
        (_digest(kind, f"{browser} {email}"), patience),
        (_digest("address", place_of(address)), ADDRESS),
    )


def place_of(address: str) -> str:
    """Who has one address of IPv6 has all of its /64."""
    found = address_of(address)
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False))
    return str(found)


def _digest(kind: str, subject: str) -> bytes:
    return hashlib.sha256(f"{kind}:{subject}".encode(errors="replace")).digest()
