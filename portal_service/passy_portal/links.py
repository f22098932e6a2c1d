"""Links that let somebody do something once: become the first owner, join, choose another password,
or go on to their second factor. What is in a link is kept as a digest.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, select, union_all

from passy_plugins.stores.sql.schema import members
from passy_portal.tables import identities, passwords, tokens
from passy_proxy.issue import Role

if TYPE_CHECKING:
    from sqlalchemy import Row

    from passy_plugins.stores.sql.admin import Admin

FIRST_GOOD_FOR = 3_600_000
INVITATION_GOOD_FOR = 7 * 86_400_000
RESET_GOOD_FOR = 86_400_000
SECOND_GOOD_FOR = 600_000
"""Milliseconds, all of them."""


GONE = "This link was used, has expired, or was never ours. Ask for a new one."


@dataclass(frozen=True, slots=True)
class Invitation:
    id: str
    kind: str
    organisation: str
    email: str
    role: Role
    made_by: str
    created: float
    """Unix seconds, as is ``expires``."""
    expires: float


class Links:
    """Part of `Accounts`."""

    admin: Admin

    async def has_owner(self) -> bool:
        """Whether anybody can sign in who owns something."""
        ways = union_all(select(passwords.c.user_id), select(identities.c.user_id)).subquery()
        wanted = (
            select(ways.c.user_id)
            .join(members, members.c.user_id == ways.c.user_id)
            .where(members.c.role == "owner")
        )
        async with self.admin.connected() as connection:
            return (await connection.execute(wanted.limit(1))).first() is not None

    async def first_token(self, unless_within: int = 0) -> str | None:
        """What makes the first owner, once and within an hour; ``None`` where there is one, or
        where another was made within so many milliseconds."""
        recent = select(tokens.c.id).where(
            tokens.c.kind == "first", tokens.c.created > milliseconds() - unless_within
        )
        async with self.admin.connected() as connection:
            told = unless_within and (await connection.execute(recent)).first() is not None
        if told or await self.has_owner():
            return None
        return await self.token("first", "", "", "owner", "", FIRST_GOOD_FOR)

    async def invite(self, organisation: str, email: str, role: Role, by: str) -> str:
        """A token for somebody who shall be a member; an earlier one for them is void."""
        gone = delete(tokens).where(
            tokens.c.organisation == organisation, tokens.c.email == email.lower(),
            tokens.c.kind == "invitation",
        )  # fmt: skip
        async with self.admin.connected() as connection:
            await connection.execute(gone)
        return await self.token(
            "invitation", organisation, email.lower(), role, by, INVITATION_GOOD_FOR
        )

    async def resettable(self, invitation: Invitation) -> bool:
        """Whether a link for another password is good still: one that its maker has seen is not,
        once its user is a member of something else as well."""
        if invitation.kind.startswith("mailed"):
            return True
        places = await self.admin.places_of(invitation.made_by)
        return [place.organisation for place in places] == [invitation.organisation]

    async def half(self, user: str, organisation: str, email: str) -> str:
        """A token for who has shown all but their second factor."""
        return await self.token("second", organisation, email, "", user, SECOND_GOOD_FOR)

    async def token(
        self, kind: str, organisation: str, email: str, role: str, by: str, good_for: int
    ) -> str:
        """One more, good for so many milliseconds; see ``tables.tokens``."""
        # Hexadecimal: one in some 20,000 of other texts looks like a provider's key, which the log
        # would not show.
        token, now = secrets.token_hex(24), milliseconds()
        row = {
            "digest": digest(token), "id": f"inv_{secrets.token_hex(8)}", "kind": kind,
            "organisation": organisation, "email": email, "role": role, "made_by": by,
            "created": now, "expires": now + good_for,
        }  # fmt: skip
        async with self.admin.connected() as connection:
            await connection.execute(delete(tokens).where(tokens.c.expires <= now))
            await connection.execute(insert(tokens).values(row))
        return token

    async def invitation(self, kind: str, token: str) -> Invitation | None:
        """What a token stands for, as long as it is good."""
        if kind == "first" and await self.has_owner():
            return None
        mine = (tokens.c.digest == digest(token), tokens.c.kind == kind)
        wanted = select(tokens).where(*mine, tokens.c.expires > milliseconds())
        async with self.admin.connected() as connection:
            row = (await connection.execute(wanted)).first()
        return _invitation(row) if row else None

    async def invitations(self, organisation: str) -> Sequence[Invitation]:
        """Those that wait for somebody, oldest first."""
        wanted = select(tokens).where(
            tokens.c.organisation == organisation, tokens.c.kind == "invitation",
            tokens.c.expires > milliseconds(),
        )  # fmt: skip
        async with self.admin.connected() as connection:
            rows = (await connection.execute(wanted.order_by(tokens.c.created))).all()
        return [_invitation(row) for row in rows]

    async def waiting(self, email: str) -> Sequence[Invitation]:
        """Invitations of somebody, to whatever organisation."""
        wanted = select(tokens).where(
            tokens.c.email == email.lower(), tokens.c.kind == "invitation",
            tokens.c.expires > milliseconds(),
        )  # fmt: skip
        async with self.admin.connected() as connection:
            return [_invitation(row) for row in (await connection.execute(wanted)).all()]

    async def void(self, organisation: str, id: str) -> bool:
        """One invitation of an organisation, or the first owner's where that is ``""``."""
        gone = delete(tokens).where(tokens.c.organisation == organisation, tokens.c.id == id)
        async with self.admin.connected() as connection:
            return bool((await connection.execute(gone)).rowcount)


def digest(token: str) -> bytes:
    """What is kept of a cookie or a token."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _invitation(row: Row[tuple[object, ...]]) -> Invitation:
    return Invitation(
        row.id, row.kind, row.organisation, row.email, row.role, row.made_by,
        row.created / 1000, row.expires / 1000,
    )  # fmt: skip


def milliseconds() -> int:
    """Milliseconds of Unix time."""
    return int(time.time() * 1000)
