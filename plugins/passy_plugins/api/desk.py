"""The writing side of a store, for as long as an application lives."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import wraps
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, cast

from passy_plugins.api.denied import Denied
from passy_proxy import Application
from passy_proxy.keyring import KeyringError

if TYPE_CHECKING:
    from passy_plugins.stores.sql.admin import Admin
    from passy_proxy import Administered


class Desk:
    """Opens the writing side when it is first needed, and once: a gateway starts while its database
    is away, and what needs it works as soon as it is back."""

    def __init__(self, store: Administered) -> None:
        self.store = store
        store.admin()  # It imports what it needs: now, in a thread, and not while others wait.
        self._stack = AsyncExitStack()
        self._admin: Admin | None = None
        self._opening = asyncio.Lock()

    async def admin(self) -> Admin:
        """What it refuses with a ValueError is the caller's mistake, and raised as `Denied`. Raises
        `StoreUnavailable`."""
        async with self._opening:
            if self._admin is None:
                opened: Admin = await self._stack.enter_async_context(self.store.admin())
                self._admin = cast("Admin", _Courteous(opened))
            return self._admin

    async def close(self) -> None:
        self._admin = None
        await self._stack.aclose()


class Desked(Application):
    """An application with a desk, which is closed when it stops. ``asgi`` opens it."""

    desk: Desk | None = None

    async def stop(self) -> None:
        await super().stop()
        if self.desk is not None:
            await self.desk.close()


class _Courteous:
    """A store's writing side, or a part of it, whose refusals are answers."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name in ("exchanges", "lists", "reports") and not callable(found):
            return _Courteous(found)
        return _courteous(found) if iscoroutinefunction(found) else found


def _courteous(work: Any) -> Any:
    @wraps(work)
    async def done(*arguments: Any, **named: Any) -> Any:
        try:
            return await work(*arguments, **named)
        except KeyringError as error:
            raise Denied(409, "secret_key_missing", str(error)) from error
        except ValueError as error:
            raise Denied(422, "invalid_value", str(error)) from error

    return done
