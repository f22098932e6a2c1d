"""Who belongs to an organisation, and who is invited: what pages and the JSON API both do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_portal import audit
from passy_portal.audit import Noted
from passy_portal.identities import has_identity
from passy_portal.links import RESET_GOOD_FOR
from passy_portal.placing import left
from passy_proxy.issue import ROLES

if TYPE_CHECKING:
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.links import Invitation
    from passy_proxy.issue import Member, Role, User


async def listed(accounts: Accounts, visitor: Visitor) -> list[tuple[Member, User]]:
    """All members, with who they are."""
    admin, mine = accounts.admin, visitor.organisation
    users = {user.id: user for user in await admin.list_users(mine)}
    return [
        (one, users[one.user_id])
        for one in await admin.list_members(mine)
        if one.user_id in users
    ]  # fmt: skip


async def member_of(accounts: Accounts, visitor: Visitor, id: str) -> tuple[Member, User]:
    """404 for who is none here."""
    places = await accounts.admin.places_of(id)
    found = next((one for one in places if one.organisation == visitor.organisation), None)
    user = await accounts.admin.get_user(id)
    if found is None or user is None:
        raise absent("member")
    return found, user


async def change_role(accounts: Accounts, visitor: Visitor, id: str, role: Role) -> None:
    """Another one. Their sessions end: what they may do has changed."""
    async with accounts.noting(visitor.who, "member.role", id, after={"role": role}) as noted:
        was, _ = await member_of(accounts, visitor, id)
        may_give(visitor, role)
        _may_touch(visitor, was)
        await _another_owner(accounts, was)
        noted.before = {"role": was.role}
        await accounts.admin.set_member(visitor.organisation, id, role)
        await accounts.end_all(id)


async def remove(accounts: Accounts, visitor: Visitor, id: str, keys: str, heir: str) -> None:
    """They are no member any more. ``keys``: what becomes of theirs, see `placing.KEYS`."""
    async with accounts.noting(visitor.who, "member.remove", id) as noted:
        was, _ = await member_of(accounts, visitor, id)
        _may_touch(visitor, was)
        await _another_owner(accounts, was)
        noted.before = {"role": was.role}
        noted.after = await left(accounts.admin, visitor.organisation, id, keys, heir)
        await accounts.admin.remove_member(visitor.organisation, id)
        await accounts.end_all(id)


async def transfer(accounts: Accounts, visitor: Visitor, id: str) -> None:
    """They are the owner, and who was it is an admin. The sessions of both end."""
    if id == visitor.user:
        raise Denied(409, "conflict", "It is yours already.")
    admin, mine = accounts.admin, visitor.organisation
    async with accounts.noting(visitor.who, "organisation.transfer", mine) as noted:
        was, _ = await member_of(accounts, visitor, id)
        noted.before, noted.after = {"owner": visitor.user}, {"owner": id}
        await admin.set_member(mine, id, "owner")
        await admin.set_member(mine, visitor.user, "admin")
        for user, before, after in (
            (id, was.role, "owner"),
            (visitor.user, "owner", "admin"),
        ):
            told = Noted(visitor.who, user, {"role": before}, {"role": after})
            async with admin.connected() as connection:
                await audit.enter(connection, admin.keyring, "member.role", told)
            await accounts.end_all(user)


async def reset_token(
    accounts: Accounts, visitor: Visitor, id: str, *, second: bool, mails: bool
) -> tuple[User, str, bool]:
    """Whose it is, what lets them choose another password, and whether who asked may see that:
    not where they are a member of something else as well. ``second``: their second factor goes,
    too; ``mails``: it can be mailed to them."""
    _, user = await member_of(accounts, visitor, id)
    alone = len(await accounts.admin.places_of(id)) == 1
    if id == visitor.user:
        raise Denied(409, "conflict", "Your own password is changed under Account.")
    if not user.email:
        raise Denied(409, "conflict", "They have no e-mail address to sign in with.")
    if not await accounts.has_password(id) and await has_identity(accounts, id):
        raise Denied(409, "conflict", "They sign in with a provider, and have no password.")
    if not alone and not mails:
        message = (
            "They are a member of another organisation as well, so a link may go to nobody but"
            " them; and no mail server is set."
        )
        raise Denied(409, "conflict", message)
    kind = f"{'reset' if alone else 'mailed'}{'-all' if second else ''}"
    noted = {"second_factor_too": second}
    async with accounts.noting(visitor.who, "member.reset", id, after=noted):
        token = await accounts.token(
            kind, visitor.organisation, user.email, "", id, RESET_GOOD_FOR
        )  # fmt: skip
    return user, token, alone


# Invitations


async def invite(accounts: Accounts, visitor: Visitor, email: str, role: Role) -> str:
    """What lets somebody join."""
    may_give(visitor, role)
    user = await accounts.admin.user_of(email)
    places = await accounts.admin.places_of(user.id) if user else ()
    if any(one.organisation == visitor.organisation for one in places):
        raise Denied(409, "exists_already", "They are a member already.", "email")
    async with accounts.noting(visitor.who, "member.invite", email, after={"role": role}):
        return await accounts.invite(visitor.organisation, email, role, visitor.user)


async def invite_again(accounts: Accounts, visitor: Visitor, id: str) -> tuple[Invitation, str]:
    """Who was invited, and another token for them; the former one is good no more."""
    found = await invitation_of(accounts, visitor, id)
    if found.role == "owner" and visitor.role != "owner":
        raise Denied(403, "not_allowed", "Only an owner names another one.")
    async with accounts.noting(
        visitor.who, "member.invite", found.email, after={"role": found.role, "again": True}
    ):
        token = await accounts.invite(visitor.organisation, found.email, found.role, visitor.user)
    return found, token


async def withdraw(accounts: Accounts, visitor: Visitor, id: str) -> None:
    """Its link is good no more."""
    async with accounts.noting(visitor.who, "member.withdraw", id):
        await invitation_of(accounts, visitor, id)
        if not await accounts.void(visitor.organisation, id):
            raise absent("invitation")


async def invitation_of(accounts: Accounts, visitor: Visitor, id: str) -> Invitation:
    """404 for one of another organisation, or that is good no more."""
    waiting = await accounts.invitations(visitor.organisation)
    found = next((one for one in waiting if one.id == id), None)
    if found is None:
        raise absent("invitation")
    return found


# What an organisation asks of all


async def require_second(accounts: Accounts, visitor: Visitor, wanted: bool) -> None:
    """Have all members show a second factor, or not. An owner without one would be the first to be
    led away."""
    if wanted and not visitor.second:
        message = "Set up your own second factor, and sign in with it, before you ask it of others."
        raise Denied(409, "second_factor_required", message)
    async with accounts.noting(
        visitor.who, "organisation.second", visitor.organisation, after={"required": wanted}
    ) as noted:
        noted.before = {"required": await accounts.factors.required(visitor.organisation)}
        await accounts.factors.require(visitor.organisation, wanted)


def may_give(visitor: Visitor, role: str) -> None:
    """403 for who makes an owner and is none."""
    if role not in ROLES:
        raise Denied(422, "invalid_value", "There is no such role.", "role")
    if role == "owner" and visitor.role != "owner":
        raise Denied(403, "not_allowed", "Only an owner names another one.", "role")


def _may_touch(visitor: Visitor, member: Member) -> None:
    if member.role == "owner" and visitor.role != "owner":
        raise Denied(403, "not_allowed", "Only an owner changes an owner.")


async def _another_owner(accounts: Accounts, member: Member) -> None:
    """An organisation keeps one."""
    if member.role != "owner":
        return
    members = await accounts.admin.list_members(member.organisation)
    if sum(one.role == "owner" for one in members) < 2:
        message = "The last owner stays. Make somebody else an owner first."
        raise Denied(409, "last_owner", message)
