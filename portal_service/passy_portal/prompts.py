"""What is kept of the playground: prompts with their models and parameters, of one person or shared
within their organisation. No answer is kept, and no key."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.stores.sql.schema import users
from passy_portal.tables import prompts
from passy_proxy.json import dumps, loads

if TYPE_CHECKING:
    from sqlalchemy import Row

    from passy_portal.accounts import Accounts, Visitor

MOST = 500
"""Of one person in one organisation."""
LONGEST = 100_000
"""Characters of one message; a whole prompt may have twice as many, as JSON."""


@dataclass(frozen=True, slots=True)
class Prompt:
    id: str
    user: str
    by: str
    """Whose it is, as people call them."""
    title: str
    content: Mapping[str, Any]
    shared: bool
    changed: float
    """Unix seconds."""


async def listed(accounts: Accounts, visitor: Visitor) -> list[Prompt]:
    """One's own and those that others share, latest first."""
    wanted = _SELECT.where(_seen_by(visitor)).order_by(prompts.c.changed.desc()).limit(MOST)
    async with accounts.admin.connected() as connection:
        return [_prompt(row) for row in (await connection.execute(wanted)).all()]


async def opened(accounts: Accounts, visitor: Visitor, id: str) -> Prompt:
    """404 for another organisation's, and for what somebody keeps to themselves."""
    wanted = _SELECT.where(_seen_by(visitor), prompts.c.id == id)
    async with accounts.admin.connected() as connection:
        row = (await connection.execute(wanted)).first()
    if row is None:
        raise absent("prompt")
    return _prompt(row)


async def kept(
    accounts: Accounts, visitor: Visitor, title: str, content: Mapping[str, Any], shared: bool
) -> Prompt:
    """A new one."""
    id, text = f"prompt_{secrets.token_hex(8)}", _text(content)
    mine = (prompts.c.organisation == visitor.organisation, prompts.c.user_id == visitor.user)
    row = {
        "id": id, "organisation": visitor.organisation, "user_id": visitor.user, "title": title,
        "content": text, "shared": shared, "changed": _now(),
    }  # fmt: skip
    after = {"title": title, "shared": shared}
    async with (
        accounts.noting(visitor.who, "prompt.create", id, after=after),
        accounts.admin.connected() as connection,
    ):
        count = select(func.count()).select_from(prompts).where(*mine)
        if int((await connection.execute(count)).scalar_one()) >= MOST:
            message = f"You keep {MOST} prompts, which is as many as there is room for."
            raise Denied(409, "too_many", message)
        await connection.execute(insert(prompts).values(row))
    return await opened(accounts, visitor, id)


async def changed(
    accounts: Accounts, visitor: Visitor, id: str, values: Mapping[str, Any]
) -> Prompt:
    """One's own, otherwise."""
    was = await opened(accounts, visitor, id)
    if was.user != visitor.user:
        raise Denied(403, "not_allowed", "It is somebody else's: save your own copy.")
    named = dict(values)
    if "content" in named:
        named["content"] = _text(named["content"])
    told = [name for name in named if name != "content"]
    before = {name: getattr(was, name) for name in told}
    after = {name: named[name] for name in told}
    mine = update(prompts).where(prompts.c.id == id)
    async with (
        accounts.noting(visitor.who, "prompt.change", id, before, after),
        accounts.admin.connected() as connection,
    ):
        await connection.execute(mine.values(changed=_now(), **named))
    return await opened(accounts, visitor, id)


async def removed(accounts: Accounts, visitor: Visitor, id: str) -> None:
    """One's own; of those that are shared owners and admins may remove any."""
    was = await opened(accounts, visitor, id)
    if was.user != visitor.user and visitor.role not in ("owner", "admin"):
        raise Denied(403, "not_allowed", "It is somebody else's.")
    before = {"title": was.title, "shared": was.shared}
    async with (
        accounts.noting(visitor.who, "prompt.delete", id, before),
        accounts.admin.connected() as connection,
    ):
        await connection.execute(delete(prompts).where(prompts.c.id == id))


def _seen_by(visitor: Visitor) -> ColumnElement[bool]:
    mine = or_(prompts.c.user_id == visitor.user, prompts.c.shared)
    return (prompts.c.organisation == visitor.organisation) & mine


_SELECT = select(prompts, users.c.email, users.c.name).outerjoin(
    users, users.c.id == prompts.c.user_id
)


def _prompt(row: Row[Any]) -> Prompt:
    by = row.name or row.email or row.user_id
    return Prompt(
        row.id, row.user_id, by, row.title, loads(row.content), bool(row.shared), row.changed / 1000
    )


def _text(content: Mapping[str, Any]) -> str:
    text = dumps(dict(content)).decode()
    if len(text) > 2 * LONGEST:
        raise Denied(413, "request_too_large", f"A prompt is at most {2 * LONGEST:,} characters.")
    return text


def _now() -> int:
    return int(time.time() * 1000)
