"""Who comes from an OpenID provider: somebody known, somebody invited, or somebody of a domain.

An account is linked by an e-mail that the provider has verified, and only where somebody who leads
an organisation has invited it, or the operator trusts the provider with its domain; or by who has
signed in to it, whatever e-mail they have there. From then on the provider's own id of them counts,
whatever becomes of the e-mail.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import delete, insert, select

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.stores.sql.schema import users
from passy_portal.audit import Who
from passy_portal.links import GONE
from passy_portal.oidc import FRESH, Claimed, Refused
from passy_portal.tables import identities
from passy_proxy.issue import ROLES, Role, User

if TYPE_CHECKING:
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.audit import Noted
    from passy_portal.links import Invitation
    from passy_portal.oidc import Provider


class Coming(NamedTuple):
    """Somebody at the door."""

    known: User | None
    """Whose identity it is already."""
    address: str


class Identity(NamedTuple):
    """Who somebody is at a provider."""

    id: str
    """Names it here; see `id_of`."""
    issuer: str
    subject: str
    provider: str | None
    """The name of the provider in gateway.yaml; ``None`` where it has none any more, so that nobody
    comes by it."""
    title: str
    """What people know the provider by."""
    created: float
    """Unix seconds."""


def id_of(issuer: str, subject: str) -> str:
    """``idn_`` and 16 digits: the same wherever it is reckoned."""
    return f"idn_{hashlib.sha256(f'{issuer} {subject}'.encode(errors='replace')).hexdigest()[:16]}"


async def identities_of(
    accounts: Accounts, providers: Mapping[str, Provider], user: str
) -> list[Identity]:
    """Those of a user, oldest first."""
    wanted = select(identities).where(identities.c.user_id == user).order_by(identities.c.created)
    by_issuer = {one.settings.issuer: one for one in reversed([*providers.values()])}
    async with accounts.admin.connected() as connection:
        rows = (await connection.execute(wanted)).all()
    return [
        Identity(
            id_of(row.issuer, row.subject), row.issuer, row.subject,
            found.name if (found := by_issuer.get(row.issuer)) else None,
            found.title if found else row.issuer, row.created / 1000,
        )
        for row in rows
    ]  # fmt: skip


def unlinked(
    providers: Mapping[str, Provider], identities: Collection[Identity]
) -> list[Provider]:  # fmt: skip
    """Those that vouch for none of them."""
    linked = {one.provider for one in identities}
    return [one for name, one in providers.items() if name not in linked]


async def identity_of(
    accounts: Accounts, providers: Mapping[str, Provider], user: str, id: str
) -> Identity:
    """404 where it is none of theirs."""
    mine = await identities_of(accounts, providers, user)
    found = next((one for one in mine if one.id == id), None)
    if found is None:
        raise absent("identity")
    return found


async def link(accounts: Accounts, visitor: Visitor, provider: Provider, claimed: Claimed) -> None:
    """Let who has signed in here sign in there from now on. What e-mail they have there does not
    matter. Raises `Refused` for an identity that is somebody else's here."""
    subject = id_of(claimed.issuer, claimed.subject)
    whose = select(identities.c.user_id).where(
        identities.c.issuer == claimed.issuer, identities.c.subject == claimed.subject
    )
    told = {"provider": provider.name, "identity": subject}
    async with accounts.noting(visitor.who, "account.link", visitor.user, after=told) as noted:
        async with accounts.admin.connected() as connection:
            user = (await connection.execute(whose)).scalar()
        if user is not None and user != visitor.user:
            raise Refused(f"With this account of {provider.title} somebody else signs in here.")
        if user is not None:
            noted.left_out = True
            return
        await _enter(accounts, claimed, visitor.user)


async def prove(accounts: Accounts, visitor: Visitor, provider: Provider, claimed: Claimed) -> None:
    """Who has signed in here has just signed in there as well. Raises `Refused` where that is
    somebody else."""
    if await user_of(accounts, claimed) != visitor.user:
        raise Refused(f"This is not the account of {provider.title} that you sign in here with.")
    await accounts.prove(visitor.session, FRESH)


async def unlink(
    accounts: Accounts,
    visitor: Visitor,
    providers: Mapping[str, Provider],
    id: str,
    *,
    password: bool,
) -> None:
    """Have them come by it no more; all of their sessions end but this one. ``password``: theirs
    lets them in. 409 for what is the last way in."""
    async with accounts.noting(visitor.who, "account.unlink", visitor.user) as noted:
        found = await identity_of(accounts, providers, visitor.user, id)
        left = [one for one in await identities_of(accounts, providers, visitor.user)
                if one.id != id]  # fmt: skip
        if not password and not any(one.provider for one in left):
            message = "Without it you could not sign in any more. Link another one first."
            raise Denied(409, "last_way_in", message)
        noted.before = {"provider": found.provider or found.issuer, "identity": id}
        gone = delete(identities).where(
            identities.c.issuer == found.issuer, identities.c.subject == found.subject,
            identities.c.user_id == visitor.user,
        )  # fmt: skip
        async with accounts.admin.connected() as connection:
            await connection.execute(gone)
        await accounts.end_all(visitor.user, but=visitor.session)


async def user_of(accounts: Accounts, claimed: Claimed) -> str | None:
    """Whose identity it is."""
    wanted = (
        select(identities.c.user_id)
        .join(users, users.c.id == identities.c.user_id)
        .where(
            identities.c.issuer == claimed.issuer,
            identities.c.subject == claimed.subject,
            users.c.status == "active",
        )
    )
    async with accounts.admin.connected() as connection:
        return (await connection.execute(wanted)).scalar()


async def has_identity(accounts: Accounts, user: str) -> bool:
    """Whether they can sign in with a provider."""
    wanted = select(identities.c.user_id).where(identities.c.user_id == user).limit(1)
    async with accounts.admin.connected() as connection:
        return (await connection.execute(wanted)).first() is not None


async def arrived(
    accounts: Accounts, provider: Provider, claimed: Claimed, link: str, address: str
) -> tuple[str, str]:
    """The user, and the organisation they were invited to just now, if they were. Raises `Refused`
    for who is not expected."""
    user = await user_of(accounts, claimed)
    invitation = await _invitation(accounts, claimed, link)
    if user is None or invitation is not None:
        known = await accounts.admin.get_user(user) if user else None
        user = await _linked(accounts, provider, claimed, invitation, Coming(known, address))
    await _settle_role(accounts, provider, claimed, user, address)
    return user, invitation.organisation if invitation else ""


async def _invitation(accounts: Accounts, claimed: Claimed, link: str) -> Invitation | None:
    if not link:
        return None
    found = await accounts.invitation("invitation", link)
    if found is None:
        raise Refused(GONE)
    if found.email != claimed.email:
        raise Refused("The invitation is for another e-mail address than the one you have there.")
    return found


async def _linked(
    accounts: Accounts,
    provider: Provider,
    claimed: Claimed,
    invitation: Invitation | None,
    coming: Coming,
) -> str:
    """The account, with this identity from now on."""
    admin, email = accounts.admin, claimed.email
    if not email:
        raise Refused(f"{provider.title} has not verified your e-mail address.")
    found = coming.known or await admin.user_of(email)
    if found is not None and found.status != "active":
        raise Refused("Your account is disabled.")
    waiting = [invitation] if invitation else []
    if not waiting and (found is None or not await admin.places_of(found.id)):
        waiting = list(await accounts.waiting(email))
    trusted = email.rpartition("@")[2] in [one.lower() for one in provider.settings.domains]
    if not waiting and not trusted:
        raise Refused(f"Nobody has invited {email}. Ask an owner for an invitation.")
    home = "" if waiting else await _home(accounts, provider)
    place = home or waiting[0].organisation
    who = Who(place, found.id if found else "", coming.address)
    async with accounts.noting(who, "account.link", after={"provider": provider.name}) as noted:
        user = found or await admin.create_user(email, claimed.name)
        noted.subject = user.id
        if coming.known is None:
            await _enter(accounts, claimed, user.id)
        for one in waiting:
            if not await accounts.void(one.organisation, one.id):
                raise Refused("The invitation is not good any more.")
            await _become(accounts, noted, one.organisation, user.id, one.role)
        if home and not await _role(accounts, home, user.id):
            await _become(accounts, noted, home, user.id, mapped(provider, claimed))
    return user.id


async def _enter(accounts: Accounts, claimed: Claimed, user: str) -> None:
    row = {"issuer": claimed.issuer, "subject": claimed.subject, "user_id": user,
           "created": int(time.time() * 1000)}  # fmt: skip
    async with accounts.admin.connected() as connection:
        await connection.execute(insert(identities).values(row))


async def _become(
    accounts: Accounts, noted: Noted, organisation: str, user: str, role: Role
) -> None:
    if await _role(accounts, organisation, user) is None:
        await accounts.admin.set_member(organisation, user, role)
        noted.after = {**noted.after, organisation: role}


async def _settle_role(
    accounts: Accounts, provider: Provider, claimed: Claimed, user: str, address: str
) -> None:
    """What the groups say, where the operator goes by them. The last owner stays one."""
    if not provider.settings.roles:
        return
    home, wanted = await _home(accounts, provider), mapped(provider, claimed)
    async with accounts.noting(
        Who(home, user, address), "member.role", user,
        after={"role": wanted, "provider": provider.name},
    ) as noted:  # fmt: skip
        had = await _role(accounts, home, user)
        owners = [one for one in await accounts.admin.list_members(home) if one.role == "owner"]
        if had is None or had == wanted or (had == "owner" and len(owners) < 2):
            noted.left_out = True
            return
        noted.before = {"role": had}
        await accounts.admin.set_member(home, user, wanted)
        await accounts.end_all(user)


async def _role(accounts: Accounts, organisation: str, user: str) -> Role | None:
    places = await accounts.admin.places_of(user)
    return next((one.role for one in places if one.organisation == organisation), None)


async def _home(accounts: Accounts, provider: Provider) -> str:
    """The organisation that a provider's people become members of."""
    if provider.settings.organisation:
        return provider.settings.organisation
    found = await accounts.admin.list_organisations()
    if len(found) != 1:
        raise Refused(f"Set `organisation` of {provider.name}: there is more than one.")
    return found[0].id


def mapped(provider: Provider, claimed: Claimed) -> Role:
    """The highest role of somebody's groups."""
    table = provider.settings.roles
    has = {table[group] for group in claimed.groups if group in table}
    return next((role for role in ROLES if role in has), provider.settings.role)
