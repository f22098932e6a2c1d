"""Keys, organisations and what they bring, in the books of a gateway that runs: without a process
for each, which is what takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from passy_plugins.stores.sql.admin import Admin
from passy_proxy.issue import NewCredential, NewKey, NewProvider
from passy_proxy.keyring import Keyring

if TYPE_CHECKING:
    from harness.gateway import Gateway

T = TypeVar("T")


class People:
    """Writes into ``.passy/passy.db`` of the gateway's folder."""

    def __init__(self, gateway: Gateway) -> None:
        listed = gateway.variables.get("PASSY_SECRET_KEYS")
        self._keyring = Keyring.load(gateway.folder / "data", listed)
        self._url = f"sqlite:///{gateway.folder}/.passy/passy.db"

    def organisation(self, name: str) -> str:
        return self._done(lambda books: books.create_organisation(name))

    def key(self, organisation: str | None = None, name: str = "client") -> str:
        """A client's key."""
        wanted = NewKey(name, organisation=organisation)
        return self._done(lambda books: books.create_key(wanted))[1]

    def brings(self, organisation: str, upstream: str, secret: str, priority: int = 0) -> str:
        """A key of its own for a shared upstream; the id of that."""
        new = NewCredential(organisation, upstream, priority=priority)
        return self._done(lambda books: books.add_credential(new, secret))

    def provider(self, organisation: str, name: str, url: str, secret: str | None = None) -> str:
        """An upstream of its own, which serves one model of the same name."""
        new = NewProvider(organisation, name, url, "openai", (name,))
        return self._done(lambda books: books.add_provider(new, secret))

    def _done(self, work: Callable[[Admin], Awaitable[T]]) -> T:
        async def within() -> T:
            async with Admin.opened(self._url, self._keyring) as books:
                return await work(books)

        return asyncio.run(within())
