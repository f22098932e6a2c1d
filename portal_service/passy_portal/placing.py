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
