"""What the portal works with: the writing side of the store, and its own tables there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from passy_plugins.api.desk import Desk
from passy_portal.accounts import Accounts
from passy_portal.mail import Mailer
from passy_portal.migrate import migrate
from passy_portal.oidc import Provider
from passy_portal.tail import Tail

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_portal.plugin import Config
    from passy_proxy import Connections


class Office:
    """Opened when it is first needed, as a `Desk` is."""

    def __init__(
        self, settings: Config, connections: Callable[[], Connections], draining: Callable[[], bool]
    ) -> None:
        """``draining``: whether this process is about to end."""
        self.settings = settings
        self.providers = {
            name: Provider(name, one, connections) for name, one in settings.oidc.items()
        }
        """Whom people may sign in with, by name."""
        self._draining = draining
        self._tail: Tail | None = None
        self.mailer = Mailer(settings.mail) if settings.mail else None
        self.desk = Desk(settings.store)
        self._accounts: Accounts | None = None
        self._opening = asyncio.Lock()

    async def admin(self) -> Admin:
        """See `Desk.admin`."""
        return await self.desk.admin()

    async def accounts(self) -> Accounts:
        """Who may sign in, and who has. Raises `StoreUnavailable`."""
        async with self._opening:
            if self._accounts is None:
                admin = await self.desk.admin()
                await migrate(admin)
                self._accounts = Accounts(admin, self.settings.idle, self.settings.longest)
            return self._accounts

    async def tail(self) -> Tail:
        """What arrives in the books, for all who watch here. Raises `StoreUnavailable`."""
        accounts = await self.accounts()
        if self._tail is None:
            self._tail = Tail(accounts, self._draining)
        return self._tail

    async def close(self) -> None:
        if self._tail is not None:
            await self._tail.close()
        self._accounts = self._tail = None
        await self.desk.close()
