"""Who is in which team. A member is in one at most: that is where their keys go.

To a gateway only a key is in a team. So a member's team decides where their new keys are, and a
developer's can be nowhere else: what is held on the team holds for all that they make.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from passy_plugins.api.denied import Denied
from passy_plugins.stores.sql.schema import teams
from passy_portal.tables import team_members

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.accounts import Visitor


KEYS = ("disable", "keep", "move")
"""What can become of the keys of somebody who leaves."""


async def teams_of(admin: Admin, organisation: str) -> Mapping[str, str]:
    """User → the team they are in."""
    wanted = (
        select(team_members.c.user_id, team_members.c.team)
        .join(teams, teams.c.id == team_members.c.team)
        .where(team_members.c.organisation == organisation, teams.c.status != "deleted")
    )
    async with admin.connected() as connection:
        return {row.user_id: row.team for row in await connection.execute(wanted)}


async def place(admin: Admin, organisation: str, user: str, team: str | None) -> None:
    """Put somebody in a team, out of the one they were in; ``None`` is none."""
    mine = (team_members.c.organisation == organisation, team_members.c.user_id == user)
    async with admin.connected() as connection:
        await connection.execute(delete(team_members).where(*mine))
        if team is not None:
            row = {"organisation": organisation, "user_id": user, "team": team}
            await connection.execute(insert(team_members).values(row))


async def placed(admin: Admin, visitor: Visitor, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """What somebody says of a new key, with the team it is in. 403 for a developer's in another
    team than theirs."""
    own = (await teams_of(admin, visitor.organisation)).get(visitor.user)
    if own is None:
        return fields
    if fields.get("team") is None and visitor.role == "developer":
        return {**fields, "team": own}
    may_place(visitor, own, fields.get("team"))
    return fields


def may_place(visitor: Visitor, own: str | None, team: str | None) -> None:
    if visitor.role == "developer" and own is not None and team != own:
        raise Denied(403, "not_allowed", "Your keys are in your team.", "team")


async def left(
    admin: Admin, organisation: str, user: str, choice: str, heir: str
) -> dict[str, Any]:
    """Takes somebody who leaves out of their team, and does with their keys what is said; what that
    came to, for the audit log."""
    if choice not in KEYS:
        raise Denied(422, "invalid_value", f"One of {', '.join(KEYS)}.", "keys")
    if choice == "move":
        heirs = [one.user_id for one in await admin.list_members(organisation)]
        if heir == user or heir not in heirs:
            raise Denied(422, "invalid_value", "Say which member their keys go to.", "heir")
    touched = []
    await place(admin, organisation, user, None)
    for key in await admin.keys_within(organisation):
        if key.user_id == user and choice == "move":
            await admin.change_key(key.id, user_id=heir)
            touched.append(key.id)
        elif key.user_id == user and choice == "disable" and not key.disabled:
            await admin.disable_key(key.id)
            touched.append(key.id)
    return {"keys_moved": touched, "heir": heir} if choice == "move" else {"keys_disabled": touched}
