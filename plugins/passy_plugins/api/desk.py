"""The writing side of a store, for as long as an application lives."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_proxy import Administered


class Desk:
    """Opens the writing side when it is first needed, and once: a gateway starts while its database
    is away, and what needs it works as soon as it is back."""

    def __init__(self, store: Administered) -> None:
        self._store = store
        self._stack = AsyncExitStack()
        self._admin: Admin | None = None
        self._opening = asyncio.Lock()

    async def admin(self) -> Admin:
        """Raises `StoreUnavailable`."""
        if self._admin is None:
            async with self._opening:
                if self._admin is None:
                    self._admin = await self._stack.enter_async_context(self._store.admin())
        return self._admin

    async def close(self) -> None:
        self._admin = None
        await self._stack.aclose()
