"""Second factors: the secret that an app has too, and codes for who has lost the app.

A secret is sealed with the key ring and bound to its user and to the moment it was made. Recovery
codes are 80 random bits, kept as digests; each is good once, and so is each code of the app.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select, update

from passy_plugins.stores.sql.schema import members
from passy_portal import totp
from passy_portal.tables import recovery, rules
from passy_portal.tables import totp as factors
from passy_proxy.json import dumps

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin

RECOVERY_CODES = 10


@dataclass(frozen=True, slots=True)
class Factor:
    """A user's, in the state it has."""

    created: float
    """Unix seconds, as is ``confirmed``."""
    confirmed: float | None
    """``None`` until a code has shown that an app has the secret."""
    codes: int
    """Recovery codes that are left."""


class Factors:
    """Reads and writes them. Raises `StoreUnavailable`; where a secret was sealed with a key that
    is not given, `KeyringError`."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    async def of(self, user: str) -> Factor | None:
        """The one a user has, confirmed or not."""
        count = select(func.count()).where(recovery.c.user_id == user)
        async with self._admin.connected() as connection:
            row = (await connection.execute(select(factors).where(factors.c.id == user))).first()
            codes = (await connection.execute(count)).scalar_one()
        if row is None:
            return None
        confirmed = None if row.confirmed is None else row.confirmed / 1000
        return Factor(row.created / 1000, confirmed, codes)

    async def confirmed(self, user: str) -> bool:
        """Whether they are asked for a code."""
        found = await self.of(user)
        return found is not None and found.confirmed is not None

    async def begin(self, user: str) -> None:
        """A fresh secret, in the place of one that was not confirmed. ValueError where one was."""
        made, secret = int(time.time() * 1000), totp.new_secret()
        owner = _owner(user, made)
        row = {
            "id": user, "sealed": self._admin.keyring.seal(secret, *owner),
            "owner": dumps(owner).decode(), "created": made, "confirmed": None, "step": 0,
        }  # fmt: skip
        unconfirmed = delete(factors).where(factors.c.id == user, factors.c.confirmed.is_(None))
        async with self._admin.connected() as connection:
            await connection.execute(unconfirmed)
            await connection.execute(insert(factors).values(row))

    async def unconfirmed(self, user: str) -> str | None:
        """The secret that waits for its first code."""
        wanted = select(factors).where(factors.c.id == user, factors.c.confirmed.is_(None))
        async with self._admin.connected() as connection:
            row = (await connection.execute(wanted)).first()
        return self._admin.keyring.open(row.sealed, *_owner(user, row.created)) if row else None

    async def confirm(self, user: str, typed: str) -> list[str] | None:
        """From now on they are asked for it: their recovery codes. ``None`` for a wrong code."""
        if await self.unconfirmed(user) is None or not await self._by_app(user, typed):
            return None
        done = update(factors).where(factors.c.id == user).values(confirmed=int(time.time() * 1000))
        async with self._admin.connected() as connection:
            await connection.execute(done)
        return await self.renew(user)

    async def renew(self, user: str) -> list[str]:
        """Other recovery codes; the earlier ones are good no more."""
        codes = [_written(secrets.token_bytes(10)) for _ in range(RECOVERY_CODES)]
        rows = [{"user_id": user, "digest": _digest(user, code)} for code in codes]
        async with self._admin.connected() as connection:
            await connection.execute(delete(recovery).where(recovery.c.user_id == user))
            await connection.execute(insert(recovery), rows)
        return codes

    async def fits(self, user: str, typed: str) -> bool:
        """Whether it is a code of theirs, of the app or a recovery code; it is used up by that."""
        typed = "".join(typed.split()).replace("-", "").upper()
        if len(typed) == totp.DIGITS:
            return await self._by_app(user, typed)
        used = delete(recovery).where(
            recovery.c.user_id == user, recovery.c.digest == _digest(user, typed)
        )
        async with self._admin.connected() as connection:
            return bool((await connection.execute(used)).rowcount)

    async def drop(self, user: str) -> bool:
        """They are asked no more; whether they were."""
        async with self._admin.connected() as connection:
            await connection.execute(delete(recovery).where(recovery.c.user_id == user))
            gone = await connection.execute(delete(factors).where(factors.c.id == user))
            return bool(gone.rowcount)

    async def _by_app(self, user: str, typed: str) -> bool:
        async with self._admin.connected() as connection:
            row = (await connection.execute(select(factors).where(factors.c.id == user))).first()
            if row is None:
                return False
            secret = self._admin.keyring.open(row.sealed, *_owner(user, row.created))
            step = totp.step_of(secret, "".join(typed.split()), time.time(), row.step)
            if step is None:
                return False
            # Of two who come with the same code, one gets in.
            mine = (factors.c.id == user, factors.c.step < step)
            used = await connection.execute(update(factors).where(*mine).values(step=step))
            return bool(used.rowcount)

    # What an organisation asks for

    async def required(self, organisation: str) -> bool:
        """Whether its members have to have one."""
        wanted = select(rules.c.second_factor).where(rules.c.organisation == organisation)
        async with self._admin.connected() as connection:
            return bool((await connection.execute(wanted)).scalar())

    async def required_of(self, user: str) -> Sequence[str]:
        """The organisations that want one of a user."""
        wanted = (
            select(rules.c.organisation)
            .join(members, members.c.organisation == rules.c.organisation)
            .where(members.c.user_id == user, rules.c.second_factor == 1)
        )
        async with self._admin.connected() as connection:
            return [row.organisation for row in (await connection.execute(wanted)).all()]

    async def require(self, organisation: str, wanted: bool) -> None:
        """Have an organisation ask for it, or not."""
        async with self._admin.connected() as connection:
            await connection.execute(delete(rules).where(rules.c.organisation == organisation))
            row = {"organisation": organisation, "second_factor": int(wanted)}
            await connection.execute(insert(rules).values(row))


def _owner(user: str, made: int) -> tuple[str, ...]:
    return "", "portal", f"totp {user}", str(made)


def _written(code: bytes) -> str:
    """``ABCD-EFGH-IJKL-MNOP``."""
    text = base64.b32encode(code).decode()
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def _digest(user: str, code: str) -> bytes:
    text = f"{user} {code.replace('-', '')}"
    return hashlib.sha256(text.encode(errors="replace")).digest()
