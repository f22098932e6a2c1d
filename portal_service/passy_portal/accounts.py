"""Who may sign in, who has signed in, and who was invited.

What lets somebody in is 256 random bits, kept as a digest: neither the database nor a copy of it
lets anybody in.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from passy_plugins.stores.sql.schema import members, organisations, users
from passy_portal import audit
from passy_portal.audit import Noted, Who
from passy_portal.factors import Factors
from passy_portal.links import Links, digest, milliseconds
from passy_portal.passwords import Passwords
from passy_portal.playing import withdraw
from passy_portal.tables import passwords, rules, sessions
from passy_portal.throttle import Throttle
from passy_proxy.issue import Role

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from passy_plugins.stores.sql.admin import Admin

NOTED_EVERY = 60_000
"""Milliseconds between two notes that a session is used."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who has signed in, and for which organisation."""

    session: str
    """Its public id."""
    user: str
    email: str
    name: str
    organisation: str
    organisation_name: str
    role: Role
    address: str
    second: bool = False
    """They have shown a second factor."""
    barred: bool = False
    """Their organisation asks for one: until they have it there is nothing else for them here."""
    proven: float = 0.0
    """Unix seconds: until when they have just signed in once more with their provider."""

    @property
    def who(self) -> Who:
        """As the audit log names them."""
        return Who(self.organisation, self.user, self.address)


@dataclass(frozen=True, slots=True)
class Session:
    """One of somebody's sessions, as it is shown to them."""

    id: str
    created: float
    """Unix seconds, as is ``seen``."""
    seen: float
    agent: str
    address: str


class Accounts(Links):
    """Reads and writes the portal's tables. Raises `StoreUnavailable`."""

    def __init__(self, admin: Admin, idle: float, longest: float) -> None:
        self.admin = admin
        self.passwords = Passwords()
        self.throttle = Throttle(admin)
        self.factors = Factors(admin)
        self._idle = int(idle * 1000)
        self._longest = int(longest * 1000)
        self.longest = int(longest)
        """Seconds that a session lasts at most."""

    @asynccontextmanager
    async def noting(
        self,
        who: Who,
        action: str,
        subject: str = "",
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Noted]:
        """A change and its entry in the audit log, in one transaction: both, or neither."""
        async with self.admin.together(audit.TURN):
            noted = Noted(who, subject, before or {}, after or {})
            yield noted
            if noted.left_out:
                return
            async with self.admin.connected() as connection:
                await audit.enter(connection, self.admin.keyring, action, noted)

    # Signing in

    async def known(self, email: str, password: str) -> str | None:
        """The id of the user who has both; as slow for an e-mail that nobody has."""
        mine = (users.c.email == email.lower(), users.c.status == "active")
        wanted = select(users.c.id, passwords.c.hash).outerjoin_from(
            users, passwords, passwords.c.user_id == users.c.id
        )
        async with self.admin.connected() as connection:
            row = (await connection.execute(wanted.where(*mine))).first()
        fits = await self.passwords.fits(password, row.hash if row else None)
        return row.id if row and fits else None

    async def email_of(self, user: str) -> str:
        """Of somebody who has signed in; empty where they have none."""
        async with self.admin.connected() as connection:
            found = await connection.execute(select(users.c.email).where(users.c.id == user))
            return found.scalar() or ""

    async def owns(self, user: str) -> bool:
        """Whether they are an owner of anything."""
        return any(place.role == "owner" for place in await self.admin.places_of(user))

    async def has_password(self, user: str) -> bool:
        """Whether they can sign in."""
        wanted = select(passwords.c.user_id).where(passwords.c.user_id == user)
        async with self.admin.connected() as connection:
            return (await connection.execute(wanted)).first() is not None

    async def set_password(self, user: str, hashed: str) -> None:
        """And end all of their sessions."""
        now = milliseconds()
        change = update(passwords).where(passwords.c.user_id == user)
        async with self.admin.connected() as connection:
            if not (await connection.execute(change.values(hash=hashed, changed=now))).rowcount:
                new = {"user_id": user, "hash": hashed, "changed": now}
                await connection.execute(insert(passwords).values(new))
            await connection.execute(delete(sessions).where(sessions.c.user_id == user))
        await withdraw(self.admin)

    async def begin(
        self, user: str, organisation: str | None, agent: str, address: str, *, second: bool = False
    ) -> str | None:
        """A session's cookie; ``None`` for who is a member of no organisation. ``second``: they
        have shown a second factor."""
        places = await self.admin.places_of(user)
        mine = [place.organisation for place in places]
        if not mine:
            return None
        cookie, now = secrets.token_urlsafe(32), milliseconds()
        row = {
            "digest": digest(cookie),
            "id": f"sess_{secrets.token_hex(8)}",
            "user_id": user,
            "organisation": organisation if organisation in mine else mine[0],
            "created": now,
            "seen": now,
            "agent": agent[:200],
            "address": address,
            "second": int(second),
        }
        async with self.admin.connected() as connection:
            await connection.execute(delete(sessions).where(self._over(now)))
            await connection.execute(insert(sessions).values(row))
        return cookie

    async def visitor(self, cookie: str, address: str) -> Visitor | None:
        """Whose session it is, if it lives and they are still what they were."""
        now = milliseconds()
        mine = (sessions.c.digest == digest(cookie), ~self._over(now))
        async with self.admin.connected() as connection:
            row = (await connection.execute(_VISITOR.where(*mine))).first()
            if row is not None and row.seen < now - NOTED_EVERY:
                change = update(sessions).where(sessions.c.digest == digest(cookie))
                await connection.execute(change.values(seen=now))
        if row is None:
            return None
        return Visitor(
            row.session, row.user_id, row.email or "", row.name, row.organisation,
            row.organisation_name, row.role, address,
            bool(row.second), bool(row.second_factor) and not row.second, (row.proven or 0) / 1000,
        )  # fmt: skip

    async def living(self, ids: Collection[str]) -> dict[str, tuple[str, Role]]:
        """Of those sessions that live: the organisation they are in, and as what. It does not count
        as use of them."""
        mine = (sessions.c.id.in_(ids), ~self._over(milliseconds()))
        async with self.admin.connected() as connection:
            rows = (await connection.execute(_VISITOR.where(*mine))).all()
        return {
            row.session: (row.organisation, row.role)
            for row in rows
            if row.second or not row.second_factor
        }

    async def prove(self, session: str, seconds: float) -> None:
        """Its holder has just signed in once more, which counts for so long."""
        change = update(sessions).where(sessions.c.id == session)
        until = milliseconds() + int(seconds * 1000)
        async with self.admin.connected() as connection:
            await connection.execute(change.values(proven=until))

    async def end(self, cookie: str) -> None:
        """That one session."""
        async with self.admin.connected() as connection:
            await connection.execute(delete(sessions).where(sessions.c.digest == digest(cookie)))
        await withdraw(self.admin)

    async def end_session(self, user: str, id: str) -> bool:
        """One of a user's; whether there was one."""
        gone = delete(sessions).where(sessions.c.user_id == user, sessions.c.id == id)
        async with self.admin.connected() as connection:
            ended = bool((await connection.execute(gone)).rowcount)
        await withdraw(self.admin)
        return ended

    async def end_all(self, user: str, but: str = "") -> int:
        """A user's sessions, but for one; how many."""
        gone = delete(sessions).where(sessions.c.user_id == user, sessions.c.id != but)
        async with self.admin.connected() as connection:
            ended = int((await connection.execute(gone)).rowcount)
        await withdraw(self.admin)
        return ended

    async def sessions_of(self, user: str) -> list[Session]:
        """Those that live, last used first."""
        wanted = select(sessions).where(sessions.c.user_id == user, ~self._over(milliseconds()))
        async with self.admin.connected() as connection:
            rows = (await connection.execute(wanted.order_by(sessions.c.seen.desc()))).all()
        return [
            Session(row.id, row.created / 1000, row.seen / 1000, row.agent, row.address)
            for row in rows
        ]

    def _over(self, now: int) -> ColumnElement[bool]:
        return (sessions.c.created <= now - self._longest) | (sessions.c.seen <= now - self._idle)


_VISITOR = (
    select(
        sessions.c.id.label("session"),
        sessions.c.user_id,
        sessions.c.organisation,
        sessions.c.seen,
        sessions.c.second,
        sessions.c.proven,
        rules.c.second_factor,
        users.c.email,
        users.c.name,
        members.c.role,
        organisations.c.name.label("organisation_name"),
    )
    .join(users, users.c.id == sessions.c.user_id)
    .join(
        members,
        (members.c.user_id == sessions.c.user_id)
        & (members.c.organisation == sessions.c.organisation),
    )
    .join(organisations, organisations.c.id == sessions.c.organisation)
    .outerjoin(rules, rules.c.organisation == sessions.c.organisation)
    .where(users.c.status == "active", organisations.c.status == "active")
)
