"""What somebody does with their own account: pages and the JSON API both.

Who changes how an account is entered shows once more that it is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_portal import identities
from passy_proxy.keyring import KeyringError

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.office import Office
    from passy_proxy.issue import Member, Organisation

WRONG_CODE = "This is not the code of this moment. Each code is good once; wait for the next one."
KEY_MISSING = (
    "Your second factor cannot be read: it is {}. Whoever runs this gateway has to give it."
)


async def proven(accounts: Accounts, visitor: Visitor, password: str) -> None:
    """422 for a wrong password; who signs in elsewhere has none here."""
    if await accounts.has_password(visitor.user):
        await _knows(accounts, visitor, password, "password", "This is not your password.")


async def _knows(
    accounts: Accounts, visitor: Visitor, password: str, at: str, otherwise: str
) -> None:
    await _another_try(accounts, visitor, second=False)
    if await accounts.known(visitor.email, password) is None:
        raise Denied(422, "invalid_value", otherwise, at)
    await accounts.throttle.forgive(visitor.email, visitor.address, visitor.session)


async def _another_try(accounts: Accounts, visitor: Visitor, *, second: bool) -> None:
    wait = await accounts.throttle.enter(
        visitor.email, visitor.address, visitor.session, second=second
    )
    if wait > 0:
        raise Denied(429, "too_many_tries", "Too many tries. Wait a moment, then try again.")


async def may_have_password(accounts: Accounts, visitor: Visitor, office: Office) -> bool:
    """Whether one would let them in."""
    return office.settings.passwords == "all" or await accounts.owns(visitor.user)


def is_proven(visitor: Visitor) -> bool:
    """Whether they have just signed in once more with their provider."""
    return time.time() < visitor.proven


async def change_password(
    accounts: Accounts, visitor: Visitor, office: Office, current: str, new: str
) -> None:
    """Another one, for who knows the present one; or the first, for who has just signed in with
    their provider once more. All of their sessions end.

    A password is a way in that outlives the session it was chosen in. Were the session enough, who
    finds a browser open, or has its cookie, would keep the account.
    """
    had = await accounts.has_password(visitor.user)
    if had:
        otherwise = "This is not your present password."
        await _knows(accounts, visitor, current, "current", otherwise)
    else:
        await _check_first(accounts, visitor, office)
    try:
        hashed = await accounts.passwords.hash(new)
    except ValueError as weak:
        raise Denied(422, "invalid_value", str(weak), "new") from None
    after: Mapping[str, Any] = {} if had else {"first": True}
    async with accounts.noting(visitor.who, "account.password", visitor.user, after=after):
        if not had and await accounts.has_password(visitor.user):
            raise Denied(409, "conflict", "You have a password by now. Sign in with it.")
        await accounts.set_password(visitor.user, hashed)


async def _check_first(accounts: Accounts, visitor: Visitor, office: Office) -> None:
    if not await may_have_password(accounts, visitor, office):
        raise Denied(403, "not_allowed", "Passwords are for owners here. Use your provider.")
    _check_proven(visitor)


def _check_proven(visitor: Visitor) -> None:
    if not is_proven(visitor):
        message = "Sign in with your provider once more, then do this within five minutes."
        raise Denied(403, "sign_in_again", message)


async def places_of(admin: Admin, user: str) -> list[tuple[Member, Organisation]]:
    """The organisations somebody can work in."""
    found = []
    for one in await admin.places_of(user):
        organisation = await admin.get_organisation(one.organisation)
        if organisation is not None and organisation.status == "active":
            found.append((one, organisation))
    return found


async def check_place(accounts: Accounts, visitor: Visitor, organisation: str) -> None:
    """404 for an organisation they are no member of."""
    if organisation not in [one.id for _, one in await places_of(accounts.admin, visitor.user)]:
        raise absent("organisation")


async def end_others(accounts: Accounts, visitor: Visitor) -> int:
    """All sessions but this one; how many."""
    async with accounts.noting(visitor.who, "account.sessions", visitor.user) as noted:
        ended = await accounts.end_all(visitor.user, but=visitor.session)
        noted.after = {"ended": ended}
    return ended


# The second factor


async def begin_second(accounts: Accounts, visitor: Visitor) -> str:
    """A secret for an app, which counts as soon as a code confirms it."""
    if await accounts.factors.confirmed(visitor.user):
        raise Denied(409, "exists_already", "You have a second factor. Give it up first.")
    await accounts.factors.begin(visitor.user)
    return await unconfirmed(accounts, visitor)


async def unconfirmed(accounts: Accounts, visitor: Visitor) -> str:
    """The secret that waits for a code; empty where there is none."""
    try:
        return await accounts.factors.unconfirmed(visitor.user) or ""
    except KeyringError as missing:
        raise Denied(409, "key_missing", KEY_MISSING.format(missing)) from None


async def confirm_second(
    accounts: Accounts, visitor: Visitor, code: str, password: str
) -> list[str]:
    """The recovery codes, for who shows a code of the app, and the password. All sessions end."""
    await proven(accounts, visitor, password)
    async with accounts.noting(visitor.who, "account.second.on", visitor.user):
        try:
            codes = await accounts.factors.confirm(visitor.user, code)
        except KeyringError as missing:
            raise Denied(409, "key_missing", KEY_MISSING.format(missing)) from None
        if codes is None:
            raise Denied(422, "invalid_value", WRONG_CODE, "code")
    await accounts.end_all(visitor.user)
    return codes


async def renew_codes(accounts: Accounts, visitor: Visitor, code: str) -> list[str]:
    """Other recovery codes, for who shows a code. All sessions end."""
    await _another_try(accounts, visitor, second=True)
    async with accounts.noting(visitor.who, "account.second.codes", visitor.user):
        await _shows(accounts, visitor, code)
        codes = await accounts.factors.renew(visitor.user)
    await _forgiven(accounts, visitor)
    await accounts.end_all(visitor.user)
    return codes


async def drop_second(accounts: Accounts, visitor: Visitor, code: str, password: str) -> None:
    """Do without it, for who knows the password and shows a code. All other sessions end."""
    if await accounts.factors.required_of(visitor.user):
        message = "An organisation of yours asks for a second factor."
        raise Denied(422, "second_factor_required", message)
    await proven(accounts, visitor, password)
    await _another_try(accounts, visitor, second=True)
    async with accounts.noting(visitor.who, "account.second.off", visitor.user):
        await _shows(accounts, visitor, code)
        await accounts.factors.drop(visitor.user)
        await accounts.end_all(visitor.user, but=visitor.session)
    await _forgiven(accounts, visitor)


async def _shows(accounts: Accounts, visitor: Visitor, code: str) -> None:
    try:
        fits = await accounts.factors.fits(visitor.user, code)
    except KeyringError as missing:
        raise Denied(409, "key_missing", KEY_MISSING.format(missing)) from None
    if not fits:
        raise Denied(422, "invalid_value", WRONG_CODE, "code")


async def _forgiven(accounts: Accounts, visitor: Visitor) -> None:
    await accounts.throttle.forgive(
        visitor.email, visitor.address, visitor.session, second=True
    )  # fmt: skip


# Providers that vouch for them


async def check_linking(accounts: Accounts, visitor: Visitor, password: str) -> None:
    """One more way in takes what a password takes, for the same reason."""
    if await accounts.has_password(visitor.user):
        await proven(accounts, visitor, password)
    else:
        _check_proven(visitor)


async def unlink(
    accounts: Accounts, visitor: Visitor, office: Office, id: str, password: str
) -> None:
    """Have one vouch for them no more."""
    providers = office.providers
    await identities.identity_of(accounts, providers, visitor.user, id)
    await proven(accounts, visitor, password)
    enough = await accounts.has_password(visitor.user) and await may_have_password(
        accounts, visitor, office
    )
    await identities.unlink(accounts, visitor, providers, id, password=enough)
