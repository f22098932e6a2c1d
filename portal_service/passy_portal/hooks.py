"""Webhooks within the organisation of who asks: what pages and the JSON API both do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from passy_plugins.api.budgets import WebhookTried
from passy_plugins.api.errors import absent
from passy_proxy.issue import EVENTS, Webhook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passy_portal.accounts import Accounts, Visitor
    from passy_portal.console import Console


async def listed(accounts: Accounts, visitor: Visitor) -> Sequence[Webhook]:
    """Oldest first."""
    return await accounts.admin.list_webhooks(visitor.organisation)


async def hook_of(accounts: Accounts, visitor: Visitor, id: str) -> Webhook:
    """404 for another organisation's, and for the operator's."""
    found = await accounts.admin.get_webhook(id)
    if found is None or found.organisation != visitor.organisation:
        raise absent("webhook")
    return found


async def create(accounts: Accounts, visitor: Visitor, url: str) -> tuple[Webhook, str]:
    """And the secret that its messages are signed with: this once."""
    after = {"url": host_of(url)}
    async with accounts.noting(visitor.who, "webhook.create", after=after) as noted:
        made, secret = await accounts.admin.add_webhook(visitor.organisation, url)
        noted.subject = made.id
    return made, secret


async def switch(accounts: Accounts, visitor: Visitor, id: str, *, on: bool) -> None:
    """Have it told of everything there is, or of nothing."""
    action = "webhook.enable" if on else "webhook.disable"
    async with accounts.noting(visitor.who, action, id) as noted:
        noted.after = {"url": host_of((await hook_of(accounts, visitor, id)).url)}
        await accounts.admin.change_webhook(id, EVENTS if on else ())


async def remove(accounts: Accounts, visitor: Visitor, id: str) -> None:
    async with accounts.noting(visitor.who, "webhook.delete", id) as noted:
        noted.before = {"url": host_of((await hook_of(accounts, visitor, id)).url)}
        await accounts.admin.remove_webhook(id)


async def tried(accounts: Accounts, visitor: Visitor, console: Console, id: str) -> WebhookTried:
    """Have the gateway send it a message that means nothing, as an alert would be sent."""
    await hook_of(accounts, visitor, id)
    told = WebhookTried(**await console.post(f"/webhooks/{id}/test"))
    async with accounts.noting(visitor.who, "webhook.test", id) as noted:
        noted.after = {"taken": told.taken, "status": told.status}
    return told


def host_of(url: str) -> str:
    """What may be shown to all: behind the host of some there is a secret."""
    parts = urlsplit(url)
    hidden = "/…" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{hidden}"
