"""Records in the books of a gateway, entered as gateways do: of any time, and with any text."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from passy_plugins.stores.sql.driver import driver_for
from passy_proxy.json import dumps
from passy_proxy.keyring import Keyring
from passy_proxy.records import UsageRecord

if TYPE_CHECKING:
    from harness.gateway import Gateway


def enter(gateway: Gateway, *records: UsageRecord) -> None:
    """In one transaction. Blocks; not within a loop's thread, which may be a browser's."""

    async def within() -> None:
        kept = f"sqlite:///{gateway.folder}/.passy/passy.db"
        books = driver_for(gateway.variables.get("DATABASE_URL", kept), "write")
        keyring = Keyring.load(gateway.folder / "data", gateway.variables.get("PASSY_SECRET_KEYS"))
        await books.record([dumps(record.row()) for record in records], [], keyring)
        await books.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(within())).result()
