"""The writing side of tenancy: organisations, teams, users, and who is a member of what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, Table, delete, insert, select, update

from passy_plugins.stores.sql.principal import limits_of, names_of
from passy_plugins.stores.sql.schema import (
    credentials,
    custom_providers,
    keys,
    members,
    organisations,
    teams,
    users,
)
from passy_plugins.stores.sql.writing import (
    LIMITS,
    Coder,
    Writing,
    coded,
    name_of,
    new_id,
    now,
    status_of,
    text_of,
)
from passy_proxy.issue import ROLES, Member, Organisation, Role, Team, User


class Tenants(Writing):
    """Part of `Admin`. What was deleted is shown no more, and stays for the names in the books."""

    # Organisations

    async def create_organisation(self, name: str, **fields: Any) -> str:
        """Its id. ``fields`` are those of `change_organisation`."""
        id = new_id("org")
        values = coded({"name": name} | fields, ORGANISATION) | {"id": id, "created": now()}
        await self._change("organisation", id, insert(organisations).values(values))
        return id

    async def list_organisations(self) -> list[Organisation]:
        """Oldest first."""
        wanted = select(organisations).where(organisations.c.status != "deleted")
        ordered = wanted.order_by(organisations.c.created, organisations.c.id)
        return [organisation(row) for row in await self._read(ordered)]

    async def get_organisation(self, id: str) -> Organisation | None:
        rows = await self._read(select(organisations).where(*_one(organisations, id)))
        return organisation(rows[0]) if rows else None

    async def change_organisation(self, organisation: str, **changes: Any) -> bool:
        """See `Organiser`."""
        return await self._changed("organisation", organisations, organisation, changes)

    async def delete_organisation(self, organisation: str) -> bool:
        """With its keys, teams and places. What it brought sealed is gone for good."""
        gone = update(organisations).where(*_one(organisations, organisation))
        return bool(
            await self._change(
                "organisation",
                organisation,
                gone.values(status="deleted"),
                update(teams).where(teams.c.organisation == organisation).values(status="deleted"),
                update(keys)
                .where(keys.c.organisation == organisation, keys.c.deleted.is_(None))
                .values(deleted=now()),
                delete(members).where(members.c.organisation == organisation),
                delete(credentials).where(credentials.c.organisation == organisation),
                update(custom_providers)
                .where(custom_providers.c.organisation == organisation)
                .values(status="disabled"),
            )
        )

    # Teams

    async def create_team(self, organisation: str, name: str, **fields: Any) -> Team:
        """``fields`` are those of `change_team`. ValueError for an unknown organisation."""
        await self._require(organisations, organisation, "organisation")
        id = new_id("team")
        values = {"id": id, "organisation": organisation, "status": "active", "created": now()}
        values |= coded({"name": name} | fields, LEVEL)
        await self._change("team", id, insert(teams).values(values))
        made = await self.get_team(id)
        assert made is not None
        return made

    async def list_teams(self, organisation: str | None = None) -> list[Team]:
        """Oldest first; of all organisations where none is named."""
        wanted = select(teams).where(teams.c.status != "deleted")
        if organisation is not None:
            wanted = wanted.where(teams.c.organisation == organisation)
        return [team(row) for row in await self._read(wanted.order_by(teams.c.created, teams.c.id))]

    async def get_team(self, id: str) -> Team | None:
        rows = await self._read(select(teams).where(*_one(teams, id)))
        return team(rows[0]) if rows else None

    async def change_team(self, team: str, **changes: Any) -> bool:
        """See `Grouper`."""
        return await self._changed("team", teams, team, changes)

    async def delete_team(self, team: str) -> bool:
        """With its keys."""
        return bool(
            await self._change(
                "team",
                team,
                update(teams).where(*_one(teams, team)).values(status="deleted"),
                update(keys)
                .where(keys.c.team == team, keys.c.deleted.is_(None))
                .values(deleted=now()),
            )
        )

    # Users

    async def create_user(self, email: str | None, name: str = "", **fields: Any) -> User:
        """See `Grouper`. ValueError where the e-mail or the id is taken."""
        id = text_of(fields.pop("id", None) or new_id("user"))
        values = {"id": id, "status": "active", "created": now()}
        values |= coded({"email": email, "name": name} | fields, USER)
        try:
            await self._change("user", id, insert(users).values(values))
        except ValueError:
            raise ValueError(f"there is a user {email or id} already") from None
        made = await self.get_user(id)
        assert made is not None
        return made

    async def list_users(self, organisation: str | None = None) -> list[User]:
        """Oldest first; the members of an organisation where one is named."""
        wanted = select(users).where(users.c.status != "deleted")
        if organisation is not None:
            mine = select(members.c.user_id).where(members.c.organisation == organisation)
            wanted = wanted.where(users.c.id.in_(mine))
        return [user(row) for row in await self._read(wanted.order_by(users.c.created, users.c.id))]

    async def get_user(self, id: str) -> User | None:
        rows = await self._read(select(users).where(*_one(users, id)))
        return user(rows[0]) if rows else None

    async def user_of(self, email: str) -> User | None:
        """By e-mail, whatever its case."""
        mine = (users.c.email == email.lower(), users.c.status != "deleted")
        rows = await self._read(select(users).where(*mine))
        return user(rows[0]) if rows else None

    async def change_user(self, user: str, **changes: Any) -> bool:
        """See `Grouper`. ValueError where the e-mail is taken."""
        return await self._changed("user", users, user, changes)

    async def delete_user(self, user: str) -> bool:
        """With their keys and places. The e-mail may be used again."""
        gone = update(users).where(*_one(users, user)).values(status="deleted", email=None)
        return bool(
            await self._change(
                "user",
                user,
                gone,
                update(keys)
                .where(keys.c.user_id == user, keys.c.deleted.is_(None))
                .values(deleted=now()),
                delete(members).where(members.c.user_id == user),
            )
        )

    # Members

    async def set_member(self, organisation: str, user: str, role: Role) -> None:
        """A place in an organisation, or another role in it. ValueError where there is no such
        organisation or user."""
        if role not in ROLES:
            raise ValueError(f"no role {role!r}; write {', '.join(ROLES)}")
        await self._require(organisations, organisation, "organisation")
        await self._require(users, user, "user")
        mine = _place(organisation, user)
        if await self._change("user", user, update(members).where(*mine).values(role=role)):
            return
        values = {"organisation": organisation, "user_id": user, "role": role, "created": now()}
        await self._change("user", user, insert(members).values(values))

    async def remove_member(self, organisation: str, user: str) -> bool:
        """Whether they were one. Their keys stay."""
        gone = delete(members).where(*_place(organisation, user))
        return bool(await self._change("user", user, gone))

    async def list_members(self, organisation: str) -> list[Member]:
        """Oldest first."""
        wanted = select(members).where(members.c.organisation == organisation)
        ordered = wanted.order_by(members.c.created, members.c.user_id)
        return [member(row) for row in await self._read(ordered)]

    async def guests_of(self, organisation: str) -> frozenset[str]:
        """The members that are in other organisations, too."""
        other = members.alias("other")
        wanted = (
            select(members.c.user_id)
            .join(other, other.c.user_id == members.c.user_id)
            .where(members.c.organisation == organisation, other.c.organisation != organisation)
        )
        return frozenset(row.user_id for row in await self._read(wanted))

    async def places_of(self, user: str) -> list[Member]:
        """Where somebody is a member, oldest first."""
        wanted = select(members).where(members.c.user_id == user).order_by(members.c.created)
        return [member(row) for row in await self._read(wanted)]

    async def _changed(self, kind: str, table: Table, id: str, changes: Mapping[str, Any]) -> bool:
        values = coded(changes, CODERS[kind])
        if not values:
            return bool(await self._read(select(table.c.id).where(*_one(table, id))))
        change = update(table).where(*_one(table, id)).values(values)
        try:
            return bool(await self._change(kind, id, change))
        except ValueError:  # Nothing else of these must be the only one.
            raise ValueError(f"there is a user {values.get('email')} already") from None

    async def _require(self, table: Table, id: str, kind: str) -> None:
        if not await self._read(select(table.c.id).where(*_one(table, id))):
            raise ValueError(f"there is no {kind} {id[:80]}")


def _one(table: Table, id: str) -> tuple[Any, ...]:
    return (table.c.id == id, table.c.status != "deleted")


def _place(organisation: str, user: str) -> tuple[Any, ...]:
    return (members.c.organisation == organisation, members.c.user_id == user)


def byok_of(value: str) -> str:
    if value not in ("own_first", "own_only"):
        raise ValueError(f"no such policy: {value!r}; write own_first or own_only")
    return value


def email_of(value: str | None) -> str | None:
    if value is None:
        return None
    if not re.fullmatch(r"[^@\s\0]+@[^@\s\0]+", value):
        raise ValueError(f"{value[:80]!r} is no e-mail address")
    return value.lower()


LEVEL: Mapping[str, Coder] = {**LIMITS, "name": name_of, "status": status_of}
ORGANISATION: Mapping[str, Coder] = {**LEVEL, "byok": byok_of}
USER: Mapping[str, Coder] = {**LEVEL, "name": text_of, "email": email_of}
CODERS = {"organisation": ORGANISATION, "team": LEVEL, "user": USER}


def organisation(row: Row[Any]) -> Organisation:
    return Organisation(
        row.id, row.name, row.created / 1000, row.status, *_held(row), byok=row.byok
    )


def team(row: Row[Any]) -> Team:
    return Team(row.id, row.organisation, row.name, row.created / 1000, row.status, *_held(row))


def user(row: Row[Any]) -> User:
    return User(row.id, row.email, row.name, row.created / 1000, row.status, *_held(row))


def member(row: Row[Any]) -> Member:
    return Member(row.organisation, row.user_id, row.role, row.created / 1000)


def _held(row: Row[Any]) -> tuple[Any, Any]:
    return limits_of((row.requests, row.tokens, row.concurrency)), names_of(row.models)
